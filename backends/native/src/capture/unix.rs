//! Unix sockets: unconnected, listening, or connected with both ends in the tree.

use super::descriptors::Seen;
use super::process::hex;
use super::sockets::{Sockets, general_options};
use crate::model::{Kind, Object, Unix};
use crate::proc::link;
use crate::sys::fd;
use crate::sys::netlink::UnixState;
use crate::sys::socket::{self, Waiting};
use nix::poll::PollFlags;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
const SO_PEEK_OFF: i32 = 42;
/// More than a datagram may have (the largest send buffer).
const ROOM: usize = 16 << 20;

/// A unix socket of the tree.
#[derive(Debug)]
pub(crate) struct Found {
    object: usize,
    name: String,
    peer: Option<u32>,
    /// What its messages cost that others have not read, and what those cost that wait in it; not of streams.
    sent: u64,
    waits: u64,
}

pub(crate) fn describe(
    sockets: &mut Sockets,
    seen: &Seen<'_>,
    index: usize,
    socket_type: i32,
) -> Result<Kind> {
    let inode = seen.target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
    let inode: u32 =
        inode.and_then(|inode| inode.parse().ok()).ok_or_else(|| seen.refuse("it has no number"))?;
    let diagnosis =
        sockets.diagnosis.as_ref().ok_or_else(|| seen.refuse("the kernel does not tell of unix sockets"))?;
    let state = diagnosis
        .unix(inode)
        .map_err(|error| seen.refuse(format!("the kernel does not tell of it: {}", error.desc())))?;
    let stream = socket_type != libc::SOCK_DGRAM;
    let listens = state.state == LISTEN;
    if listens && !state.waiting.is_empty() && !seen.runs {
        return Err(seen.refuse(format!("{} connections wait to be accepted", state.waiting.len())));
    }
    let connected = stream && state.state == ESTABLISHED;
    let orphan = connected && matches!(state.peer, None | Some(0));
    if orphan && state.shutdown != 3 && !seen.runs {
        return Err(seen.refuse("its connection was not accepted yet"));
    }
    let local = socket::local(&seen.copy).map_err(seen.errno())?;
    // An accepted socket shows its listener's address: it is accepted again where the listener is there as well.
    let named = local.len() > 2;
    let Place { directory, moved, file } = place(seen, &local, &state, connected)?;
    let queue = if listens || seen.runs { Vec::new() } else { queue(seen, &state, socket_type)? };
    let mut found = Found {
        object: index,
        name: seen.name(),
        peer: state.peer.filter(|peer| *peer != 0),
        sent: 0,
        waits: 0,
    };
    if socket_type != libc::SOCK_STREAM && !seen.runs {
        found.sent = socket::in_flight(&seen.copy).map_err(seen.errno())?;
        found.waits = socket::cost(socket_type, &queue).map_err(seen.errno())?;
    }
    sockets.unix.insert(inode, found);
    Ok(Kind::Unix(Unix {
        socket_type,
        local: named.then(|| hex(&local)),
        directory,
        moved,
        file,
        peer_ids: socket::peer_ids(&seen.copy),
        listening: listens.then(|| i32::try_from(state.backlog).unwrap_or(i32::MAX)),
        peer: None,
        orphan,
        shutdown: u32::from(state.shutdown),
        queue: queue.iter().map(|message| hex(message)).collect(),
        options: general_options(seen),
    }))
}

/// Where the socket's own file lies.
#[derive(Debug, Default)]
struct Place {
    /// From where a relative name leads to it.
    directory: Option<String>,
    /// Its name, where it is no longer that of the socket.
    moved: Option<String>,
    /// Permission bits, uid and gid.
    file: Option<[u32; 3]>,
}

/// More entries of a directory are not looked at for a file that has been renamed.
const ENTRIES: usize = 10_000;

/// The name of a connection may be its listener's, which nobody needs to find.
fn place(seen: &Seen<'_>, local: &[u8], state: &UnixState, connected: bool) -> Result<Place> {
    let name = local.get(2..).and_then(|name| name.split(|byte| *byte == 0).next()).unwrap_or_default();
    let (name, Some(inode)) = (Path::new(OsStr::from_bytes(name)), state.file) else {
        return Ok(Place::default());
    };
    if name.as_os_str().is_empty() {
        return Ok(Place::default());
    }
    if name.is_absolute() {
        // One whose file is gone gets it again.
        return match found(name, inode) {
            Some(place) => Ok(place),
            None if connected || std::fs::symlink_metadata(name).is_err() => Ok(Place::default()),
            None => {
                let why = format!("something else lies under its name {} now", name.display());
                Err(seen.refuse(why).help("let the application close it before saving"))
            }
        };
    }
    let mut places = std::iter::once(&seen.pid).chain(seen.members).filter_map(|pid| link(*pid, "cwd").ok());
    let own = places.find_map(|from| {
        let place = found(&Path::new(&from).join(name), inode)?;
        Some(Place { directory: Some(from), ..place })
    });
    if own.is_none() && !connected {
        let why = format!("its name {} leads to it from no working directory any more", name.display());
        return Err(seen.refuse(why).help("let the application bind it to an absolute name"));
    }
    Ok(own.unwrap_or_default())
}

