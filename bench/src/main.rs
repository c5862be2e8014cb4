//! Measures stasis beside its peers, in one run on one machine, and says so in a table and in JSON. It judges nothing:
//! a figure without the ones beside it means little, and no test asserts a time.
//!
//! `cargo build --release --workspace && cargo run --release --package stasis-bench` (images: `cargo xtask images`).
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]
#![allow(clippy::print_stderr, reason = "a person waits for it")]

mod bare;
mod http;
mod images;
mod jobs;
mod peers;
mod place;
mod report;
mod size;
mod start;
mod steady;

use std::process::ExitCode;

use place::Place;
use report::Report;

/// What ends the program: one sentence.
type Result<T> = std::result::Result<T, String>;

const USAGE: &str =
    "usage: stasis-bench [--runs N] [--sizes MIB,...] [--engines NAME,...] [--criu PREFIX] [--json FILE]
                    [--images DIR] [--stasis FILE] [--only starts]

  --runs    how often each figure is taken; the median is told        (7)
  --sizes   memory of the saved program in MiB; KxN for K processes   (0,64,1024)
            of N each, with an h behind it in huge pages: 8x128,8192h
  --engines which                                                     (all that can be used here)
  --criu    a private CRIU, such as `cargo xtask criu` tells of       (criu on PATH)
  --json    where the figures go                                      (target/bench.json)
  --images  the test images, from `cargo xtask images`                (target/stasis-tests/images)
  --stasis  the program; its plugins lie beside it                    (target/release/stasis)
  --only    starts: of starts, image files, builds and pulls, nothing else";

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
    if options.help {
        println!("{USAGE}");
        return Ok(());
    }
    let place = Place::new(&options)?;
    let mut report = Report::new(&options);
    start::measure(&place, &mut report)?;
    images::measure(&place, &mut report)?;
    if options.only_images {
        print!("{}", report.table());
        return report.write(&options.json);
    }
    for engine in place.engines(&options, &mut report) {
        let bare = bare_beside(&engine, &options, &mut report);
        for size in &options.sizes {
            jobs::measure(&place, &engine, bare.as_ref(), *size, &mut report)?;
        }
    }
    steady::measure(&place, &options, &mut report)?;
    peers::measure(&place, &options.sizes, &mut report);
    print!("{}", report.table());
    report.write(&options.json)
}

/// CRIU alone, beside ours that save from outside as it does.
fn bare_beside(engine: &str, options: &place::Options, report: &mut Report) -> Option<bare::Bare> {
    match bare::Bare::find(options.criu.as_deref()) {
        _ if !["criu", "native"].contains(&engine) => None,
        Ok(bare) => Some(bare),
        Err(why) => {
            report.note(format!("{}: {why}", bare::WHO));
            None
        }
    }
}
