//! The engine is killed in the middle of captures, again and again, and the application never notices: it checks
//! itself (subjects/restless.c), and from outside its masks, tasks, descriptors and children are counted.
//!
//! By default as many kills as fit into some seconds; STASIS_NATIVE_KILLS=5000 for a campaign.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "each test uses a part of it")]
mod engine;

use engine::{Subject, compile, dump, inside, report, soon, start};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

const KILLS: &str = "STASIS_NATIVE_KILLS";
const SIGKILL: i32 = 9;

/// The layout of restless.c: rounds, tids and masks of each thread, then what went wrong.
const THREADS: usize = 12;
/// Stands in sigsuspend with a mask of the moment; makes threads and children.
const OTHER_MASK: [usize; 2] = [6, 11];

struct Watched {
    subject: Subject,
    state: fs::File,
    descriptors: usize,
    mappings: usize,
}

impl Watched {
    fn start(program: &Path) -> Self {
        let path = std::env::current_dir().unwrap().join("state");
        fs::write(&path, [0; 4096]).unwrap();
        let subject = start(program, &[path.to_str().unwrap()], Path::new("/dev/null"));
        let state = fs::File::open(&path).unwrap();
        let mut watched = Self { subject, state, descriptors: 0, mappings: 0 };
        soon("all threads go round", || watched.rounds().iter().all(|rounds| *rounds > 0));
        watched.descriptors = count(watched.subject.pid(), "fd");
        watched.mappings = watched.mapped();
        watched
    }

    fn word(&self, index: usize) -> u64 {
        let mut bytes = [0; 8];
        self.state.read_exact_at(&mut bytes, 8 * index as u64).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn rounds(&self) -> Vec<u64> {
        (0..THREADS).map(|thread| self.word(thread)).collect()
    }

    /// Files and named areas; the heaps of threads that come and go are left out.
    fn mapped(&self) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.subject.pid())).unwrap();
        maps.lines().filter(|line| line.split_whitespace().count() > 5).count()
    }

    /// What is not as it should be now; empty when all is well.
    fn complaint(&self) -> String {
        let pid = self.subject.pid();
        let mut wrong = String::new();
        for thread in 0..THREADS {
            let tid = self.word(THREADS + thread);
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")) else {
                return format!("thread {thread} is gone");
            };
            let field = |name: &str| {
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(str::trim)
                    .unwrap_or_default()
                    .to_owned()
            };
            let mask = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
            if !OTHER_MASK.contains(&thread) && mask != self.word(2 * THREADS + thread) {
                wrong = format!("thread {thread} has the mask {mask:x}");
            }
            if field("TracerPid:") != "0" {
                wrong = format!("thread {thread} is traced");
            }
        }
        let tasks = count(pid, "task");
        if !(THREADS..=THREADS + 1).contains(&tasks) {
            wrong = format!("{tasks} tasks");
        }
        let descriptors = count(pid, "fd");
        if descriptors != self.descriptors {
            wrong = format!("{descriptors} descriptors instead of {}", self.descriptors);
        }
        let others = strangers(pid);
        if others.len() > 1 {
            wrong = format!("copies are left: {others:?}");
        }
        wrong
    }

    /// Every thread goes on and nothing was left behind or noticed.
    fn check(&mut self, after: &str) {
        let before = self.rounds();
        soon(&format!("all threads go on after {after}"), || {
            assert!(self.subject.running(), "the application ended after {after}");
            self.rounds().iter().zip(&before).all(|(now, then)| now > then)
        });
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let complaint = self.complaint();
            if complaint.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "after {after}: {complaint}");
            reap(self.subject.pid());
            std::thread::sleep(Duration::from_millis(2));
        }
        let wrong: Vec<u64> = (0..3).map(|n| self.word(3 * THREADS + n)).collect();
        assert_eq!(wrong, [0; 3], "thread (from 1), line and value of what went wrong, after {after}");
        assert_eq!(self.mapped(), self.mappings, "a mapping was left after {after}");
    }
}

fn count(pid: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count()
}

/// Processes that are neither we nor the subject; it has a child of its own now and then.
fn strangers(subject: u32) -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| ![1, std::process::id(), subject].contains(pid)).collect()
}

/// We are the namespace's init: what became ours and ended is waited for.
fn reap(subject: u32) {
    for pid in strangers(subject) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    }
}

#[test]
fn an_engine_that_is_killed_does_no_harm() {
    inside("kills_inside");
}

#[test]
#[ignore = "run by an_engine_that_is_killed_does_no_harm inside namespaces"]
fn kills_inside() {
    let program = compile("restless", &["-lpthread"]);
    let mut watched = Watched::start(&program);
    let image = std::env::current_dir().unwrap().join("image");
    let pid = watched.subject.pid();
    let kills: u64 = std::env::var(KILLS).ok().and_then(|kills| kills.parse().ok()).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(10);
    let (mut done, mut whole) = (0, 0);
    for mode in ["--fork", "--plain"].iter().cycle() {
        let steps = report(&dump(pid, &image, &[mode]))["steps"].as_u64().unwrap();
        watched.check("a whole capture");
        // Every step once in a while, in an order that gets everywhere soon.
        for n in 0..40 {
            let step = (done * 157 + n) % steps + 1;
            let out = dump(pid, &image, &[mode, "--kill-at", &step.to_string()]);
            // A capture has fewer steps when fewer threads are there to be stopped.
            whole += u64::from(out.status.success());
            assert!(out.status.success() || out.status.signal() == Some(SIGKILL), "{out:?}");
            watched.check(&format!("a kill before step {step} of {steps} ({mode})"));
            done += 1;
        }
        if if kills > 0 { done >= kills } else { Instant::now() > until } {
            break;
        }
    }
    assert!(done >= 40 && whole < done / 2, "{whole} of {done} captures were not killed");
    println!("{done} kills, {whole} came too late");
}
