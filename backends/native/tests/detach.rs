//! Memory that was mapped at a restart becomes the process's own while the application goes on with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
mod engine;

use engine::rounds::{PID, ROUND, apart, here, next_pid, passed, restore, said, times, well};
use engine::{compile, dump, engine, report, soon, start};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// How many steps are left out between two at which a pass is killed.
const STRIDE: usize = 23;

/// Runs the test inside; the rounds that it starts there come to this place too.
fn inside(test: &str, part: fn()) {
    let Ok(round) = std::env::var(ROUND) else { return engine::inside(test, part) };
    match round.split('\n').collect::<Vec<_>>()[..] {
        ["save", program] => save(Path::new(program)),
        ["given"] => given_back(),
        ["busy"] => busy(),
        ["killed", step] => killed(step),
        _ => panic!("{round:?}"),
    }
}

/// An image of a program that is well.
fn save(program: &Path) {
    next_pid(PID);
    let _subject = start(program, &[], &here("output"));
    soon("it is ready", || said(&here("output")).contains("ready"));
    report(&dump(PID, &here("image"), &["--fork"]));
}

fn saved(program: &str) {
    let _ = fs::remove_file(here("output"));
    passed(&apart(&["save", compile(program, &[]).to_str().unwrap()]));
}

fn detach(more: &[&str]) -> Child {
    let words = [&["detach", "--pid-file", "root-pid", "--lock", "lock"], more].concat();
    engine(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(pass: Child) -> Output {
    pass.wait_with_output().unwrap()
}

/// Bytes that are still mapped from an image.
fn mapped() -> u64 {
    let maps = fs::read_to_string(format!("/proc/{PID}/maps")).unwrap();
    let of_image = maps.lines().filter(|line| line.contains("/pages-"));
    let length = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some(u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?)
    };
    of_image.filter_map(length).sum()
}

fn restore_mapped() {
    let _ = fs::remove_file("root-pid");
    let told = report(&restore(&here("image"), "--map"));
    assert_eq!(told["mode"], "map");
    assert!(mapped() > 8 << 20, "{} bytes are mapped", mapped());
}

fn tell(signal: &str) {
    let before = times(&here("output"));
    assert!(Command::new("kill").args([signal, &PID.to_string()]).status().unwrap().success());
    well(&here("output"), before, 1);
}

#[test]
fn what_is_given_back_afterwards_reads_as_zeros() {
    inside("what_is_given_back_afterwards_reads_as_zeros", || {
        saved("memory");
        passed(&apart(&["given"]));
    });
}

fn given_back() {
    // It waits for the restart by itself.
    let pass = detach(&[]);
    restore_mapped();
    let told = report(&ended(pass));
    assert!(told["bytes"].as_u64().unwrap() > 8 << 20, "{told}");
    assert_eq!(mapped(), 0);
    tell("-USR2");
    tell("-USR1");
    assert_eq!(report(&ended(detach(&[])))["bytes"], 0, "there is nothing left");
}

#[test]
fn what_changes_meanwhile_is_not_lost() {
    inside("what_changes_meanwhile_is_not_lost", || {
        saved("writes");
        for _ in 0..4 {
            passed(&apart(&["busy"]));
        }
    });
}

fn busy() {
    restore_mapped();
    let pass = detach(&[]);
    // A capture waits for its step, and it for the capture.
    let lock = ["--fork", "--lock", "lock"];
    let beside = pass.id().to_string();
    report(&dump(PID, &here("image-between"), &[&lock[..], &["--beside", &beside]].concat()));
    let told = report(&ended(pass));
    println!("{told}");
    // At least what is only written: every second of 48.
    assert!(told["bytes"].as_u64().unwrap() > 20 << 20, "{told}");
    well(&here("output"), times(&here("output")), 3);
    report(&dump(PID, &here("image"), &lock));
}

#[test]
fn a_pass_that_is_killed_harms_nobody() {
    inside("a_pass_that_is_killed_harms_nobody", || {
        saved("writes");
        let mut step = 1;
        while !passed(&apart(&["killed", &step.to_string()])).contains("ended before") {
            step += STRIDE;
        }
        println!("killed at {step} and before");
        assert!(step > 5 * STRIDE);
    });
}

fn killed(step: &str) {
    restore_mapped();
    if ended(detach(&["--kill-at", step])).status.success() {
        println!("ended before");
    }
    well(&here("output"), times(&here("output")), 2);
    // What is left of it hinders neither another pass nor a capture.
    report(&ended(detach(&[])));
    well(&here("output"), times(&here("output")), 2);
    report(&dump(PID, &here("image-after"), &["--fork", "--lock", "lock"]));
}
