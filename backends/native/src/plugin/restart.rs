//! A generation brought back: the engine makes the processes under init, with their old pids.

use super::capture::{CORE, TMPFS};
use super::{launch, options};
use stasis_plugin_api::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// A slow disk reads so many bytes in a second; the deadline of a restart follows from it.
const SLOWEST: u64 = 50 << 20;
/// Processes of ours, and what the application starts at once, get pids from this range.
const ROOM: i32 = 1000;

/// The plan.
pub(super) fn plan(host: &Host<'_>, request: &RestartRequest) -> Result<RestartPlan> {
    let generation = &request.generation;
    let flag = |name: &str| generation.facts.get(name).and_then(serde_json::Value::as_bool).unwrap_or(false);
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
    let mut needs = launch::needs(host)?;
    if flag("tmpfs") {
        needs.tmpfs_content = Some(Path::new(IMAGE_DIR).join(TMPFS));
    }
    let pid_file = launch::pid_file();
    let file = pid_file.to_string_lossy();
    let mut arguments = vec!["restore", "--dir", IMAGE_DIR, "--pid-file", &file];
    let how = options::restart_flag(host);
    arguments.extend(how.as_deref());
    let helper = Helper {
        name: "native".to_owned(),
        argv: launch::engine(&arguments),
        env: launch::environment(),
        readiness: Readiness::Succeeded,
        identity: Identity::Capable,
        timeout_ms: 60_000 + 1000 * (size(generation) / SLOWEST),
        ..Helper::default()
    };
    let pids = pids(generation);
    Ok(RestartPlan::Rebuild {
        needs,
        helper,
        root: RestoredRoot::PidFile(pid_file),
        reserve_pids_up_to: free_above(&pids, pid_max()),
    })
}

fn size(generation: &GenerationView) -> u64 {
    let bytes = |file| std::fs::metadata(generation.directory.join(file)).map_or(0, |m| m.len());
    generation.files.iter().map(bytes).sum()
}

/// Every process and thread id of a generation.
fn pids(generation: &GenerationView) -> BTreeSet<i32> {
    let list = generation.facts.get("pids").and_then(serde_json::Value::as_array);
    let recorded = list.into_iter().flatten().filter_map(serde_json::Value::as_i64);
    let recorded = recorded.filter_map(|pid| i32::try_from(pid).ok());
    recorded.chain(generation.processes.iter().copied()).collect()
}

fn pid_max() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768)
}

/// A pid above which there is room for others: above all of the generation's, or in a gap between them when
/// those reach the end of the range.
fn free_above(taken: &BTreeSet<i32>, max: i32) -> i32 {
    let highest = taken.last().copied().unwrap_or(0);
    if highest < max - ROOM {
        // The engine's own processes of this restart must not meet those of the next generation.
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

/// A generation that this engine cannot understand.
pub(super) fn examine(generation: &GenerationView) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !generation.files.iter().any(|f| *f == Path::new(CORE)) {
        findings.push(Finding::fatal(
            "images",
            format!("generation {}", generation.number),
            "it has no core.json",
            "take another generation",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_get_pids_that_are_not_taken() {
        let set = |pids: &[i32]| pids.iter().copied().collect::<BTreeSet<i32>>();
        assert_eq!(free_above(&set(&[100, 120]), 32768), 121);
        assert_eq!(free_above(&set(&[100, 150]), 32768), 151);
        assert_eq!(free_above(&set(&[100, 310, 500, 32700]), 32768), 501);
        assert_eq!(free_above(&set(&[32700]), 32768), 300);
    }

    #[test]
    fn what_was_saved_is_read_from_the_facts() {
        let facts = [("pids".to_owned(), serde_json::json!([100, 103]))].into();
        let view = GenerationView { processes: vec![100], facts, ..GenerationView::default() };
        assert_eq!(pids(&view).into_iter().collect::<Vec<_>>(), [100, 103]);
        assert_eq!(examine(&view).len(), 1);
    }
}
