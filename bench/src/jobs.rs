//! The main job under an engine: start to answer, capture, pause, restart to answer.

use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::Result;
use crate::bare::{self, Bare};
use crate::http::{free_port, get};
use crate::place::{Place, output, timed};
use crate::report::{Report, Runs};
use crate::size::Size;

/// In the figures.
const MAPPED: &str = "native, mapped";
const NEXT: &str = "native, next";

/// Waits before a capture: what was written before is on the disk, what a start leaves to be done behind it is over,
/// and there is memory for the files. In a virtual machine it may still have to come from the host when it is first
/// touched, which takes longer than the whole capture and meets whoever comes first.
pub(crate) fn settle(place: &Place, job: &Job) -> Result<()> {
    written(place, job.size.mebibytes(), &[])?;
    calm(place)
}

fn calm(place: &Place) -> Result<()> {
    output(Command::new("sync").arg("-f").arg(place.path("")))?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// The HTTP server holding so much memory.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) port: u16,
    number: String,
    text: String,
    size: Size,
}

impl Job {
    pub(crate) fn new(size: Size) -> Result<Self> {
        let port = free_port().map_err(|why| why.to_string())?;
        Ok(Self { port, number: port.to_string(), text: size.to_string(), size })
    }

    pub(crate) fn program(&self) -> [&str; 4] {
        ["python3", "/opt/subjects/memory.py", &self.number, &self.text]
    }
}

/// What a capture says of itself.
#[derive(Debug, Deserialize)]
struct Captured {
    engine_ms: u64,
    hash_ms: u64,
    sync_ms: u64,
}

/// The job saved by an engine and brought back, beside CRIU alone where that is asked for: each round does all once,
/// so that what the machine does besides meets both.
pub(crate) fn measure(
    place: &Place,
    engine: &str,
    mut bare: Option<&Bare>,
    size: Size,
    report: &mut Report,
) -> Result<()> {
    let job = Job::new(size)?;
    let mut runs = Runs::default();
    for round in 0..place.runs {
        // Who comes second finds caches and disk as the first one leaves them.
        for first in [true, false] {
            if first == (round % 2 == 0) {
                ours(place, engine, &job, &mut runs)?;
            } else if let Some(Err(why)) = bare.map(|bare| bare.run(place, &job, &mut runs)) {
                report.note(format!("{}, {size} MiB: {why}", bare::WHO));
                bare = None;
            }
        }
    }
    for _ in 0..place.runs {
        alone(place, &job, &mut runs)?;
        runs.add("the disk alone: as much, fsynced", "dd", disk(place, size.mebibytes())?);
    }
    runs.tell(Some(size), report);
    if bare.is_some() {
        beside(engine, size, &runs, report);
    }
    Ok(())
}

/// How many times as long as CRIU alone.
fn beside(engine: &str, size: Size, runs: &Runs, report: &mut Report) {
    let mut tell = |what: &str, who: &str, ours: &[Duration], bare: &str| {
        report.ratio(what, who, bare::WHO, [ours, runs.of(bare, bare::WHO)], Some(size));
    };
    for what in ["pause seen by the application", "capture: the engine"] {
        tell(what, engine, runs.of(what, engine), what);
    }
    const RESTART: &str = "restart to first answer";
    tell(RESTART, engine, runs.of(RESTART, engine), RESTART);
    let verifying = runs.of("restart: verifying", engine);
    let without: Vec<Duration> =
        runs.of(RESTART, engine).iter().zip(verifying).map(|(a, v)| a.saturating_sub(*v)).collect();
    tell("restart without verifying", engine, &without, RESTART);
    tell(RESTART, MAPPED, runs.of(RESTART, MAPPED), RESTART);
    let pause = "pause seen by the application";
    tell(pause, NEXT, runs.of(pause, NEXT), pause);
    tell(RESTART, bare::LAZY, runs.of(RESTART, bare::LAZY), RESTART);
}

fn ours(place: &Place, engine: &str, job: &Job, runs: &mut Runs) -> Result<()> {
    let image = place.image("any");
    let flags = ["instance", "start", "--backend", engine, "--checkpoint", "bench", &image, "bench"];
    let start = answered(place, &[&flags[..], &job.program()].concat(), job.port)?;
    runs.add("start to first answer", engine, start);
    settle(place, job)?;
    // The first question ends what happened so far, the second one tells the pause of the capture.
    ask(job.port, "/gap")?;
    capture(place, engine, runs)?;
    runs.add("pause seen by the application", engine, gap(job.port)?);
    if engine == "native" {
        again(place, job, runs)?;
    }
    place.stasis(&["instance", "stop", "bench"])?;
    let restart = ["instance", "start", "--restart", "bench", &image, "bench"];
    runs.add("restart to first answer", engine, answered(place, &restart, job.port)?);
    if ask(job.port, "/check")? != "good" {
        return Err(format!("{engine} brought back {} MiB that are not what was saved", job.size));
    }
    place.stasis(&["instance", "stop", "bench"])?;
    if engine == "native" {
        mapped(place, job, runs)?;
    }
    // What a restart does before it asks the engine, alone, less what every command costs.
    let last = if engine == "native" { "bench@2" } else { "bench@1" };
    let verify = place.stasis(&["checkpoint", "verify", last])?;
    let nothing = place.stasis(&["checkpoint", "show", "bench"])?;
    runs.add("restart: verifying", engine, verify.saturating_sub(nothing));
    place.stasis(&["checkpoint", "delete", "bench"]).map(|_| ())
}

