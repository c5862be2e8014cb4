//! Signals: resetting what a child inherits, reading them from a descriptor.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Every signal to its default action and nothing blocked, then `ignored` ignored. For a child
/// before its exec: Rust's start-up has SIGPIPE ignored, and the caller may have had more.
pub fn reset(ignored: &[i32]) {
    for number in 1..=64 {
        if number == libc::SIGKILL || number == libc::SIGSTOP {
            continue;
        }
        let action = if ignored.contains(&number) { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: only the two predefined actions are set. Numbers 32 and 33 belong to libc, which
        // refuses them; they are default in a fresh process anyway.
        unsafe { libc::signal(number, action) };
    }
    // Cannot fail with a valid set.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Lets a signal have no effect in this process. Used for SIGPIPE and the like.
pub fn ignore(signal: Signal) {
    // SAFETY: a predefined action.
    unsafe { libc::signal(signal as i32, libc::SIG_IGN) };
}

/// Blocks `signals` in this thread and returns a descriptor that reads them.
///
/// # Errors
/// What the kernel says.
pub fn descriptor(signals: &[Signal]) -> Result<SignalFd, Errno> {
    let mut set = SigSet::empty();
    for signal in signals {
        set.add(*signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
