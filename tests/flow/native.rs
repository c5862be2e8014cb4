//! Programs of every kind, saved and brought back by the native engine.

use super::engine::{Engine, as_all};
use super::programs::Job;
use super::transcript;
use crate::env::{Env, Who};
use crate::group::Processors;
use crate::http::{get, post};
use crate::need::need;
use crate::running::{Outcome, Run, Running};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::process::Command;
use std::time::{Duration, Instant};

const NATIVE: Engine = Engine("native");

const OBJECTS: [&str; 21] = [
    "leaderless",
    "inotify",
    "orphan",
    "daemon",
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
fn kernel_objects_as_root() {
    need!(root, image);
    for kind in OBJECTS {
        NATIVE.object(Who::Myself, &[], kind).unwrap();
    }
}

#[test]
fn kernel_objects_as_an_ordinary_user() {
    need!(image, userns);
    for kind in OBJECTS {
        NATIVE.object(Who::User, &[], kind).unwrap();
    }
}

#[test]
fn what_lies_in_the_containers_own_memory_file_systems() {
    need!(root, image, userns);
    for who in [Who::Myself, Who::User] {
        NATIVE.object(who, &["--contain"], "named").unwrap();
    }
}

as_all! { ()
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
    increments_of_one_chain(increments)
    memory_that_is_mapped_and_then_copied()
    an_engine_that_gets_ready_while_the_root_is_made()
    libraries_that_the_image_preloads()
    processors_that_were_given_or_chosen(processors)
}

fn several_processes_and_threads(who: Who) -> Outcome<()> {
    NATIVE.workers(who)
}

fn open_and_deleted_files_and_a_log(who: Who) -> Outcome<()> {
    NATIVE.files(who)
}

fn a_start_script_that_does_not_exec(who: Who) -> Outcome<()> {
    NATIVE.server(who, "plain", &["PORT"])
}

fn a_pipeline_started_from_a_shell(who: Who) -> Outcome<()> {
    NATIVE.pipeline(who)
}

fn a_static_program(who: Who) -> Outcome<()> {
    NATIVE.without_glibc(who, "idle-static")
}

fn a_program_with_musl(who: Who) -> Outcome<()> {
    NATIVE.without_glibc(who, "idle-musl")
}

fn a_command_beside_the_application(who: Who) -> Outcome<()> {
    NATIVE.command_beside(who)
}

fn exit_codes(who: Who) -> Outcome<()> {
    NATIVE.exit_codes(who)
}

fn an_older_generation_comes_back_by_its_number(who: Who) -> Outcome<()> {
    transcript::older(who, "native")
}

fn save_and_stop_is_one_step(who: Who) -> Outcome<()> {
    transcript::save_and_stop(who, "native")
}

fn a_bind_over_a_memory_file_system(who: Who) -> Outcome<()> {
    NATIVE.bind_over_memory(who)
}

/// Sizes of the newest generation: all of it, and what was written for it.
fn sizes(env: &Env) -> Outcome<[u64; 2]> {
    let newest = env.newest("job")?;
    let files = newest["files"].as_array().ok_or("no files")?;
    let sum = |own: bool| {
        let counted = files.iter().filter(|file| !own || file["from"].is_null());
        counted.filter_map(|file| file["size"].as_u64()).sum()
    };
    Ok([sum(false), sum(true)])
}

/// Each generation is whole by itself, whatever becomes of the others.
fn increments_of_one_chain(who: Who) -> Outcome<()> {
    const HELD: u64 = 32 << 20;
    let job = NATIVE.python(who, &[], &["/opt/subjects/memory.py", "PORT", "32"])?;
    for state in ["a", "b", "c", "d"] {
        post(job.port, state)?;
        job.save()?;
        let [all, own] = sizes(&job.env)?;
        assert!(all > HELD);
        if state != "a" {
            assert!(own < HELD / 2, "{own} of {all} bytes were written for {state}");
        }
    }
    let start = |reference: &str, how: &str| {
        let option = format!("restart={how}");
        job.env.ok(&["instance", "start", "--backend-option", &option, "--restart", reference, "-", "job"])
    };
    let back = |reference: &str, state: &str| -> Outcome<()> {
        for how in ["map", "copy"] {
            start(reference, how)?;
            assert_eq!(
                (get(job.port, "/")?, get(job.port, "/check")?),
                (state.to_owned(), "good".to_owned())
            );
            job.env.ok(&["instance", "stop", "job"])?;
        }
        Ok(())
    };
    job.env.ok(&["instance", "stop", "job"])?;
    back("job@2", "b")?;
    job.env.ok(&["checkpoint", "squash", "job@3"])?;
    job.env.ok(&["checkpoint", "verify", "job"])?;
    back("job@3", "c")?;
    job.env.ok(&["checkpoint", "prune", "--keep", "1", "job"])?;
    back("job", "d")?;
    job.env.ok(&["checkpoint", "squash", "job"])?;
    let [all, own] = sizes(&job.env)?;
    assert_eq!(all, own);
    job.env.ok(&["checkpoint", "verify", "job"])?;
    back("job@4", "d")?;
    // It goes on from there as from any other.
    start("job", "copy")?;
    for state in ["e", "f"] {
        post(job.port, state)?;
        job.env.ok(&["checkpoint", "instance", "job"])?;
    }
    job.env.ok(&["instance", "stop", "job"])?;
    back("job", "f")?;
    job.env.finish()
}

/// What the native engine said of the restart: written when the application runs already.
fn rebuilt(job: &Job) -> Outcome<serde_json::Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = ["exec", "instance://job", "grep", "restart_us", "/.stasis/log/native.log"];
    loop {
        let run = job.env.stasis(&log)?;
        if run.code == 0 {
            return Ok(serde_json::from_str(run.out.trim())?);
        }
        assert!(Instant::now() < deadline, "{}{}", run.out, run.err);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Saved in the middle of it and afterwards, and as much as ever comes back.
fn memory_that_is_mapped_and_then_copied(who: Who) -> Outcome<()> {
    let flags = ["--backend-option", "restart=map-then-copy"];
    let job = NATIVE.python(who, &flags, &["/opt/subjects/writer.py", "PORT", "48"])?;
    let sum = post(job.port, "7")?;
    job.save()?;
    job.restart_with(&flags)?;
    for _ in 0..2 {
        assert_eq!(rebuilt(&job)?["mode"], "map");
        job.save()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let look = ["exec", "instance://job", "grep", "/pages-[0-9-]*[.]img", "/proc/100/maps"];
        while job.env.stasis(&look)?.code == 0 {
            assert!(Instant::now() < deadline, "memory stays mapped");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!((get(job.port, "/check")?, get(job.port, "/")?), ("good".to_owned(), sum.clone()));
        job.save()?;
        job.restart_with(&flags)?;
        assert_eq!((get(job.port, "/check")?, get(job.port, "/")?), ("good".to_owned(), sum.clone()));
    }
    job.env.finish()
}

/// The engine has more rights than the application: what the image puts into every program is not put into it, whether it
/// saves, brings back, or follows later with the memory.
fn libraries_that_the_image_preloads(who: Who) -> Outcome<()> {
    let env = Env::new(who)?;
    let small = env.site.image("small").to_string_lossy().into_owned();
    let preload = env.write("preload", "/opt/subjects/bin/preloaded.so\n")?;
    let seen = env.make_dir("seen")?;
    let programs = env.write("seen/programs", "")?;
    let preload = format!("{}:/etc/ld.so.preload", preload.display());
    let seen = format!("{}:/seen", seen.display());
    let start = ["instance", "start", "--backend", "native", "--checkpoint", "job"];
    env.ok(&[&start[..], &["--bind", &preload, "--bind", &seen, &small, "job", "sleep", "1000"]].concat())?;
    for how in ["restart=copy", "restart=map", "restart=map-then-copy"] {
        env.ok(&["checkpoint", "instance", "job"])?;
        env.ok(&["checkpoint", "instance", "--stop", "job"])?;
        env.ok(&["instance", "start", "--backend-option", how, "--restart", "job", "-", "job"])?;
    }
    // Waits for the one that copies what was mapped.
    env.ok(&["checkpoint", "instance", "job"])?;
    env.ok(&["exec", "instance://job", "true"])?;
    let text = std::fs::read_to_string(programs)?;
    let mut names: Vec<&str> = text.lines().filter_map(|program| Some(program.rsplit_once('/')?.1)).collect();
    names.dedup();
    assert_eq!(names, ["dash", "sleep", "true"], "{text}");
    env.finish()
}

/// A service that is slow or away: whoever reads these files waits for ever. Nobody is granted ids by name.
fn without_a_user_database(env: &Env, words: &[&str]) -> Outcome<Run> {
    let fifo = env.path("fifo");
    if !fifo.exists() {
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IRGRP | Mode::S_IROTH)?;
    }
    let typed = env.command(words);
    let mut command = Command::new("unshare");
    command.env_clear().envs(typed.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // setpriv asks for names, and a shell that python3 may be.
    let script = "for file in passwd group; do mount --bind \"$1\" /etc/$file; done; \
                  for file in subuid subgid; do [ ! -e /etc/$file ] || mount --bind /dev/null /etc/$file; done; user=$2; shift 2; \
                  exec chroot --userspec=\"+$user:+$user\" --groups= / \"$@\"";
    command.args(["--mount", "--", "sh", "-ec", script, "view"]).arg(&fifo).arg(env.uid().to_string());
    command.arg(&env.site.stasis).args(typed.get_args().skip_while(|word| *word != "--config"));
    Running::start(command, false)?.wait()
}

fn a_restart_waits_for_no_user_database(who: Who) -> Outcome<()> {
    let env = Env::new(who)?;
    let small = env.site.image("small").to_string_lossy().into_owned();
    let start =
        ["instance", "start", "--backend", "native", "--resume", "job", &small, "job", "sleep", "1000"];
    env.ok(&start)?;
    for again in [&["--restart", "job", "-"], &["--resume", "job", &small]] {
        env.ok(&["checkpoint", "instance", "--stop", "job"])?;
        let run = without_a_user_database(&env, &[&["instance", "start"], &again[..], &["job"]].concat())?;
        assert!(run.code == 0 && run.err.contains("generation "), "{again:?}: {}", run.err);
    }
    env.finish()
}

#[test]
fn a_restart_asks_no_user_database() {
    need!(root, image, userns);
    a_restart_waits_for_no_user_database(Who::Myself).unwrap();
    a_restart_waits_for_no_user_database(Who::User).unwrap();
}

/// Also where helpers are started before it, whose pids are out of its way.
fn an_engine_that_gets_ready_while_the_root_is_made(who: Who) -> Outcome<()> {
    let job = NATIVE.python(who, &[], &["/opt/subjects/memory.py", "PORT", "4"])?;
    post(job.port, "s")?;
    job.save()?;
    for (how, mode) in [("restart=copy", "copy"), ("restart=map", "map"), ("restart=map-then-copy", "map")] {
        job.restart_with(&["--backend-option", how])?;
        assert_eq!(get(job.port, "/")?, "s");
        let said = rebuilt(&job)?;
        let got = ["mode", "waited", "early", "ahead"].map(|what| said[what].to_string());
        assert_eq!(got, [&format!("{mode:?}"), "true", "true", "true"], "{how}");
    }
    job.env.finish()
}

/// Where it may run says whoever restarts it, as whoever started it did before; what the program chose of that stays its choice.
fn processors_that_were_given_or_chosen(who: Who) -> Outcome<()> {
    let nobody = Pid::from_raw(0);
    let all = sched_getaffinity(nobody).map_err(|e| e.desc())?;
    let there: Vec<usize> = (0..CpuSet::count()).filter(|number| all.is_set(*number) == Ok(true)).collect();
    let [first, .., last] = there[..] else { return Err("there is one processor only".into()) };
    let env = Env::new(who)?;
    let image = env.site.image("any").to_string_lossy().into_owned();
    // What this thread starts may run where it may.
    let bound = |number: usize, words: &[&str]| -> Outcome<()> {
        let mut one = CpuSet::new();
        one.set(number).map_err(|e| e.desc())?;
        sched_setaffinity(nobody, &one).map_err(|e| e.desc())?;
        let started = env.ok(words).map(drop);
        sched_setaffinity(nobody, &all).map_err(|e| e.desc())?;
        started
    };
    let allowed = || -> Outcome<String> {
        let run = env.ok(&["exec", "instance://job", "cat", "/proc/100/status"])?;
        let line = run.out.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Ok(line.ok_or("no list")?.trim().to_owned())
    };
    let save = |checkpoint: &str| -> Outcome<()> {
        env.ok(&["checkpoint", "instance", "job"])?;
        env.ok(&["instance", "stop", "job"])?;
        env.ok(&["checkpoint", "verify", checkpoint]).map(drop)
    };
    let flags = ["instance", "start", "--backend", "native", "--checkpoint"];
    bound(first, &[&flags[..], &["given", &image, "job", "sleep", "600"]].concat())?;
    assert_eq!(allowed()?, first.to_string());
    save("given")?;
    let again = ["instance", "start", "--restart", "given", "-", "job"];
    env.ok(&again)?;
    let usual = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    assert!(usual.contains(&format!("Cpus_allowed_list:\t{}\n", allowed()?)), "{}", allowed()?);
    env.ok(&["instance", "stop", "job"])?;
    bound(last, &again)?;
    assert_eq!(allowed()?, last.to_string());
    env.ok(&["instance", "stop", "job"])?;

    let script = format!("import os, time\nos.sched_setaffinity(0, {{{last}}})\ntime.sleep(600)");
    env.ok(&[&flags[..], &["chosen", &image, "job", "python3", "-c", &script]].concat())?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while allowed()? != last.to_string() {
        assert!(Instant::now() < deadline, "{}", allowed()?);
    }
    save("chosen")?;
    let again = ["instance", "start", "--restart", "chosen", "-", "job"];
    env.ok(&again)?;
    assert_eq!(allowed()?, last.to_string());
    env.ok(&["instance", "stop", "job"])?;
    // What it chose is not given.
    bound(first, &again)?;
    assert_eq!(allowed()?, first.to_string());
    env.ok(&["instance", "stop", "job"])?;
    env.finish()
}

/// A batch system may widen what a job has.
#[test]
fn processors_that_are_given_later() {
    need!(root, image, processor_groups);
    given_later().unwrap();
}

fn given_later() -> Outcome<()> {
    // The group goes last, also when this fails: whoever is in it is ended before.
    let group = Processors::new()?;
    let env = Env::new(Who::Myself)?;
    let image = env.site.image("any").to_string_lossy().into_owned();
    let allowed = || -> Outcome<String> {
        let run = env.ok(&["exec", "instance://job", "cat", "/proc/100/status"])?;
        Ok(run.out.lines().find(|line| line.starts_with("Cpus_allowed_list")).ok_or("no list")?.to_owned())
    };
    let widened = |words: &[&str]| -> Outcome<()> {
        for few in [group.first(), group.all()] {
            group.allow(few)?;
            group.start(&env, words)?;
            let before = allowed()?;
            group.allow(group.all())?;
            assert!(before.ends_with(&format!("\t{few}")), "{before} within {few}");
            assert!(allowed()?.ends_with(&format!("\t{}", group.all())), "{} after {few}", allowed()?);
            if words.contains(&"--checkpoint") {
                env.ok(&["checkpoint", "instance", "job"])?;
            }
            env.ok(&["instance", "stop", "job"])?;
        }
        Ok(())
    };
    let start = ["instance", "start", "--backend", "native", "--checkpoint", "kept", &image, "job"];
    widened(&[&start[..], &["sleep", "600"]].concat())?;
    for how in ["restart=map", "restart=copy"] {
        widened(&["instance", "start", "--restart", "kept", "--backend-option", how, "-", "job"])?;
    }
    env.finish()
}

fn what_a_capture_leaves(who: Who) -> Outcome<()> {
    let pause = NATIVE.generation(who)?["report"]["pause_us"].take();
    assert!(pause.as_u64().is_some_and(|number| number > 0), "{pause}");
    Ok(())
}

#[test]
fn one_gibibyte() {
    need!(image, userns);
    NATIVE.one_gibibyte().unwrap();
}

#[test]
fn memory_that_is_copied_or_mapped_and_saved_again() {
    need!(image, userns);
    for how in ["restart=map", "restart=copy", "capture=plain"] {
        let flags = ["--backend-option", how];
        let job = NATIVE.python(Who::User, &flags, &["/opt/subjects/memory.py", "PORT", "16"]).unwrap();
        for state in ["a", "b", "c"] {
            post(job.port, state).unwrap();
            job.save().unwrap();
            job.restart_with(&flags).unwrap();
            assert_eq!(rebuilt(&job).unwrap()["mode"] == "map", how == "restart=map");
            assert_eq!(get(job.port, "/").unwrap(), state, "{how}");
            assert_eq!(get(job.port, "/check").unwrap(), "good", "{how}");
        }
        job.env.finish().unwrap();
    }
}

#[test]
fn a_process_of_another_user_with_the_native_engine() {
    need!(root, image);
    let job = NATIVE.python(Who::Myself, &[], &["/opt/subjects/objects.py", "PORT", "elsewhere"]).unwrap();
    assert_eq!(get(job.port, "/").unwrap(), "works");
    for _ in 0..2 {
        job.save().unwrap();
        job.restart().unwrap();
        let look = ["exec", "instance://job", "sh", "-c", "grep -h ^Uid: /proc/[0-9]*/status"];
        let ids = job.env.ok(&look).unwrap().out;
        assert!(ids.lines().any(|line| line == "Uid:\t5833\t5833\t5833\t5833"), "{ids}");
        assert_eq!(get(job.port, "/").unwrap(), "works");
    }
    job.env.finish().unwrap();
}

#[test]
fn auto_takes_the_native_engine_where_nothing_is_installed() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let built_in = include_str!("../../plugins.toml");
    let rest = built_in.lines().filter(|l| !["schema", "search"].iter().any(|word| l.starts_with(word)));
    env.configure(&rest.collect::<Vec<_>>().join("\n")).unwrap();
    let small = env.site.image("small").to_string_lossy().into_owned();
    env.ok(&["instance", "start", "--checkpoint", "kept", &small, "one", "/opt/subjects/bin/idle"]).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    assert!(env.ok(&["checkpoint", "list"]).unwrap().out.contains("native"));
    env.ok(&["instance", "start", "--restart", "kept", &small, "one"]).unwrap();
    env.finish().unwrap();
}
