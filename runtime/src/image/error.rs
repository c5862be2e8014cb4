//! Why an image cannot be used, in one line each, and what to do about it.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::sif::SifError;
use super::squashfs::SquashfsError;

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An empty argument.
    #[error("no image was given: the argument is empty")]
    Empty,
    /// Nothing is there.
    #[error("image \"{}\" does not exist", path.display())]
    Missing { path: PathBuf },
    /// It is another kind of file.
    #[error("image \"{}\" is {what}, and images are SIF files, squashfs file systems and directories", path.display())]
    NotADirectory { path: PathBuf, what: &'static str },
    /// Its header contradicts itself or the file.
    #[error("image \"{}\" is a damaged SIF file", path.display())]
    Sif { path: PathBuf, source: SifError },
    /// What should be a file system is none.
    #[error("image \"{}\" is damaged", path.display())]
    Squashfs { path: PathBuf, source: SquashfsError },
    /// A sound SIF file of which nothing can be run here.
    #[error("image \"{}\" cannot be run: {why}", path.display())]
    NotForUs { path: PathBuf, why: String, help: &'static str },
    /// It is a directory of something else.
    #[error("directory \"{}\" is not an image: it has none of bin, usr, etc and .singularity.d", path.display())]
    NotAnImage { path: PathBuf },
    /// A place in the network or in a cache.
    #[error("image \"{given}\" is an address ({scheme}), and a file or a directory is needed here")]
    Uri { given: String, scheme: String },
    /// A running instance where an image is needed.
    #[error("\"{given}\" names a running instance, and an image is needed here")]
    Instance { given: String },
    /// Permissions.
    #[error("\"{}\" cannot be read: {}", path.display(), io_words(source))]
    Access { path: PathBuf, source: io::Error },
    /// Anything else that the kernel said.
    #[error("image \"{}\" cannot be opened: {}", path.display(), io_words(source))]
    Open { path: PathBuf, source: io::Error },
}

impl ImageError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Empty | Self::NotAnImage { .. } => {
                "give an image: a SIF file, or the directory into which one was unpacked".to_owned()
            }
            Self::Missing { path } if path.is_relative() => {
                "check the spelling; a relative path starts at the working directory".to_owned()
            }
            Self::Missing { .. } => "check the spelling".to_owned(),
            Self::NotADirectory { .. } => {
                "give an image, or unpack what it holds into a directory and give that".to_owned()
            }
            Self::Sif { .. } | Self::Squashfs { .. } => {
                "it was not copied to its end, or is none: fetch or build it again".to_owned()
            }
            Self::NotForUs { help, .. } => (*help).to_owned(),
            Self::Uri { given, .. } => {
                format!("make a file of it first with `stasis build IMAGE.sif {given}`, and give that")
            }
            Self::Instance { .. } => {
                "give an image, or use exec, run or shell to enter the instance".to_owned()
            }
            Self::Access { .. } if nix::unistd::geteuid().is_root() => {
                "its file system lets nobody in but the owner, not even root (a network file system with root squash, or FUSE): let the owner copy it to a local disk, or do this as the owner".to_owned()
            }
            Self::Access { .. } => {
                "the image's directory and everything above it need read and search permission for you"
                    .to_owned()
            }
            Self::Open { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE | Errno::ENFILE) => "raise the limit of open files (ulimit -n)".to_owned(),
                Some(Errno::ESTALE) => {
                    "the network file system lost the directory: mount it again".to_owned()
                }
                _ => return None,
            },
        })
    }
}

/// The kernel's answers that need other words than its own.
pub(crate) fn io_words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => "permission denied".to_owned(),
        Some(Errno::ENOENT) => "it does not exist".to_owned(),
        Some(Errno::ENOTDIR) => "a part of the path is not a directory".to_owned(),
        Some(Errno::ELOOP) => "too many symbolic links".to_owned(),
        Some(Errno::ENAMETOOLONG) => "the path is too long".to_owned(),
        Some(Errno::EMFILE | Errno::ENFILE) => "too many open files".to_owned(),
        Some(Errno::ESTALE) => "the network file system no longer knows it".to_owned(),
        Some(errno) => errno.desc().to_lowercase(),
        None => match error.kind() {
            io::ErrorKind::NotFound => "it does not exist".to_owned(),
            // The standard library's own has no error behind it.
            io::ErrorKind::InvalidData if error.get_ref().is_none() => "it is not text in UTF-8".to_owned(),
            io::ErrorKind::FileTooLarge => "it is too large".to_owned(),
            _ => error.to_string(),
        },
    }
}
