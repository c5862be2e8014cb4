//! The tasks of whoever works on stasis, started as `cargo xtask TASK`. Nothing here is part of what users get.
#![allow(clippy::print_stdout, reason = "a task talks to the person who started it")]
#![allow(clippy::print_stderr, reason = "a task talks to the person who started it")]

use std::process::ExitCode;

mod check;
mod criu;
mod demo;
mod dist;
mod host;
mod image;
mod product;
mod programs;
mod shell;

/// What a task fails with: one sentence.
type Result<T> = std::result::Result<T, String>;

const USAGE: &str = "usage: cargo xtask test | images | programs | criu | demo [BACKEND] | dist

  test     installs what the tests need, makes images and CRIU, checks format and lints, runs every test
  images   only makes the test images; prints their directory
  programs the same, with one more of large programs such as Node and nginx, which only tests use
  criu     only fetches a CRIU that is new enough into your cache, where the host has none; prints its prefix
  demo     saves a running server, stops it and brings it back, with the times; by the native engine where it runs
           (x86_64), or by the backend that is named
  dist     makes a tarball that needs no Rust: program, backends, pages, completions; prints its path";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test"] => check::everything(),
        ["images"] => host::prepare().and_then(|()| image::make()).map(|dir| println!("{}", dir.display())),
        ["programs"] => host::prepare_tests()
            .and_then(|()| image::make())
            .and_then(|dir| programs::make(&dir).map(|()| println!("{}", dir.display()))),
        ["criu"] => criu::show(),
        ["demo"] => demo::run(None),
        ["demo", backend] => demo::run(Some(backend)),
        ["dist"] => dist::release(),
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
