//! What the runtime tells a backend. Everything is plain data; unknown fields are ignored and
//! missing ones have defaults, so that both sides may grow.

use crate::error::{BackendError, Result, kind};
use crate::host::ApplicationState;
use crate::plan::{IdMap, StdioKind};
use crate::survey::Survey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What a slow disk reads or writes in a second.
const SLOWEST: u64 = 50 << 20;

/// How long it may take to read or write so many bytes of a state.
#[must_use]
pub fn time_for(bytes: u64) -> Duration {
    Duration::from_secs(60 + bytes / SLOWEST)
}

/// What `probe` is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeRequest {
    /// Only what is quick, or also a self-test that takes a second.
    pub thorough: bool,
    /// The id maps that this user can have; see [`LaunchRequest::id_maps`].
    pub id_maps: Vec<IdMap>,
}

/// An image, opened: a root directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageView {
    /// What the user typed.
    pub name: String,
    /// The root directory on the host. Its content is hostile: resolve paths below it only. It may be a
    /// descriptor of a mount that has no place of its own: it can be opened, and has no real path.
    pub root: PathBuf,
}

/// The application's process as the user asked for it, before any wrapping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessView {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its environment at the start.
    pub env: BTreeMap<String, String>,
    /// Its working directory inside.
    pub cwd: PathBuf,
    /// Its uid inside.
    pub uid: u32,
    /// Its gid inside.
    pub gid: u32,
}

/// What is looked at by `examine`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "subject")]
pub enum Subject {
    /// An image and what would be started in it.
    Image {
        /// The image.
        image: ImageView,
        /// The process.
        process: ProcessView,
    },
    /// A running instance.
    Instance {
        /// The instance.
        instance: InstanceView,
    },
    /// A generation, about to be restarted on this host.
    Generation {
        /// The generation.
        generation: GenerationView,
        /// The image that it is restarted in.
        image: ImageView,
    },
}

/// What `plan_launch` is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchRequest {
    /// The image.
    pub image: ImageView,
    /// The process.
    pub process: ProcessView,
    /// The container's host name.
    pub hostname: String,
    /// Whether the container has a user namespace.
    pub rootless: bool,
    /// Whether the container has a network of its own.
    pub own_network: bool,
    /// The id maps that this container can have: `keep-and-zero` only where the user has subordinate
    /// ids and the tools that map them. All of them where there is no user namespace.
    pub id_maps: Vec<IdMap>,
    /// What the standard streams will be.
    pub stdio: Option<StdioKind>,
}

/// A running container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceView {
    /// Its name.
    pub name: String,
    /// The pid (inside) of the application's first process.
    pub application: i32,
    /// The directory in which the application was started.
    pub cwd: PathBuf,
    /// How the application ended, when it has: `exit 3`, `signal 9`.
    pub ended: Option<String>,
    /// The staging directory on the host; inside it is [`CAPTURE_DIR`](crate::plan::CAPTURE_DIR).
    pub staging: PathBuf,
    /// The directory of this start's log files on the host; inside it is [`LOG_DIR`](crate::plan::LOG_DIR).
    pub logs: PathBuf,
    /// Free bytes on the staging directory's file system, the user's quota considered where known.
    pub free_bytes: u64,
    /// What runs inside. Empty where the runtime did not look (in `ready`, `alive` and `stop`).
    pub survey: Survey,
    /// The last lines of the application's stderr since this start.
    pub stderr_tail: String,
    /// The hostname inside.
    pub hostname: String,
    /// Whether the container has a user namespace.
    pub rootless: bool,
    /// Whether the container has a network of its own.
    pub own_network: bool,
}

/// Room for headers and what grows while it is written.
const MARGIN: u64 = 64 << 20;

