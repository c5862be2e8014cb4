//! A capture: the engine run inside the container, then what it leaves out.

use super::explain::{Outcome, explain};
use super::{launch, options};
use crate::model::Image;
use stasis_plugin_api::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What the container's own tmpfs mounts held.
pub(super) const TMPFS: &str = "tmpfs.tar";
/// Everything but memory.
pub(super) const CORE: &str = "core.json";
/// Contents that are not memory of one process.
const FILES: &str = "files";
/// Left for hashing and answering when the engine takes all of the time given.
const RESERVE: Duration = Duration::from_secs(2);
const SIGCONT: i32 = 18;

/// Saves.
pub(super) fn capture(host: &Host<'_>, request: &CaptureRequest) -> Result<CaptureReport> {
    request.instance.room()?;
    let capturing = Capturing { host, request };
    let mut stopped = request.stop_after || !request.instance.survey.tmpfs.is_empty();
    let (said, survey, tmpfs) = loop {
        let said = capturing.dump(stopped)?;
        if stopped {
            let (survey, tmpfs) = capturing.finish_stopped()?;
            break (said, survey, tmpfs);
        }
        let survey = host.survey()?;
        if survey.tmpfs.is_empty() {
            break (said, survey, TmpfsSaved::default());
        }
        // The first file there was made between the look and the capture: once more, standing still.
        stopped = true;
        empty(&request.instance.staging)?;
    };
    capturing.report(&said, &survey, &tmpfs, stopped)
}

fn staging_failed(path: &Path, e: std::io::Error) -> BackendError {
    BackendError::failed(format!("cannot prepare {}", path.display())).because(e)
}

/// Removes what an earlier dump wrote.
fn empty(staging: &Path) -> Result<()> {
    for name in listed(staging)? {
        let path = staging.join(name);
        fs::remove_file(&path).map_err(|e| staging_failed(&path, e))?;
    }
    match fs::remove_dir(staging.join(FILES)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(staging_failed(&staging.join(FILES), e)),
        _ => Ok(()),
    }
}

struct Capturing<'a, 'h> {
    host: &'a Host<'h>,
    request: &'a CaptureRequest,
}

impl Capturing<'_, '_> {
    /// The engine's own line about it.
    fn dump(&self, stopped: bool) -> Result<serde_json::Value> {
        self.host.progress(0, 0, "saving");
        let pid = self.request.instance.application.to_string();
        let mut arguments = vec!["dump", "--pid", &pid, "--dir", CAPTURE_DIR];
        let beside: Vec<String> = self.request.instance.survey.beside.iter().map(i32::to_string).collect();
        arguments.extend(beside.iter().flat_map(|pid| ["--beside", pid.as_str()]));
        let flag = options::capture_flag(self.host);
        if stopped {
            arguments.push("--stop");
        } else {
            arguments.extend(flag.as_deref());
        }
        let left = self.host.time_left().saturating_sub(RESERVE).max(RESERVE);
        let output = self.host.run_inside(&RunInside {
            argv: launch::engine(&arguments),
            env: launch::environment(),
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            identity: Identity::Capable,
        })?;
        if output.code == Some(0) {
            let last = output.stdout.lines().last().unwrap_or_default();
            return Ok(serde_json::from_str(last).unwrap_or_default());
        }
        let outcome = Outcome {
            code: output.code,
            signal: output.signal,
            timed_out: output.timed_out,
            said: &output.stderr,
        };
        let mut error = explain("saving the application", &outcome);
        if !self.host.application().is_ok_and(|a| a.running) {
            error.kind = kind::APPLICATION_ENDED.to_owned();
        }
        Err(error)
    }

    /// The tree stands still: its tmpfs content belongs to exactly this moment.
    fn finish_stopped(&self) -> Result<(Survey, TmpfsSaved)> {
        let outcome = self.host.survey().and_then(|survey| Ok((survey, self.host.save_tmpfs(TMPFS)?)));
        if self.request.stop_after && outcome.is_ok() {
            return outcome;
        }
        self.run_on(outcome.as_ref().ok().map(|o| &o.0))?;
        outcome
    }

