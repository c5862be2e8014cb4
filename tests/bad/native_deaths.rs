//! The native engine, the monitor or the room for what is saved ends in the middle of a capture: the application goes
//! on where it can, and the generation before comes back.

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::http::{free_port, get, post};
use crate::need::need;

/// A program that writes to all of its memory, with one good generation.
fn writer(who: Who) -> Outcome<(Env, u16)> {
    let env = Env::new(who)?;
    let port = writer_in(&env)?;
    Ok((env, port))
}

fn writer_in(env: &Env) -> Outcome<u16> {
    let port = free_port()?;
    let (any, number) = (image(env, "any"), port.to_string());
    let program = ["python3", "/opt/subjects/writer.py", &number, "256"];
    let flags = ["instance", "start", "--backend", "native", "--checkpoint", "kept", &any, "one"];
    env.ok(&[&flags[..], &program[..]].concat())?;
    assert_eq!(post(port, "1")?, "1");
    env.ok(&["checkpoint", "instance", "one"])?;
    Ok(port)
}

/// What is saved comes back as it was then.
fn comes_back(env: &Env, port: u16) -> Outcome<()> {
    env.stasis(&["instance", "stop", "one"])?;
    env.ok(&["checkpoint", "verify", "kept"])?;
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"])?;
    assert_eq!(get(port, "/")?, "1");
    assert_eq!(get(port, "/check")?, "good");
    Ok(())
}

/// The engine's process, as soon as it is there.
fn engine(env: &Env) -> Outcome<nix::unistd::Pid> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = env.survivors().into_iter().find(|(_, line)| line.contains(" dump --pid "));
        if let Some((pid, _)) = found {
            return Ok(pid);
        }
        if Instant::now() > deadline {
            return Err("the engine never came".into());
        }
    }
}

fn killed(who: Who) -> Outcome<()> {
    let (env, port) = writer(who)?;
    let mut failed = 0;
    for after in [0, 5, 20, 40, 80, 120, 160] {
        let capture = env.spawn(&["checkpoint", "instance", "one"])?;
        let pid = engine(&env)?;
        std::thread::sleep(Duration::from_millis(after));
        // It may have come to its end.
        let _ = kill(pid, Signal::SIGKILL);
        let run = capture.wait()?;
        assert_eq!(get(port, "/check")?, "good", "{after} ms: {run:?}");
        if run.code != 0 {
            assert!(run.err.contains("nothing was saved"), "{}", run.err);
            failed += 1;
        }
    }
    assert!(failed > 0, "none was killed in time");
    comes_back(&env, port)?;
    // And it can be saved as before.
    env.ok(&["checkpoint", "instance", "one"])?;
    comes_back(&env, port)?;
    env.finish()
}

#[test]
fn the_native_engine_during_a_capture() {
    need!(root, image, userns);
    for who in [Who::Myself, Who::User] {
        killed(who).unwrap();
    }
}

#[test]
fn the_monitor_while_the_native_engine_saves() {
    need!(root, image, userns);
    for who in [Who::Myself, Who::User] {
        let (env, port) = writer(who).unwrap();
        let capture = env.spawn(&["checkpoint", "instance", "one"]).unwrap();
        engine(&env).unwrap();
        kill(monitor(&env, "one").unwrap(), Signal::SIGKILL).unwrap();
        assert_ne!(capture.wait().unwrap().code, 0);
        all_ended(&env).unwrap();
        comes_back(&env, port).unwrap();
        env.finish().unwrap();
    }
}

/// The estimate before a capture cannot know all: here the room vanishes while the engine writes.
#[test]
fn the_store_becomes_full_while_the_native_engine_saves() {
    need!(root, image, userns);
    for who in [Who::Myself, Who::User] {
        let env = Env::new(who).unwrap();
        let data = env.path("data");
        disk::small(&data, env.uid(), 900).unwrap();
        let port = writer_in(&env).unwrap();
        let capture = env.spawn(&["checkpoint", "instance", "one"]).unwrap();
        disk::begun(&env).unwrap();
        disk::shrink(&data, 20).unwrap();
        let run = capture.wait().unwrap();
        disk::size(&data, 900 << 20).unwrap();
        assert!(run.code != 0, "{}", run.err);
        insta::allow_duplicates! { insta::assert_snapshot!(run.err, @"
        FATAL:   /.stasis/capture/pages-100.img cannot be written
                 because: No space left on device
                 because: the file system of the checkpoints is full, or its quota is used up
                 because: the application runs on, and nothing was saved
                 hint:    remove old checkpoints (`stasis checkpoint prune`), or keep them on a larger file system
        "); }
        assert_eq!(get(port, "/check").unwrap(), "good");
        comes_back(&env, port).unwrap();
        env.finish().unwrap();
    }
}
