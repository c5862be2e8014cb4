//! Directories of records, reached by descriptor and never through a symbolic link. Knows no file names.

use super::Result;
use super::error::InstanceError;
use nix::dir::Dir as Entries;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The most bytes of a record that are read: what a hostile file can make us hold.
const MAX_RECORD: u64 = 1 << 20;

const FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// An open directory. The path is for messages only.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens `path`, making it and what leads to it with mode 0700 where missing.
    pub(super) fn open_or_make(path: &Path) -> Result<Self> {
        if let Some(dir) = Self::open(path)? {
            return Ok(dir);
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|e| InstanceError::io("make directory", path, e))?;
        Self::open(path)?.ok_or_else(|| InstanceError::io("open", path, Errno::ENOENT))
    }

    /// `None` if there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        Self::taken(open(path, FLAGS, Mode::empty()), path.to_owned())
    }

    pub(super) fn child(&self, name: &str) -> Result<Self> {
        let missing = || InstanceError::io("open", &self.path.join(name), Errno::ENOENT);
        self.child_if_any(name)?.ok_or_else(missing)
    }

    /// `None` if there is none.
    pub(super) fn child_if_any(&self, name: &str) -> Result<Option<Self>> {
        Self::taken(openat(&self.fd, name, FLAGS, Mode::empty()), self.path.join(name))
    }

    fn taken(opened: nix::Result<OwnedFd>, path: PathBuf) -> Result<Option<Self>> {
        let untrusted = |path: PathBuf, problem: String| Err(InstanceError::Untrusted { path, problem });
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return untrusted(path, "it is not a directory".to_owned()),
            Err(error) => return Err(InstanceError::io("open", &path, error)),
        };
        let stat = fstat(&fd).map_err(|e| InstanceError::io("examine", &path, e))?;
        let euid = geteuid().as_raw();
        if stat.st_uid != euid {
            return untrusted(path, format!("it belongs to uid {}, and you are uid {euid}", stat.st_uid));
        }
        if stat.st_mode & 0o022 != 0 {
            return untrusted(path, format!("others can write to it (mode {:04o})", stat.st_mode & 0o7777));
        }
        Ok(Some(Self { fd, path }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the two are one directory.
    pub(super) fn is(&self, other: &Self) -> Result<bool> {
        let stat = |dir: &Self| fstat(&dir.fd).map_err(|e| InstanceError::io("examine", &dir.path, e));
        let (a, b) = (stat(self)?, stat(other)?);
        Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// The entry itself, not what a link points to; `None` if there is none.
    pub(super) fn stat(&self, name: &str) -> Result<Option<FileStat>> {
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(InstanceError::io("examine", &self.path.join(name), error)),
        }
    }

    /// The names in it, sorted. Names that are no text are left out.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let failed = |e: Errno| InstanceError::io("list", &self.path, e);
        // A second description, because reading a directory moves a shared offset.
        let again = openat(&self.fd, ".", FLAGS, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in Entries::from_fd(again).map_err(failed)?.iter() {
            let entry = entry.map_err(failed)?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Opens the directory `name`, making it with mode 0700 where missing.
    pub(super) fn make(&self, name: &str) -> Result<Self> {
        loop {
            match mkdirat(&self.fd, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(InstanceError::io("make directory", &self.path.join(name), error)),
            }
            // Whoever had the name may remove the directory this moment.
            if let Some(dir) = self.child_if_any(name)? {
                return Ok(dir);
            }
        }
    }

    pub(super) fn open_file(&self, name: &str, flags: OFlag) -> Result<File> {
        // Without O_NONBLOCK a fifo put in the place of a file would hold us for ever.
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let path = self.path.join(name);
        let file = openat(&self.fd, name, flags, FILE_MODE)
            .map(File::from)
            .map_err(|e| InstanceError::io("open", &path, e))?;
        let stat = fstat(&file).map_err(|e| InstanceError::io("examine", &path, e))?;
        let problem = if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            "it is not a file".to_owned()
        } else if stat.st_uid != geteuid().as_raw() {
            format!("it belongs to uid {}, and you are uid {}", stat.st_uid, geteuid())
        } else {
            return Ok(file);
        };
        Err(InstanceError::Untrusted { path, problem })
    }

    /// Reads a small file. `None` if there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        let file = match self.open_file(name, OFlag::O_RDONLY) {
            Err(InstanceError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD + 1).read_to_end(&mut bytes).map_err(|e| InstanceError::io("read", &path, e))?;
        if bytes.len() as u64 > MAX_RECORD {
            let problem = format!("it is larger than {} KiB", MAX_RECORD >> 10);
            return Err(InstanceError::Untrusted { path, problem });
        }
        Ok(Some(bytes))
    }

    /// Replaces a file as a whole. Not made durable: what it says does not outlive the kernel. The caller has
    /// the directory for itself: the temporary name is always the same.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let new = temporary(name);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let written = self.open_file(&new, flags).and_then(|mut file| {
            file.write_all(bytes).map_err(|e| InstanceError::io("write", &self.path.join(name), e))?;
            self.put(&new, name).map_err(|e| InstanceError::io("replace", &self.path.join(name), e))
        });
        if written.is_err() {
            // The error being returned says more than one from here would.
            let _ = unlinkat(&self.fd, new.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    /// They change places, and the old one goes: ext4 writes out at once what is renamed over another file (four times as
    /// long as this).
    fn put(&self, new: &str, name: &str) -> nix::Result<()> {
        match renameat2(&self.fd, new, &self.fd, name, RenameFlags::RENAME_EXCHANGE) {
            // What cannot be removed is written over the next time.
            Ok(()) => unlinkat(&self.fd, new, UnlinkatFlags::NoRemoveDir).or(Ok(())),
            // There is none yet, or this file system cannot do that.
            Err(_) => renameat(&self.fd, new, &self.fd, name),
        }
    }

    /// Removes the entry, which is no directory with something in it. Nothing there is no error.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = || self.path.join(name);
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => Ok(()),
                Err(error) => Err(InstanceError::io("remove", &path(), error)),
            },
            Err(error) => Err(InstanceError::io("remove", &path(), error)),
        }
    }
}

/// What [`Dir::replace`] leaves beside `name` when it is killed.
pub(super) fn temporary(name: &str) -> String {
    format!(".{name}.new")
}
