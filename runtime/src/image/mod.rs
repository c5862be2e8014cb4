//! A container image on disk: opened once, held by descriptor, looked into without ever leaving it.
//! An image is hostile: its links, modes and files are nobody's but the author's. One in a file is brought into
//! view by [`attach`]; where it is seen in a container is not decided here.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, faccessat};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, ProgramHeader as _};

pub mod apps;
pub mod attach;
pub mod cached;
mod error;
mod file;
pub mod identity;
pub(crate) mod inside;
pub mod metadata;
pub mod oci;
pub mod output;
pub mod remark;
pub mod sif;
pub mod singularity;
pub mod squashfs;
pub mod tools;
pub mod tree;
pub mod watch;
pub(crate) mod xattr;

pub use error::ImageError;
pub(crate) use error::io_words;
pub use file::{ImageFile, Opening, is_image_file, may_read, refuse, sif_of};
use oci::Rooted;
use oci::types::ContainerConfig;

/// One of these is in every image.
const SIGNS: [&str; 4] = ["bin", "usr", "etc", ".singularity.d"];

/// What something inside an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A device, a socket or a pipe.
    Special,
}

/// Something inside an image, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// In bytes.
    pub size: u64,
}

impl FileInfo {
    /// A regular file that somebody may execute.
    #[must_use]
    pub fn is_executable(&self) -> bool {
        self.kind == FileKind::Regular && self.mode & 0o111 != 0
    }
}

/// An opened image.
#[derive(Debug)]
pub struct Image {
    /// What the user typed.
    pub given: String,
    /// What the application is told as its image's name.
    pub name: String,
    /// The directory or the file, absolute, links resolved.
    pub root: PathBuf,
    dir: OwnedFd,
    /// Of an image in a file. Let go after `dir`, which holds the same mount.
    pub file: Option<ImageFile>,
    /// Of an image that was fetched by name: its place in the cache, kept while this lives.
    pub fetched: Option<Rooted>,
    /// `/bin/sh` is there and may be executed.
    pub has_sh: bool,
    /// `/bin/bash` is there and may be executed.
    pub has_bash: bool,
    /// `/.singularity.d/env` holds at least one `*.sh`.
    pub has_env_scripts: bool,
    /// `/.singularity.d/runscript` may be executed.
    pub has_runscript: bool,
    /// `/.singularity.d/startscript` may be executed.
    pub has_startscript: bool,
    /// `/.singularity.d/libs` holds something.
    pub has_libs: bool,
    /// From `/.singularity.d/labels.json`; empty when there is none or it is broken.
    pub labels: BTreeMap<String, String>,
    /// What an image from a registry wants to be run, where it has no shell that could run its runscript.
    pub oci: Option<ContainerConfig>,
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_DIRECTORY);

impl Image {
    /// Opens the image directory that a user named.
    ///
    /// # Errors
    /// It is missing, not readable, not a directory, no image, or an address of another kind.
    pub fn open(arg: &str) -> Result<Self, ImageError> {
        refuse_addresses(arg)?;
        let path = PathBuf::from(arg);
        let root = path.canonicalize().map_err(|source| at(&path, source))?;
        if !root.is_dir() {
            return Err(ImageError::NotADirectory { what: file::kind_of(&root), path });
        }
        let dir = nix::fcntl::open(&root, DIRECTORY, Mode::empty()).map_err(|e| at(&path, e.into()))?;
        Self::of(arg, root, dir, None)
    }

