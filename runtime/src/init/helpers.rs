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
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A helper that does not stand after this time has failed, unless it says another.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the output of a helper that rebuilds a generation the last so many bytes are kept.
const OUTPUT_LIMIT: usize = 64 << 10;

type Listeners = BTreeMap<PathBuf, UnixListener>;

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
    pid: Pid,
    ended: OwnedFd,
    output: File,
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

    fn spawned(
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
    said: Vec<u8>,
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

/// A helper that rebuilds a generation and was started before the container's root was there.
#[derive(Debug)]
pub struct Early {
    it: Rebuilding,
    telling: Telling,
    talk: UnixStream,
}

/// One that needs nothing of the host's root any more, and waits for the container's.
#[derive(Debug)]
pub struct Loaded {
    it: Rebuilding,
    talk: UnixStream,
}

impl Early {
    /// Starts it, where its plan has a command for that. Why it is not there is found out when it is its turn.
    pub fn begin(helper: &Helper, keep_capabilities: bool) -> Option<Self> {
        helper.early.as_ref()?;
        let (talk, theirs) = UnixStream::pair().ok()?;
        let begun =
            Rebuilding::spawned(helper, &mut Listeners::new(), keep_capabilities, Some(theirs.as_fd()));
        let (it, telling) = begun.inspect_err(|error| tracing::debug!(%error, "not started early")).ok()?;
        Some(Self { it, telling, talk })
    }

    /// Waits until it needs nothing of the host's root any more. `None` where it has not come so far.
    pub fn loaded(self) -> Option<Loaded> {
        let Self { it, telling, mut talk } = self;
        let heard = || {
            telling.wait()?;
            let mut word = [0];
            let broken =
                |e: std::io::Error| Error::new("a helper that was started early is gone").because(&e);
            talk.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
            talk.read_exact(&mut word).map_err(broken)
        };
        if let Err(error) = heard() {
            tracing::debug!(%error, "not started early");
            // It has said why, and ended; or takes too long.
            let _ = nix::sys::signal::kill(it.pid, nix::sys::signal::Signal::SIGKILL);
            let _ = waitpid(it.pid, None);
            return None;
        }
        Some(Loaded { it, talk })
    }
}

impl Loaded {
    /// The container's root is there, and nothing of the host's.
    pub fn go(mut self) -> Rebuilding {
        // One that has ended meanwhile is found ended.
        let _ = self.talk.write_all(b"g");
        self.it
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_plugin_api::plan::EarlyCommand;

    const SAYS: &str = "echo l >&5; read word <&5; echo \"$0 $word\"";

    fn helper(early: &str, says: &str) -> Helper {
        let command = |program: &str| [program, "-c", says, program].map(str::to_owned).to_vec();
        let early = Some(EarlyCommand { argv: command(early), talk: 5 });
        Helper { name: "h".to_owned(), argv: command("/bin/sh"), early, ..Helper::default() }
    }

    /// In a fork: what starts a helper has one thread.
    fn alone(check: impl FnOnce() -> bool) -> bool {
        let ended = process::fork_with(&[], || i32::from(!check())).map(process::reap);
        ended.is_ok_and(|ended| ended.is_ok_and(|status| status.success()))
    }

    #[test]
    fn one_that_was_started_early_waits_for_its_word() {
        assert!(alone(|| {
            let helper = helper("/bin/sh", SAYS);
            let early = Early::begin(&helper, true).and_then(Early::loaded).unwrap();
            let mut said = Vec::new();
            let mut output = early.it.output.try_clone().unwrap();
            std::thread::sleep(Duration::from_millis(100));
            assert!(drain(&mut output, &mut said) && said.is_empty());
            early.go().follow(&helper).is_ok_and(|rebuilt| rebuilt.said == b"/bin/sh g\n")
        }));
    }

    #[test]
    fn one_that_is_not_there_early_is_started_in_time() {
        assert!(alone(|| {
            let wrong = [("/nowhere/sh", SAYS), ("/bin/sh", "exit 127"), ("/bin/sh", "exec 5>&-; sleep 60")];
            wrong.iter().all(|(program, says)| {
                Early::begin(&helper(program, says), true).is_some_and(|early| early.loaded().is_none())
            })
        }));
        assert!(alone(|| Early::begin(&Helper { early: None, ..helper("/bin/sh", SAYS) }, true).is_none()));
    }

    #[test]
    fn one_whose_root_never_comes_sees_that() {
        assert!(alone(|| {
            let helper = helper("/bin/sh", SAYS);
            let Some(Loaded { it, talk }) = Early::begin(&helper, true).and_then(Early::loaded) else {
                return false;
            };
            drop(talk);
            it.follow(&helper).is_ok_and(|rebuilt| rebuilt.said == b"/bin/sh \n")
        }));
    }
}
