//! From an order to a container that stands: claims, plan, start, handshake. Whatever fails on the way
//! leaves nothing behind.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::instance::{Claim, Host, Instances, Record, State};
use crate::launch::protocol::{Ending, Order};
use crate::launch::start::{self, Container};
use crate::monitor::Teller;
use crate::monitor::control::{RestartedFrom, Started};
use crate::monitor::findings::judge;
use crate::monitor::live::{EngineLive, Live, Parts, Phase, lock, process_view, tail};
use crate::monitor::order::{EngineOrder, MonitorOrder};
use crate::monitor::restart;
use crate::monitor::services::Around;
use crate::name::{BackendName, CheckpointName, InstanceName};
use crate::spec::{ContainerSpec, apply};
use crate::store::{BackendStamp, Generation, Holder, Store};
use crate::worker::{NoServices, Plugin, Worker, WorkerError, engine};
use stasis_plugin_api::error::kind;
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::plan::StdioKind;
use stasis_plugin_api::report::ReadyReport;
use stasis_plugin_api::request::{
    AliveRequest, ImageView, LaunchRequest, ProbeRequest, RestartRequest, Subject,
};
use stasis_plugin_api::survey::Survey;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An application that ends within this time after its start never was one.
const SETTLE: Duration = Duration::from_millis(200);

/// A container is made within this time, or something hangs.
const MAKING: Duration = Duration::from_secs(60);

/// A container that stands, with everything that the monitor's loop needs.
pub struct Begun {
    /// The container.
    pub live: Arc<Live>,
    /// Reads what init says.
    pub ear: JoinHandle<()>,
    /// Its first process.
    pub container: Container,
    /// Woken by changes.
    pub wake: UnixStream,
    /// Commands connect here.
    pub listener: UnixListener,
    /// Removed at the end.
    pub runtime: PathBuf,
    /// The application's terminal.
    pub terminal: Option<OwnedFd>,
    /// The generation that was brought back.
    pub restarted: Option<RestartedFrom>,
    /// The command stays in the foreground.
    pub foreground: bool,
}

impl Begun {
    /// What the command is told.
    pub fn started(&self) -> Started {
        Started {
            pid: self.container.pid,
            checkpoint: self.live.engine.as_ref().map(|e| e.checkpoint.name().to_string()),
            restarted: self.restarted.clone(),
        }
    }
}

/// The engine's part, prepared before the container exists.
struct Prepared {
    live: EngineLive,
    worker: Worker,
    generation: Option<Generation>,
}

/// Starts what the order says.
///
/// # Errors
/// Why it does not stand. Nothing is left behind.
pub fn begin(order: &MonitorOrder, library: Option<OwnedFd>, teller: &dyn Teller) -> Result<Begun> {
    let name = InstanceName::new(&order.spec.name)?;
    let instances = Instances::open(&order.data_root, Host::from_kernel()?);
    let mut claim = instances.claim(&name)?;
    let outcome = runtime_directory(&order.runtime_dir, &name).and_then(|runtime| {
        let made = make(order, library, teller, &mut claim, &runtime);
        if made.is_err() {
            clear(&runtime);
        }
        made
    });
    match outcome {
        Ok(begun) => {
            *lock(&begun.live.claim) = Some(claim);
            Ok(begun)
        }
        Err(error) => {
            // The record of an instance that never stood would only confuse.
            let _ = claim.discard();
            Err(error)
        }
    }
}

