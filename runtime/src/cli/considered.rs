//! From what was typed to an order for the monitor: all that can be said before anything is made.

use crate::cli::back::{self, Back};
use crate::cli::wanted::Wanted;
use crate::cli::{Session, again, engine, gpu, images, join, output, report};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::launch::start::Streams;
use crate::monitor::ask;
use crate::monitor::early::First;
use crate::monitor::order::{MonitorOrder, Ready};
use crate::monitor::place;
use crate::name::{BackendName, InstanceName};
use crate::spec::ContainerSpec;
use crate::spec::identity::HostFacts;
use crate::spec::resolve::{self, directories_to_make};
use crate::store::ImageIdentity;
use crate::sys::terminal;
use crate::worker::{Plugin, Worker};
use stasis_plugin_api::plan::StdioKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

/// A plugin, and the worker that loads it meanwhile.
type Engine = (Plugin, Worker);

/// What was typed, with all that it is about.
struct Considered {
    wanted: Wanted,
    /// The container's.
    name: String,
    back: Option<Back>,
    image: Image,
    spec: ContainerSpec,
    first: Option<First>,
    /// With what its checkpoint is to be bound to.
    engine: Option<(Engine, ImageIdentity)>,
}

/// Makes the order, and starts what takes a while to get ready for it.
///
/// # Errors
/// Everything that can be said before anything is made.
pub(super) fn plan(session: &Session, wanted: Wanted) -> Result<(MonitorOrder, Ready)> {
    let Considered { wanted, name, back, mut image, mut spec, first, engine } = consider(session, wanted)?;
    let size = (spec.stdio == StdioKind::Pty).then(|| terminal::size(std::io::stdin().as_fd())).flatten();
    let (ordered, engine) = match engine {
        Some((engine, identity)) => {
            let checkpoint = wanted.checkpoint().unwrap_or_default();
            let restart = back.as_ref().map(|b| b.generation.number());
            let backend = engine.0.name.clone();
            let ordered = engine::order(session, &wanted.args, backend, checkpoint, restart, identity)?;
            (Some(ordered), Some(engine))
        }
        None => (None, None),
    };
    spec.name = name;
    let fed = wanted.name.is_none() && spec.stdio == StdioKind::File && !join::stdin_is_empty();
    let order = MonitorOrder {
        fed,
        spec,
        data_root: session.context.data_root()?,
        runtime_dir: session.context.runtime_dir()?,
        engine: ordered,
        foreground: wanted.name.is_none(),
        size,
    };
    Ok((order, Ready { first, engine, image: image.take_held(), kept: image.take_kept() }))
}

fn consider(session: &Session, mut wanted: Wanted) -> Result<Considered> {
    let facts = HostFacts::without_names();
    // Variables speak about containers in general; a restart listens to what was typed only.
    let typed = wanted.args.clone();
    for note in wanted.args.fill_from(&facts.env)? {
        report::warning(note);
    }
    std::mem::take(&mut wanted.compat).translate(&mut wanted.args, &facts.env)?;
    let engine = wanted.args.wants_engine();
    wanted.check()?;
    let back = back::back(session, &mut wanted)?;
    // Who the user is was recorded with what is brought back.
    let facts = if back.is_some() { facts } else { facts.named() };
    let name = wanted.container();
    let (first, early) = back.as_ref().map(|back| early(session, &wanted, back, &name)).unwrap_or_default();
    let image = match (&back, wanted.image.as_str()) {
        (Some(back), "-") => back.image(session, wanted.args.unsquash)?,
        (None, "-") => {
            return Err(Error::usage("\"-\" means the image of a saved state, and nothing is brought back")
                .help("name an image, or what is to be brought back: --restart NAME"));
        }
        (_, given) => images::open(session, given, wanted.args.unsquash)?,
    };
    if image.fetched.is_some() && wanted.args.writable {
        return Err(Error::usage("--writable would change an image of the cache, which others use as well")
            .help(format!(
                "make a directory of it with `stasis build --sandbox DIRECTORY {}`",
                wanted.image
            )));
    }
    let identity = engine.then(|| back::identify(&image, back.as_ref())).transpose()?;
    let spec = match &back {
        Some(back) => again::again(&back.spec, &wanted, &typed, &image, &facts, &name)?,
        None => {
            let mut spec = resolve::resolve(&wanted.action, &wanted.args, &image, &facts, &name, engine)?;
            crate::spec::gpu::add(&mut spec, gpu::mounts(&wanted.args));
            spec
        }
    };
    for directory in directories_to_make(&spec, &wanted.args, &facts) {
        std::fs::create_dir_all(&directory).map_err(|e| {
            Error::new(format!("cannot make the directory {}", directory.display())).because(&e)
        })?;
    }
    let engine = match identity {
        Some(identity) => {
            // A mounted image is lent to a worker when that starts.
            let early = early.filter(|_| image.mount().is_none());
            let engine = early.map_or_else(
                || {
                    let recorded = back::recorded(session, &wanted, back.as_ref())?;
                    start(session, recorded.as_ref(), &wanted, image.mount(), &name)
                },
                Ok,
            )?;
            Some((engine, identity))
        }
        None => None,
    };
    Ok(Considered { wanted, name, back, image, spec, first, engine })
}

