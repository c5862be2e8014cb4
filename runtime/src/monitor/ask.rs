//! What an engine is asked before a container exists, for a start and for `--dry-run`.

use crate::error::{Error, Kind, Result};
use crate::launch::userns;
use crate::monitor::findings::judge;
use crate::monitor::live::process_view;
use crate::monitor::restart;
use crate::spec::{ContainerSpec, apply};
use crate::store::Generation;
use crate::worker::{NoServices, Worker, engine};
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::plan::{IdMap, RestartPlan};
use stasis_plugin_api::request::{ImageView, LaunchRequest, ProbeRequest, RestartRequest, Subject};
use std::path::{Path, PathBuf};

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

/// What the engine made of a spec.
#[derive(Debug)]
pub struct Planned {
    /// The container with the engine's wishes.
    pub spec: ContainerSpec,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// Files of the generation whose content may be compared while the application runs.
    pub behind: Vec<PathBuf>,
}

/// The engine's part of a plan, also for `--dry-run`, with its remarks for the user.
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
) -> Result<Planned> {
    let request = ProbeRequest { thorough: false, id_maps: id_maps(spec) };
    let probe = engine::probe(worker, &request, &NoServices)?;
    if !probe.usable {
        let error = Error::new(format!("{} cannot be used here", asked.engine_name))
            .because(probe.reason.unwrap_or_default());
        return Err(error.help(probe.help.unwrap_or_else(|| {
            format!("`stasis backend check {}` shows everything that was looked for", asked.backend)
        })));
    }
    let image = ImageView { name: spec.image.clone(), root: image_root(spec) };
    let process = process_view(spec);
    let hostname = spec.hostname.clone().unwrap_or_default();
    let (rootless, stdio) = (spec.namespaces.user, Some(spec.stdio));
    let (own_network, id_maps) = (spec.namespaces.net, id_maps(spec));
    let Some(generation) = generation else {
        let subject = Subject::Image { image: image.clone(), process: process.clone() };
        let findings = engine::examine(worker, &subject, memory, &NoServices)?;
        judge("save this program", asked.engine_name, findings, asked.accept_loss)
            .map_err(|error| error.kind(Kind::CannotSave))?;
        let request = LaunchRequest { image, process, hostname, rootless, own_network, id_maps, stdio };
        let plan = engine::plan_launch(worker, &request, memory, &NoServices)?;
        let spec = apply::launch(spec.clone(), &plan, asked.backend, staging, cover)?;
        return Ok(Planned { spec, notes: plan.notes, behind: Vec::new() });
    };
    let view = restart::view(generation);
    let subject = Subject::Generation { generation: view.clone(), image: image.clone() };
    let findings = engine::examine(worker, &subject, memory, &NoServices)?;
    judge("bring this generation back", asked.engine_name, findings, asked.accept_loss)?;
    let request = RestartRequest {
        generation: view,
        image,
        process,
        hostname,
        rootless,
        own_network,
        id_maps,
        pid_max: crate::sys::process::pid_max(),
        stdio,
    };
    let plan = engine::plan_restart(worker, &request, memory, &NoServices)?;
    let mut spec = apply::restart(spec.clone(), &plan, asked.backend, staging, generation.path(), cover)?;
    if let Some(engine) = &mut spec.engine {
        engine.clocks = restart::clocks(generation, asked.accept_loss)?;
        spec.namespaces.time |= engine.clocks.is_some();
    }
    let behind = match plan {
        RestartPlan::Rebuild { verify_behind, .. } => verify_behind,
        RestartPlan::Exec { .. } => Vec::new(),
    };
    Ok(Planned { spec, notes: Vec::new(), behind })
}

/// Where a worker sees the image: a mount is attached nowhere and handed to it as a descriptor.
fn image_root(spec: &ContainerSpec) -> PathBuf {
    if spec.root.is_mounted() { Worker::mounted_image() } else { spec.root.directory.clone() }
}

/// The id maps that this container can have.
pub fn id_maps(spec: &ContainerSpec) -> Vec<IdMap> {
    match (spec.namespaces.user, spec.ids.map) {
        (false, _) => vec![IdMap::Keep, IdMap::KeepAndZero, IdMap::Root],
        (true, IdMap::Root) => vec![IdMap::Root],
        (true, _) => userns::possible_maps(spec.ids.host_uid),
    }
}