fn make(
    order: &MonitorOrder,
    library: Option<OwnedFd>,
    teller: &dyn Teller,
    claim: &mut Claim,
    runtime: &Path,
) -> Result<Begun> {
    let mut spec = order.spec.clone();
    claim.open_logs()?;
    let mut prepared = match (&order.engine, library) {
        (Some(wanted), Some(library)) => {
            let prepared = prepare(order, wanted, library, runtime, teller)?;
            Some(prepared)
        }
        (Some(wanted), None) => {
            return Err(Error::new(format!("the library of backend \"{}\" is missing", wanted.plugin.name)));
        }
        (None, _) => None,
    };
    if let Some(prepared) = &mut prepared {
        spec = plan(&spec, prepared, &order.data_root)?;
    }
    let logs = (spec.stdio == StdioKind::File || spec.engine.is_some()).then(|| claim.logs().to_path_buf());
    let listener = listen(runtime)?;
    let init_order = Order {
        spec: spec.clone(),
        mount_point: mount_point(&order.runtime_dir)?,
        logs: logs.clone(),
        fed: order.fed,
        size: order.size,
    };
    let container = start::start(&init_order)?;
    let stood = stand(order, spec, prepared, teller, runtime, logs, &container).and_then(|stood| {
        claim.write(&record(order, &stood.live, claim, runtime, stood.restarted.as_ref())?)?;
        Ok(stood)
    });
    match stood {
        Ok(stood) => {
            stood.live.change(|s| s.phase = s.phase.max(Phase::Running));
            Ok(Begun {
                live: stood.live,
                ear: stood.ear,
                container,
                wake: stood.wake,
                listener,
                runtime: runtime.to_path_buf(),
                terminal: stood.terminal,
                restarted: stood.restarted,
                foreground: order.foreground,
            })
        }
        Err(error) => {
            container.kill();
            Err(error)
        }
    }
}

/// What `stand` brings about.
struct Stood {
    live: Arc<Live>,
    ear: JoinHandle<()>,
    wake: UnixStream,
    terminal: Option<OwnedFd>,
    restarted: Option<RestartedFrom>,
}

fn stand(
    order: &MonitorOrder,
    mut spec: ContainerSpec,
    prepared: Option<Prepared>,
    teller: &dyn Teller,
    runtime: &Path,
    logs: Option<PathBuf>,
    container: &Container,
) -> Result<Stood> {
    let stood = container.stand(true, MAKING).map_err(|e| with_log(e, logs.as_deref()))?;
    for note in &stood.notes {
        teller.note(note);
    }
    spec.root.mode = stood.mode;
    spec.process.cwd = vec![stood.cwd.clone()];
    let broken = |e: std::io::Error| Error::new("cannot watch the container").because(&e);
    let (wake, wake_there) = UnixStream::pair().map_err(broken)?;
    wake.set_nonblocking(true).map_err(broken)?;
    wake_there.set_nonblocking(true).map_err(broken)?;
    let (engine, rest) = match prepared {
        Some(p) => (Some(p.live), Some((p.worker, p.generation))),
        None => (None, None),
    };
    let live = Arc::new(Live::new(Parts {
        name: order.spec.name.clone(),
        spec,
        application: stood.application,
        pid: container.pid,
        logs: logs.clone(),
        scratch: runtime.to_path_buf(),
        engine,
        init: container.channel.try_clone().map_err(broken)?,
        wake: wake_there,
    }));
    let (ear, hearing) = (Arc::clone(&live), container.channel.try_clone().map_err(broken)?);
    let ear = std::thread::spawn(move || ear.hear_init(&hearing));
    let mut restarted = None;
    if rest.is_none() && !order.foreground && stood.application != 0 {
        settled(&live);
        let ending = live.state().ending;
        if let Some(ending) = ending.filter(|e| *e != Ending::Exit(0)) {
            container.kill();
            let _ = ear.join();
            let error = Error::new("the application ended while it was started").because(ending);
            return Err(with_log(error, logs.as_deref()));
        }
    }
    if let Some((worker, generation)) = rest {
        let outcome =
            handshake(&live, worker, generation.as_ref(), order.foreground && generation.is_none(), teller)
                .and_then(|()| settle(&live));
        if let Err(error) = outcome {
            container.kill();
            // Locks are free again only when nobody holds the container any more.
            let _ = ear.join();
            return Err(with_log(error, logs.as_deref()));
        }
        restarted = generation.as_ref().map(|g| RestartedFrom {
            generation: g.number(),
            created: g.manifest().created.clone(),
            image: g.manifest().image.to_string(),
        });
    }
    Ok(Stood { live, ear, wake, terminal: stood.terminal, restarted })
}

