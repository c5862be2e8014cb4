//! Descriptors, and the open file descriptions behind them: each description is described once, whoever holds it.

use super::areas::removed_on_nfs;
use super::contents::Contents;
use super::inotify::{self, Places};
use super::memories::{Memories, device, is_memory, read_file};
use super::pipes::Pipes;
use super::process::identity_of;
use super::{ptys, sockets};
use crate::model::{Descriptor, EpollTarget, Kind, Object};
use crate::proc::fdinfo::{self, FdInfo};
use crate::proc::{link, numbers, read};
use crate::sys::netlink::Diagnosis;
use crate::sys::{kcmp, pidfd, process};
use nix::errno::Errno;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

/// Flags that belong to the descriptor or only act at an opening.
const NOT_STATUS: u32 =
    (libc::O_CLOEXEC | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY).cast_unsigned();
/// Whether a file was opened without a name, or has to be a directory, is over with the opening.
const NOT_OF_A_FILE: u32 = libc::O_TMPFILE.cast_unsigned();
const F_GETSIG: i32 = 11;

/// Character devices that are the same everywhere: major and minor numbers.
pub(crate) const HARMLESS: [(u64, u64); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// One descriptor of a process, as it was found.
pub(crate) struct Seen<'a> {
    pub(crate) pid: i32,
    pub(crate) fd: i32,
    /// What the link shows.
    pub(crate) target: String,
    pub(crate) info: FdInfo,
    /// A copy of the open file description.
    pub(crate) copy: OwnedFd,
    pub(crate) metadata: Metadata,
    /// Every process of the tree.
    pub(crate) members: &'a [i32],
    /// The process runs: nothing is done that it could notice.
    pub(crate) runs: bool,
}

impl Seen<'_> {
    /// As messages name it.
    pub(crate) fn name(&self) -> String {
        format!("descriptor {} of process {}: {}", self.fd, self.pid, self.target)
    }

    pub(crate) fn refuse(&self, why: impl std::fmt::Display) -> BackendError {
        BackendError::new(kind::UNSUPPORTED, format!("{} cannot be saved", self.name())).because(why)
    }

    pub(crate) fn failed(&self, error: impl std::fmt::Display) -> BackendError {
        BackendError::failed(format!("{} cannot be read", self.name())).because(error)
    }

    pub(crate) fn errno(&self) -> impl Fn(Errno) -> BackendError {
        |error| self.failed(error.desc())
    }
}

/// All descriptions of a tree.
pub(crate) struct Objects {
    pub(crate) all: Vec<Object>,
    pub(crate) pipes: Pipes,
    pub(crate) memories: Memories,
    pub(crate) sockets: sockets::Sockets,
    /// Of each description: one process and descriptor, for comparison.
    samples: HashMap<String, Vec<(i32, i32, usize)>>,
    /// `files/<n>` of deleted files, by device and inode.
    deleted: HashMap<(u64, u64), u32>,
    /// Device and inode of shared mappings.
    mapped: HashSet<(String, u64)>,
    /// What inotify instances watch, by name.
    pub(crate) places: Places,
}

impl Objects {
    pub(crate) fn new(mapped: HashSet<(String, u64)>) -> Self {
        Self {
            all: Vec::new(),
            pipes: Pipes::default(),
            memories: Memories::default(),
            sockets: sockets::Sockets::new(Diagnosis::open().ok()),
            samples: HashMap::new(),
            deleted: HashMap::new(),
            mapped,
            places: Places::default(),
        }
    }

    /// The descriptors of one process.
    pub(crate) fn gather(
        &mut self,
        contents: &mut Contents,
        pid: i32,
        members: &[i32],
    ) -> Result<Vec<Descriptor>> {
        let process = pidfd::open(pid).map_err(|error| unopened(pid, error))?;
        let numbers = numbers(&format!("/proc/{pid}/fd"))?;
        numbers.into_iter().map(|fd| self.descriptor(contents, &process, pid, fd, members)).collect()
    }

