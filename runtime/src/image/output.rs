//! An image directory in the making: it grows beside its place under another name and takes the place when it is whole.
//! Whatever ends the program before that, a helper process removes it; what was there before is never touched until
//! then.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;

use rustix::fs::RenameFlags;

use super::tree::{Tree, failed};
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::launch::userns;
use crate::store::{self, DirHandle};
use crate::sys::{fd, process};

/// The first argument with which our own program is started to watch over one.
pub const GUARD: &str = "__image-guard";
/// The descriptor at which it listens.
const GUARD_FD: i32 = 3;

/// An image directory in the making.
#[derive(Debug)]
pub struct Output {
    out: PathBuf,
    parent: PathBuf,
    name: OsString,
    staging: OsString,
    guard: Option<Guard>,
    force: bool,
    committed: bool,
}

#[derive(Debug)]
struct Guard {
    child: Child,
    pipe: std::fs::File,
}

impl Output {
    /// Makes the directory beside `out`. `guarded`: a process of our own removes it when we are killed.
    ///
    /// # Errors
    /// `out` is there already and `force` is false, or it is no image; what the file system says.
    pub fn new(out: &Path, force: bool, guarded: bool) -> Result<Self> {
        let out = std::path::absolute(out).map_err(|e| failed("find", out, &e))?;
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            return Err(
                Error::new(format!("cannot make an image of {}", out.display())).help("name a new directory")
            );
        };
        check_place(&out, force)?;
        let mut output = Self::scratch(parent, name, guarded)?;
        output.force = force;
        Ok(output)
    }

    /// A directory for what is only needed on the way to an image, named after it; it is removed in the end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn scratch(parent: &Path, name: &OsStr, guarded: bool) -> Result<Self> {
        if !parent.is_dir() {
            return Err(Error::new(format!("cannot make the image {}", parent.join(name).display()))
                .because(format!("there is no directory {}", parent.display()))
                .help("make it first, or choose another name"));
        }
        let mut staging = OsString::from(".");
        staging.push(name);
        staging.push(format!(".partial-{}", std::process::id()));
        let path = parent.join(&staging);
        let mut output = Self {
            parent: parent.to_owned(),
            name: name.to_owned(),
            out: parent.join(name),
            staging,
            guard: None,
            force: false,
            committed: false,
        };
        DirBuilder::new().mode(0o755).create(&path).map_err(|e| failed("make the directory", &path, &e))?;
        if guarded {
            output.guard = Some(Guard::start(&path)?);
        }
        Ok(output)
    }

    /// Another directory on the same disk that is removed in the end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn beside(&self, ending: &str, guarded: bool) -> Result<Self> {
        let mut name = self.name.clone();
        name.push(ending);
        Self::scratch(&self.parent, &name, guarded)
    }

    /// Where it grows.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.parent.join(&self.staging)
    }

    /// The directory to write into.
    ///
    /// # Errors
    /// What the file system says.
    pub fn tree(&self) -> Result<Tree> {
        Tree::open(&self.path())
    }

    /// Puts it in its place when it is on disk. What was there goes; where it cannot, `watch` is told.
    ///
    /// # Errors
    /// What the file system says; the old image is there then.
    pub fn commit(mut self, watch: &dyn Watch) -> Result<()> {
        check_place(&self.out, self.force)?;
        let parent = std::fs::File::open(&self.parent).map_err(|e| failed("open", &self.parent, &e))?;
        rustix::fs::syncfs(&parent).map_err(|e| failed("write to disk", &self.path(), &e.into()))?;
        let old = self.out.symlink_metadata().is_ok();
        let flags = if old { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        let renamed = rustix::fs::renameat_with(&parent, &self.staging, &parent, &self.name, flags);
        let aside = match renamed {
            Ok(()) => self.staging.clone(),
            // Network file systems know neither.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
                self.rename_twice(&parent, old)?
            }
            Err(e) => return Err(failed("put the image at", &self.out, &e.into())),
        };
        self.committed = true;
        parent.sync_all().map_err(|e| failed("write to disk", &self.parent, &e))?;
        if old && let Err(error) = remove(&self.parent, &aside) {
            let left = self.parent.join(aside);
            watch.warning(&format!("the old image is left at {} and can go: {error}", left.display()));
        }
        Ok(())
    }

    /// Returns under which name the old image is now.
    fn rename_twice(&self, parent: &std::fs::File, old: bool) -> Result<OsString> {
        let cannot = |e: rustix::io::Errno| failed("put the image at", &self.out, &e.into());
        let mut aside = self.staging.clone();
        aside.push("-old");
        if old {
            rustix::fs::renameat(parent, &self.name, parent, &aside).map_err(cannot)?;
        }
        rustix::fs::renameat(parent, &self.staging, parent, &self.name).map_err(|e| {
            // Back to what it was; if that fails as well, the first reason is the one to tell.
            let _ = rustix::fs::renameat(parent, &aside, parent, &self.name);
            cannot(e)
        })?;
        Ok(aside)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.committed {
            // What is left now is of no use to anybody, and whoever failed has said why.
            let _ = remove(&self.parent, &self.staging);
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

/// Whether an image may be put there.
fn check_place(out: &Path, force: bool) -> Result<()> {
    let Ok(meta) = out.symlink_metadata() else { return Ok(()) };
    if !force {
        return Err(Error::new(format!("\"{}\" exists already", out.display()))
            .help("replace it with --force, or choose another name"));
    }
    if !meta.is_dir() {
        return Err(Error::new(format!(
            "\"{}\" is not an image directory, and is not replaced by one",
            out.display()
        ))
        .help("choose another name, or move it away"));
    }
    let empty = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if is_surely_image(out) || empty {
        return Ok(());
    }
    Err(Error::new(format!("\"{}\" holds something else than an image, and is not replaced", out.display()))
        .help("choose another name, or move it away"))
}

/// Whether a directory may go as a whole. Many a home has a `bin`, and what software is installed into an `etc`: to be
/// run such a directory is image enough, but not to be removed.
fn is_surely_image(out: &Path) -> bool {
    let has = |name: &str| out.join(name).symlink_metadata().is_ok();
    has(".singularity.d") || ["etc", "proc", "usr"].into_iter().all(has)
}

/// Removes a directory, also where a build has left files of other users in it.
fn remove(parent: &Path, name: &OsStr) -> Result<()> {
    let by_us = || DirHandle::open_foreign(parent).and_then(|parent| store::remove(&parent, name));
    match by_us() {
        Err(first) if userns::grants_more(nix::unistd::geteuid().as_raw()) => {
            let code = userns::as_granted_root(|| i32::from(by_us().is_err()))?;
            if code == 0 { Ok(()) } else { Err(first.into()) }
        }
        other => Ok(other?),
    }
}

impl Guard {
    fn start(staging: &Path) -> Result<Self> {
        let cannot = |e: std::io::Error| Error::new("cannot start the process that cleans up").because(&e);
        let (theirs, ours) = fd::pipe().map_err(cannot)?;
        let roles: [&OsStr; 2] = [GUARD.as_ref(), staging.as_os_str()];
        let at: [(BorrowedFd<'_>, i32); 1] = [(theirs.as_fd(), GUARD_FD)];
        let child = process::spawn_self(&roles, &at).map_err(cannot)?;
        Ok(Self { child, pipe: std::fs::File::from(ours) })
    }

    fn dismiss(mut self) {
        // It may have been killed; then there is nothing left to tell it.
        let _ = self.pipe.write_all(b"x");
        drop(self.pipe);
        let _ = self.child.wait();
    }
}

/// Waits for the end of whoever makes the image, and cleans up after one that was killed. Returns an exit code.
pub(crate) fn guard(staging: Option<&OsString>) -> i32 {
    let (Some(staging), Ok(pipe)) = (staging, fd::inherited(GUARD_FD)) else { return 1 };
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM, nix::sys::signal::SIGHUP] {
        crate::sys::signal::ignore(signal);
    }
    let mut said = [0];
    if matches!(std::fs::File::from(pipe).read(&mut said), Ok(1)) {
        return 0;
    }
    let path = Path::new(staging);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return 1 };
    // Processes of the build may still be on their way out, and write while we remove.
    for _ in 0..50 {
        if remove(parent, name).is_ok() && path.symlink_metadata().is_err() {
            return 0;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    1
}
