//! A capture: the blocking command, then every file looked at.

use crate::asserts;
use crate::coordinator::{self, status};
use crate::images::{self, Set};
use crate::memory_files;
use crate::preload::{SHIM, SHIM_PATH};
use nix::sys::statvfs::statvfs;
use stasis_plugin_api::prelude::*;
use std::path::Path;
use std::time::{Duration, Instant};

/// The preload library goes along: a restart needs the very same one.
pub(crate) const SHIM_FILE: &str = "preload.so";
/// Kept of the time given, to tell what became of it: whoever is ended for being late tells nothing.
const TO_TELL: Duration = Duration::from_secs(1);
/// With less free than this a write of DMTCP's has failed.
const FULL: u64 = 1 << 20;

/// Saves.
pub(crate) fn capture(host: &mut Host<'_>, request: &CaptureRequest) -> Result<CaptureReport> {
    let staging = &request.instance.staging;
    // A capture without room kills the application, so it is not begun.
    request.instance.room()?;
    let before = status(host)?;
    if !before.running || before.peers == 0 {
        return Err(BackendError::new(kind::BUSY, "the application cannot be saved now")
            .because(format!("{} process(es) under DMTCP, not all of them running", before.peers))
            .help("try again; a program that starts others needs a moment"));
    }
    let memory_files = memory_files::before(host, &request.instance.survey)?;
    host.progress(0, 0, "saving");
    let until = Instant::now() + host.time_left().saturating_sub(TO_TELL);
    let output = coordinator::command(host, &["-bc"], until.saturating_duration_since(Instant::now()))?;
    let saved =
        judge(host, &request.instance.logs, &output).and_then(|()| complete(host, &request.instance, until));
    let set = saved.map_err(|error| filled_up(error, staging))?;
    for image in &set.images {
        images::check(&staging.join(&image.file))?;
    }
    let (has_files, notes) = memory_files::after(host, &memory_files, staging)?;
    let mut report = report(host, staging, set)?;
    if has_files {
        report.files.push(memory_files::FILE.to_owned());
    }
    report.facts.insert("tmpfs".to_owned(), has_files.into());
    report.notes.extend(notes);
    Ok(report)
}

/// The estimate cannot know what others write meanwhile. DMTCP then dies without a word about it: its log lies on
/// the same file system as a rule.
fn filled_up(error: BackendError, staging: &Path) -> BackendError {
    let free = statvfs(staging).map_or(u64::MAX, |fs| fs.blocks_available() * fs.fragment_size());
    if free >= FULL {
        return error;
    }
    let full = BackendError::new(kind::NO_SPACE, "the file system became full while the state was written")
        .because(format!("nothing is free any more at {}", staging.display()))
        .help("free some space there, or remove older generations with `stasis checkpoint prune`");
    full.engine_output(error.engine_output.unwrap_or_default())
}

fn judge(host: &Host<'_>, logs: &Path, output: &RunOutput) -> Result<()> {
    if output.code == Some(0) {
        return Ok(());
    }
    let alive = host.application().is_ok_and(|a| a.running);
    let said = format!("{}\n{}", output.stderr, coordinator::said(host, logs));
    let error = match (output.code, output.timed_out) {
        (_, true) => late("its coordinator waits for processes that do not answer"),
        (Some(2), _) if alive => {
            BackendError::new(kind::BUSY, "DMTCP says that the application is not in a state to be saved")
        }
        _ => BackendError::new(
            if alive { kind::FAILED } else { kind::APPLICATION_ENDED },
            "DMTCP could not save the application",
        ),
    };
    Err(asserts::explain(error, &said))
}

/// Who starts a process just when a capture begins may wait for the coordinator for ever (DMTCP 5.0: it does not take the
/// new process, and does not say so), and the capture for whoever started it. The coordinator tells of all that they run.
fn late(why: impl std::fmt::Display) -> BackendError {
    BackendError::new(kind::STANDS_STILL, "DMTCP did not complete the capture in the time given").because(why)
}

/// DMTCP 4.2 answers before the images are complete, so they are waited for whatever the version. How many there will be
/// nobody knows before: processes end and begin while it is asked.
fn complete(host: &Host<'_>, instance: &InstanceView, until: Instant) -> Result<Set> {
    loop {
        let mut set = images::list(&instance.staging)?;
        let whole = set.unfinished.is_empty() && images::only_listed(&instance.staging, &mut set);
        if whole && status(host).is_ok_and(|s| s.running) {
            return Ok(set);
        }
        host.check("waiting for the images")?;
        if !host.application()?.running {
            return Err(asserts::explain(
                BackendError::new(
                    kind::APPLICATION_ENDED,
                    "the application ended before its state was complete",
                ),
                &coordinator::said(host, &instance.logs),
            ));
        }
        if Instant::now() > until {
            let count = set.images.len();
            return Err(late(format!("{count} images are there, and it has not said that these are all")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn report(host: &mut Host<'_>, staging: &Path, set: Set) -> Result<CaptureReport> {
    let mut files: Vec<String> = set.images.iter().map(|i| i.file.clone()).collect();
    for directory in &set.open_files {
        files.extend(images::below(staging, directory, 8)?.iter().map(|p| p.to_string_lossy().into_owned()));
    }
    let shim = host.state("shim").unwrap_or(SHIM_PATH).to_owned();
    // After a restart by a newer plugin the library in use is the older one, which lies in the generation.
    let bytes = if shim == SHIM_PATH { SHIM.to_vec() } else { kept_shim(host)? };
    write_new(&staging.join(SHIM_FILE), &bytes)
        .map_err(|e| BackendError::failed("cannot write the preload library beside the images").because(e))?;
    files.push(SHIM_FILE.to_owned());
    let facts = [
        ("images", serde_json::json!(set.images.iter().map(|i| &i.file).collect::<Vec<_>>())),
        ("open-files", serde_json::json!(set.open_files)),
        ("shim", serde_json::json!(shim)),
    ];
    Ok(CaptureReport {
        engine_version: host.state("engine-version").unwrap_or_default().to_owned(),
        files,
        processes: set.images.into_iter().map(|i| SavedProcess { pid: i.pid, name: i.name }).collect(),
        pause_us: None,
        facts: facts.map(|(k, v)| (k.to_owned(), v)).into(),
        ..CaptureReport::default()
    })
}

/// The application can write here too: a link that it made is not followed.
fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::io::Write::write_all(&mut std::fs::File::create_new(path)?, bytes)
}

fn kept_shim(host: &Host<'_>) -> Result<Vec<u8>> {
    let gone = || BackendError::failed("the preload library of the first start is gone");
    let fd = host.kept_fd("shim").ok_or_else(gone)?;
    let file = std::fs::File::from(fd);
    let mut bytes =
        vec![0; usize::try_from(file.metadata().map_err(|e| gone().because(e))?.len()).unwrap_or(0)];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).map_err(|e| gone().because(e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_the_applications_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, path) = (dir.path().join("precious"), dir.path().join(SHIM_FILE));
        std::fs::write(&precious, "mine").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        for _ in 0..2 {
            write_new(&path, b"library").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"library");
            assert_eq!(std::fs::read(&precious).unwrap(), b"mine");
        }
    }
}
