//! Everything that processes hold, made once by the engine and parked at numbers that no process of the image uses;
//! each process then takes its own. What only a process can make of itself (pidfds, watches, record locks) comes later.

mod events;
mod files;
mod inotify;
mod memory;
mod pipes;
mod sockets;
mod terminals;
mod unix;

use super::check;
use crate::model::{Area, Backing, FileIdentity, Image, Kind, Object, Process, State};
use crate::sys::fd;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use stasis_plugin_api::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

pub(super) use events::arm;
pub(super) use inotify::quiet;
pub(super) use memory::seal;
pub(super) use terminals::Terminals;

/// Status flags that are set after the opening.
const LATER: i32 = libc::O_ASYNC | libc::O_NONBLOCK | libc::O_APPEND | libc::O_DIRECT | libc::O_NOATIME;

/// All of it.
#[derive(Debug)]
pub(super) struct Made {
    /// The lowest parked number: above every one of the image's.
    pub(super) base: i32,
    /// By index; `None` for what is made later.
    pub(super) objects: Vec<Option<OwnedFd>>,
    /// By index.
    pub(super) memories: Vec<memory::Parked>,
    /// Mapped files by path and the way of mapping.
    pub(super) mapped: HashMap<(String, Access), OwnedFd>,
    /// Programs by path.
    pub(super) programs: HashMap<String, OwnedFd>,
    /// Memory by pid: the process's layers, or the only file, with their sizes. The last is that of the runs.
    pub(super) pages: HashMap<i32, Vec<(File, u64)>>,
    /// A follower side of each terminal by its number.
    pub(super) terminals: Terminals,
}

/// Opens and makes everything.
pub(super) fn make(dir: &Path, image: &Image) -> Result<Made> {
    let used = image.processes.iter().flat_map(|p| &p.descriptors).map(|d| d.fd).max().unwrap_or(0);
    let base = used.saturating_add(1).max(64);
    room(image, base)?;
    let maker = Maker { dir, image, base };
    let mut made = Made {
        base,
        objects: Vec::new(),
        memories: memory::make(&maker)?,
        mapped: mapped(&maker)?,
        programs: programs(&maker)?,
        pages: pages(&maker)?,
        terminals: terminals::make(&maker)?,
    };
    made.objects = image.objects.iter().map(|_| None).collect();
    for (index, parked) in pipes::make(&maker)?.into_iter().chain(unix::make(&maker)?) {
        if let Some(place) = made.objects.get_mut(index) {
            *place = Some(parked);
        }
    }
    let mut deleted = files::Deleted::default();
    for (index, object) in image.objects.iter().enumerate() {
        let one = match &object.kind {
            Kind::File { .. } | Kind::Directory { .. } | Kind::Device { .. } => {
                files::make(&maker, object, &mut deleted)
            }
            Kind::Memory { memory } => memory::descriptor(&made.memories, *memory, object),
            Kind::Event { .. } | Kind::Epoll { .. } | Kind::Timer { .. } | Kind::Signal { .. } => {
                events::make(object)
            }
            Kind::Socket(socket) => sockets::make(socket, object),
            Kind::Pty(pty) => made.terminals.descriptor(pty, object),
            Kind::None | Kind::Pid { .. } | Kind::Pipe { .. } | Kind::Unix(_) | Kind::Inotify { .. } => {
                continue;
            }
        };
        let one = one.map_err(|error| maker.of(index, error))?;
        if let Some(place) = made.objects.get_mut(index) {
            *place = Some(maker.park(one)?);
        }
    }
    watch(&maker, &mut made)?;
    for (index, object) in image.objects.iter().enumerate() {
        if let Some(Some(parked)) = made.objects.get(index) {
            description(parked, object).map_err(|error| maker.of(index, error.into()))?;
        }
    }
    Ok(made)
}

/// Last of all: what is opened before nobody sees.
fn watch(maker: &Maker<'_>, made: &mut Made) -> Result<()> {
    for (index, object) in maker.image.objects.iter().enumerate() {
        let Kind::Inotify { watches } = &object.kind else { continue };
        let one = inotify::make(watches).map_err(|error| maker.of(index, error))?;
        if let Some(place) = made.objects.get_mut(index) {
            *place = Some(maker.park(one)?);
        }
    }
    Ok(())
}

