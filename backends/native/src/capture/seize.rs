//! Stopping every thread of a tree of processes, and letting them all go again.
//!
//! A parent is stopped before its children are looked for: it can make no more then. Nothing is injected here; whoever
//! drops the tree lets everything run on, and so does the kernel when the engine dies.

use crate::arch::registers::make_restartable;
use crate::model::{Registers, Rseq};
use crate::proc;
use crate::sys::ptrace::{self, Stop};
use nix::errno::Errno;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// How long all threads together may take to stop.
const STOPPING: Duration = Duration::from_secs(3);
/// How long one step of the engine may take. Copying page tables of a terabyte takes half a minute.
pub(crate) const STEP: Duration = Duration::from_secs(120);

/// Everything that stands still.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Parents before their children.
    pub(crate) processes: Vec<Held>,
    /// Children that ended and were not waited for: pid and parent.
    pub(crate) zombies: Vec<(i32, i32)>,
    /// Let go already.
    released: bool,
}

/// One process that stands still.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) pid: i32,
    /// `/proc/PID/mem`.
    pub(crate) memory: File,
    /// The leader first.
    pub(crate) threads: Vec<HeldThread>,
    /// Stopped by job control, with this signal.
    pub(crate) stopped: Option<i32>,
}

/// One thread that stands still, as it was found.
#[derive(Debug, Default)]
pub(crate) struct HeldThread {
    pub(crate) tid: i32,
    pub(crate) registers: Registers,
    pub(crate) mask: u64,
    pub(crate) rseq: Rseq,
}

/// A request of ptrace about a thread that failed.
pub(crate) fn failed(doing: &str, tid: i32, error: Errno) -> BackendError {
    match error {
        Errno::ESRCH => {
            BackendError::new(kind::APPLICATION_ENDED, format!("thread {tid} ended during the capture")).because(doing)
        }
        Errno::ETIMEDOUT => BackendError::new(kind::TIMED_OUT, format!("{doing} thread {tid} takes too long"))
            .because(format_args!("it is in the kernel: {}", whereabouts(tid)))
            .help("a disk, a network file system or a child that has not started its program keeps it; try again"),
        Errno::EINTR => BackendError::new(kind::CANCELLED, "the capture was told to end"),
        Errno::EPERM => BackendError::failed(format!("{doing} thread {tid} is not permitted")).help(
            "a setuid program, another tracer, or the host's `kernel.yama.ptrace_scope` forbids to look into it",
        ),
        error => BackendError::failed(format!("{doing} thread {tid} failed")).because(error.desc()),
    }
}

/// The state of a thread that does not answer, as far as it can be seen.
fn whereabouts(tid: i32) -> String {
    let call = proc::read(tid, "syscall").unwrap_or_default();
    let call = call.split_whitespace().next().unwrap_or("unknown").to_owned();
    format!("state {}, system call {call}", state(tid).unwrap_or('?'))
}

impl Tree {
    /// Stops the tree below `root`.
    pub(crate) fn stop(root: i32) -> Result<Self> {
        let until = Instant::now() + STOPPING;
        let mut tree = Self { processes: Vec::new(), zombies: Vec::new(), released: false };
        let mut waiting = vec![(root, 0)];
        while !waiting.is_empty() {
            while let Some((pid, parent)) = waiting.pop() {
                let held = match stop_process(pid, until) {
                    Err(error) if error.kind == kind::APPLICATION_ENDED && pid != root => {
                        tree.zombies.extend(becomes_zombie(pid, until).then_some((pid, parent)));
                        continue;
                    }
                    other => other?,
                };
                waiting.extend(children(&held)?);
                tree.processes.push(held);
            }
            if Instant::now() > until {
                let what = format!("the processes below {root} do not stop");
                return Err(BackendError::new(kind::TIMED_OUT, what).help("try again"));
            }
            // Children that were made or adopted by those who stand now, before the last of them did.
            let known = tree.members();
            for held in &tree.processes {
                waiting.extend(children(held)?.into_iter().filter(|(child, _)| !known.contains(child)));
            }
        }
        Ok(tree)
    }

    /// Every pid, also of what has ended.
    pub(crate) fn members(&self) -> Vec<i32> {
        let zombies = self.zombies.iter().map(|(pid, _)| *pid);
        self.processes.iter().map(|held| held.pid).chain(zombies).collect()
    }

    /// Fails unless all of them have stood still up to now. What was read of one that was killed meanwhile is of no use:
    /// its descriptors and pages may be gone without any error for who reads them.
    pub(crate) fn held_to_the_end(&self) -> Result<()> {
        for held in &self.processes {
            if !ptrace::stands(held.leader()?.tid) {
                let what = format!("process {} was killed while it was saved", held.pid);
                return Err(BackendError::new(kind::APPLICATION_ENDED, what)
                    .help("where the application goes on without it, try again"));
            }
        }
        Ok(())
    }

