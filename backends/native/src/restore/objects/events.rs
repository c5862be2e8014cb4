//! Counters, timers, signal descriptors and epoll instances.

use super::{Made, Tried};
use crate::model::{Image, Kind, Object};
use crate::sys::fd;
use nix::errno::Errno;
use stasis_plugin_api::prelude::*;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};

/// `TFD_IOC_SET_TICKS`.
const SET_TICKS: u64 = 0x4008_5400;
/// `TFD_TIMER_ABSTIME` and `TFD_TIMER_CANCEL_ON_SET`.
const ABSOLUTE_OR_TOLD: u32 = 3;

/// One of them, a timer unarmed, an epoll instance without watches.
pub(super) fn make(object: &Object) -> Tried<OwnedFd> {
    Ok(match &object.kind {
        Kind::Event { count, semaphore } => {
            let flags = if *semaphore { libc::EFD_SEMAPHORE } else { 0 };
            let file = File::from(fd::eventfd(0, flags | libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?);
            if *count > 0 {
                (&file).write_all(&count.to_ne_bytes())?;
            }
            let made = OwnedFd::from(file);
            fd::fcntl_number(made.as_fd(), libc::F_SETFL, 0)?;
            made
        }
        Kind::Epoll { .. } => fd::epoll()?,
        Kind::Timer { clock, .. } => fd::timerfd(*clock, libc::TFD_CLOEXEC)?,
        Kind::Signal { mask } => fd::signalfd(*mask, libc::SFD_CLOEXEC)?,
        _ => return Err(Errno::EINVAL.into()),
    })
}

/// Starts the timers: the last thing that is done before the processes run.
pub(in crate::restore) fn arm(image: &Image, made: &Made) -> Result<()> {
    for (object, parked) in image.objects.iter().zip(&made.objects) {
        let (Kind::Timer { settime, ticks, value, interval, until, .. }, Some(parked)) =
            (&object.kind, parked)
        else {
            continue;
        };
        let failed = |e: Errno| BackendError::failed("cannot start a timer").because(e.desc());
        // A periodic timer that was just about to fire says 0, which would stop it.
        let first = if *value == 0 && *interval > 0 { 1 } else { *value };
        if let Some(until) = until {
            // Also whether it is to be told when somebody sets the clock.
            let flags = (settime & ABSOLUTE_OR_TOLD) as i32;
            fd::set_timer(parked.as_fd(), flags, *until, *interval).map_err(failed)?;
        } else if first > 0 {
            fd::set_timer(parked.as_fd(), 0, first, *interval).map_err(failed)?;
        }
        if *ticks > 0 {
            fd::ioctl_bytes(parked.as_fd(), SET_TICKS, &mut ticks.to_ne_bytes()).map_err(failed)?;
        }
    }
    Ok(())
}