/// What a mapping lets a process do with its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// Keep changes for itself: its pages that were not changed come from the file.
    Private,
    /// Read what others write.
    Read,
    /// Write, now or once it has asked for it: the kernel tells by the flag `mw`.
    Write,
}

impl Access {
    pub(super) fn of(area: &Area) -> Self {
        match area.shared {
            false => Self::Private,
            true if area.prot & 2 != 0 || area.vm_flags.has("mw") => Self::Write,
            true => Self::Read,
        }
    }
}

/// What went wrong with one object.
#[derive(Debug)]
struct Trouble {
    why: String,
    help: Option<String>,
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self { why: errno.desc().to_owned(), help: None }
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self { why: error.to_string(), help: None }
    }
}

impl From<BackendError> for Trouble {
    fn from(error: BackendError) -> Self {
        Self { why: error.to_string(), help: error.help }
    }
}

impl Trouble {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), help: None }
    }

    fn help(self, help: &str) -> Self {
        Self { help: Some(help.to_owned()), ..self }
    }
}

type Tried<T> = std::result::Result<T, Trouble>;

struct Maker<'a> {
    dir: &'a Path,
    image: &'a Image,
    base: i32,
}

impl Maker<'_> {
    fn park(&self, fd: OwnedFd) -> Result<OwnedFd> {
        fd::lift(fd.as_fd(), self.base)
            .map_err(|e| BackendError::failed("cannot keep a descriptor for the restart").because(e.desc()))
    }

    /// Names the process that holds the object.
    fn of(&self, index: usize, trouble: Trouble) -> BackendError {
        let holder = self.image.processes.iter().find_map(|process| {
            let descriptor = process.descriptors.iter().find(|d| d.object == index)?;
            Some(format!("descriptor {} of {} (pid {})", descriptor.fd, process.comm, process.pid))
        });
        let holder = holder.unwrap_or_else(|| format!("object {index}"));
        let name = self.image.objects.get(index).map(|o| name(&o.kind)).unwrap_or_default();
        let mut error =
            BackendError::failed(format!("cannot bring back {holder}{name}")).because(trouble.why);
        error.help = trouble.help;
        error
    }

    fn content(&self, number: u32) -> Result<File> {
        check::open(self.dir, &check::content(number))
    }
}

fn name(kind: &Kind) -> String {
    match kind {
        Kind::File { file, .. } => format!(", the file {}", file.path),
        Kind::Directory { path } => format!(", the directory {path}"),
        Kind::Device { path, .. } => format!(", the device {path}"),
        Kind::Pipe { .. } => ", a pipe".to_owned(),
        Kind::Memory { .. } => ", shared memory".to_owned(),
        Kind::Event { .. } => ", an eventfd".to_owned(),
        Kind::Epoll { .. } => ", an epoll instance".to_owned(),
        Kind::Timer { .. } => ", a timerfd".to_owned(),
        Kind::Signal { .. } => ", a signalfd".to_owned(),
        Kind::Pid { .. } => ", a pidfd".to_owned(),
        Kind::Inotify { .. } => ", an inotify instance".to_owned(),
        Kind::Socket(socket) => format!(", a socket{}", sockets::address(socket)),
        Kind::Unix(_) => ", a unix socket".to_owned(),
        Kind::Pty(pty) => format!(", a side of the terminal /dev/pts/{}", pty.index),
        Kind::None => String::new(),
    }
}

/// Lets this process and its copies have as many descriptors as are needed at once.
fn room(image: &Image, base: i32) -> Result<()> {
    let files: usize = image.processes.iter().map(|p| p.areas.len() + 2).sum();
    let need = base as u64 + (image.objects.len() + image.memories.len() + files + 64) as u64;
    let [_, hard] = crate::sys::process::limits(0)
        .ok()
        .and_then(|all| all.get(libc::RLIMIT_NOFILE as usize).copied())
        .unwrap_or([0, 0]);
    let raised = crate::sys::task::set_limit(0, libc::RLIMIT_NOFILE, [hard, hard]);
    // Areas share files; only more descriptors than processes can have are certain to be too many.
    if raised.is_err() || (hard < base as u64 + 64 && hard < need) {
        return Err(BackendError::new(kind::UNSUPPORTED, "too many descriptors are needed")
            .because(format!("the application has number {} open, and {hard} is the limit", base - 1))
            .help("raise the limit of open files (ulimit -Hn)"));
    }
    Ok(())
}

