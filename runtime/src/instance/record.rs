//! `instance.json`: what a monitor tells about its container. Plain data and its reading; no files here.

use super::host::Host;
use crate::launch::protocol::Ending;
use crate::name::{BackendName, CheckpointName, InstanceName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::path::PathBuf;

/// The newest format that is read, and the one written.
const FORMAT: u64 = 1;

/// The content of `instance.json`. Fields that this version does not know are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The format of this file.
    pub format: u64,
    /// The instance.
    pub name: InstanceName,
    /// The host on which it was started.
    pub host: String,
    /// That host's kernel run.
    pub boot_id: String,
    /// Whose it is.
    pub uid: u32,
    /// The process that holds the lock. For people: whether it lives is told by the lock.
    #[serde(default)]
    pub monitor_pid: i32,
    /// In clock ticks since boot, as in its `stat`; 0 when unknown.
    #[serde(default)]
    pub monitor_start_time: u64,
    /// Pid 1 of the container, as the host sees it; 0 until there is one.
    #[serde(default)]
    pub init_pid: i32,
    /// The image as the user gave it, made absolute.
    #[serde(default)]
    pub image: String,
    /// The backend, when there is one.
    #[serde(default)]
    pub backend: Option<BackendName>,
    /// Where it is saved, when it can be.
    #[serde(default)]
    pub checkpoint: Option<CheckpointName>,
    /// The generation of `checkpoint` that it was brought back from.
    #[serde(default)]
    pub restarted_from: Option<u64>,
    /// RFC 3339, UTC.
    #[serde(default)]
    pub started: String,
    /// RFC 3339, UTC; `None` until it is over.
    #[serde(default)]
    pub ended: Option<String>,
    /// How far it is.
    pub state: State,
    /// The newest generation that was saved while it ran.
    #[serde(default)]
    pub last_generation: Option<u64>,
    /// The monitor's socket.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// Where it listens, as last seen.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// `start`, `run`, `exec`, `shell`, `test`.
    #[serde(default)]
    pub action: String,
    /// A command waits for its end in the foreground.
    #[serde(default)]
    pub foreground: bool,
    /// What a newer version wrote beside these.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A port on which a container listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// `tcp`, `tcp6`, `udp`, `udp6`.
    pub protocol: String,
    /// The local address.
    pub address: String,
    /// Its number.
    pub port: u16,
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum State {
    /// It was claimed; nothing is promised yet.
    Starting,
    /// The application runs.
    Running,
    /// It was told to end.
    Stopping,
    /// The application ended.
    Ended {
        /// With this code or by this signal.
        how: Ending,
    },
    /// The application ended because somebody asked for it. The record is kept for its logs alone.
    Stopped {
        /// With this code or by this signal.
        how: Ending,
    },
    /// It could not be started, or was lost by its engine.
    Failed {
        /// In a line.
        reason: String,
    },
}

impl State {
    /// Nothing of it runs any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Stopped { .. } | Self::Failed { .. })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Running => f.write_str("running"),
            Self::Stopping => f.write_str("stopping"),
            Self::Ended { how } => write!(f, "{how}"),
            Self::Stopped { .. } => f.write_str("stopped"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
        }
    }
}

impl Record {
    /// One that starts now, with this process as its monitor.
    #[must_use]
    pub fn new(name: &InstanceName, host: &Host) -> Self {
        Self {
            format: FORMAT,
            name: name.clone(),
            host: host.name.clone(),
            boot_id: host.boot_id.clone(),
            uid: nix::unistd::getuid().as_raw(),
            monitor_pid: 0,
            monitor_start_time: 0,
            init_pid: 0,
            image: String::new(),
            backend: None,
            checkpoint: None,
            restarted_from: None,
            started: now(),
            ended: None,
            state: State::Starting,
            last_generation: None,
            control: None,
            ports: Vec::new(),
            action: String::new(),
            foreground: false,
            other: Map::new(),
        }
    }

    /// Makes this process the monitor.
    pub(super) fn monitored_here(&mut self) {
        self.monitor_pid = nix::unistd::getpid().as_raw();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name in brackets may hold anything; the start time is the 20th field behind it.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        self.monitor_start_time = behind.split_whitespace().nth(19).and_then(|t| t.parse().ok()).unwrap_or(0);
    }

    /// Reads what was written for `name`. The error is a line about the content.
    pub(super) fn parse(bytes: &[u8], name: &InstanceName) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        if bytes.is_empty() {
            return Err("it is empty".to_owned());
        }
        let unreadable = |e: serde_json::Error| format!("it is not readable: {e}");
        // First: the rest of a newer format may look different.
        let Format { format } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format > FORMAT {
            return Err(format!("a newer stasis wrote it (format {format}, this one reads up to {FORMAT})"));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(unreadable)?;
        if record.name != *name {
            return Err(format!("it is the record of instance \"{}\"", record.name));
        }
        Ok(record)
    }
}

/// The time in RFC 3339, UTC, whole seconds.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
