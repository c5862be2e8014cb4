//! Commands that init runs inside on request: helpers of the backend with their output collected, and
//! commands of the user's beside the application.

use crate::error::{Error, Result};
use crate::init::children::{self, Becoming, Telling};
use crate::init::tmpfs;
use crate::launch::protocol::FromInit;
use crate::sys::{fd, process, terminal};
use nix::unistd::Pid;
use stasis_plugin_api::host::{RunInside, RunOutput, TmpfsSaved};
use stasis_plugin_api::plan::CAPTURE_DIR;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Of a helper's output the last so many bytes are kept.
const OUTPUT_LIMIT: usize = 64 << 10;

/// A helper command that runs.
#[derive(Debug)]
pub struct Job {
    /// The request's id.
    pub id: u64,
    /// Its pid.
    pub pid: i32,
    /// After this it is killed.
    pub deadline: Option<Instant>,
    /// It was killed for its time.
    pub timed_out: bool,
    streams: [(File, Vec<u8>); 2],
    work: Work,
}

/// What the answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Command,
    Tmpfs,
}

type Pipes = [(OwnedFd, OwnedFd); 2];

impl Job {
    /// Starts one.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(id: u64, command: &RunInside, kept: &[OwnedFd], keep_capabilities: bool) -> Result<Self> {
        let failed = |e: &dyn std::error::Error| Error::new("cannot run a command inside").because(e);
        let null = children::null()?;
        let pipes = [fd::pipe().map_err(|e| failed(&e))?, fd::pipe().map_err(|e| failed(&e))?];
        let env: Vec<(String, String)> = command.env.clone().into_iter().collect();
        let telling = Telling::new()?;
        let Some(pid) = process::fork().map_err(|e| failed(&e))? else {
            let error = children::become_it(&Becoming {
                argv: &command.argv,
                env: &env,
                streams: Some([null.as_fd(), pipes[0].1.as_fd(), pipes[1].1.as_fd()]),
                descriptors: kept.iter().map(AsFd::as_fd).zip(command.kept.keys().copied()).collect(),
                session: true,
                keep_capabilities,
                identity: command.identity,
                secluded: command.secluded.as_ref(),
                umask: 0o077,
                ..Becoming::default()
            });
            telling.fail(&error);
        };
        telling.wait()?;
        let deadline =
            (command.timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(command.timeout_ms));
        Self::watch(id, pid, deadline, pipes, Work::Command)
    }

    /// Starts writing down the tmpfs mounts, in a process of its own: it may take long.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn save_tmpfs(id: u64, mounts: &[PathBuf], file: &str) -> Result<Self> {
        let failed = |e: &dyn std::error::Error| Error::new("cannot save the tmpfs mounts").because(e);
        let pipes = [fd::pipe().map_err(|e| failed(&e))?, fd::pipe().map_err(|e| failed(&e))?];
        let Some(pid) = process::fork().map_err(|e| failed(&e))? else {
            let saved = tmpfs::save(mounts, &Path::new(CAPTURE_DIR).join(file));
            let told = serde_json::to_vec(&saved).unwrap_or_default();
            let [(_, out), _] = pipes;
            // Init is alive, or this process is not.
            let _ = File::from(out).write_all(&told);
            process::end(0)
        };
        Self::watch(id, pid, None, pipes, Work::Tmpfs)
    }

    fn watch(id: u64, pid: Pid, deadline: Option<Instant>, pipes: Pipes, work: Work) -> Result<Self> {
        let [out, err] = pipes.map(|(read, _)| read);
        for read in [&out, &err] {
            fd::set_nonblocking(read.as_fd(), true)
                .map_err(|e| Error::new("cannot run a command inside").because(&e))?;
        }
        let streams = [out, err].map(|read| (File::from(read), Vec::new()));
        Ok(Self { id, pid: pid.as_raw(), deadline, timed_out: false, streams, work })
    }

    /// The pipes to watch.
    pub fn pipes(&self) -> impl Iterator<Item = &File> {
        self.streams.iter().map(|(pipe, _)| pipe)
    }

    /// Takes what the pipes hold.
    pub fn drain(&mut self) {
        let mut part = [0; 8192];
        for (pipe, kept) in &mut self.streams {
            // WouldBlock and the end look alike here: both mean "nothing more now".
            while let Ok(n @ 1..) = pipe.read(&mut part) {
                kept.extend_from_slice(&part[..n]);
                kept.drain(..kept.len().saturating_sub(OUTPUT_LIMIT));
            }
        }
    }

    /// Kills it when its time is over.
    pub fn enforce(&mut self, now: Instant) {
        if self.deadline.is_some_and(|d| now >= d) && !self.timed_out {
            self.timed_out = true;
            // It may have ended this very moment.
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// What became of it.
    pub fn finish(mut self, raw_status: i32) -> FromInit {
        self.drain();
        let id = self.id;
        if self.work == Work::Tmpfs {
            let saved = serde_json::from_slice::<Result<TmpfsSaved>>(&self.streams[0].1)
                .unwrap_or_else(|_| Err(Error::new("the process that saved the tmpfs mounts was killed")));
            return FromInit::TmpfsSaved { id, saved };
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let output = RunOutput {
            code: libc::WIFEXITED(raw_status).then(|| libc::WEXITSTATUS(raw_status)),
            signal: libc::WIFSIGNALED(raw_status).then(|| libc::WTERMSIG(raw_status)),
            timed_out: self.timed_out,
            stdout: text(&self.streams[0].1),
            stderr: text(&self.streams[1].1),
        };
        FromInit::Ran { id, output: Ok(output) }
    }
}

/// A command of the user's beside the application.
#[derive(Debug)]
pub struct Beside {
    /// The command.
    pub argv: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Make a terminal of this size.
    pub size: Option<terminal::Size>,
    /// The streams where no terminal is made.
    pub streams: Vec<OwnedFd>,
}

impl Beside {
    /// Starts it: its pid, and the master side of its terminal.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(self, keep_capabilities: bool) -> Result<(i32, Option<OwnedFd>)> {
        let failed = |e: nix::errno::Errno| Error::new("cannot start the command").because(e.desc());
        let mut master = None;
        let mut streams = self.streams;
        if let Some(size) = self.size {
            let (ours, theirs) = terminal::open_pair().map_err(failed)?;
            terminal::set_size(ours.as_fd(), size).map_err(failed)?;
            let copy = || theirs.try_clone().map_err(|e| Error::new("cannot start the command").because(&e));
            streams = vec![
                copy()?,
                copy()?,
                theirs.try_clone().map_err(|e| Error::new("cannot start the command").because(&e))?,
            ];
            master = Some(ours);
        }
        let streams =
            <[OwnedFd; 3]>::try_from(streams).map_err(|_| Error::new("a command needs three streams"))?;
        let telling = Telling::new()?;
        let Some(pid) = process::fork().map_err(failed)? else {
            let error = children::become_it(&Becoming {
                argv: &self.argv,
                env: &self.env,
                cwd: std::slice::from_ref(&self.cwd),
                streams: Some([streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()]),
                session: true,
                controls_terminal: self.size.is_some(),
                keep_capabilities,
                umask: 0o022,
                ..Becoming::default()
            });
            telling.fail(&error);
        };
        telling.wait()?;
        Ok((pid.as_raw(), master))
    }
}
