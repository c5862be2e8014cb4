//! The main job under an engine: start to answer, capture, pause, restart to answer.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Result;
use crate::http::{free_port, get};
use crate::place::{Place, timed};
use crate::report::Report;

/// The HTTP server holding so much memory, saved by an engine and brought back.
pub(crate) fn measure(place: &Place, engine: &str, mebibytes: u64, report: &mut Report) -> Result<()> {
    let (image, size) = (place.image("any"), mebibytes.to_string());
    let port = free_port().map_err(|why| why.to_string())?;
    let number = port.to_string();
    let (mut starts, mut restarts, mut captures, mut pauses, mut disks) =
        <(Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
    for _ in 0..place.runs {
        let program = ["python3", "/opt/subjects/memory.py", &number, &size];
        let flags = ["instance", "start", "--backend", engine, "--checkpoint", "bench", &image, "bench"];
        starts.push(answered(place, &[&flags[..], &program[..]].concat(), port)?);
        // What a start leaves to be done behind it is over before long, and no capture comes that soon.
        std::thread::sleep(Duration::from_secs(1));
        // The first question ends what happened so far, the second one tells the pause of the capture.
        ask(port, "/gap")?;
        captures.push(place.stasis(&["checkpoint", "instance", "bench"])?);
        let gap: u64 = ask(port, "/gap")?.parse().map_err(|_| "the ticker gives no number".to_owned())?;
        pauses.push(Duration::from_micros(gap));
        place.stasis(&["instance", "stop", "bench"])?;
        restarts.push(answered(place, &["instance", "start", "--restart", "bench", &image, "bench"], port)?);
        if ask(port, "/check")? != "good" {
            return Err(format!("{engine} brought back {mebibytes} MiB that are not what was saved"));
        }
        place.stasis(&["instance", "stop", "bench"])?;
        place.stasis(&["checkpoint", "delete", "bench"])?;
        disks.push(disk(place, mebibytes)?);
    }
    let size = Some(mebibytes);
    report.add("start to first answer", engine, size, &starts);
    report.add("capture, complete and durable", engine, size, &captures);
    report.add("pause seen by the application", engine, size, &pauses);
    report.add("restart to first answer", engine, size, &restarts);
    report.add("the disk alone: as much, fsynced", "dd", size, &disks);
    alone(place, mebibytes, port, report)
}

/// The same server in a container that nobody can save.
fn alone(place: &Place, mebibytes: u64, port: u16, report: &mut Report) -> Result<()> {
    let (image, size, number) = (place.image("any"), mebibytes.to_string(), port.to_string());
    let mut starts = Vec::new();
    for _ in 0..place.runs {
        let words =
            ["instance", "start", &image, "bench", "python3", "/opt/subjects/memory.py", &number, &size];
        starts.push(answered(place, &words, port)?);
        place.stasis(&["instance", "stop", "bench"])?;
    }
    report.add("start to first answer", "no engine", Some(mebibytes), &starts);
    Ok(())
}

/// The time from a command to the first answer of the server.
fn answered(place: &Place, words: &[&str], port: u16) -> Result<Duration> {
    let begun = Instant::now();
    place.stasis(words)?;
    ask(port, "/")?;
    Ok(begun.elapsed())
}

fn ask(port: u16, path: &str) -> Result<String> {
    get(port, path).map_err(|why| format!("the server does not answer: {why}"))
}

/// What the disk needs for as many bytes as a capture writes at least: a capture cannot be durable sooner.
fn disk(place: &Place, mebibytes: u64) -> Result<Duration> {
    let file = place.path("disk");
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=1M", "conv=fsync", "status=none"]);
    dd.arg(format!("of={}", file.display())).arg(format!("count={}", mebibytes + 12));
    let took = timed(&mut dd)?;
    std::fs::remove_file(&file).map_err(|why| format!("{}: {why}", file.display()))?;
    Ok(took)
}
