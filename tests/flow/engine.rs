//! What every engine that saves from outside has to bring back; `criu` and `native` say for whom.

use super::programs::Job;
use crate::env::{Env, Who};
use crate::http::{get, post};
use crate::running::Outcome;

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

    pub(super) fn workers(self) -> Outcome<()> {
        let job = self.python(Who::User, &[], &["/opt/subjects/workers.py", "PORT"])?;
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

    pub(super) fn files(self) -> Outcome<()> {
        let job = self.python(Who::User, &["--contain"], &["/opt/subjects/files.py", "PORT", "/tmp/work"])?;
        assert_eq!(post(job.port, "first")?, "next line 1; log 1; deleted but held; in True");
        job.save()?;
        assert_eq!(post(job.port, "second")?, "next line 3; log 2; deleted but held; in True");
        job.restart()?;
        assert_eq!(post(job.port, "again")?, "next line 3; log 2; deleted but held; in True");
        job.env.finish()
    }

    /// A server that holds one character, started in that way.
    pub(super) fn server(self, image: &str, words: &[&str]) -> Outcome<()> {
        let job = Job::with(self.0, Who::User, &[], image, words)?;
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

    pub(super) fn pipeline(self) -> Outcome<()> {
        let script = "python3 /opt/subjects/server.py \"$1\" 2>&1 | cat | cat";
        self.server("any", &["sh", "-c", script, "sh", "PORT"])
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

    /// Static ones, and with musl where there is a compiler for it.
    pub(super) fn without_glibc(self) -> Outcome<()> {
        let images = crate::site::images()?;
        for program in ["idle-static", "idle-musl"] {
            let program = format!("/opt/subjects/bin/{program}");
            if !images.join("any").join(&program[1..]).exists() {
                continue;
            }
            let job = Job::with(self.0, Who::User, &[], "any", &[&program])?;
            job.save()?;
            job.restart()?;
            assert!(job.env.ok(&["instance", "list"])?.out.contains("job"));
            job.env.finish()?;
        }
        Ok(())
    }

    /// Whoever enters does not become part of what is saved, and does not stand in its way.
    pub(super) fn command_beside(self) -> Outcome<()> {
        let job = Job::with(self.0, Who::User, &[], "server", &["PORT"])?;
        assert_eq!(post(job.port, "b")?, "b");
        let beside = job.env.spawn(&["exec", "instance://job", "sh", "-c", "echo up; sleep 1000; true"])?;
        beside.wait_for("up")?;
        job.save()?;
        job.restart()?;
        beside.wait()?;
        assert_eq!(get(job.port, "/")?, "b");
        job.env.finish()
    }
}
