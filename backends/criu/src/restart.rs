//! A generation brought back: CRIU makes the processes under init, with their old pids.

use crate::capture::{TMPFS, number};
use crate::command::{self, IMAGES, PID_FILE, Setting, WORK};
use crate::discover::Criu;
use crate::explain::{During, Outcome, explain};
use crate::probe::{self, Kernel};
use crate::{launch, options};
use stasis_plugin_api::outside;
use stasis_plugin_api::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// The plan.
pub(crate) fn plan(host: &mut Host<'_>, criu: &Criu, request: &RestartRequest) -> Result<RestartPlan> {
    let generation = &request.generation;
    let fact = |name: &str| generation.facts.get(name);
    let tcp = options::recorded_tcp(generation);
    options::remember_tcp(host);
    for tcp in [tcp, options::tcp(host)] {
        launch::connections(tcp, request.rootless, request.own_network)?;
    }
    outside::of_the_same_kind_of_user(request)?;
    let setting = Setting {
        rootless: request.rootless,
        tcp,
        ghost_limit: fact("ghost-limit").and_then(|v| v.as_str()).unwrap_or("64M").to_owned(),
    };
    let mut needs = launch::needs(criu, id_map(request)?);
    if generation.flag("tmpfs") {
        needs.tmpfs_content = Some(Path::new(IMAGE_DIR).join(TMPFS));
    }
    let lazy = host.option_bool("lazy").unwrap_or(false);
    if lazy {
        lazy_is_allowed(host, criu, request.rootless)?;
        needs.helpers.push(lazy_helper(criu));
    }
    let helper = Helper {
        name: "criu".to_owned(),
        argv: command::restore(criu, &setting, lazy),
        env: command::environment(),
        readiness: Readiness::Succeeded,
        identity: Identity::Root,
        timeout_ms: outside::rebuild_timeout_ms(generation),
        ..Helper::default()
    };
    let highest = fact("highest-pid").and_then(serde_json::Value::as_i64);
    let mut taken = threads(generation);
    taken.extend(highest.and_then(|n| i32::try_from(n).ok()));
    Ok(RestartPlan::Rebuild {
        needs,
        helper: helper.into(),
        root: RestoredRoot::PidFile(Path::new(WORK).join(PID_FILE)),
        reserve_pids_up_to: outside::free_above(&taken, request.pid_max),
        verify_behind: Vec::new(),
    })
}

/// The map that the processes were saved with.
fn id_map(request: &RestartRequest) -> Result<IdMap> {
    if !request.rootless {
        return Ok(IdMap::Keep);
    }
    let wanted = if request.process.uid == 0 { IdMap::Root } else { IdMap::KeepAndZero };
    if request.id_maps.contains(&wanted) {
        return Ok(wanted);
    }
    Err(BackendError::new(kind::UNSUPPORTED, format!("generation {} cannot be rebuilt", request.generation.number))
        .because("its processes had their own user id and CRIU needs uid 0 beside it, for which subordinate ids have to be granted")
        .help("the administrator grants them with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER` and installs the package uidmap"))
}

fn lazy_is_allowed(host: &Host<'_>, criu: &Criu, rootless: bool) -> Result<()> {
    let feature = probe::lazy_restart(&Kernel { criu, rootless, scratch: &host.context().scratch });
    if feature.available {
        return Ok(());
    }
    Err(BackendError::new(kind::UNSUPPORTED, "a lazy restart is not possible here")
        .because(feature.reason)
        .help("leave the option lazy out"))
}

fn lazy_helper(criu: &Criu) -> Helper {
    Helper {
        name: "lazy-pages".to_owned(),
        argv: command::lazy_pages(criu),
        env: command::environment(),
        ignore_signals: vec![15, 2, 1],
        readiness: Readiness::PathExists(Path::new(WORK).join("lazy-pages.socket")),
        identity: Identity::Root,
        ..Helper::default()
    }
}

/// Every thread id of a generation, as its files' names tell them.
fn threads(generation: &GenerationView) -> BTreeSet<i32> {
    generation.files.iter().filter_map(|file| number(file.to_str()?, "core-")).collect()
}

/// A generation that this CRIU may not understand.
pub(crate) fn examine(criu: &Criu, generation: &GenerationView) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(saved) = semver::Version::parse(&generation.engine_version)
        && (saved.major, saved.minor) > (criu.version.major, criu.version.minor)
    {
        findings.push(Finding::fatal(
            "version",
            format!("generation {}", generation.number),
            &format!("it was saved by CRIU {saved}, which is newer than the {} here", criu.version),
            "install that version or a later one",
        ));
    }
    if !generation.files.iter().any(|f| *f == Path::new(IMAGES).join("inventory.img")) {
        findings.push(Finding::fatal(
            "images",
            format!("generation {}", generation.number),
            "it has no inventory of CRIU's",
            "take another generation",
        ));
    }
    findings
}

/// Why CRIU failed.
pub(crate) fn failed(failed: &FailedHelper) -> BackendError {
    explain(&Outcome {
        during: During::Restart,
        code: failed.code,
        signal: failed.signal,
        timed_out: failed.timed_out,
        log: &failed.output,
        processes: &[],
        sockets: &[],
    })
}
