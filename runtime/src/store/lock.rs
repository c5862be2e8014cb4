//! Who uses a checkpoint: the long lock of whoever runs it, and the short one around changes.
//!
//! Both are open file description locks, so the kernel gives them back when their holder dies. The long one
//! also says in its file who holds it: a lock taken on another host may not be seen here.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs,
};
use serde::{Deserialize, Serialize};

use super::error::{StoreError, errno};
use super::layout::{self, DirHandle, Kind, kind};
use super::record::now;
use super::{Checkpoint, Result};
use crate::name::CheckpointName;

/// The most bytes that a holder may be described with.
const MAX_HOLDER: u64 = 4096;

/// Who holds a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The instance's name; empty if the holder has not written down who it is.
    pub instance: String,
    pub pid: u32,
    pub host: String,
    /// Of the kernel's run, from /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// RFC 3339, UTC.
    pub since: String,
}

impl Holder {
    /// This process, now.
    pub fn here(instance: &str) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            instance: instance.to_owned(),
            pid: std::process::id(),
            host: this_host(),
            boot_id: boot_id.trim().to_owned(),
            since: now(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.instance.is_empty() {
            return f.write_str("a process that has not said who it is");
        }
        write!(f, "instance {:?} (process {}", self.instance, self.pid)?;
        if self.host != this_host() {
            write!(f, " on host {:?}", self.host)?;
        }
        write!(f, ", since {})", self.since.escape_debug())
    }
}

fn this_host() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

/// The long lock of a checkpoint. Dropping it gives the checkpoint back and says so in the file.
///
/// A child made by fork shares the lock until it closes the descriptor or executes another program.
#[derive(Debug)]
pub struct LiveLock {
    file: File,
    path: PathBuf,
    name: CheckpointName,
    taken_over: Option<Holder>,
    left: bool,
}

impl LiveLock {
    /// Whose lock this was: somebody who died without giving it back.
    pub fn taken_over(&self) -> Option<&Holder> {
        self.taken_over.as_ref()
    }

    pub fn checkpoint(&self) -> &CheckpointName {
        &self.name
    }

    /// Writes down another holder: for a lock that was taken before the process that keeps it existed.
    pub fn set_holder(&self, holder: &Holder) -> Result<()> {
        let bytes = serde_json::to_vec(holder).map_err(io::Error::from);
        let written = bytes.and_then(|bytes| {
            self.file.set_len(0)?;
            self.file.write_all_at(&bytes, 0)?;
            // Other hosts read what has reached the server.
            if is_of_this_host(&self.file) { Ok(()) } else { self.file.sync_data() }
        });
        written.map_err(|e| StoreError::io("write", &self.path, e))
    }

    /// Closes this process's descriptor and leaves the lock to a child that shares it.
    pub fn leave_to_child(mut self) {
        self.left = true;
    }

    pub(crate) fn covers(&self, name: &CheckpointName) -> Result<()> {
        if self.name == *name {
            return Ok(());
        }
        Err(StoreError::WrongLock { name: name.clone(), lock_of: self.name.clone() })
    }
}

impl AsFd for LiveLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for LiveLock {
    fn drop(&mut self) {
        if !self.left {
            // Failing, it looks like the lock of one that died, which is taken over.
            let _ = self.file.set_len(0);
        }
    }
}

impl Checkpoint {
    /// Takes the checkpoint for `holder`, without waiting.
    ///
    /// Refused while somebody has it, and when a holder on another host (by `holder.host`) never gave it back.
    /// The lock of one on this host that died is taken over: [`LiveLock::taken_over`].
    pub fn lock_live(&self, holder: &Holder) -> Result<LiveLock> {
        self.take_live(holder, false)
    }

    /// Like [`Self::lock_live`], but believes the user that nothing runs on another host any more.
    pub fn lock_live_forced(&self, holder: &Holder) -> Result<LiveLock> {
        self.take_live(holder, true)
    }

