//! A running container, shared by the monitor's threads.

use crate::error::{Error, Result};
use crate::image::attach::Held;
use crate::instance::Claim;
use crate::launch::protocol::{Ending, FromInit, Target, ToInit};
use crate::monitor::order::EngineOrder;
use crate::spec::ContainerSpec;
use crate::store::{Checkpoint, ImageIdentity, LiveLock, Staging};
use crate::sys::channel::Channel;
use crate::worker::Plugin;
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::request::{InstanceView, ProcessView};
use stasis_plugin_api::survey::Survey;
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the application may take to end after a helper that it cannot do without.
const HELPER_GRACE: Duration = Duration::from_secs(2);

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The engine is not ready yet.
    Starting,
    /// The application runs.
    Running,
    /// The application ended, or the container is to end; nothing new begins.
    Ending,
    /// Everything inside is gone, record and locks are settled.
    Gone,
}

/// A message of init's with its descriptors.
pub type Heard = (FromInit, Vec<OwnedFd>);

/// What changes.
#[derive(Debug)]
pub struct State {
    /// Where it is.
    pub phase: Phase,
    /// How the application ended.
    pub ending: Option<Ending>,
    /// What led to it, when it was not the application itself.
    pub reason: Option<String>,
    /// Ended on request.
    pub requested: bool,
    /// The code of the foreground command, when it is not the application's own.
    pub exit_code: Option<u8>,
    /// Commands that are being served.
    pub conversations: usize,
    /// The image, with its content digest once that is computed.
    pub image: Option<ImageIdentity>,
    /// The generation that was brought back is still being compared with what was saved.
    pub verifying: bool,
    /// Somebody waits for that.
    pub comparison_wanted: bool,
    /// It is not what was saved.
    pub damaged: bool,
    /// What went wrong beside the application, for whoever asks next.
    pub remarks: Vec<String>,
}

impl State {
    /// Whether the comparison of what was brought back with what was saved cannot wait any longer.
    pub fn wants_comparison(&self) -> bool {
        self.comparison_wanted || self.phase >= Phase::Ending
    }
}

/// What an engine's instance has on top.
#[derive(Debug)]
pub struct EngineLive {
    /// As ordered.
    pub order: EngineOrder,
    /// The plugin.
    pub plugin: Plugin,
    /// Name and version, for the manifest.
    pub descriptor: stasis_plugin_api::descriptor::Descriptor,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Held until the end.
    pub lock: Mutex<Option<LiveLock>>,
    /// Where captures are written.
    pub staging: Staging,
    /// What the backend remembers.
    pub memory: Mutex<EngineState>,
    /// Descriptors kept for the backend.
    pub kept: Mutex<HashMap<String, OwnedFd>>,
    /// One capture at a time.
    pub capturing: Mutex<()>,
}

/// A running container.
#[derive(Debug)]
pub struct Live {
    /// Its name.
    pub name: String,
    /// As it was made. Without the engine's wishes it is stored with generations.
    pub spec: ContainerSpec,
    /// The application's pid inside.
    pub application: AtomicU64,
    /// Init's pid as seen here.
    pub pid: i32,
    /// The log files, when there are some.
    pub logs: Option<PathBuf>,
    /// A private directory for workers.
    pub scratch: PathBuf,
    /// The engine.
    pub engine: Option<EngineLive>,
    /// Its record and lock; taken at the end.
    pub claim: Mutex<Option<Claim>>,
    /// The image's mount, for as long as the container is there.
    pub held: Mutex<Option<Held>>,
    state: Mutex<State>,
    changed: Condvar,
    wake: Mutex<UnixStream>,
    init: Mutex<Channel>,
    pending: Mutex<HashMap<u64, Sender<Heard>>>,
    next: AtomicU64,
}

