//! A generation brought back: CRIU makes the processes under init, with their old pids.

use crate::capture::TMPFS;
use crate::command::{self, IMAGES, PID_FILE, Setting, WORK};
use crate::discover::Criu;
use crate::explain::{During, Outcome, explain};
use crate::{launch, options};
use stasis_plugin_api::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// A slow disk reads so many bytes in a second; the deadline of a restart follows from it.
const SLOWEST: u64 = 50 << 20;
/// Processes of ours and CRIU's, and what the application starts at once, get pids from this range.
const ROOM: i32 = 1000;

/// The plan.
pub(crate) fn plan(host: &mut Host<'_>, criu: &Criu, request: &RestartRequest) -> Result<RestartPlan> {
    let generation = &request.generation;
    let fact = |name: &str| generation.facts.get(name);
    let flag = |name: &str| fact(name).and_then(serde_json::Value::as_bool).unwrap_or(false);
    let tcp = options::recorded_tcp(generation);
    options::remember_tcp(host);
    for tcp in [tcp, options::tcp(host)] {
        launch::connections(tcp, request.rootless, request.own_network)?;
    }
    if flag("rootless") != request.rootless {
        let (then, now) =
            if request.rootless { ("root", "an ordinary user") } else { ("an ordinary user", "root") };
        return Err(BackendError::new(
            kind::UNSUPPORTED,
            format!("generation {} cannot be rebuilt", generation.number),
        )
        .because(format!(
            "it was saved by {then}, and this is {now}: the processes would get ids that are not there"
        ))
        .help(format!("restart it as {then}")));
    }
    let setting = Setting {
        rootless: request.rootless,
        tcp,
        ghost_limit: fact("ghost-limit").and_then(|v| v.as_str()).unwrap_or("64M").to_owned(),
    };
    let mut needs = launch::needs(criu, id_map(request)?);
    if flag("tmpfs") {
        needs.tmpfs_content = Some(Path::new(IMAGE_DIR).join(TMPFS));
    }
    let lazy = host.option_bool("lazy").unwrap_or(false);
    if lazy {
        lazy_is_allowed(host)?;
        needs.helpers.push(lazy_helper(criu));
    }
    let helper = Helper {
        name: "criu".to_owned(),
        argv: command::restore(criu, &setting, lazy),
        env: command::environment(),
        descriptors: Vec::new(),
        ignore_signals: Vec::new(),
        readiness: Readiness::Succeeded,
        essential: false,
        identity: Identity::Root,
        timeout_ms: 60_000 + 1000 * (size(generation) / SLOWEST),
    };
    let highest = fact("highest-pid").and_then(serde_json::Value::as_i64);
    let highest = highest.and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    Ok(RestartPlan::Rebuild {
        needs,
        helper,
        root: RestoredRoot::PidFile(Path::new(WORK).join(PID_FILE)),
        reserve_pids_up_to: free_above(highest, &threads(generation), pid_max()),
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

fn lazy_is_allowed(host: &Host<'_>) -> Result<()> {
    let open = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    if host.context().euid == 0 || open.is_ok_and(|text| text.trim() == "1") {
        return Ok(());
    }
    Err(BackendError::new(kind::UNSUPPORTED, "a lazy restart is not possible here")
        .because("userfaultfd is closed to ordinary users")
        .help("leave the option lazy out; the administrator opens it with `sysctl vm.unprivileged_userfaultfd=1`"))
}

fn lazy_helper(criu: &Criu) -> Helper {
    Helper {
        name: "lazy-pages".to_owned(),
        argv: command::lazy_pages(criu),
        env: command::environment(),
        descriptors: Vec::new(),
        ignore_signals: vec![15, 2, 1],
        readiness: Readiness::PathExists(Path::new(WORK).join("lazy-pages.socket")),
        essential: false,
        identity: Identity::Root,
        timeout_ms: 0,
    }
}

fn size(generation: &GenerationView) -> u64 {
    let bytes = |file| std::fs::metadata(generation.directory.join(file)).map_or(0, |m| m.len());
    generation.files.iter().map(bytes).sum()
}

/// Every thread id of a generation, as its files' names tell them.
fn threads(generation: &GenerationView) -> BTreeSet<i32> {
    let id = |path: &std::path::PathBuf| {
        path.file_name()?.to_str()?.strip_prefix("core-")?.strip_suffix(".img")?.parse().ok()
    };
    generation.files.iter().filter_map(id).collect()
}

fn pid_max() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768)
}

/// A pid above which there is room for others: above all of the generation's, or in a gap between them when
/// those reach the end of the range.
fn free_above(highest: i32, taken: &BTreeSet<i32>, max: i32) -> i32 {
    let highest = highest.max(taken.last().copied().unwrap_or(0));
    if highest < max - ROOM {
        // CRIU's own processes of this restart must not meet those of the next generation.
        return highest + 1;
    }
    // The kernel starts over at 300.
    let mut from = 300;
    for pid in taken.range(300..) {
        if pid - from > ROOM {
            break;
        }
        from = *pid + 1;
    }
    from
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

/// All of it runs: CRIU only succeeds as a whole, so the root process is the question.
pub(crate) fn alive(host: &mut Host<'_>, request: &AliveRequest) -> Result<ReadyReport> {
    let state = host.application()?;
    if !state.running {
        return Err(BackendError::new(
            kind::APPLICATION_ENDED,
            "the application ended right after it was brought back",
        )
        .because(state.ended.unwrap_or_else(|| "nothing tells how".to_owned())));
    }
    let processes = request.generation.processes.len();
    Ok(ReadyReport { processes: u32::try_from(processes).unwrap_or(u32::MAX), notes: Vec::new() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_get_pids_that_are_not_taken() {
        let set = |pids: &[i32]| pids.iter().copied().collect::<BTreeSet<i32>>();
        assert_eq!(free_above(120, &set(&[100, 120]), 32768), 121);
        assert_eq!(free_above(0, &set(&[100, 150]), 32768), 151);
        let near = free_above(32700, &set(&[100, 310, 500, 32700]), 32768);
        assert_eq!(near, 501);
        assert_eq!(free_above(32700, &set(&[32700]), 32768), 300);
    }
}
