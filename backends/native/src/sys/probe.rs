//! Kernel interfaces, tried on this process itself.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Taking a descriptor of a process that one may trace.
pub(crate) fn pidfd_getfd() -> Result<(), Errno> {
    let pid = std::process::id();
    // SAFETY: plain numbers.
    let number = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel made it just now and nobody else knows it.
    let process = unsafe { OwnedFd::from_raw_fd(number as i32) };
    // SAFETY: plain numbers.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), process.as_raw_fd(), 0) };
    let copy = Errno::result(rc)?;
    // SAFETY: as above.
    drop(unsafe { OwnedFd::from_raw_fd(copy as i32) });
    Ok(())
}

/// Telling whether two descriptors are one description.
pub(crate) fn kcmp() -> Result<(), Errno> {
    let pid = std::process::id();
    // SAFETY: plain numbers; KCMP_VM (1) takes no descriptors.
    Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, 1, 0, 0) }).map(drop)
}

/// Finding the pages that are there without reading a word for each.
pub(crate) fn pagemap_scan() -> Result<(), Errno> {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    let pagemap = std::fs::File::open("/proc/self/pagemap").map_err(|_| Errno::ENOENT)?;
    let here = &raw const pagemap as u64 & !4095;
    let mut regions = [0u64; 3];
    // struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any, return.
    let vec = regions.as_mut_ptr() as u64;
    let mut argument = [96, 0, here, here + 4096, 0, vec, 1, 0, 0, 0, 8, 8];
    // SAFETY: the argument has the layout and the size that it says, and room for the one region that it allows.
    Errno::result(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, argument.as_mut_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_them() {
        pidfd_getfd().unwrap();
        kcmp().unwrap();
        // Since Linux 6.7.
        let _ = pagemap_scan();
    }
}
