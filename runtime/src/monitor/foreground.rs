//! The monitor of a foreground command: its terminal or its log files, and the signals that it gets.

use crate::error::Result;
use crate::launch::protocol::Target;
use crate::monitor::begin::Begun;
use crate::monitor::live::Live;
use crate::monitor::{Teller, capture, follow};
use crate::sys::terminal::{self, Raw};
use stasis_plugin_api::plan::StdioKind;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Sent by the kernel, to the whole process group of a terminal.
const SI_KERNEL: i32 = 0x80;

/// The command's own side.
pub struct Foreground {
    teller: Arc<dyn Teller + Send + Sync>,
    master: Option<OwnedFd>,
    raw: Option<Raw>,
    copying: Vec<JoinHandle<()>>,
    capture_on: Vec<i32>,
    same_group: bool,
}

impl Foreground {
    /// Connects the caller's streams.
    ///
    /// # Errors
    /// When the terminal cannot be made raw.
    pub fn new(begun: &mut Begun, teller: Arc<dyn Teller + Send + Sync>) -> Result<Self> {
        let order = begun.live.engine.as_ref().map(|e| &e.order);
        let mut foreground = Self {
            teller,
            master: begun.terminal.take(),
            raw: None,
            copying: Vec::new(),
            capture_on: order.map(|o| o.capture_on.clone()).unwrap_or_default(),
            same_group: begun.live.spec.stdio == StdioKind::Inherit,
        };
        if begun.live.spec.stdio == StdioKind::File
            && let Some(pipe) = foreground.master.take()
        {
            let mut into = File::from(pipe);
            // Ends with the process, or with the input; closing the pipe is what tells the application.
            std::thread::spawn(move || copy(&mut std::io::stdin().lock(), &mut into));
        }
        if let Some(master) = &foreground.master {
            let (raw, output) = relay(master)?;
            foreground.raw = raw;
            foreground.copying.push(output);
        } else if begun.live.spec.stdio == StdioKind::File
            && let Some(logs) = begun.live.logs.clone()
        {
            foreground.copying.extend(follow::follow(&begun.live, &logs.join("out.log"), std::io::stdout()));
            foreground.copying.extend(follow::follow(&begun.live, &logs.join("err.log"), std::io::stderr()));
        }
        Ok(foreground)
    }

    /// A signal that the command got.
    pub fn signal(&mut self, live: &Arc<Live>, number: i32, code: i32) {
        if number == libc::SIGWINCH {
            let size = terminal::size(std::io::stdin().as_fd());
            if let (Some(master), Some(size)) = (&self.master, size) {
                // A terminal that is gone has no size.
                let _ = terminal::set_size(master.as_fd(), size);
            }
            return;
        }
        if self.capture_on.contains(&number) {
            self.capture(live, number);
        } else if !(self.same_group && code == SI_KERNEL) {
            live.signal(Target::Application, number);
        }
    }

    /// Saves and ends with the code that means "run me again". When that fails the application gets
    /// the signal itself.
    fn capture(&self, live: &Arc<Live>, number: i32) {
        let (live, teller) = (Arc::clone(live), Arc::clone(&self.teller));
        std::thread::spawn(move || match capture::capture(&live, true, &[], &*teller) {
            Ok(saved) => teller.done(&format!(
                "Generation {} of checkpoint \"{}\" saved, run me again",
                saved.generation, saved.checkpoint
            )),
            Err(error) => {
                teller.note(&format!("nothing was saved: {error}"));
                live.signal(Target::Application, number);
            }
        });
    }

    /// Everything that was written has been shown when this returns.
    pub fn finish(self) {
        for thread in self.copying {
            let _ = thread.join();
        }
        drop(self.raw);
    }
}

/// Copies between the caller's terminal and the application's.
///
/// # Errors
/// When the terminal cannot be made raw.
pub fn relay(master: &OwnedFd) -> Result<(Option<Raw>, JoinHandle<()>)> {
    let broken = |e: std::io::Error| crate::error::Error::new("cannot connect the terminal").because(&e);
    let stdin = std::io::stdin();
    let raw = Raw::new(stdin.as_fd()).ok();
    let mut into = File::from(master.try_clone().map_err(broken)?);
    let mut from = File::from(master.try_clone().map_err(broken)?);
    // Ends with the process: a read from a terminal cannot be called back.
    std::thread::spawn(move || copy(&mut std::io::stdin().lock(), &mut into));
    let output = std::thread::spawn(move || copy(&mut from, &mut std::io::stdout()));
    Ok((raw, output))
}

/// Until the end of either side. A terminal without anybody on its other side reads as an error.
fn copy(from: &mut dyn Read, to: &mut dyn Write) {
    let mut part = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut part) {
        if to.write_all(&part[..n]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}
