//! What the runtime lends to a backend during a call.

use crate::error::{BackendError, Result, kind};
use crate::plan::{Identity, SecludedCommand};
use crate::survey::Survey;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The services behind [`Host`]. The adapter implements them across the boundary; a test may
/// implement them with a table.
pub trait HostServices {
    /// A request with an open name; the answer is plain data.
    ///
    /// # Errors
    /// What the runtime answers instead; kind `not-implemented` where it does not know the name.
    fn request(&self, name: &str, payload: &Value) -> Result<Value>;
    /// Whether the caller has given up.
    fn cancelled(&self) -> bool;
    /// See [`Host::keep_fd`].
    ///
    /// # Errors
    /// As there.
    fn keep_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()>;
    /// See [`Host::kept_fd`].
    fn kept_fd(&self, name: &str) -> Option<OwnedFd>;
}

/// The facts of one call, made by the runtime.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallContext {
    /// The backend's options, defaults filled in.
    pub options: BTreeMap<String, Value>,
    /// What the backend itself stored in earlier calls for this instance or, at a restart, for the
    /// generation.
    pub state: EngineState,
    /// When the runtime will end this call: milliseconds since the epoch. 0 means never.
    pub deadline_ms: u64,
    /// The caller's effective uid on the host.
    pub euid: u32,
    /// The caller's `PATH`.
    pub search_path: String,
    /// A private directory on the host for this call; emptied afterwards.
    pub scratch: PathBuf,
    /// A private directory on the host that stays: what is costly to find out may be kept in it. It may
    /// not exist yet, and may be emptied between calls. Empty where there is none.
    pub cache: PathBuf,
    /// The backend's own library on the host, for one that shows itself inside. It was checked when it was
    /// loaded.
    pub library: PathBuf,
}

/// What a backend remembers between calls: names and texts.
pub type EngineState = BTreeMap<String, String>;

/// A command to be run inside the container by its init.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInside {
    /// The command, absolute inside.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// After this it is killed. 0 means the call's own deadline.
    pub timeout_ms: u64,
    /// As whom.
    pub identity: Identity,
    /// Descriptors that were given to [`Host::keep_fd`], by the number at which the command finds each.
    pub kept: BTreeMap<i32, String>,
    /// How it is started where a loader finds nothing of the image's. A runtime that does not know of this starts it by `argv`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secluded: Option<SecludedCommand>,
}

/// How a command inside ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunOutput {
    /// Its exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// At most 64 KiB, invalid UTF-8 replaced.
    pub stdout: String,
    /// At most 64 KiB, invalid UTF-8 replaced.
    pub stderr: String,
}

/// What was found in the container's own tmpfs mounts and written down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TmpfsSaved {
    /// How many files, directories and links. With 0 no file was written.
    pub entries: u64,
    /// How many bytes they hold.
    pub bytes: u64,
    /// A digest over names, sizes, times and inodes: two that are equal tell that nothing changed in between, for an
    /// engine that cannot hold everybody still meanwhile.
    pub fingerprint: String,
    /// How many will have another inode number after a restart than they have now.
    pub renumbered: u64,
}

impl TmpfsSaved {
    /// A remark for the user about files that are not quite what they were, where there are some.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let number = self.renumbered;
        (number > 0).then(|| {
            format!(
                "{number} file(s) in memory file systems get another inode number at a restart; a program that looks at \
                 it, as SQLite does, takes them for other files"
            )
        })
    }
}

/// What stands of the application, asked at any moment of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplicationState {
    /// It runs.
    pub running: bool,
    /// How it ended, when it has: `exit 3`, `signal 9`.
    pub ended: Option<String>,
}

/// What the runtime lends during one call. Valid for that call only.
pub struct Host<'a> {
    services: &'a dyn HostServices,
    context: CallContext,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("context", &self.context).finish_non_exhaustive()
    }
}

impl<'a> Host<'a> {
    /// Built by the adapter, and by tests.
    pub fn new(services: &'a dyn HostServices, context: CallContext) -> Self {
        Self { services, context }
    }

    /// The facts of this call.
    pub fn context(&self) -> &CallContext {
        &self.context
    }

    /// A text option, when set.
    pub fn option_str(&self, name: &str) -> Option<&str> {
        self.context.options.get(name)?.as_str()
    }

    /// A number option, when set.
    pub fn option_i64(&self, name: &str) -> Option<i64> {
        self.context.options.get(name)?.as_i64()
    }

    /// A boolean option, when set.
    pub fn option_bool(&self, name: &str) -> Option<bool> {
        self.context.options.get(name)?.as_bool()
    }