/// A poisoned lock means that a thread panicked in between; the data is plain and still true.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `Live` is made of.
#[derive(Debug)]
pub struct Parts {
    /// See [`Live`].
    pub name: String,
    /// See [`Live`].
    pub spec: ContainerSpec,
    /// See [`Live`].
    pub application: i32,
    /// See [`Live`].
    pub pid: i32,
    /// See [`Live`].
    pub logs: Option<PathBuf>,
    /// See [`Live`].
    pub scratch: PathBuf,
    /// See [`Live`].
    pub engine: Option<EngineLive>,
    /// To init.
    pub init: Channel,
    /// A byte wakes the main thread.
    pub wake: UnixStream,
}

impl Live {
    /// A container that stands.
    pub fn new(parts: Parts) -> Self {
        let image = parts.engine.as_ref().map(|e| e.order.identity.clone());
        Self {
            name: parts.name,
            spec: parts.spec,
            application: AtomicU64::new(u64::from(parts.application.unsigned_abs())),
            pid: parts.pid,
            logs: parts.logs,
            scratch: parts.scratch,
            engine: parts.engine,
            claim: Mutex::new(None),
            held: Mutex::new(None),
            state: Mutex::new(State {
                phase: Phase::Starting,
                ending: None,
                reason: None,
                requested: false,
                exit_code: None,
                conversations: 0,
                image,
                verifying: false,
                comparison_wanted: false,
                damaged: false,
                remarks: Vec::new(),
            }),
            changed: Condvar::new(),
            wake: Mutex::new(parts.wake),
            init: Mutex::new(parts.init),
            pending: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
        }
    }

