//! The lock that makes a container alive, and what may be done only by whoever holds it.
//!
//! It is an open file description lock: the kernel gives it back when its last holder dies, however that
//! happens.

use super::dir::{Dir, temporary};
use super::error::{InstanceError, errno};
use super::host::Host;
use super::record::{Record, State, now};
use super::{ERR, LOCK, LOGS, OUT, RECORD, Result, read};
use crate::launch::protocol::Ending;
use crate::name::InstanceName;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the monitor of a container that has ended is given to go.
const PARTING: Duration = Duration::from_secs(2);
/// Of how many instances that were stopped the logs are kept.
const KEPT: usize = 20;

/// A container's name, held. Dropping it gives the name back, unless another process shares the lock.
///
/// A child made by fork shares it until it closes [`AsFd::as_fd`] or executes another program.
#[derive(Debug)]
pub struct Claim {
    parent: Dir,
    dir: Dir,
    logs: Dir,
    lock: File,
    record: Record,
}

impl AsFd for Claim {
    /// The lock, to be handed to the process that is to be the monitor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Claim {
    pub(super) fn take(parent: Dir, name: &InstanceName, host: &Host) -> Result<Self> {
        let give_up = Instant::now() + PARTING;
        loop {
            let dir = parent.make(name.as_str())?;
            // Gone if it was removed this moment.
            if let Some(lock) = open_lock(&dir, true)? {
                if try_lock(&lock, &dir)? {
                    if is_current(&parent, &dir, &lock, name)? {
                        return Self::begin(parent, dir, lock, name, host);
                    }
                } else {
                    refuse_running(&dir, name, give_up)?;
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn begin(parent: Dir, dir: Dir, lock: File, name: &InstanceName, host: &Host) -> Result<Self> {
        let logs = dir.make(LOGS)?;
        let mut record = Record::new(name, host);
        record.monitored_here();
        let mut claim = Self { parent, dir, logs, lock, record };
        claim.save()?;
        claim.clear_logs();
        Ok(claim)
    }

    pub(super) fn adopt(parent: Dir, name: &InstanceName, host: &Host, lock: OwnedFd) -> Result<Self> {
        let lock = File::from(lock);
        let dir = parent.child(name.as_str())?;
        // It succeeds at once on the description that has it already.
        if !is_current(&parent, &dir, &lock, name)? || !try_lock(&lock, &dir)? {
            return Err(InstanceError::WrongLock { name: name.clone() });
        }
        let mut record = match read(&dir, name) {
            Some(Ok(record)) => record,
            _ => Record::new(name, host),
        };
        record.monitored_here();
        let logs = dir.make(LOGS)?;
        let mut claim = Self { parent, dir, logs, lock, record };
        claim.save()?;
        Ok(claim)
    }

    /// What was written last.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// When it cannot be written; then the old one stands.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let before = std::mem::replace(&mut self.record, record.clone());
        let written = self.save();
        if written.is_err() {
            self.record = before;
        }
        written
    }

    /// Changes the record.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        self.write(&record)
    }

    /// The application ended.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn finish(&mut self, how: Ending) -> Result<()> {
        self.over(State::Ended { how })
    }

    /// It could not be started, or the engine lost it.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn fail(&mut self, reason: impl Into<String>) -> Result<()> {
        self.over(State::Failed { reason: reason.into() })
    }

    /// The application ended because somebody asked for it. The logs stay readable until the name is taken again,
    /// or [`KEPT`] others have been stopped since.
    ///
    /// # Errors
    /// As [`Self::write`]; then nothing is kept, as nobody could tell that it was no accident.
    pub fn stop(mut self, how: Ending) -> Result<()> {
        if let Err(error) = self.over(State::Stopped { how }) {
            self.discard()?;
            return Err(error);
        }
        forget_stopped(&self.parent)
    }

    fn over(&mut self, state: State) -> Result<()> {
        self.update(|record| {
            record.state = state;
            record.ended = Some(now());
        })
    }

    /// Removes record and logs: of a foreground container, or of one that never started.
    ///
    /// # Errors
    /// When something else is in the directory.
    pub fn discard(self) -> Result<()> {
        clear(&self.parent, &self.dir, self.record.name.as_str())
    }

    /// The directory with the logs, to be shown inside the container.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.logs.path().to_owned()
    }

    /// Makes the empty files for standard output and standard error, opened for appending.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open_logs(&self) -> Result<(File, File)> {
        let fresh = |name: &str| {
            // Whatever stands there was put there from inside the container.
            self.logs.remove(name)?;
            let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_EXCL;
            let file = self.logs.open_file(name, flags)?;
            // Needed for opening only: a program that inherits the file expects its writes to block.
            fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))
                .map_err(|e| InstanceError::io("open", &self.logs.path().join(name), e))?;
            Ok(file)
        };
        Ok((fresh(OUT)?, fresh(ERR)?))
    }

    fn clear_logs(&self) {
        // What does not go is in nobody's way; the two files themselves are made anew or it is an error.
        for name in self.logs.names().unwrap_or_default() {
            let _ = self.logs.remove(&name);
        }
    }

    fn save(&mut self) -> Result<()> {
        let path = self.dir.path().join(RECORD);
        let json = serde_json::to_vec_pretty(&self.record);
        let mut bytes = json.map_err(|e| InstanceError::io("write", &path, io::Error::from(e)))?;
        bytes.push(b'\n');
        self.dir.replace(RECORD, &bytes)
    }
}

/// Fails if `name` runs; returns while its monitor may be about to go.
fn refuse_running(dir: &Dir, name: &InstanceName, give_up: Instant) -> Result<()> {
    let record = read(dir, name).and_then(std::result::Result::ok);
    let parting = record.as_ref().is_none_or(|record| record.state.is_over());
    if parting && Instant::now() < give_up {
        return Ok(());
    }
    let (pid, since) = record.map_or((0, String::new()), |record| (record.monitor_pid, record.started));
    Err(InstanceError::Running { name: name.clone(), pid, since })
}

