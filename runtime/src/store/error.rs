//! What can go wrong with the store, each with the object it happened to.
//!
//! Kernel errors are put into words here and nowhere else in the store. Nothing is logged.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::lock::Holder;
use super::manifest::ImageIdentity;
use crate::name::{BackendName, CheckpointName};

/// `Display` is one line: what failed, on which object, why. [`StoreError::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} {}: {}", path.display(), why(source))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not safe to use: {problem}", path.display())]
    Untrusted { path: PathBuf, problem: String },
    #[error("Checkpoint \"{0}\" already exists.")]
    AlreadyExists(CheckpointName),
    #[error("checkpoint \"{name}\" does not exist{}", listing("there are", existing))]
    NotFound { name: CheckpointName, existing: Vec<CheckpointName> },
    #[error("checkpoint \"{name}\" is in use by {holder}")]
    InUse { name: CheckpointName, holder: Box<Holder> },
    #[error("checkpoint \"{name}\" was taken by {holder}, which never gave it back")]
    TakenElsewhere { name: CheckpointName, holder: Box<Holder> },
    #[error("{} cannot be locked: {}", path.display(), why(source))]
    NoLocks { path: PathBuf, source: io::Error },
    #[error("the file system of {} cannot exchange two directories in one step", .0.display())]
    NoExchange(PathBuf),
    #[error(
        "{} holds its new files, but that may not last: {source}; what it held before is kept as {kept}",
        path.display()
    )]
    Exchanged { path: PathBuf, kept: String, source: Box<StoreError> },
    #[error("checkpoint \"{name}\" belongs to backend \"{bound}\", not to \"{asked}\"")]
    BackendMismatch { name: CheckpointName, bound: BackendName, asked: BackendName },
    #[error("checkpoint \"{name}\" was made from image {bound}, which is not {asked}")]
    ImageMismatch { name: CheckpointName, bound: Box<ImageIdentity>, asked: Box<ImageIdentity> },
    #[error("{} is damaged: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("{} was made by a newer stasis: it has format {format}, this one reads up to {known}", path.display())]
    Newer { path: PathBuf, format: u64, known: u64 },
    #[error("checkpoint \"{0}\" has no saved state yet")]
    NoGeneration(CheckpointName),
    #[error("checkpoint \"{name}\" has no generation {asked}{}", listing("there are", existing))]
    NoSuchGeneration { name: CheckpointName, asked: u64, existing: Vec<u64> },
    #[error("{} cannot be saved: {problem}", path.display())]
    Unfit { path: PathBuf, problem: String },
    #[error("generation {generation} of checkpoint \"{name}\" was not saved: {source}")]
    Commit { name: CheckpointName, generation: u64, source: Box<StoreError> },
    #[error("the lock of checkpoint \"{lock_of}\" does not cover checkpoint \"{name}\"")]
    WrongLock { name: CheckpointName, lock_of: CheckpointName },
}

/// For who says himself what was done with which file.
impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { source, .. } => source,
            other => Self::other(other.to_string()),
        }
    }
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), problem: problem.into() }
    }

    /// What the user can do about it, where there is something to do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Io { path, source, .. } => io_help(path, source),
            Self::Untrusted { path, .. } => Some(format!(
                "the store takes only directories of your own that nobody else can write to; look at \
                 `ls -ld {}`, or choose another store",
                path.display()
            )),
            Self::AlreadyExists(name) => {
                Some(format!("choose another name, or delete it: stasis checkpoint delete {name}"))
            }
            Self::NotFound { name, .. } => Some(format!("create it: stasis checkpoint create {name}")),
            Self::InUse { holder, .. } => {
                Some(format!("stop it first: stasis instance stop {}", holder.instance.escape_debug()))
            }
            Self::TakenElsewhere { holder, .. } => Some(format!(
                "if nothing runs on host {:?} any more, repeat with --force; otherwise stop it there",
                holder.host
            )),
            Self::NoLocks { .. } => {
                Some("put the store on a file system with working locks, such as a local one".to_owned())
            }
            Self::NoExchange(_) => Some(
                "nothing was changed; a store on a local file system such as ext4, XFS or Btrfs can do it: copy it \
                 (cp -a) and set STASIS_DATA_DIR"
                    .to_owned(),
            ),
            Self::Exchanged { path, kept, .. } => Some(format!(
                "look at the disk (dmesg) and compare what is there (stasis checkpoint verify) before anything is \
                 saved to it again, which removes {}",
                path.with_file_name(kept).display()
            )),
            Self::BackendMismatch { bound, .. } => {
                Some(format!("use --backend {bound}, or another checkpoint name"))
            }
            Self::ImageMismatch { .. } => {
                Some("give the image it was made from, or use another checkpoint name".to_owned())
            }
            Self::Damaged { .. } => {
                Some("choose an older generation, or delete what is damaged; nothing was changed".to_owned())
            }
            Self::Newer { .. } => Some("use the stasis that made it, or a newer one".to_owned()),
            Self::NoGeneration(name) => {
                Some(format!("start it with --checkpoint {name}, then save it: stasis checkpoint instance"))
            }
            Self::NoSuchGeneration { name, .. } => {
                Some(format!("leave the number out to get the newest: {name}"))
            }
            Self::Commit { source, .. } => source.help(),
            Self::Unfit { .. } | Self::WrongLock { .. } => None,
        }
    }
}

