//! Unix sockets: listening ones and bound ones by their names, connected pairs with what was sent and not read.

use super::{Maker, Tried, Trouble, sockets};
use crate::model::{Kind, Unix};
use crate::restore::check::unhex;
use crate::sys::{fd, task};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use stasis_plugin_api::prelude::*;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// All of them, parked, by the index of their object.
pub(super) fn make(maker: &Maker<'_>) -> Result<Vec<(usize, OwnedFd)>> {
    let all = maker.image.objects.iter().enumerate();
    let all: Vec<(usize, &Unix)> = all
        .filter_map(|(i, o)| if let Kind::Unix(unix) = &o.kind { Some((i, unix)) } else { None })
        .collect();
    let mut made: HashMap<usize, OwnedFd> = HashMap::new();
    let of = |index: usize| move |trouble: Trouble| maker.of(index, trouble);
    // Ends that the application has closed; they go when everything is said through them.
    let mut closed: HashMap<usize, OwnedFd> = HashMap::new();
    for (index, unix) in all.iter().filter(|(i, u)| !paired(&all, *i, u)) {
        made.insert(*index, alone(unix).map_err(of(*index))?);
    }
    for (index, unix) in all.iter().filter(|(i, u)| paired(&all, *i, u)) {
        if made.contains_key(index) {
            continue;
        }
        let other = unix.peer.and_then(|peer| all.iter().find(|(i, _)| *i == peer)).map(|(i, u)| (*i, *u));
        let listener = |u: &Unix| {
            let local = u.local.as_ref()?;
            all.iter()
                .find(|(_, l)| l.listening.is_some() && l.local.as_ref() == Some(local))
                .map(|(i, l)| (*i, *l))
        };
        let pair = match (listener(unix), other.and_then(|(_, o)| listener(o))) {
            (Some(at), _) => {
                let ends = accepted(&made, at, other.map(|(_, o)| o), unix);
                ends.map(|[far, near]| [near, far])
            }
            (_, Some(at)) => accepted(&made, at, Some(unix), other.map_or(unix, |(_, o)| o)),
            _ => {
                let ids = unix.peer_ids.or(other.and_then(|(_, o)| o.peer_ids));
                known_as(ids, || Ok(fd::socketpair(unix.socket_type)?))
            }
        };
        let [near, far] = pair.map_err(of(*index))?;
        made.insert(*index, near);
        match other {
            Some((other, _)) => made.insert(other, far),
            None => closed.insert(*index, far),
        };
    }
    finish(&all, &made, &closed).map_err(|(index, trouble)| maker.of(index, trouble))?;
    drop(closed);
    made.into_iter().map(|(index, socket)| Ok((index, maker.park(socket)?))).collect()
}

/// Whether it is one end of a connection: the other one names it, or is gone.
fn paired(all: &[(usize, &Unix)], index: usize, unix: &Unix) -> bool {
    let mutual = |peer: usize| all.iter().any(|(i, other)| *i == peer && other.peer == Some(index));
    unix.listening.is_none() && (unix.orphan || unix.peer.is_some_and(mutual))
}

fn alone(unix: &Unix) -> Tried<OwnedFd> {
    let made = fd::socket(libc::AF_UNIX, unix.socket_type | libc::SOCK_CLOEXEC, 0)?;
    sockets::options(&made, &unix.options)?;
    if let Some(local) = &unix.local {
        let address = unhex(local).ok_or(Errno::EINVAL)?;
        within(unix, || bind(made.as_fd(), &address, unix))?;
    }
    if let Some(backlog) = unix.listening {
        known_as(unix.peer_ids, || Ok(fd::listen(made.as_fd(), backlog)?))?;
    }
    Ok(made)
}

/// The name of a socket as a path; empty for one of another kind.
fn path(address: &[u8]) -> &Path {
    let name = address.get(2..).unwrap_or_default();
    Path::new(std::ffi::OsStr::from_bytes(name.split(|b| *b == 0).next().unwrap_or_default()))
}

