//! Programs of every kind, saved and brought back by CRIU.

use super::engine::{Engine, as_all};
use super::transcript;
use crate::env::Who;
use crate::need::need;
use crate::running::Outcome;

const CRIU: Engine = Engine("criu");

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
        CRIU.object(Who::Myself, &[], kind).unwrap();
    }
}

#[test]
fn kernel_objects_as_an_ordinary_user() {
    need!(image, userns, criu);
    for kind in OBJECTS {
        CRIU.object(Who::User, &[], kind).unwrap();
    }
}

#[test]
fn kernel_objects_as_an_ordinary_user_with_subordinate_ids() {
    need!(root, image, userns, uidmap, criu);
    for kind in OBJECTS {
        CRIU.object(Who::Granted, &[], kind).unwrap();
    }
}

#[test]
fn what_lies_in_the_containers_own_memory_file_systems() {
    need!(root, image, userns, uidmap, criu);
    for who in [Who::Myself, Who::User, Who::Granted] {
        CRIU.object(who, &["--contain"], "named").unwrap();
    }
}

as_all! { (criu) granted:
    several_processes_and_threads()
    open_and_deleted_files_and_a_log()
    a_start_script_that_does_not_exec()
    a_pipeline_started_from_a_shell()
    a_static_program()
    a_program_with_musl(musl)
    a_command_beside_the_application()
    exit_codes()
    what_a_capture_leaves()
    an_older_generation_comes_back_by_its_number()
    save_and_stop_is_one_step()
    a_bind_over_a_memory_file_system()
}

fn several_processes_and_threads(who: Who) -> Outcome<()> {
    CRIU.workers(who)
}

fn open_and_deleted_files_and_a_log(who: Who) -> Outcome<()> {
    CRIU.files(who)
}

fn a_start_script_that_does_not_exec(who: Who) -> Outcome<()> {
    CRIU.server(who, "plain", &["PORT"])
}

fn a_pipeline_started_from_a_shell(who: Who) -> Outcome<()> {
    CRIU.pipeline(who)
}

fn a_static_program(who: Who) -> Outcome<()> {
    CRIU.without_glibc(who, "idle-static")
}

fn a_program_with_musl(who: Who) -> Outcome<()> {
    CRIU.without_glibc(who, "idle-musl")
}

fn a_command_beside_the_application(who: Who) -> Outcome<()> {
    CRIU.command_beside(who)
}

fn exit_codes(who: Who) -> Outcome<()> {
    CRIU.exit_codes(who)
}

fn an_older_generation_comes_back_by_its_number(who: Who) -> Outcome<()> {
    transcript::older(who, "criu")
}

fn save_and_stop_is_one_step(who: Who) -> Outcome<()> {
    transcript::save_and_stop(who, "criu")
}

fn a_bind_over_a_memory_file_system(who: Who) -> Outcome<()> {
    CRIU.bind_over_memory(who)
}

fn what_a_capture_leaves(who: Who) -> Outcome<()> {
    let statistics = CRIU.generation(who)?["report"]["facts"]["statistics"].take();
    for name in ["pages-written", "frozen-us"] {
        assert!(statistics[name].as_u64().is_some_and(|number| number > 0), "{name}: {statistics}");
    }
    Ok(())
}

#[test]
fn one_gibibyte() {
    need!(image, userns, criu);
    CRIU.one_gibibyte().unwrap();
}
