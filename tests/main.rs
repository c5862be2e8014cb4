//! The tests of the whole: the built program, typed at as a user does, on real images and against a real engine.
//!
//! | module | what it holds |
//! |---|---|
//! | `flow` | what must work: the transcript of the README, other programs, the foreground, terminals |
//! | `bad` | what goes wrong: each failure with its message, nothing lost, nothing left behind |
//! | `tidy` | the invariants of ARCHITECTURE.md that a text or a dependency can break |
//! | `seeds` | the seeds of the fuzz targets, and changes of them, under limits |
//! | `env`, `running`, `terminal`, `site`, `need`, `http`, `group`, `registry`, `tree` | the harness |
//!
//! Make the images first (`cargo xtask images`); `cargo xtask test` does all. A test that lacks something says so in
//! one line; `STASIS_TESTS_REQUIRE=dmtcp,root,userns` makes it a failure.
#![allow(clippy::too_many_lines, reason = "the text of a snapshot counts as lines of its test")]

mod env;
mod group;
mod http;
mod need;
mod registry;
mod running;
mod site;
mod terminal;
mod tree;

mod bad;
mod flow;
mod seeds;
mod tidy;
