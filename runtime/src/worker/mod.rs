//! The worker: a process of its own in which one plugin is loaded and serves one operation. This side
//! starts it, lends it services, watches its deadline and ends it; the other side is [`child`].
//!
//! No threads: the monitor forks after planning, which it may only do with one.

pub mod child;
pub mod engine;
mod error;
mod options;
mod output;
mod process;
mod services;
#[cfg(test)]
mod tests;
mod wire;

pub use error::WorkerError;
pub use options::{OptionError, SetBy, check_options};
pub use services::{NoServices, Services};
pub(crate) use wire::ROLE;

use crate::name::BackendName;
use process::{Clock, Process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stasis_plugin_api::abi::{Answer, Call};
use stasis_plugin_api::descriptor::Descriptor;
use stasis_plugin_api::error::{BackendError, kind};
use stasis_plugin_api::host::{CallContext, EngineState};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::{Order, Report};

/// A plugin as the registry found it.
#[derive(Debug)]
pub struct Plugin {
    /// As configured.
    pub name: BackendName,
    /// For messages; loaded is `library`.
    pub path: PathBuf,
    /// Open for reading, checked.
    pub library: OwnedFd,
    /// Which versions of the plugin the configuration accepts.
    pub version_req: Option<semver::VersionReq>,
    /// From `plugins.toml`, or the values in force that a record kept.
    pub options: BTreeMap<String, Value>,
    /// `NAME=VALUE` from the command line; they win.
    pub option_flags: Vec<String>,
    /// What this backend may keep between calls; it need not exist.
    pub cache: PathBuf,
}

impl Plugin {
    /// The directory of a backend's own cache.
    #[must_use]
    pub fn cache(data_root: &Path, name: &BackendName) -> PathBuf {
        data_root.join("cache").join(name.as_str())
    }
}

/// A running worker. Dropping it kills the process and everything in its session, and reaps it.
///
/// It ends with the *thread* that called [`spawn`](Self::spawn) too, which is the kernel's rule. Nobody else
/// may reap it (`waitpid(-1)`): how it ended would be lost.
#[derive(Debug)]
pub struct Worker {
    name: String,
    path: PathBuf,
    version_req: Option<semver::VersionReq>,
    from_file: BTreeMap<String, Value>,
    from_flags: Vec<String>,
    scratch: PathBuf,
    /// Of a call that put nothing into it: it is as good for the next one.
    unused: Option<tempfile::TempDir>,
    cache: PathBuf,
    process: Process,
    load: Clock,
    descriptor: Option<Descriptor>,
    options: Option<BTreeMap<String, Value>>,
}

impl Worker {
    /// Starts a worker, which begins to load the plugin at once. `scratch` is a directory of the caller's
    /// in which each call gets a private one of its own.
    ///
    /// # Errors
    /// [`WorkerError::Start`]. What is wrong with the library is told by [`describe`](Self::describe).
    pub fn spawn(plugin: &Plugin, scratch: &Path) -> Result<Self, WorkerError> {
        Self::spawn_with(plugin, None, scratch)
    }

    /// The same, with a mounted image, which the plugin sees at [`Self::mounted_image`].
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_with(
        plugin: &Plugin,
        image: Option<BorrowedFd<'_>>,
        scratch: &Path,
    ) -> Result<Self, WorkerError> {
        let mut process = Process::start(plugin.name.as_str(), plugin.library.as_fd(), image)?;
        let load = Clock::new("load", engine::LOAD);
        process.send(&load, &Order::Load { shown: plugin.path.to_string_lossy().into_owned() }, None)?;
        Ok(Self {
            name: plugin.name.to_string(),
            path: plugin.path.clone(),
            version_req: plugin.version_req.clone(),
            from_file: plugin.options.clone(),
            from_flags: plugin.option_flags.clone(),
            scratch: scratch.to_owned(),
            unused: None,
            cache: plugin.cache.clone(),
            process,
            load,
            descriptor: None,
            options: None,
        })
    }

    /// The directory at which a worker sees a mounted image.
    #[must_use]
    pub fn mounted_image() -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", wire::IMAGE))
    }

    /// What the plugin says about itself, its name and version checked. Does not look at the options.
    ///
    /// # Errors
    /// The library cannot be loaded or is another than configured; the worker died or hung over it. Then
    /// this worker is of no more use.
    pub fn describe(&mut self) -> Result<Descriptor, WorkerError> {
        if let Some(descriptor) = &self.descriptor {
            return Ok(descriptor.clone());
        }
        let mut clock = self.load.clone();
        let descriptor = match self.process.next(&mut clock, &NoServices)?.0 {
            Report::Loaded { descriptor } => {
                serde_json::from_str(&descriptor).map_err(|e| self.process.unclear("describe", &e))?
            }
            Report::NotLoaded { problem, help } => {
                let (plugin, path) = (self.name.clone(), self.path.clone());
                return Err(WorkerError::NotLoaded { plugin, path, problem, help });
            }
            other => return Err(self.process.unclear("load", &format!("unexpected {}", other.word()))),
        };
        if let Err(error) = self.check(&descriptor) {
            self.process.end(Duration::ZERO);
            return Err(error);
        }
        self.descriptor = Some(descriptor.clone());
        Ok(descriptor)
    }

    /// What this process has open for it.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.process.descriptors()
    }

    fn check(&self, descriptor: &Descriptor) -> Result<(), WorkerError> {
        let (plugin, path, says) = (self.name.clone(), self.path.clone(), descriptor.version.clone());
        if descriptor.name != self.name {
            return Err(WorkerError::Name { plugin, path, says: descriptor.name.clone() });
        }
        let version = match semver::Version::parse(&descriptor.version) {
            Ok(version) => version,
            Err(source) => return Err(WorkerError::NoVersion { plugin, path, says, source }),
        };
        match &self.version_req {
            Some(wanted) if !wanted.matches(&version) => {
                Err(WorkerError::Version { plugin, path, version, wanted: wanted.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The options in force: flags over file over defaults. Plain values, for a record.
    ///
    /// # Errors
    /// As [`describe`](Self::describe), and [`WorkerError::Options`].
    pub fn options(&mut self) -> Result<&BTreeMap<String, Value>, WorkerError> {
        let descriptor = self.describe()?;
        let options = match self.options.take() {
            Some(known) => known,
            None => check_options(&descriptor, &self.from_file, &self.from_flags)?,
        };
        Ok(self.options.insert(options))
    }

    /// Sets the values in force, as [`check_options`] gave them, in place of what [`spawn`](Self::spawn) was told.
    pub fn set_options(&mut self, options: BTreeMap<String, Value>) {
        self.options = Some(options);
    }

    /// Calls one method of the contract and serves the plugin until it answers. `state` is replaced by what
    /// the plugin remembers, and only when it succeeds. Blocks up to `deadline` and a second.
    ///
    /// # Errors
    /// The plugin's own error, or how it failed to give one. After [`WorkerError::TimedOut`],
    /// [`WorkerError::Died`] and [`WorkerError::Unclear`] this worker is of no more use.
    pub fn call<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        method: &str,
        request: &Q,
        state: &mut EngineState,
        services: &dyn Services,
        deadline: Duration,
    ) -> Result<A, WorkerError> {
        let options = self.options()?.clone();
        let scratch = self.scratch_dir()?;
        let mut clock = Clock::new(method, deadline);
        let context = CallContext {
            options,
            state: state.clone(),
            deadline_ms: epoch_ms(deadline),
            euid: nix::unistd::geteuid().as_raw(),
            search_path: std::env::var_os("PATH").unwrap_or_default().to_string_lossy().into_owned(),
            scratch: scratch.path().to_owned(),
            cache: self.cache.clone(),
            library: self.path.clone(),
        };
        let call = serde_json::to_value(request)
            .and_then(|request| serde_json::to_string(&Call { context, request }))
            .map_err(|e| WorkerError::Start {
                plugin: self.name.clone(),
                doing: "writing down the request".to_owned(),
                source: e.into(),
            })?;
        self.process.send(&clock, &Order::Call { method: method.to_owned(), call }, None)?;
        let text = self.serve(&mut clock, services)?;
        if is_empty(scratch.path()) {
            self.unused = Some(scratch);
        }
        let answer: Answer = serde_json::from_str(&text).map_err(|e| self.process.unclear(method, &e))?;
        let reply = serde_json::from_value(answer.reply).map_err(|e| self.process.unclear(method, &e))?;
        *state = answer.state;
        Ok(reply)
    }

    fn scratch_dir(&mut self) -> Result<tempfile::TempDir, WorkerError> {
        if let Some(unused) = self.unused.take() {
            return Ok(unused);
        }
        tempfile::Builder::new().prefix("call-").tempdir_in(&self.scratch).map_err(|source| {
            WorkerError::Start {
                plugin: self.name.clone(),
                doing: format!("making a scratch directory in {}", self.scratch.display()),
                source,
            }
        })
    }

    /// Until the answer, which is returned.
    fn serve(&mut self, clock: &mut Clock, services: &dyn Services) -> Result<String, WorkerError> {
        loop {
            let (report, mut fds) = self.process.next(clock, services)?;
            let (order, fd) = match report {
                Report::Answer { answer } => return Ok(answer),
                Report::Error(error) => return Err(self.told(clock, error)),
                Report::Log { level, target, message } => {
                    services.log(level, &target, &message);
                    continue;
                }
                Report::Request { name, payload } => {
                    (Order::Reply(asked(clock, services, &name, &payload)), None)
                }
                Report::KeepFd { name } => (Order::Kept(kept(services, &name, &mut fds)), None),
                Report::KeptFd { name } => (Order::Fd, services.kept_fd(&name)),
                other @ (Report::Loaded { .. } | Report::NotLoaded { .. }) => {
                    return Err(self
                        .process
                        .unclear(clock.method(), &format!("unexpected {}", other.word())));
                }
            };
            self.process.send(clock, &order, fd.as_ref().map(AsFd::as_fd))?;
        }
    }

    /// A plugin that stopped because it was told that its time is over has timed out; what it says then
    /// tells where it stood.
    fn told(&self, clock: &Clock, error: BackendError) -> WorkerError {
        let (plugin, method) = (self.name.clone(), clock.method().to_owned());
        if clock.is_over() && matches!(error.kind.as_str(), kind::CANCELLED | kind::TIMED_OUT) {
            let last_words = Some(error.engine_output.unwrap_or(error.what));
            return WorkerError::TimedOut { plugin, method, after: clock.given(), last_words };
        }
        WorkerError::Backend { plugin, method, error: Box::new(error) }
    }
}

impl Report {
    fn word(&self) -> &'static str {
        match self {
            Self::Loaded { .. } | Self::NotLoaded { .. } => "news of loading",
            Self::Answer { .. } | Self::Error(_) => "answer",
            Self::Log { .. } => "event",
            Self::Request { .. } | Self::KeepFd { .. } | Self::KeptFd { .. } => "request",
        }
    }
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn epoch_ms(from_now: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_add(from_now).as_millis()).unwrap_or(u64::MAX)
}

/// A request of the plugin's, on its way to the services.
fn asked(clock: &Clock, services: &dyn Services, name: &str, payload: &str) -> Result<String, BackendError> {
    let unclear = |e: serde_json::Error| {
        BackendError::new(kind::PROTOCOL, format!("the request \"{name}\" cannot be understood")).because(e)
    };
    let mut payload: Value = serde_json::from_str(payload).map_err(unclear)?;
    if name == "run-inside"
        && let Some(fields) = payload.as_object_mut()
    {
        // Whoever waits for the command does not see the deadline of the call.
        let left = u64::try_from(clock.left().as_millis()).unwrap_or(u64::MAX).max(1);
        let asked = fields.get("timeout_ms").and_then(Value::as_u64).filter(|ms| *ms > 0);
        fields.insert("timeout_ms".to_owned(), asked.unwrap_or(left).min(left).into());
    }
    services.request(name, payload).and_then(|reply| serde_json::to_string(&reply).map_err(unclear))
}

fn kept(services: &dyn Services, name: &str, fds: &mut Vec<OwnedFd>) -> Result<(), BackendError> {
    let fd = fds
        .pop()
        .ok_or_else(|| BackendError::new(kind::PROTOCOL, format!("\"{name}\": no descriptor came")))?;
    services.keep_fd(name, fd)
}
