//! Programs that are more than one character of state.

use super::engine::Engine;
use crate::env::{Env, Who};
use crate::http::{free_port, get, post};
use crate::need::need;
use crate::running::{Outcome, PATIENCE, Run};
use std::time::Instant;

/// Parts of refusals that are over as soon as a client has gone.
const PASSING: [&str; 6] = [
    "the state of an open connection is not saved",
    "it is a TCP connection",
    "wait to be accepted",
    "was not accepted yet",
    "that nobody has read",
    "its connection has ended",
];

/// One instance whose program is given as words, saved, stopped and brought back by `restart`.
pub(super) struct Job {
    pub(super) env: Env,
    image: String,
    pub(super) port: u16,
}

impl Job {
    /// `words` is the program; `PORT` in it becomes the port.
    fn start(who: Who, image: &str, words: &[&str]) -> Outcome<Self> {
        Self::with("dmtcp", who, &[], image, words)
    }

    /// With another engine, and further flags.
    pub(super) fn with(engine: &str, who: Who, flags: &[&str], image: &str, words: &[&str]) -> Outcome<Self> {
        Self::within(Env::new(who)?, engine, flags, image, words)
    }

    /// Among files that were made before.
    pub(super) fn within(
        env: Env,
        engine: &str,
        flags: &[&str],
        image: &str,
        words: &[&str],
    ) -> Outcome<Self> {
        let port = free_port()?;
        let image = env.site.image(image).to_string_lossy().into_owned();
        let number = port.to_string();
        let mut all = vec!["instance", "start", "--backend", engine, "--checkpoint", "job"];
        all.extend(flags);
        all.extend([&image, "job"]);
        all.extend(words.iter().map(|word| if *word == "PORT" { number.as_str() } else { *word }));
        env.ok(&all)?;
        Ok(Self { env, image, port })
    }

    pub(super) fn save(&self) -> Outcome<()> {
        quiet(&self.env.ok(&["checkpoint", "instance", "job"])?)
    }

    /// Saves, once nothing of a client that connects anew for each request stands in the way.
    pub(super) fn save_between_requests(&self) -> Outcome<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let run = self.env.stasis(&["checkpoint", "instance", "job"])?;
            if run.code == 0 {
                return quiet(&run);
            }
            if !PASSING.iter().any(|why| run.err.contains(why)) || Instant::now() > deadline {
                return Err(format!("it was not saved:\n{}", run.err).into());
            }
        }
    }

    pub(super) fn restart(&self) -> Outcome<()> {
        self.restart_with(&[])
    }

    /// The same with further flags.
    pub(super) fn restart_with(&self, flags: &[&str]) -> Outcome<()> {
        self.env.ok(&["instance", "stop", "job"])?;
        self.start_with(flags)
    }

    /// Brings back what was stopped.
    pub(super) fn start_again(&self) -> Outcome<()> {
        self.start_with(&[])
    }

    /// The same with further flags.
    pub(super) fn start_with(&self, flags: &[&str]) -> Outcome<()> {
        let words = [&["instance", "start", "--restart", "job"], flags, &[&self.image, "job"]].concat();
        quiet(&self.env.ok(&words)?)
    }
}

/// What went well has nothing in it of how an engine complains.
fn quiet(run: &Run) -> Outcome<()> {
    let complains = ["Error (", "Warn  ("].iter().any(|sign| run.err.contains(sign));
    if complains { Err(format!("it complains:\n{}", run.err).into()) } else { Ok(()) }
}

#[test]
fn several_processes_and_threads_as_root() {
    need!(root, image, dmtcp);
    processes(Who::Myself).unwrap();
}

#[test]
fn several_processes_and_threads_as_an_ordinary_user() {
    need!(image, userns, dmtcp);
    processes(Who::User).unwrap();
}

fn processes(who: Who) -> Outcome<()> {
    let job = Job::start(who, "any", &["python3", "/opt/subjects/workers.py", "PORT"])?;
    assert_eq!(get(job.port, "/")?, "0,10 child; 100,110 child; 200,210 child");
    assert_eq!(post(job.port, "5")?, "5,15 child; 105,115 child; 205,215 child");
    job.save()?;
    post(job.port, "1000")?;
    job.restart()?;
    assert_eq!(get(job.port, "/")?, "5,15 child; 105,115 child; 205,215 child");
    assert_eq!(post(job.port, "2")?, "7,17 child; 107,117 child; 207,217 child");
    job.save()?;
    job.restart()?;
    assert_eq!(post(job.port, "1")?, "8,18 child; 108,118 child; 208,218 child");
    job.env.finish()
}