/// Flags of a description without those that act at its opening. Directories keep that they are (`O_TMPFILE` has
/// `O_DIRECTORY` in it): it makes sure of what is opened.
fn kept(flags: i32, directory: bool) -> i32 {
    let over = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC;
    flags & !if directory { over } else { over | libc::O_TMPFILE }
}

/// Opens a description anew: one of its own, with these flags.
fn reopen(fd: &impl AsRawFd, flags: i32) -> std::result::Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // The way to it is a link of the kernel's; the application meant another one.
    let kept = kept(flags, false) & !libc::O_NOFOLLOW;
    let flags = OFlag::from_bits_retain(kept | libc::O_CLOEXEC | libc::O_NOCTTY);
    open(path.as_str(), flags, Mode::empty())
}

/// Status flags, owner, flock: what belongs to a description however it was made.
fn description(parked: &OwnedFd, object: &Object) -> std::result::Result<(), Errno> {
    let flags = object.flags as i32;
    if flags & libc::O_PATH != 0 {
        return Ok(());
    }
    fd::fcntl_number(parked.as_fd(), libc::F_SETFL, i64::from(flags & LATER))?;
    if let Some([_, _, signal]) = object.owner
        && signal != 0
    {
        fd::fcntl_number(parked.as_fd(), 10, i64::from(signal))?;
    }
    match object.flock {
        Some(exclusive) => fd::flock(parked.as_fd(), exclusive),
        None => Ok(()),
    }
}

/// Who gets the signals of descriptors; the processes are there by now.
pub(super) fn owners(image: &Image, made: &Made) -> Result<()> {
    for (object, parked) in image.objects.iter().zip(&made.objects) {
        if let (Some([kind, id, _]), Some(parked)) = (object.owner, parked) {
            let set = fd::set_owner(parked.as_fd(), kind, id);
            set.map_err(|e| BackendError::failed("cannot set the owner of a descriptor").because(e.desc()))?;
        }
    }
    Ok(())
}

/// Whether this is still the file that was mapped when the image was made. A file that is shared changes, and so does
/// its time: it only must not have become shorter.
fn unchanged(file: &File, identity: &FileIdentity, access: Access) -> Result<()> {
    let failed = |why: String| {
        BackendError::new(kind::UNSUPPORTED, format!("the file {} cannot be mapped again", identity.path))
            .because(why)
            .help("restart in the very image that was saved, with the same binds")
    };
    let meta = file.metadata().map_err(|e| failed(e.to_string()))?;
    let mtime = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    let (size, time) = match access {
        Access::Private => (meta.len() == identity.size, mtime == identity.mtime_ns),
        Access::Read | Access::Write => (meta.len() >= identity.size, true),
    };
    match (meta.is_file(), size, time) {
        (true, true, true) => Ok(()),
        (false, _, _) => Err(failed("it is no plain file any more".to_owned())),
        (_, false, _) => Err(failed(format!("it has {} bytes instead of {}", meta.len(), identity.size))),
        (_, _, false) => Err(failed("it was written to since".to_owned())),
    }
}

fn open_mapped(maker: &Maker<'_>, identity: &FileIdentity, access: Access) -> Result<OwnedFd> {
    let file = File::options().read(true).write(access == Access::Write).open(&identity.path);
    let file = file.map_err(|e| {
        BackendError::new(kind::UNSUPPORTED, format!("the file {} cannot be mapped again", identity.path))
            .because(e)
            .help("restart in the very image that was saved, with the same binds")
    })?;
    unchanged(&file, identity, access)?;
    maker.park(file.into())
}

fn mapped(maker: &Maker<'_>) -> Result<HashMap<(String, Access), OwnedFd>> {
    let mut all = HashMap::new();
    for area in maker.image.processes.iter().flat_map(|p| &p.areas) {
        let Backing::File { file, .. } = &area.backing else { continue };
        if let Entry::Vacant(place) = all.entry((file.path.clone(), Access::of(area))) {
            place.insert(open_mapped(maker, file, Access::of(area))?);
        }
    }
    Ok(all)
}

