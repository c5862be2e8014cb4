//! Runs a program of the host for a short while: clean environment, no input, bounded time and output, and nothing of
//! it is left afterwards.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{self, ErrorKind, PipeReader, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What is kept of a program's output.
const MOST_OUTPUT: usize = 64 << 10;
/// How long is waited between two looks whether a silent program has ended.
const LOOK: Duration = Duration::from_millis(2);

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Absent when it was killed because its time was over.
    pub status: Option<ExitStatus>,
    /// stdout and stderr together, invalid UTF-8 replaced.
    pub output: String,
}

impl Ended {
    pub(crate) fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

/// A command with nothing in its environment but the usual places of programs.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    command
}

/// The command of a list of words, the program first.
pub(crate) fn command_of(words: &[String]) -> Command {
    let (program, arguments) =
        words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let mut command = command(Path::new(program));
    command.args(arguments);
    command
}

/// Runs it in a process group of its own, which is killed in the end.
pub(crate) fn run(command: &mut Command, limit: Duration) -> io::Result<Ended> {
    run_with(command, limit, None)
}

/// The same with something as its standard input.
pub(crate) fn run_with(
    command: &mut Command,
    limit: Duration,
    input: Option<BorrowedFd<'_>>,
) -> io::Result<Ended> {
    let end = Instant::now() + limit;
    let (reader, mut child) = loop {
        let (reader, writer) = io::pipe()?;
        command.stdin(match input {
            Some(fd) => Stdio::from(fd.try_clone_to_owned()?),
            None => Stdio::null(),
        });
        command.stdout(writer.try_clone()?).stderr(writer).process_group(0);
        match command.spawn() {
            // Somebody is just installing it.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < end => {
                std::thread::sleep(LOOK);
            }
            other => break (reader, other?),
        }
    };
    // Otherwise the command itself would hold the pipe open.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let output = read(reader, end);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    // It stays a zombie for now, so that its number and that of its group remain its own.
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let has_ended = || !matches!(waitid(Id::Pid(pid), look), Ok(WaitStatus::StillAlive));
    let mut ended = has_ended();
    while !ended && output.is_ok() && Instant::now() < end {
        std::thread::sleep(LOOK);
        ended = has_ended();
    }
    // It may have children of its own.
    let _ = killpg(pid, Signal::SIGKILL);
    let status = child.wait()?;
    let status = Some(status).filter(|_| ended);
    Ok(Ended { status, output: String::from_utf8_lossy(&output?).into_owned() })
}

/// All that it prints until it closes its output or the time is over; what is too much is dropped.
fn read(mut reader: PipeReader, end: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(bytes);
        }
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        let mut wanted = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut chunk = [0; 4096];
        match reader.read(&mut chunk)? {
            0 => return Ok(bytes),
            n => bytes.extend_from_slice(&chunk[..n.min(MOST_OUTPUT - bytes.len())]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Ended {
        run(command(Path::new("/bin/sh")).args(["-c", script]), limit).unwrap()
    }

    #[test]
    fn output_status_and_a_clean_environment() {
        let ended =
            shell("echo out; echo err >&2; echo ${HOME-none} $LC_ALL; exit 3", Duration::from_secs(30));
        assert_eq!(ended.output, "out\nerr\nnone C\n");
        assert_eq!(ended.status.unwrap().code(), Some(3));
        assert!(!ended.succeeded());
        let ended = shell("head -c 200000 /dev/zero", Duration::from_secs(30));
        assert_eq!((ended.output.len(), ended.succeeded()), (MOST_OUTPUT, true));
        let missing = run(&mut command(Path::new("/nowhere/criu")), Duration::from_secs(30));
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let ended = shell("sleep 600 & echo $!; wait", Duration::from_millis(300));
        assert!(ended.status.is_none());
        let child = ended.output.trim().to_owned();
        // Its parent is gone as well: whoever adopted it may need a moment to reap it.
        let state = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        while state().contains(") S ") {
            std::thread::sleep(LOOK);
        }
        // Nor does one that closed its output and goes on.
        let ended = shell("exec >/dev/null 2>&1; sleep 600", Duration::from_millis(300));
        assert!(ended.status.is_none());
    }
}