    /// Lets everything run on.
    pub(crate) fn release(mut self) {
        self.let_go(0);
    }

    /// Leaves everything stopped by job control, for somebody else to end or to continue.
    pub(crate) fn leave_stopped(mut self) -> Result<()> {
        let threads =
            || self.processes.iter().flat_map(|held| held.threads.iter().map(move |t| (held.pid, t.tid)));
        // Each thread gets its own: a signal for the process stops the others only when one has taken it.
        let stopped = threads().try_for_each(|(pid, tid)| {
            let sent = crate::sys::process::kill_thread(pid, tid, libc::SIGSTOP);
            sent.map_err(|error| failed("stopping", tid, error))
        });
        if stopped.is_err() {
            for held in &self.processes {
                // It takes back what the others were sent; one that ended needs nothing.
                let _ = crate::sys::process::kill(held.pid, libc::SIGCONT);
            }
        }
        self.let_go(0);
        stopped
    }

    fn let_go(&mut self, signal: i32) {
        if self.released {
            return;
        }
        self.released = true;
        for thread in self.processes.iter().flat_map(|process| &process.threads) {
            // One that ended needs nothing; one that runs already is let go by our exit.
            let _ = ptrace::detach(thread.tid, signal);
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.let_go(0);
    }
}

fn state(pid: i32) -> Option<char> {
    proc::read(pid, "stat").ok().and_then(|text| proc::stat::parse(&text).ok()).map(|stat| stat.state)
}

/// The children of a process that stands still, the youngest first, with their parent.
fn children(held: &Held) -> Result<Vec<(i32, i32)>> {
    let mut found = Vec::new();
    for thread in held.threads.iter().rev() {
        let text = proc::read(held.pid, &format!("task/{}/children", thread.tid))?;
        let pids = text.split_whitespace().rev().filter_map(|child| child.parse::<i32>().ok());
        found.extend(pids.map(|child| (child, held.pid)));
    }
    Ok(found)
}

/// A process that is ending is a zombie in a moment, unless nobody wants to know of its end.
fn becomes_zombie(pid: i32, until: Instant) -> bool {
    loop {
        match state(pid) {
            Some('Z') => return true,
            Some(state) if state != 'X' && Instant::now() < until => {
                std::thread::sleep(Duration::from_micros(200));
            }
            _ => return false,
        }
    }
}

/// Stops the threads of one process until none is left that was not stopped.
fn stop_process(pid: i32, until: Instant) -> Result<Held> {
    let mut guard = Tree { processes: Vec::new(), zombies: Vec::new(), released: false };
    let memory = open_memory(pid)?;
    guard.processes.push(Held { pid, memory, threads: Vec::new(), stopped: None });
    let tasks = format!("/proc/{pid}/task");
    // Threads that ended; a main thread stays in the list until its parent has waited for it.
    let mut ended: Vec<i32> = Vec::new();
    while let Some(held) = guard.processes.last_mut() {
        let tids = proc::numbers(&tasks)?;
        held.threads.retain(|thread| tids.contains(&thread.tid));
        let known = |tid: &i32| held.threads.iter().any(|thread| thread.tid == *tid) || ended.contains(tid);
        let listed = tids.len();
        let new: Vec<i32> = tids.into_iter().filter(|tid| !known(tid)).collect();
        // While threads end the list may leave others out; the kernel's own count does not.
        if new.is_empty() && listed >= count(pid).unwrap_or(0) {
            break;
        }
        if Instant::now() > until {
            let what = format!("process {pid} makes threads faster than they can be stopped");
            return Err(BackendError::new(kind::TIMED_OUT, what).help("try again"));
        }
        // All are told before the first is waited for: on a busy machine each takes its time.
        for tid in &new {
            if !interrupt(pid, *tid)? {
                ended.push(*tid);
            }
        }
        for tid in new {
            if ended.contains(&tid) {
                continue;
            }
            match stopped(tid, until)? {
                Some(by) => {
                    held.threads.push(HeldThread { tid, ..HeldThread::default() });
                    held.stopped = held.stopped.or(by);
                }
                None => ended.push(tid),
            }
        }
    }
    let mut held = guard.processes.pop().ok_or_else(|| BackendError::failed("no process"))?;
    held.threads.sort_by_key(|thread| (thread.tid != pid, thread.tid));
    if held.threads.first().is_none_or(|leader| leader.tid != pid) {
        guard.processes.push(held);
        let what = format!("process {pid} has no main thread any more");
        return Err(BackendError::new(kind::APPLICATION_ENDED, what));
    }
    Ok(held)
}

/// A process that is ending has no memory any more: shortly after it is a zombie.
fn open_memory(pid: i32) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    let mut patience = 50;
    loop {
        let error = match File::options().read(true).write(true).open(&path) {
            Ok(memory) => return Ok(memory),
            Err(error) => error,
        };
        let gone = error.raw_os_error() == Some(libc::ENOENT) || matches!(state(pid), None | Some('Z' | 'X'));
        let what = format!("the memory of process {pid} cannot be opened");
        if gone {
            return Err(BackendError::new(kind::APPLICATION_ENDED, what).because(error));
        }
        patience -= 1;
        if patience == 0 {
            return Err(BackendError::failed(what).because(error).help(
                "the engine has to run with the ids of the application, and the application has to be dumpable",
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Tells a thread to stop; false when it has ended.
fn interrupt(pid: i32, tid: i32) -> Result<bool> {
    match ptrace::seize(tid) {
        Ok(()) => match ptrace::interrupt(tid) {
            // One that has ended meanwhile is told by the wait.
            Ok(()) | Err(Errno::ESRCH) => Ok(true),
            Err(error) => Err(failed("stopping", tid, error)),
        },
        Err(Errno::ESRCH) => Ok(false),
        // A thread that a traced one made is traced already.
        Err(Errno::EPERM) if tracer(pid, tid) == i32::try_from(std::process::id()).ok() => Ok(true),
        Err(Errno::EPERM) if ended(pid, tid) => Ok(false),
        Err(error) => Err(failed("attaching to", tid, error)),
    }
}

/// Waits until a thread stands: the signal by which job control had stopped it, if that did. `None` when it ended.
#[allow(clippy::option_option, reason = "whether it stands, and what had stopped it before")]
fn stopped(tid: i32, until: Instant) -> Result<Option<Option<i32>>> {
    loop {
        match ptrace::wait(tid, until).map_err(|error| failed("waiting for", tid, error))? {
            Stop::Event(libc::SIGTRAP) => return Ok(Some(None)),
            Stop::Event(signal) => return Ok(Some(Some(signal))),
            Stop::Gone => return Ok(None),
            // Any stop takes back an interruption that was asked for: it is asked for again.
            Stop::Signal(signal) => go_to_stop(tid, signal)?,
            Stop::Birth | Stop::Call => go_to_stop(tid, 0)?,
        }
    }
}

fn go_to_stop(tid: i32, signal: i32) -> Result<()> {
    let resumed = ptrace::interrupt(tid).and_then(|()| ptrace::resume(tid, signal));
    resumed.map_err(|error| failed("continuing", tid, error))
}

fn status(pid: i32, tid: i32) -> Option<String> {
    proc::read(pid, &format!("task/{tid}/status")).ok()
}

/// How many threads a process has.
fn count(pid: i32) -> Option<usize> {
    let text = status(pid, pid)?;
    text.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}

fn tracer(pid: i32, tid: i32) -> Option<i32> {
    let text = status(pid, tid)?;
    text.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()
}

fn ended(pid: i32, tid: i32) -> bool {
    status(pid, tid).is_none_or(|text| {
        text.lines().any(|line| line.starts_with("State:\tZ") || line.contains("X (dead)"))
    })
}

impl Held {
    /// Reads the registers and masks of all threads, and makes the registers fit to be resumed anywhere: injected code
    /// outside a restartable sequence makes the kernel forget it, so its abort is taken now.
    pub(crate) fn save_registers(&mut self) -> Result<()> {
        for thread in &mut self.threads {
            let tid = thread.tid;
            let error = |error| failed("reading the registers of", tid, error);
            thread.registers = ptrace::registers(tid).map_err(error)?;
            thread.mask = ptrace::signal_mask(tid).map_err(error)?;
            thread.rseq = ptrace::rseq(tid).map_err(error)?;
            let aborted = abort_sequence(&self.memory, thread);
            if make_restartable(&mut thread.registers) || aborted {
                ptrace::set_registers(tid, &thread.registers).map_err(error)?;
            }
        }
        Ok(())
    }

    pub(crate) fn leader(&self) -> Result<&HeldThread> {
        self.threads
            .first()
            .ok_or_else(|| BackendError::failed(format!("process {} has no thread", self.pid)))
    }
}

/// True when the thread stood in a restartable sequence and now stands at its abort handler.
fn abort_sequence(memory: &File, thread: &mut HeldThread) -> bool {
    if thread.rseq.address == 0 {
        return false;
    }
    let Some([pointer]) = words::<1>(memory, thread.rseq.address + 8) else { return false };
    if pointer == 0 {
        return false;
    }
    // Version and flags, start, length, abort handler.
    let Some([_, start, length, abort]) = words::<4>(memory, pointer) else { return false };
    if thread.registers.rip.wrapping_sub(start) >= length {
        return false;
    }
    thread.registers.rip = abort;
    true
}

fn words<const N: usize>(memory: &File, address: u64) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, address.checked_add(8 * index as u64)?).ok()?;
        *word = u64::from_ne_bytes(bytes);
    }
    Some(words)
}