    /// Why descriptors of a process that runs could not be saved.
    pub(crate) fn examine(&mut self, pid: i32, members: &[i32]) -> Result<Vec<BackendError>> {
        let process = pidfd::open(pid).map_err(|error| unopened(pid, error))?;
        let mut contents = Contents::dry();
        let mut refused = Vec::new();
        for fd in numbers(&format!("/proc/{pid}/fd"))? {
            match self.descriptor(&mut contents, &process, pid, fd, members) {
                Err(error) if error.kind == kind::UNSUPPORTED => {
                    refused.extend(self.lasts(&process, pid, fd, members, &error).then_some(error));
                }
                // Closed since, for example; a look at what stands still will tell.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(refused)
    }

    /// Whether a descriptor that was refused still is, in the same words: it may have become another one in the middle
    /// of the questions.
    fn lasts(&self, process: &OwnedFd, pid: i32, fd: i32, members: &[i32], error: &BackendError) -> bool {
        (0..3).all(|_| {
            let mut anew = Self::new(self.mapped.clone());
            anew.places = self.places.clone();
            anew.descriptor(&mut Contents::dry(), process, pid, fd, members).err().as_ref() == Some(error)
        })
    }

    fn descriptor(
        &mut self,
        contents: &mut Contents,
        process: &OwnedFd,
        pid: i32,
        fd: i32,
        members: &[i32],
    ) -> Result<Descriptor> {
        let target = link(pid, &format!("fd/{fd}"))?;
        let info = fdinfo::parse(&read(pid, &format!("fdinfo/{fd}"))?)?;
        let cloexec = info.flags & libc::O_CLOEXEC.cast_unsigned() != 0;
        let held = info.locks()?;
        let of_process = |lock: &&fdinfo::HeldLock| lock.class == "POSIX" && lock.holder == pid;
        let locks = held.iter().filter(of_process).map(|lock| lock.range.clone()).collect();
        if let Some(object) = self.known(&target, pid, fd)? {
            return Ok(Descriptor { fd, cloexec, object, locks });
        }
        let path = format!("/proc/{pid}/fd/{fd}");
        let metadata = std::fs::metadata(&path)
            .map_err(|error| BackendError::failed(format!("{path} cannot be read")).because(error))?;
        let copy = pidfd::copy(process, fd).map_err(|error| unopened(pid, error))?;
        let runs = contents.is_dry();
        let object =
            self.describe(contents, &Seen { pid, fd, target, info, copy, metadata, members, runs })?;
        Ok(Descriptor { fd, cloexec, object, locks })
    }

    fn known(&self, target: &str, pid: i32, fd: i32) -> Result<Option<usize>> {
        for (other, at, index) in self.samples.get(target).map_or(&[][..], Vec::as_slice) {
            let order = kcmp::descriptions((pid, fd), (*other, *at)).map_err(|error| {
                BackendError::failed("the kernel does not compare descriptors (kcmp)").because(error.desc())
            })?;
            if order.is_eq() {
                return Ok(Some(*index));
            }
        }
        Ok(None)
    }

    fn describe(&mut self, contents: &mut Contents, seen: &Seen<'_>) -> Result<usize> {
        let index = self.all.len();
        self.samples.entry(seen.target.clone()).or_default().push((seen.pid, seen.fd, index));
        let mut flock = None;
        for lock in seen.info.locks()? {
            match lock.class.as_str() {
                "POSIX" => {}
                "FLOCK" => flock = Some(lock.range.write),
                other => return Err(seen.refuse(format!("it has a lock of the kind {other}"))),
            }
        }
        // PIDFD_THREAD, which a pidfd keeps, is O_EXCL.
        let of_pidfd = seen.target.starts_with("pidfd:") || seen.target == "anon_inode:[pidfd]";
        let over = match seen.metadata.is_file() {
            _ if of_pidfd => NOT_STATUS & !libc::O_EXCL.cast_unsigned(),
            true => NOT_STATUS | NOT_OF_A_FILE,
            false => NOT_STATUS,
        };
        self.all.push(Object {
            flags: seen.info.flags & !over,
            offset: seen.info.position,
            owner: owner(seen)?,
            flock,
            kind: Kind::None,
        });
        let kind = self.kind(contents, seen, index)?;
        if let Some(object) = self.all.get_mut(index) {
            object.kind = kind;
        }
        Ok(index)
    }

    fn kind(&mut self, contents: &mut Contents, seen: &Seen<'_>, index: usize) -> Result<Kind> {
        let target = seen.target.as_str();
        if let Some(name) = target.strip_prefix("anon_inode:") {
            return match name.trim_matches(['[', ']']) {
                "inotify" => inotify::describe(seen, &mut self.places),
                name => anonymous(seen, name),
            };
        }
        if target.starts_with("socket:") {
            return self.sockets.describe(seen, index);
        }
        if target.starts_with("pipe:") {
            return self.pipes.describe(contents, seen, None);
        }
        if target.starts_with("pidfd:") {
            return pid(seen);
        }
        if !target.starts_with('/') {
            return Err(seen.refuse("it is of a kind that the engine does not know"));
        }
        if let Some(why) = foreign(seen) {
            return Err(seen.refuse(why));
        }
        let key = (device(seen.metadata.dev()), seen.metadata.ino());
        if is_memory(target, self.mapped.contains(&key)) {
            let memory = self.memories.save_descriptor(contents, seen.pid, seen.fd, target, &seen.copy)?;
            return Ok(Kind::Memory { memory });
        }
        self.of_path(contents, seen)
    }

    fn of_path(&mut self, contents: &mut Contents, seen: &Seen<'_>) -> Result<Kind> {
        let path = seen.target.clone();
        let file_type = seen.metadata.file_type();
        if file_type.is_char_device() {
            return character_device(seen);
        }
        if let Some(name) = path.strip_suffix(" (deleted)") {
            return if file_type.is_file() {
                self.deleted_file(contents, seen, name)
            } else {
                Err(seen.refuse("it has no name any more"))
            };
        }
        let named = std::fs::metadata(&path)
            .map_err(|error| seen.refuse(format!("it cannot be found under that name: {error}")))?;
        if (named.dev(), named.ino()) != (seen.metadata.dev(), seen.metadata.ino()) {
            return Err(seen.refuse("another file lies under that name now"));
        }
        if file_type.is_file() && removed_on_nfs(&path) {
            return self.content_of(contents, seen, &path);
        }
        if path.starts_with("/proc/") {
            return Err(seen.refuse("files of /proc describe what runs now"));
        }
        if file_type.is_file() {
            let mode = seen.metadata.mode() & 0o7777;
            Ok(Kind::File { file: identity_of(&path, &seen.metadata), mode, deleted: None, whose: None })
        } else if file_type.is_dir() {
            Ok(Kind::Directory { path })
        } else if file_type.is_fifo() {
            self.pipes.describe(contents, seen, Some(path))
        } else {
            Err(seen.refuse("it is a device"))
        }
    }

    fn deleted_file(&mut self, contents: &mut Contents, seen: &Seen<'_>, name: &str) -> Result<Kind> {
        if seen.metadata.nlink() > 0 {
            return Err(seen.refuse("the name under which it was opened is gone, and it has another one"));
        }
        self.content_of(contents, seen, name)
    }

    fn content_of(&mut self, contents: &mut Contents, seen: &Seen<'_>, name: &str) -> Result<Kind> {
        let key = (seen.metadata.dev(), seen.metadata.ino());
        let number = match self.deleted.get(&key) {
            Some(number) => *number,
            None => {
                let file =
                    File::open(format!("/proc/{}/fd/{}", seen.pid, seen.fd)).map_err(|e| seen.failed(e))?;
                let length = seen.metadata.len();
                let number = contents.stream(length, &|offset, bytes| read_file(&file, offset, bytes))?;
                self.deleted.insert(key, number);
                number
            }
        };
        let mode = seen.metadata.mode() & 0o7777;
        let whose = Some([seen.metadata.uid(), seen.metadata.gid()]);
        Ok(Kind::File { file: identity_of(name, &seen.metadata), mode, deleted: Some(number), whose })
    }
}

/// What looks like a file, and is none because of where it lies.
fn foreign(seen: &Seen<'_>) -> Option<&'static str> {
    const MESSAGE_QUEUES: i64 = 0x1980_0202;
    const HUGE_PAGES: i64 = 0x9584_58f6;
    match nix::sys::statfs::fstatfs(&seen.copy).ok()?.filesystem_type().0 {
        MESSAGE_QUEUES => Some("it is a message queue, whose messages would be lost"),
        HUGE_PAGES => Some("it consists of huge pages of hugetlbfs"),
        _ => None,
    }
}

fn unopened(pid: i32, error: Errno) -> BackendError {
    BackendError::failed(format!("the descriptors of process {pid} cannot be taken"))
        .because(error.desc())
        .help("kernel 5.6 or newer is needed, and a security module may forbid it")
}

fn owner(seen: &Seen<'_>) -> Result<Option<[i32; 3]>> {
    // An O_PATH descriptor answers nothing.
    let Ok([kind, id]) = process::owner(&seen.copy) else { return Ok(None) };
    if id == 0 {
        return Ok(None);
    }
    let signal = process::fcntl(&seen.copy, F_GETSIG, 0).map_err(seen.errno())?;
    Ok(Some([kind, id, signal]))
}

fn character_device(seen: &Seen<'_>) -> Result<Kind> {
    let number = seen.metadata.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    if HARMLESS.contains(&(major, minor)) {
        let number = |part: u64| u32::try_from(part).map_err(|error| seen.failed(error));
        let (major, minor) = (number(major)?, number(minor)?);
        return Ok(Kind::Device { path: seen.target.clone(), major, minor });
    }
    if ptys::is_pty(major, minor) {
        return ptys::describe(seen, major, minor);
    }
    Err(seen.refuse(format!("the engine does not know the device {major}:{minor}")))
}

fn anonymous(seen: &Seen<'_>, name: &str) -> Result<Kind> {
    match name {
        "eventfd" => Ok(Kind::Event {
            count: seen.info.hex("eventfd-count")?,
            semaphore: seen.info.get("eventfd-semaphore") == Some("1"),
        }),
        "eventpoll" => epoll(seen),
        "timerfd" => timer(seen),
        "signalfd" => Ok(Kind::Signal { mask: seen.info.hex("sigmask")? }),
        "pidfd" => pid(seen),
        other => Err(seen.refuse(format!("the engine does not know descriptors of the kind {other}"))),
    }
}

fn timer(seen: &Seen<'_>) -> Result<Kind> {
    const ABSOLUTE: u32 = 1;
    const WALL_CLOCKS: [i32; 2] = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_ALARM];
    let settime = seen.info.get("settime flags").and_then(|f| u32::from_str_radix(f, 8).ok()).unwrap_or(0);
    let clock = seen.info.decimal("clockid")?;
    let value = seen.info.time("it_value")?;
    let waits = value > 0 && settime & ABSOLUTE != 0 && WALL_CLOCKS.contains(&clock);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_err(|error| seen.failed(error))?;
    let now = u64::try_from(now.as_nanos()).map_err(|error| seen.failed(error))?;
    Ok(Kind::Timer {
        clock,
        settime,
        ticks: seen.info.decimal("ticks")?,
        value,
        interval: seen.info.time("it_interval")?,
        until: waits.then(|| now.saturating_add(value)),
    })
}

fn pid(seen: &Seen<'_>) -> Result<Kind> {
    let pid = seen.info.decimal("Pid")?;
    if seen.members.contains(&pid) {
        return Ok(Kind::Pid { pid });
    }
    Err(seen.refuse("the process that it stands for has ended or is no part of the application"))
}

/// A watch names a descriptor as it was when it was added; it has to be there still, as the same description.
fn epoll(seen: &Seen<'_>) -> Result<Kind> {
    let mut targets = Vec::new();
    let watches = seen.info.watches()?;
    for (index, watch) in watches.iter().enumerate() {
        // Of several by one number the kernel tells only the first.
        let alone = watches.iter().take(index).all(|other| other.fd != watch.fd);
        let same = kcmp::watches((seen.pid, seen.fd), watch.fd, (seen.pid, watch.fd));
        if !alone || !matches!(same, Ok(true)) {
            let why = format!(
                "it watches a descriptor {} that was closed or replaced while a copy lives",
                watch.fd
            );
            return Err(seen.refuse(why));
        }
        targets.push(EpollTarget { pid: seen.pid, fd: watch.fd, events: watch.events, data: watch.data });
    }
    Ok(Kind::Epoll { targets })
}
