//! Descriptors at chosen numbers.

use super::process::{again, owned};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Takes over a descriptor that this process was started with. `EBADF` where it is not open.
pub(crate) fn inherited(number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: a plain number, which is only looked at.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and whoever started this process has put it there for it: nothing here has made it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The same description under the lowest free number from `from` on, closed at an exec.
pub(crate) fn lift(fd: BorrowedFd<'_>, from: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers; the descriptor is open as long as it is borrowed.
    let number = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, from) })?;
    // SAFETY: it was made just now and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Puts a copy at a number of this process, over whatever was there. Only for a process that is about to become
/// another: values that own the number do not know of it.
pub(crate) fn place(fd: BorrowedFd<'_>, number: i32, cloexec: bool) -> Result<(), Errno> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: plain numbers; the descriptor is open as long as it is borrowed.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), number, flags) }).map(drop)
}

/// Closes all numbers of a range; the same caution.
pub(crate) fn close_range(first: i32, last: u32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(rc).map(drop)
}

/// An ioctl whose argument is a value or a pointer to plain bytes.
pub(crate) fn ioctl_bytes(fd: BorrowedFd<'_>, request: u64, bytes: &mut [u8]) -> Result<i32, Errno> {
    // SAFETY: the callers name requests whose size is at most that of the buffer.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, bytes.as_mut_ptr()) })
}

/// An ioctl with a plain number.
pub(crate) fn ioctl_number(fd: BorrowedFd<'_>, request: u64, number: i64) -> Result<i32, Errno> {
    // SAFETY: plain numbers; the callers name requests that take one.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, number) })
}

/// An fcntl with a plain number.
pub(crate) fn fcntl_number(fd: BorrowedFd<'_>, command: i32, number: i64) -> Result<i32, Errno> {
    // SAFETY: plain numbers; the callers name commands that take one.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, number) })
}

/// Who gets the signals of a descriptor (F_SETOWN_EX): 0 thread, 1 process, 2 group.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, kind: i32, id: i32) -> Result<(), Errno> {
    let owner = [kind, id];
    // SAFETY: `struct f_owner_ex` is two ints, read only.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), 15, owner.as_ptr()) }).map(drop)
}

/// `memfd_create`.
pub(crate) fn memfd(name: &std::ffi::CStr, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the name is a string that lives during the call.
    owned(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) })
}

/// `eventfd2`.
pub(crate) fn eventfd(count: u32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_eventfd2, count, flags) })
}

/// `epoll_create1`.
pub(crate) fn epoll() -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_epoll_create1, libc::EPOLL_CLOEXEC) })
}

/// `timerfd_create`.
pub(crate) fn timerfd(clock: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_timerfd_create, clock, flags) })
}

/// `timerfd_settime` with nanoseconds.
pub(crate) fn set_timer(fd: BorrowedFd<'_>, flags: i32, value: u64, interval: u64) -> Result<(), Errno> {
    let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
    let spec = [split(interval), split(value)];
    // SAFETY: `struct itimerspec` is four 64-bit numbers, read only; the old value is not asked for.
    let rc = unsafe {
        libc::syscall(libc::SYS_timerfd_settime, fd.as_raw_fd(), flags, spec.as_ptr(), std::ptr::null::<u8>())
    };
    Errno::result(rc).map(drop)
}

/// `signalfd4` with a new descriptor.
pub(crate) fn signalfd(mask: u64, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the mask is eight bytes, as is said.
    owned(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8usize, flags) })
}

/// `socket`, with any numbers.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_socket, family, kind, protocol) })
}

/// `socketpair` of unix sockets.
pub(crate) fn socketpair(kind: i32) -> Result<[OwnedFd; 2], Errno> {
    let mut pair = [0i32; 2];
    // SAFETY: room for two descriptors.
    let rc = unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) };
    Errno::result(rc)?;
    // SAFETY: the kernel made both just now and nobody else knows them.
    Ok(pair.map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}

/// `bind` or `connect` with an address in the kernel's own layout.
pub(crate) fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = u32::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the address is as long as said; the kernel checks its content.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), length) };
    Errno::result(rc).map(drop)
}

/// See [`bind`].
pub(crate) fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = u32::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: as above.
    again(|| Errno::result(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), length) }))
        .map(drop)
}

/// `listen`.
pub(crate) fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// `shutdown`.
pub(crate) fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// `setsockopt` with the value's bytes.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let length = u32::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the value is as long as said.
    let rc = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Errno::result(rc).map(drop)
}

/// One message that is not waited for.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are as many as said.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    Errno::result(sent).map(|n| n as usize)
}

/// `accept4` of one connection, its peer's address not asked for.
pub(crate) fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let none = std::ptr::null::<u8>();
    again(|| {
        // SAFETY: no address is asked for.
        owned(unsafe { libc::syscall(libc::SYS_accept4, fd.as_raw_fd(), none, none, libc::SOCK_CLOEXEC) })
    })
}

/// What poll answers at once; errors and hang-ups are told unasked. Nothing is taken by it.
pub(crate) fn ready(fd: BorrowedFd<'_>, asked: PollFlags) -> Result<PollFlags, Errno> {
    let mut entries = [PollFd::new(fd, asked)];
    // A signal is told before the answer, although nobody waits.
    again(|| poll(&mut entries, PollTimeout::ZERO))?;
    let [entry] = entries;
    Ok(entry.revents().unwrap_or(PollFlags::empty()))
}

/// `flock` that is not waited for.
pub(crate) fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> Result<(), Errno> {
    let what = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), what | libc::LOCK_NB) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{process, task};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    /// In a process of its own, as the tick of a capture is for its only thread.
    #[test]
    fn a_tick_is_no_answer() {
        // SAFETY: the copy only makes system calls.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            task::end(i32::from(!answers_while_it_ticks()));
        }
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(copy), None).unwrap();
        assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
    }

    fn answers_while_it_ticks() -> bool {
        let Ok([one, _other]) = socketpair(libc::SOCK_STREAM) else { return false };
        process::ticking(Duration::from_micros(20)).is_ok()
            && (0..20_000).all(|_| ready(one.as_fd(), PollFlags::POLLIN) == Ok(PollFlags::empty()))
    }
}