#[test]
fn open_files_and_a_log_as_root() {
    need!(root, image, dmtcp);
    files(Who::Myself).unwrap();
}

#[test]
fn open_files_and_a_log_as_an_ordinary_user() {
    need!(image, userns, dmtcp);
    files(Who::User).unwrap();
}

fn files(who: Who) -> Outcome<()> {
    let (env, port) = (Env::new(who)?, free_port()?);
    let image = env.site.image("any").to_string_lossy().into_owned();
    let work = env.make_dir("work")?;
    let bind = format!("{}:/srv", work.display());
    let number = port.to_string();
    let program = ["python3", "/opt/subjects/files.py", &number, "/srv"];
    let mut start =
        // DMTCP brings a working directory back only where the program was started there.
        vec!["instance", "start", "-B", &bind, "--cwd", "/srv", "--backend", "dmtcp", "--checkpoint", "job", &image, "job"];
    start.extend(program);
    env.ok(&start)?;
    assert_eq!(post(port, "first")?, "next line 1; log 1; deleted but held; in True");
    env.ok(&["checkpoint", "instance", "job"])?;
    assert_eq!(post(port, "second")?, "next line 3; log 2; deleted but held; in True");
    env.ok(&["instance", "stop", "job"])?;
    env.ok(&["instance", "start", "--restart", "job", &image, "job"])?;
    // The file that is read goes on where it stood at the capture, and so does the log.
    assert_eq!(post(port, "again")?, "next line 3; log 2; deleted but held; in True");
    env.ok(&["instance", "stop", "job"])?;
    let log = std::fs::read_to_string(work.join("log"))?;
    assert_eq!(log, "first line 0\nagain line 2\n");
    env.finish()
}

#[test]
fn a_start_script_that_does_not_exec_as_root() {
    need!(root, image, dmtcp);
    without_exec(Who::Myself).unwrap();
}

#[test]
fn a_start_script_that_does_not_exec_as_an_ordinary_user() {
    need!(image, userns, dmtcp);
    without_exec(Who::User).unwrap();
}

fn without_exec(who: Who) -> Outcome<()> {
    let job = Job::start(who, "plain", &["PORT"])?;
    assert_eq!(post(job.port, "s")?, "s");
    job.save()?;
    job.restart()?;
    assert_eq!(get(job.port, "/")?, "s");
    assert_eq!(post(job.port, "t")?, "t");
    job.save()?;
    job.restart()?;
    assert_eq!(get(job.port, "/")?, "t");
    job.env.finish()
}

#[test]
fn one_gibibyte() {
    need!(image, userns, dmtcp);
    memory().unwrap();
}

fn memory() -> Outcome<()> {
    let job = Job::start(Who::User, "any", &["python3", "/opt/subjects/memory.py", "PORT", "1024"])?;
    assert_eq!(get(job.port, "/check")?, "good");
    assert_eq!(post(job.port, "m")?, "m");
    job.save()?;
    assert_eq!(get(job.port, "/check")?, "good");
    job.restart()?;
    assert_eq!(get(job.port, "/")?, "m");
    assert_eq!(get(job.port, "/check")?, "good");
    job.env.finish()
}

#[test]
fn kernel_objects_that_come_back() {
    need!(image, userns, dmtcp);
    for kind in ["eventfd", "epoll", "socketpair", "shm"] {
        object_comes_back(kind).unwrap();
    }
}

fn object_comes_back(kind: &str) -> Outcome<()> {
    let job = Job::start(Who::User, "any", &["python3", "/opt/subjects/objects.py", "PORT", kind])?;
    get(job.port, "/up")?;
    job.save()?;
    job.restart()?;
    assert_eq!(get(job.port, "/")?, "works", "{kind}");
    job.env.finish()
}

#[test]
fn an_instance_keeps_its_logs_and_can_be_entered() {
    need!(image, userns, dmtcp);
    entered().unwrap();
}

fn entered() -> Outcome<()> {
    let job = Job::start(Who::User, "server", &["PORT"])?;
    job.save()?;
    job.restart()?;
    get(job.port, "/")?;
    let inside = job.env.ok(&["exec", "instance://job", "sh", "-c", "echo inside; exit 0"])?;
    assert_eq!(inside.out, "inside\n");
    let seven = job.env.stasis(&["exec", "instance://job", "sh", "-c", "exit 7"])?;
    assert_eq!(seven.code, 7, "{}", seven.err);
    let logs = job.env.ok(&["instance", "logs", "--err", "job"])?;
    assert!(logs.out.contains("GET / HTTP"), "{logs:?}");
    // Whoever enters does not become part of what is saved.
    job.save()?;
    job.restart()?;
    assert_eq!(get(job.port, "/")?, "0");
    job.env.finish()
}

