//! From an order to a container that stands: claims, plan, start, handshake. Whatever fails on the way
//! leaves nothing behind.

use crate::error::{Error, Result};
use crate::image::attach::{self, Held, Way};
use crate::image::{Image, identity};
use crate::instance::{Claim, Host, Instances, Record, State};
use crate::launch::protocol::{Ending, Ground, Order};
use crate::launch::start::{Container, NotStood, Streams};
use crate::monitor::Teller;
use crate::monitor::control::{RestartedFrom, Started};
use crate::monitor::early::First;
use crate::monitor::live::{Live, Parts, Phase, lock, tail};
use crate::monitor::order::{MonitorOrder, Ready};
use crate::monitor::place::{clear, listen, mount_point, runtime_directory};
use crate::monitor::prepared::{Opened, Prepared, settle};
use crate::monitor::ready::{handshake, settled};
use crate::monitor::verify::{self, Comparison};
use crate::name::{BackendName, CheckpointName, InstanceName};
use crate::spec::{ContainerSpec, RestartStep};
use crate::store::{ImageIdentity, Store};
use crate::sys::channel::Channel;
use crate::worker::{Plugin, Worker};
use stasis_plugin_api::plan::{IdMap, StdioKind};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

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
    /// Keep its image in the cache.
    pub kept: Vec<File>,
    /// Has nothing more to do.
    pub worker: Option<Worker>,
    /// Is due.
    pub comparison: Option<Comparison>,
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

/// Starts what the order says, with what is ready for it.
///
/// # Errors
/// Why it does not stand. Nothing is left behind.
pub fn begin(order: &MonitorOrder, ready: Ready, teller: &dyn Teller) -> Result<Begun> {
    let name = InstanceName::new(&order.spec.name)?;
    let Ready { first, engine, image, kept } = ready;
    let mount = image.as_ref().and_then(Held::mount);
    let first = first.unwrap_or_else(|| First::start(&order.spec, mount, Streams::Kept));
    let instances = Instances::open(&order.data_root, Host::from_kernel()?);
    let mut claim = instances.claim(&name)?;
    let outcome = runtime_directory(&order.runtime_dir, &name).and_then(|runtime| {
        let new = new_checkpoint(order);
        let made = make(order, (engine, first), image.as_ref(), teller, &mut claim, &runtime);
        if made.is_err() {
            clear(&runtime);
            if let Some((store, name)) = new {
                // It was made for this start, and nothing came of it.
                let _ = store.delete(&name);
            }
        }
        made
    });
    match outcome {
        Ok(mut begun) => {
            begun.kept.extend(kept);
            *lock(&begun.live.claim) = Some(claim);
            *lock(&begun.live.held) = image;
            Ok(begun)
        }
        Err(error) => {
            // The record of an instance that never stood would only confuse.
            let _ = claim.discard();
            Err(error)
        }
    }
}

/// The checkpoint that this start makes, if it is not there yet.
fn new_checkpoint(order: &MonitorOrder) -> Option<(Store, CheckpointName)> {
    let name = CheckpointName::new(&order.engine.as_ref()?.checkpoint).ok()?;
    let store = Store::open(&order.data_root).ok()?;
    (!store.exists(&name).ok()?).then_some((store, name))
}

