//! ptrace and the waiting that goes with it. Every function acts on one thread and nothing else.

use crate::model::{Registers, Rseq};
use nix::errno::Errno;
use std::time::Instant;

const TRACESYSGOOD: usize = 0x1;
const TRACECLONE: usize = 0x8;
const TRACEEXIT: usize = 0x40;
const EXITKILL: usize = 0x10_0000;
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PEEKSIGINFO: u32 = 0x4209;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;

/// Room for the extended state of any processor of today (AVX-512 3 KiB, AMX 11 KiB).
const XSTATE_ROOM: usize = 16384;

type Result<T> = std::result::Result<T, Errno>;

/// Why a thread stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At the entry or the exit of a system call.
    Call,
    /// By PTRACE_INTERRUPT, or by job control with this signal.
    Event(i32),
    /// It made a thread or a process.
    Birth,
    /// Before this signal is delivered.
    Signal(i32),
    /// It ended.
    Gone,
}

/// Counts what is done to a target, so that a test can kill the engine before any single step.
#[cfg(debug_assertions)]
pub(crate) mod steps {
    use std::sync::atomic::{AtomicI64, Ordering};

    static DONE: AtomicI64 = AtomicI64::new(0);
    static LAST: AtomicI64 = AtomicI64::new(-1);

    /// Ends the engine before this step.
    pub(crate) fn kill_at(step: i64) {
        LAST.store(step, Ordering::Relaxed);
    }

    pub(crate) fn done() -> i64 {
        DONE.load(Ordering::Relaxed)
    }

    pub(crate) fn count() {
        if DONE.fetch_add(1, Ordering::Relaxed) + 1 == LAST.load(Ordering::Relaxed) {
            // SAFETY: a signal to ourselves.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }
}

#[cfg(not(debug_assertions))]
pub(crate) mod steps {
    pub(crate) fn count() {}
}

fn request(what: u32, tid: i32, address: usize, data: usize) -> Result<i64> {
    steps::count();
    // SAFETY: callers pass addresses of buffers that live through the call and that the request fits into.
    let answer = unsafe { libc::ptrace(what, tid, address, data) };
    Errno::result(answer)
}

/// Attaches without stopping; births of threads will be told.
pub(crate) fn seize(tid: i32) -> Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, TRACESYSGOOD | TRACECLONE).map(drop)
}

/// From now the thread, and what it makes, dies with the engine.
pub(crate) fn die_with_the_engine(tid: i32) -> Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, TRACESYSGOOD | TRACECLONE | EXITKILL).map(drop)
}

/// From now the thread, which dies with the engine, stands still once more before it ends, also when it is killed.
pub(crate) fn stop_at_the_end(tid: i32) -> Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, TRACESYSGOOD | TRACEEXIT | EXITKILL).map(drop)
}

pub(crate) fn interrupt(tid: i32) -> Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Continues, delivering this signal when it is not 0.
pub(crate) fn resume(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT, tid, 0, usize::try_from(signal).unwrap_or(0)).map(drop)
}

/// Continues to the next entry or exit of a system call, delivering this signal when it is not 0.
pub(crate) fn resume_to_call(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, usize::try_from(signal).unwrap_or(0)).map(drop)
}

/// Lets it go; it runs on, with this signal when it is not 0.
pub(crate) fn detach(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, usize::try_from(signal).unwrap_or(0)).map(drop)
}

pub(crate) fn registers(tid: i32) -> Result<Registers> {
    let mut registers = Registers::default();
    let mut part = libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of::<Registers>() };
    request(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, (&raw mut part).addr())?;
    Ok(registers)
}

pub(crate) fn set_registers(tid: i32, registers: &Registers) -> Result<()> {
    let mut copy = *registers;
    let mut part = libc::iovec { iov_base: (&raw mut copy).cast(), iov_len: size_of::<Registers>() };
    request(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, (&raw mut part).addr()).map(drop)
}

/// FPU, SSE, AVX and so on, in the kernel's layout.
pub(crate) fn extended_state(tid: i32) -> Result<Vec<u8>> {
    let mut state = vec![0_u8; XSTATE_ROOM];
    let mut part = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut part).addr())?;
    state.truncate(part.iov_len);
    Ok(state)
}

pub(crate) fn set_extended_state(tid: i32, state: &[u8]) -> Result<()> {
    let mut copy = state.to_vec();
    let mut part = libc::iovec { iov_base: copy.as_mut_ptr().cast(), iov_len: copy.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut part).addr()).map(drop)
}

pub(crate) fn signal_mask(tid: i32) -> Result<u64> {
    let mut mask = 0_u64;
    request(GETSIGMASK, tid, 8, (&raw mut mask).addr())?;
    Ok(mask)
}

pub(crate) fn set_signal_mask(tid: i32, mask: u64) -> Result<()> {
    request(SETSIGMASK, tid, 8, (&raw const mask).addr()).map(drop)
}

/// The thread's rseq registration; all zero where it has none or the kernel (before 5.13) cannot tell.
pub(crate) fn rseq(tid: i32) -> Result<Rseq> {
    let mut words = [0_u32; 6];
    match request(GET_RSEQ_CONFIGURATION, tid, size_of_val(&words), words.as_mut_ptr().addr()) {
        Ok(_) | Err(Errno::EIO) => {}
        Err(error) => return Err(error),
    }
    let address = u64::from(words[0]) | (u64::from(words[1]) << 32);
    Ok(Rseq { address, size: words[2], signature: words[3], flags: words[4] })
}