/// Chooses the engine, and starts a worker with it, to which a mounted image is lent.
fn start(
    session: &Session,
    recorded: Option<&BackendName>,
    wanted: &Wanted,
    image: Option<BorrowedFd<'_>>,
    name: &str,
) -> Result<Engine> {
    let plugin = engine::choose(session, recorded, &wanted.args)?;
    let worker = Worker::spawn_with(&plugin, image, &scratch(session, wanted, name)?)?;
    Ok((plugin, worker))
}

/// What a restart needs is known before its image has been looked at: the container's first process and the
/// engine's worker get ready meanwhile, which takes them as long. Both are lent a mounted image when they start,
/// and have to wait for it. Why there is none is told when it is its turn.
fn early(session: &Session, wanted: &Wanted, back: &Back, name: &str) -> (Option<First>, Option<Engine>) {
    if back.spec.root.file.is_some() {
        return (None, None);
    }
    let streams = if wanted.name.is_some() { Streams::Left } else { Streams::Kept };
    let recorded = back.backend();
    let engine = recorded.and_then(|recorded| start(session, Some(recorded), wanted, None, name).ok());
    let first = (!wanted.args.dry_run).then(|| First::start(&back.spec, None, streams));
    (first, engine)
}

/// Where the worker may put things from its first call on.
fn scratch(session: &Session, wanted: &Wanted, name: &str) -> Result<PathBuf> {
    let runtime = session.context.runtime_dir()?;
    if wanted.args.dry_run {
        return Ok(runtime);
    }
    Ok(place::runtime_path(&runtime, &InstanceName::new(name)?))
}

/// `--dry-run`.
///
/// # Errors
/// What stands against it.
pub(super) fn show(session: &Session, wanted: Wanted) -> Result<()> {
    let Considered { wanted, back, spec, engine, .. } = consider(session, wanted)?;
    let Some(((_, mut worker), _)) = engine else { return output::line(resolve::describe(&spec)) };
    let descriptor = worker.describe()?;
    let asked = ask::Asked {
        engine_name: &descriptor.engine,
        backend: &descriptor.name,
        accept_loss: &wanted.args.accept_loss,
    };
    let generation = back.as_ref().map(|back| &back.generation);
    let mut memory = generation.map(|g| g.manifest().engine_state.clone()).unwrap_or_default();
    let root = session.context.data_root()?;
    let staging = root.join("checkpoints").join(wanted.checkpoint().unwrap_or_default()).join("staging");
    let planned = ask::ask(&spec, &mut worker, &asked, &mut memory, generation, &staging, &[root])?;
    planned.notes.iter().for_each(report::info);
    output::line(resolve::describe(&planned.spec))
}
