//! The engine's own processes: started before the application, watched while it runs.

use crate::error::{Error, Result};
use crate::init::children::{self, Becoming, Telling};
use crate::sys::{fd, process};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use stasis_plugin_api::plan::{DescriptorSource, Helper, Readiness, SeccompRule};
use stasis_plugin_api::request::FailedHelper;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A helper that does not stand after this time has failed, unless it says another.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Of the output of a helper that rebuilds a generation the last so many bytes are kept.
const OUTPUT_LIMIT: usize = 64 << 10;

pub(super) type Listeners = BTreeMap<PathBuf, UnixListener>;

fn patience(helper: &Helper) -> Duration {
    if helper.timeout_ms == 0 { PATIENCE } else { Duration::from_millis(helper.timeout_ms) }
}

/// Starts a helper and waits until it stands.
///
/// # Errors
/// Why it does not, with the last lines of its log.
pub fn start(
    helper: &Helper,
    listeners: &mut Listeners,
    seccomp: &[SeccompRule],
    keep_capabilities: bool,
) -> Result<i32> {
    let log_name = log_name(&helper.name);
    let log = children::log(&log_name)?;
    let start = Start { seccomp, keep_capabilities, output: log.as_fd(), talk: None };
    let (pid, telling) = spawn(helper, listeners, &start)?;
    telling.wait()?;
    wait_until_ready(helper, pid, Path::new(stasis_plugin_api::plan::LOG_DIR).join(log_name))?;
    Ok(pid.as_raw())
}

fn log_name(helper: &str) -> String {
    format!("{helper}.log")
}

/// What a helper is started with besides its plan.
struct Start<'a> {
    seccomp: &'a [SeccompRule],
    keep_capabilities: bool,
    output: BorrowedFd<'a>,
    /// By which it is told that the container's root is there: its command for an early start is taken.
    talk: Option<BorrowedFd<'a>>,
}

/// Answers when its program is started, or says why it is not, when `Telling` is waited for.
fn spawn(helper: &Helper, listeners: &mut Listeners, start: &Start<'_>) -> Result<(Pid, Telling)> {
    let null = children::null()?;
    let mut owned = Vec::new();
    for descriptor in &helper.descriptors {
        match &descriptor.source {
            DescriptorSource::UnixListener(path) => {
                // Taken out: nobody else may hold it, or its users would wait for ever once it is gone.
                let socket = listeners
                    .remove(path)
                    .ok_or_else(|| Error::new(format!("the socket {} is wanted twice", path.display())))?;
                owned.push((socket, descriptor.number));
            }
            DescriptorSource::Kept(name) => {
                return Err(Error::new(format!(
                    "the helper {} wants the kept descriptor {name}, which is not there",
                    helper.name
                )));
            }
        }
    }
    let env: Vec<(String, String)> = helper.env.clone().into_iter().collect();
    let telling = Telling::new()?;
    let child = process::fork()
        .map_err(|e| Error::new(format!("cannot start the helper {}", helper.name)).because(e.desc()))?;
    let Some(pid) = child else {
        let early = helper.early.as_ref().zip(start.talk);
        let listening = owned.iter().map(|(socket, number)| (socket.as_fd(), *number));
        let error = children::become_it(&Becoming {
            argv: early.map_or(&helper.argv, |(early, _)| &early.argv),
            env: &env,
            streams: Some([null.as_fd(), start.output, start.output]),
            descriptors: listening.chain(early.map(|(early, talk)| (talk, early.talk))).collect(),
            session: true,
            ignored: &helper.ignore_signals,
            seccomp: start.seccomp,
            keep_capabilities: start.keep_capabilities,
            identity: helper.identity,
            // One that is started early is loaded where the image is not there yet.
            secluded: helper.secluded.as_ref().filter(|_| early.is_none()),
            umask: 0o077,
            ..Becoming::default()
        });
        telling.fail(&error);
    };
    Ok((pid, telling))
}

/// A helper that rebuilds a generation, under way.
#[derive(Debug)]
pub struct Rebuilding {
    pub(super) pid: Pid,
    ended: OwnedFd,
    pub(super) output: File,
}

