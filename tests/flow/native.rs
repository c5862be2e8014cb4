//! Programs of every kind, saved and brought back by the native engine.

use super::programs::Job;
use crate::env::Who;
use crate::http::{get, post};
use crate::need::need;
use crate::running::Outcome;

fn python(who: Who, flags: &[&str], words: &[&str]) -> Outcome<Job> {
    let mut all = vec!["python3"];
    all.extend(words);
    Job::with("native", who, flags, "any", &all)
}

/// One kernel object, twice: a copy that was brought back can be saved like the first.
fn object(who: Who, flags: &[&str], kind: &str) -> Outcome<()> {
    let job = python(who, flags, &["/opt/subjects/objects.py", "PORT", kind])?;
    for _ in 0..2 {
        job.save().map_err(|why| format!("{kind}: {why}"))?;
        job.restart().map_err(|why| format!("{kind}: {why}"))?;
        assert_eq!(get(job.port, "/")?, "works", "{kind}");
    }
    job.env.finish()
}

const OBJECTS: [&str; 17] = [
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
    "timerfd",
    "ticking",
    "memfd",
    "shm",
];

#[test]
fn kernel_objects_with_the_native_engine_as_root() {
    need!(root, image);
    for kind in OBJECTS {
        object(Who::Myself, &[], kind).unwrap();
    }
}

#[test]
fn kernel_objects_with_the_native_engine_as_an_ordinary_user() {
    need!(image, userns);
    for kind in OBJECTS {
        object(Who::User, &[], kind).unwrap();
    }
}

#[test]
fn what_lies_in_memory_file_systems_with_the_native_engine() {
    need!(root, image, userns);
    for who in [Who::Myself, Who::User] {
        object(who, &["--contain"], "named").unwrap();
    }
}

#[test]
fn several_processes_and_threads_with_the_native_engine() {
    need!(image, userns);
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
fn open_and_deleted_files_and_a_log_with_the_native_engine() {
    need!(image, userns);
    let job = python(Who::User, &["--contain"], &["/opt/subjects/files.py", "PORT", "/tmp/work"]).unwrap();
    assert_eq!(post(job.port, "first").unwrap(), "next line 1; log 1; deleted but held; in True");
    job.save().unwrap();
    assert_eq!(post(job.port, "second").unwrap(), "next line 3; log 2; deleted but held; in True");
    job.restart().unwrap();
    assert_eq!(post(job.port, "again").unwrap(), "next line 3; log 2; deleted but held; in True");
    job.env.finish().unwrap();
}

#[test]
fn a_start_script_that_does_not_exec_with_the_native_engine() {
    need!(image, userns);
    let job = Job::with("native", Who::User, &[], "plain", &["PORT"]).unwrap();
    post(job.port, "s").unwrap();
    job.save().unwrap();
    job.restart().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "s");
    job.env.finish().unwrap();
}

#[test]
fn a_pipeline_started_from_a_shell_with_the_native_engine() {
    need!(image, userns);
    let script = "python3 /opt/subjects/server.py \"$1\" 2>&1 | cat | cat";
    let job = Job::with("native", Who::User, &[], "any", &["sh", "-c", script, "sh", "PORT"]).unwrap();
    post(job.port, "p").unwrap();
    for _ in 0..2 {
        job.save().unwrap();
        job.restart().unwrap();
        assert_eq!(get(job.port, "/").unwrap(), "p");
    }
    job.env.finish().unwrap();
}

#[test]
fn one_gibibyte_with_the_native_engine() {
    need!(image, userns);
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
fn memory_that_is_copied_or_mapped_and_saved_again() {
    need!(image, userns);
    for how in ["restart=map", "restart=copy", "capture=plain"] {
        let flags = ["--backend-option", how];
        let job = python(Who::User, &flags, &["/opt/subjects/memory.py", "PORT", "16"]).unwrap();
        for state in ["a", "b", "c"] {
            post(job.port, state).unwrap();
            job.save().unwrap();
            job.restart().unwrap();
            assert_eq!(get(job.port, "/").unwrap(), state, "{how}");
            assert_eq!(get(job.port, "/check").unwrap(), "good", "{how}");
        }
        job.env.finish().unwrap();
    }
}

#[test]
fn static_programs_and_musl_with_the_native_engine() {
    need!(image, userns);
    let images = crate::site::images().unwrap();
    for program in ["idle-static", "idle-musl"] {
        let program = format!("/opt/subjects/bin/{program}");
        if !images.join("any").join(&program[1..]).exists() {
            continue;
        }
        let job = Job::with("native", Who::User, &[], "any", &[&program]).unwrap();
        job.save().unwrap();
        job.restart().unwrap();
        assert!(job.env.ok(&["instance", "list"]).unwrap().out.contains("job"));
        job.env.finish().unwrap();
    }
}

#[test]
fn a_command_beside_the_application_is_no_part_of_what_is_saved() {
    need!(image, userns);
    let job = Job::with("native", Who::User, &[], "server", &["PORT"]).unwrap();
    assert_eq!(post(job.port, "b").unwrap(), "b");
    let beside = ["exec", "instance://job", "sh", "-c", "echo in; sleep 1000; true"];
    let beside = job.env.spawn(&beside).unwrap();
    beside.wait_for("in").unwrap();
    job.save().unwrap();
    job.restart().unwrap();
    beside.wait().unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "b");
    job.env.finish().unwrap();
}

#[test]
fn a_process_of_another_user_with_the_native_engine() {
    need!(root, image);
    let job = python(Who::Myself, &[], &["/opt/subjects/objects.py", "PORT", "elsewhere"]).unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "works");
    for _ in 0..2 {
        job.save().unwrap();
        job.restart().unwrap();
        let look = ["exec", "instance://job", "sh", "-c", "grep -h ^Uid: /proc/[0-9]*/status"];
        let ids = job.env.ok(&look).unwrap().out;
        assert!(ids.lines().any(|line| line == "Uid:\t5833\t5833\t5833\t5833"), "{ids}");
    }
    job.env.finish().unwrap();
}
