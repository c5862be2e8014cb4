//! What one process is, gathered while it stands still: from `/proc`, ptrace and its own answers.

use super::inject::Site;
use super::queries::{self, Answers};
use super::seize::{Held, HeldThread, failed};
use crate::arch::registers::{RESTART_SYSCALL, call_before, call_to_continue, continues_another};
use crate::model::{FileIdentity, Layout, PosixTimer, Process, Settings, State, Thread};
use crate::proc::stat::Stat;
use crate::proc::status::Status;
use crate::proc::{self, stat, status};
use crate::sys::process as system;
use crate::sys::{ptrace, task};
use nix::errno::Errno;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

/// Bytes as hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// A file as it has to be found again.
pub(crate) fn identity(path: &str) -> Result<FileIdentity> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        BackendError::failed(format!("{path} is used and cannot be found")).because(error)
    })?;
    Ok(identity_of(path, &metadata))
}

pub(crate) fn identity_of(path: &str, metadata: &std::fs::Metadata) -> FileIdentity {
    let mtime_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    FileIdentity { path: path.to_owned(), size: metadata.len(), mtime_ns }
}

fn system_error(what: &str, pid: i32) -> impl Fn(Errno) -> BackendError {
    let what = format!("{what} of process {pid} cannot be read");
    move |error| BackendError::failed(what.clone()).because(error.desc())
}

/// What can be seen from outside. Areas and descriptors need a look at the whole tree, answers an injection.
pub(crate) fn gather(held: &Held) -> Result<Process> {
    let pid = held.pid;
    let stat: Stat = stat::parse(&proc::read(pid, "stat")?)?;
    let status: Status = status::parse(&proc::read(pid, "status")?)?;
    let ours = system::affinity(0).map_err(system_error("the processors", 0))?;
    let threads = held.threads.iter().map(|thread| describe(held, thread, &ours)).collect::<Result<_>>()?;
    let score = proc::read(pid, "oom_score_adj")?;
    Ok(Process {
        pid,
        ppid: stat.ppid,
        sid: stat.session,
        pgid: stat.pgrp,
        state: held.stopped.map_or(State::Running, |signal| State::Stopped { signal }),
        exit_signal: stat.exit_signal,
        comm: name(pid, pid)?,
        exe: identity(&proc::link(pid, "exe")?)?,
        cwd: proc::link(pid, "cwd")?,
        umask: status.umask,
        credentials: status.credentials,
        rlimits: match system::limits(pid) {
            Err(nix::errno::Errno::EPERM) => proc::limits::parse(&proc::read(pid, "limits")?)?,
            limits => limits.map_err(system_error("the limits", pid))?,
        },
        oom_score_adj: score.trim().parse().unwrap_or(0),
        mm: layout(pid, &stat)?,
        settings: Settings { core_filter: core_filter(pid), ..Settings::default() },
        threads,
        ..Process::default()
    })
}

/// How often a process is asked before what it says is taken although signals came meanwhile.
const QUESTIONS: usize = 8;

/// What only the process itself can tell, and the signals that wait. Its timers run on while it stands still: one that
/// fires between the two questions is seen by neither, or by both. Where no signal has come they are of one moment.
pub(crate) fn ask(site: &Site, held: &Held, process: &mut Process) -> Result<()> {
    let mut waits = Waiting::of(held)?;
    for question in 1.. {
        let answers = queries::ask(site, held, timers(held)?)?;
        let before = std::mem::replace(&mut waits, Waiting::of(held)?);
        if before == waits || question >= QUESTIONS {
            complete(process, answers);
            break;
        }
    }
    process.pending = waits.process;
    for (thread, pending) in process.threads.iter_mut().zip(waits.threads) {
        thread.pending = pending;
    }
    Ok(())
}

/// The timers of a process, each with a clock that is the same whoever makes it.
fn timers(held: &Held) -> Result<Vec<PosixTimer>> {
    const THREAD: i32 = libc::CLOCK_THREAD_CPUTIME_ID;
    // As the kernel keeps it, without a number: the processor time of whoever made the timer.
    const OF_MAKER: i32 = of_thread(0);
    let mut all = proc::timers::parse(&proc::read(held.pid, "timers")?)?;
    for timer in all.iter_mut().filter(|timer| [THREAD, OF_MAKER].contains(&timer.clock)) {
        timer.clock = match held.threads.as_slice() {
            [only] => of_thread(only.tid),
            // Who is told of its own time has asked for it.
            _ if timer.notify & 4 != 0 => of_thread(timer.tid),
            _ => {
                let what = format!("timer {} of process {} cannot be saved", timer.id, held.pid);
                return Err(BackendError::new(kind::UNSUPPORTED, what)
                    .because("it measures the time of one thread, and the kernel does not tell of which")
                    .help("let it tell that thread (SIGEV_THREAD_ID)"));
            }
        };
    }
    Ok(all)
}

/// The clock of a thread's processor time.
const fn of_thread(tid: i32) -> i32 {
    (!tid << 3) | 6
}

/// Signals that wait, for the process and for each of its threads.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    process: Vec<String>,
    threads: Vec<Vec<String>>,
}

impl Waiting {
    fn of(held: &Held) -> Result<Self> {
        let threads = held.threads.iter().map(|thread| pending(thread.tid, false)).collect::<Result<_>>()?;
        Ok(Self { process: pending(held.pid, true)?, threads })
    }
}

