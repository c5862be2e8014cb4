//! Programs of every kind, saved and brought back by CRIU.

use super::engine::Engine;
use crate::env::Who;
use crate::need::need;

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

#[test]
fn a_bind_over_a_memory_file_system() {
    need!(root, image, userns, criu);
    for who in [Who::Myself, Who::User] {
        CRIU.bind_over_memory(who).unwrap();
    }
}

#[test]
fn several_processes_and_threads() {
    need!(image, userns, criu);
    CRIU.workers().unwrap();
}

#[test]
fn open_and_deleted_files_and_a_log() {
    need!(image, userns, criu);
    CRIU.files().unwrap();
}

#[test]
fn a_start_script_that_does_not_exec() {
    need!(image, userns, criu);
    CRIU.server("plain", &["PORT"]).unwrap();
}

#[test]
fn a_pipeline_started_from_a_shell() {
    need!(image, userns, criu);
    CRIU.pipeline().unwrap();
}

#[test]
fn one_gibibyte() {
    need!(image, userns, criu);
    CRIU.one_gibibyte().unwrap();
}

#[test]
fn static_programs_and_musl_as_well() {
    need!(image, userns, criu);
    CRIU.without_glibc().unwrap();
}

#[test]
fn a_command_beside_the_application() {
    need!(image, userns, criu);
    CRIU.command_beside().unwrap();
}
