//! A generation taken of a running container: looked at, saved by the engine, hashed, committed.

use crate::clocks::Clocks;
use crate::error::{Error, Kind, Result};
use crate::init::survey::listening;
use crate::instance::Port;
use crate::launch::protocol::ToInit;
use crate::monitor::Teller;
use crate::monitor::control::Captured;
use crate::monitor::findings::judge;
use crate::monitor::live::{EngineLive, Live, Phase, lock};
use crate::monitor::services::Around;
use crate::monitor::{restart, verify};
use crate::name::BackendName;
use crate::spec::ContainerSpec;
use crate::store::{
    BackendEntry, BackendStamp, Document, HostEntry, ImageIdentity, Inherited, Listening, ManifestDraft,
    ProcessEntry,
};
use crate::worker::{Worker, WorkerError, engine};
use stasis_plugin_api::report::{CaptureReport, Severity};
use stasis_plugin_api::request::{CaptureRequest, InstanceView, Subject, time_for};
use stasis_plugin_api::survey::Survey;
use std::io::BufRead as _;
use std::path::PathBuf;
use std::sync::TryLockError;
use std::time::{Duration, Instant};

/// What stands against a capture is believed when it is still there after this time.
const SECOND_LOOK: Duration = Duration::from_millis(50);

/// Saves a generation.
///
/// # Errors
/// Why there is none. Earlier generations are untouched, and unless the error says otherwise so is the
/// application.
pub fn capture(live: &Live, stop: bool, accept_loss: &[String], teller: &dyn Teller) -> Result<Captured> {
    let Some(engine) = &live.engine else {
        return Err(Error::new(format!("instance \"{}\" was not started with checkpointing", live.name))
            .help("start it with `--checkpoint NAME`"));
    };
    running(live)?;
    verify::wait(live, teller);
    let _one = match engine.capturing.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
        // A stop holds it until the end.
        Err(TryLockError::WouldBlock) if live.state().requested => {
            return Err(Error::new(format!("instance \"{}\" is being stopped", live.name)));
        }
        Err(TryLockError::WouldBlock) => {
            return Err(Error::new(format!("instance \"{}\" is being saved already", live.name))
                .help("wait until that capture is complete"));
        }
    };
    running(live)?;
    let begun = Instant::now();
    let survey = live.survey()?;
    let outcome = save(live, engine, &survey, stop, accept_loss, teller);
    let saved = outcome.map_err(|error| told_truthfully(live, error));
    if saved.is_err() {
        // What is left of a failed capture is of no use to anybody.
        let _ = engine.staging.clear();
    }
    let Saved { report, base, notes, took, clocks } = saved?;
    let mut captured = commit(live, engine, &survey, report, base, clocks, teller)?;
    captured.notes.splice(0..0, notes);
    live.change(|s| captured.notes.append(&mut s.remarks));
    captured.engine_ms = millis(took);
    captured.total_ms = millis(begun.elapsed());
    captured.stopped = stop;
    note_in_record(live, &captured, &survey);
    if stop {
        live.change(|s| {
            s.requested = true;
            s.exit_code.get_or_insert(engine.order.requeue_code);
            s.reason = Some(format!("stopped after generation {} was saved", captured.generation));
            s.phase = s.phase.max(Phase::Ending);
        });
    }
    Ok(captured)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the engine has saved.
struct Saved {
    report: CaptureReport,
    /// The generation whose files it may share.
    base: Option<u64>,
    /// What was found before.
    notes: Vec<String>,
    /// How long the engine took.
    took: Duration,
    /// What the application's clocks show by now: nobody in it has seen a later time.
    clocks: Clocks,
}

/// What `instance list` tells. The generation is safe whether or not this can be written.
fn note_in_record(live: &Live, captured: &Captured, survey: &Survey) {
    let ports = listening(survey)
        .into_iter()
        .map(|(protocol, address, port)| Port { protocol, address, port })
        .collect();
    if let Some(claim) = lock(&live.claim).as_mut() {
        let noted = claim.update(|record| {
            record.last_generation = Some(captured.generation);
            record.ports = ports;
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "the instance's record could not be brought up to date");
        }
    }
}

fn running(live: &Live) -> Result<()> {
    let state = live.state();
    match state.phase {
        Phase::Running => Ok(()),
        Phase::Starting => Err(Error::new(format!("instance \"{}\" is still starting", live.name))),
        Phase::Ending | Phase::Gone => {
            let ended = Error::new(format!("instance \"{}\" has ended", live.name));
            Err(match &state.reason {
                Some(reason) => ended.because(reason),
                None => ended,
            })
        }
    }
}

/// An application that the engine lost is the first thing to be told.
fn told_truthfully(live: &Live, error: Error) -> Error {
    // The news of its death may be on its way.
    let ended = live.wait(Some(Instant::now() + Duration::from_millis(300)), |s| s.phase >= Phase::Ending);
    if !ended && error.kind != Some(Kind::StandsStill) {
        return error.because("the application runs on, and nothing was saved");
    }
    if !ended {
        return may_stand(live, error);
    }
    let how = live.state().ending.map(|e| format!(" ({e})")).unwrap_or_default();
    error.because(format!("the application ended during the capture{how}; earlier generations are untouched"))
}

