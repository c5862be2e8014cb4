//! The engine's own processes: started before the application, watched while it runs.

use crate::error::{Error, Result};
use crate::init::children::{self, Becoming, Telling};
use crate::sys::process;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use stasis_plugin_api::plan::{DescriptorSource, Helper, Readiness, SeccompRule};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A helper that does not stand after this time has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts a helper and waits until it stands.
///
/// # Errors
/// Why it does not, with the last lines of its log.
pub fn start(
    helper: &Helper,
    listeners: &mut BTreeMap<PathBuf, UnixListener>,
    seccomp: &[SeccompRule],
    keep_capabilities: bool,
) -> Result<i32> {
    let log_name = format!("{}.log", helper.name);
    let (null, log) = (children::null()?, children::log(&log_name)?);
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
            streams: Some([null.as_fd(), log.as_fd(), log.as_fd()]),
            descriptors: owned.iter().map(|(s, n)| (s.as_fd() as BorrowedFd<'_>, *n)).collect(),
            session: true,
            ignored: &helper.ignore_signals,
            seccomp,
            keep_capabilities,
            umask: 0o077,
            ..Becoming::default()
        });
        telling.fail(&error);
    };
    telling.wait()?;
    drop(owned);
    wait_until_ready(helper, pid, Path::new(stasis_plugin_api::plan::LOG_DIR).join(log_name))?;
    Ok(pid.as_raw())
}

fn wait_until_ready(helper: &Helper, pid: Pid, log: PathBuf) -> Result<()> {
    let end = Instant::now() + PATIENCE;
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
            return failed("it took more than ten seconds".to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
