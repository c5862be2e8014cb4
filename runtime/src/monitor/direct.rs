//! A foreground command without an engine and without an init: the container's first process becomes the
//! application, this process waits for it and passes signals on.

use crate::error::{Error, Result};
use crate::image::attach::Held;
use crate::launch::protocol::{Ending, Order};
use crate::launch::start;
use crate::monitor::order::MonitorOrder;
use crate::monitor::place::mount_point;
use crate::monitor::serve;
use crate::sys::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use std::os::fd::AsFd;
use std::time::Duration;

/// Sent by the kernel, to the whole process group of a terminal: the application got it as well.
const SI_KERNEL: i32 = 0x80;

/// Runs it to its end. Returns the exit code.
///
/// # Errors
/// Why it was not started.
pub fn run(order: &MonitorOrder, image: Option<Held>) -> Result<i32> {
    let signals = serve::signals(true)?;
    let order = Order {
        spec: order.spec.clone(),
        mount_point: mount_point(&order.runtime_dir)?,
        logs: None,
        fed: false,
        size: None,
    };
    let container = start::start(&order, image.as_ref().and_then(Held::mount))?;
    container.stand(false, Duration::from_secs(60))?;
    loop {
        let mut watched = [
            PollFd::new(container.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::new("cannot wait for the application").because(e.desc())),
        }
        let ended = watched[0].any().unwrap_or(false);
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if info.ssi_code != SI_KERNEL && number != libc::SIGWINCH {
                // It may have ended this very moment.
                let _ = process::signal(container.pidfd.as_fd(), number);
            }
        }
        if ended {
            break;
        }
    }
    let ended = waitpid(nix::unistd::Pid::from_raw(container.pid), None);
    // Processes that the application left behind hold it on.
    drop(image);
    let ending = match ended {
        Ok(WaitStatus::Exited(_, code)) => Ending::Exit(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ending::Signal(signal as i32),
        _ => return Err(Error::new("the application's end was missed")),
    };
    Ok(ending.code())
}