/// Nobody knows whether it runs on.
fn may_stand(live: &Live, error: Error) -> Error {
    let name = &live.name;
    let end = format!("see whether it goes on; if not, `stasis instance stop --force {name}` ends it");
    let checkpoint = live.engine.as_ref().map(|engine| &engine.checkpoint);
    let last = checkpoint.and_then(|c| Some((c.name(), *c.generations().ok()?.last()?)));
    error.because("nothing was saved, and the application may stand still").help(match last {
        Some((name, number)) => format!("{end}, and --restart {name} brings generation {number} back"),
        None => end,
    })
}

fn save(
    live: &Live,
    engine: &EngineLive,
    survey: &Survey,
    stop: bool,
    accept_loss: &[String],
    teller: &dyn Teller,
) -> Result<Saved> {
    let around = Around { live, teller, doing: "saving" };
    let mut worker = Worker::spawn(&engine.plugin, &live.scratch)?;
    let view: InstanceView = live.view(survey.clone());
    let mut memory = lock(&engine.memory).clone();
    let subject = Subject::Instance { instance: view.clone() };
    let mut findings = engine::examine(&mut worker, &subject, &mut memory, &around)?;
    if findings.iter().any(|f| f.severity > Severity::Note) {
        // A connection that is just closing, or a process in the middle of an exec, gets a second look.
        live.wait(Some(Instant::now() + SECOND_LOOK), |s| s.phase >= Phase::Ending);
        let subject = Subject::Instance { instance: live.view(live.survey()?) };
        findings = engine::examine(&mut worker, &subject, &mut memory, &around)?;
    }
    let accepted: Vec<String> = engine.order.accept_loss.iter().chain(accept_loss).cloned().collect();
    let what = format!("save instance \"{}\"", live.name);
    let notes = judge(&what, &engine.descriptor.engine, findings, &accepted)?;
    engine.staging.clear()?;
    let resident: u64 = survey.processes.iter().map(|p| p.resident).sum();
    let deadline = time_for(resident);
    // One that cannot be read is no reason not to save the next.
    let previous = engine.checkpoint.generation(None).ok().map(|generation| restart::view(&generation));
    let base = previous.as_ref().map(|generation| generation.number);
    let request = CaptureRequest { instance: view, stop_after: stop, previous };
    let begun = Instant::now();
    let outcome = engine::capture(&mut worker, &request, &mut memory, &around, deadline);
    let took = begun.elapsed();
    let clocks = clocks(live)?;
    *lock(&engine.memory) = memory;
    if let Err(WorkerError::Died { .. } | WorkerError::TimedOut { .. } | WorkerError::Unclear { .. }) =
        &outcome
    {
        run_on(live, survey);
    }
    Ok(Saved { report: outcome?, base, notes, took, clocks })
}

fn clocks(live: &Live) -> Result<Clocks> {
    let now = Clocks::now().map_err(|e| Error::new("the clocks cannot be read").because(&e))?;
    let offset = live.spec.engine.as_ref().and_then(|engine| engine.clocks).map(|clocks| clocks.offset);
    Ok(now.plus(offset.unwrap_or_default()))
}

/// A backend that was killed in the middle may have left the application stopped. Children go first, so that
/// no parent takes notice.
fn run_on(live: &Live, before: &Survey) {
    let Ok(now) = live.survey() else { return };
    let stopped = |pid: &i32| now.processes.iter().any(|p| p.pid == *pid && p.state == "T");
    let pids = now.stopped_since(before).into_iter().filter(stopped).collect();
    // An init that is gone has nobody to signal.
    let _ = live.tell_init(&ToInit::SignalPids { pids, signal: libc::SIGCONT }, &[]);
}

