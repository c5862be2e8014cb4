//! `exec`, `run`, `shell`, and the start that they share with `instance start`: from what was typed to an
//! order, and the order carried out.

use crate::cli::action_args::ActionArgs;
use crate::cli::compat::CompatArgs;
use crate::cli::engine;
use crate::cli::images::{self, sources};
use crate::cli::teller::Terminal;
use crate::cli::{Session, again, gpu, join, others, output, report};
use crate::error::{Error, Result};
use crate::image::{Image, identity};
use crate::launch::start::Streams;
use crate::monitor::direct;
use crate::monitor::early::First;
use crate::monitor::findings::accepts;
use crate::monitor::foreground::Foreground;
use crate::monitor::order::{MonitorOrder, Ready};
use crate::monitor::place;
use crate::monitor::serve;
use crate::monitor::{ask, begin};
use crate::name::{BackendName, CheckpointName, CheckpointRef, InstanceName};
use crate::spec::identity::HostFacts;
use crate::spec::resolve::{self, Action, directories_to_make};
use crate::spec::{ContainerSpec, SPEC_FORMAT};
use crate::store::{CheckpointRecord, Generation, ImageIdentity};
use crate::sys::terminal;
use crate::worker::{Plugin, Worker};
use clap::Args;
use stasis_plugin_api::plan::StdioKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    compat: CompatArgs,
    #[arg(help = concat!("The image: ", sources!(), "; instance://NAME, or - for the recorded image of a restart"))]
    image: String,
    /// The command and its arguments; none at a restart
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    compat: CompatArgs,
    #[arg(help = concat!("The image: ", sources!(), "; instance://NAME, or - for the recorded image of a restart"))]
    image: String,
    /// Arguments of the runscript
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// `shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    compat: CompatArgs,
    #[arg(help = concat!("The image: ", sources!(), "; instance://NAME, or - for the recorded image of a restart"))]
    image: String,
}

/// The kind of an image that was fetched by name: its digest is its identity.
const FETCHED: &str = "oci";

/// What is to be started.
pub struct Wanted {
    /// What is done with the image.
    pub action: Action,
    /// The flags.
    pub args: ActionArgs,
    /// Apptainer's own words.
    pub compat: CompatArgs,
    /// As typed.
    pub image: String,
    /// Of an instance.
    pub name: Option<InstanceName>,
}

/// Runs `exec`.
///
/// # Errors
/// Why the command was not started.
pub fn exec(session: &Session, args: ExecArgs) -> Result<i32> {
    let action = Action::Exec { argv: args.command };
    foreground(
        session,
        Wanted { action, args: args.action, compat: args.compat, image: args.image, name: None },
    )
}

/// Runs `run`.
///
/// # Errors
/// Why the command was not started.
pub fn run(session: &Session, args: RunArgs) -> Result<i32> {
    let action = Action::Run { args: args.args };
    foreground(
        session,
        Wanted { action, args: args.action, compat: args.compat, image: args.image, name: None },
    )
}

/// Runs `shell`.
///
/// # Errors
/// Why the command was not started.
pub fn shell(session: &Session, args: ShellArgs) -> Result<i32> {
    foreground(
        session,
        Wanted {
            action: Action::Shell,
            args: args.action,
            compat: args.compat,
            image: args.image,
            name: None,
        },
    )
}

fn foreground(session: &Session, wanted: Wanted) -> Result<i32> {
    if let Some(name) = wanted.image.strip_prefix("instance://") {
        return join::join(session, name, &wanted.action, &wanted.args);
    }
    if wanted.args.dry_run {
        return show(session, wanted).map(|()| 0);
    }
    let (order, ready) = plan(session, wanted)?;
    if !order.spec.init {
        return direct::run(order, ready.image, ready.kept.is_some());
    }
    // Before any thread exists, so that all of them leave these signals to the main one.
    let signals = serve::signals(true)?;
    let teller = Arc::new(Terminal::default());
    let mut begun =
        begin::begin(&order, ready, &*teller).map_err(|error| others::named(session, &order, error))?;
    if let Some(from) = &begun.restarted {
        report::info(restarted_line(from));
    } else if let Some(engine) = &begun.live.engine {
        report::info(format!(
            "instance \"{}\" can be saved into checkpoint \"{}\"",
            begun.live.name,
            engine.checkpoint.name()
        ));
    }
    let mut side = Foreground::new(&mut begun, teller)?;
    let outcome = serve::serve(begun, &signals, Some(&mut side));
    side.finish();
    match (&outcome.reason, outcome.exit_code) {
        (Some(reason), _) if outcome.damaged => {
            let error = Error::new(reason)
                .help("choose an older generation; what the application did since is of no use");
            return Ok(report::fatal(&error).into());
        }
        (Some(reason), None) => report::warning(reason),
        (Some(reason), Some(_)) => report::info(reason),
        (None, _) => {}
    }
    Ok(outcome.code())
}

