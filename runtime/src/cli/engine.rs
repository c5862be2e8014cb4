//! From flags and configuration to the order for an engine.

use crate::cli::Session;
use crate::cli::action_args::ActionArgs;
use crate::cli::report;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::launch::userns;
use crate::monitor::order::{EngineOrder, PluginOrder};
use crate::name::BackendName;
use crate::registry::{self, Choice, Located};
use crate::store::ImageIdentity;
use crate::worker::{NoServices, Plugin, Worker, engine};
use stasis_plugin_api::capability;
use stasis_plugin_api::descriptor::Descriptor;
use stasis_plugin_api::report::Probe;
use stasis_plugin_api::request::ProbeRequest;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// A chosen plugin.
pub struct Chosen {
    /// For the order.
    pub plugin: PluginOrder,
    /// Its library.
    pub library: OwnedFd,
}

/// A plugin whose worker gets ready.
pub struct Engine {
    /// For the order.
    pub order: PluginOrder,
    /// As it is loaded.
    pub plugin: Plugin,
    /// The process that loads it.
    pub worker: Worker,
}

impl Chosen {
    /// Starts a worker with it, to which a mounted image is lent. `scratch` has to be there at its first call.
    ///
    /// # Errors
    /// No process can be made.
    pub fn start(self, session: &Session, image: Option<BorrowedFd<'_>>, scratch: &Path) -> Result<Engine> {
        let plugin = plugin(session, &self.plugin, self.library)?;
        let worker = Worker::spawn_with(&plugin, image, scratch)?;
        Ok(Engine { order: self.plugin, plugin, worker })
    }
}

/// The plugin as a worker takes it.
///
/// # Errors
/// When the descriptor cannot be copied.
pub fn plugin(session: &Session, order: &PluginOrder, library: OwnedFd) -> Result<Plugin> {
    let version_req = order.version.as_deref().map(semver::VersionReq::parse).transpose();
    Ok(Plugin {
        name: order.name.clone(),
        path: order.path.clone(),
        library,
        version_req: version_req.map_err(|e| Error::new("a version requirement is broken").because(&e))?,
        options: order.options.clone(),
        option_flags: order.flags.clone(),
        cache: Plugin::cache(&session.context.data_root()?, &order.name),
    })
}

/// Chooses by checkpoint, flag, environment and configuration.
///
/// # Errors
/// An unknown, forbidden or contradicting name; a library that may not be loaded; none that works.
pub fn choose(session: &Session, recorded: Option<&BackendName>, args: &ActionArgs) -> Result<Chosen> {
    let settings = session.settings()?;
    let flag = args.backend.as_ref().map(BackendName::as_str);
    let choice = registry::select(recorded, flag, session.context.var("STASIS_BACKEND"), &settings)?;
    let tcp = args.tcp.iter().map(|word| format!("tcp={word}"));
    let flags = args.backend_option.iter().map(|(k, v)| format!("{k}={v}")).chain(tcp);
    let flags: Vec<String> = flags.collect();
    match choice {
        Choice::Named(name) => chosen(registry::locate(&name, &settings, &session.context)?, flags),
        Choice::Auto(names) => automatic(session, &settings, &names, &flags),
    }
}

fn chosen(located: Located, flags: Vec<String>) -> Result<Chosen> {
    let plugin = PluginOrder {
        name: located.name.to_string(),
        path: located.path,
        version: located.version.map(|v| v.to_string()),
        options: located.options,
        flags,
    };
    Ok(Chosen { plugin, library: located.file.into() })
}

/// The first that works here and leaves the user's uid alone. Why others were passed over is told.
fn automatic(
    session: &Session,
    settings: &Settings,
    names: &[BackendName],
    flags: &[String],
) -> Result<Chosen> {
    let mut error = Error::new("no backend can be used here");
    for name in names {
        match fits(session, settings, name, flags) {
            Ok(chosen) => return Ok(chosen),
            Err(why) => {
                report::verbose(format!("backend {name} is passed over: {why}"));
                error = error.because(format!("{name}: {why}"));
            }
        }
    }
    Err(error.help("`stasis backend check` shows everything that was looked for"))
}

fn fits(session: &Session, settings: &Settings, name: &BackendName, flags: &[String]) -> Result<Chosen> {
    let chosen = chosen(registry::locate(name, settings, &session.context)?, flags.to_vec())?;
    let copy = chosen.library.try_clone().map_err(|e| Error::new("cannot copy a descriptor").because(&e))?;
    let plugin = plugin(session, &chosen.plugin, copy)?;
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
        true => Ok(chosen),
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
    plugin: PluginOrder,
    checkpoint: String,
    restart: Option<u64>,
    identity: ImageIdentity,
) -> Result<EngineOrder> {
    let keep = match args.keep {
        Some(n) => Some(n),
        None => session.settings()?.keep.map(|k| k.value),
    };
    Ok(EngineOrder {
        plugin,
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
