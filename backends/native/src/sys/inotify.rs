//! Inotify instances and their watches, and files by their handles.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Does not follow a link.
pub(crate) const DONT_FOLLOW: u32 = 0x0200_0000;

pub(crate) fn instance() -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    super::process::owned(unsafe { libc::syscall(libc::SYS_inotify_init1, libc::IN_CLOEXEC) })
}

/// The number of the new watch.
pub(crate) fn watch(instance: BorrowedFd<'_>, path: &Path, mask: u32) -> Result<i32, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the path is a string that lives through the call.
    Errno::result(unsafe { libc::inotify_add_watch(instance.as_raw_fd(), path.as_ptr(), mask) })
}

pub(crate) fn forget(instance: BorrowedFd<'_>, wd: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::inotify_rm_watch(instance.as_raw_fd(), wd) }).map(drop)
}

/// A descriptor that stands for a place and opens nothing.
pub(crate) fn only_path(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// What a handle stands for, on the file system of `mount`.
pub(crate) fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> Result<OwnedFd, Errno> {
    let length = u32::try_from(handle.len()).map_err(|_| Errno::EINVAL)?;
    let bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes()[..], handle].concat();
    let flags = libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `struct file_handle` is length, kind and so many bytes, read only.
    super::process::owned(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), bytes.as_ptr(), flags)
    })
}
