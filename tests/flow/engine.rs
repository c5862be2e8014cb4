//! What every engine that saves from outside has to bring back; `criu` and `native` say for whom.

use std::os::unix::fs::MetadataExt as _;

use nix::sys::signal::Signal;

use super::programs::Job;
use crate::env::{Env, Who};
use crate::http::{get, post};
use crate::running::{Outcome, Running};
use crate::tree::files_below;

/// Each of these for everybody; what all need stands in front, what one of them needs beside that behind it. After
/// `granted:` also for a user with subordinate ids.
macro_rules! as_all {
    ($every:tt granted: $($name:ident $what:tt)+) => {
        $( $crate::flow::engine::as_one! { $every granted $name $what } )+
    };
    ($every:tt $($name:ident $what:tt)+) => { $( $crate::flow::engine::as_one! { $every $name $what } )+ };
}
pub(super) use as_all;

macro_rules! as_one {
    (@test $who:ident $test:ident($($need:ident)*) $name:ident) => {
        #[test]
        fn $test() {
            need!($($need),*);
            super::$name(Who::$who).unwrap();
        }
    };
    (@tests ($($every:ident)*) $name:ident($($what:ident)*)) => {
        $crate::flow::engine::as_one! { @test Myself as_root(root image $($every)* $($what)*) $name }
        $crate::flow::engine::as_one! { @test User as_an_ordinary_user(image userns $($every)* $($what)*) $name }
    };
    (($($every:ident)*) granted $name:ident($($what:ident)*)) => {
        mod $name {
            use super::*;

            $crate::flow::engine::as_one! { @tests ($($every)*) $name($($what)*) }
            $crate::flow::engine::as_one! {
                @test Granted as_an_ordinary_user_with_subordinate_ids(
                    root image userns uidmap $($every)* $($what)*
                ) $name
            }
        }
    };
    ($every:tt $name:ident $what:tt) => {
        mod $name {
            use super::*;

            $crate::flow::engine::as_one! { @tests $every $name $what }
        }
    };
}
pub(super) use as_one;

/// An engine by its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Engine(pub(super) &'static str);

impl Engine {
    pub(super) fn python(self, who: Who, flags: &[&str], words: &[&str]) -> Outcome<Job> {
        let mut all = vec!["python3"];
        all.extend(words);
        Job::with(self.0, who, flags, "any", &all)
    }

    /// One kernel object, twice: a copy that was brought back can be saved like the first.
    pub(super) fn object(self, who: Who, flags: &[&str], kind: &str) -> Outcome<()> {
        let job = self.python(who, flags, &["/opt/subjects/objects.py", "PORT", kind])?;
        get(job.port, "/up")?;
        for _ in 0..2 {
            job.save().map_err(|why| format!("{kind}: {why}"))?;
            job.restart().map_err(|why| format!("{kind}: {why}"))?;
            assert_eq!(get(job.port, "/")?, "works", "{kind}");
        }
        job.env.finish()
    }

    pub(super) fn workers(self, who: Who) -> Outcome<()> {
        let job = self.python(who, &[], &["/opt/subjects/workers.py", "PORT"])?;
        assert_eq!(post(job.port, "5")?, "5,15 child; 105,115 child; 205,215 child");
        job.save()?;
        post(job.port, "1000")?;
        job.restart()?;
        assert_eq!(get(job.port, "/")?, "5,15 child; 105,115 child; 205,215 child");
        job.save()?;
        job.restart()?;
        assert_eq!(post(job.port, "1")?, "6,16 child; 106,116 child; 206,216 child");
        job.env.finish()
    }

    pub(super) fn files(self, who: Who) -> Outcome<()> {
        let job = self.python(who, &["--contain"], &["/opt/subjects/files.py", "PORT", "/tmp/work"])?;
        assert_eq!(post(job.port, "first")?, "next line 1; log 1; deleted but held; in True");
        job.save()?;
        assert_eq!(post(job.port, "second")?, "next line 3; log 2; deleted but held; in True");
        job.restart()?;
        assert_eq!(post(job.port, "again")?, "next line 3; log 2; deleted but held; in True");
        job.env.finish()
    }

    /// A server that holds one character, started in that way.
    pub(super) fn server(self, who: Who, image: &str, words: &[&str]) -> Outcome<()> {
        let job = Job::with(self.0, who, &[], image, words)?;
        post(job.port, "p")?;
        for _ in 0..2 {
            job.save()?;
            job.restart()?;
            assert_eq!(get(job.port, "/")?, "p");
        }
        job.env.finish()
    }

    /// A bind that hides one of the container's own memory file systems is the host's as ever.
    pub(super) fn bind_over_memory(self, who: Who) -> Outcome<()> {
        let env = Env::new(who)?;
        let host = env.make_dir("host")?;
        env.make_dir("host/tmp")?;
        env.write("host/tmp/note", "as at the capture")?;
        let bind = format!("{}:/var", host.display());
        let job = Job::within(env, self.0, &["--contain", "-B", &bind], "server", &["PORT"])?;
        post(job.port, "b")?;
        job.save()?;
        job.env.write("host/tmp/note", "changed since")?;
        job.restart()?;
        assert_eq!(get(job.port, "/")?, "b");
        assert_eq!(std::fs::read_to_string(host.join("tmp/note"))?, "changed since");
        job.env.finish()
    }