/// Whether the thread's system calls may become signals. A kernel before 6.4 does not tell.
pub(crate) fn redirects(tid: i32) -> bool {
    // Whether it is on, where the switch lies, and which addresses are left out.
    let mut words = [0_u64; 4];
    let asked =
        request(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of_val(&words), words.as_mut_ptr().addr());
    asked.is_ok() && words[0] != 0
}

/// The pid or tid that a birth was about.
pub(crate) fn born(tid: i32) -> Result<i32> {
    let mut number = 0_u64;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut number).addr())?;
    i32::try_from(number).map_err(|_| Errno::ESRCH)
}

/// Waiting signals of the thread or, `shared`, of its process, left where they are.
pub(crate) fn pending(tid: i32, shared: bool) -> Result<Vec<[u8; 128]>> {
    let mut all = Vec::new();
    loop {
        let mut some = [[0_u8; 128]; 16];
        let offset = all.len() as u64;
        let flags = u32::from(shared);
        let count = u32::try_from(some.len()).unwrap_or(0);
        let arguments = [offset, u64::from(flags) | (u64::from(count) << 32)];
        let got = request(PEEKSIGINFO, tid, arguments.as_ptr().addr(), some.as_mut_ptr().addr())?;
        let got = usize::try_from(got).unwrap_or(0);
        all.extend_from_slice(some.get(..got).unwrap_or(&[]));
        if got < some.len() {
            return Ok(all);
        }
    }
}

/// Waits until the thread stands still. The stop is left unconsumed: the kernel clears its signal otherwise, and it
/// would be lost with a tracer that dies here. ETIMEDOUT after `until`, EINTR when a signal asked the engine to end.
pub(crate) fn wait(tid: i32, until: Instant) -> Result<Stop> {
    let id = libc::id_t::try_from(tid).map_err(|_| Errno::ESRCH)?;
    let options = libc::WNOWAIT | libc::WSTOPPED | libc::WEXITED | libc::__WALL;
    loop {
        // SAFETY: all zero is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` lives through the call.
        let answer = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, options) };
        match Errno::result(answer) {
            Ok(_) => {}
            Err(Errno::EINTR) if crate::sys::process::asked_to_end() => return Err(Errno::EINTR),
            Err(Errno::EINTR) if Instant::now() > until => return Err(Errno::ETIMEDOUT),
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => return Ok(Stop::Gone),
            Err(error) => return Err(error),
        }
        if [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code) {
            // SAFETY: no status is asked for.
            unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) };
            return Ok(Stop::Gone);
        }
        // SAFETY: waitid fills in the fields of a child's change.
        let status = unsafe { info.si_status() };
        return Ok(stop(status));
    }
}

/// Whether a thread that was left standing still does, and was not killed meanwhile. Unlike all others this may be asked by
/// any thread of the engine.
pub(crate) fn stands(tid: i32) -> bool {
    let options = libc::WNOWAIT | libc::WNOHANG | libc::WSTOPPED | libc::WEXITED | libc::__WALL;
    // SAFETY: all zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives through the call.
    let answer =
        libc::id_t::try_from(tid).map(|id| unsafe { libc::waitid(libc::P_PID, id, &raw mut info, options) });
    // SAFETY: waitid fills in the fields of a child's change, or leaves them zero.
    let status = unsafe { info.si_status() };
    answer == Ok(0) && info.si_code == libc::CLD_TRAPPED && status >> 8 != libc::PTRACE_EVENT_EXIT
}

/// The low byte is the signal (0x80 marks a system call), the next one the event.
fn stop(status: i32) -> Stop {
    match (status >> 8, status & 0xff) {
        (libc::PTRACE_EVENT_STOP, signal) => Stop::Event(signal),
        (libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK, _) => Stop::Birth,
        (0, 0x85) => Stop::Call,
        (_, signal) => Stop::Signal(signal & 0x7f),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// In a process of its own: the tick is for the first thread, and a test runs in another.
    #[test]
    fn a_wait_ends_in_time() {
        // SAFETY: the copy only makes system calls.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            crate::sys::task::end(i32::from(!waits_in_vain()));
        }
        let copy = nix::unistd::Pid::from_raw(copy);
        let status = nix::sys::wait::waitpid(copy, None).unwrap();
        assert_eq!(status, nix::sys::wait::WaitStatus::Exited(copy, 0));
    }

    fn waits_in_vain() -> bool {
        // SAFETY: as above.
        let child = unsafe { libc::fork() };
        if child == 0 {
            crate::sys::task::rest();
        }
        let ticks = crate::sys::process::ticking(Duration::from_millis(10)).is_ok();
        let late = seize(child).is_ok() && wait(child, Instant::now()) == Err(Errno::ETIMEDOUT);
        let ended = crate::sys::process::kill(child, libc::SIGKILL).is_ok();
        ticks && late && ended && wait(child, Instant::now() + Duration::from_secs(30)) == Ok(Stop::Gone)
    }
}
