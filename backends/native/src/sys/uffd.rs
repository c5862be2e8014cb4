//! userfaultfd in its asynchronous write-protecting form (6.7): nobody waits for anybody, the kernel only remembers
//! which pages were written.

use super::fd;
use nix::errno::Errno;
use std::os::fd::{AsFd as _, OwnedFd};

/// Handles faults of user mode only, for which nobody needs a privilege.
const USER_MODE_ONLY: u64 = 1;
/// The flags of a `userfaultfd` call.
pub(crate) const FLAGS: u64 = USER_MODE_ONLY | libc::O_CLOEXEC as u64;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const API: u64 = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const REGISTER: u64 = 0xc020_aa00;
/// `UFFD_FEATURE_WP_ASYNC` and `UFFD_FEATURE_WP_UNPOPULATED`, without which the first is not given.
const FEATURES: u64 = 1 << 15 | 1 << 13;
const MODE_WRITE_PROTECT: u64 = 2;

fn call(uffd: &OwnedFd, request: u64, words: &[u64]) -> Result<(), Errno> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    fd::ioctl_bytes(uffd.as_fd(), request, &mut bytes).map(drop)
}

/// The first request, which says what is wanted of the kernel. EINVAL from one that lacks it.
pub(crate) fn agree(uffd: &OwnedFd) -> Result<(), Errno> {
    call(uffd, API, &[0xaa, FEATURES, 0])
}

/// Lets the kernel remember what is written to these addresses of the process that made the descriptor.
pub(crate) fn watch(uffd: &OwnedFd, start: u64, length: u64) -> Result<(), Errno> {
    call(uffd, REGISTER, &[start, length, MODE_WRITE_PROTECT, 0])
}