fn programs(maker: &Maker<'_>) -> Result<HashMap<String, OwnedFd>> {
    let mut all = HashMap::new();
    for process in maker.image.processes.iter().filter(|p| !matches!(p.state, State::Zombie { .. })) {
        if !all.contains_key(&process.exe.path) {
            all.insert(process.exe.path.clone(), open_mapped(maker, &process.exe, Access::Private)?);
        }
    }
    Ok(all)
}

fn pages(maker: &Maker<'_>) -> Result<HashMap<i32, Vec<(File, u64)>>> {
    let mut all = HashMap::new();
    let saved = |p: &&Process| p.areas.iter().any(|a| !a.runs.is_empty() || !a.pieces.is_empty());
    for process in maker.image.processes.iter().filter(saved) {
        let older = process.layers.iter().map(|layer| layer.file.clone());
        let mut names: Vec<String> = older.collect();
        if names.is_empty() {
            names.push(check::pages(process));
        }
        let files = names.iter().zip(0..).map(|(name, index)| {
            let own = index + 1 == names.len() as u64;
            open_pages(maker, name, needed(process, index, own))
        });
        all.insert(process.pid, files.collect::<Result<_>>()?);
    }
    Ok(all)
}

/// How long a file of a process's memory has to be.
fn needed(process: &Process, index: u64, own: bool) -> u64 {
    let ends = process.areas.iter().flat_map(|area| {
        let run = area.runs.last().filter(|_| own);
        let run = run.map(|[at, n]| area.base.saturating_add(at - area.start).saturating_add(*n));
        let pieces = area.pieces.iter().filter(|piece| piece[2] == index);
        pieces.map(|[_, n, _, offset]| offset + n).chain(run).collect::<Vec<_>>()
    });
    ends.max().unwrap_or(0)
}

fn open_pages(maker: &Maker<'_>, name: &str, need: u64) -> Result<(File, u64)> {
    let file = check::open(maker.dir, name)?;
    let size = file.metadata().map(|m| m.len()).unwrap_or(0);
    if size < need {
        return Err(BackendError::new(kind::DAMAGED, format!("the image's {name} is too short"))
            .because(format!("{size} bytes of at least {need}"))
            .help("take another generation"));
    }
    Ok((File::from(maker.park(file.into())?), size))
}

/// Gives a new file to whom it was. Ids that are none here, as those of others in a namespace of one user, cannot be given.
fn give(file: &File, whose: Option<[u32; 2]>) -> std::io::Result<()> {
    let meta = file.metadata()?;
    if let Some([uid, gid]) = whose.filter(|whose| *whose != [meta.uid(), meta.gid()]) {
        match std::os::unix::fs::fchown(file, Some(uid), Some(gid)) {
            Err(error) if ![Some(libc::EPERM), Some(libc::EINVAL)].contains(&error.raw_os_error()) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Copies a sparse file: holes stay holes.
fn copy_sparse(from: &File, to: &File) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let size = from.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let seek = |whence| nix::unistd::lseek(from, i64::try_from(at).unwrap_or(i64::MAX), whence);
        match seek(nix::unistd::Whence::SeekData) {
            Ok(data) => at = u64::try_from(data).unwrap_or(at),
            Err(Errno::ENXIO) => break,
            // A file system without holes.
            Err(_) => {}
        }
        let n = from.read_at(&mut buffer, at)?;
        if n == 0 {
            break;
        }
        to.write_all_at(buffer.get(..n).unwrap_or_default(), at)?;
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only root gives files away; an id that cannot be given is no failure.
    #[test]
    fn files_are_given_where_they_can_be() {
        let file = tempfile::tempfile().unwrap();
        let before = file.metadata().unwrap();
        give(&file, None).unwrap();
        give(&file, Some([before.uid(), 7])).unwrap();
        let gid = file.metadata().unwrap().gid();
        assert_eq!(gid == 7, nix::unistd::geteuid().is_root() || before.gid() == 7);
    }
}