    /// A list option; empty when not set.
    pub fn option_list(&self, name: &str) -> Vec<String> {
        let items = self.context.options.get(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// What was remembered under a name.
    pub fn state(&self, name: &str) -> Option<&str> {
        self.context.state.get(name).map(String::as_str)
    }

    /// Remembers a text for later calls, also of other processes and at a restart.
    pub fn remember(&mut self, name: &str, value: impl Into<String>) {
        self.context.state.insert(name.to_owned(), value.into());
    }

    /// The time left until the runtime ends this call.
    pub fn time_left(&self) -> Duration {
        if self.context.deadline_ms == 0 {
            return Duration::from_secs(3600);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_millis(self.context.deadline_ms).saturating_sub(now)
    }

    /// Whether the caller has given up. Long work asks now and then.
    pub fn cancelled(&self) -> bool {
        self.services.cancelled()
    }

    /// Returns an error of kind `cancelled` or `timed-out` when it is time to stop.
    ///
    /// # Errors
    /// Exactly that.
    pub fn check(&self, doing: &str) -> Result<()> {
        if self.cancelled() {
            return Err(BackendError::new(kind::CANCELLED, format!("{doing}: cancelled")));
        }
        if self.time_left().is_zero() {
            return Err(BackendError::new(kind::TIMED_OUT, format!("{doing}: the time given was over")));
        }
        Ok(())
    }

    /// Tells how far a long operation is. `total` 0 means unknown.
    pub fn progress(&self, done: u64, total: u64, doing: &str) {
        let payload = serde_json::json!({ "done": done, "total": total, "doing": doing });
        // Progress is a courtesy: a runtime that does not take it is no reason to fail.
        let _ = self.services.request("progress", &payload);
    }

    /// Runs a command inside the container and waits for it.
    ///
    /// # Errors
    /// When it could not be started, or when no container stands during this call.
    pub fn run_inside(&self, command: &RunInside) -> Result<RunOutput> {
        self.typed("run-inside", command)
    }

    /// What stands of the application now. In `ready`, `alive`, `capture`, `status` and `stop`.
    ///
    /// # Errors
    /// When no container stands during this call.
    pub fn application(&self) -> Result<ApplicationState> {
        self.typed("application", &Value::Null)
    }

    /// A fresh look at everything that runs inside.
    ///
    /// # Errors
    /// When no container stands during this call.
    pub fn survey(&self) -> Result<Survey> {
        self.typed("survey", &Value::Null)
    }

    /// Sends a signal to processes (inside), one after the other. Those that are gone are passed over.
    ///
    /// # Errors
    /// When no container stands during this call.
    pub fn signal(&self, pids: &[i32], signal: i32) -> Result<()> {
        self.typed("signal", &serde_json::json!({ "pids": pids, "signal": signal }))
    }

    /// Writes what the container's own tmpfs mounts hold (never a bind) into a new file of the staging
    /// directory; whoever writes there meanwhile is not stopped. See
    /// [`Needs::tmpfs_content`](crate::plan::Needs::tmpfs_content).
    ///
    /// # Errors
    /// When it cannot be read or written whole, or no container stands during this call.
    pub fn save_tmpfs(&self, file: &str) -> Result<TmpfsSaved> {
        self.typed("save-tmpfs", &serde_json::json!({ "file": file }))
    }

    /// The last lines of the application's stderr, at most 16 KiB.
    ///
    /// # Errors
    /// When no container stands during this call.
    pub fn stderr_tail(&self) -> Result<String> {
        self.typed("stderr-tail", &Value::Null)
    }

    /// Gives a descriptor to the monitor, which keeps it as long as the instance lives and hands it
    /// to later calls. The backend keeps its own copy.
    ///
    /// # Errors
    /// When no instance exists during this call.
    pub fn keep_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        self.services.keep_fd(name, fd)
    }

    /// A copy of a kept descriptor, owned by the caller.
    pub fn kept_fd(&self, name: &str) -> Option<OwnedFd> {
        self.services.kept_fd(name)
    }

    /// Asks the runtime for a service by id that this version of the contract does not name.
    ///
    /// # Errors
    /// Kind `not-implemented` where the runtime does not have it.
    pub fn extension(&self, id: &str, payload: &Value) -> Result<Value> {
        self.services.request(&format!("extension:{id}"), payload)
    }

    fn typed<Q: Serialize, A: for<'de> Deserialize<'de>>(&self, name: &str, payload: &Q) -> Result<A> {
        let unclear = |e: serde_json::Error| BackendError::new(kind::PROTOCOL, name).because(e);
        let payload = serde_json::to_value(payload).map_err(unclear)?;
        serde_json::from_value(self.services.request(name, &payload)?).map_err(unclear)
    }

    pub(crate) fn into_state(self) -> EngineState {
        self.context.state
    }
}
