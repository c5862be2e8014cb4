//! DMTCP's version: how it is asked, read and judged. Where an installation lies is not known here.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use semver::Version;
use std::io::{ErrorKind, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The range of versions that this backend works with.
pub(crate) const ACCEPTS: &str = ">=3.0, <6";
/// A program that only prints its version is never slower.
const LIMIT: Duration = Duration::from_secs(5);
/// The version is in the first line.
const MOST_OUTPUT: usize = 4096;

/// Why a program's version is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VersionError {
    /// It could not be started.
    #[error("cannot be run: {0}")]
    Start(#[source] std::io::Error),
    /// It went on for too long.
    #[error("printed no version within {} s", LIMIT.as_secs())]
    Slow,
    /// It said something else: a loader's complaint as a rule.
    #[error("printed no version: {}", said(.0))]
    Unclear(String),
}

fn said(line: &str) -> String {
    if line.is_empty() { "nothing at all".to_owned() } else { format!("{line:?}") }
}

/// Whether this backend works with it. By the numbers alone: a release candidate of 4.2 behaves like 4.2.
pub(crate) fn is_supported(version: &Version) -> bool {
    (3..6).contains(&version.major)
}

/// A remark about versions that nobody has tried with this backend.
pub(crate) fn remark(version: &Version, text: &str) -> Option<String> {
    let tried = ((4, 2)..=(5, 0)).contains(&(version.major, version.minor));
    (!tried).then(|| format!("DMTCP {text} was not tried with this backend; 4.2 to 5.0 were"))
}

/// Runs `dmtcp_launch --version` and reads what it says: the version and its text as printed.
pub(crate) fn ask(program: &Path) -> Result<(Version, String), VersionError> {
    ask_within(program, LIMIT)
}

fn ask_within(program: &Path, limit: Duration) -> Result<(Version, String), VersionError> {
    let end = Instant::now() + limit;
    let (reader, mut child) = start(program, end).map_err(VersionError::Start)?;
    let output = first_words(reader, end);
    // It may have children of its own, and it may still be printing its licence.
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
    let (text, complete) = output.map_err(VersionError::Start)?;
    match text.lines().find_map(parse) {
        Some(found) => Ok(found),
        None if complete => {
            let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            Err(VersionError::Unclear(line.chars().take(300).collect()))
        }
        None => Err(VersionError::Slow),
    }
}

fn start(program: &Path, end: Instant) -> std::io::Result<(PipeReader, Child)> {
    loop {
        let (reader, writer) = std::io::pipe()?;
        let started = Command::new(program)
            .arg("--version")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn();
        match started {
            // Somebody is just installing it.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return Ok((reader, other?)),
        }
    }
}

/// What it prints until the version is there, all is said (second part true) or the time is over.
fn first_words(mut reader: PipeReader, end: Instant) -> std::io::Result<(String, bool)> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        let whole_lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        if bytes.len() >= MOST_OUTPUT || whole_lines.lines().any(|line| parse(line).is_some()) {
            return Ok((text.into_owned(), true));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok((text.into_owned(), false));
        }
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        let mut wanted = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut chunk = [0; 1024];
        match reader.read(&mut chunk)? {
            0 => return Ok((String::from_utf8_lossy(&bytes).into_owned(), true)),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

/// The version in a line such as `dmtcp_launch (DMTCP) 5.0`, and its text. Missing numbers count as 0.
pub(crate) fn parse(line: &str) -> Option<(Version, String)> {
    let (_, rest) = line.split_once("(DMTCP)")?;
    let text = rest.split_whitespace().next()?;
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, suffix) = text.split_at(end);
    let mut parts = numbers.split('.').map(|part| part.parse::<u64>().ok());
    let mut version =
        Version::new(parts.next()??, parts.next().unwrap_or(Some(0))?, parts.next().unwrap_or(Some(0))?);
    if parts.next().is_some() {
        return None;
    }
    if let Ok(full) = Version::parse(&format!("{version}{suffix}")) {
        version = full;
    }
    Some((version, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    fn script(dir: &tempfile::TempDir, body: &str) -> PathBuf {
        let path = dir.path().join("dmtcp_launch");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn reads_versions() {
        for (line, version, text) in [
            ("dmtcp_launch (DMTCP) 5.0", "5.0.0", "5.0"),
            ("dmtcp_launch (DMTCP) 4.2.0\r", "4.2.0", "4.2.0"),
            ("/x/dmtcp_launch (DMTCP) 4 extra", "4.0.0", "4"),
            ("dmtcp_launch (DMTCP) 4.1-rc2", "4.1.0-rc2", "4.1-rc2"),
            ("dmtcp_launch (DMTCP) 4.1.0+dev", "4.1.0+dev", "4.1.0+dev"),
            ("dmtcp_launch (DMTCP) 4.1-..", "4.1.0", "4.1-.."),
        ] {
            assert_eq!(parse(line), Some((version.parse().unwrap(), text.to_owned())), "{line}");
        }
        for line in [
            "",
            "(DMTCP)",
            "dmtcp_launch 5.0",
            "(DMTCP) nonsense",
            "(DMTCP) 5.",
            "(DMTCP) 1.2.3.4",
            "(DMTCP) -1",
            "(DMTCP) 99999999999999999999.0",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn judges_versions() {
        let judged = |text: &str| {
            let version = text.parse().unwrap();
            (is_supported(&version), remark(&version, text).is_none())
        };
        assert_eq!(judged("2.6.0"), (false, false));
        assert_eq!(judged("3.0.0"), (true, false));
        assert_eq!(judged("4.2.0-rc1"), (true, true));
        assert_eq!(judged("5.0.3"), (true, true));
        assert_eq!(judged("5.1.0"), (true, false));
        assert_eq!(judged("6.0.0"), (false, false));
    }

    #[test]
    fn asks_a_program() {
        let dir = tempfile::tempdir().unwrap();
        // A loader's warning comes first, and a child keeps the pipe open.
        let program = script(&dir, "echo warning >&2; sleep 60 & echo 'dmtcp_launch (DMTCP) 4.2.0'; exit 1");
        assert_eq!(ask(&program).unwrap().1, "4.2.0");
        let program = script(&dir, "echo 'loading libatomic.so.1: no such file' >&2; exit 127");
        insta::assert_snapshot!(ask(&program).unwrap_err(), @r#"printed no version: "loading libatomic.so.1: no such file""#);
        let program = script(&dir, ":");
        insta::assert_snapshot!(ask(&program).unwrap_err(), @"printed no version: nothing at all");
        let program = script(&dir, "exec cat /dev/zero");
        assert!(matches!(ask(&program), Err(VersionError::Unclear(_))));
        let missing = dir.path().join("none");
        insta::assert_snapshot!(ask(&missing).unwrap_err(), @"cannot be run: No such file or directory (os error 2)");
    }

    #[test]
    fn does_not_wait_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(&dir, "printf 'dmtcp_launch (DMTCP) '; exec sleep 60");
        assert!(matches!(ask_within(&program, Duration::from_millis(200)), Err(VersionError::Slow)));
    }
}
