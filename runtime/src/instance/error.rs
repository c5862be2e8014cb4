//! What can go wrong with the records of instances, each with the object it happened to.
//!
//! Kernel errors are put into words here. Nothing is logged.

use crate::name::InstanceName;
use nix::errno::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// `Display` is one line: what failed, on which object, why. [`InstanceError::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("cannot {doing} {}: {}", path.display(), words(source))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not safe to use: {problem}", path.display())]
    Untrusted { path: PathBuf, problem: String },
    #[error("instance \"{name}\" is running already{}", holder(*pid, since))]
    Running { name: InstanceName, pid: i32, since: String },
    #[error("no instance found with name {}{}", shown(asked), listing(running))]
    NotFound { asked: String, running: Vec<InstanceName> },
    #[error("instance \"{name}\" is on host {host}")]
    Elsewhere { name: InstanceName, host: String },
    #[error("{} is damaged: {problem}", path.display())]
    Damaged { name: InstanceName, path: PathBuf, problem: String },
    #[error("{} cannot be locked: {}", path.display(), words(source))]
    NoLocks { path: PathBuf, source: io::Error },
    #[error("{} holds {}, which stasis did not make", path.display(), shown(entry))]
    Foreign { path: PathBuf, entry: String },
    #[error("the descriptor given to the monitor is not the lock of instance \"{name}\"")]
    WrongLock { name: InstanceName },
}

impl InstanceError {
    pub(super) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_owned(), source: source.into() }
    }

    /// What the user can do about it, where there is something to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Io { path, source, .. } => return io_help(path, source),
            Self::Untrusted { path, .. } => format!(
                "records of instances are kept only in directories of your own that nobody else can write to; \
                 look at `ls -ld {}`",
                path.display()
            ),
            Self::Running { name, .. } => {
                format!("choose another name, or stop it first: stasis instance stop {name}")
            }
            Self::NotFound { .. } => "see what there is: stasis instance list".to_owned(),
            Self::Elsewhere { host, .. } => format!("run the command on host {host}"),
            Self::Damaged { name, .. } => {
                format!("when it does not run any more, starting an instance {name} replaces the record")
            }
            Self::NoLocks { .. } => {
                "put the data directory on a file system with working locks: set XDG_DATA_HOME".to_owned()
            }
            Self::Foreign { .. } => "move it away, then repeat".to_owned(),
            Self::WrongLock { .. } => return None,
        })
    }
}

fn io_help(path: &Path, source: &io::Error) -> Option<String> {
    let shown = path.display();
    Some(match errno(source) {
        Errno::ENOSPC => format!("make room on the file system of {shown} (df)"),
        Errno::EDQUOT => "remove files of yours, or set XDG_DATA_HOME to a place elsewhere".to_owned(),
        Errno::EROFS => "set XDG_DATA_HOME to a directory that can be written to".to_owned(),
        Errno::EACCES | Errno::EPERM => format!("check owner and mode: ls -ld {shown}"),
        Errno::EMFILE | Errno::ENFILE => "raise the limit of open files (ulimit -n)".to_owned(),
        _ => return None,
    })
}

pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// The words for a kernel error.
fn words(error: &io::Error) -> String {
    let words = match errno(error) {
        Errno::EACCES => "permission denied",
        Errno::EPERM => "not permitted",
        Errno::ENOSPC => "no space is left on the file system",
        Errno::EDQUOT => "the disk quota is used up",
        Errno::EROFS => "the file system is read-only",
        Errno::ENOENT => "it does not exist",
        Errno::ELOOP => "it is a symbolic link, and links are not followed",
        Errno::ENOTEMPTY => "it is not empty",
        Errno::ESTALE => "the file server no longer knows it (stale handle)",
        Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS => "its file system has no locks that work",
        Errno::UnknownErrno => return error.to_string(),
        other => other.desc(),
    };
    words.to_owned()
}

fn holder(pid: i32, since: &str) -> String {
    match (pid > 0, since.is_empty()) {
        (true, false) => format!(" (process {pid}, since {})", since.escape_debug()),
        (true, true) => format!(" (process {pid})"),
        _ => String::new(),
    }
}

/// Bounded and escaped, so that a message stays one line on any terminal.
fn shown(text: &str) -> String {
    const LONGEST: usize = 64;
    let head: String = text.chars().take(LONGEST).collect();
    let more = if head.len() < text.len() { "..." } else { "" };
    format!("\"{}\"{more}", head.escape_debug())
}

/// `" (running: a, b)"`.
fn listing(running: &[InstanceName]) -> String {
    const FEW: usize = 12;
    if running.is_empty() {
        return " (none is running)".to_owned();
    }
    let names: Vec<&str> = running.iter().take(FEW).map(InstanceName::as_str).collect();
    let more = running.len().saturating_sub(FEW);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(" (running: {}{more})", names.join(", "))
}
