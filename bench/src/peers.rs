//! The same job done by a peer that is on PATH, in its own words.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::http::{free_port, get};
use crate::jobs::{Job, ask, gap, settle};
use crate::place::{Place, is_root, on_path, timed};
use crate::report::{Report, Runs};
use crate::size::Size;

/// Of what a peer makes.
const NAME: &str = "stasis-bench";

/// Each peer that is here. One that fails is a note, no failure.
pub(crate) fn measure(place: &Place, sizes: &[Size], report: &mut Report) {
    if on_path("apptainer") {
        match apptainer(place) {
            Ok((starts, captures)) => {
                report.add("start to first answer", "apptainer --dmtcp-launch", Some(Size::of(0)), &starts);
                report.add("capture, returns before it is done", "apptainer", Some(Size::of(0)), &captures);
            }
            Err(why) => report.note(format!("apptainer: {why}")),
        }
    } else {
        report.note("apptainer is not on PATH, so the main job has no peer".to_owned());
    }
    if !is_root() || !on_path("podman") || !on_path("crun") {
        report
            .note("podman with crun is not on PATH, or this is not root, for whom alone it saves".to_owned());
        return;
    }
    for size in sizes {
        match podman(place, *size) {
            Ok(runs) => runs.tell(Some(*size), report),
            Err(why) => report.note(format!("podman, {size} MiB: {why}")),
        }
    }
}

/// The main job with CRIU from outside of the container. It syncs nothing.
fn podman(place: &Place, size: Size) -> Result<Runs> {
    let mut runs = Runs::default();
    for _ in 0..place.runs {
        let measured = podman_once(place, &Job::new(size)?, &mut runs);
        let removed = timed(&mut peer("podman", &["rm", "--force", "--time", "0", "--ignore", NAME]));
        measured.and(removed)?;
    }
    Ok(runs)
}

fn podman_once(place: &Place, job: &Job, runs: &mut Runs) -> Result<()> {
    const WHO: &str = "podman, crun";
    // Changes go to an overlay, not into the image.
    let image = format!("{}:O", place.image("any"));
    let run =
        ["--runtime", "crun", "run", "--detach", "--network", "host", "--name", NAME, "--rootfs", &image];
    let begun = Instant::now();
    timed(&mut peer("podman", &[&run[..], &job.program()].concat()))?;
    ask(job.port, "/")?;
    runs.add("start to first answer", WHO, begun.elapsed());
    settle(place, job)?;
    ask(job.port, "/gap")?;
    let checkpoint = ["container", "checkpoint", "--leave-running", NAME];
    runs.add("capture, not durable", WHO, timed(&mut peer("podman", &checkpoint))?);
    runs.add("pause seen by the application", WHO, gap(job.port)?);
    timed(&mut peer("podman", &["kill", NAME]))?;
    timed(&mut peer("podman", &["wait", NAME]))?;
    let begun = Instant::now();
    timed(&mut peer("podman", &["container", "restore", NAME]))?;
    ask(job.port, "/")?;
    runs.add("restart to first answer", WHO, begun.elapsed());
    if ask(job.port, "/check")? == "good" { Ok(()) } else { Err("it brought back something else".to_owned()) }
}

/// Only start and capture: a restart has to wait a minute for its port.
fn apptainer(place: &Place) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut starts, mut captures) = (Vec::new(), Vec::new());
    for _ in 0..place.runs {
        let port = free_port().map_err(|why| why.to_string())?;
        let (image, number) = (place.image("server"), port.to_string());
        timed(&mut peer("apptainer", &["checkpoint", "create", NAME]))?;
        let begun = Instant::now();
        let started = timed(&mut peer(
            "apptainer",
            &["instance", "start", "--dmtcp-launch", NAME, &image, NAME, &number],
        ));
        let measured = started.and_then(|_| {
            get(port, "/").map_err(|why| format!("the server does not answer: {why}"))?;
            starts.push(begun.elapsed());
            captures.push(timed(&mut peer("apptainer", &["checkpoint", "instance", NAME]))?);
            Ok(())
        });
        let stopped = timed(&mut peer("apptainer", &["instance", "stop", "--force", NAME]));
        let deleted = timed(&mut peer("apptainer", &["checkpoint", "delete", NAME]));
        measured.and(stopped).and(deleted)?;
    }
    Ok((starts, captures))
}

fn peer(program: &str, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    command
}
