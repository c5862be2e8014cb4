//! Commands that init runs inside on request: helpers of the backend with their output collected, and
//! commands of the user's beside the application.

use crate::error::{Error, Result};
use crate::init::children::{self, Becoming, Telling};
use crate::sys::{fd, process, terminal};
use nix::unistd::Pid;
use stasis_plugin_api::host::{RunInside, RunOutput};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// More output of a helper than this is dropped.
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
}

impl Job {
    /// Starts one.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(id: u64, command: &RunInside, keep_capabilities: bool) -> Result<Self> {
        let failed = |e: &dyn std::error::Error| Error::new("cannot run a command inside").because(e);
        let (null, out, err) =
            (children::null()?, fd::pipe().map_err(|e| failed(&e))?, fd::pipe().map_err(|e| failed(&e))?);
        let env: Vec<(String, String)> = command.env.clone().into_iter().collect();
        let telling = Telling::new()?;
        let Some(pid) = process::fork().map_err(|e| failed(&e))? else {
            let error = children::become_it(&Becoming {
                argv: &command.argv,
                env: &env,
                streams: Some([null.as_fd(), out.1.as_fd(), err.1.as_fd()]),
                session: true,
                keep_capabilities,
                umask: 0o077,
                ..Becoming::default()
            });
            telling.fail(&error);
        };
        telling.wait()?;
        let mut streams = Vec::new();
        for (read, _) in [out, err] {
            fd::set_nonblocking(read.as_fd(), true).map_err(|e| failed(&e))?;
            streams.push((File::from(read), Vec::new()));
        }
        let deadline =
            (command.timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(command.timeout_ms));
        let streams = <[_; 2]>::try_from(streams).map_err(|_| Error::new("cannot run a command inside"))?;
        Ok(Self { id, pid: pid.as_raw(), deadline, timed_out: false, streams })
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
                kept.extend_from_slice(&part[..n.min(OUTPUT_LIMIT.saturating_sub(kept.len()))]);
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
    pub fn finish(mut self, raw_status: i32) -> RunOutput {
        self.drain();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        RunOutput {
            code: libc::WIFEXITED(raw_status).then(|| libc::WEXITSTATUS(raw_status)),
            signal: libc::WIFSIGNALED(raw_status).then(|| libc::WTERMSIG(raw_status)),
            timed_out: self.timed_out,
            stdout: text(&self.streams[0].1),
            stderr: text(&self.streams[1].1),
        }
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
