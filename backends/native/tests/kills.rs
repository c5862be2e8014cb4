//! The engine is killed in the middle of captures, again and again, and the application never notices: it checks
//! itself (subjects/restless.c), and from outside its masks, tasks, descriptors and children are counted.
//!
//! By default as many kills as fit into some seconds; STASIS_NATIVE_KILLS=5000 for a campaign.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test"
)]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
mod engine;

use engine::{Mailbox, Subject, compile, dump, dump_onto, engine, inside, report, soon, start};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

const KILLS: &str = "STASIS_NATIVE_KILLS";
const SIGKILL: i32 = 9;
/// Kills of one mode before the next has its turn.
const ROUND: u64 = 24;

/// The layout of restless.c: rounds, tids and masks of each thread, then what went wrong.
const THREADS: usize = 12;
/// Stands in sigsuspend with a mask of the moment; makes threads and children.
const OTHER_MASK: [usize; 2] = [6, 11];

/// One process that checks itself.
struct Watched {
    pid: u32,
    state: fs::File,
    descriptors: usize,
    mappings: usize,
}

/// A directory in memory: nothing waits for a disk.
fn fast() -> std::path::PathBuf {
    let path = std::env::current_dir().unwrap().join("fast");
    if !path.exists() {
        fs::create_dir(&path).unwrap();
        let mount =
            std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&path).status().unwrap();
        assert!(mount.success());
    }
    path
}

/// Creates the file of a process to be watched.
fn state_file(number: usize) -> String {
    let path = fast().join(format!("state.{number}"));
    fs::write(&path, [0; 4096]).unwrap();
    path.to_str().unwrap().to_owned()
}

impl Watched {
    /// The process that was started with this file.
    fn new(path: &str) -> Self {
        let state = fs::File::open(path).unwrap();
        let mut watched = Self { pid: 0, state, descriptors: 0, mappings: 0 };
        soon("all threads go round", || watched.rounds().iter().all(|rounds| *rounds > 0));
        watched.pid = u32::try_from(watched.word(THREADS)).unwrap();
        watched.descriptors = count(watched.pid, "fd");
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
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        maps.lines().filter(|line| line.split_whitespace().count() > 5).count()
    }

    /// What is not as it should be now; empty when all is well.
    fn complaint(&self) -> String {
        let pid = self.pid;
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
        wrong
    }

    /// Every thread goes on and nothing was left behind or noticed.
    fn check(&self, after: &str) {
        let before = self.rounds();
        soon(&format!("all threads go on after {after}"), || {
            assert!(
                Path::new(&format!("/proc/{}", self.pid)).exists(),
                "the application ended after {after}"
            );
            self.rounds().iter().zip(&before).all(|(now, then)| now > then)
        });
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let complaint = self.complaint();
            if complaint.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "after {after}: {complaint}");
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

/// Processes that are neither we nor below the root: copies that are left. We are the namespace's init; what became ours
/// and ended is waited for.
fn strangers(root: u32) -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let orphan = |pid: &u32| ![1, std::process::id(), root].contains(pid) && parent(*pid) == Some(1);
    pids.filter(orphan)
        .filter(|pid| {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(*pid).unwrap());
            let ended = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            !ended.is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
        })
        .collect()
}

/// Kills the engine some time after its start.
fn kill_after(pid: u32, image: &Path, mode: &[&str], after: Duration) {
    fs::remove_dir_all(image).unwrap();
    fs::create_dir(image).unwrap();
    let pid = pid.to_string();
    let arguments = ["dump", "--pid", &pid, "--dir", image.to_str().unwrap()];
    let mut command = engine(&[&arguments[..], mode].concat());
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Kills the engine while it saves the tree below `root`, and looks at those who check themselves.
fn campaign(root: &mut Subject, watched: &[Watched]) {
    let kept = Mailbox::new();
    let mailbox = kept.arguments();
    let image = fast().join("image");
    let pid = root.pid();
    let mut check = |after: &str| {
        assert!(root.running(), "the root ended after {after}");
        watched.iter().for_each(|watched| watched.check(after));
        soon(&format!("no copy is left after {after}"), || strangers(pid).is_empty());
    };
    let kills: u64 = std::env::var(KILLS).ok().and_then(|kills| kills.parse().ok()).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(5);
    let (mut done, mut whole) = (0, 0);
    let base = fast().join("base");
    let mailbox: Vec<&str> = mailbox.iter().map(String::as_str).collect();
    let remembering = [&["--fork"][..], &mailbox].concat();
    for mode in [&["--fork"][..], &["--plain"], &remembering].iter().cycle() {
        let tracks = mode.len() > 1;
        let told = report(&dump(pid, &image, mode));
        let (steps, micros) = (told["steps"].as_u64().unwrap(), told["total_us"].as_u64().unwrap());
        check("a whole capture");
        // Every step once in a while, in an order that gets everywhere soon.
        for n in 0..ROUND {
            if tracks && n % 2 == 0 {
                // Killed at what follows a whole one; else at the beginning of the remembering.
                let whole = dump(pid, &base, mode);
                report(&whole);
                fs::write(base.join("told.json"), &whole.stdout).unwrap();
            }
            if n % 4 == 3 {
                // And at any moment, also inside of a step.
                let after = Duration::from_micros(micros * ((done * 37 + n * 61) % 150) / 100);
                kill_after(pid, &image, mode, after);
                check(&format!("a kill after {after:?} ({mode:?})"));
                done += 1;
                continue;
            }
            let step = (done * 157 + n) % steps + 1;
            let at = ["--kill-at", &step.to_string()];
            let more = [mode, &at[..]].concat();
            let out = if tracks && n % 2 == 0 {
                dump_onto(pid, &base, &image, &more)
            } else {
                dump(pid, &image, &more)
            };
            // A capture has fewer steps when fewer threads are there to be stopped.
            whole += u64::from(out.status.success());
            assert!(out.status.success() || out.status.signal() == Some(SIGKILL), "{out:?}");
            check(&format!("a kill before step {step} of {steps} ({mode:?})"));
            done += 1;
        }
        let enough = if kills > 0 { done >= kills } else { Instant::now() > until };
        if enough && done >= 3 * ROUND {
            break;
        }
    }
    assert!(whole < done / 2, "{whole} of {done} captures were not killed");
    println!("{done} kills, {whole} came too late");
}

#[test]
fn an_engine_that_is_killed_does_no_harm() {
    inside("an_engine_that_is_killed_does_no_harm", kills_inside);
}

fn kills_inside() {
    let program = compile("restless", &["-lpthread"]);
    let state = state_file(0);
    let mut subject = start(&program, &[&state], Path::new("/dev/null"));
    campaign(&mut subject, &[Watched::new(&state)]);
}

#[test]
fn an_engine_that_is_killed_does_no_harm_to_a_tree() {
    inside("an_engine_that_is_killed_does_no_harm_to_a_tree", kills_in_a_tree_inside);
}

fn kills_in_a_tree_inside() {
    let program = compile("restless", &["-lpthread"]);
    let states = [state_file(0), state_file(1)];
    let script = "\"$0\" \"$1\" & (trap : USR1; \"$0\" \"$2\" & wait) & wait";
    let arguments = ["-c", script, program.to_str().unwrap(), &states[0], &states[1]];
    let mut subject = start(Path::new("/bin/sh"), &arguments, Path::new("/dev/null"));
    campaign(&mut subject, &states.map(|state| Watched::new(&state)));
}