/// The capture after the first one, of a program that did not do much meanwhile.
fn again(place: &Place, job: &Job, runs: &mut Runs) -> Result<()> {
    // It writes little: what has been written stays in memory for the restart, as it does for the others.
    calm(place)?;
    ask(job.port, "/gap")?;
    let (took, _) = place.told(&["checkpoint", "instance", "--json", "bench"])?;
    runs.add("next capture, complete and durable", NEXT, took);
    runs.add("pause seen by the application", NEXT, gap(job.port)?);
    Ok(())
}

/// The native engine again, which brings memory back when it is touched.
fn mapped(place: &Place, job: &Job, runs: &mut Runs) -> Result<()> {
    let image = place.image("any");
    let flags = ["instance", "start", "--restart", "bench", "--backend-option", "restart=map"];
    let restart = [&flags[..], &[&image, "bench"]].concat();
    runs.add("restart to first answer", MAPPED, answered(place, &restart, job.port)?);
    if ask(job.port, "/check")? != "good" {
        return Err(format!("{MAPPED} brought back {} MiB that are not what was saved", job.size));
    }
    place.stasis(&["instance", "stop", "bench"]).map(|_| ())
}

/// The engine, our hashing and fsync, which run beside each other, and whatever else there is.
fn capture(place: &Place, engine: &str, runs: &mut Runs) -> Result<()> {
    let (took, told) = place.told(&["checkpoint", "instance", "--json", "bench"])?;
    let told: Captured =
        serde_json::from_str(&told).map_err(|why| format!("a capture tells {told:?}: {why}"))?;
    let [own, hash, sync] = [told.engine_ms, told.hash_ms, told.sync_ms].map(Duration::from_millis);
    runs.add("capture, complete and durable", engine, took);
    runs.add("capture: the engine", engine, own);
    runs.add("capture: hashing", engine, hash);
    runs.add("capture: fsync, beside hashing", engine, sync);
    runs.add("capture: the rest", engine, took.saturating_sub(own + hash.max(sync)));
    Ok(())
}

/// The same server in a container that nobody can save.
fn alone(place: &Place, job: &Job, runs: &mut Runs) -> Result<()> {
    let image = place.image("any");
    let words = [&["instance", "start", &image, "bench"][..], &job.program()].concat();
    runs.add("start to first answer", "no engine", answered(place, &words, job.port)?);
    place.stasis(&["instance", "stop", "bench"]).map(|_| ())
}

/// The time from a command to the first answer of the server.
fn answered(place: &Place, words: &[&str], port: u16) -> Result<Duration> {
    let begun = Instant::now();
    place.stasis(words)?;
    ask(port, "/")?;
    Ok(begun.elapsed())
}

pub(crate) fn ask(port: u16, path: &str) -> Result<String> {
    get(port, path).map_err(|why| format!("the server does not answer: {why}"))
}

/// The longest time for which the server stood still since it was asked last.
pub(crate) fn gap(port: u16) -> Result<Duration> {
    // The ticker has to come to its turn first.
    std::thread::sleep(Duration::from_millis(20));
    let gap = ask(port, "/gap")?.parse().map_err(|_| "the ticker gives no number".to_owned())?;
    Ok(Duration::from_micros(gap))
}

/// What the disk needs for as many bytes as a capture writes at least: a capture cannot be durable sooner.
fn disk(place: &Place, mebibytes: u64) -> Result<Duration> {
    written(place, mebibytes, &["conv=fsync"])
}

/// The time for a file of that size, which goes again.
fn written(place: &Place, mebibytes: u64, how: &[&str]) -> Result<Duration> {
    let file = place.path("disk");
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=1M", "status=none"]).args(how);
    dd.arg(format!("of={}", file.display())).arg(format!("count={}", mebibytes + 12));
    let took = timed(&mut dd)?;
    std::fs::remove_file(&file).map_err(|why| format!("{}: {why}", file.display()))?;
    Ok(took)
}
