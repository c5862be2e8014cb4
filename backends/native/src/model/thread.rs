//! What belongs to a thread, and what the kernel keeps for signals and timers.

use super::Registers;
use serde::{Deserialize, Serialize};

/// One thread.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Thread {
    pub(crate) tid: i32,
    pub(crate) comm: String,
    pub(crate) registers: Registers,
    /// Where the thread was stopped in `restart_syscall`, or before it: the number of the call that it continues, its own
    /// where that is not known.
    pub(crate) call: Option<u64>,
    /// The extended state (FPU, SSE, AVX) in the kernel's layout, hex.
    pub(crate) xstate: String,
    pub(crate) sigmask: u64,
    /// Signals that wait for this thread: hex of 128 bytes `siginfo_t` each.
    pub(crate) pending: Vec<String>,
    pub(crate) altstack: AltStack,
    pub(crate) rseq: Rseq,
    pub(crate) robust_list: [u64; 2],
    pub(crate) clear_tid: u64,
    /// `sched_getaffinity`, 64 processors a word; empty where they are those of the container.
    pub(crate) affinity: Vec<u64>,
    /// SCHED_OTHER 0 and so on.
    pub(crate) policy: u32,
    pub(crate) priority: i32,
    pub(crate) nice: i32,
    /// Nanoseconds by which its timers may be late (PR_SET_TIMERSLACK), where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slack: Option<u64>,
    /// `ioprio_get`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) io_priority: i32,
}

fn is_default(number: &i32) -> bool {
    *number == 0
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AltStack {
    pub(crate) sp: u64,
    pub(crate) flags: i32,
    pub(crate) size: u64,
}

/// PTRACE_GET_RSEQ_CONFIGURATION; `address` is 0 where none is registered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rseq {
    pub(crate) address: u64,
    pub(crate) size: u32,
    pub(crate) signature: u32,
    pub(crate) flags: u32,
}

/// The kernel's `struct sigaction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignalAction {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: u64,
}

/// A timer of `timer_create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PosixTimer {
    pub(crate) id: i32,
    pub(crate) clock: i32,
    pub(crate) signal: i32,
    pub(crate) sigval: u64,
    /// SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2; with SIGEV_THREAD_ID 4 for `tid`.
    pub(crate) notify: i32,
    pub(crate) tid: i32,
    /// Nanoseconds.
    pub(crate) interval: u64,
    /// Nanoseconds until it fires next; 0 when it is not armed.
    pub(crate) value: u64,
    pub(crate) overrun: i32,
}