    fn take_live(&self, holder: &Holder, forced: bool) -> Result<LiveLock> {
        self.still_there()?;
        let path = self.dir.path().join(layout::LIVE_LOCK);
        let file = open_lock(&self.dir, layout::LIVE_LOCK)?;
        if !try_lock(&file, &path)? {
            let holder = Box::new(wait_for_holder(&file));
            return Err(StoreError::InUse { name: self.name.clone(), holder });
        }
        // Again: it may have been deleted by whoever had the lock until now.
        self.still_there()?;
        let previous = read_holder(&file);
        if let Some(previous) = &previous
            && previous.host != holder.host
            && !forced
        {
            let holder = Box::new(previous.clone());
            return Err(StoreError::TakenElsewhere { name: self.name.clone(), holder });
        }
        let lock = LiveLock { file, path, name: self.name.clone(), taken_over: previous, left: false };
        match lock.set_holder(holder) {
            // The kernel holds the lock all the same, and a full disk must not prevent deleting or pruning.
            Err(StoreError::Io { source, .. }) if matches!(errno(&source), Errno::ENOSPC | Errno::EDQUOT) => {
            }
            written => written?,
        }
        Ok(lock)
    }

    /// Who has the checkpoint now, including somebody on another host who never gave it back.
    pub fn live_holder(&self) -> Result<Option<Holder>> {
        if self.dir.stat(layout::LIVE_LOCK)?.is_none() {
            return Ok(None);
        }
        let path = self.dir.path().join(layout::LIVE_LOCK);
        let file = open_lock(&self.dir, layout::LIVE_LOCK)?;
        if is_locked(&file, &path)? {
            return Ok(Some(wait_for_holder(&file)));
        }
        Ok(read_holder(&file).filter(|holder| holder.host != this_host()))
    }
}

/// The lock around a change of a directory's content: a commit, a binding, a pruning.
#[derive(Debug)]
pub(crate) struct ShortLock {
    _file: File,
}

impl ShortLock {
    /// Waits until it is free.
    pub(crate) fn take(dir: &DirHandle) -> Result<Self> {
        let file = open_lock(dir, layout::SHORT_LOCK)?;
        let range = whole_file(libc::F_WRLCK);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&range)) {
                Ok(_) => return Ok(Self { _file: file }),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(no_lock(&dir.path().join(layout::SHORT_LOCK), error)),
            }
        }
    }

    /// `None` while somebody else has it.
    pub(crate) fn try_take(dir: &DirHandle) -> Result<Option<Self>> {
        let file = open_lock(dir, layout::SHORT_LOCK)?;
        let taken = try_lock(&file, &dir.path().join(layout::SHORT_LOCK))?;
        Ok(taken.then_some(Self { _file: file }))
    }
}

fn open_lock(dir: &DirHandle, name: &str) -> Result<File> {
    let file = dir.open_file(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NONBLOCK)?;
    let path = dir.path().join(name);
    let stat = nix::sys::stat::fstat(&file).map_err(|e| StoreError::io("examine", &path, e))?;
    match kind(&stat) {
        Kind::File => Ok(file),
        other => Err(StoreError::damaged(&path, format!("it is {other}, not a file"))),
    }
}

/// Whether the file's file system is this host's alone: whoever reads it sees at once what was written.
fn is_of_this_host(file: &File) -> bool {
    let local = [BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC];
    fstatfs(file).is_ok_and(|found| local.contains(&found.filesystem_type()))
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(no_lock(path, error)),
    }
}

/// Asks without taking: a probe must not make a start beside it fail.
fn is_locked(file: &File, path: &Path) -> Result<bool> {
    let mut range = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut range)).map_err(|e| no_lock(path, e))?;
    Ok(range.l_type != libc::F_UNLCK as libc::c_short)
}

fn no_lock(path: &Path, error: Errno) -> StoreError {
    let source = io::Error::from(error);
    match errno(&source) {
        Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL => {
            StoreError::NoLocks { path: path.to_owned(), source }
        }
        _ => StoreError::io("lock", path, source),
    }
}

