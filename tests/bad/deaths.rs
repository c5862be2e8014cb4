//! Something is killed in the middle: what is inside ends, and the next command tells the truth and cleans up.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::http::get;
use crate::need::need;
use crate::running::Run;

#[test]
fn the_monitor_under_an_engine() {
    need!(image, userns, dmtcp);
    let env = started(Who::User).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    kill(monitor(&env, "one").unwrap(), Signal::SIGKILL).unwrap();
    nothing_runs(&env).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   instance "one" was lost: its monitor died
             hint:    the last state saved is generation 1 of checkpoint "kept"; bring it back with --restart kept
    "#);
    let list = env.ok(&["instance", "list"]).unwrap();
    assert!(list.out.contains("lost: its monitor died"), "{list:?}");
    // What was saved comes back under the same name.
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn the_monitor_without_an_engine() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    env.ok(&["instance", "start", &small, "one", IDLE]).unwrap();
    kill(monitor(&env, "one").unwrap(), Signal::SIGKILL).unwrap();
    nothing_runs(&env).unwrap();
    insta::assert_snapshot!(env.fails(&["exec", "instance://one", "true"]).unwrap(), @r#"
    exit 255
    FATAL:   instance "one" was lost: its monitor died
    "#);
    env.ok(&["instance", "start", &small, "one", IDLE]).unwrap();
    env.finish().unwrap();
}

#[test]
fn the_monitor_during_a_capture() {
    need!(image, userns, dmtcp);
    let (env, _) = large().unwrap();
    let capture = env.spawn(&["checkpoint", "instance", "one"]).unwrap();
    std::thread::sleep(Duration::from_millis(250));
    kill(monitor(&env, "one").unwrap(), Signal::SIGKILL).unwrap();
    let capture: Run = capture.wait().unwrap();
    assert_ne!(capture.code, 0, "{capture:?}");
    insta::assert_snapshot!(env.told(&capture), @"
    exit 255
    FATAL:   the monitor died before it answered
             hint:    `stasis instance list` tells what is left
    ");
    nothing_runs(&env).unwrap();
    // The generation before it comes back, and what was begun is cleared away.
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn the_engine_of_an_idle_instance() {
    need!(image, userns, dmtcp);
    let env = started(Who::User).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    kill_named(&env, "dmtcp_coordinator").unwrap();
    nothing_runs(&env).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   instance "one" has ended (failed: the engine's coordinator ended (signal 9 (SIGKILL)))
             hint:    the last state saved is generation 1 of checkpoint "kept"; bring it back with --restart kept
    "#);
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn the_engine_during_a_capture() {
    need!(image, userns, dmtcp);
    let (env, _) = large().unwrap();
    let capture = env.spawn(&["checkpoint", "instance", "one"]).unwrap();
    std::thread::sleep(Duration::from_millis(250));
    kill_named(&env, "dmtcp_coordinator").unwrap();
    let capture = capture.wait().unwrap();
    assert_ne!(capture.code, 0, "{capture:?}");
    nothing_runs(&env).unwrap();
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn the_command_that_asked_for_a_capture() {
    need!(image, userns, dmtcp);
    let (env, port) = large().unwrap();
    let capture = env.spawn(&["checkpoint", "instance", "one"]).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    capture.signal(Signal::SIGKILL).unwrap();
    drop(capture);
    let deadline = Instant::now() + Duration::from_secs(60);
    while env.stasis(&["checkpoint", "instance", "one"]).unwrap().code != 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(get(port, "/check").unwrap(), "good");
    env.ok(&["checkpoint", "verify", "kept"]).unwrap();
    env.finish().unwrap();
}

/// The records of a machine that went down while the instance ran: another boot, the pid gone or another's.
#[test]
fn the_machine() {
    need!(image, userns, dmtcp);
    let env = started(Who::User).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    let path = find(&env.path("data/instances"), "instance.json").pop().unwrap();
    let mut before: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    kill(monitor(&env, "one").unwrap(), Signal::SIGKILL).unwrap();
    nothing_runs(&env).unwrap();
    before["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    // Ourselves: a process that is there and is not the monitor.
    before["monitor_pid"] = std::process::id().into();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, before.to_string()).unwrap();
    crate::env::own(&path, env.uid()).unwrap();
    let list = env.ok(&["instance", "list"]).unwrap();
    assert!(list.out.contains("lost: the machine was rebooted"), "{list:?}");
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   instance "one" was lost: the machine was rebooted
             hint:    the last state saved is generation 1 of checkpoint "kept"; bring it back with --restart kept
    "#);
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.finish().unwrap();
}

/// An instance large enough that a capture takes a while, with one good generation.
fn large() -> Outcome<(Env, u16)> {
    let env = Env::new(Who::User)?;
    let port = memory_server(&env, "dmtcp", 512)?;
    assert_eq!(get(port, "/")?, "0");
    env.ok(&["checkpoint", "instance", "one"])?;
    Ok((env, port))
}

/// Waits until no process of the test is left.
pub(super) fn nothing_runs(env: &Env) -> Outcome<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = env.survivors();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("still running: {left:#?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills the processes of the test that run this program, as the memory killer of the kernel would. By the file:
/// DMTCP's coordinator writes over its own arguments, and 4.2 leaves nothing of its name there.
fn kill_named(env: &Env, name: &str) -> Outcome<()> {
    let mut killed = 0;
    for (pid, _) in env.survivors() {
        let file = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if file.file_name().is_some_and(|file| file == name) {
            kill(pid, Signal::SIGKILL)?;
            killed += 1;
        }
    }
    if killed > 0 {
        Ok(())
    } else {
        Err(format!("no process is called {name}: {:#?}", env.survivors()).into())
    }
}