fn make(
    order: &MonitorOrder,
    (engine, mut first): (Option<(Plugin, Worker)>, First),
    image: Option<&Held>,
    teller: &dyn Teller,
    claim: &mut Claim,
    runtime: &Path,
) -> Result<Begun> {
    let mut spec = order.spec.clone();
    claim.open_logs()?;
    let opened = order.engine.as_ref().map(|wanted| Opened::new(order, wanted)).transpose()?;
    let mount = image.and_then(Held::mount);
    let mount_point = mount_point(&order.runtime_dir)?;
    first.lay(ground(order, &spec, mount_point.clone()));
    let mut prepared = match (opened, engine) {
        (Some(opened), Some((plugin, worker))) => Some(opened.prepare(plugin, worker, teller)?),
        _ => None,
    };
    let mut kept = None;
    if let Some(prepared) = &mut prepared {
        if let Some(ahead) = prepared.ahead(&spec)? {
            first.ahead(ahead);
        }
        let planned = prepared.plan(&spec, &order.data_root, teller)?;
        planned.notes.iter().for_each(|note| teller.note(note));
        spec = planned.spec;
        kept = unpack_for_zero(&mut spec, &order.data_root, teller)?;
    }
    let ground = ground(order, &spec, mount_point);
    let logs = ground.inject.then(|| claim.logs());
    let mut container = first.take(&spec, ground, mount)?;
    container.order(Order { spec: spec.clone(), logs: logs.clone(), fed: order.fed, size: order.size })?;
    // Made while the container is.
    let stood = listen(runtime).and_then(|listener| {
        let stood = stand(order, spec, prepared, teller, runtime, logs, &container)?;
        claim.write(&record(order, &stood.live, claim, runtime, stood.restarted.as_ref())?)?;
        Ok((stood, listener))
    });
    match stood {
        Ok((stood, listener)) => {
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
                kept: kept.into_iter().collect(),
                worker: stood.worker,
                comparison: stood.comparison,
            })
        }
        Err(error) => {
            container.kill();
            Err(error)
        }
    }
}

/// On what the container stands. Under an engine, and where nobody sees its streams, there are log files.
fn ground(order: &MonitorOrder, spec: &ContainerSpec, mount_point: PathBuf) -> Ground {
    let engine = order.engine.is_some();
    Ground::of(spec, engine, engine || spec.stdio == StdioKind::File, mount_point)
}

/// What `stand` brings about.
struct Stood {
    live: Arc<Live>,
    ear: JoinHandle<()>,
    wake: UnixStream,
    terminal: Option<OwnedFd>,
    restarted: Option<RestartedFrom>,
    worker: Option<Worker>,
    comparison: Option<Comparison>,
}

