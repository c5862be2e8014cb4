//! What can be wrong with the configuration, and how it is shown: a block that names file, line and column, with
//! the line itself and what would have been allowed. No reading of files here.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::registry::trust::TrustError;

/// A place in a configuration file, kept with each value so that a later check can still point at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// How many characters to underline, at least 1.
    pub width: usize,
    /// The line, made safe to print.
    pub text: String,
}

/// Longer lines are cut in messages: a configuration can be any file that a user named.
const SHOWN_LINE: usize = 160;

impl Position {
    /// The place of a byte range of `text`.
    pub(crate) fn of(text: &str, span: std::ops::Range<usize>) -> Self {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let rest = text.get(line_start..).unwrap_or_default();
        let line_text = rest.lines().next().unwrap_or_default();
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        let line_end = line_start + line_text.len();
        let marked = text.get(start..span.end.min(line_end).max(start)).unwrap_or_default();
        let shown: String = line_text
            .chars()
            .take(SHOWN_LINE)
            .map(|c| if c == '\t' { ' ' } else { c })
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        Self {
            line: before.matches('\n').count() + 1,
            column,
            width: marked.chars().count().clamp(1, SHOWN_LINE),
            text: shown,
        }
    }
}

/// One mistake in one file. Its `Display` is the whole block for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, or the words for the built-in configuration.
    pub file: PathBuf,
    /// Where in it.
    pub at: Option<Position>,
    /// What is wrong, without a full stop.
    pub what: String,
    /// What would be right.
    pub allowed: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(at) = &self.at {
            let number = at.line.to_string();
            let gap = " ".repeat(number.len());
            writeln!(f, ":{}:{}: {}", at.line, at.column, self.what)?;
            writeln!(f, " {gap} |")?;
            writeln!(f, " {number} | {}", at.text)?;
            write!(f, " {gap} |")?;
            if at.column <= SHOWN_LINE {
                write!(f, " {}{}", " ".repeat(at.column - 1), "^".repeat(at.width))?;
            }
        } else {
            write!(f, ": {}", self.what)?;
        }
        match &self.allowed {
            Some(allowed) => write!(f, "\n   allowed: {allowed}"),
            None => Ok(()),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text of a file is wrong.
    #[error("{0}")]
    Invalid(Box<Diagnostic>),
    /// A file was named that is not there.
    #[error("{named_by} names {path}, which does not exist", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// `--config` or `STASIS_CONFIG`.
        named_by: &'static str,
    },
    /// A file or directory could not be read.
    #[error("cannot read the configuration {path}: {why}", path = path.display(), why = crate::config::error::in_words(source))]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file larger than any configuration.
    #[error("{path} is larger than {limit} bytes, it is no plugins.toml", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// In bytes.
        limit: u64,
    },
    /// A file that somebody else could have written.
    #[error("the configuration may not be used: {0}")]
    Untrusted(#[source] TrustError),
    /// The administrator forbids other configurations.
    #[error("{named_by} is refused: {file} says locked = true", file = file.display())]
    Locked {
        /// `--config` or `STASIS_CONFIG`.
        named_by: &'static str,
        /// The administrator's file.
        file: PathBuf,
    },
    /// Root takes no configuration from the environment.
    #[error("STASIS_CONFIG is set to {value:?}: as root, no configuration is taken from the environment")]
    EnvironmentAsRoot {
        /// What it is set to.
        value: String,
    },
}

impl ConfigError {
    /// What the user or administrator can do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Invalid(_) => None,
            Self::Missing { named_by, .. } => Some(format!("correct the path given with {named_by}")),
            Self::Read { path, .. } => Some(format!("see that this user may read {}", path.display())),
            Self::TooLarge { .. } => None,
            Self::Untrusted(error) => error.help(),
            Self::Locked { file, .. } => {
                Some(format!("use what {} offers, or ask its administrator", file.display()))
            }
            Self::EnvironmentAsRoot { .. } => {
                Some("unset STASIS_CONFIG, or give a file owned by root with --config".to_owned())
            }
        }
    }

    pub(crate) fn invalid(file: &Path, at: Option<Position>, what: String, allowed: Option<String>) -> Self {
        Self::Invalid(Box::new(Diagnostic { file: file.to_owned(), at, what, allowed }))
    }
}

/// A kernel error in words that say what it means for a path.
pub(crate) fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "it does not exist".to_owned(),
        Some(libc::EACCES | libc::EPERM) => "this user is not permitted to".to_owned(),
        Some(libc::ENOTDIR) => "a part of the path is not a directory".to_owned(),
        Some(libc::ENOSPC) => "the file system is full".to_owned(),
        Some(libc::EDQUOT) => "the disk quota is used up".to_owned(),
        Some(libc::EROFS) => "the file system is read-only".to_owned(),
        Some(libc::ELOOP) => "there are too many symbolic links on the way".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_characters_and_keeps_to_the_line() {
        let text = "a = 1\nöö = \"x\ty\"\n";
        let at = Position::of(text, 13..40);
        assert_eq!((at.line, at.column, at.text.as_str()), (2, 6, "öö = \"x y\""));
        assert_eq!(at.width, 5);
        // A span behind the end or inside a character neither panics nor points outside.
        assert_eq!(Position::of(text, 900..901).line, 3);
        assert_eq!(Position::of(text, 7..8).column, 1);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let at = Position::of("x = \u{1b}[31m", 0..1);
        assert_eq!(at.text, "x = ?[31m");
    }
}