/// The application's or the engine's last lines belong to an error of a start.
fn with_log(error: Error, logs: Option<&Path>) -> Error {
    let said = logs.map(|d| tail(&d.join("err.log"), 2048)).unwrap_or_default();
    if error.detail.is_none() && !said.trim().is_empty() { error.detail(said) } else { error }
}

fn prepare(
    order: &MonitorOrder,
    wanted: &EngineOrder,
    library: OwnedFd,
    runtime: &Path,
    teller: &dyn Teller,
) -> Result<Prepared> {
    let name = CheckpointName::new(&wanted.checkpoint)?;
    let store = Store::open(&order.data_root)?;
    let backend = BackendName::new(&wanted.plugin.name)?;
    let checkpoint = match store.exists(&name)? {
        true => store.checkpoint(&name)?,
        false if wanted.restart.is_some() => {
            return Err(store
                .checkpoint(&name)
                .err()
                .map_or_else(|| Error::new("no such checkpoint"), Into::into));
        }
        false => store.create(&name, None)?,
    };
    checkpoint.record()?.accepts(&name, &backend, &wanted.identity)?;
    let holder = Holder::here(&order.spec.name);
    let lock =
        if wanted.force { checkpoint.lock_live_forced(&holder)? } else { checkpoint.lock_live(&holder)? };
    checkpoint.clean_partials()?;
    let generation = match wanted.restart {
        Some(number) => Some(restart::open(&checkpoint, number, wanted, &order.spec, teller)?),
        None => None,
    };
    let version_req = wanted.plugin.version.as_deref().map(semver::VersionReq::parse).transpose();
    let plugin = Plugin {
        name: wanted.plugin.name.clone(),
        path: wanted.plugin.path.clone(),
        library,
        version_req: version_req.map_err(|e| Error::new("a version requirement is broken").because(&e))?,
        options: wanted.plugin.options.clone(),
        option_flags: wanted.plugin.flags.clone(),
    };
    let mut worker = Worker::spawn(&plugin, runtime)?;
    let descriptor = worker.describe()?;
    let memory = generation.as_ref().map(|g| g.manifest().engine_state.clone()).unwrap_or_default();
    let staging = checkpoint.staging(&lock)?;
    let live = EngineLive {
        order: wanted.clone(),
        plugin,
        descriptor,
        checkpoint,
        lock: Mutex::new(Some(lock)),
        staging,
        memory: Mutex::new(memory),
        kept: Mutex::new(HashMap::new()),
        capturing: Mutex::new(()),
    };
    Ok(Prepared { live, worker, generation })
}

/// Asks the engine: usable, nothing against it, and what it needs.
fn plan(spec: &ContainerSpec, prepared: &mut Prepared, data_root: &Path) -> Result<ContainerSpec> {
    let Prepared { live, worker, generation } = prepared;
    let mut memory: EngineState = lock(&live.memory).clone();
    let staging = live.staging.path().to_path_buf();
    let cover = vec![data_root.to_path_buf()];
    let asked = Asked {
        engine_name: &live.descriptor.engine,
        backend: &live.descriptor.name,
        accept_loss: &live.order.accept_loss,
    };
    let planned = ask(spec, worker, &asked, &mut memory, generation.as_ref(), &staging, &cover)?;
    *lock(&live.memory) = memory;
    Ok(planned)
}

/// Who is asked, and what the user accepts.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The engine, for messages.
    pub engine_name: &'a str,
    /// The backend.
    pub backend: &'a str,
    /// Kinds of loss that the user accepts.
    pub accept_loss: &'a [String],
}

