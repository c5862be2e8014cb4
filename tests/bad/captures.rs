//! Captures at a bad moment, and what an engine would lose without a word.

use super::*;
use crate::http::{free_port, get};
use crate::need::need;

#[test]
fn two_at_once() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let port = memory_server(&env, "dmtcp", 256).unwrap();
    assert_eq!(get(port, "/").unwrap(), "0");
    let both: Vec<_> = (0..3).map(|_| env.spawn(&["checkpoint", "instance", "one"]).unwrap()).collect();
    let both: Vec<_> = both.into_iter().map(|running| running.wait().unwrap()).collect();
    let good = both.iter().filter(|run| run.code == 0).count();
    assert!(good >= 1, "{both:?}");
    for run in both.iter().filter(|run| run.code != 0) {
        insta::allow_duplicates! { insta::assert_snapshot!(env.told(run), @r#"
        exit 255
        FATAL:   instance "one" is being saved already
                 hint:    wait until that capture is complete
        "#); }
    }
    let generations = std::fs::read_dir(store(&env, "kept").join("generations")).unwrap().count();
    assert_eq!(generations, good, "each success is a generation");
    assert_eq!(get(port, "/check").unwrap(), "good");
    env.finish().unwrap();
}

/// A stop waits for the capture, and the signal that stops is not saved with it.
#[test]
fn a_stop_during_a_capture() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let any = image(&env, "any");
    let port = memory_server(&env, "dmtcp", 256).unwrap();
    assert_eq!(get(port, "/").unwrap(), "0");
    let capture = env.spawn(&["checkpoint", "instance", "one"]).unwrap();
    disk::begun(&env).unwrap();
    env.ok(&["instance", "stop", "one"]).unwrap();
    let capture = capture.wait().unwrap();
    assert_eq!(capture.code, 0, "{}", capture.err);
    env.ok(&["instance", "start", "--restart", "kept", &any, "one"]).unwrap();
    assert_eq!(get(port, "/check").unwrap(), "good");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(get(port, "/").unwrap(), "0");
    env.finish().unwrap();
}

/// A process that is stopped takes no part in a capture, as one that waits for DMTCP's coordinator for ever.
#[test]
fn of_a_process_that_does_not_answer() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let port = memory_server(&env, "dmtcp", 0).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    let send = |signal: &str| {
        let script = format!(
            "for p in /proc/[0-9]*; do [ $(cat $p/comm) = python3 ] && kill -{signal} ${{p#/proc/}}; done; exit 0"
        );
        env.ok(&["exec", "instance://one", "sh", "-c", &script]).unwrap();
    };
    send("STOP");
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   DMTCP did not complete the capture in the time given
             because: its coordinator waits for processes that do not answer
             because: nothing was saved, and the application may stand still
             hint:    see whether it goes on; if not, `stasis instance stop --force one` ends it, and --restart kept brings generation 1 back
    "#);
    send("CONT");
    // DMTCP saves it now, though nobody waits for it any more; who asks in the meantime is turned away.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while get(port, "/check").ok().as_deref() != Some("good") {
        assert!(std::time::Instant::now() < deadline, "it does not go on");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    env.ok(&["checkpoint", "verify", "kept"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn of_an_instance_without_an_engine() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    env.ok(&["instance", "start", &small, "one", IDLE]).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   instance "one" was not started with checkpointing
             hint:    start it with `--checkpoint NAME`
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "--stop", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   instance "one" was not started with checkpointing
             hint:    start it with `--checkpoint NAME`
    "#);
    assert!(
        env.ok(&["instance", "list"]).unwrap().out.contains("one"),
        "it was stopped though nothing was saved"
    );
    env.finish().unwrap();
}

#[test]
fn objects_that_would_be_lost_are_refused_unless_accepted() {
    need!(image, userns, dmtcp);
    let mut told = String::new();
    for kind in ["timerfd", "memfd", "pty"] {
        told.push_str(&lost(kind).unwrap());
    }
    insta::assert_snapshot!(told, @r#"
    timerfd: exit 255
    FATAL:   DMTCP cannot save instance "one"
             because: descriptor N of python3 (pid N), anon_inode:[timerfd]: DMTCP brings the descriptor back and the timer never fires again
             because: the application runs on, and nothing was saved
             hint:    close it before saving; to go on and lose it: --accept-loss=timerfd
    memfd: exit 255
    FATAL:   DMTCP cannot save instance "one"
             because: descriptor N of python3 (pid N), /memfd:subject (deleted): DMTCP does not bring memory of memfd_create back
             because: descriptor N of python3 (pid N), /memfd:subject (deleted): DMTCP does not bring memory of memfd_create back
             because: memory of python3 (pid N), /memfd:subject (deleted): DMTCP does not bring memory of memfd_create back
             because: the application runs on, and nothing was saved
             hint:    use files in /dev/shm instead; to go on and lose it: --accept-loss=memfd
    pty: exit 255
    FATAL:   DMTCP cannot save instance "one"
             because: descriptor N of python3 (pid N), /dev/ptmx: DMTCP does not bring pseudo terminals of the application's own back
             because: the application runs on, and nothing was saved
             hint:    end what holds the terminal before saving; to go on and lose it: --accept-loss=pty
    "#);
}

fn lost(kind: &str) -> Outcome<String> {
    let env = Env::new(Who::User)?;
    let (any, port) = (image(&env, "any"), free_port()?);
    let number = port.to_string();
    let program = ["python3", "/opt/subjects/objects.py", &number, kind];
    let flags = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &any, "one"];
    env.ok(&[&flags[..], &program[..]].concat())?;
    assert_eq!(get(port, "/")?, "works", "{kind}");
    let told = env.fails(&["checkpoint", "instance", "one"])?;
    assert_eq!(get(port, "/")?, "works", "{kind}: the application was harmed");
    assert_eq!(std::fs::read_dir(store(&env, "kept").join("generations")).map_or(0, Iterator::count), 0);
    env.ok(&["instance", "stop", "one"])?;
    let accepted = format!("--accept-loss={kind}");
    let mut words = flags.to_vec();
    words.insert(2, &accepted);
    env.ok(&[&words[..], &program[..]].concat())?;
    assert_eq!(get(port, "/")?, "works", "{kind}");
    env.ok(&["checkpoint", "instance", "one"])?;
    env.finish()?;
    Ok(format!("{kind}: {told}"))
}

/// These end the application under this engine, at the latest at the capture: that has to be told.
#[test]
fn objects_that_this_engine_does_not_survive() {
    need!(image, userns, dmtcp);
    for kind in ["inotify", "pidfd"] {
        let env = Env::new(Who::User).unwrap();
        let (any, port) = (image(&env, "any"), free_port().unwrap());
        let program = ["python3", "/opt/subjects/objects.py", &port.to_string(), kind];
        let flags = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &any, "one"];
        let start = env.stasis(&[&flags[..], &program[..]].concat()).unwrap();
        // An application that is told at once that it cannot have the object loses nothing without a word.
        if start.code == 0 && get(port, "/").is_ok_and(|said| said == "works") {
            let capture = env.stasis(&["checkpoint", "instance", "one"]).unwrap();
            assert_ne!(capture.code, 0, "{kind} was saved: {capture:?}");
            assert!(get(port, "/").is_ok(), "{kind}: the capture ended the application: {capture:?}");
        }
        env.finish().unwrap();
    }
}
