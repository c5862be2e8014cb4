//! Descriptors: numbers that come from elsewhere, closing of all others, pipes.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// `EBADF` when it is not open. It is made close-on-exec.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is checked by the fcntl right below; the caller names a descriptor that was
    // handed over by the starting process and that nothing else in this process owns.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: as above: open, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A raw number that another owner keeps open during the call.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only used for the dup right below, which fails cleanly on a closed number.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fd.try_clone_to_owned()
}

/// Gives a descriptor away as a number; the receiver owns it.
pub fn give_away(fd: OwnedFd) -> RawFd {
    use std::os::fd::IntoRawFd;
    fd.into_raw_fd()
}

/// Closes every descriptor from `first` on. For a process about to exec.
pub fn close_from(first: RawFd) {
    close_range(first.unsigned_abs(), u32::MAX);
}

/// Closes every descriptor from `first` on but those of `keep`. For a process that was just forked, in which no owner
/// of the others runs again.
pub fn close_others<'a>(first: RawFd, keep: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut kept: Vec<u32> = keep.map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut from = first.unsigned_abs();
    for number in kept {
        if from < number {
            close_range(from, number - 1);
        }
        from = from.max(number + 1);
    }
    close_range(from, u32::MAX);
}

/// From the first to the last one.
fn close_range(first: u32, last: u32) {
    // SAFETY: no Rust owner of those descriptors runs again in this process: see the callers.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) } == 0 {
        return;
    }
    // Kernels before 5.9 have no close_range.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(1024, |(soft, _)| soft.min(65_536));
    for number in u64::from(first)..=u64::from(last).min(limit) {
        // SAFETY: as above.
        unsafe { libc::close(RawFd::try_from(number).unwrap_or(-1)) };
    }
}

/// Lets every descriptor from `first` on end with the next exec: what a shell left open belongs to it,
/// and engines fail over descriptors that come from elsewhere.
pub fn close_on_exec_from(first: RawFd) {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: plain numbers; no descriptor is closed now.
    if unsafe { libc::syscall(libc::SYS_close_range, first.unsigned_abs(), u32::MAX, CLOSE_RANGE_CLOEXEC) }
        == 0
    {
        return;
    }
    // Kernels before 5.11 do not know the flag.
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let number: Option<RawFd> = entry.file_name().to_str().and_then(|n| n.parse().ok());
        if let Some(number) = number.filter(|n| *n >= first) {
            // SAFETY: as above; a number that is closed meanwhile fails cleanly.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Puts `fd` at `number` without close-on-exec. For a child before its exec.
///
/// # Errors
/// What the kernel says.
pub fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    if fd.as_raw_fd() == number {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        return Ok(());
    }
    // SAFETY: dup2 takes plain numbers; the target's former owner does not run again (see callers).
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// Nothing in place of this process's standard streams, which belong to whoever waits for their end.
pub fn leave_streams() {
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else { return };
    for number in 0..3 {
        // A stream that cannot be replaced only keeps somebody waiting.
        let _ = place(null.as_fd(), number);
    }
}

/// Whether there is something to read, or the end of whoever held the other end; waits for neither.
#[must_use]
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// A copy of `fd` at 900 or above, out of the way of numbers that a child is given. Close-on-exec.
///
/// # Errors
/// What the kernel says.
pub fn lift(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(900))?;
    // SAFETY: fcntl just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A pipe: (read, write), close-on-exec.
///
/// # Errors
/// What the kernel says.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Sets or clears `O_NONBLOCK`.
///
/// # Errors
/// What the kernel says.
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{fork_with, reap};
    use std::os::fd::AsFd;

    #[test]
    fn others_are_closed_and_those_kept_are_not() {
        let files: Vec<OwnedFd> = (0..5).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        let open = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_GETFD).is_ok();
        let main = || {
            // The order in which they are told does not matter.
            close_others(3, [&files[3], &files[1]].into_iter().map(AsFd::as_fd));
            let left: Vec<bool> = files.iter().map(open).collect();
            i32::from(left == [false, true, false, true, false])
        };
        assert_eq!(reap(fork_with(&[], main).unwrap()).unwrap().code(), Some(1));
        assert!(files.iter().all(open));
    }
}