/// Removes the record and the logs of `name`, which must not run.
pub(super) fn remove(parent: &Dir, name: &InstanceName) -> Result<()> {
    let Some(dir) = parent.child_if_any(name.as_str())? else { return Ok(()) };
    let give_up = Instant::now() + PARTING;
    let Some(lock) = open_lock(&dir, true)? else { return Ok(()) };
    while !try_lock(&lock, &dir)? {
        refuse_running(&dir, name, give_up)?;
        std::thread::sleep(Duration::from_millis(2));
    }
    if is_current(parent, &dir, &lock, name)? { clear(parent, &dir, name.as_str()) } else { Ok(()) }
}

/// Removes what was stopped before the last [`KEPT`].
fn forget_stopped(parent: &Dir) -> Result<()> {
    let mut stopped = Vec::new();
    for name in parent.names()?.iter().filter_map(|name| InstanceName::new(name).ok()) {
        let Ok(Some(dir)) = parent.child_if_any(name.as_str()) else { continue };
        if let Some(when) = stopped_at(&dir, &name) {
            stopped.push((when, name, dir));
        }
    }
    stopped.sort_by(|(a, a_name, _), (b, b_name, _)| (b, b_name).cmp(&(a, a_name)));
    for (when, name, dir) in stopped.into_iter().skip(KEPT) {
        // One that cannot be removed does not keep the others.
        let _ = forget(parent, &dir, &name, &when);
    }
    Ok(())
}

/// Removes one, unless somebody has taken the name since it was looked at.
fn forget(parent: &Dir, dir: &Dir, name: &InstanceName, when: &str) -> Result<()> {
    let Some(lock) = open_lock(dir, true)? else { return Ok(()) };
    let ours = try_lock(&lock, dir)? && is_current(parent, dir, &lock, name)?;
    if ours && stopped_at(dir, name).as_deref() == Some(when) {
        clear(parent, dir, name.as_str())
    } else {
        Ok(())
    }
}

/// When it was stopped, if it was.
fn stopped_at(dir: &Dir, name: &InstanceName) -> Option<String> {
    match read(dir, name) {
        Some(Ok(Record { state: State::Stopped { .. }, ended, .. })) => ended,
        _ => None,
    }
}

/// The caller has the lock, or somebody who starts beside us would be robbed.
fn clear(parent: &Dir, dir: &Dir, name: &str) -> Result<()> {
    let new = temporary(RECORD);
    let ours = |entry: &String| [RECORD, LOCK, LOGS, &new].contains(&entry.as_str());
    if let Some(entry) = dir.names()?.into_iter().find(|entry| !ours(entry)) {
        return Err(InstanceError::Foreign { path: dir.path().to_owned(), entry });
    }
    if let Some(logs) = dir.child_if_any(LOGS)? {
        for entry in logs.names()? {
            logs.remove(&entry)?;
        }
    }
    // The lock last: until then nobody else can come in.
    for entry in [LOGS, &new, RECORD, LOCK] {
        dir.remove(entry)?;
    }
    match parent.remove(name) {
        // Somebody has claimed the name since the lock went.
        Err(InstanceError::Io { source, .. }) if errno(&source) == Errno::ENOTEMPTY => Ok(()),
        removed => removed,
    }
}

/// Whether a monitor holds the lock. Asks without taking: a look must not make a start beside it fail.
pub(super) fn is_locked(dir: &Dir) -> Result<bool> {
    let Some(lock) = open_lock(dir, false)? else { return Ok(false) };
    let mut range = whole_file();
    fcntl(&lock, FcntlArg::F_OFD_GETLK(&mut range)).map_err(|e| no_lock(&dir.path().join(LOCK), e))?;
    Ok(range.l_type != libc::F_UNLCK as libc::c_short)
}

/// `None`: there is none, or the directory is gone.
fn open_lock(dir: &Dir, make: bool) -> Result<Option<File>> {
    // A look must also be possible where nothing can be written any more.
    let flags = if make { OFlag::O_RDWR | OFlag::O_CREAT } else { OFlag::O_RDONLY };
    match dir.open_file(LOCK, flags) {
        Err(InstanceError::Io { source, .. }) if errno(&source) == Errno::ENOENT => Ok(None),
        opened => opened.map(Some),
    }
}

fn try_lock(lock: &File, dir: &Dir) -> Result<bool> {
    match fcntl(lock, FcntlArg::F_OFD_SETLK(&whole_file())) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(no_lock(&dir.path().join(LOCK), error)),
    }
}

/// Whether `lock` is the file of that name in the directory that bears the name now: both may have been
/// removed and made again between opening and locking.
fn is_current(parent: &Dir, dir: &Dir, lock: &File, name: &InstanceName) -> Result<bool> {
    let held =
        nix::sys::stat::fstat(lock).map_err(|e| InstanceError::io("examine", &dir.path().join(LOCK), e))?;
    let same_lock = dir.stat(LOCK)?.is_some_and(|s| (s.st_dev, s.st_ino) == (held.st_dev, held.st_ino));
    let same_dir = match parent.child_if_any(name.as_str())? {
        Some(now) => now.is(dir)?,
        None => false,
    };
    Ok(same_lock && same_dir)
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn no_lock(path: &Path, error: Errno) -> InstanceError {
    let source = io::Error::from(error);
    match error {
        Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL => {
            InstanceError::NoLocks { path: path.to_owned(), source }
        }
        _ => InstanceError::io("lock", path, source),
    }
}
