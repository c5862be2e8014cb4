//! What a process says about itself and others to the kernel in plain numbers.

use crate::model::SignalAction;
use nix::errno::Errno;

/// `rt_sigaction`, the kernel's own: also for the signals that the C library keeps for itself, and with the saved
/// process's addresses.
pub(crate) fn set_action(signal: i32, action: &SignalAction) -> Result<(), Errno> {
    let layout = [action.handler, action.flags, action.restorer, action.mask];
    // SAFETY: the kernel's `struct sigaction` is these four numbers, read only. The handler may not exist in this
    // process: the caller has blocked every signal, and becomes the process in which it does.
    let rc = unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, layout.as_ptr(), std::ptr::null::<u8>(), 8usize)
    };
    Errno::result(rc).map(drop)
}

/// The kernel's signal mask of this thread, without the C library's exceptions.
pub(crate) fn set_mask(mask: u64) -> Result<(), Errno> {
    // SAFETY: the mask is eight bytes, as is said.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null::<u8>(),
            8usize,
        )
    };
    Errno::result(rc).map(drop)
}

/// `prctl` with plain numbers.
pub(crate) fn prctl(option: i32, value: u64) -> Result<i32, Errno> {
    // SAFETY: the callers name options that take numbers.
    Errno::result(unsafe { libc::prctl(option, value, 0u64, 0u64, 0u64) })
}

/// PR_SET_THP_DISABLE, for all memory or for all that does not ask for them.
pub(crate) fn disable_huge_pages(unless_advised: bool) -> Result<(), Errno> {
    let flags = if unless_advised { 2u64 } else { 0 };
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1u64, flags, 0u64, 0u64) }).map(drop)
}

/// Soft and hard limit of another process.
pub(crate) fn set_limit(pid: i32, resource: u32, limit: [u64; 2]) -> Result<(), Errno> {
    let new = libc::rlimit { rlim_cur: limit[0], rlim_max: limit[1] };
    // SAFETY: the limit is read only, the old one not asked for.
    Errno::result(unsafe { libc::prlimit(pid, resource, &raw const new, std::ptr::null_mut()) }).map(drop)
}

/// On which processors a thread may run; 64 a word.
pub(crate) fn set_affinity(tid: i32, words: &[u64]) -> Result<(), Errno> {
    // SAFETY: the words are as many as said, read only.
    let rc = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(words), words.as_ptr()) };
    Errno::result(rc).map(drop)
}

/// The scheduling policy and its priority.
pub(crate) fn set_policy(tid: i32, policy: i32, priority: i32) -> Result<(), Errno> {
    // SAFETY: `sched_param` is one number; the rest of it is unused on Linux.
    let rc = unsafe { libc::syscall(libc::SYS_sched_setscheduler, tid, policy, &raw const priority) };
    Errno::result(rc).map(drop)
}

/// The nice value of a thread.
pub(crate) fn set_nice(tid: i32, nice: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let rc = unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid, nice) };
    Errno::result(rc).map(drop)
}

/// The nice value of a thread.
pub(crate) fn nice(tid: i32) -> Option<i32> {
    // SAFETY: plain numbers. The kernel's own call answers with 20 minus the value.
    let rc = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) };
    i32::try_from(Errno::result(rc).ok()?).ok().map(|n| 20 - n)
}

/// The effective uid and gid of this thread, of no other.
pub(crate) fn set_effective([uid, gid]: [u32; 2]) -> Result<(), Errno> {
    let same = -1_i64;
    // Back to root the uid comes first: it takes a privilege to change the other.
    let calls = [(libc::SYS_setresgid, gid), (libc::SYS_setresuid, uid)];
    let order = if uid == 0 { [1, 0] } else { [0, 1] };
    for (call, id) in order.into_iter().filter_map(|at: usize| calls.get(at)) {
        // SAFETY: plain numbers.
        Errno::result(unsafe { libc::syscall(*call, same, i64::from(*id), same) })?;
    }
    Ok(())
}

/// By how many nanoseconds a thread's timers may be late. Only privilege over its user namespace is told.
pub(crate) fn slack(tid: i32) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).ok()?.trim().parse().ok()
}

/// Sets it.
pub(crate) fn set_slack(tid: i32, slack: u64) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{tid}/timerslack_ns"), slack.to_string())
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// Class and level with which a thread's input and output is done, as the kernel writes it.
pub(crate) fn io_priority(tid: i32) -> Result<i32, Errno> {
    // SAFETY: plain numbers.
    let answer = Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) })?;
    i32::try_from(answer).map_err(|_| Errno::EINVAL)
}

/// Sets it.
pub(crate) fn set_io_priority(tid: i32, priority: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, priority) };
    Errno::result(answer).map(drop)
}

/// Ends this process without running anything of the C library.
pub(crate) fn end(status: i32) -> ! {
    // SAFETY: a plain number; the call does not return.
    unsafe { libc::_exit(status) }
}

/// Waits until a child has ended, and leaves it to be waited for.
pub(crate) fn wait_ended(pid: i32) -> Result<(), Errno> {
    loop {
        // SAFETY: siginfo_t is plain data for which all zeroes is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
        let id = u32::try_from(pid).map_err(|_| Errno::EINVAL)?;
        // SAFETY: room for the answer.
        match Errno::result(unsafe { libc::waitid(libc::P_PID, id, &raw mut info, flags) }) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Sleeps for ever: whoever traces this process continues it elsewhere. Not for a time: the kernel would remember the rest
/// of it, in this thread and in those that it makes, and `restart_syscall` would sleep through it.
pub(crate) fn rest() -> ! {
    loop {
        // SAFETY: it only waits.
        unsafe { libc::pause() };
    }
}
