//! What commands and monitors say to each other over the instance's socket.

use crate::error::Error;
use crate::launch::protocol::Ending;
use crate::sys::terminal::Size;
use serde::{Deserialize, Serialize};
use stasis_plugin_api::report::{Finding, StatusReport};
use std::path::PathBuf;

/// From a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Save a generation.
    Capture {
        /// End the application as soon as the generation is safe.
        stop: bool,
        /// Kinds of loss that the user accepts.
        accept_loss: Vec<String>,
    },
    /// End the application.
    Stop {
        /// The first signal.
        signal: i32,
        /// Killed after this.
        timeout_ms: u64,
    },
    /// Run a command beside the application. Three descriptors come along unless `size` is given.
    Exec {
        /// The command.
        argv: Vec<String>,
        /// Its environment.
        env: Vec<(String, String)>,
        /// Its working directory.
        cwd: PathBuf,
        /// Make a terminal of this size.
        size: Option<Size>,
    },
    /// Send a signal to the command started on this connection.
    Signal(i32),
    /// What the engine says, and what stands against a capture.
    Examine,
}

/// From a monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Something for the user to know.
    Note(String),
    /// How far a long step is.
    Progress {
        /// So far.
        done: u64,
        /// Of so many; 0 means unknown.
        total: u64,
        /// The step.
        doing: String,
    },
    /// The container stands and can be saved.
    Started(Started),
    /// The generation is safe.
    Captured(Captured),
    /// The container is gone.
    Stopped {
        /// How the application ended.
        ending: Ending,
        /// It did not heed the signal in time.
        killed: bool,
    },
    /// The command runs. With a terminal its master side comes along.
    ExecStarted,
    /// The command ended.
    ExecEnded(Ending),
    /// Answer to `Examine`.
    Examined {
        /// What the engine says.
        status: Option<StatusReport>,
        /// What was found.
        findings: Vec<Finding>,
    },
    /// It failed.
    Failed(Error),
}

/// The container stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Started {
    /// Init's pid as seen outside.
    pub pid: i32,
    /// The checkpoint, when there is one.
    pub checkpoint: Option<String>,
    /// The generation that was brought back.
    pub restarted: Option<RestartedFrom>,
}

/// The generation that was brought back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestartedFrom {
    /// Its number.
    pub generation: u64,
    /// When it was saved, RFC 3339.
    pub created: String,
    /// The image it was started from.
    pub image: String,
}

/// A generation that is safe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Captured {
    /// The checkpoint.
    pub checkpoint: String,
    /// Its number.
    pub generation: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Of which were not shared with an earlier one.
    #[serde(default)]
    pub new_bytes: u64,
    /// How many processes it holds.
    pub processes: usize,
    /// How long the application stood still, where the engine tells.
    pub pause_us: Option<u64>,
    /// From the request to the commit.
    pub total_ms: u64,
    /// Of which the engine.
    pub engine_ms: u64,
    /// Of which hashing, beside making durable.
    pub hash_ms: u64,
    /// Of which making durable.
    pub sync_ms: u64,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// The application was ended as asked.
    pub stopped: bool,
}
