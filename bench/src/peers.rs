//! The same job done by a peer that is on PATH, in its own words.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::http::{free_port, get};
use crate::place::{Place, on_path, timed};
use crate::report::Report;

/// Apptainer's feature of the same name, where both it and DMTCP are there. A peer that fails is a note, no failure.
pub(crate) fn measure(place: &Place, report: &mut Report) {
    if !on_path("apptainer") {
        report.note("apptainer is not on PATH, so the main job has no peer".to_owned());
        return;
    }
    match apptainer(place) {
        Ok((starts, captures)) => {
            report.add("start to first answer", "apptainer --dmtcp-launch", Some(0), &starts);
            report.add("capture, returns before it is done", "apptainer", Some(0), &captures);
        }
        Err(why) => report.note(format!("apptainer: {why}")),
    }
}

/// Only start and capture: a restart has to wait a minute for its port.
fn apptainer(place: &Place) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut starts, mut captures) = (Vec::new(), Vec::new());
    for _ in 0..place.runs {
        let port = free_port().map_err(|why| why.to_string())?;
        let (image, number) = (place.image("server"), port.to_string());
        timed(&mut peer(&["checkpoint", "create", "stasis-bench"]))?;
        let begun = Instant::now();
        let started = timed(&mut peer(&[
            "instance",
            "start",
            "--dmtcp-launch",
            "stasis-bench",
            &image,
            "stasis-bench",
            &number,
        ]));
        let measured = started.and_then(|_| {
            get(port, "/").map_err(|why| format!("the server does not answer: {why}"))?;
            starts.push(begun.elapsed());
            captures.push(timed(&mut peer(&["checkpoint", "instance", "stasis-bench"]))?);
            Ok(())
        });
        let stopped = timed(&mut peer(&["instance", "stop", "--force", "stasis-bench"]));
        let deleted = timed(&mut peer(&["checkpoint", "delete", "stasis-bench"]));
        measured.and(stopped).and(deleted)?;
    }
    Ok((starts, captures))
}

fn peer(words: &[&str]) -> Command {
    let mut command = Command::new("apptainer");
    command.args(words).stdin(Stdio::null());
    command
}
