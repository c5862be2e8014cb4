//! Inotify instances, whose watches get their old numbers.

use super::{Made, Tried, Trouble};
use crate::model::{Image, Kind, Watched};
use crate::sys::{fd, inotify, process};
use nix::errno::Errno;
use stasis_plugin_api::prelude::*;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// IN_DELETE_SELF, of something that nobody can delete.
const NOTHING: u32 = 0x400;

/// One of them. The kernel numbers watches one after the other, and does not give a number again before all others: a
/// watch on something else takes each one that is left out.
pub(super) fn make(watches: &[Watched]) -> Tried<OwnedFd> {
    let made = inotify::instance()?;
    let other = fd::memfd(c"nothing", libc::MFD_CLOEXEC)?;
    let other = PathBuf::from(format!("/proc/self/fd/{}", other.as_raw_fd()));
    let mut next = 1;
    for watch in watches {
        while next < watch.wd {
            let number = inotify::watch(made.as_fd(), &other, NOTHING)?;
            inotify::forget(made.as_fd(), number)?;
            drain(&made)?;
            expected(number, next)?;
            next += 1;
        }
        let mask = watch.mask | inotify::DONT_FOLLOW;
        let number = inotify::watch(made.as_fd(), Path::new(&watch.path), mask)
            .map_err(|errno| Trouble::new(format!("{} cannot be watched: {}", watch.path, errno.desc())))?;
        expected(number, watch.wd)?;
        next += 1;
    }
    Ok(made)
}

fn expected(number: i32, wanted: i32) -> Tried<()> {
    if number == wanted {
        return Ok(());
    }
    Err(Trouble::new(format!("a watch has to have the number {wanted}, and the kernel gives {number}"))
        .help("two names may be one file now; put them back as they were, or take another generation"))
}

/// Takes the events that wait, which the engine made itself.
fn drain(instance: &OwnedFd) -> std::result::Result<(), Errno> {
    let mut events = [0; 4096];
    while process::bytes_waiting(instance)? > 0 {
        nix::unistd::read(instance, &mut events)?;
    }
    Ok(())
}

/// Before anybody runs: what the engine did on its way is no news.
pub(in crate::restore) fn quiet(image: &Image, made: &Made) -> Result<()> {
    for (object, parked) in image.objects.iter().zip(&made.objects) {
        if let (Kind::Inotify { .. }, Some(parked)) = (&object.kind, parked) {
            drain(parked)
                .map_err(|e| BackendError::failed("cannot empty an inotify instance").because(e.desc()))?;
        }
    }
    Ok(())
}
