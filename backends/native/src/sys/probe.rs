//! Kernel interfaces, tried on this process itself.

use super::pidfd;
use nix::errno::Errno;
use std::os::fd::AsRawFd;

/// Taking a descriptor of a process that one may trace.
pub(crate) fn pidfd_getfd() -> Result<(), Errno> {
    let pid = i32::try_from(std::process::id()).map_err(|_| Errno::EINVAL)?;
    let process = pidfd::open(pid)?;
    pidfd::copy(&process, process.as_raw_fd()).map(drop)
}

/// Telling whether two descriptors are one description.
pub(crate) fn kcmp() -> Result<(), Errno> {
    let pid = std::process::id();
    // SAFETY: plain numbers; KCMP_VM (1) takes no descriptors.
    Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, 1, 0, 0) }).map(drop)
}

/// Finding the pages that are there without reading a word for each.
pub(crate) fn pagemap_scan() -> Result<(), Errno> {
    let pagemap = std::fs::File::open("/proc/self/pagemap").map_err(|_| Errno::ENOENT)?;
    let here = &raw const pagemap as u64 & !4095;
    let mut regions = [0u64; 3];
    // struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any, return.
    let vec = regions.as_mut_ptr() as u64;
    let mut argument = [96, 0, here, here + 4096, 0, vec, 1, 0, 0, 0, 8, 8];
    // SAFETY: the argument has the layout and the size that it says, and room for the one region that it allows.
    Errno::result(unsafe { libc::ioctl(pagemap.as_raw_fd(), super::pagemap::SCAN, argument.as_mut_ptr()) })
        .map(drop)
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