/// Does something for which the kernel remembers who did it, as a user. Only root becomes others, and comes back as who it
/// was; elsewhere there mostly is one user only.
fn known_as<T>(ids: Option<[u32; 2]>, act: impl FnOnce() -> Tried<T>) -> Tried<T> {
    let own = [nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()];
    let Some(ids) = ids.filter(|ids| own[0] == 0 && *ids != own) else { return act() };
    let traceable = task::prctl(libc::PR_GET_DUMPABLE, 0)? == 1;
    // Ids that are none here nobody can have.
    let _ = task::set_effective(ids);
    let done = act();
    task::set_effective(own)?;
    // It is over with other ids, and whoever is made from here on has to be traced.
    task::prctl(libc::PR_SET_DUMPABLE, traceable.into())?;
    done
}

/// Does something where a relative name of this socket leads to it.
fn within<T>(unix: &Unix, act: impl FnOnce() -> Tried<T>) -> Tried<T> {
    let Some(directory) = &unix.directory else { return act() };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let before = nix::fcntl::open(".", flags, nix::sys::stat::Mode::empty())?;
    nix::unistd::chdir(directory.as_str())
        .map_err(|errno| Trouble::new(format!("the directory {directory}: {}", errno.desc())))?;
    let done = act();
    nix::unistd::fchdir(&before)?;
    done
}

/// Binds to its name. A socket file that the saved process left there gives way; the new one is as it was.
fn bind(socket: BorrowedFd<'_>, address: &[u8], unix: &Unix) -> Tried<()> {
    let path = path(address);
    if path.as_os_str().is_empty() {
        return Ok(fd::bind(socket, address)?);
    }
    let last = unix.moved.as_deref().map_or(path, Path::new);
    let socket_at = |path: &Path| {
        let meta = std::fs::symlink_metadata(path).ok().filter(|meta| meta.file_type().is_socket())?;
        Some([meta.mode(), meta.uid(), meta.gid()])
    };
    let left = socket_at(last);
    if socket_at(path).is_some() {
        std::fs::remove_file(path)?;
    }
    fd::bind(socket, address)?;
    let made = std::fs::symlink_metadata(path)?;
    let [mode, uid, gid] = left.or(unix.file).unwrap_or([0o755, made.uid(), made.gid()]);
    if (uid, gid) != (made.uid(), made.gid()) {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .map_err(|error| Trouble::new(format!("the owner {uid}:{gid} of its file: {error}")))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777))?;
    if last != path {
        std::fs::rename(path, last)
            .map_err(|error| Trouble::new(format!("its file cannot become {}: {error}", last.display())))?;
    }
    Ok(())
}

/// The address under which a socket is reached.
fn reached(unix: &Unix, own: Vec<u8>) -> Vec<u8> {
    let family = own.get(..2).unwrap_or_default();
    match &unix.moved {
        Some(moved) => [family, moved.as_bytes(), &[0]].concat(),
        None => own,
    }
}

/// A connection made through the listening socket: `[connecting, accepted]`.
fn accepted(
    made: &HashMap<usize, OwnedFd>,
    listener: (usize, &Unix),
    client: Option<&Unix>,
    server: &Unix,
) -> Tried<[OwnedFd; 2]> {
    let (listener, described) = listener;
    let listener = made.get(&listener).ok_or(Errno::EINVAL)?;
    let connecting = fd::socket(libc::AF_UNIX, server.socket_type | libc::SOCK_CLOEXEC, 0)?;
    if let Some((client, local)) = client.and_then(|client| Some((client, client.local.as_ref()?))) {
        let address = unhex(local).ok_or(Errno::EINVAL)?;
        // Nobody knows any more where a relative name began.
        let lost = path(&address).is_relative() && client.directory.is_none();
        if !lost || path(&address).as_os_str().is_empty() {
            within(client, || bind(connecting.as_fd(), &address, client))?;
        }
    }
    within(described, || known_as(server.peer_ids, || connect(&connecting, listener, described)))?;
    Ok([connecting, fd::accept(listener.as_fd())?])
}

/// Connects to a socket by its name.
fn connect(from: &OwnedFd, to: &OwnedFd, unix: &Unix) -> Tried<()> {
    let address = reached(unix, crate::sys::socket::local(to)?);
    Ok(fd::connect(from.as_fd(), &address)?)
}