/// The socket file of this inode: under its name, or beside it, where programs move it to once they listen.
fn found(name: &Path, inode: u32) -> Option<Place> {
    let own = |path: &Path| {
        let there = std::fs::symlink_metadata(path).ok()?;
        let own = there.file_type().is_socket() && there.ino() as u32 == inode;
        own.then(|| [there.mode() & 0o7777, there.uid(), there.gid()])
    };
    if let Some(file) = own(name) {
        return Some(Place { file: Some(file), ..Place::default() });
    }
    let beside = std::fs::read_dir(name.parent()?).ok()?.take(ENTRIES).flatten();
    beside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket())).find_map(|entry| {
        let path = entry.path();
        let file = own(&path)?;
        Some(Place { file: Some(file), moved: Some(path.to_str()?.to_owned()), directory: None })
    })
}

/// What waits in the socket, left there: one entry for a stream, one a message otherwise.
fn queue(seen: &Seen<'_>, state: &UnixState, socket_type: i32) -> Result<Vec<Vec<u8>>> {
    let stream = socket_type == libc::SOCK_STREAM;
    // The kernel counts bytes, and a message may have none.
    let readable = fd::ready(seen.copy.as_fd(), PollFlags::POLLIN).map_err(seen.errno())?;
    if state.queued == 0 && (stream || !readable.contains(PollFlags::POLLIN)) {
        return Ok(Vec::new());
    }
    let own = socket::number(&seen.copy, libc::SOL_SOCKET, SO_PEEK_OFF).map_err(seen.errno())?;
    if own >= 0 {
        return Err(
            seen.refuse("data waits in it, and the application peeks at it from an offset of its own")
        );
    }
    if !stream {
        return messages(seen, state, socket_type);
    }
    let room = usize::try_from(state.queued).unwrap_or(0);
    let first = peek(seen, room)?.map_or_else(Vec::new, |waiting| waiting.bytes);
    if first.len() == room {
        return Ok(vec![first]);
    }
    let _walk = socket::Walk::begin(&seen.copy).map_err(seen.errno())?;
    let mut all = Vec::new();
    while let Some(part) = peek(seen, ROOM)?.filter(|part| !part.bytes.is_empty()) {
        all.extend(part.bytes);
    }
    Ok(vec![all])
}

fn peek(seen: &Seen<'_>, room: usize) -> Result<Option<Waiting>> {
    match socket::peek(&seen.copy, room).map_err(seen.errno())? {
        Some(waiting) if waiting.carries => {
            Err(seen.refuse("descriptors or credentials that were sent wait in it"))
        }
        waiting => Ok(waiting),
    }
}

/// Message by message. One without content is met once on such a walk, and passed over ever after; only at the front it
/// is always seen ([`hidden`] finds the others).
fn messages(seen: &Seen<'_>, state: &UnixState, socket_type: i32) -> Result<Vec<Vec<u8>>> {
    let packets = socket_type == libc::SOCK_SEQPACKET;
    // Nothing to read is the end of the connection then.
    let ends = packets && state.shutdown & 1 != 0;
    let mut all = Vec::new();
    if !ends && peek(seen, ROOM)?.is_some_and(|first| first.bytes.is_empty()) {
        all.push(Vec::new());
    }
    let walk = socket::Walk::begin(&seen.copy).map_err(seen.errno())?;
    while let Some(waiting) = peek(seen, ROOM)? {
        if waiting.bytes.is_empty() && ends {
            break;
        }
        if waiting.named && !packets {
            let help = "try again once the application has read it";
            return Err(seen.refuse("a message waits in it whose sender's name would be lost").help(help));
        }
        all.push(waiting.bytes);
    }
    drop(walk);
    let bytes: usize = all.iter().map(Vec::len).sum();
    if packets && bytes < usize::try_from(state.queued).unwrap_or(0) {
        return Err(unseen(&seen.name()));
    }
    Ok(all)
}

fn unseen(name: &str) -> BackendError {
    BackendError::new(kind::UNSUPPORTED, format!("{name} cannot be saved"))
        .because("a message without content waits in it, and the kernel does not tell where")
        .help("try again once the application has read it")
}

/// A message that an earlier walk has met: those who send to a socket have sent more than was found in it.
fn hidden(found: &HashMap<u32, Found>) -> Option<&Found> {
    let sent =
        |to: u32| found.values().filter(|from| from.peer == Some(to)).map(|from| from.sent).sum::<u64>();
    found.iter().find(|(inode, socket)| sent(**inode) > socket.waits).map(|(_, socket)| socket)
}

/// Tells the objects of their peers.
pub(crate) fn connect(found: &HashMap<u32, Found>, objects: &mut [Object]) -> Result<()> {
    if let Some(socket) = hidden(found) {
        return Err(unseen(&socket.name));
    }
    for socket in found.values() {
        let Some(peer) = socket.peer else { continue };
        let Some(other) = found.get(&peer) else {
            let what = format!("{} cannot be saved", socket.name);
            return Err(BackendError::new(kind::UNSUPPORTED, what)
                .because("the other end of the connection is no part of the application")
                .help("close it before saving"));
        };
        if let Some(Object { kind: Kind::Unix(unix), .. }) = objects.get_mut(socket.object) {
            unix.peer = Some(other.object);
        }
    }
    Ok(())
}
