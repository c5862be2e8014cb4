//! Images that are files: what kind one is by its content, which file system in it is the root, and whether
//! that can be run here.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::attach::{self, Attached, Content, FileSpec, Held, InUse, Wanted, Way};
use super::remark::{self, Remark};
use super::sif::{self, Sif};
use super::tools::Watched;
use super::{DIRECTORY, Image, ImageError, at, refuse_addresses, squashfs};
use crate::error::Result;

/// What opening a file needs to know.
pub struct Opening<'a> {
    /// Below it is the cache.
    pub data_root: PathBuf,
    /// The one way to take; `None`: the fastest that is allowed.
    pub way: Option<Way>,
    /// Also an image for another kind of machine: it is only looked into.
    pub foreign: bool,
    /// Told how far unpacking is.
    pub watched: Watched<'a>,
}

impl std::fmt::Debug for Opening<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening")
            .field("data_root", &self.data_root)
            .field("way", &self.way)
            .field("foreign", &self.foreign)
            .finish_non_exhaustive()
    }
}

/// An image that is a file.
#[derive(Debug)]
pub struct ImageFile {
    /// Where in which file its root file system is, and how it is reached.
    pub spec: FileSpec,
    /// The file.
    pub file: File,
    /// Its header, where it has one.
    pub sif: Option<Sif>,
    /// The mount, until it is taken.
    held: Option<Held>,
    /// The directory into which it was unpacked, kept in the cache while this lives.
    pub unpacked: Option<InUse>,
    /// How it was brought into view, for whoever wants to know.
    pub notes: Vec<String>,
    /// What its header says that everybody should know.
    pub remarks: Vec<Remark>,
}

impl Image {
    /// Opens the image that a user named, be it a directory or a file.
    ///
    /// # Errors
    /// As [`Self::open`]; also a damaged file, one that cannot be run here, or one that nothing can mount.
    pub fn open_with(arg: &str, opening: &Opening<'_>) -> Result<Self> {
        refuse_addresses(arg)?;
        let path = PathBuf::from(arg);
        let root = path.canonicalize().map_err(|source| at(&path, source))?;
        if root.is_dir() {
            return Ok(Self::open(arg)?);
        }
        let (file, sif) = open_file(&path, &root)?;
        let spec = runnable(&path, &root, &file, sif.as_ref(), opening.foreign)?;
        let wanted = Wanted { file: &file, spec, way: opening.way, data_root: &opening.data_root };
        let Attached { spec, content, notes } = attach::attach(wanted, opening.watched)?;
        let remarks = sif.as_ref().map(remark::of).unwrap_or_default();
        let dir = match &content {
            Content::Mounted(held) => held
                .mount()
                .map_or(Err(nix::errno::Errno::EBADF), |mount| openat(mount, ".", DIRECTORY, Mode::empty())),
            Content::Directory(used) => open(&used.directory, DIRECTORY, Mode::empty()),
        };
        let dir: OwnedFd = dir.map_err(|errno| at(&path, errno.into()))?;
        let (held, unpacked) = match content {
            Content::Mounted(held) => (Some(held), None),
            Content::Directory(used) => (None, Some(used)),
        };
        Ok(Self::of(arg, root, dir, Some(ImageFile { spec, file, sif, held, unpacked, notes, remarks }))?)
    }

    /// The root file system in a file, without bringing it into view; and what whoever uses it should know.
    ///
    /// # Errors
    /// The file is damaged or none that can be run here.
    pub fn look_at(arg: &str) -> Result<(File, FileSpec, Vec<Remark>)> {
        refuse_addresses(arg)?;
        let path = PathBuf::from(arg);
        let root = path.canonicalize().map_err(|source| at(&path, source))?;
        let (file, sif) = open_file(&path, &root)?;
        let spec = runnable(&path, &root, &file, sif.as_ref(), false)?;
        Ok((file, spec, sif.as_ref().map(remark::of).unwrap_or_default()))
    }

    /// The mount of an image in a file.
    #[must_use]
    pub fn mount(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref()?.held.as_ref()?.mount()
    }

    /// Takes the mount over: for the container.
    pub fn take_held(&mut self) -> Option<Held> {
        self.file.as_mut()?.held.take()
    }

    /// What keeps it in the cache, where it is one of those: for as long as the container runs.
    pub fn take_kept(&mut self) -> Option<File> {
        let unpacked = self.file.as_mut().and_then(|file| file.unpacked.take());
        unpacked.map(|used| used.lock).or_else(|| self.fetched.take().map(|fetched| fetched.lock))
    }

    /// Where its content is as a directory of the host: the image itself, or what it was unpacked into. For
    /// one that is mounted it is the file.
    #[must_use]
    pub fn directory(&self) -> &Path {
        let unpacked = self.file.as_ref().and_then(|file| file.unpacked.as_ref());
        unpacked.map_or(&self.root, |used| &used.directory)
    }
}