/// What is under way, options of pairs, connections of datagram sockets, ends that are shut. The options come behind the
/// messages: these were sent while the buffers were larger, maybe.
fn finish(
    all: &[(usize, &Unix)],
    made: &HashMap<usize, OwnedFd>,
    closed: &HashMap<usize, OwnedFd>,
) -> std::result::Result<(), (usize, Trouble)> {
    for (index, unix) in all {
        let Some(socket) = made.get(index) else { continue };
        let far = if paired(all, *index, unix) {
            unix.peer.and_then(|peer| made.get(&peer)).or_else(|| closed.get(index))
        } else {
            None
        };
        say(far, socket, unix).map_err(|e| (*index, e))?;
    }
    for (index, unix) in all {
        let Some(socket) = made.get(index) else { continue };
        if paired(all, *index, unix) {
            sockets::options(socket, &unix.options).map_err(|e| (*index, e))?;
        }
        let target = unix.peer.and_then(|peer| all.iter().find(|(i, _)| *i == peer));
        if !paired(all, *index, unix)
            && let Some((target, local)) = target.and_then(|(_, u)| Some((*u, unhex(u.local.as_deref()?)?)))
        {
            let local = reached(target, local);
            within(target, || Ok(fd::connect(socket.as_fd(), &local)?)).map_err(|e| (*index, e))?;
        }
        let how = match unix.shutdown & 3 {
            0 => continue,
            n => n as i32 - 1,
        };
        fd::shutdown(socket.as_fd(), how).map_err(|e| (*index, e.into()))?;
    }
    Ok(())
}

/// Sends to a socket what it has not read yet: from the other end, or each message from a stranger.
fn say(far: Option<&OwnedFd>, socket: &OwnedFd, unix: &Unix) -> Tried<()> {
    let messages = unix.queue.iter().map(|message| unhex(message).ok_or(Errno::EINVAL));
    let messages = messages.collect::<std::result::Result<Vec<_>, _>>()?;
    if let Some(far) = far.filter(|_| !messages.is_empty()) {
        let room = Room::make(far)?;
        messages.iter().try_for_each(|message| send(far, message))?;
        return room.put_back(far);
    }
    for message in &messages {
        let stranger = fd::socket(libc::AF_UNIX, unix.socket_type | libc::SOCK_CLOEXEC, 0)?;
        Room::make(&stranger)?;
        within(unix, || connect(&stranger, socket, unix))?;
        send(&stranger, message)?;
    }
    Ok(())
}

fn send(from: &OwnedFd, bytes: &[u8]) -> Tried<()> {
    let mut rest = bytes;
    loop {
        let n = fd::send(from.as_fd(), rest)?;
        rest = rest.get(n..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// A send buffer as large as it may be, and how it was before.
struct Room {
    size: i32,
    chosen: Option<i32>,
}

impl Room {
    fn make(socket: &OwnedFd) -> Tried<Self> {
        let now = |name| crate::sys::socket::number(socket, libc::SOL_SOCKET, name);
        let room = Self { size: now(libc::SO_SNDBUF)? / 2, chosen: now(sockets::SO_BUF_LOCK).ok() };
        set(socket, libc::SO_SNDBUF, i32::MAX / 2)?;
        Ok(room)
    }

    /// A kernel before 5.14 takes the size for the application's own choice from now on.
    fn put_back(self, socket: &OwnedFd) -> Tried<()> {
        set(socket, libc::SO_SNDBUF, self.size)?;
        self.chosen.map_or(Ok(()), |chosen| set(socket, sockets::SO_BUF_LOCK, chosen))
    }
}

fn set(socket: &OwnedFd, name: i32, value: i32) -> Tried<()> {
    Ok(fd::set_option(socket.as_fd(), libc::SOL_SOCKET, name, &value.to_ne_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_remembers_whom_it_is_told() {
        let own = [nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()];
        let pair = |ids| known_as(ids, || Ok(fd::socketpair(libc::SOCK_STREAM)?));
        let told = |ids| crate::sys::socket::peer_ids(&pair(ids).unwrap()[0]);
        assert_eq!(told(None), Some(own));
        assert_eq!(told(Some([7, 8])), Some(if own[0] == 0 { [7, 8] } else { own }));
        assert_eq!(told(None), Some(own));
        assert_eq!(task::prctl(libc::PR_GET_DUMPABLE, 0), Ok(1));
    }
}