fn read_holder(file: &File) -> Option<Holder> {
    let mut bytes = Vec::new();
    let mut offset = 0;
    let mut buffer = [0; 1024];
    // At an offset: the position is shared with whoever inherited the descriptor.
    while (offset as u64) < MAX_HOLDER {
        match file.read_at(&mut buffer, offset as u64) {
            Ok(0) => break,
            Ok(read) => {
                bytes.extend_from_slice(&buffer[..read]);
                offset += read;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    serde_json::from_slice(&bytes).ok()
}

/// Between taking the lock and writing down who took it lies a moment.
fn wait_for_holder(file: &File) -> Holder {
    for _ in 0..10 {
        if let Some(holder) = read_holder(file) {
            return holder;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Holder::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Fixture, holder, message};

    #[test]
    fn one_at_a_time() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        assert_eq!(checkpoint.live_holder().unwrap(), None);
        let live = checkpoint.lock_live(&holder("first")).unwrap();
        assert!(live.taken_over().is_none());
        insta::assert_snapshot!(message(&f, checkpoint.lock_live(&holder("second"))), @r#"checkpoint "web" is in use by instance "first" (process 42, since 2026-01-02T03:04:05Z)"#);
        let refused = checkpoint.lock_live_forced(&holder("second")).unwrap_err();
        insta::assert_snapshot!(refused.help().unwrap(), @"stop it first: stasis instance stop first");
        assert_eq!(checkpoint.live_holder().unwrap(), Some(holder("first")));
        drop(live);
        assert_eq!(checkpoint.live_holder().unwrap(), None);
        assert!(checkpoint.lock_live(&holder("second")).unwrap().taken_over().is_none());
    }

    #[test]
    fn a_dead_holder_is_taken_over() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        let mut dead = holder("dead");
        dead.boot_id = "an earlier one".into();
        // Leaving without a child is what a crash looks like.
        checkpoint.lock_live(&dead).unwrap().leave_to_child();
        assert_eq!(checkpoint.live_holder().unwrap(), None);
        let live = checkpoint.lock_live(&holder("next")).unwrap();
        assert_eq!(live.taken_over(), Some(&dead));
    }

    #[test]
    fn another_host_is_believed() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        let mut far = holder("far");
        far.host = "node17".into();
        checkpoint.lock_live(&far).unwrap().leave_to_child();
        let refused = checkpoint.lock_live(&holder("near")).unwrap_err();
        insta::assert_snapshot!(f.plain(&refused), @r#"checkpoint "web" was taken by instance "far" (process 42 on host "node17", since 2026-01-02T03:04:05Z), which never gave it back"#);
        insta::assert_snapshot!(refused.help().unwrap(), @r#"if nothing runs on host "node17" any more, repeat with --force; otherwise stop it there"#);
        assert_eq!(checkpoint.live_holder().unwrap().unwrap().host, "node17");
        f.store.delete(checkpoint.name()).unwrap_err();
        let live = checkpoint.lock_live_forced(&holder("near")).unwrap();
        assert_eq!(live.taken_over(), Some(&far));
        drop(live);
        checkpoint.lock_live(&holder("near")).unwrap();
    }

    #[test]
    fn a_holder_that_says_nothing_or_nonsense() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        let path = checkpoint.path().join("live.lock");
        let file = File::create(&path).unwrap();
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))).unwrap();
        insta::assert_snapshot!(message(&f, checkpoint.lock_live(&holder("x"))), @r#"checkpoint "web" is in use by a process that has not said who it is"#);
        std::fs::write(&path, vec![b'{'; 1 << 20]).unwrap();
        assert!(matches!(checkpoint.lock_live(&holder("x")), Err(StoreError::InUse { .. })));
        drop(file);
        checkpoint.lock_live(&holder("x")).unwrap();
    }

    #[test]
    fn the_short_lock_excludes() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        let held = ShortLock::take(&checkpoint.dir).unwrap();
        assert!(ShortLock::try_take(&checkpoint.dir).unwrap().is_none());
        drop(held);
        assert!(ShortLock::try_take(&checkpoint.dir).unwrap().is_some());
    }
}
