//! A capture: CRIU run inside the container, then what it leaves out.

use crate::command::{self, Dump, IMAGES, PARENT, Setting};
use crate::discover::Criu;
use crate::explain::{During, Outcome, explain};
use crate::mend;
use crate::options::{self, Tcp};
use crate::stats::{self, DumpStats};
use stasis_plugin_api::prelude::*;
use stasis_plugin_api::still;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// What the container's own tmpfs mounts held.
pub(crate) const TMPFS: &str = "tmpfs.tar";
/// Left for hashing and answering when CRIU takes all of the time given.
const RESERVE: Duration = Duration::from_secs(2);
const SIGKILL: i32 = 9;

/// Saves.
pub(crate) fn capture(host: &mut Host<'_>, criu: &Criu, request: &CaptureRequest) -> Result<CaptureReport> {
    let instance = &request.instance;
    instance.room()?;
    let setting = Setting {
        rootless: instance.rootless,
        tcp: options::tcp(host),
        ghost_limit: options::ghost_limit(host)?,
    };
    let capturing = Capturing { host, criu, setting, request };
    let images = instance.staging.join(IMAGES);
    make(&images)?;
    let before = capturing.pre_dump()?;
    let again = || remove_files(&images).map_err(|e| staging_failed(&images, e));
    let still = still::capture(host, request, TMPFS, again, |stopped| capturing.dump(stopped, before))?;
    capturing.report(&still.survey, &still.tmpfs)
}

fn staging_failed(path: &Path, e: std::io::Error) -> BackendError {
    BackendError::failed(format!("cannot prepare {}", path.display())).because(e)
}

fn make(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(|e| staging_failed(path, e))
}

