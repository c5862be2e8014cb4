//! A generation brought back: the engine makes the processes under init, with their old pids.

use super::capture::{CORE, TMPFS};
use super::{launch, options};
use nix::sys::statvfs::{FsFlags, statvfs};
use stasis_plugin_api::outside;
use stasis_plugin_api::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The plan.
pub(super) fn plan(host: &Host<'_>, request: &RestartRequest) -> Result<RestartPlan> {
    let generation = &request.generation;
    outside::of_the_same_kind_of_user(request)?;
    let own = launch::Own::read()?;
    let mut needs = own.needs(host)?;
    if generation.flag("tmpfs") {
        needs.tmpfs_content = Some(Path::new(IMAGE_DIR).join(TMPFS));
    }
    let pid_file = launch::pid_file();
    let file = pid_file.to_string_lossy();
    let maps = maps(host, generation);
    let how = if maps { "--map" } else { "--copy" };
    let mut words = vec!["--dir", IMAGE_DIR, "--pid-file", &file, how];
    let lock_file = launch::lock_file();
    let lock = ["--lock", &lock_file.to_string_lossy()];
    if maps && options::copies_behind(host) {
        words.extend(lock);
        let detach = [&["detach", "--pid-file", &file], &lock[..]].concat();
        let helper = launch::helper("native-detach", &detach);
        needs.helpers.push(Helper { readiness: Readiness::Started, ..helper });
    }
    let helper = Helper {
        early: own.early(&words, &generation.directory),
        readiness: Readiness::Succeeded,
        timeout_ms: outside::rebuild_timeout_ms(generation),
        ..launch::helper("native", &[&["restore"], &words[..]].concat())
    };
    Ok(RestartPlan::Rebuild {
        needs,
        helper: helper.into(),
        root: RestoredRoot::PidFile(pid_file),
        reserve_pids_up_to: outside::free_above(&pids(generation), request.pid_max),
        verify_behind: if maps { memory(generation) } else { Vec::new() },
    })
}

/// The application runs.
pub(super) fn alive(host: &Host<'_>, request: &AliveRequest) -> Result<ReadyReport> {
    let mut report = outside::alive(host, request)?;
    if options::maps(host) && !maps(host, &request.generation) {
        report.notes.push(
            "memory was copied, not mapped: the checkpoint lies on a file system mounted noexec, and a program could not make executable what is mapped from there; keep checkpoints elsewhere (STASIS_DATA_DIR) to have them mapped"
                .to_owned(),
        );
    }
    Ok(report)
}

/// Whether memory is mapped from the generation. The kernel refuses to let anything be executed, also later on, that is mapped
/// from a file system mounted noexec: code that a program makes while it runs lies in memory as everything else does.
fn maps(host: &Host<'_>, generation: &GenerationView) -> bool {
    options::maps(host)
        && !statvfs(&generation.directory).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC))
}

/// The files that hold the memory of processes.
fn memory(generation: &GenerationView) -> Vec<PathBuf> {
    let memory = |file: &&PathBuf| file.to_str().is_some_and(|name| name.starts_with("pages-"));
    generation.files.iter().filter(memory).cloned().collect()
}

/// Every process and thread id of a generation.
fn pids(generation: &GenerationView) -> BTreeSet<i32> {
    let list = generation.facts.get("pids").and_then(serde_json::Value::as_array);
    let recorded = list.into_iter().flatten().filter_map(serde_json::Value::as_i64);
    let recorded = recorded.filter_map(|pid| i32::try_from(pid).ok());
    recorded.chain(generation.processes.iter().copied()).collect()
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
    fn what_was_saved_is_read_from_the_facts() {
        let facts = [("pids".to_owned(), serde_json::json!([100, 103]))].into();
        let view = GenerationView { processes: vec![100], facts, ..GenerationView::default() };
        assert_eq!(pids(&view).into_iter().collect::<Vec<_>>(), [100, 103]);
        assert_eq!(examine(&view).len(), 1);
    }
}