/// The engine's part of a plan, also for `--dry-run`.
///
/// # Errors
/// Why the engine cannot be used, or what it finds.
pub fn ask(
    spec: &ContainerSpec,
    worker: &mut Worker,
    asked: &Asked<'_>,
    memory: &mut EngineState,
    generation: Option<&Generation>,
    staging: &Path,
    cover: &[PathBuf],
) -> Result<ContainerSpec> {
    let probe = engine::probe(worker, &ProbeRequest { thorough: false }, &NoServices)?;
    if !probe.usable {
        let error = Error::new(format!("{} cannot be used here", asked.engine_name))
            .because(probe.reason.unwrap_or_default());
        return Err(error.help(probe.help.unwrap_or_else(|| {
            format!("`stasis backend check {}` shows everything that was looked for", asked.backend)
        })));
    }
    let image = ImageView { name: spec.image.clone(), root: spec.root.directory.clone() };
    let process = process_view(spec);
    let hostname = spec.hostname.clone().unwrap_or_default();
    let (rootless, stdio) = (spec.namespaces.user, Some(spec.stdio));
    let Some(generation) = generation else {
        let subject = Subject::Image { image: image.clone(), process: process.clone() };
        let findings = engine::examine(worker, &subject, memory, &NoServices)?;
        judge("save this program", asked.engine_name, findings, asked.accept_loss)?;
        let request = LaunchRequest { image, process, hostname, rootless, stdio };
        let plan = engine::plan_launch(worker, &request, memory, &NoServices)?;
        return Ok(apply::launch(spec.clone(), &plan, asked.backend, staging, cover)?);
    };
    let view = restart::view(generation);
    let subject = Subject::Generation { generation: view.clone(), image: image.clone() };
    let findings = engine::examine(worker, &subject, memory, &NoServices)?;
    judge("bring this generation back", asked.engine_name, findings, asked.accept_loss)?;
    let request = RestartRequest { generation: view, image, process, hostname, rootless, stdio };
    let plan = engine::plan_restart(worker, &request, memory, &NoServices)?;
    Ok(apply::restart(spec.clone(), &plan, asked.backend, staging, generation.path(), cover)?)
}

/// Asks once more, with a look at what runs now. A process in the middle of an exec gets a second look.
fn again(live: &Live, worker: &mut Worker, around: &Around<'_>) -> std::result::Result<ReadyReport, WorkerError> {
    let mut tries = 3;
    loop {
        tries -= 1;
        let survey = live.survey().unwrap_or_default();
        match engine::ready(worker, &live.view(survey), &mut EngineState::new(), around) {
            Err(WorkerError::Backend { error, .. }) if tries > 0 && error.kind == kind::UNSUPPORTED => {
                live.wait(Some(Instant::now() + Duration::from_millis(30)), |s| s.phase >= Phase::Ending);
            }
            other => return other,
        }
    }
}

/// Waits a moment for an application that ends at once. One that listens is there: a service need not wait.
fn settled(live: &Live) {
    let end = Instant::now() + SETTLE;
    loop {
        let next = (Instant::now() + Duration::from_millis(5)).min(end);
        if live.wait(Some(next), |s| s.phase >= Phase::Ending) || Instant::now() >= end {
            return;
        }
        if live.survey().is_ok_and(|s| s.sockets.iter().any(|s| s.state == "listen")) {
            return;
        }
    }
}

/// Waits until the engine says that the application can be saved.
fn handshake(
    live: &Live,
    mut worker: Worker,
    generation: Option<&Generation>,
    foreground: bool,
    teller: &dyn Teller,
) -> Result<()> {
    let Some(engine_live) = &live.engine else { return Ok(()) };
    let around = Around { live, teller, doing: "starting" };
    let mut memory = lock(&engine_live.memory).clone();
    let view = live.view(Survey::default());
    let outcome = match generation {
        None => engine::ready(&mut worker, &view, &mut memory, &around),
        Some(g) => {
            let request = AliveRequest { instance: view, generation: restart::view(g) };
            engine::alive(&mut worker, &request, &mut memory, &around)
        }
    };
    *lock(&engine_live.memory) = memory;
    let outcome = match outcome {
        Ok(_) if !foreground && generation.is_none() => {
            // A script may still be on its way to a program that is not there, or that the engine cannot
            // enter: only what is ready after a moment is.
            settled(live);
            again(live, &mut worker, &around)
        }
        other => other,
    };
    let outcome = match outcome {
        // A command in the foreground that is done so soon is no failure: its output and its code tell.
        Err(WorkerError::Backend { error, .. }) if foreground && error.kind == kind::APPLICATION_ENDED => {
            return Ok(());
        }
        other => other?,
    };
    for note in outcome.notes {
        teller.note(&note);
    }
    let ended = live.state().ending;
    match ended {
        None => Ok(()),
        Some(_) if foreground => Ok(()),
        Some(ending) => Err(Error::new("the application ended while it was started").because(ending)),
    }
}

