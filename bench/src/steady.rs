//! What an engine costs a program that is not saved just now: the same work, timed by the program itself.

use std::time::Duration;

use crate::Result;
use crate::place::{Options, Place};
use crate::report::{Report, Runs};

const WHAT: &str = "the same work, never saved";
/// Computes, allocates and writes; tells the microseconds that it took. It begins when what a start leaves to be done behind
/// it is over (the digest of the image), and takes long enough that other programs' moments on the machine do not decide.
const WORK: &str = "import time
time.sleep(1)
begun = time.monotonic()
kept = bytearray(64 << 20)
for n in list(range(60)) * 10:
    kept[n::4096] = bytes([n]) * len(range(n, len(kept), 4096))
    sum(k * k for k in range(40000))
    {k: str(k) for k in range(10000)}
print(int((time.monotonic() - begun) * 1e6))";

/// Without an engine and with each of them, in turn.
pub(crate) fn measure(place: &Place, options: &Options, report: &mut Report) -> Result<()> {
    let engines = place.engines(options, report);
    let image = place.image("any");
    let work = ["--contain", &image, "python3", "-c", WORK];
    let mut runs = Runs::default();
    for _ in 0..place.runs {
        runs.add(WHAT, "no engine", took(place, &[&["run"][..], &work].concat())?);
        for engine in &engines {
            let flags = ["run", "--backend", engine, "--checkpoint", "bench"];
            runs.add(WHAT, engine, took(place, &[&flags[..], &work].concat())?);
            place.stasis(&["checkpoint", "delete", "bench"])?;
        }
    }
    runs.tell(None, report);
    for engine in &engines {
        report.ratio(WHAT, engine, "no engine", [runs.of(WHAT, engine), runs.of(WHAT, "no engine")], None);
    }
    Ok(())
}

fn took(place: &Place, words: &[&str]) -> Result<Duration> {
    let (_, told) = place.told(words)?;
    let last = told.lines().last().unwrap_or_default();
    last.trim().parse().map(Duration::from_micros).map_err(|_| format!("the work tells {told:?}"))
}
