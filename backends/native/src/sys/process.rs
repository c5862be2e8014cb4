//! The engine's own process and small questions about others.

use nix::errno::Errno;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

type Result<T> = std::result::Result<T, Errno>;

static END: AtomicBool = AtomicBool::new(false);

extern "C" fn on_end(_: libc::c_int) {
    END.store(true, Ordering::Relaxed);
}

extern "C" fn on_tick(_: libc::c_int) {}

/// Whether somebody asked the engine to end, by SIGTERM, SIGINT or SIGHUP.
pub(crate) fn asked_to_end() -> bool {
    END.load(Ordering::Relaxed)
}

/// Requests to end are noticed at the next step instead of killing; waits that last are looked at.
pub(crate) fn interruptible() -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        handle(signal, on_end)?;
    }
    ticking(Duration::from_millis(50))
}

/// A tick so often interrupts whatever waits; none at all when it is zero.
pub(crate) fn ticking(every: Duration) -> Result<()> {
    handle(libc::SIGALRM, on_tick)?;
    let tv_sec = i64::try_from(every.as_secs()).map_err(|_| Errno::EINVAL)?;
    let every = libc::timeval { tv_sec, tv_usec: every.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the timer lives through the call.
    Errno::result(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) })?;
    Ok(())
}

/// A call that is made again when a tick interrupted it.
pub(crate) fn again<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) if !asked_to_end() => {}
            other => return other,
        }
    }
}

fn handle(signal: i32, handler: extern "C" fn(libc::c_int)) -> Result<()> {
    // SAFETY: all zero is a valid sigaction: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: the handlers only store to an atomic.
    Errno::result(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }).map(drop)
}

pub(crate) fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: a signal to another process.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// A signal for one thread.
pub(crate) fn kill_thread(pid: i32, tid: i32, signal: i32) -> Result<()> {
    // SAFETY: a signal to another thread.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// Head and length of a thread's robust list.
pub(crate) fn robust_list(tid: i32) -> Result<[u64; 2]> {
    let mut list = [0_u64; 2];
    let [head, length] = &mut list;
    // SAFETY: both words live through the call.
    let answer = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut *head, &raw mut *length) };
    Errno::result(answer)?;
    Ok(list)
}

/// The processor on which this thread runs.
pub(crate) fn processor() -> Option<usize> {
    // SAFETY: it only answers.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// The processors that a thread may run on.
pub(crate) fn affinity(tid: i32) -> Result<Vec<u64>> {
    let mut words = vec![0_u64; 128];
    // SAFETY: the kernel writes at most the given number of bytes.
    let answer =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, words.len() * 8, words.as_mut_ptr()) };
    let bytes = Errno::result(answer)?;
    words.truncate(usize::try_from(bytes).unwrap_or(0).div_ceil(8));
    Ok(words)
}

/// Soft and hard limits 0 to 15 of a process.
pub(crate) fn limits(pid: i32) -> Result<Vec<[u64; 2]>> {
    let mut all = Vec::new();
    for resource in 0..16_u32 {
        let mut limit = [0_u64; 2];
        let none = std::ptr::null::<u64>();
        // SAFETY: the old limit is two words.
        let answer = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, none, limit.as_mut_ptr()) };
        Errno::result(answer)?;
        all.push(limit);
    }
    Ok(all)
}

/// As much memory, descriptors, processes and signals as are allowed: for what this process does in the memory of others,
/// where its own limits count, and for processes that it makes until they get theirs.
pub(crate) fn take_what_is_allowed() {
    let resources = [
        libc::RLIMIT_AS,
        libc::RLIMIT_DATA,
        libc::RLIMIT_MEMLOCK,
        libc::RLIMIT_NOFILE,
        libc::RLIMIT_NPROC,
        libc::RLIMIT_SIGPENDING,
        libc::RLIMIT_STACK,
    ];
    let limits = limits(0).unwrap_or_default();
    for resource in resources {
        let hard = limits.get(resource as usize).filter(|[soft, hard]| soft != hard).map(|[_, hard]| *hard);
        if let Some(hard) = hard {
            // What is too little then is told where it is met.
            let _ = super::task::set_limit(0, resource, [hard, hard]);
        }
    }
}

/// The scheduling policy and real-time priority of a thread.
pub(crate) fn scheduling(tid: i32) -> Result<(u32, i32)> {
    let mut parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure lives through the call.
    let policy = Errno::result(unsafe { libc::sched_getscheduler(tid) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::sched_getparam(tid, &raw mut parameters) })?;
    Ok((u32::try_from(policy).unwrap_or(0), parameters.sched_priority))
}

/// How many bytes wait in a pipe or a terminal.
pub(crate) fn bytes_waiting(fd: &OwnedFd) -> Result<usize> {
    use std::os::fd::AsRawFd as _;
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// `fcntl` without or with an int.
pub(crate) fn fcntl(fd: &OwnedFd, command: i32, argument: i32) -> Result<i32> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: only commands that take an int or nothing are used.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) })
}

/// Kind and id of the owner of a descriptor's signals, as F_GETOWN_EX tells it.
pub(crate) fn owner(fd: &OwnedFd) -> Result<[i32; 2]> {
    use std::os::fd::AsRawFd as _;
    let mut owner = [0_i32; 2];
    // SAFETY: F_GETOWN_EX writes two ints.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), 16, owner.as_mut_ptr()) })?;
    Ok(owner)
}

/// An ioctl that fills a buffer.
pub(crate) fn ioctl_read<const N: usize>(fd: &OwnedFd, request: u64) -> Result<[u8; N]> {
    use std::os::fd::AsRawFd as _;
    let mut buffer = [0_u8; N];
    // SAFETY: callers give the size that the request writes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, buffer.as_mut_ptr()) })?;
    Ok(buffer)
}

/// A descriptor number that a system call just returned.
pub(crate) fn owned(answer: i64) -> Result<OwnedFd> {
    let fd = Errno::result(answer)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Copies what waits in a pipe into another one without taking it.
pub(crate) fn tee(from: &OwnedFd, to: &OwnedFd, length: usize) -> Result<usize> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: plain numbers.
    let answer = unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), length, libc::SPLICE_F_NONBLOCK) };
    Errno::result(answer).map(|n| usize::try_from(n).unwrap_or(0))
}