impl InstanceView {
    /// Refuses a capture for which there is no room: what is resident now and a fifth of it.
    ///
    /// # Errors
    /// Of kind `no-space`.
    pub fn room(&self) -> Result<()> {
        let memory: u64 = self.survey.processes.iter().map(|p| p.resident).sum();
        let need = memory + memory / 5 + MARGIN;
        if self.free_bytes >= need {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Err(BackendError::new(kind::NO_SPACE, "there is no room for the state")
            .because(format!(
                "it may take {} MiB, and {} MiB are free at {}",
                mib(need),
                mib(self.free_bytes),
                self.staging.display()
            ))
            .help("free some space there, or remove older generations with `stasis checkpoint prune`"))
    }
}

/// What `capture` is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureRequest {
    /// The instance. Its survey was taken just now.
    pub instance: InstanceView,
    /// The application is ended as soon as the generation is safe; it need not run on.
    pub stop_after: bool,
    /// The newest generation of the checkpoint, for engines that build on it (see [`CaptureReport::inherited`]). Nothing
    /// says that it is of this very instance.
    ///
    /// [`CaptureReport::inherited`]: crate::report::CaptureReport::inherited
    pub previous: Option<GenerationView>,
}

/// One complete saved state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationView {
    /// Its number.
    pub number: u64,
    /// The directory on the host; inside it is [`IMAGE_DIR`](crate::plan::IMAGE_DIR). Verified already.
    pub directory: PathBuf,
    /// Paths relative to the directory, as committed.
    pub files: Vec<PathBuf>,
    /// The bytes of all its files together.
    pub size: u64,
    /// The version of the engine that made it.
    pub engine_version: String,
    /// The processes it holds.
    pub processes: Vec<i32>,
    /// What the backend's own capture report carried in `facts`.
    pub facts: BTreeMap<String, serde_json::Value>,
}

/// What `plan_restart` is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartRequest {
    /// The generation.
    pub generation: GenerationView,
    /// The image.
    pub image: ImageView,
    /// The process as it was started at first.
    pub process: ProcessView,
    /// The container's host name, as recorded.
    pub hostname: String,
    /// Whether the container has a user namespace.
    pub rootless: bool,
    /// Whether the container has a network of its own.
    pub own_network: bool,
    /// As in [`LaunchRequest::id_maps`].
    pub id_maps: Vec<IdMap>,
    /// The first pid that this host never gives, `kernel.pid_max`.
    pub pid_max: i32,
    /// What the standard streams will be.
    pub stdio: Option<StdioKind>,
}

/// What `squash` is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SquashRequest {
    /// The generation.
    pub generation: GenerationView,
    /// An empty directory for the files that take the place of all of its files.
    pub staging: PathBuf,
}

/// What `alive` is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AliveRequest {
    /// The instance.
    pub instance: InstanceView,
    /// The generation that was brought back.
    pub generation: GenerationView,
    /// What stood of the application when this was asked, just after the engine was done; `None` from a runtime that does not
    /// tell, which can be asked: [`Host::application`](crate::host::Host::application).
    pub application: Option<ApplicationState>,
}

/// What `explain` is asked: the helper of a [`RestartPlan::Rebuild`](crate::plan::RestartPlan::Rebuild)
/// did not end with status 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailedHelper {
    /// Its name.
    pub name: String,
    /// Its exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// The end of what it printed, at most 64 KiB, invalid UTF-8 replaced.
    pub output: String,
    /// The generation that was to be brought back.
    pub generation: GenerationView,
}

/// What `stop` is asked. The runtime has signalled the application already.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopRequest {
    /// The instance.
    pub instance: InstanceView,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::ProcessInfo;

    #[test]
    fn large_states_have_their_time() {
        assert_eq!([0, 50 << 20, 50 << 30].map(|bytes| time_for(bytes).as_secs()), [60, 61, 60 + 1024]);
        assert!(time_for(u64::MAX) > time_for(1));
    }

    #[test]
    fn no_room_is_told_before_anything_is_written() {
        let process = ProcessInfo { resident: 100 << 20, ..Default::default() };
        let mut instance = InstanceView {
            staging: "/store/staging".into(),
            free_bytes: 183 << 20,
            survey: Survey { processes: vec![process], ..Survey::default() },
            ..Default::default()
        };
        let error = instance.room().unwrap_err();
        assert_eq!(error.kind, kind::NO_SPACE);
        insta::assert_snapshot!(error, @"there is no room for the state: it may take 184 MiB, and 183 MiB are free at /store/staging");
        instance.free_bytes = 184 << 20;
        instance.room().unwrap();
    }
}