/// What the process told of itself.
fn complete(process: &mut Process, answers: Answers) {
    process.credentials.securebits = answers.securebits;
    process.dumpable = answers.dumpable;
    process.pdeathsig = answers.pdeathsig;
    process.subreaper = answers.subreaper;
    process.thp_disable = answers.thp_disable;
    process.personality = answers.personality;
    process.barriers = answers.barriers;
    process.settings = Settings { core_filter: process.settings.core_filter, ..answers.settings };
    process.mm.brk = answers.brk;
    process.signals = answers.signals;
    process.itimers = answers.itimers;
    process.posix_timers = answers.posix_timers;
    for (thread, own) in process.threads.iter_mut().zip(&answers.threads) {
        thread.clear_tid = own.clear_tid;
        thread.altstack = own.altstack;
    }
}

/// A child that ended and was not waited for.
pub(crate) fn zombie(pid: i32) -> Result<Process> {
    let stat: Stat = stat::parse(&proc::read(pid, "stat")?)?;
    Ok(Process {
        pid,
        ppid: stat.ppid,
        sid: stat.session,
        pgid: stat.pgrp,
        state: State::Zombie { status: stat.exit_code },
        exit_signal: stat.exit_signal,
        comm: stat.comm,
        ..Process::default()
    })
}

fn name(pid: i32, tid: i32) -> Result<String> {
    let text = proc::read(pid, &format!("task/{tid}/comm"))?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

fn pending(tid: i32, shared: bool) -> Result<Vec<String>> {
    let all = ptrace::pending(tid, shared).map_err(|error| failed("reading the signals of", tid, error))?;
    Ok(all.iter().map(|info| hex(info)).collect())
}

/// `None` under a kernel that writes no core files.
fn core_filter(pid: i32) -> Option<u32> {
    let text = proc::read(pid, "coredump_filter").ok()?;
    u32::from_str_radix(text.trim(), 16).ok()
}

fn layout(pid: i32, stat: &Stat) -> Result<Layout> {
    let path = format!("/proc/{pid}/auxv");
    let auxv = std::fs::read(&path)
        .map_err(|error| BackendError::failed(format!("{path} cannot be read")).because(error))?;
    let words = auxv.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
    Ok(Layout {
        start_code: stat.start_code,
        end_code: stat.end_code,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk: 0,
        start_stack: stat.start_stack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
        auxv: words.collect(),
    })
}

/// `given` are the processors of the engine, which are those of the container.
fn describe(held: &Held, thread: &HeldThread, given: &[u64]) -> Result<Thread> {
    let tid = thread.tid;
    let xstate = ptrace::extended_state(tid).map_err(|error| failed("reading the state of", tid, error))?;
    if matrices(&xstate) {
        let what = format!("thread {tid} of process {} cannot be saved", held.pid);
        return Err(BackendError::new(kind::UNSUPPORTED, what)
            .because("its matrix registers (AMX) are in use, and cannot be given to a new thread")
            .help("try again: programs release them behind each piece of work"));
    }
    let (policy, priority) = system::scheduling(tid).map_err(system_error("the scheduling", tid))?;
    let stat: Stat = stat::parse(&proc::read(held.pid, &format!("task/{tid}/stat"))?)?;
    Ok(Thread {
        tid,
        comm: name(held.pid, tid)?,
        registers: thread.registers,
        call: interrupted_call(held, thread),
        xstate: hex(&xstate),
        sigmask: thread.mask,
        rseq: thread.rseq,
        robust_list: system::robust_list(tid).map_err(system_error("the robust list", tid))?,
        affinity: chosen(tid, given)?,
        policy,
        priority,
        nice: stat.nice,
        slack: task::slack(tid),
        io_priority: task::io_priority(tid).unwrap_or(0),
        ..Thread::default()
    })
}

/// The processors that a thread has chosen. None where it has those that it was given: where it may run says whoever starts
/// it, the next time somebody else perhaps.
fn chosen(tid: i32, given: &[u64]) -> Result<Vec<u64>> {
    let its = system::affinity(tid).map_err(system_error("the processors", tid))?;
    Ok(if its == given { Vec::new() } else { its })
}

/// Whether the extended state has something in the tiles of the matrix unit: the header says which parts it has.
fn matrices(xstate: &[u8]) -> bool {
    const TILES: u64 = 1 << 18;
    let header = xstate.get(512..520).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes);
    header & TILES != 0
}

/// The true number of a timed wait that an earlier stop made the kernel continue by restart_syscall; that of
/// restart_syscall where nothing tells.
fn interrupted_call(held: &Held, thread: &HeldThread) -> Option<u64> {
    let mut next = [0; 2];
    // What cannot be read cannot be executed either.
    let _ = held.memory.read_exact_at(&mut next, thread.registers.rip);
    let end = continues_another(&thread.registers, next)?;
    let before = || {
        let mut code = [0; 16];
        let from = end.checked_sub(code.len() as u64)?;
        held.memory.read_exact_at(&mut code, from).ok()?;
        call_before(&code)
    };
    call_to_continue(&thread.registers).or_else(before).or(Some(RESTART_SYSCALL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_seen_in_the_header() {
        let mut state = vec![0xff; 4096];
        state[512..520].copy_from_slice(&0x2_02e7_u64.to_ne_bytes());
        assert!(!matrices(&state) && !matrices(&[]));
        state[512..520].copy_from_slice(&0x6_02e7_u64.to_ne_bytes());
        assert!(matrices(&state));
    }

    #[test]
    fn bytes_as_hex() {
        assert_eq!(hex(&[0, 0x1f, 0xff]), "001fff");
    }
}
