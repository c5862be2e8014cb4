//! Bad input and bad luck: a clear error, nothing lost, nothing left behind.
//!
//! Each test keeps the message as a snapshot and ends with the look at what was left running or half made.

mod backends;
mod captures;
mod closed;
mod configuration;
mod connections;
mod criu;
mod deaths;
mod definitions;
mod disk;
mod engines;
mod full;
mod generations;
mod images;
mod marked;
mod memory;
mod names;
mod namespaces;
mod native;
mod native_deaths;
mod oci;
mod plugins;
mod programs;
mod registries;
mod restarts;
mod sif;
mod strangers;

use std::time::{Duration, Instant};

use crate::env::{Env, Who};
use crate::http::free_port;
use crate::running::{Outcome, PATIENCE, Run};

/// The path of a test image, as typed.
fn image(env: &Env, name: &str) -> String {
    env.site.image(name).to_string_lossy().into_owned()
}

/// The program of most of these tests: it says that it is up, and waits.
const IDLE: &str = "/opt/subjects/bin/idle";

/// A place where `one` runs under DMTCP, to be saved into `kept`.
fn started(who: Who) -> Outcome<Env> {
    started_with("dmtcp", who)
}

/// The same under another engine.
fn started_with(engine: &str, who: Who) -> Outcome<Env> {
    let env = Env::new(who)?;
    let small = image(&env, "small");
    env.ok(&["instance", "start", "--backend", engine, "--checkpoint", "kept", &small, "one", IDLE])?;
    Ok(env)
}

/// A place where `one` was saved into `kept` and stopped.
fn saved(who: Who) -> Outcome<Env> {
    let env = started(who)?;
    env.ok(&["checkpoint", "instance", "one"])?;
    env.ok(&["instance", "stop", "one"])?;
    Ok(env)
}

/// Starts the server that holds so many MiB as `one`, to be saved into `kept`. Answers with its port.
fn memory_server(env: &Env, engine: &str, mebibytes: u32) -> Outcome<u16> {
    let (any, port) = (image(env, "any"), free_port()?);
    let flags = ["instance", "start", "--backend", engine, "--checkpoint", "kept", &any, "one"];
    let program = ["python3", "/opt/subjects/memory.py", &port.to_string(), &mebibytes.to_string()];
    env.ok(&[&flags[..], &program[..]].concat())?;
    Ok(port)
}

/// The directory of a checkpoint.
fn store(env: &Env, checkpoint: &str) -> std::path::PathBuf {
    env.path("data/checkpoints").join(checkpoint)
}

/// What the record of an instance says.
fn record(env: &Env, instance: &str) -> Outcome<serde_json::Value> {
    let mut found = find(&env.path("data/instances"), "instance.json");
    found.retain(|path| path.parent().is_some_and(|dir| dir.ends_with(instance)));
    let path = found.pop().ok_or_else(|| format!("there is no record of {instance}"))?;
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// The pid of an instance's monitor.
fn monitor(env: &Env, instance: &str) -> Outcome<nix::unistd::Pid> {
    let pid = record(env, instance)?["monitor_pid"].as_i64().ok_or("the record names no monitor")?;
    Ok(nix::unistd::Pid::from_raw(i32::try_from(pid)?))
}

/// Waits until nothing of the test runs any more.
fn all_ended(env: &Env) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    while !env.survivors().is_empty() {
        if Instant::now() > deadline {
            return Err(format!("still running: {:#?}", env.survivors()).into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Files of this name below a directory.
fn find(dir: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = crate::tree::files_below(dir).unwrap_or_default();
    found.retain(|path| path.file_name().is_some_and(|file| file == name));
    found
}