fn io_help(path: &Path, source: &io::Error) -> Option<String> {
    let shown = path.display();
    Some(match errno(source) {
        Errno::ENOSPC => format!(
            "make room on the file system of {shown} (df), or remove old generations: stasis checkpoint prune"
        ),
        Errno::EDQUOT => {
            "remove old generations (stasis checkpoint prune), or use a store elsewhere".to_owned()
        }
        Errno::EROFS => "use a store on a file system that can be written to".to_owned(),
        Errno::EACCES | Errno::EPERM => format!("check owner and mode: ls -ld {shown}"),
        Errno::EMFILE | Errno::ENFILE => "raise the limit of open files (ulimit -n)".to_owned(),
        _ => return None,
    })
}

pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// The words for a kernel error.
fn why(error: &io::Error) -> String {
    let words = match errno(error) {
        Errno::EACCES => "permission denied",
        Errno::EPERM => "not permitted",
        Errno::ENOSPC => "no space is left on the file system",
        Errno::EDQUOT => "the disk quota is used up",
        Errno::EROFS => "the file system is read-only",
        Errno::ENOENT => "it does not exist",
        Errno::ELOOP => "it is a symbolic link, and links are not followed",
        Errno::EFBIG => "the file would be larger than allowed",
        Errno::EIO => "the disk reports an input/output error",
        Errno::ESTALE => "the file server no longer knows it (stale handle)",
        Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS => "its file system has no locks that work",
        Errno::UnknownErrno => return error.to_string(),
        other => other.desc(),
    };
    words.to_owned()
}

/// `" (there are: a, b)"`, or nothing when there is nothing or too much to say.
fn listing<T: std::fmt::Display>(lead: &str, items: &[T]) -> String {
    const FEW: usize = 12;
    if items.is_empty() {
        return String::new();
    }
    // The newest are at the end, and they are what is asked for most.
    let shown: Vec<String> = items.iter().skip(items.len().saturating_sub(FEW)).map(T::to_string).collect();
    let more = if items.len() > FEW { format!("{} in all, last ", items.len()) } else { String::new() };
    format!(" ({lead}: {more}{})", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_errors_become_words() {
        let message = |code: Errno| StoreError::io("write", Path::new("/s/x"), code);
        insta::assert_snapshot!(message(Errno::ENOSPC), @"cannot write /s/x: no space is left on the file system");
        insta::assert_snapshot!(message(Errno::EDQUOT), @"cannot write /s/x: the disk quota is used up");
        insta::assert_snapshot!(message(Errno::EROFS), @"cannot write /s/x: the file system is read-only");
        insta::assert_snapshot!(message(Errno::EACCES), @"cannot write /s/x: permission denied");
        insta::assert_snapshot!(message(Errno::EXDEV), @"cannot write /s/x: Cross-device link");
        insta::assert_snapshot!(message(Errno::ENOSPC).help().unwrap(), @"make room on the file system of /s/x (df), or remove old generations: stasis checkpoint prune");
        let locks = StoreError::NoLocks { path: "/nfs/x".into(), source: Errno::ENOLCK.into() };
        insta::assert_snapshot!(locks, @"/nfs/x cannot be locked: its file system has no locks that work");
    }

    #[test]
    fn long_listings_are_cut() {
        insta::assert_snapshot!(listing("there are", &[1, 2, 3]), @" (there are: 1, 2, 3)");
        insta::assert_snapshot!(listing("there are", &(1..=20).collect::<Vec<_>>()), @" (there are: 20 in all, last 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)");
        assert_eq!(listing::<u64>("there are", &[]), "");
    }
}
