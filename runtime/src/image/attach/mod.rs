//! Brings the file system inside a file into view: by the kernel, through FUSE, or unpacked into a directory,
//! whichever is allowed and fastest. What is mounted is attached nowhere: it is held by descriptor, looked
//! into by it, and attached in the container's own mount namespace when that is made. So nothing is ever seen
//! on the host, and nothing is left when the last holder is gone.

mod fuse;
mod kept;
mod kernel;
mod unpack;

pub use fuse::Server;
pub use kept::{InUse, Kept, hold};
pub use unpack::{unpack, unpack_into};

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::tools::Watched;
use crate::error::{Error, Result};

/// How the content of an image file is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The kernel mounts it.
    Kernel,
    /// A process of the user's serves it to the kernel.
    Fuse,
    /// It was unpacked into a directory.
    Unpacked,
}

impl Way {
    /// From the word of a variable.
    ///
    /// # Errors
    /// There is no such way.
    pub fn from_word(word: &str) -> Result<Option<Self>> {
        match word {
            "" | "auto" => Ok(None),
            "kernel" => Ok(Some(Self::Kernel)),
            "fuse" => Ok(Some(Self::Fuse)),
            "unpack" => Ok(Some(Self::Unpacked)),
            _ => Err(Error::usage(format!(
                "STASIS_IMAGE_MOUNT is {word:?}, and it means auto, kernel, fuse or unpack"
            ))),
        }
    }
}

/// A file system inside a file, as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// The file, absolute and resolved.
    pub path: PathBuf,
    /// Where the file system begins.
    pub offset: u64,
    /// Its length.
    pub size: u64,
    /// How it is reached.
    pub way: Way,
}

/// A mounted file system that is attached nowhere, or in a container only. It lives as long as somebody holds
/// it, and so does the process that serves it.
///
/// Dropping it waits a little for that process, which ends with the last holder.
#[derive(Debug)]
pub struct Held {
    /// Always there until the drop.
    mount: Option<OwnedFd>,
    server: Option<Server>,
}

impl Held {
    fn new(mount: OwnedFd, server: Option<Server>) -> Self {
        Self { mount: Some(mount), server }
    }

    /// The mount, and the process that serves it where there is one.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let server = self.server.as_ref().map(Server::descriptor);
        self.mount().into_iter().chain(server).collect()
    }

    /// The mount.
    #[must_use]
    pub fn mount(&self) -> Option<BorrowedFd<'_>> {
        self.mount.as_ref().map(AsFd::as_fd)
    }

    /// Whether a process of ours serves it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.server.is_some()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.mount = None;
        if let Some(server) = self.server.take() {
            server.wait();
        }
    }
}

/// What is to be brought into view, and where it may be unpacked.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The file, open for reading.
    pub file: &'a File,
    /// The file system in it. Its way is what is found out here.
    pub spec: FileSpec,
    /// The one way to take; `None`: the fastest that is allowed.
    pub way: Option<Way>,
    /// Below it is the cache.
    pub data_root: &'a std::path::Path,
}

/// The content in view.
#[derive(Debug)]
pub struct Attached {
    /// With the way taken.
    pub spec: FileSpec,
    /// The mount, or the directory into which it was unpacked.
    pub content: Content,
    /// Why other ways were not taken, and which one was.
    pub notes: Vec<String>,
}

/// Where to look.
#[derive(Debug)]
pub enum Content {
    /// A mount.
    Mounted(Held),
    /// A directory of the cache.
    Directory(InUse),
}

/// Brings it into view.
///
/// # Errors
/// Why no way could be taken.
pub fn attach(mut wanted: Wanted<'_>, watched: Watched<'_>) -> Result<Attached> {
    let shown = wanted.spec.path.display().to_string();
    if wanted.way.is_none()
        && let Some(directory) = unpack::known(&wanted)
    {
        wanted.spec.way = Way::Unpacked;
        let content = Content::Directory(directory);
        let notes = vec![format!("image \"{shown}\" is {}", told(Way::Unpacked, &content))];
        return Ok(Attached { spec: wanted.spec, content, notes });
    }
    let ways = match wanted.way {
        Some(way) => vec![way],
        None if nix::unistd::geteuid().is_root() => vec![Way::Kernel, Way::Fuse, Way::Unpacked],
        None => vec![Way::Fuse, Way::Unpacked],
    };
    let mut notes = Vec::new();
    let mut error = Error::new(format!("the content of image \"{shown}\" cannot be reached"));
    for way in ways {
        wanted.spec.way = way;
        let found = match way {
            Way::Kernel => kernel::mount(&wanted).map(Content::Mounted),
            Way::Fuse => fuse::mount(&wanted).map(Content::Mounted),
            Way::Unpacked => unpack(&wanted, watched).map(Content::Directory),
        };
        match found {
            Ok(content) => {
                notes.push(format!("image \"{shown}\" is {}", told(way, &content)));
                return Ok(Attached { spec: wanted.spec, content, notes });
            }
            Err(why) if wanted.way.is_some() || way == Way::Unpacked => return Err(error.because_of(&why)),
            Err(why) => {
                notes.push(format!("image \"{shown}\" is not {}: {why}", doing(way)));
                error = error.because(why);
            }
        }
    }
    Err(error)
}

fn doing(way: Way) -> &'static str {
    match way {
        Way::Kernel => "mounted by the kernel",
        Way::Fuse => "mounted through FUSE",
        Way::Unpacked => "unpacked",
    }
}

fn told(way: Way, content: &Content) -> String {
    match content {
        Content::Directory(used) => format!("unpacked in {}", used.directory.display()),
        Content::Mounted(_) => doing(way).to_owned(),
    }
}
