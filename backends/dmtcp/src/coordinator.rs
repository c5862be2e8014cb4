//! The talk with the coordinator, through the `dmtcp_command` of the same installation: the wire format
//! differs between versions.

use crate::asserts;
use crate::inject;
use crate::preload::{SHIM_PATH, tool};
use stasis_plugin_api::prelude::*;
use std::path::Path;
use std::time::{Duration, Instant};

/// A start that is not complete after this has failed.
pub(crate) const START: Duration = Duration::from_secs(10);
/// Between two looks. A look costs a process, which takes longer than this.
const PAUSE: Duration = Duration::from_millis(2);

/// What the coordinator says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Status {
    /// Processes under DMTCP.
    pub(crate) peers: u32,
    /// All of them run, and none is in a barrier.
    pub(crate) running: bool,
}

/// Runs `dmtcp_command` inside.
pub(crate) fn command(host: &Host<'_>, arguments: &[&str], timeout: Duration) -> Result<RunOutput> {
    let shim = host.state("shim").unwrap_or(SHIM_PATH).to_owned();
    let mut argv = vec![tool("dmtcp_command")];
    argv.extend(inject::address());
    argv.extend(arguments.iter().map(|a| (*a).to_owned()));
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    host.run_inside(&RunInside {
        argv,
        env: inject::environment(&shim, None),
        timeout_ms,
        ..RunInside::default()
    })
}

/// Reads `NUM_PEERS=` and `RUNNING=` from what `dmtcp_command -s` prints.
pub(crate) fn parse(text: &str) -> Option<Status> {
    let value = |key: &str| text.lines().find_map(|l| l.trim().strip_prefix(key)).map(str::trim);
    let peers = value("NUM_PEERS=")?.parse().ok()?;
    Some(Status { peers, running: value("RUNNING=")?.starts_with("yes") })
}

/// Asks for the status.
pub(crate) fn status(host: &Host<'_>) -> Result<Status> {
    let output = command(host, &["-s"], Duration::from_secs(5))?;
    match (output.code, parse(&output.stdout)) {
        (Some(0), Some(status)) => Ok(status),
        (Some(2), _) => Err(BackendError::failed("DMTCP's coordinator does not answer")
            .because("it is gone, or the application ended")),
        _ => Err(BackendError::failed("DMTCP's coordinator gave no status").engine_output(output.stderr)),
    }
}

/// Waits until so many processes run. Fails early when the application ended.
pub(crate) fn wait(host: &Host<'_>, logs: &Path, expected: u32, within: Duration) -> Result<u32> {
    let end = Instant::now() + within.min(host.time_left());
    loop {
        let application = host.application()?;
        if !application.running {
            return Err(ended(host, logs, application.ended.as_deref()));
        }
        let last = match status(host) {
            Ok(status) if status.running && status.peers >= expected => return Ok(status.peers),
            other => other,
        };
        if Instant::now() >= end {
            return Err(incomplete(host, logs, expected, last.unwrap_or_default()));
        }
        if host.cancelled() {
            return Err(BackendError::new(kind::CANCELLED, "waiting for the application was cancelled"));
        }
        std::thread::sleep(PAUSE);
    }
}

/// What DMTCP and the application said last: DMTCP's own log, then the application's stderr, where the
/// loader speaks.
pub(crate) fn said(host: &Host<'_>, logs: &Path) -> String {
    let log = std::fs::read(logs.join(inject::ENGINE_LOG_NAME)).unwrap_or_default();
    let last = &log[log.len().saturating_sub(16 << 10)..];
    format!("{}{}", String::from_utf8_lossy(last), host.stderr_tail().unwrap_or_default())
}

fn ended(host: &Host<'_>, logs: &Path, how: Option<&str>) -> BackendError {
    let said = said(host, logs);
    // What the loader or DMTCP ended is no end of the application's own.
    let kind = if asserts::is_known(&said) { kind::FAILED } else { kind::APPLICATION_ENDED };
    let error = BackendError::new(kind, "the application ended while it was started")
        .because(how.unwrap_or("nobody saw how"));
    asserts::explain(error, &said)
}

fn incomplete(host: &Host<'_>, logs: &Path, expected: u32, last: Status) -> BackendError {
    let said = said(host, logs);
    let error = BackendError::failed("the application runs but cannot be saved");
    let error = match last {
        Status { peers: 0, .. } => error.because("no process of it has joined DMTCP"),
        Status { peers, .. } if peers < expected => {
            error.because(format!("{peers} of {expected} processes are there"))
        }
        Status { peers, .. } => {
            error.because(format!("{peers} process(es) have joined DMTCP and never became ready"))
        }
    };
    asserts::explain(error, &said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_and_nonsense_is_not() {
        let text = "Status...\n  Host: h\n  Port: 83\n  NUM_PEERS=3\n  RUNNING=yes\n  CKPT_INTERVAL=0 (checkpoint manually)\n";
        assert_eq!(parse(text), Some(Status { peers: 3, running: true }));
        assert_eq!(parse("  NUM_PEERS=1\n  RUNNING=no\n"), Some(Status { peers: 1, running: false }));
        for text in
            ["", "NUM_PEERS=x\nRUNNING=yes", "NUM_PEERS=1", "RUNNING=yes", "NUM_PEERS=-1\nRUNNING=yes"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
