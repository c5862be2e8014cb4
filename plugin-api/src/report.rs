//! What a backend answers.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whether an engine can be used on this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// Usable here, by this user.
    pub usable: bool,
    /// Why not, when not.
    pub reason: Option<String>,
    /// What to do about it.
    pub help: Option<String>,
    /// The engine's version, semver; absent when none was found.
    pub engine_version: Option<String>,
    /// The range of versions that the backend accepts.
    pub accepts: String,
    /// Everything that was looked for.
    pub files: Vec<ProbedFile>,
    /// Everything that the engine can or cannot do here. One with the id of a
    /// [`capability`](crate::capability) counts instead of what the descriptor says of it.
    pub features: Vec<Feature>,
    /// Remarks that are no obstacle.
    pub warnings: Vec<String>,
}

/// A file of the engine that was looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbedFile {
    /// Its name.
    pub name: String,
    /// Without it the engine cannot be used.
    pub required: bool,
    /// Where it was found.
    pub found: Option<String>,
    /// Where it was sought, when it was not found; or why what was found cannot be used.
    pub note: Option<String>,
}

/// One thing that the engine can or cannot do here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Yes or no.
    pub available: bool,
    /// Why.
    pub reason: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know.
    #[default]
    Note,
    /// A restart would succeed and the object would be dead. Refused unless accepted by kind.
    Loss,
    /// Cannot be saved or restarted. Refused.
    Fatal,
}

/// Something that `examine` found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// A word for `--accept-loss`: `timerfd`.
    pub kind: String,
    /// The object: `descriptor 5 of python3 (pid 12): anon_inode:[timerfd]`.
    pub object: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub help: String,
}

impl Finding {
    /// Something that cannot be saved or restarted.
    #[must_use]
    pub fn fatal(kind: &str, object: impl Into<String>, why: &str, help: &str) -> Self {
        Self { severity: Severity::Fatal, ..Self::loss(kind, object, why, help) }
    }

    /// Something that would be dead after a restart.
    #[must_use]
    pub fn loss(kind: &str, object: impl Into<String>, why: &str, help: &str) -> Self {
        Self {
            severity: Severity::Loss,
            kind: kind.to_owned(),
            object: object.into(),
            why: why.to_owned(),
            help: help.to_owned(),
        }
    }
}

/// The application runs and can be saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadyReport {
    /// How many processes the engine has under it.
    pub processes: u32,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// What the engine says about a running application.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// It could be saved now.
    pub can_capture: bool,
    /// How many processes the engine has under it.
    pub processes: u32,
    /// In words.
    pub summary: String,
}

/// A capture is complete in the staging directory and was checked by the engine's own means.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureReport {
    /// The version of the engine that wrote it.
    pub engine_version: String,
    /// The files that make the generation, relative to the staging directory.
    pub files: Vec<String>,
    /// Files of the generation [`CaptureRequest::previous`] that belong to this one as well, as they are and by the same
    /// names. Each generation stays whole by itself: the others may be removed.
    ///
    /// [`CaptureRequest::previous`]: crate::request::CaptureRequest::previous
    pub inherited: Vec<String>,
    /// The processes saved (pids inside).
    pub processes: Vec<SavedProcess>,
    /// How long the application stood still, in microseconds, where the engine knows.
    pub pause_us: Option<u64>,
    /// The backend's own facts, handed back at a restart.
    pub facts: BTreeMap<String, serde_json::Value>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// What a generation is kept in now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SquashReport {
    /// All files that make the generation, relative to the staging directory.
    pub files: Vec<String>,
    /// The version of the engine that wrote them; empty where it is the one that wrote the generation.
    pub engine_version: String,
}

/// A process in a capture.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedProcess {
    /// Inside.
    pub pid: i32,
    /// Its name.
    pub name: String,
}

/// The engine let go of the application.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopReport {
    /// Remarks for the user.
    pub notes: Vec<String>,
}
