//! Writing below a directory as if it were the root: every path is resolved inside of it by the kernel, links
//! included, and what is made is made in an open directory. Nothing outside can be reached or changed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::inside::{components, file_type, open_in_root};
use super::io_words;
use crate::error::{Error, Result};
use crate::store::{self, DirHandle};

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);
/// Programs that run with their owner's or group's rights.
const SET_ID: u32 = 0o6000;

/// The bits of a mode that are given to what is made in an image. Programs with another user's rights are of no use in a
/// container, and on the host a stranger would have put them there, with the rights of whoever unpacks: those bits are
/// left away. On a directory the group's bit gives no rights, it says whose new files are.
pub(crate) const fn allowed(directory: bool) -> u32 {
    if directory { 0o3777 } else { 0o1777 }
}
/// Deeper than this no image goes; every level costs a descriptor while something is removed.
const MAX_DEPTH: usize = 256;

/// Seconds since 1970 as the kernel takes them. A file system keeps what it can hold of it.
pub(crate) fn time_of(seconds: i64) -> TimeSpec {
    TimeSpec::new(seconds, 0)
}

/// Which directory it is, whatever its name: device and inode.
pub(crate) type Identity = (u64, u64);

/// A directory that is, or becomes, an image.
#[derive(Debug)]
pub struct Tree {
    dir: OwnedFd,
    path: PathBuf,
}