fn commit(
    live: &Live,
    engine: &EngineLive,
    survey: &Survey,
    report: CaptureReport,
    base: Option<u64>,
    clocks: Clocks,
    teller: &dyn Teller,
) -> Result<Captured> {
    let image = image(live, teller)?;
    let files: Vec<PathBuf> = report.files.iter().map(PathBuf::from).collect();
    if files.is_empty() {
        return Err(Error::new(format!(
            "the backend \"{}\" said that it saved \"{}\" and left no file",
            engine.descriptor.name, live.name
        ))
        .help("nothing was saved; report this to the backend's author"));
    }
    // From now on a copy of the image with the same content is recognised, too.
    let stamp = BackendStamp {
        name: BackendName::new(&engine.descriptor.name)?,
        version: Some(engine.descriptor.version.clone()),
    };
    engine.checkpoint.bind(&stamp, &image)?;
    let draft = draft(live, engine, survey, &report, image, clocks)?;
    let mut tell = |done, total| teller.progress(done, total, "making it durable");
    let held = lock(&engine.lock);
    let Some(held) = held.as_ref() else {
        return Err(Error::new(format!("instance \"{}\" has ended", live.name)));
    };
    if base.is_none() && !report.inherited.is_empty() {
        return Err(Error::new(format!(
            "the backend \"{}\" said that \"{}\" shares files with a generation that was not there",
            engine.descriptor.name, live.name
        ))
        .help("nothing was saved; report this to the backend's author"));
    }
    let inherited = base.map(|generation| Inherited { generation, files: &report.inherited });
    let committed =
        engine.checkpoint.commit(held, &engine.staging, Some(&files), inherited, draft, &mut tell)?;
    let _ = engine.staging.clear();
    let mut notes = report.notes;
    if let Some(keep) = engine.order.keep {
        let protect: Vec<u64> = engine.order.restart.into_iter().collect();
        if let Err(error) = engine.checkpoint.prune(keep, &protect, held) {
            notes.push(format!("older generations could not be removed: {error}"));
        }
    }
    Ok(Captured {
        checkpoint: engine.checkpoint.name().to_string(),
        generation: committed.generation.number(),
        bytes: committed.generation.size(),
        new_bytes: committed.times.bytes,
        processes: report.processes.len(),
        pause_us: report.pause_us,
        total_ms: 0,
        engine_ms: 0,
        hash_ms: committed.times.hash_ms,
        sync_ms: committed.times.sync_ms,
        notes,
        stopped: false,
    })
}

/// The image's identity; its content digest is required here and computed since the start.
fn image(live: &Live, teller: &dyn Teller) -> Result<ImageIdentity> {
    teller.progress(0, 0, "waiting for the image's digest");
    live.wait(Some(Instant::now() + Duration::from_secs(600)), |s| {
        s.image.as_ref().is_none_or(|i| i.digest.is_some())
    });
    match live.state().image.clone() {
        Some(image) if image.digest.is_some() => Ok(image),
        _ => Err(Error::new(
            "the image's content could not be read to the end, so a restart could not recognise it",
        )),
    }
}

fn draft(
    live: &Live,
    engine: &EngineLive,
    survey: &Survey,
    report: &CaptureReport,
    image: ImageIdentity,
    clocks: Clocks,
) -> Result<ManifestDraft> {
    let spec = ContainerSpec { engine: None, ..live.spec.clone() };
    let command = spec.process.argv.clone();
    let mut facts = serde_json::Map::new();
    facts.insert("pause_us".to_owned(), serde_json::json!(report.pause_us));
    facts.insert("facts".to_owned(), serde_json::json!(report.facts));
    Ok(ManifestDraft {
        stasis_version: env!("CARGO_PKG_VERSION").to_owned(),
        backend: BackendEntry {
            name: BackendName::new(&engine.descriptor.name)?,
            version: engine.descriptor.version.clone(),
            engine: engine.descriptor.engine.clone(),
            engine_version: report.engine_version.clone(),
        },
        image,
        host: host(&spec),
        id_map: serde_json::to_value(spec.ids.map)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default(),
        spec: Document::of(&spec)
            .map_err(|e| Error::new("the container's spec cannot be written").because(&e))?,
        command,
        engine_state: lock(&engine.memory).clone(),
        listening: listening(survey)
            .into_iter()
            .map(|l| Listening { proto: l.0, address: l.1, port: l.2 })
            .collect(),
        processes: report
            .processes
            .iter()
            .map(|p| ProcessEntry { pid: p.pid.unsigned_abs(), name: p.name.clone() })
            .collect(),
        clocks: Some(clocks),
        report: facts,
    })
}

fn host(spec: &ContainerSpec) -> HostEntry {
    let mut features: Vec<String> = cpu_features().split_whitespace().map(str::to_owned).collect();
    features.sort_unstable();
    let names = nix::sys::utsname::uname();
    let (kernel, machine, hostname) = match &names {
        Ok(n) => (
            n.release().to_string_lossy().into_owned(),
            n.machine().to_string_lossy().into_owned(),
            n.nodename().to_string_lossy().into_owned(),
        ),
        Err(_) => Default::default(),
    };
    HostEntry {
        hostname,
        kernel,
        arch: machine,
        cpu_features: features,
        uid: spec.ids.host_uid,
        gid: spec.ids.host_gid,
    }
}

/// The CPU's feature words with blanks between them, as `/proc/cpuinfo` gives them.
pub fn cpu_features() -> String {
    // Line by line: each processor has as many, and the kernel makes them while they are read.
    let lines =
        std::fs::File::open("/proc/cpuinfo").into_iter().flat_map(|f| std::io::BufReader::new(f).lines());
    let line = lines.map_while(Result::ok).find(|l| l.starts_with("flags") || l.starts_with("Features"));
    line.and_then(|line| Some(line.split_once(':')?.1.to_owned())).unwrap_or_default()
}