    /// Looks at what was opened: `dir` is its content.
    fn of(arg: &str, root: PathBuf, dir: OwnedFd, file: Option<ImageFile>) -> Result<Self, ImageError> {
        let path = PathBuf::from(arg);
        faccessat(&dir, ".", AccessFlags::R_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)
            .map_err(|errno| at(&path, errno.into()))?;
        let mut image = Self {
            given: arg.to_owned(),
            name: root.file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned()),
            root,
            file,
            fetched: None,
            dir,
            has_sh: false,
            has_bash: false,
            has_env_scripts: false,
            has_runscript: false,
            has_startscript: false,
            has_libs: false,
            labels: BTreeMap::new(),
            oci: None,
        };
        // Links count also when they lead nowhere: `bin -> usr/bin` of a half-built image is still one.
        let entries = image.list("/").map_err(|source| at(&path, source))?;
        if !SIGNS.iter().any(|name| entries.iter().any(|e| e == name)) {
            return Err(ImageError::NotAnImage { path });
        }
        image.look();
        Ok(image)
    }

    fn look(&mut self) {
        self.has_sh = self.executable("/bin/sh");
        self.has_bash = self.executable("/bin/bash");
        self.has_runscript = self.executable("/.singularity.d/runscript");
        self.has_startscript = self.executable("/.singularity.d/startscript");
        self.has_env_scripts =
            self.list("/.singularity.d/env").is_ok_and(|names| names.iter().any(|n| n.ends_with(".sh")));
        self.has_libs = self.list("/.singularity.d/libs").is_ok_and(|names| !names.is_empty());
        self.labels = self
            .read_small(format!("{}/labels.json", singularity::META), singularity::MAX_LABELS)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        if !self.has_sh {
            let config = self.read_small(singularity::OCI_CONFIG, singularity::MAX_LABELS).ok();
            self.oci = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        }
    }

    fn executable(&self, path: &str) -> bool {
        self.lookup(path).is_some_and(|info| info.is_executable())
    }

    /// The directory's descriptor, open for reading.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// What is at `path` inside, links followed inside. `None` when there is nothing or it cannot be reached.
    #[must_use]
    pub fn lookup(&self, path: impl AsRef<Path>) -> Option<FileInfo> {
        let fd = inside::open_in_root(self.dir(), path.as_ref(), OFlag::O_PATH).ok()?;
        let stat = fstat(&fd).ok()?;
        let kind = match inside::file_type(&stat) {
            SFlag::S_IFREG => FileKind::Regular,
            SFlag::S_IFDIR => FileKind::Directory,
            _ => FileKind::Special,
        };
        Some(FileInfo { kind, mode: stat.st_mode & 0o7777, size: u64::try_from(stat.st_size).unwrap_or(0) })
    }

    /// The content of a regular file inside, `limit` bytes at most.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` for anything but a regular file, `FileTooLarge` above the limit.
    pub fn read_small(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
        inside::read_regular(self.dir(), path.as_ref(), limit)
    }

    /// What a program inside needs to be started: its loader, or what a script's first line names. `None` where it names
    /// nothing, or is no program for such a machine.
    #[must_use]
    pub fn interpreter_of(&self, program: impl AsRef<Path>) -> Option<PathBuf> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = inside::open_in_root(self.dir(), program.as_ref(), flags).ok()?;
        let mut head = Vec::new();
        // Its name stands close behind the headers.
        io::Read::read_to_end(&mut io::Read::take(std::fs::File::from(file), 1 << 16), &mut head).ok()?;
        if let Some(script) = head.strip_prefix(b"#!") {
            let line = script.split(|b| *b == b'\n').next()?;
            let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            return words.next().map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)));
        }
        let elf = FileHeader64::<Endianness>::parse(head.as_slice()).ok()?;
        let endian = elf.endian().ok()?;
        let segments = elf.program_headers(endian, head.as_slice()).ok()?;
        let name = segments.iter().find_map(|s| s.interpreter(endian, head.as_slice()).ok().flatten())?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(name)))
    }

    /// The names in a directory inside, sorted, without `.` and `..`; names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn list(&self, path: impl AsRef<Path>) -> io::Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let fd = inside::open_in_root(self.dir(), path.as_ref(), flags)?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(fd)?.iter() {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn refuse_addresses(arg: &str) -> Result<(), ImageError> {
    if arg.is_empty() {
        return Err(ImageError::Empty);
    }
    if arg.starts_with("instance://") {
        return Err(ImageError::Instance { given: arg.to_owned() });
    }
    match oci::reference::Uri::parse(arg) {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => {
            let scheme = arg.split(':').next().unwrap_or_default().to_owned();
            Err(ImageError::Uri { given: arg.to_owned(), scheme })
        }
    }
}

fn at(path: &Path, source: io::Error) -> ImageError {
    let path = path.to_owned();
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => ImageError::Missing { path },
        Some(Errno::EACCES | Errno::EPERM) => ImageError::Access { path, source },
        _ => ImageError::Open { path, source },
    }
}

#[cfg(test)]
pub(crate) mod tests;