/// The line that tells what was brought back.
pub fn restarted_line(from: &crate::monitor::control::RestartedFrom) -> String {
    format!("generation {} (saved {}) of {}", from.generation, output::age(&from.created), from.image)
}

/// A plugin, and the worker that loads it meanwhile.
type Engine = (Plugin, Worker);

/// What a restart goes back to.
struct Back {
    generation: Generation,
    spec: ContainerSpec,
    /// To what its checkpoint is bound: the image is there as it was at the last start.
    record: CheckpointRecord,
}

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
pub fn plan(session: &Session, wanted: Wanted) -> Result<(MonitorOrder, Ready)> {
    let Considered { wanted, name, back, mut image, mut spec, first, engine } = consider(session, wanted)?;
    let size = (spec.stdio == StdioKind::Pty).then(|| terminal::size(std::io::stdin().as_fd())).flatten();
    let (ordered, engine) = match engine {
        Some((engine, identity)) => {
            let checkpoint = checkpoint_name(&wanted).unwrap_or_default();
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
    let facts = facts(&wanted.args);
    // Variables speak about containers in general; a restart listens to what was typed only.
    let typed = wanted.args.clone();
    for note in wanted.args.fill_from(&facts.env)? {
        report::warning(note);
    }
    std::mem::take(&mut wanted.compat).translate(&mut wanted.args, &facts.env)?;
    let engine = wanted.args.wants_engine();
    check_flags(&wanted)?;
    let back = back(session, &mut wanted)?;
    let name = wanted.name.as_ref().map_or_else(|| made_name(&wanted), ToString::to_string);
    let (first, early) = back.as_ref().map(|back| early(session, &wanted, back, &name)).unwrap_or_default();
    let image = match (&back, wanted.image.as_str()) {
        (Some(back), "-") => recorded_image(session, back, &wanted.args)?,
        (None, "-") => {
            return Err(Error::usage("\"-\" means the image of a saved state, and nothing is brought back"));
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
    let identity = engine.then(|| identify(&image, back.as_ref())).transpose()?;
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
                    let recorded = recorded(session, &wanted, back.as_ref())?;
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
    let recorded = back.record.backend.as_ref().map(|bound| &bound.name);
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

/// What a container depends on. Who the user is was recorded with what is brought back.
fn facts(args: &ActionArgs) -> HostFacts {
    if args.restart.is_some() { HostFacts::without_names() } else { HostFacts::from_process() }
}

fn check_flags(wanted: &Wanted) -> Result<()> {
    let args = &wanted.args;
    if args.backend.is_some() && checkpoint_name(wanted).is_none() {
        return Err(Error::usage("--backend says how to save, and nothing says where to").help(
            "add --checkpoint NAME to start so that it can be saved, or --restart NAME to bring it back",
        ));
    }
    let engine = args.wants_engine();
    for (given, flag) in [
        (args.checkpoint_interval.is_some(), "--checkpoint-interval"),
        (!args.checkpoint_on.is_empty(), "--checkpoint-on"),
        (args.keep.is_some(), "--keep"),
        (!args.backend_option.is_empty(), "--backend-option"),
        (args.tcp.is_some(), "--tcp"),
        (!args.accept_loss.is_empty(), "--accept-loss"),
    ] {
        if given && !engine {
            return Err(Error::usage(format!(
                "{flag} needs --checkpoint NAME, --restart NAME or --resume NAME"
            )));
        }
    }
    if args.verify.is_some() && args.restart.is_none() && args.resume.is_none() {
        return Err(Error::usage("--verify needs --restart NAME or --resume NAME"));
    }
    if engine && args.writable_tmpfs && !accepts(&args.accept_loss, "writable-tmpfs") {
        return Err(Error::usage("--writable-tmpfs keeps files in memory that no engine saves").help(
            "use --overlay DIR, whose files stay; to go on and lose them: --accept-loss=writable-tmpfs",
        ));
    }
    if wanted.name.is_some() && !args.checkpoint_on.is_empty() {
        return Err(Error::usage(
            "--checkpoint-on is for commands in the foreground; an instance is saved with `stasis checkpoint instance`",
        ));
    }
    if matches!(&wanted.action, Action::Exec { argv } if argv.is_empty())
        && args.restart.is_none()
        && args.resume.is_none()
    {
        return Err(Error::usage("exec needs a command").help("stasis exec IMAGE COMMAND [ARGUMENT...]"));
    }
    Ok(())
}

fn checkpoint_name(wanted: &Wanted) -> Option<String> {
    let args = &wanted.args;
    let restart = args.restart.as_ref().map(|r| r.name.to_string());
    args.checkpoint.as_ref().or(args.resume.as_ref()).map(ToString::to_string).or(restart)
}

fn made_name(wanted: &Wanted) -> String {
    checkpoint_name(wanted).unwrap_or_else(|| format!("{}-{}", wanted.action.word(), std::process::id()))
}

/// The backend to which the checkpoint is bound.
fn recorded(session: &Session, wanted: &Wanted, back: Option<&Back>) -> Result<Option<BackendName>> {
    if let Some(back) = back {
        return Ok(back.record.backend.as_ref().map(|bound| bound.name.clone()));
    }
    let Some(name) = checkpoint_name(wanted) else { return Ok(None) };
    let (store, name) = (session.store()?, CheckpointName::new(&name)?);
    match store.exists(&name)? {
        true => Ok(store.checkpoint(&name)?.record()?.backend.map(|b| b.name)),
        false => Ok(None),
    }
}

/// The generation that is brought back, when one is asked for; `--resume` becomes one of the other two.
fn back(session: &Session, wanted: &mut Wanted) -> Result<Option<Back>> {
    let args = &mut wanted.args;
    if let Some(name) = args.resume.take() {
        let store = session.store()?;
        let saved = store.exists(&name)? && !store.checkpoint(&name)?.generations()?.is_empty();
        match saved {
            true => args.restart = Some(CheckpointRef { name, generation: None }),
            false => args.checkpoint = Some(name),
        }
    }
    let Some(from) = &args.restart else { return Ok(None) };
    let checkpoint = session.store()?.checkpoint(&from.name)?;
    let generation = checkpoint.generation(from.generation)?;
    let manifest = generation.manifest();
    let what = format!("generation {} of \"{}\"", generation.number(), from.name);
    if manifest.host.uid != session.context.euid {
        return Err(Error::new(format!(
            "{what} belongs to uid {}, you are uid {}",
            manifest.host.uid, session.context.euid
        ))
        .help("only the user who saved it can bring it back"));
    }
    let spec: ContainerSpec = manifest.spec.read().map_err(|e| {
        Error::new(format!("{what} describes a container that this stasis does not understand")).because(&e)
    })?;
    if spec.format > SPEC_FORMAT {
        return Err(Error::new(format!("{what} was saved by a newer stasis ({})", manifest.stasis_version)));
    }
    let record = checkpoint.record()?;
    Ok(Some(Back { generation, spec, record }))
}

/// What `-` means: an image that was fetched by name is fetched again, should it be gone.
fn recorded_image(session: &Session, back: &Back, args: &ActionArgs) -> Result<Image> {
    let recorded = &back.generation.manifest().image;
    match recorded.kind.as_str() {
        FETCHED => images::open_recorded(session, &recorded.path, recorded.digest.as_deref()),
        _ => images::open(session, &back.spec.root.image().to_string_lossy(), args.unsquash),
    }
}

/// The image as it is; at a restart it has to be the recorded one.
fn identify(image: &Image, back: Option<&Back>) -> Result<ImageIdentity> {
    let mut found = match &image.fetched {
        Some(fetched) => ImageIdentity {
            kind: FETCHED.to_owned(),
            path: fetched.name.clone(),
            fingerprint: fetched.digest.to_string(),
            digest: Some(fetched.digest.to_string()),
            uuid: None,
        },
        None => ImageIdentity {
            kind: kind_of(image).to_owned(),
            path: image.root.to_string_lossy().into_owned(),
            fingerprint: identity::fingerprint(image)?,
            digest: None,
            uuid: image.file.as_ref().and_then(|file| Some(file.sif.as_ref()?.uuid.clone())),
        },
    };
    let Some(back) = back else { return Ok(found) };
    let recorded = &back.generation.manifest().image;
    // One that was touched since looked like that at the last start already, and was compared then.
    let bound = back.record.image.iter();
    let compared = bound.filter(|bound| bound.digest.is_some() && bound.digest == recorded.digest);
    if let Some(known) = compared.chain([recorded]).find(|known| found.same_as(known)) {
        found.digest.clone_from(&known.digest);
        return Ok(found);
    }
    tracing::debug!(image = %image.root.display(), "all of the image is read, to see whether it is the recorded one");
    found.digest = Some(identity::content_digest(image, &AtomicBool::new(false))?.digest);
    if recorded.digest == found.digest {
        return Ok(found);
    }
    Err(Error::new(format!("generation {} was saved of another image", back.generation.number()))
        .because(format!("it was saved of {recorded}"))
        .because(format!("{found} holds other files"))
        .help("give the image that it was started from, unchanged"))
}

fn kind_of(image: &Image) -> &'static str {
    match &image.file {
        None => "directory",
        Some(file) if file.sif.is_some() => "sif",
        Some(_) => "squashfs",
    }
}

/// `--dry-run`.
///
/// # Errors
/// What stands against it.
pub fn show(session: &Session, wanted: Wanted) -> Result<()> {
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
    let staging = root.join("checkpoints").join(checkpoint_name(&wanted).unwrap_or_default()).join("staging");
    let planned = ask::ask(&spec, &mut worker, &asked, &mut memory, generation, &staging, &[root])?;
    planned.notes.iter().for_each(report::info);
    output::line(resolve::describe(&planned.spec))
}