impl Rebuilding {
    /// Starts it.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn begin(helper: &Helper, listeners: &mut Listeners, keep_capabilities: bool) -> Result<Self> {
        let (it, telling) = Self::spawned(helper, listeners, keep_capabilities, None)?;
        telling.wait()?;
        Ok(it)
    }

    /// The same, without waiting for it: by its command for an early start where it gets a socket to talk over.
    ///
    /// # Errors
    /// Why it could not be made.
    pub(super) fn spawned(
        helper: &Helper,
        listeners: &mut Listeners,
        keep_capabilities: bool,
        talk: Option<BorrowedFd<'_>>,
    ) -> Result<(Self, Telling)> {
        let failed = |e: &dyn std::error::Error| unfollowed(helper, e);
        let (read, write) = fd::pipe().map_err(|e| failed(&e))?;
        fd::set_nonblocking(read.as_fd(), true).map_err(|e| failed(&e))?;
        let start = Start { seccomp: &[], keep_capabilities, output: write.as_fd(), talk };
        let (pid, telling) = spawn(helper, listeners, &start)?;
        let ended = process::descriptor_of(pid.as_raw()).map_err(|e| failed(&e))?;
        Ok((Self { pid, ended, output: File::from(read) }, telling))
    }

    /// Ends it.
    pub(super) fn end(self) {
        // It may have ended by itself.
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It cannot be followed.
    pub fn follow(self, helper: &Helper) -> Result<Rebuilt> {
        let Self { pid, ended, output: mut pipe } = self;
        let mut said = Vec::new();
        let end = Instant::now() + patience(helper);
        let (mut open, mut timed_out) = (true, false);
        let status = loop {
            let mut watched = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            if open {
                watched.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            }
            let left = end.saturating_duration_since(Instant::now()).as_millis().min(10_000);
            // An interrupted wait is tried again below.
            let _ = poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            open &= drain(&mut pipe, &mut said);
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::EINTR) => {}
                Ok(status) => break status,
                Err(e) => return Err(unfollowed(helper, &e)),
            }
            if Instant::now() >= end && !timed_out {
                timed_out = true;
                // It may have ended this very moment.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        };
        drain(&mut pipe, &mut said);
        Ok(Rebuilt { name: helper.name.clone(), status, timed_out, said })
    }
}

/// A helper that rebuilt a generation, or has failed to.
#[derive(Debug)]
pub struct Rebuilt {
    name: String,
    status: WaitStatus,
    timed_out: bool,
    pub(super) said: Vec<u8>,
}

impl Rebuilt {
    /// What became of it, where that is not status 0.
    pub fn failed(&self) -> Option<FailedHelper> {
        let (code, signal) = match self.status {
            WaitStatus::Exited(_, 0) => return None,
            WaitStatus::Exited(_, code) => (Some(code), None),
            WaitStatus::Signaled(_, signal, _) => (None, Some(signal as i32)),
            _ => (None, None),
        };
        let output = String::from_utf8_lossy(&self.said).into_owned();
        let (name, timed_out) = (self.name.clone(), self.timed_out);
        Some(FailedHelper { name, code, signal, timed_out, output, ..FailedHelper::default() })
    }

    /// Puts what it said into its log, for whoever looks later: the outcome does not depend on it.
    pub fn log(&self) {
        let _ = children::log(&log_name(&self.name)).map(|log| File::from(log).write_all(&self.said));
    }
}

fn unfollowed(helper: &Helper, e: &dyn std::error::Error) -> Error {
    Error::new(format!("cannot follow the engine's {}", helper.name)).because(e)
}

/// Takes what the pipe holds; false at its end.
fn drain(pipe: &mut File, said: &mut Vec<u8>) -> bool {
    let mut part = [0; 8192];
    loop {
        match pipe.read(&mut part) {
            Ok(0) => return false,
            Ok(n) => {
                said.extend_from_slice(&part[..n]);
                said.drain(..said.len().saturating_sub(OUTPUT_LIMIT));
            }
            Err(e) => return e.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

fn wait_until_ready(helper: &Helper, pid: Pid, log: PathBuf) -> Result<()> {
    let end = Instant::now() + patience(helper);
    let failed = |why: String| {
        let tail = std::fs::read_to_string(&log).unwrap_or_default();
        Err(Error::new(format!("the engine's {} did not come up", helper.name)).because(why).detail(tail))
    };
    loop {
        if helper.readiness == Readiness::Started {
            return Ok(());
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {}
            Ok(WaitStatus::Exited(_, 0)) if helper.readiness == Readiness::Succeeded => return Ok(()),
            Ok(status) => return failed(format!("it ended: {status:?}")),
            Err(e) => return failed(e.desc().to_owned()),
        }
        if let Readiness::PathExists(path) = &helper.readiness
            && path.exists()
        {
            return Ok(());
        }
        if Instant::now() > end {
            return failed(format!("it took more than {} seconds", patience(helper).as_secs()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