/// Opens a file and reads its header, where it has one.
///
/// # Errors
/// It cannot be read, is of another kind, or its header is damaged.
fn open_file(path: &Path, root: &Path) -> Result<(File, Option<Sif>), ImageError> {
    let other = |what| ImageError::NotADirectory { path: path.to_owned(), what };
    if !root.is_file() {
        return Err(other(NOT_REGULAR));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::from(open(root, flags, Mode::empty()).map_err(|errno| at(path, errno.into()))?);
    match kind_of_open(&file).map_err(|source| at(path, source))? {
        SIF => match sif::parse(&file) {
            Ok(sif) => Ok((file, Some(sif))),
            Err(source) => Err(ImageError::Sif { path: path.to_owned(), source }),
        },
        SQUASHFS => Ok((file, None)),
        what => Err(other(what)),
    }
}

/// A SIF file's header without a look at what it holds; `None` for anything but a SIF file.
///
/// # Errors
/// It is missing, cannot be read, or its header is damaged.
pub fn sif_of(arg: &str) -> Result<Option<(File, Sif)>, ImageError> {
    let path = PathBuf::from(arg);
    let root = path.canonicalize().map_err(|source| at(&path, source))?;
    if !root.is_file() || kind_of(&root) != SIF {
        return Ok(None);
    }
    let (file, sif) = open_file(&path, &root)?;
    Ok(sif.map(|sif| (file, sif)))
}

/// Why nothing of a SIF file can be run here; `foreign`: apart from what other machines could run.
///
/// # Errors
/// The reason, and what to do.
pub fn refuse(path: &Path, sif: &Sif, foreign: bool) -> Result<(), ImageError> {
    let not = |why: String, help| Err(ImageError::NotForUs { path: path.to_owned(), why, help });
    let Some((_, partition)) = sif.primary() else {
        return not(
            "it holds no root file system".to_owned(),
            "it may be data only: `singularity sif list` shows what it holds",
        );
    };
    let system = partition.file_system_name();
    if partition.is_encrypted() {
        return not(
            format!("its root file system is encrypted ({system})"),
            "build an image that is not encrypted; stasis cannot open encrypted ones",
        );
    }
    if partition.file_system != sif::SQUASHFS {
        return not(
            format!("its root file system is {system}, and only squashfs is known"),
            "build it again with a newer Apptainer, which makes squashfs",
        );
    }
    let arch = sif::arch_name(&partition.arch);
    if !foreign && !sif::runs_here(arch) {
        return not(
            format!("it was made for {arch}, and this machine is {}", sif::own_arch()),
            "take an image for this machine, or run it on one that it was made for",
        );
    }
    Ok(())
}

/// The root file system, if it can be run here.
fn runnable(
    path: &Path,
    root: &Path,
    file: &File,
    sif: Option<&Sif>,
    foreign: bool,
) -> Result<FileSpec, ImageError> {
    let whole = || Ok((0, file.metadata().map_err(|source| at(path, source))?.len()));
    let (offset, size) = match sif {
        None => whole()?,
        Some(sif) => {
            refuse(path, sif, foreign)?;
            sif.primary().map_or_else(whole, |(object, _)| Ok((object.offset, object.size)))?
        }
    };
    squashfs::parse(file, offset, size)
        .map_err(|source| ImageError::Squashfs { path: path.to_owned(), source })?;
    Ok(FileSpec { path: root.to_owned(), offset, size, way: Way::Unpacked })
}

const SIF: &str = "a SIF file";
const SQUASHFS: &str = "a squashfs file system";

/// What permissions or a file system's owner keep from whoever asks.
///
/// # Errors
/// It is there, or on the way to it is something, that may not be read.
pub fn may_read(path: &Path) -> Result<(), ImageError> {
    let found = match path.metadata() {
        Ok(meta) if meta.is_file() => File::open(path).and_then(|file| file.read_at(&mut [0], 0)).map(drop),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    match found.map_err(|source| at(path, source)) {
        Err(error @ ImageError::Access { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// Whether there is a file that says that it holds an image.
#[must_use]
pub fn is_image_file(path: &Path) -> bool {
    matches!(kind_of(path), SIF | SQUASHFS)
}

const NOT_REGULAR: &str = "not a regular file";
const UNREADABLE: &str = "a file that cannot be read";

/// In words, what a thing is that is not a directory. Only regular files are opened.
pub(super) fn kind_of(path: &Path) -> &'static str {
    if !path.is_file() {
        return NOT_REGULAR;
    }
    File::open(path).and_then(|file| kind_of_open(&file)).unwrap_or(UNREADABLE)
}

fn kind_of_open(file: &File) -> io::Result<&'static str> {
    let mut head = vec![0; 2048];
    let count = file.read_at(&mut head, 0)?;
    head.truncate(count);
    let has = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    // A SIF begins with the line that starts its interpreter; its magic comes after that.
    Ok(if sif::is_sif(&head) {
        SIF
    } else if has(0, squashfs::MAGIC) {
        SQUASHFS
    } else if has(1080, b"\x53\xef") {
        "an ext file system"
    } else if has(0, b"\x1f\x8b") || has(257, b"ustar") {
        "an archive"
    } else {
        "a file of another kind"
    })
}
