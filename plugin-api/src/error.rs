//! How a backend says that something failed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of every call of a backend.
pub type Result<T> = std::result::Result<T, BackendError>;

/// A failure, told so that a user can act: what failed on which object, why, what to do.
///
/// `kind` is open text: the runtime treats a kind that it does not know as [`kind::FAILED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendError {
    /// One of [`kind`], or a word of the author's own.
    pub kind: String,
    /// What failed, with which object. No full stop.
    pub what: String,
    /// Why, from the outermost cause to the innermost.
    #[serde(default)]
    pub why: Vec<String>,
    /// What the user or the administrator can do.
    #[serde(default)]
    pub help: Option<String>,
    /// The last lines of the engine's own output, untranslated, when they say more.
    #[serde(default)]
    pub engine_output: Option<String>,
}

/// Kinds of failure that the runtime reacts to.
pub mod kind {
    /// The operation failed; the application is as before.
    pub const FAILED: &str = "failed";
    /// The engine is not installed, incomplete or of an unsupported version.
    pub const UNUSABLE: &str = "unusable";
    /// The image, the program or the instance cannot be saved by this engine.
    pub const UNSUPPORTED: &str = "unsupported";
    /// The application ended while the operation ran.
    pub const APPLICATION_ENDED: &str = "application-ended";
    /// The engine may have left the application standing still: it was not saved, and may never go on by itself.
    pub const STANDS_STILL: &str = "stands-still";
    /// Another capture is under way.
    pub const BUSY: &str = "busy";
    /// No room for what had to be written; the application is as before.
    pub const NO_SPACE: &str = "no-space";
    /// The deadline passed.
    pub const TIMED_OUT: &str = "timed-out";
    /// The saved state is damaged or incomplete.
    pub const DAMAGED: &str = "damaged";
    /// The request was cancelled.
    pub const CANCELLED: &str = "cancelled";
    /// The method is not implemented by this backend.
    pub const NOT_IMPLEMENTED: &str = "not-implemented";
    /// The backend's code panicked. Set by the adapter.
    pub const PANICKED: &str = "panicked";
    /// Both sides do not understand each other. Set by the adapter.
    pub const PROTOCOL: &str = "protocol";
}

impl BackendError {
    /// A failure of the given kind.
    #[must_use]
    pub fn new(kind: &str, what: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), what: what.into(), why: Vec::new(), help: None, engine_output: None }
    }

    /// A failure that left the application as it was.
    #[must_use]
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(kind::FAILED, what)
    }

    /// Adds a cause.
    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why.push(why.to_string());
        self
    }

    /// Adds the remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the engine's last words.
    #[must_use]
    pub fn engine_output(mut self, text: impl Into<String>) -> Self {
        let text = text.into();
        self.engine_output = if text.trim().is_empty() { None } else { Some(text) };
        self
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for why in &self.why {
            write!(f, ": {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for BackendError {}
