//! Programs of every kind, saved and brought back by CRIU.

use super::programs::Job;
use crate::env::Who;
use crate::http::{get, post};
use crate::need::need;
use crate::running::Outcome;

fn python(who: Who, flags: &[&str], words: &[&str]) -> Outcome<Job> {
    let mut all = vec!["python3"];
    all.extend(words);
    Job::with("criu", who, flags, "any", &all)
}

/// One kernel object, twice: a copy that was brought back can be saved like the first.
fn object(who: Who, flags: &[&str], kind: &str) -> Outcome<()> {
    let job = python(who, flags, &["/opt/subjects/objects.py", "PORT", kind])?;
    get(job.port, "/up")?;
    for _ in 0..2 {
        job.save().map_err(|why| format!("{kind}: {why}"))?;
        job.restart().map_err(|why| format!("{kind}: {why}"))?;
        assert_eq!(get(job.port, "/")?, "works", "{kind}");
    }
    job.env.finish()
}

const OBJECTS: [&str; 15] = [
    "eventfd",
    "epoll",
    "socketpair",
    "pty",
    "pidfd",
    "unix",
    "datagram",
    "shared",
    "zombie",
    "stopped",
    "itimer",
    "signalfd",
    "lock",
    "ticking",
    "orphan",
];

#[test]
fn kernel_objects_as_root() {
    need!(root, image, criu);
    for kind in OBJECTS.iter().chain(&["memfd", "shm", "timerfd", "inotify"]) {
        object(Who::Myself, &[], kind).unwrap();
    }
}

#[test]
fn kernel_objects_as_an_ordinary_user() {
    need!(image, userns, criu);
    for kind in OBJECTS {
        object(Who::User, &[], kind).unwrap();
    }
}

#[test]
fn kernel_objects_as_an_ordinary_user_with_subordinate_ids() {
    need!(root, image, userns, uidmap, criu);
    for kind in OBJECTS {
        object(Who::Granted, &[], kind).unwrap();
    }
}

#[test]
fn what_lies_in_the_containers_own_memory_file_systems() {
    need!(root, image, userns, uidmap, criu);
    for who in [Who::Myself, Who::User, Who::Granted] {
        object(who, &["--contain"], "named").unwrap();
    }
}

#[test]
fn several_processes_and_threads() {
    need!(image, userns, criu);
    let job = python(Who::User, &[], &["/opt/subjects/workers.py", "PORT"]).unwrap();
    assert_eq!(post(job.port, "5").unwrap(), "5,15 child; 105,115 child; 205,215 child");
    job.save().unwrap();
    post(job.port, "1000").unwrap();
    job.restart().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "5,15 child; 105,115 child; 205,215 child");
    job.save().unwrap();
    job.restart().unwrap();
    assert_eq!(post(job.port, "1").unwrap(), "6,16 child; 106,116 child; 206,216 child");
    job.env.finish().unwrap();
}

#[test]
fn open_and_deleted_files_and_a_log() {
    need!(image, userns, criu);
    let job = python(Who::User, &["--contain"], &["/opt/subjects/files.py", "PORT", "/tmp/work"]).unwrap();
    assert_eq!(post(job.port, "first").unwrap(), "next line 1; log 1; deleted but held; in True");
    job.save().unwrap();
    assert_eq!(post(job.port, "second").unwrap(), "next line 3; log 2; deleted but held; in True");
    job.restart().unwrap();
    assert_eq!(post(job.port, "again").unwrap(), "next line 3; log 2; deleted but held; in True");
    job.env.finish().unwrap();
}

#[test]
fn a_start_script_that_does_not_exec() {
    need!(image, userns, criu);
    let job = Job::with("criu", Who::User, &[], "plain", &["PORT"]).unwrap();
    post(job.port, "s").unwrap();
    job.save().unwrap();
    job.restart().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "s");
    job.env.finish().unwrap();
}

#[test]
fn a_pipeline_started_from_a_shell() {
    need!(image, userns, criu);
    let script = "python3 /opt/subjects/server.py \"$1\" 2>&1 | cat | cat";
    let job = Job::with("criu", Who::User, &[], "any", &["sh", "-c", script, "sh", "PORT"]).unwrap();
    post(job.port, "p").unwrap();
    job.save().unwrap();
    job.restart().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "p");
    job.save().unwrap();
    job.restart().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "p");
    job.env.finish().unwrap();
}

#[test]
fn one_gibibyte_with_criu() {
    need!(image, userns, criu);
    let job = python(Who::User, &[], &["/opt/subjects/memory.py", "PORT", "1024"]).unwrap();
    post(job.port, "m").unwrap();
    job.save().unwrap();
    assert_eq!(get(job.port, "/check").unwrap(), "good");
    job.restart().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "m");
    assert_eq!(get(job.port, "/check").unwrap(), "good");
    job.env.finish().unwrap();
}

#[test]
fn static_programs_and_musl_as_well() {
    need!(image, userns, criu);
    let images = crate::site::images().unwrap();
    for program in ["idle-static", "idle-musl"] {
        let program = format!("/opt/subjects/bin/{program}");
        if !images.join("any").join(&program[1..]).exists() {
            continue;
        }
        let job = Job::with("criu", Who::User, &[], "any", &[&program]).unwrap();
        job.save().unwrap();
        job.restart().unwrap();
        assert!(job.env.ok(&["instance", "list"]).unwrap().out.contains("job"));
        job.env.finish().unwrap();
    }
}

/// Whoever enters does not become part of what is saved, and does not stand in its way.
#[test]
fn a_command_beside_the_application() {
    need!(image, userns, criu);
    let job = Job::with("criu", Who::User, &[], "server", &["PORT"]).unwrap();
    let mut beside = job.env.spawn(&["exec", "instance://job", "sh", "-c", "echo up; cat; true"]).unwrap();
    let stdin = beside.feed("").unwrap();
    beside.wait_for("up").unwrap();
    job.save().unwrap();
    drop(stdin);
    assert_eq!(beside.wait().unwrap().code, 0);
    job.restart().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "0");
    job.env.finish().unwrap();
}
