//! From flags and configuration to the order for an engine.

use crate::cli::Session;
use crate::cli::action_args::ActionArgs;
use crate::cli::report;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::launch::userns;
use crate::monitor::order::EngineOrder;
use crate::name::BackendName;
use crate::registry::{self, Choice, Located};
use crate::store::ImageIdentity;
use crate::worker::{NoServices, Plugin, Worker, engine};
use stasis_plugin_api::capability;
use stasis_plugin_api::descriptor::Descriptor;
use stasis_plugin_api::report::Probe;
use stasis_plugin_api::request::ProbeRequest;

/// What the registry found, as a worker takes it.
///
/// # Errors
/// There is no place for what it may keep.
pub fn plugin(session: &Session, located: Located, flags: Vec<String>) -> Result<Plugin> {
    Ok(Plugin {
        cache: Plugin::cache(&session.context.data_root()?, &located.name),
        name: located.name,
        path: located.path,
        library: located.file.into(),
        version_req: located.version,
        options: located.options,
        option_flags: flags,
    })
}

/// Chooses by checkpoint, flag, environment and configuration.
///
/// # Errors
/// An unknown, forbidden or contradicting name; a library that may not be loaded; none that works.
pub fn choose(session: &Session, recorded: Option<&BackendName>, args: &ActionArgs) -> Result<Plugin> {
    let settings = session.settings()?;
    let flag = args.backend.as_ref().map(BackendName::as_str);
    let choice = registry::select(recorded, flag, session.context.var("STASIS_BACKEND"), settings)?;
    let tcp = args.tcp.iter().map(|word| format!("tcp={word}"));
    let flags = args.backend_option.iter().map(|(k, v)| format!("{k}={v}")).chain(tcp);
    let flags: Vec<String> = flags.collect();
    match choice {
        Choice::Named(name) => plugin(session, registry::locate(&name, settings, &session.context)?, flags),
        Choice::Auto(names) => automatic(session, settings, &names, &flags),
    }
}

/// The first that works here and leaves the user's uid alone. Why others were passed over is told.
fn automatic(
    session: &Session,
    settings: &Settings,
    names: &[BackendName],
    flags: &[String],
) -> Result<Plugin> {
    let mut error = Error::new("no backend can be used here");
    for name in names {
        match fits(session, settings, name, flags) {
            Ok(plugin) => return Ok(plugin),
            Err(why) => {
                report::verbose(format!("backend {name} is passed over: {why}"));
                error = error.because(format!("{name}: {why}"));
            }
        }
    }
    Err(error.help("`stasis backend check` shows everything that was looked for"))
}

fn fits(session: &Session, settings: &Settings, name: &BackendName, flags: &[String]) -> Result<Plugin> {
    let plugin = plugin(session, registry::locate(name, settings, &session.context)?, flags.to_vec())?;
    let mut worker = Worker::spawn(&plugin, &session.context.runtime_dir()?)?;
    let descriptor = worker.describe()?;
    let id_maps = userns::possible_maps(session.context.euid);
    let probe = engine::probe(&mut worker, &ProbeRequest { thorough: false, id_maps }, &NoServices)?;
    if !session.context.is_root() && probe.usable && !keeps_uid(&descriptor, &probe) {
        return Err(Error::new(
            "it would change the user's id inside; name it with --backend to take it all the same",
        ));
    }
    match probe.usable {
        true => Ok(plugin),
        false => Err(Error::new(probe.reason.unwrap_or_else(|| "its engine cannot be used here".to_owned()))),
    }
}

fn keeps_uid(descriptor: &Descriptor, probe: &Probe) -> bool {
    let here = probe.features.iter().find(|f| f.name == capability::KEEPS_UID).map(|f| f.available);
    here.unwrap_or_else(|| descriptor.capabilities.iter().any(|c| c == capability::KEEPS_UID))
}

/// What the monitor is told about the engine.
pub fn order(
    session: &Session,
    args: &ActionArgs,
    backend: BackendName,
    checkpoint: String,
    restart: Option<u64>,
    identity: ImageIdentity,
) -> Result<EngineOrder> {
    let keep = match args.keep {
        Some(n) => Some(n),
        None => session.settings()?.keep.as_ref().map(|k| k.value),
    };
    Ok(EngineOrder {
        backend,
        checkpoint,
        restart,
        verify: args.verify.unwrap_or_default(),
        accept_loss: args.accept_loss.clone(),
        keep: keep.map(|n| n as usize),
        force: args.force,
        interval: args.checkpoint_interval.map(|d| d.as_secs().max(1)),
        capture_on: args.checkpoint_on.clone(),
        requeue_code: args.requeue_code.unwrap_or(75),
        identity,
    })
}
