//! A process by descriptor, and the taking of copies of its descriptors.

use nix::errno::Errno;
use std::os::fd::{AsRawFd as _, OwnedFd};

pub(crate) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    super::process::owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A descriptor of ours for the open file description behind `fd` of that process.
pub(crate) fn copy(process: &OwnedFd, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    super::process::owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}
