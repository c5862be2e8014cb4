//! A terminal of which the test holds the other end: what is typed, what is shown, and how large it is.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

use crate::env::{Env, own};
use crate::running::{Outcome, PATIENCE};

/// A command whose standard streams and controlling terminal are a terminal of ours.
#[derive(Debug)]
pub(crate) struct Terminal {
    child: Child,
    leader: File,
    path: PathBuf,
    shown: Arc<Mutex<Vec<u8>>>,
    /// How the terminal was set before anything ran on it.
    pub(crate) initial: String,
}

impl Terminal {
    /// Starts one of our command lines on a terminal of 40 rows and 90 columns.
    pub(crate) fn start(env: &Env, words: &[&str]) -> Outcome<Self> {
        let size = Winsize { ws_row: 40, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", pair.slave.as_raw_fd()))?;
        own(&path, env.uid())?;
        let initial = settings(&path)?;
        let ours = env.command(words);
        let mut command = env.program("setsid");
        command.args(["--ctty", "--wait"]).arg(ours.get_program()).args(ours.get_args());
        let follower = File::from(pair.slave);
        command.stdin(Stdio::from(follower.try_clone()?)).stdout(Stdio::from(follower.try_clone()?));
        let child = command.stderr(Stdio::from(follower)).spawn()?;
        // The command holds duplicates of the follower, and the end of the terminal is seen only without them.
        drop(command);
        let leader = File::from(pair.master);
        let (shown, mut reader) = (Arc::new(Mutex::new(Vec::new())), leader.try_clone()?);
        let shared = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let read = buffer.get(..count).unwrap_or_default();
                shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(read);
            }
        });
        Ok(Self { child, leader, path, shown, initial })
    }

    /// Types.
    pub(crate) fn types(&mut self, text: &str) -> Outcome<()> {
        Ok(self.leader.write_all(text.as_bytes())?)
    }

    /// All that was shown so far.
    pub(crate) fn shown(&self) -> String {
        let bytes = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until `text` is shown.
    pub(crate) fn wait_for(&mut self, text: &str) -> Outcome<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown().contains(text) {
            let ended = self.child.try_wait()?;
            // What was written last may still be on its way when the end is known.
            std::thread::sleep(Duration::from_millis(if ended.is_some() { 100 } else { 5 }));
            if (ended.is_some() && !self.shown().contains(text)) || Instant::now() > deadline {
                return Err(format!("{text:?} was never shown ({ended:?}): {:?}", self.shown()).into());
            }
        }
        Ok(())
    }

    /// Changes the size, as dragging the corner of a window does.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Outcome<()> {
        let mut stty = Command::new("stty");
        stty.arg("-F").arg(&self.path).args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        if stty.status()?.success() { Ok(()) } else { Err("stty failed".into()) }
    }

    /// The exit code, and how the terminal is set after it.
    pub(crate) fn settings_at_end(mut self) -> Outcome<(i32, String)> {
        let code = self.ended()?;
        Ok((code, settings(&self.path)?))
    }

    /// The exit code.
    pub(crate) fn wait(mut self) -> Outcome<i32> {
        self.ended()
    }

    /// The exit code, and all that was shown.
    pub(crate) fn wait_with_all(mut self) -> Outcome<(i32, String)> {
        let code = self.ended()?;
        // What was written last may still be on its way when the end is known.
        std::thread::sleep(Duration::from_millis(100));
        Ok((code, self.shown()))
    }

    fn ended(&mut self) -> Outcome<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(status.code().unwrap_or(-1)),
                None if Instant::now() > deadline => {
                    return Err(format!("it does not end: {:?}", self.shown()).into());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a terminal is set, in stty's words.
fn settings(path: &Path) -> Outcome<String> {
    let out = Command::new("stty").arg("-F").arg(path).arg("-g").output()?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