    pub(super) fn pipeline(self, who: Who) -> Outcome<()> {
        let script = "python3 /opt/subjects/server.py \"$1\" 2>&1 | cat | cat";
        self.server(who, "any", &["sh", "-c", script, "sh", "PORT"])
    }

    pub(super) fn one_gibibyte(self) -> Outcome<()> {
        let job = self.python(Who::User, &[], &["/opt/subjects/memory.py", "PORT", "1024"])?;
        post(job.port, "m")?;
        job.save()?;
        assert_eq!(get(job.port, "/check")?, "good");
        job.restart()?;
        assert_eq!(get(job.port, "/")?, "m");
        assert_eq!(get(job.port, "/check")?, "good");
        job.env.finish()
    }

    /// One of the programs that only wait, linked in another way than most.
    pub(super) fn without_glibc(self, who: Who, program: &str) -> Outcome<()> {
        let program = format!("/opt/subjects/bin/{program}");
        let job = Job::with(self.0, who, &[], "any", &[&program])?;
        for _ in 0..2 {
            job.save()?;
            job.restart()?;
            let state = state_of(&job.env, &program)?;
            assert!(state == "S" || state == "R", "{program} is in state {state:?} after the restart");
        }
        job.env.finish()
    }

    /// Whoever enters does not become part of what is saved, and does not stand in its way.
    pub(super) fn command_beside(self, who: Who) -> Outcome<()> {
        let job = Job::with(self.0, who, &[], "server", &["PORT"])?;
        assert_eq!(post(job.port, "b")?, "b");
        let beside = job.env.spawn(&["exec", "instance://job", "sh", "-c", "echo up; sleep 1000; true"])?;
        beside.wait_for("up")?;
        job.save()?;
        job.restart()?;
        beside.wait()?;
        assert_eq!(get(job.port, "/")?, "b");
        job.env.finish()
    }

    /// What a capture leaves: files, all of them the user's own, and the manifest that tells of them.
    pub(super) fn generation(self, who: Who) -> Outcome<serde_json::Value> {
        let job = Job::with(self.0, who, &[], "server", &["PORT"])?;
        post(job.port, "g")?;
        job.save()?;
        let newest = job.env.newest("job")?;
        let generation = job.env.path("data/checkpoints/job/generations/000001");
        let files = files_below(&generation)?;
        for file in &files {
            assert_eq!(file.symlink_metadata()?.uid(), job.env.uid(), "{}", file.display());
        }
        let told = newest["files"].as_array().ok_or("the manifest names no files")?;
        for file in told {
            let path = file["path"].as_str().ok_or("a file without a path")?;
            assert!(files.contains(&generation.join(path)), "{path} is not there");
        }
        assert_eq!(files.len(), told.len() + 1, "besides the manifest: {files:?}");
        job.restart()?;
        assert_eq!(get(job.port, "/")?, "g");
        job.env.finish()?;
        Ok(newest)
    }

    /// A command that brings an application back ends as the application does.
    pub(super) fn exit_codes(self, who: Who) -> Outcome<()> {
        let env = Env::new(who)?;
        let small = env.site.image("small").to_string_lossy().into_owned();
        let script = "trap 'exit 7' USR1; trap 'kill -KILL $$' USR2; n=0; \
                      while :; do n=$((n + 1)); echo line $n.; sleep 0.05; done";
        let start = ["run", "--backend", self.0, "--checkpoint", "job", &small, "sh", "-c", script];
        let first = Running::start(env.command(&start), false)?;
        first.wait_for("line 5.")?;
        let listed: serde_json::Value = serde_json::from_str(&env.ok(&["instance", "list", "--json"])?.out)?;
        let name = listed["instances"][0]["instance"].as_str().ok_or("the run has no record")?;
        env.ok(&["checkpoint", "instance", "--stop", name])?;
        first.wait()?;
        for (signal, code) in [(Signal::SIGUSR1, 7), (Signal::SIGUSR2, 137), (Signal::SIGTERM, 143)] {
            let again = Running::start(env.command(&["run", "--restart", "job", &small]), false)?;
            // Whichever it was saved at.
            again.wait_for("line ")?;
            again.signal(signal)?;
            let run = again.wait()?;
            assert_eq!(run.code, code, "{signal}: {}", run.err);
            assert!(!run.out.contains("line 1."), "{signal}: it began anew: {}", run.out);
        }
        env.finish()
    }
}

/// The state, as `/proc` has it, of the one process in the container that runs this program.
fn state_of(env: &Env, program: &str) -> Outcome<String> {
    let script = "for p in /proc/[0-9]*; do [ \"$(readlink $p/exe)\" != \"$1\" ] || cat $p/stat; done";
    let stat = env.ok(&["exec", "instance://job", "sh", "-c", script, "sh", program])?.out;
    let [line] = stat.lines().collect::<Vec<_>>()[..] else {
        return Err(format!("not one process runs {program}: {stat:?}").into());
    };
    let state = line.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').next());
    state.map(str::to_owned).ok_or_else(|| format!("no state: {line}").into())
}