impl Tree {
    /// Opens a directory. `path` is trusted: it is the caller's own.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = DIRECTORY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|e| failed("open the directory", path, &e.into()))?;
        Ok(Self { dir, path: path.to_owned() })
    }

    /// Where it is, for messages and for whoever mounts it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which directory it is.
    pub(crate) fn identity(&self) -> Option<Identity> {
        nix::sys::stat::fstat(&self.dir).ok().map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// The directory's descriptor.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens something inside, links followed inside.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open_at(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        open_in_root(self.dir(), path, flags)
    }

    /// Whether there is anything at `path`, links followed inside.
    #[must_use]
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.open_at(path.as_ref(), OFlag::O_PATH).is_ok()
    }

    /// Opens a directory inside, making it and what leads to it where missing.
    ///
    /// # Errors
    /// What the kernel says: `NotADirectory` where a file is in the way.
    pub fn make_dirs(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open_at(path, DIRECTORY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut walked = PathBuf::new();
        let mut here = self.open_at(Path::new(""), DIRECTORY)?;
        for name in components(path) {
            walked.push(&name);
            here = match self.open_at(&walked, DIRECTORY) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(&here, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                        // A link that leads nowhere stands here: the next open says so.
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                    self.open_at(&walked, DIRECTORY)?
                }
                other => other?,
            };
        }
        Ok(here)
    }

    /// The directory in which `path` lies, made where missing, and its last name.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` for a path without a name.
    pub fn parent_of(&self, path: &Path) -> io::Result<(OwnedFd, OsString)> {
        let mut names: Vec<OsString> = components(path).collect();
        let last = names.pop().filter(|name| name != "..").ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.make_dirs(&names.iter().collect::<PathBuf>())?, last))
    }

    /// Writes a whole file, replacing what is there.
    ///
    /// # Errors
    /// What the kernel says, with the path.
    pub fn write(&self, path: impl AsRef<Path>, mode: u32, content: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let made = self.create(path, mode).and_then(|mut file| file.write_all(content.as_ref()));
        made.map_err(|e| failed("write", &self.shown(path), &e))
    }

    /// Makes an empty file, replacing what is there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        let (parent, name) = self.parent_of(path)?;
        remove_in(parent.as_fd(), &name)?;
        create_in(parent.as_fd(), &name, mode)
    }

    /// Writes a file where nothing is yet; what leads nowhere counts as nothing.
    ///
    /// # Errors
    /// What the kernel says, with the path.
    pub fn write_if_missing(&self, path: impl AsRef<Path>, mode: u32, content: &str) -> Result<()> {
        if self.exists(path.as_ref()) { Ok(()) } else { self.write(path, mode, content) }
    }

    /// Makes a directory where it is missing.
    ///
    /// # Errors
    /// What the kernel says, with the path.
    pub fn directory(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.make_dirs(path).map(drop).map_err(|e| failed("make the directory", &self.shown(path), &e))
    }

    /// Makes a link, replacing what is there.
    ///
    /// # Errors
    /// What the kernel says, with the path.
    pub fn link(&self, path: impl AsRef<Path>, target: &str) -> Result<()> {
        let path = path.as_ref();
        let made = self.parent_of(path).and_then(|(parent, name)| {
            remove_in(parent.as_fd(), &name)?;
            Ok(symlinkat(target, &parent, name.as_os_str())?)
        });
        made.map_err(|e| failed("make the link", &self.shown(path), &e))
    }

    /// Removes what is at `path`, whatever it is. Nothing there is success.
    ///
    /// # Errors
    /// What the kernel says, with the path.
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let gone = self.parent_of(path).and_then(|(parent, name)| remove_in(parent.as_fd(), &name));
        gone.map_err(|e| failed("remove", &self.shown(path), &e))
    }

    /// The content of a small file inside; `None` where there is none.
    ///
    /// # Errors
    /// What the kernel says, with the path; anything but a regular file, or a larger one.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> Result<Option<Vec<u8>>> {
        let path = path.as_ref();
        match super::inside::read_regular(self.dir(), path, limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &self.shown(path), &e)),
        }
    }

    fn shown(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Makes a file in an open directory; there must be none of the name.
pub(crate) fn create_in(parent: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<File> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(parent, name, flags, Mode::from_bits_truncate(0o600))?;
    // Past the file mode mask.
    fchmod(&file, Mode::from_bits_truncate(mode))?;
    Ok(File::from(file))
}

/// What an entry of an open directory is; links are not followed.
pub(crate) fn stat_in(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Removes an entry of an open directory, with everything below it and through no link.
pub(crate) fn remove_in(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    store::remove(&DirHandle::of(parent)?, name).map_err(io::Error::from)
}

/// Removes an entry and everything below it but what `keep` says yes to, and what leads there. Answers
/// whether the entry itself is gone.
pub(crate) fn remove_but(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    keep: &mut dyn FnMut(&FileStat, &OsStr) -> bool,
    depth: usize,
) -> io::Result<bool> {
    let Some(stat) = stat_in(parent, name)? else { return Ok(true) };
    if file_type(&stat) != SFlag::S_IFDIR {
        unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
        return Ok(true);
    }
    if depth > MAX_DEPTH {
        return Err(io::Error::from_raw_os_error(Errno::ENAMETOOLONG as i32));
    }
    let dir = openat(parent, name, DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if !clear_but(dir.as_fd(), keep, depth)? {
        return Ok(false);
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)?;
    Ok(true)
}

/// Removes everything in an open directory but what is to be kept. Answers whether it is empty now.
pub(crate) fn clear_but(
    dir: BorrowedFd<'_>,
    keep: &mut dyn FnMut(&FileStat, &OsStr) -> bool,
    depth: usize,
) -> io::Result<bool> {
    let parent = nix::sys::stat::fstat(dir)?;
    let mut empty = true;
    for inner in list(dir)? {
        if keep(&parent, &inner) {
            empty = false;
        } else {
            empty &= remove_but(dir, &inner, keep, depth + 1)?;
        }
    }
    Ok(empty)
}

/// Takes the set-id bits from everything below. Programs with another user's rights are of no use in a container, and
/// on the host a stranger would have put them there.
pub(crate) fn clear_set_id(dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::from_raw_os_error(Errno::ENAMETOOLONG as i32));
    }
    for name in list(dir)? {
        let Some(stat) = stat_in(dir, &name)? else { continue };
        let kind = file_type(&stat);
        if kind == SFlag::S_IFDIR {
            let flags = DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            clear_set_id(openat(dir, name.as_os_str(), flags, Mode::empty())?.as_fd(), depth + 1)?;
        } else if kind == SFlag::S_IFREG && stat.st_mode & SET_ID != 0 {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = openat(dir, name.as_os_str(), flags, Mode::empty())?;
            fchmod(&file, Mode::from_bits_truncate(stat.st_mode & 0o7777 & !SET_ID))?;
        }
    }
    Ok(())
}

/// The names in an open directory.
pub(crate) fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    // A description of its own: reading a directory moves an offset.
    let again = openat(dir, ".", DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(again)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether somebody has used up a file system, or his share of it.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT))
}

/// What to do then, where `place` was written.
pub(crate) fn room(place: &Path) -> String {
    let directory = place.parent().unwrap_or(place);
    format!(
        "make room on the file system of {} (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR \
         for what grows into an image file, another path for the image",
        directory.display()
    )
}

/// What could not be done with a file, with the remedy where there is one.
pub(crate) fn failed(doing: &str, path: &Path, e: &io::Error) -> Error {
    let error = Error::new(format!("cannot {doing} {}", path.display())).because(io_words(e));
    if is_full(e) { error.help(room(path)) } else { error }
}