#[test]
fn the_logs_of_a_stopped_instance_as_root() {
    need!(root, image);
    stopped(Who::Myself).unwrap();
}

#[test]
fn the_logs_of_a_stopped_instance_as_an_ordinary_user() {
    need!(image, userns);
    stopped(Who::User).unwrap();
}

fn stopped(who: Who) -> Outcome<()> {
    let env = Env::new(who)?;
    let small = env.site.image("small").to_string_lossy().into_owned();
    let start = |says: &str| {
        let script = format!("echo {says}; echo {says} aside >&2; echo > /tmp/said; exec sleep 1000");
        env.ok(&["instance", "start", "--contain", &small, "job", "sh", "-c", &script])?;
        // Until it has said all.
        env.ok(&["exec", "instance://job", "sh", "-c", "until [ -e /tmp/said ]; do sleep 0.01; done"])
    };
    let logs = |flags: &[&str]| env.ok(&[&["instance", "logs", "job"], flags].concat());
    start("first")?;
    env.ok(&["instance", "stop", "job"])?;
    assert_eq!(logs(&[])?.out, "first\n");
    assert_eq!(logs(&["--err"])?.out, "first aside\n");
    // For everything else it is gone.
    for words in [&["instance", "list"][..], &["instance", "list", "--json"], &["instance", "stop", "--all"]]
    {
        let told = env.ok(words)?;
        assert!(!told.out.contains("job") && told.err.is_empty(), "{words:?}: {told:?}");
    }
    let stop = env.fails(&["instance", "stop", "job"])?;
    let exec = env.fails(&["exec", "instance://job", "true"])?;
    insta::allow_duplicates! { insta::assert_snapshot!(format!("{stop}\n{exec}"), @r#"
    exit 1
    ERROR:   no instance found with name "job" (none is running)
             hint:    see what there is: stasis instance list

    exit 255
    FATAL:   no instance found with name "job" (none is running)
             hint:    see what there is: stasis instance list
    "#); }
    // The name is free at once.
    start("second")?;
    assert_eq!(logs(&[])?.out, "second\n");
    env.ok(&["instance", "stop", "--force", "job"])?;
    assert_eq!(logs(&["--err"])?.out, "second aside\n");
    env.finish()
}

#[test]
fn the_logs_of_an_instance_that_was_saved_and_stopped() {
    need!(image, userns, dmtcp);
    saved_and_stopped().unwrap();
}

fn saved_and_stopped() -> Outcome<()> {
    let job = Job::start(Who::User, "server", &["PORT"])?;
    get(job.port, "/")?;
    let saved = job.env.stasis(&["checkpoint", "instance", "--stop", "job"])?;
    assert_eq!(saved.code, 0, "{saved:?}");
    let list = job.env.ok(&["instance", "list"])?;
    assert!(!list.out.contains("job"), "{list:?}");
    let logs = job.env.ok(&["instance", "logs", "--err", "job"])?;
    assert_eq!(logs.out.matches("GET / HTTP").count(), 1, "{logs:?}");
    // What comes back says what it has to say from here on.
    job.env.ok(&["instance", "start", "--restart", "job", &job.image, "job"])?;
    assert_eq!(get(job.port, "/")?, "0");
    let logs = job.env.ok(&["instance", "logs", "--err", "job"])?;
    assert_eq!(logs.out.matches("GET / HTTP").count(), 1, "{logs:?}");
    job.env.finish()
}

/// DMTCP itself knows only of what is open.
#[test]
fn what_lies_in_the_containers_own_memory_file_systems() {
    need!(image, userns, dmtcp);
    let program = ["python3", "/opt/subjects/objects.py", "PORT", "named"];
    let job = Job::with("dmtcp", Who::User, &["--contain"], "any", &program).unwrap();
    get(job.port, "/up").unwrap();
    for _ in 0..2 {
        job.save().unwrap();
        job.restart().unwrap();
        assert_eq!(get(job.port, "/").unwrap(), "works");
    }
    job.env.finish().unwrap();
}

#[test]
fn a_bind_over_a_memory_file_system() {
    need!(image, userns, dmtcp);
    Engine("dmtcp").bind_over_memory(Who::User).unwrap();
}