/// Binds the checkpoint to backend and image: from now on others are refused.
fn settle(live: &Live) -> Result<()> {
    let Some(engine) = &live.engine else { return Ok(()) };
    let backend = BackendName::new(&engine.descriptor.name)?;
    let stamp = BackendStamp { name: backend, version: Some(engine.descriptor.version.clone()) };
    Ok(engine.checkpoint.bind(&stamp, &engine.order.identity)?)
}

fn record(
    order: &MonitorOrder,
    live: &Live,
    claim: &Claim,
    runtime: &Path,
    restarted: Option<&RestartedFrom>,
) -> Result<Record> {
    let mut record = claim.record().clone();
    record.init_pid = live.pid;
    record.image.clone_from(&order.spec.image);
    record.action.clone_from(&order.spec.action);
    record.foreground = order.foreground;
    record.control = Some(runtime.join("control.sock"));
    record.state = State::Running;
    if let Some(engine) = &live.engine {
        record.backend = Some(BackendName::new(&engine.descriptor.name)?);
        record.checkpoint = Some(CheckpointName::new(&engine.order.checkpoint)?);
        record.restarted_from = restarted.map(|r| r.generation);
        record.last_generation = restarted.map(|r| r.generation);
    }
    Ok(record)
}

fn runtime_directory(base: &Path, name: &InstanceName) -> Result<PathBuf> {
    let path = base.join("run").join(name.as_str());
    clear(&path);
    make_private(&base.join("run"))?;
    make_private(&path)?;
    Ok(path)
}

/// The shared empty directory on which containers put their roots together, each in a mount namespace
/// of its own.
///
/// # Errors
/// What the file system says.
pub fn mount_point(base: &Path) -> Result<PathBuf> {
    let path = base.join("mnt");
    make_private(&path)?;
    Ok(path)
}

fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    match made {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::new(format!("cannot make the directory {}", path.display())).because(&e))
        }
        _ => Ok(()),
    }
}

/// Removes an instance's runtime directory: only files that a monitor puts there.
pub fn clear(runtime: &Path) {
    for entry in std::fs::read_dir(runtime).into_iter().flatten().flatten() {
        // Workers remove their scratch directories themselves; what is left of a killed one is small
        // and lies in memory.
        let _ = std::fs::remove_file(entry.path()).or_else(|_| std::fs::remove_dir(entry.path()));
    }
    let _ = std::fs::remove_dir(runtime);
}

fn listen(runtime: &Path) -> Result<UnixListener> {
    let directory = crate::sys::mount::open_place(runtime)
        .map_err(|e| Error::new("cannot open the instance's directory").because(e.desc()))?;
    // Through the descriptor: a long path would not fit into a socket address.
    let path = crate::sys::mount::path_of(std::os::fd::AsFd::as_fd(&directory)).join("control.sock");
    let listener =
        UnixListener::bind(&path).map_err(|e| Error::new("cannot make the instance's socket").because(&e))?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(|e| Error::new("cannot protect the instance's socket").because(&e))?;
    Ok(listener)
}

/// Opens the image of a spec for its digest.
pub fn image_of(spec: &ContainerSpec) -> Result<Image> {
    Ok(Image::open(&spec.root.directory.to_string_lossy())?)
}
