//! A capture: the engine run inside the container, then what it leaves out.

use super::cgroup::{self, Room};
use super::explain::{Outcome, explain, full};
use super::{increments, launch, options};
use crate::model::{Image, Process};
use stasis_plugin_api::prelude::*;
use stasis_plugin_api::still;
use std::collections::BTreeMap;
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

/// Saves.
pub(super) fn capture(host: &Host<'_>, request: &CaptureRequest) -> Result<CaptureReport> {
    if increments::base(host, request).is_none() {
        request.instance.room()?;
    }
    let room = cgroup::room();
    let no_copy = too_many(&request.instance.survey, &room);
    let capturing = Capturing { host, request, room, no_copy };
    let again = || empty(&request.instance.staging);
    let still =
        still::capture(host, request, TMPFS, again, |stopped| Ok((capturing.dump(stopped)?, stopped)))?;
    let (said, stopped) = &still.dumped;
    capturing.report(said, &still.tmpfs, *stopped)
}

/// Why there can be no copies of the processes: each is there twice. Whether there is memory for them the engine says.
fn too_many(survey: &Survey, room: &Room) -> Option<String> {
    let tasks = 2 * survey.processes.len() as u64;
    let left = room.tasks.filter(|left| *left < tasks)?;
    Some(format!("a copy needs {tasks} processes, and {left} are left in the job's control group"))
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
    /// What the job's control group leaves.
    room: Room,
    /// Why the processes are not copied.
    no_copy: Option<String>,
}

impl Capturing<'_, '_> {
    /// The engine's own line about it.
    fn dump(&self, stopped: bool) -> Result<serde_json::Value> {
        self.host.progress(0, 0, "saving");
        let pid = self.request.instance.application.to_string();
        let mut arguments = vec!["dump", "--pid", &pid, "--dir", CAPTURE_DIR];
        let beside: Vec<String> = self.request.instance.survey.beside.iter().map(i32::to_string).collect();
        arguments.extend(beside.iter().flat_map(|pid| ["--beside", pid.as_str()]));
        let room = self.room.memory.map(|bytes| bytes.to_string());
        arguments.extend(room.iter().flat_map(|bytes| ["--room", bytes.as_str()]));
        let given = increments::prepare(self.host, self.request);
        arguments.extend(given.arguments.iter().map(String::as_str));
        let lock = launch::lock_file();
        let lock = lock.to_string_lossy();
        if options::copies_behind(self.host) {
            arguments.extend(["--lock", &*lock]);
        }
        let flag = options::capture_flag(self.host);
        match &flag {
            _ if stopped => arguments.push("--stop"),
            Some(flag) => arguments.push(flag),
            None if self.no_copy.is_some() => arguments.push("--plain"),
            None => {}
        }
        let left = self.host.time_left().saturating_sub(RESERVE).max(RESERVE);
        let output = self.host.run_inside(&RunInside {
            argv: launch::engine(&arguments),
            secluded: Some(launch::secluded(&arguments)),
            env: launch::environment(),
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            identity: Identity::Capable,
            kept: given.kept,
        })?;
        increments::tidy(&self.request.instance.staging);
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
        let mut error = full(explain("saving the application", &outcome));
        if !self.host.application().is_ok_and(|a| a.running) {
            error.kind = kind::APPLICATION_ENDED.to_owned();
        }
        Err(error)
    }

    fn report(&self, said: &serde_json::Value, tmpfs: &TmpfsSaved, stopped: bool) -> Result<CaptureReport> {
        let staging = &self.request.instance.staging;
        let core = fs::read(staging.join(CORE))
            .map_err(|e| BackendError::failed("the engine left no core.json").because(e))?;
        let image: Image = serde_json::from_slice(&core).map_err(|e| {
            BackendError::failed("the engine left a core.json that cannot be read").because(e)
        })?;
        // Sessions and groups keep the number of a leader that has ended.
        let own = |p: &Process| [p.pid, p.sid, p.pgid];
        let threads = image.processes.iter().flat_map(|p| p.threads.iter().map(|t| t.tid).chain(own(p)));
        let mut pids: Vec<i32> = threads.filter(|pid| *pid > 0).collect();
        pids.sort_unstable();
        pids.dedup();
        let facts: BTreeMap<String, serde_json::Value> = [
            ("rootless", self.request.instance.rootless.into()),
            ("tmpfs", (tmpfs.entries > 0).into()),
            ("pids", pids.into()),
            ("engine", said.clone()),
            (increments::FACT, said.get("tracking").cloned().unwrap_or_default()),
        ]
        .map(|(k, v): (&str, serde_json::Value)| (k.to_owned(), v))
        .into();
        let mut notes: Vec<String> = tmpfs.note().into_iter().collect();
        let flag = options::capture_flag(self.host);
        // Whoever demanded a copy is told that there was none.
        let asked = stopped || flag.as_deref() == Some("--plain");
        let told = said.get("why_plain").and_then(|v| v.as_str());
        let why = self.no_copy.as_deref().filter(|_| flag.is_none()).or(told);
        if let Some(why) = why.filter(|_| !asked) {
            notes.push(format!("the application stood still while its memory was written: {why}"));
        }
        let name = |p: &Process| SavedProcess { pid: p.pid, name: p.comm.clone() };
        let files = listed(staging)?;
        Ok(CaptureReport {
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            inherited: increments::inherited(&image, &files),
            files,
            processes: image.processes.iter().map(name).collect(),
            pause_us: said.get("pause_us").and_then(serde_json::Value::as_u64),
            facts,
            notes,
        })
    }
}

/// The files of the staging directory, relative to it. Links are not followed and not listed.
pub(super) fn listed(staging: &Path) -> Result<Vec<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