/// What a dump wrote; an earlier pass over the memory stays.
fn remove_files(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

struct Capturing<'a, 'h> {
    host: &'a Host<'h>,
    criu: &'a Criu,
    setting: Setting,
    request: &'a CaptureRequest,
}

impl Capturing<'_, '_> {
    fn run(&self, argv: Vec<String>) -> Result<RunOutput> {
        let left = self.host.time_left().saturating_sub(RESERVE).max(RESERVE);
        self.host.run_inside(&RunInside {
            argv,
            env: command::environment(),
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            identity: Identity::Capable,
            ..RunInside::default()
        })
    }

    /// Only where the kernel tells which pages were written since: without that CRIU ends by a signal.
    fn pre_dump(&self) -> Result<bool> {
        if !self.host.option_bool("pre-dump").unwrap_or(false) {
            return Ok(false);
        }
        let mut check = self.criu.command_inside();
        check.extend(["check", "--no-default-config", "--feature", "mem_dirty_track"].map(str::to_owned));
        if self.run(check)?.code != Some(0) {
            return Err(BackendError::new(kind::UNSUPPORTED, "the memory cannot be saved before the pause")
                .because("this kernel does not tell which pages were written since (soft-dirty)")
                .help("leave the option pre-dump out"));
        }
        make(&self.request.instance.staging.join(IMAGES).join(PARENT))?;
        self.host.progress(0, 0, "saving the memory before the pause");
        let pid = self.request.instance.application;
        let output = self.run(command::pre_dump(self.criu, &self.setting, pid))?;
        self.judge(&output)?;
        Ok(true)
    }

    fn dump(&self, stopped: bool, before: bool) -> Result<()> {
        self.host.progress(0, 0, "saving");
        let pid = self.request.instance.application;
        let dump = Dump { pid, stopped, before };
        let output = self.run(command::dump(self.criu, &self.setting, &dump))?;
        self.judge(&output)
    }

    fn judge(&self, output: &RunOutput) -> Result<()> {
        if output.code == Some(0) {
            return Ok(());
        }
        let runs = self.host.application().is_ok_and(|a| a.running);
        if output.signal == Some(SIGKILL) && runs && !output.timed_out {
            return Err(BackendError::failed("CRIU was killed while it saved the application")
                .because("signal 9")
                .help("something else killed it: memory may have run out (see dmesg)"));
        }
        let survey = &self.request.instance.survey;
        let mut error = explain(&Outcome {
            during: During::Capture,
            code: output.code,
            signal: output.signal,
            timed_out: output.timed_out,
            log: &output.stderr,
            processes: &survey.processes,
            sockets: &survey.sockets,
        });
        if !runs {
            error.kind = kind::APPLICATION_ENDED.to_owned();
        }
        Err(error)
    }

    fn report(&self, survey: &Survey, tmpfs: &TmpfsSaved) -> Result<CaptureReport> {
        let staging = &self.request.instance.staging;
        let mut files = listed(staging, IMAGES)?;
        if !files.iter().any(|f| *f == format!("{IMAGES}/inventory.img")) {
            return Err(BackendError::failed(
                "CRIU said that it saved the application and left no inventory",
            ));
        }
        let highest = files.iter().filter_map(|f| number(f, "core-")).max().unwrap_or(0);
        let mended =
            mend::timers(&staging.join(IMAGES)).map_err(|e| staging_failed(&staging.join(IMAGES), e))?;
        if mended > 0 {
            tracing::debug!(mended, "timers that expired during the capture");
        }
        let stats = fs::read(staging.join(IMAGES).join("stats-dump")).ok().and_then(|b| stats::dump(&b));
        if tmpfs.entries > 0 {
            files.push(TMPFS.to_owned());
        }
        let mut facts: BTreeMap<String, serde_json::Value> = [
            ("tcp", self.setting.tcp.word().into()),
            ("rootless", self.setting.rootless.into()),
            ("tmpfs", (tmpfs.entries > 0).into()),
            ("highest-pid", highest.into()),
            ("ghost-limit", self.setting.ghost_limit.clone().into()),
        ]
        .map(|(k, v): (&str, serde_json::Value)| (k.to_owned(), v))
        .into();
        if let Some(stats) = &stats {
            facts.insert("statistics".to_owned(), statistics(stats, memory(staging, &files)));
        }
        let mut notes: Vec<String> = tmpfs.note().into_iter().collect();
        let open = survey.sockets.iter().filter(|s| s.is_connection()).count();
        if self.setting.tcp == Tcp::Close && open > 0 {
            notes.push(format!("after a restart the application finds {open} TCP connection(s) closed"));
        }
        Ok(CaptureReport {
            engine_version: self.criu.version.to_string(),
            processes: processes(&files, [&self.request.instance.survey, survey]),
            files,
            pause_us: stats.map(|stats| stats.freezing_us + stats.frozen_us),
            facts,
            notes,
            ..CaptureReport::default()
        })
    }
}

/// Who is in the images. The looks were taken before and after, while the application ran: they only tell the names.
fn processes(files: &[String], looks: [&Survey; 2]) -> Vec<SavedProcess> {
    let of = |kind| files.iter().filter_map(move |file| number(file, kind)).collect::<BTreeSet<i32>>();
    let (tasks, memories) = (of("core-"), of("mm-"));
    let known = || looks.into_iter().flat_map(|look| &look.processes);
    // A thread has no memory of its own; neither has a zombie, which only a look tells from a thread.
    let zombies = known().map(|p| p.pid).filter(|pid| tasks.contains(pid));
    let pids: BTreeSet<i32> = memories.iter().copied().chain(zombies).collect();
    let name = |pid| known().find(|p| p.pid == pid).map_or_else(|| "?".to_owned(), |p| p.name.clone());
    pids.into_iter().map(|pid| SavedProcess { pid, name: name(pid) }).collect()
}

/// The bytes of memory in the images.
fn memory(staging: &Path, files: &[String]) -> u64 {
    let pages = files.iter().filter(|f| f.rsplit('/').next().is_some_and(|name| name.starts_with("pages-")));
    pages.map(|file| fs::metadata(staging.join(file)).map_or(0, |m| m.len())).sum()
}

fn statistics(stats: &DumpStats, bytes: u64) -> serde_json::Value {
    serde_json::json!({
        "freezing-us": stats.freezing_us,
        "frozen-us": stats.frozen_us,
        "memory-dump-us": stats.memdump_us,
        "memory-write-us": stats.memwrite_us,
        "pages-scanned": stats.pages_scanned,
        "pages-skipped": stats.pages_skipped,
        "pages-written": stats.pages_written,
        "pages-lazy": stats.pages_lazy,
        "bytes-written": bytes,
    })
}

/// The files of a directory, relative to the staging directory. Links are not followed and not listed.
fn listed(staging: &Path, directory: &str) -> Result<Vec<String>> {
    let path = staging.join(directory);
    let failed =
        |e: std::io::Error| BackendError::failed(format!("cannot read {}", path.display())).because(e);
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (kind, name) = (entry.file_type().map_err(failed)?, entry.file_name());
        let name = format!("{directory}/{}", name.to_string_lossy());
        if kind.is_file() {
            names.push(name);
        } else if kind.is_dir() && entry.file_name() == PARENT {
            names.extend(listed(staging, &name)?);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The id of `images/KIND-ID.img`.
pub(crate) fn number(file: &str, kind: &str) -> Option<i32> {
    file.rsplit('/').next()?.strip_prefix(kind)?.strip_suffix(".img")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_ids_of_files() {
        assert_eq!(number("images/core-100.img", "core-"), Some(100));
        assert_eq!(number("images/mm-100.img", "core-"), None);
        assert_eq!(number("images/core-x.img", "core-"), None);
    }

    #[test]
    fn processes_are_those_in_the_images() {
        let process = |pid, name: &str| ProcessInfo { pid, name: name.into(), ..ProcessInfo::default() };
        let look = |all: Vec<ProcessInfo>| Survey { processes: all, ..Survey::default() };
        let before = look(vec![process(100, "python3"), process(101, "ended-since"), process(104, "zombie")]);
        let after = look(vec![process(100, "python3"), process(103, "begun-since"), process(104, "zombie")]);
        let files =
            ["core-100", "mm-100", "core-101", "mm-101", "core-102", "core-104", "core-105", "mm-105"];
        let files: Vec<String> = files.iter().map(|name| format!("images/{name}.img")).collect();
        let told: Vec<_> =
            processes(&files, [&before, &after]).into_iter().map(|p| (p.pid, p.name)).collect();
        let expected = [(100, "python3"), (101, "ended-since"), (104, "zombie"), (105, "?")];
        assert_eq!(told, expected.map(|(pid, name)| (pid, name.to_owned())));
    }

    #[test]
    fn only_plain_files_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join(IMAGES);
        fs::create_dir(&images).unwrap();
        fs::write(images.join("inventory.img"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", images.join("link")).unwrap();
        fs::create_dir(images.join(PARENT)).unwrap();
        fs::write(images.join(PARENT).join("pages-1.img"), "x").unwrap();
        assert_eq!(
            listed(dir.path(), IMAGES).unwrap(),
            ["images/inventory.img", "images/parent/pages-1.img"]
        );
        remove_files(&images).unwrap();
        assert_eq!(listed(dir.path(), IMAGES).unwrap(), ["images/parent/pages-1.img"]);
    }
}