    /// Looks at the state.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state and tells everybody.
    pub fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state());
        self.changed.notify_all();
        // A full pipe wakes as well.
        let _ = lock(&self.wake).write(&[0]);
    }

    /// Waits until `done` says so, or until `until`.
    pub fn wait(&self, until: Option<Instant>, mut done: impl FnMut(&State) -> bool) -> bool {
        let mut state = self.state();
        loop {
            if done(&state) {
                return true;
            }
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Asks for the end of everything inside.
    pub fn end(&self, reason: Option<&str>) {
        self.change(|s| {
            s.phase = s.phase.max(Phase::Ending);
            if s.reason.is_none() {
                s.reason = reason.map(str::to_owned);
            }
        });
    }

    /// Says something to init.
    ///
    /// # Errors
    /// When init is gone.
    pub fn tell_init(&self, message: &ToInit, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<()> {
        lock(&self.init)
            .send_with(message, fds)
            .map_err(|e| Error::new("the container's init is gone").because(&e))
    }

    /// A signal to the application.
    pub fn signal(&self, to: Target, signal: i32) {
        // An init that is gone has nobody to signal.
        let _ = self.tell_init(&ToInit::Signal { to, signal }, &[]);
    }

    /// Registers a request: its id, and where its answers arrive.
    pub fn expect(&self) -> (u64, Receiver<Heard>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel();
        lock(&self.pending).insert(id, sender);
        (id, receiver)
    }

    /// Forgets a request.
    pub fn forget(&self, id: u64) {
        lock(&self.pending).remove(&id);
    }

    /// Reads what init says until it is gone. In a thread of its own.
    pub fn hear_init(self: &Arc<Self>, channel: &Channel) {
        while let Ok(Some((message, fds))) = channel.recv::<FromInit>() {
            self.hear(message, fds);
        }
        lock(&self.pending).clear();
        self.change(|s| {
            if s.phase < Phase::Ending {
                s.reason = Some("the container's init was killed".to_owned());
            }
            s.ending.get_or_insert(Ending::Signal(libc::SIGKILL));
            s.phase = s.phase.max(Phase::Ending);
        });
    }

    fn hear(self: &Arc<Self>, message: FromInit, fds: Vec<OwnedFd>) {
        match message {
            FromInit::Ended(ending) => self.change(|s| {
                s.ending.get_or_insert(ending);
                s.phase = s.phase.max(Phase::Ending);
            }),
            FromInit::HelperEnded { name, ending, essential: true } => {
                if ending != Ending::Exit(0) {
                    self.end(Some(&format!("the engine's {name} ended ({ending})")));
                    return;
                }
                // A helper that goes with its application may be seen first; a big process takes a moment
                // to end. Only when it does not is the helper the cause.
                let live = Arc::clone(self);
                std::thread::spawn(move || {
                    if !live.wait(Some(Instant::now() + HELPER_GRACE), |s| s.phase >= Phase::Ending) {
                        live.end(Some(&format!("the engine's {name} ended ({ending})")));
                    }
                });
            }
            FromInit::HelperEnded { name, ending, essential: false } if ending != Ending::Exit(0) => {
                let log = self.logs.as_ref().map(|logs| logs.join(format!("{name}.log")));
                let said = log.map(|log| format!("; what it said is in {}", log.display()));
                let remark = format!("the engine's {name} ended ({ending}){}", said.unwrap_or_default());
                tracing::debug!(remark, "a helper");
                self.change(|s| s.remarks.push(remark.clone()));
            }
            FromInit::Ran { id, .. }
            | FromInit::Surveyed { id, .. }
            | FromInit::TmpfsSaved { id, .. }
            | FromInit::ExecStarted { id } => self.pass_on(id, message, fds),
            FromInit::ExecEnded { id, .. } => {
                self.pass_on(id, message, fds);
                self.forget(id);
            }
            other => tracing::debug!(?other, "from init"),
        }
    }

    fn pass_on(&self, id: u64, message: FromInit, fds: Vec<OwnedFd>) {
        if let Some(sender) = lock(&self.pending).get(&id) {
            // A caller that no longer waits needs no answer.
            let _ = sender.send((message, fds));
        }
    }

    /// What runs inside now.
    ///
    /// # Errors
    /// When init does not answer.
    pub fn survey(&self) -> Result<Survey> {
        let (id, answers) = self.expect();
        self.tell_init(&ToInit::Survey { id }, &[])?;
        let answer = answers.recv_timeout(Duration::from_secs(20));
        self.forget(id);
        match answer {
            Ok((FromInit::Surveyed { survey, .. }, _)) => Ok(survey),
            _ => Err(Error::new(format!("the container of \"{}\" does not answer", self.name))),
        }
    }

    /// The instance as a backend sees it.
    pub fn view(&self, survey: Survey) -> InstanceView {
        let (staging, free_bytes) = match &self.engine {
            Some(engine) => (engine.staging.path(), free_bytes(&engine.staging.path())),
            None => (PathBuf::new(), 0),
        };
        InstanceView {
            name: self.name.clone(),
            application: i32::try_from(self.application.load(Ordering::Relaxed)).unwrap_or(0),
            cwd: self.spec.process.cwd.first().cloned().unwrap_or_default(),
            ended: self.state().ending.map(|e| e.to_string()),
            staging,
            logs: self.logs.clone().unwrap_or_default(),
            free_bytes,
            survey,
            stderr_tail: self.stderr_tail(),
            hostname: self.spec.hostname.clone().unwrap_or_default(),
            rootless: self.spec.namespaces.user,
            own_network: self.spec.namespaces.net,
        }
    }

    /// The application's last words on stderr.
    pub fn stderr_tail(&self) -> String {
        self.logs.as_ref().map(|d| tail(&d.join("err.log"), 16 << 10)).unwrap_or_default()
    }

    /// The command as the user gave it.
    pub fn process(&self) -> ProcessView {
        process_view(&self.spec)
    }
}

/// The command as the user gave it.
pub fn process_view(spec: &ContainerSpec) -> ProcessView {
    ProcessView {
        argv: spec.process.argv.clone(),
        env: spec.process.env.clone(),
        cwd: spec.process.cwd.first().cloned().unwrap_or_default(),
        uid: spec.ids.uid,
        gid: spec.ids.gid,
    }
}

/// Free bytes for this user on a directory's file system.
pub fn free_bytes(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |s| s.blocks_available().saturating_mul(s.fragment_size()))
}

/// The last bytes of a file, from a line's beginning where possible.
pub fn tail(path: &std::path::Path, most: u64) -> String {
    let Ok(mut file) = std::fs::File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    if file.seek(SeekFrom::Start(length.saturating_sub(most))).is_err() {
        return String::new();
    }
    let mut bytes = Vec::new();
    if file.take(most).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
