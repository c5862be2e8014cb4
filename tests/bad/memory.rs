//! A job whose memory is limited is saved with what there is, and is never the one that pays for it.

use super::*;
use crate::group::Group;
use crate::http::{free_port, get, post};
use crate::need::need;

/// A writer of this size under the native engine, in a group that may have `limit` MiB, to be saved in this way.
fn limited(who: Who, mebibytes: u64, limit: u64, capture: &str) -> Outcome<(Group, Env, u16)> {
    // The group goes last, also when this fails: whoever is in it is ended before.
    let group = Group::new(limit)?;
    let (env, port) = (Env::new(who)?, free_port()?);
    let (any, number, size) = (image(&env, "any"), port.to_string(), mebibytes.to_string());
    let program = ["python3", "/opt/subjects/writer.py", &number, &size];
    let option = format!("capture={capture}");
    let start = ["instance", "start", "--backend", "native", "--checkpoint", "kept", "--backend-option"];
    let words = [&start[..], &[&option, &any, "one"], &program].concat();
    group.start(&env, &words)?;
    assert_eq!(get(port, "/check")?, "good");
    Ok((group, env, port))
}

/// How the newest generation was saved, and what the command said of it.
fn capture(env: &Env) -> Outcome<(serde_json::Value, String)> {
    let run = env.ok(&["checkpoint", "instance", "one"])?;
    Ok((env.newest("kept")?["report"]["facts"]["engine"].take(), run.err))
}

/// The newest generation is all of it.
fn comes_back(env: &Env, port: u16, sum: &str) -> Outcome<()> {
    env.ok(&["instance", "stop", "one"])?;
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"])?;
    assert_eq!(get(port, "/")?, sum);
    assert_eq!(get(port, "/check")?, "good");
    Ok(())
}

#[test]
fn where_no_copy_has_room_there_is_none() {
    need!(root, image, userns, memory_groups);
    for who in [Who::Myself, Who::User] {
        let (_group, env, port) = limited(who, 96, 160, "auto").unwrap();
        assert_eq!(post(port, "1").unwrap(), "1");
        let (engine, told) = capture(&env).unwrap();
        assert_eq!(engine["mode"], "plain", "{engine}");
        let why = "the application stood still while its memory was written: the job's memory limit leaves";
        assert!(told.contains(why), "{told}");
        assert_eq!(get(port, "/check").unwrap(), "good");
        comes_back(&env, port, "1").unwrap();
        env.finish().unwrap();
    }
}

#[test]
fn a_copy_that_was_demanded_is_killed_and_not_the_job() {
    need!(root, image, userns, memory_groups);
    for who in [Who::Myself, Who::User] {
        let (group, env, port) = limited(who, 96, 160, "fork").unwrap();
        assert_eq!(post(port, "1").unwrap(), "1");
        let killed = group.killed().unwrap();
        let (engine, told) = capture(&env).unwrap();
        assert!(group.killed().unwrap() > killed, "memory did not run out: {engine}, {told}");
        assert_eq!(engine["mode"], "plain", "{engine}");
        assert!(told.contains("was killed, as when memory runs out"), "{told}");
        assert_eq!(get(port, "/check").unwrap(), "good");
        assert_eq!(post(port, "1").unwrap(), "2");
        // With room for it there is one, and nobody is killed.
        group.limit(600).unwrap();
        let killed = group.killed().unwrap();
        let (engine, told) = capture(&env).unwrap();
        assert_eq!((&engine["mode"], group.killed().unwrap()), (&"fork".into(), killed), "{told}");
        assert_eq!(get(port, "/check").unwrap(), "good");
        comes_back(&env, port, "2").unwrap();
        env.finish().unwrap();
    }
}