fn stand(
    order: &MonitorOrder,
    mut spec: ContainerSpec,
    mut prepared: Option<Prepared>,
    teller: &dyn Teller,
    runtime: &Path,
    logs: Option<PathBuf>,
    container: &Container,
) -> Result<Stood> {
    let broken = |e: std::io::Error| Error::new("cannot watch the container").because(&e);
    let (wake, wake_there) = UnixStream::pair().map_err(broken)?;
    wake.set_nonblocking(true).map_err(broken)?;
    wake_there.set_nonblocking(true).map_err(broken)?;
    // Made while the container is.
    let (ear, hears) = container.channel.try_clone().and_then(ear).map_err(broken)?;
    let stood = match container.stand(MAKING + rebuilding(&spec)) {
        Ok(stood) => stood,
        Err(failed) => {
            let error = match failed {
                NotStood::Failed(error) => with_log(error, logs.as_deref()),
                NotStood::NotRebuilt(failed) => match &mut prepared {
                    Some(prepared) => prepared.explain(*failed),
                    None => NotStood::NotRebuilt(failed).into(),
                },
            };
            let Some(Prepared { generation, unverified, .. }) = &prepared else { return Err(error) };
            return Err(verify::or_damage(generation.as_ref(), unverified, error));
        }
    };
    for note in &stood.notes {
        teller.note(note);
    }
    if let Some(why) = &stood.clocks {
        without_clocks(&mut spec, why, teller);
    }
    spec.root.mode = stood.mode;
    spec.process.cwd = vec![stood.cwd.clone()];
    let (engine, mut worker, generation, unverified, bound) = match prepared {
        Some(p) => (Some(p.live), Some(p.worker), p.generation, p.unverified, p.bound),
        None => (None, None, None, Vec::new(), true),
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
    // It is there: it waits for this.
    let _ = hears.send(Arc::clone(&live));
    let outcome = match &mut worker {
        Some(worker) => handshake(&live, worker, generation.as_ref(), order.foreground, teller)
            .and_then(|()| if bound { Ok(()) } else { settle(&live) }),
        None if order.foreground || stood.application == 0 => Ok(()),
        None => not_ended_at_once(&live),
    };
    if let Err(error) = outcome {
        container.kill();
        // Locks are free again only when nobody holds the container any more.
        let _ = ear.join();
        let error = with_log(error, logs.as_deref());
        return Err(verify::or_damage(generation.as_ref(), &unverified, error));
    }
    let restarted = generation.as_ref().map(|g| RestartedFrom {
        generation: g.number(),
        created: g.manifest().created.clone(),
        image: g.manifest().image.to_string(),
    });
    let comparison = generation.and_then(|generation| Comparison::due(&live, generation, unverified));
    Ok(Stood { live, ear, wake, terminal: stood.terminal, restarted, worker, comparison })
}

/// Reads what init says, from when the container stands and is sent here; ends where none is.
fn ear(channel: Channel) -> std::io::Result<(JoinHandle<()>, Sender<Arc<Live>>)> {
    let (hears, stands) = std::sync::mpsc::channel::<Arc<Live>>();
    let ear = std::thread::Builder::new().spawn(move || {
        if let Ok(live) = stands.recv() {
            live.hear_init(&channel);
        }
    })?;
    Ok((ear, hears))
}

/// What was brought back goes by this machine's clocks.
fn without_clocks(spec: &mut ContainerSpec, why: &str, teller: &dyn Teller) {
    let ordered = spec.engine.as_mut().and_then(|engine| engine.clocks.take());
    spec.namespaces.time = false;
    if ordered.is_some_and(|clocks| clocks.offset.is_ahead()) {
        teller.note(&format!("a clock of the application went back, as accepted: {why}"));
    }
}

/// An instance without an engine stands when its application is still there shortly after, or has done its work.
fn not_ended_at_once(live: &Live) -> Result<()> {
    settled(live);
    match live.state().ending {
        None | Some(Ending::Exit(0)) => Ok(()),
        Some(ending) => Err(Error::new("the application ended while it was started").because(ending)),
    }
}

/// How long an engine may take to make the processes.
fn rebuilding(spec: &ContainerSpec) -> Duration {
    match spec.engine.as_ref().and_then(|e| e.restart.as_ref()) {
        Some(RestartStep::Rebuild { helper, .. }) => Duration::from_millis(helper.timeout_ms),
        _ => Duration::ZERO,
    }
}

/// The application's or the engine's last lines belong to an error of a start.
fn with_log(error: Error, logs: Option<&Path>) -> Error {
    let said = logs.map(|d| tail(&d.join("err.log"), 2048)).unwrap_or_default();
    if error.detail.is_none() && !said.trim().is_empty() { error.detail(said) } else { error }
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

/// A mount through FUSE lets nobody in but the one user who made it. Where uid 0 is a second user inside, the
/// content has to be a directory.
fn unpack_for_zero(spec: &mut ContainerSpec, data_root: &Path, teller: &dyn Teller) -> Result<Option<File>> {
    let closed = spec.namespaces.user && spec.ids.map == IdMap::KeepAndZero;
    let Some(file) = spec.root.file.as_mut().filter(|file| closed && file.way == Way::Fuse) else {
        return Ok(None);
    };
    let opened = File::open(&file.path)
        .map_err(|e| Error::new(format!("cannot open image \"{}\"", file.path.display())).because(&e))?;
    file.way = Way::Unpacked;
    let wanted = attach::Wanted { file: &opened, spec: file.clone(), way: None, data_root };
    let used = attach::unpack(&wanted, &|done, total| teller.progress(done, total, "unpacking the image"))?;
    spec.root.directory = used.directory;
    Ok(Some(used.lock))
}

/// The digest of a spec's image, as long as that is the one that was started.
pub fn digest_of(spec: &ContainerSpec, started: &ImageIdentity, cancel: &AtomicBool) -> Option<String> {
    let Some(file) = &spec.root.file else {
        let image = Image::open(&spec.root.directory.to_string_lossy()).ok()?;
        return Some(identity::content_digest(&image, cancel).ok()?.digest);
    };
    let opened = File::open(&file.path).ok()?;
    let same = identity::file_fingerprint(file, &opened).is_ok_and(|print| print == started.fingerprint);
    same.then(|| identity::file_digest(&opened, file, cancel).ok())?
}