    /// Lets everybody run on who ran before: children first, so that no parent sees a stopped child.
    fn run_on(&self, survey: Option<&Survey>) -> Result<()> {
        let before = &self.request.instance.survey;
        let now = survey.unwrap_or(before);
        let was_stopped = |pid: i32| before.processes.iter().any(|p| p.pid == pid && p.state == "T");
        let pids: Vec<i32> = deepest_first(now).into_iter().filter(|pid| !was_stopped(*pid)).collect();
        self.host.signal(&pids, SIGCONT)
    }

    fn report(
        &self,
        said: &serde_json::Value,
        survey: &Survey,
        tmpfs: &TmpfsSaved,
        stopped: bool,
    ) -> Result<CaptureReport> {
        let staging = &self.request.instance.staging;
        let core = fs::read(staging.join(CORE))
            .map_err(|e| BackendError::failed("the engine left no core.json").because(e))?;
        let image: Image = serde_json::from_slice(&core).map_err(|e| {
            BackendError::failed("the engine left a core.json that cannot be read").because(e)
        })?;
        let threads = image.processes.iter().flat_map(|p| p.threads.iter().map(|t| t.tid).chain([p.pid]));
        let mut pids: Vec<i32> = threads.collect();
        pids.sort_unstable();
        pids.dedup();
        let facts: BTreeMap<String, serde_json::Value> = [
            ("rootless", self.request.instance.rootless.into()),
            ("tmpfs", (tmpfs.entries > 0).into()),
            ("pids", pids.into()),
            ("engine", said.clone()),
        ]
        .map(|(k, v): (&str, serde_json::Value)| (k.to_owned(), v))
        .into();
        let mut notes = Vec::new();
        let asked = stopped || options::capture_flag(self.host).is_some();
        if let Some(why) = said.get("why_plain").and_then(|v| v.as_str()).filter(|_| !asked) {
            notes.push(format!("the application stood still while its memory was written: {why}"));
        }
        let name = |p: &ProcessInfo| SavedProcess { pid: p.pid, name: p.name.clone() };
        Ok(CaptureReport {
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            files: listed(staging)?,
            processes: survey.processes.iter().map(name).collect(),
            pause_us: said.get("pause_us").and_then(serde_json::Value::as_u64),
            facts,
            notes,
        })
    }
}

/// The files of the staging directory, relative to it. Links are not followed and not listed.
fn listed(staging: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for within in ["", FILES] {
        let path = staging.join(within);
        let failed =
            |e: std::io::Error| BackendError::failed(format!("cannot read {}", path.display())).because(e);
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !within.is_empty() => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                names.push(if within.is_empty() { name } else { format!("{within}/{name}") });
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Pids, children before their parents.
fn deepest_first(survey: &Survey) -> Vec<i32> {
    let parents: HashMap<i32, i32> = survey.processes.iter().map(|p| (p.pid, p.parent)).collect();
    let depth = |mut pid: i32| {
        let mut depth = 0;
        while let Some(parent) = parents.get(&pid).filter(|_| depth < parents.len()) {
            (pid, depth) = (*parent, depth + 1);
        }
        depth
    };
    let mut pids: Vec<i32> = survey.processes.iter().map(|p| p.pid).collect();
    pids.sort_by_key(|pid| std::cmp::Reverse(depth(*pid)));
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_come_before_parents() {
        let process = |pid, parent| ProcessInfo { pid, parent, ..ProcessInfo::default() };
        let processes = vec![process(100, 1), process(101, 100), process(102, 101), process(103, 100)];
        let survey = Survey { processes, ..Survey::default() };
        assert_eq!(deepest_first(&survey), [102, 101, 103, 100]);
        // What can never be in /proc does not hang either.
        let survey = Survey { processes: vec![process(5, 6), process(6, 5)], ..Survey::default() };
        assert_eq!(deepest_first(&survey).len(), 2);
    }

    #[test]
    fn only_plain_files_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CORE), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(listed(dir.path()).unwrap(), [CORE]);
        fs::create_dir(dir.path().join(FILES)).unwrap();
        fs::write(dir.path().join(FILES).join("0"), "x").unwrap();
        assert_eq!(listed(dir.path()).unwrap(), [CORE, "files/0"]);
        fs::remove_file(dir.path().join("link")).unwrap();
        empty(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
