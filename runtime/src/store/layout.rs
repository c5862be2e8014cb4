//! Where things lie in the store, and the one way to reach them: relative to a directory descriptor, never
//! through a symbolic link.
//!
//! Owns file names, ownership checks, bounded reads and atomic writes. Knows nothing about what files mean.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::Result;
use super::error::StoreError;

pub(crate) const CHECKPOINTS: &str = "checkpoints";
pub(crate) const RECORD: &str = "checkpoint.json";
pub(crate) const LIVE_LOCK: &str = "live.lock";
pub(crate) const SHORT_LOCK: &str = "lock";
pub(crate) const STAGING: &str = "staging";
pub(crate) const GENERATIONS: &str = "generations";
pub(crate) const LATEST: &str = "latest";
pub(crate) const LATEST_NEW: &str = ".latest.new";
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const PARTIAL: &str = ".partial";
/// Prefixes of what is on its way out or in; whatever carries one is no checkpoint and no generation.
pub(crate) const DELETED: &str = ".deleted-";
pub(crate) const NEW: &str = ".new-";

/// The most bytes read from a record or manifest: what a hostile file can make us hold.
pub(crate) const MAX_JSON: u64 = 16 << 20;
/// The deepest tree and the most entries that an engine may leave for saving.
pub(crate) const MAX_DEPTH: usize = 32;
pub(crate) const MAX_ENTRIES: usize = 1 << 16;

pub(crate) const DIR_MODE: Mode = Mode::S_IRWXU;
pub(crate) const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

const DIR_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An open directory of the store. The path is for messages and mounts only.
#[derive(Debug)]
pub(crate) struct DirHandle {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for DirHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl DirHandle {
    /// Opens `path`, making it and what leads to it with mode 0700 where missing.
    pub(crate) fn open_or_make(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| StoreError::io("find", path, e))?;
        // A dangling link must be told as a link, not as a failed mkdir.
        if path.symlink_metadata().is_err() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(DIR_MODE.bits())
                .create(&path)
                .map_err(|e| StoreError::io("make directory", &path, e))?;
        }
        match open(&path, DIR_FLAGS, Mode::empty()) {
            Ok(fd) => Self { fd, path }.trusted(),
            Err(error) => Err(open_error(&path, path.is_symlink(), error)),
        }
    }

    /// Opens a directory that is not the store's: any that the user may write to.
    pub(crate) fn open_foreign(path: &Path) -> Result<Self> {
        match open(path, DIR_FLAGS.difference(OFlag::O_NOFOLLOW), Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: path.to_owned() }),
            Err(error) => Err(open_error(path, false, error)),
        }
    }

    /// A directory that is not the store's and is open already.
    pub(crate) fn of(directory: BorrowedFd<'_>) -> std::io::Result<Self> {
        Ok(Self { fd: directory.try_clone_to_owned()?, path: PathBuf::new() })
    }

    /// Opens the directory `name`, which must belong to the user and be writable by nobody else.
    pub(crate) fn child(&self, name: impl AsRef<Path>) -> Result<Self> {
        self.child_unchecked(name)?.trusted()
    }

    /// Like [`Self::child`] without a look at owner and mode: for what an engine made.
    pub(crate) fn child_unchecked(&self, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        let path = self.path.join(name);
        match openat(&self.fd, name, DIR_FLAGS, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(error) => {
                let link = matches!(self.stat(name), Ok(Some(stat)) if kind(&stat) == Kind::Link);
                Err(open_error(&path, link, error))
            }
        }
    }

    fn trusted(self) -> Result<Self> {
        let stat = fstat(&self.fd).map_err(|e| StoreError::io("examine", &self.path, e))?;
        let euid = geteuid().as_raw();
        let problem = if stat.st_uid != euid {
            format!("it belongs to uid {}, and you are uid {euid}", stat.st_uid)
        } else if stat.st_mode & 0o022 != 0 {
            format!("others can write to it (mode {:04o})", stat.st_mode & 0o7777)
        } else {
            return Ok(self);
        };
        Err(StoreError::Untrusted { path: self.path, problem })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|e| StoreError::io("open again", &self.path, e))?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// Device and inode, by which a directory is recognised.
    pub(crate) fn identity(&self) -> Result<(u64, u64)> {
        let stat = fstat(&self.fd).map_err(|e| StoreError::io("examine", &self.path, e))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// The entry itself, not what a link points to; `None` if there is none.
    pub(crate) fn stat(&self, name: impl AsRef<Path>) -> Result<Option<FileStat>> {
        let name = name.as_ref();
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(StoreError::io("examine", &self.path.join(name), error)),
        }
    }

    /// The names in it, sorted.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let failed = |e: Errno| StoreError::io("list", &self.path, e);
        // A second description, because reading a directory moves a shared offset.
        let again = openat(&self.fd, ".", DIR_FLAGS, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(again).map_err(failed)?.iter() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn make_dir(&self, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        mkdirat(&self.fd, name, DIR_MODE)
            .map_err(|e| StoreError::io("make directory", &self.path.join(name), e))?;
        self.child(name)
    }

    pub(crate) fn open_file(&self, name: impl AsRef<Path>, flags: OFlag) -> Result<File> {
        let name = name.as_ref();
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, FILE_MODE) {
            Ok(fd) => Ok(File::from(fd)),
            Err(error) => Err(StoreError::io("open", &self.path.join(name), error)),
        }
    }

    /// Opens a regular file for reading, by a relative path without links in any part of it.
    pub(crate) fn open_regular(&self, relative: &Path) -> Result<(File, FileStat)> {
        let path = self.path.join(relative);
        let mut parts: Vec<&OsStr> = Vec::new();
        for part in relative.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                _ => return Err(StoreError::damaged(&path, "its path leads outside")),
            }
        }
        let Some(last) = parts.pop() else {
            return Err(StoreError::damaged(&path, "its path is empty"));
        };
        let mut dir = self.try_clone()?;
        for part in parts {
            dir = dir.child_unchecked(part)?;
        }
        // Without O_NONBLOCK a fifo put in the place of a file would hold us for ever.
        let file = dir.open_file(last, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        let stat = fstat(&file).map_err(|e| StoreError::io("examine", &path, e))?;
        match kind(&stat) {
            Kind::File => Ok((file, stat)),
            other => Err(StoreError::damaged(&path, format!("it is {other}, not a file"))),
        }
    }

    /// Reads a small file of the user's own. `None` if there is none.
    pub(crate) fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        if self.stat(name)?.is_none() {
            return Ok(None);
        }
        let (file, stat) = self.open_regular(Path::new(name))?;
        if stat.st_uid != geteuid().as_raw() {
            let problem = format!("it belongs to uid {}, and you are uid {}", stat.st_uid, geteuid());
            return Err(StoreError::Untrusted { path, problem });
        }
        // All at once, and the end of it.
        let expected = u64::try_from(stat.st_size).unwrap_or(0).min(MAX_JSON) + 1;
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        file.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(|e| StoreError::io("read", &path, e))?;
        if bytes.len() as u64 > MAX_JSON {
            let problem = format!("it is larger than {} MiB", MAX_JSON >> 20);
            return Err(StoreError::damaged(&path, problem));
        }
        Ok(Some(bytes))
    }

    /// Writes a new file and makes its content durable; the directory entry is the caller's to sync.
    pub(crate) fn write_new(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut file = self.open_file(name, flags)?;
        let done = file.write_all(bytes).and_then(|()| file.sync_all());
        done.map_err(|e| StoreError::io("write", &self.path.join(name), e))
    }

    /// Replaces a file as a whole and durably. The caller holds a lock: the temporary name is always the same.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = format!(".{name}.new");
        let done = self.write_new(&temporary, bytes).and_then(|()| self.rename(&temporary, self, name));
        if done.is_err() {
            // The error being returned says more than one from here would.
            let _ = unlinkat(&self.fd, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        done?;
        self.sync()
    }

    pub(crate) fn rename(
        &self,
        from: impl AsRef<Path>,
        to: &DirHandle,
        name: impl AsRef<Path>,
    ) -> Result<()> {
        let from = from.as_ref();
        renameat(&self.fd, from, &to.fd, name.as_ref())
            .map_err(|e| StoreError::io("rename", &self.path.join(from), e))
    }

    /// Lets two entries change places in one step: at no instant is either name without one.
    pub(crate) fn exchange(&self, one: &str, other: &str) -> Result<()> {
        let done = renameat2(&self.fd, one, &self.fd, other, RenameFlags::RENAME_EXCHANGE);
        done.map_err(|error| match error {
            Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP => StoreError::NoExchange(self.path.clone()),
            error => StoreError::io("exchange", &self.path.join(other), error),
        })
    }

    pub(crate) fn sync(&self) -> Result<()> {
        nix::unistd::fsync(&self.fd).map_err(|e| StoreError::io("write out", &self.path, e))
    }
}

