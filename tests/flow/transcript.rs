//! The transcript of the README, typed by a script without a single pause.

use std::path::Path;

use crate::env::{Env, Who};
use crate::http::{free_port, get, in_time_wait, post};
use crate::need::{criu_version, dmtcp_version, exercised, need};
use crate::running::Outcome;

/// The words that choose the engine: at a start and at a restart.
pub(super) type Words = [&'static [&'static str]; 2];

pub(super) const OURS: Words =
    [&["--backend", "dmtcp", "--checkpoint"], &["--backend", "dmtcp", "--restart"]];
pub(super) const CRIU: Words = [&["--backend", "criu", "--checkpoint"], &["--backend", "criu", "--restart"]];
pub(super) const NATIVE: Words =
    [&["--backend", "native", "--checkpoint"], &["--backend", "native", "--restart"]];
const OLD: Words = [&["--dmtcp-launch"], &["--dmtcp-restart"]];

#[test]
fn the_transcript_as_root() {
    need!(root, image, dmtcp);
    twice(Who::Myself, OURS, "dmtcp").unwrap();
}

#[test]
fn the_transcript_as_an_ordinary_user() {
    need!(image, userns, dmtcp);
    twice(Who::User, OURS, "dmtcp").unwrap();
}

#[test]
fn the_transcript_in_the_old_words_as_root() {
    need!(root, image, dmtcp);
    twice(Who::Myself, OLD, "dmtcp").unwrap();
}

#[test]
fn the_transcript_in_the_old_words_as_an_ordinary_user() {
    need!(image, userns, dmtcp);
    twice(Who::User, OLD, "dmtcp").unwrap();
}

#[test]
fn the_transcript_with_the_native_engine_as_root() {
    need!(root, image);
    twice(Who::Myself, NATIVE, "native").unwrap();
}

#[test]
fn the_transcript_with_the_native_engine_as_an_ordinary_user() {
    need!(image, userns);
    twice(Who::User, NATIVE, "native").unwrap();
}

#[test]
fn the_transcript_with_the_native_engine_as_an_ordinary_user_with_subordinate_ids() {
    need!(root, image, userns, uidmap);
    twice(Who::Granted, NATIVE, "native").unwrap();
}

#[test]
fn the_transcript_with_criu_as_root() {
    need!(root, image, criu);
    twice(Who::Myself, CRIU, "criu").unwrap();
}

#[test]
fn the_transcript_with_criu_as_an_ordinary_user() {
    need!(image, userns, criu);
    twice(Who::User, CRIU, "criu").unwrap();
}

#[test]
fn the_transcript_with_criu_as_an_ordinary_user_with_subordinate_ids() {
    need!(root, image, userns, uidmap, criu);
    twice(Who::Granted, CRIU, "criu").unwrap();
}

fn twice(who: Who, words: Words, engine: &str) -> Outcome<()> {
    let env = Env::new(who)?;
    let (port, image) = (free_port()?, env.site.image("server"));
    once(&env, &image, words, port, "server")?;
    once(&env, &image, words, port, "instance://server")?;
    let version = match engine {
        "criu" => criu_version()?,
        "native" => env!("CARGO_PKG_VERSION").to_owned(),
        _ => dmtcp_version()?,
    };
    exercised(engine, &version)?;
    env.finish()
}

/// `server` is how the instance is named to the commands that act on it.
pub(super) fn once(env: &Env, image: &Path, [start, restart]: Words, port: u16, server: &str) -> Outcome<()> {
    let (image, number) = (image.to_string_lossy(), port.to_string());
    let begin = |engine: &[&str], name: &str| {
        let mut words = vec!["instance", "start"];
        words.extend(engine);
        words.extend(["example", &image, name, &number]);
        env.ok(&words)
    };
    let created = env.ok(&["checkpoint", "create", "example"])?;
    assert_eq!(created.err, "INFO:    Checkpoint \"example\" created.\n");
    begin(start, "server")?;
    assert_eq!(get(port, "/")?, "0");
    assert_eq!(post(port, "1")?, "1");
    assert_eq!(get(port, "/")?, "1");
    env.ok(&["checkpoint", "instance", server])?;
    env.ok(&["instance", "stop", server])?;
    assert!(in_time_wait(port)?, "the restart would not meet a connection that has just ended");
    begin(restart, "restarted")?;
    assert_eq!(get(port, "/")?, "1");
    assert_eq!(post(port, "2")?, "2");
    env.ok(&["checkpoint", "instance", "restarted"])?;
    env.ok(&["instance", "stop", "restarted"])?;
    begin(restart, "restarted")?;
    assert_eq!(get(port, "/")?, "2");
    let instances = env.ok(&["instance", "list"])?.out;
    let names: Vec<&str> =
        instances.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["restarted"]);
    let checkpoints = env.ok(&["checkpoint", "list"])?.out;
    assert!(checkpoints.lines().any(|line| line.starts_with("example")), "{checkpoints}");
    env.ok(&["instance", "stop", "restarted"])?;
    let deleted = env.ok(&["checkpoint", "delete", "example"])?;
    assert_eq!(deleted.err, "INFO:    Checkpoint \"example\" deleted.\n");
    assert!(!env.ok(&["checkpoint", "list"])?.out.contains("example"));
    Ok(())
}

#[test]
fn an_older_generation_comes_back_by_its_number() {
    need!(image, userns, dmtcp);
    older(Who::User, "dmtcp").unwrap();
}

pub(super) fn older(who: Who, engine: &str) -> Outcome<()> {
    let env = Env::new(who)?;
    let image = env.site.image("server");
    let (image, port) = (image.to_string_lossy(), free_port()?);
    let number = port.to_string();
    env.ok(&["instance", "start", "--backend", engine, "--checkpoint", "made", &image, "one", &number])?;
    for state in ["a", "b", "c"] {
        assert_eq!(post(port, state)?, state);
        env.ok(&["checkpoint", "instance", "one"])?;
    }
    env.ok(&["instance", "stop", "one"])?;
    for (from, state) in [("made@1", "a"), ("made@3", "c"), ("made@2", "b"), ("made", "c")] {
        env.ok(&["instance", "start", "--restart", from, "-", "one"])?;
        assert_eq!(get(port, "/")?, state, "{from}");
        env.ok(&["instance", "stop", "one"])?;
    }
    env.finish()
}

#[test]
fn save_and_stop_is_one_step() {
    need!(image, userns, dmtcp);
    save_and_stop(Who::User, "dmtcp").unwrap();
}

pub(super) fn save_and_stop(who: Who, engine: &str) -> Outcome<()> {
    let env = Env::new(who)?;
    let image = env.site.image("server");
    let (image, port) = (image.to_string_lossy(), free_port()?);
    let number = port.to_string();
    for (state, first) in [("x", true), ("y", false)] {
        let how = if first { "--checkpoint" } else { "--restart" };
        env.ok(&["instance", "start", "--backend", engine, how, "saved", &image, "one", &number])?;
        assert_eq!(get(port, "/")?, if first { "0" } else { "x" });
        assert_eq!(post(port, state)?, state);
        env.ok(&["checkpoint", "instance", "--stop", "one"])?;
        assert!(!env.ok(&["instance", "list"])?.out.contains("one"));
    }
    env.ok(&["instance", "start", "--restart", "saved", &image, "one"])?;
    assert_eq!(get(port, "/")?, "y");
    env.finish()
}
