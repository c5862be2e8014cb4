//! A foreground command without an engine and without an init: this process itself becomes the application. There
//! is nobody in between, so signals, the terminal and the exit status are the application's own. Only where a process
//! of ours serves the image, or the image is to stay in the cache, is this one its parent, and stays: the application
//! must not have a child that it did not start, nor a descriptor that it did not open.

use crate::error::{Error, Result};
use crate::image::attach::Held;
use crate::init::app;
use crate::init::children::Telling;
use crate::launch::protocol::{Ending, Ground, Order};
use crate::launch::start;
use crate::monitor::order::MonitorOrder;
use crate::monitor::place::mount_point;
use crate::monitor::serve;
use crate::sys::process::{self, Forked};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};

/// Sent by the kernel, to the whole process group of a terminal: the application got it as well.
const SI_KERNEL: i32 = 0x80;

/// Becomes the application, or runs it to its end and returns the exit code. The caller has one thread; `holds` where
/// it holds something as long as the application runs.
///
/// # Errors
/// Why it was not started.
pub fn run(order: MonitorOrder, image: Option<Held>, holds: bool) -> Result<i32> {
    let ground = Ground::of(&order.spec, false, false, mount_point(&order.runtime_dir)?);
    let mut order = Order { spec: order.spec, logs: None, fed: false, size: None };
    if holds || image.as_ref().is_some_and(Held::is_served) {
        // Whoever kills this process means the application, which is this process in all other cases.
        order.spec.process.ends_with_parent = true;
        return beside(&order, &ground, image);
    }
    Err(start::become_application(&order, &ground, image.as_ref().and_then(Held::mount)))
}

fn beside(order: &Order, ground: &Ground, image: Option<Held>) -> Result<i32> {
    let signals = serve::signals(true)?;
    let telling = Telling::new()?;
    let parent = nix::unistd::getpid();
    let forked = process::clone_into(CloneFlags::empty())
        .map_err(|e| Error::new("cannot start the application").because(e.desc()))?;
    let (pid, pidfd) = match forked {
        Forked::Child => {
            // First of all: who ends while the container is made takes it along, too.
            if let Err(error) = app::tied(|| process::end_with(parent)) {
                telling.fail(&error);
            }
            telling.fail(&start::become_application(order, ground, image.as_ref().and_then(Held::mount)))
        }
        Forked::Parent(pid, pidfd) => (pid, pidfd),
    };
    telling.wait()?;
    let ended = follow(pid, &pidfd, &signals);
    // Processes that the application left behind hold it on.
    drop(image);
    ended
}

/// Waits for its end and passes signals on.
fn follow(pid: Pid, pidfd: &OwnedFd, signals: &nix::sys::signalfd::SignalFd) -> Result<i32> {
    loop {
        let mut watched =
            [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::new("cannot wait for the application").because(e.desc())),
        }
        let ended = watched[0].any().unwrap_or(false);
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if info.ssi_code != SI_KERNEL && number != libc::SIGWINCH {
                // It may have ended this very moment.
                let _ = process::signal(pidfd.as_fd(), number);
            }
        }
        if ended {
            break;
        }
    }
    let ending = match waitpid(pid, None) {
        Ok(WaitStatus::Exited(_, code)) => Ending::Exit(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ending::Signal(signal as i32),
        _ => return Err(Error::new("the application's end was missed")),
    };
    Ok(ending.code())
}
