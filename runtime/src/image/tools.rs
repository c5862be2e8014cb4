//! Programs of the host that make and take apart file systems: found, watched, ended on a signal, and their
//! failures put into words.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

use super::tree::room;
use crate::error::{Error, Result};
use crate::sys::{fd, process, signal};

/// Told how much is done, and of how much where that is known.
pub type Watched<'a> = &'a dyn Fn(u64, u64);

/// Where administrators' tools are when the caller's PATH lacks them.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/bin"];
/// The last words of a tool.
const TAIL: usize = 4096;
/// How often progress is looked at.
const TICK: u16 = 200;
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Where a program is.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    process::find_program(name, &PLACES)
}

/// A program of the host, or the package that brings it.
///
/// # Errors
/// It is missing.
pub fn program(name: &str, package: &str) -> Result<Command> {
    let found = find(name).ok_or_else(|| {
        Error::new(format!("the program {name} is missing here"))
            .help(format!("install the package {package}"))
    })?;
    let mut command = Command::new(found);
    command.env("LC_ALL", "C").env_remove("SOURCE_DATE_EPOCH");
    Ok(command)
}

/// Runs it to its end; it writes to `place`. `tick` is told its pid from time to time. It finds `files` as descriptors
/// from 3 on.
///
/// # Errors
/// `what`, with the reason and the program's last words; also when a signal told us to stop.
pub fn run(
    mut command: Command,
    files: &[BorrowedFd<'_>],
    (what, place): (&str, &Path),
    accepted: &[i32],
    tick: &mut dyn FnMut(u32),
) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |e: io::Error| Error::new(what).because(format!("{name} cannot be run: {e}"));
    let (read, write) = fd::pipe().map_err(failed)?;
    fd::set_nonblocking(read.as_fd(), true).map_err(failed)?;
    let copy = write.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(Stdio::from(write)).stderr(Stdio::from(copy));
    let before = SigSet::thread_get_mask().map_err(|e| failed(e.into()))?;
    let signals = signal::descriptor(&ENDING).map_err(|e| failed(e.into()))?;
    let started =
        process::spawn_tool(&mut command, &files.iter().copied().zip(3..).collect::<Vec<_>>(), true);
    // It holds the other end of the pipe.
    drop(command);
    let outcome = started.map_err(failed).and_then(|mut child| {
        let watched = watch(read, &signals, || tick(child.id()));
        let (said, interrupted) = match watched {
            Ok((said, false)) => (said, false),
            other => {
                // It may have ended by itself meanwhile.
                let _ = child.kill();
                (other.map_err(failed)?.0, true)
            }
        };
        let status = child.wait().map_err(failed)?;
        match status.code() {
            _ if interrupted => Err(Error::new(what).because("it was interrupted").code(130)),
            Some(code) if code == 0 || accepted.contains(&code) => Ok(()),
            _ => Err(in_words((what, place), &name, &status.to_string(), &said)),
        }
    });
    // What arrived meanwhile was for the tool; the rest of this process hears signals as before.
    let _ = before.thread_set_mask();
    outcome
}

/// Until the program closes its output. True when a signal came first.
fn watch(
    read: OwnedFd,
    signals: &nix::sys::signalfd::SignalFd,
    mut tick: impl FnMut(),
) -> io::Result<(String, bool)> {
    let mut output = std::fs::File::from(read);
    let mut tail: VecDeque<u8> = VecDeque::new();
    let text = |tail: &VecDeque<u8>| {
        let bytes: Vec<u8> = tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    loop {
        let mut ready =
            [PollFd::new(output.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(TICK)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if let Ok(Some(_)) = signals.read_signal() {
            return Ok((text(&tail), true));
        }
        let mut buffer = [0; 8192];
        match output.read(&mut buffer) {
            Ok(0) => return Ok((text(&tail), false)),
            Ok(count) => {
                tail.extend(buffer.get(..count).unwrap_or_default());
                tail.drain(..tail.len().saturating_sub(TAIL));
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => tick(),
            Err(e) => return Err(e),
        }
    }
}

fn in_words((what, place): (&str, &Path), name: &str, status: &str, said: &str) -> Error {
    let name = name.rsplit('/').next().unwrap_or(name);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(6)..).unwrap_or_default().join("\n");
    let error = Error::new(what).because(format!("{name} failed ({status})")).detail(last);
    if said.contains("No space left") || said.contains("quota") {
        error.because("the file system is full").help(room(place))
    } else if said.contains("Permission denied") || said.contains("Failed to read file") {
        error.help("you may not read all of it: take an image of your own, or do this as root")
    } else {
        error
    }
}
