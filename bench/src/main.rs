//! Measures stasis beside its peers, in one run on one machine, and says so in a table and in JSON. It judges nothing:
//! a figure without the ones beside it means little, and no test asserts a time.
//!
//! `cargo build --release --workspace && cargo run --release --package stasis-bench` (images: `cargo xtask images`).
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]
#![allow(clippy::print_stderr, reason = "a person waits for it")]

mod http;
mod jobs;
mod peers;
mod place;
mod report;
mod start;

use std::process::ExitCode;

use place::Place;
use report::Report;

/// What ends the program: one sentence.
type Result<T> = std::result::Result<T, String>;

const USAGE: &str =
    "usage: stasis-bench [--runs N] [--sizes MIB,...] [--json FILE] [--images DIR] [--stasis FILE]

  --runs    how often each figure is taken; the median is told        (7)
  --sizes   memory of the saved program in MiB                        (0,64,1024)
  --json    where the figures go                                      (target/bench.json)
  --images  the test images, from `cargo xtask images`                (target/stasis-tests/images)
  --stasis  the program; its plugins lie beside it                    (target/release/stasis)";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let options = place::Options::parse(&words).map_err(|why| format!("{why}\n\n{USAGE}"))?;
    let place = Place::new(&options)?;
    let mut report = Report::new(&options);
    start::measure(&place, &mut report)?;
    for engine in place.engines() {
        for mebibytes in &options.sizes {
            jobs::measure(&place, &engine, *mebibytes, &mut report)?;
        }
    }
    peers::measure(&place, &mut report);
    print!("{}", report.table());
    report.write(&options.json)
}
