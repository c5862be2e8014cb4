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
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
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
    let log_name = log_name(helper);
    let log = children::log(&log_name)?;
    let pid = spawn(helper, listeners, seccomp, keep_capabilities, log.as_fd())?;
    wait_until_ready(helper, pid, Path::new(stasis_plugin_api::plan::LOG_DIR).join(log_name))?;
    Ok(pid.as_raw())
}

fn log_name(helper: &Helper) -> String {
    format!("{}.log", helper.name)
}

fn spawn(
    helper: &Helper,
    listeners: &mut Listeners,
    seccomp: &[SeccompRule],
    keep_capabilities: bool,
    output: BorrowedFd<'_>,
) -> Result<Pid> {
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
        let error = children::become_it(&Becoming {
            argv: &helper.argv,
            env: &env,
            streams: Some([null.as_fd(), output, output]),
            descriptors: owned.iter().map(|(s, n)| (s.as_fd() as BorrowedFd<'_>, *n)).collect(),
            session: true,
            ignored: &helper.ignore_signals,
            seccomp,
            keep_capabilities,
            identity: helper.identity,
            umask: 0o077,
            ..Becoming::default()
        });
        telling.fail(&error);
    };
    telling.wait()?;
    Ok(pid)
}

/// Runs a helper to its end, which has to be status 0; else what became of it.
///
/// # Errors
/// Why it could not even be started.
pub fn run(
    helper: &Helper,
    listeners: &mut Listeners,
    keep_capabilities: bool,
) -> Result<Option<FailedHelper>> {
    let failed = |e: &dyn std::error::Error| {
        Error::new(format!("cannot follow the engine's {}", helper.name)).because(e)
    };
    let (read, write) = fd::pipe().map_err(|e| failed(&e))?;
    fd::set_nonblocking(read.as_fd(), true).map_err(|e| failed(&e))?;
    let pid = spawn(helper, listeners, &[], keep_capabilities, write.as_fd())?;
    drop(write);
    let ended = process::descriptor_of(pid.as_raw()).map_err(|e| failed(&e))?;
    let (mut pipe, mut said) = (File::from(read), Vec::new());
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
            Err(e) => return Err(failed(&e)),
        }
        if Instant::now() >= end && !timed_out {
            timed_out = true;
            // It may have ended this very moment.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    };
    drain(&mut pipe, &mut said);
    // For whoever looks later; the outcome does not depend on it.
    let _ = children::log(&log_name(helper)).map(|log| File::from(log).write_all(&said));
    let (code, signal) = match status {
        WaitStatus::Exited(_, 0) => return Ok(None),
        WaitStatus::Exited(_, code) => (Some(code), None),
        WaitStatus::Signaled(_, signal, _) => (None, Some(signal as i32)),
        _ => (None, None),
    };
    let (name, output) = (helper.name.clone(), String::from_utf8_lossy(&said).into_owned());
    Ok(Some(FailedHelper { name, code, signal, timed_out, output, ..FailedHelper::default() }))
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