fn open_error(path: &Path, link: bool, error: Errno) -> StoreError {
    let problem = match error {
        Errno::ELOOP | Errno::ENOTDIR if link => "it is a symbolic link, and links are not followed",
        Errno::ENOTDIR => "it is not a directory",
        _ => return StoreError::io("open", path, error),
    };
    StoreError::Untrusted { path: path.to_owned(), problem: problem.to_owned() }
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Link,
    Other,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File => "a file",
            Self::Dir => "a directory",
            Self::Link => "a symbolic link",
            Self::Other => "a device, socket or fifo",
        })
    }
}

pub(crate) fn kind(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Dir,
        SFlag::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    }
}

/// One entry found below a directory.
#[derive(Debug)]
pub(crate) struct Found {
    /// Relative to where the walk began.
    pub(crate) relative: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) stat: FileStat,
}

/// Everything below `dir`, parents before children, in a stable order. Bounded in depth and count.
pub(crate) fn walk(dir: &DirHandle) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    walk_into(dir, Path::new(""), 0, &mut found)?;
    Ok(found)
}

fn walk_into(dir: &DirHandle, below: &Path, depth: usize, found: &mut Vec<Found>) -> Result<()> {
    let too_much = |problem: String| Err(StoreError::damaged(dir.path(), problem));
    if depth > MAX_DEPTH {
        return too_much(format!("it lies more than {MAX_DEPTH} directories deep"));
    }
    for name in dir.names()? {
        if found.len() >= MAX_ENTRIES {
            return too_much(format!("there are more than {MAX_ENTRIES} files"));
        }
        // It may have gone since it was listed.
        let Some(stat) = dir.stat(&name)? else { continue };
        let relative = below.join(&name);
        let kind = kind(&stat);
        found.push(Found { relative: relative.clone(), kind, stat });
        if kind == Kind::Dir {
            walk_into(&dir.child_unchecked(&name)?, &relative, depth + 1, found)?;
        }
    }
    Ok(())
}

/// The directory of a generation: `7` is `000007`.
pub(crate) fn generation_name(number: u64) -> String {
    format!("{number:06}")
}

/// The number in `000007`, if that is what `name` is in exactly our spelling.
pub(crate) fn generation_number(name: &str) -> Option<u64> {
    let number = name.parse().ok()?;
    (number > 0 && generation_name(number) == name).then_some(number)
}
