//! A process or a copy that is killed during a capture: what is gone reads as if it had never been there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
mod engine;

use engine::{dump, inside, refusal, report, soon, start};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pages of its own that the subject has at least, each in a mapping by itself, and as many of a file that is gone.
const PAGES: u64 = 1500;

/// Neighbours differ in their protection, so the kernel does not join them.
const SUBJECT: &str = "import mmap, os, time\n\
    kept = []\n\
    for i in range(1500):\n\
    \x20   m = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
    \x20   m.write(bytes([1 + i % 255]) * 4096)\n\
    \x20   kept += [m, mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)]\n\
    f = open('gone', 'w+b')\n\
    f.write(b'x' * 4096 * 1500)\n\
    f.flush()\n\
    m = mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE)\n\
    os.unlink('gone')\n\
    f.close()\n\
    print('there', flush=True)\n\
    while True: time.sleep(0.1)\n";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Application,
    Copy,
}

#[test]
fn what_was_killed_is_not_saved_as_empty() {
    inside("what_was_killed_is_not_saved_as_empty", killed_inside);
}

fn killed_inside() {
    let here = std::env::current_dir().unwrap();
    fs::write(here.join("many.py"), SUBJECT).unwrap();
    for victim in [Victim::Application, Victim::Copy] {
        let outcomes: Vec<String> = (0..6).map(|part| attempt(&here, victim, part * PAGES / 3)).collect();
        println!("{outcomes:#?}");
        match victim {
            Victim::Application => {
                let told = |outcome: &String| outcome.contains("was killed while it was saved");
                assert!(outcomes.iter().any(told), "none was killed in time");
            }
            // The application itself is saved then.
            Victim::Copy => {
                assert!(outcomes.iter().all(|outcome| outcome.starts_with("saved")));
                assert!(
                    outcomes.iter().any(|outcome| outcome.contains("was killed, as when memory runs out"))
                );
            }
        }
    }
}

/// A capture during which this one is killed once so many pages have been written.
fn attempt(here: &Path, victim: Victim, after: u64) -> String {
    let output = here.join("out");
    let _ = fs::remove_file(&output);
    let subject = start(Path::new("/usr/bin/python3"), &["many.py"], &output);
    soon("it is there", || fs::read_to_string(&output).unwrap_or_default().contains("there"));
    let (pid, image) = (subject.pid(), here.join("image"));
    let known: HashSet<i32> = pids().collect();
    let pages = image.join(format!("pages-{pid}.img"));
    let _ = fs::remove_file(&pages);
    let over = AtomicBool::new(false);
    let saved = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !fs::metadata(&pages).is_ok_and(|about| about.len() >= after * 4096) {
                if over.load(Ordering::Relaxed) {
                    return;
                }
            }
            let victim = match victim {
                Victim::Application => i32::try_from(pid).ok(),
                Victim::Copy => copy(&known),
            };
            if let Some(victim) = victim {
                let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
            }
        });
        let how = if victim == Victim::Copy { "--fork" } else { "--plain" };
        let saved = dump(pid, &image, &[how]);
        over.store(true, Ordering::Relaxed);
        saved
    });
    if !saved.status.success() {
        return refusal(&saved);
    }
    let saved = report(&saved);
    assert!(saved["pages"].as_u64().unwrap() >= 2 * PAGES, "killed after {after} pages: {saved}");
    format!("saved {}", saved["why_plain"])
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process that was not there before and has the name of the subject.
fn copy(known: &HashSet<i32>) -> Option<i32> {
    let named = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("python"))
    };
    pids().find(|pid| !known.contains(pid) && named(*pid))
}
