//! System calls made by a target, in an order that does it no harm when the engine dies between any two steps.
//!
//! A thread of the application always stands on `home` while it is used (see arch/cave.rs): left alone it sets its own
//! mask, takes its own registers and goes on. It makes a few calls and one clone: the *helper*, a thread that carries
//! out a table of calls and ends by itself, engine or not. Nothing else runs in the application.

use super::seize::{Held, HeldThread, STEP, failed};
use crate::arch::cave::{self, CALL, CALLS, Code, NOT_MADE, REGION, at};
use crate::arch::registers::{HOME_CALL, REST_CALL, going_home};
use crate::proc::maps::Mapping;
use crate::sys::clone::THREAD;
use crate::sys::ptrace::{self, Stop, steps};
use stasis_plugin_api::error::{BackendError, Result};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

/// Marks a region, so that the next capture finds it again.
const TOKEN: u64 = 0x5354_4153_4953_2d52;
/// The distance kept to the main thread's stack pointer.
const FAR: u64 = 256 << 10;
/// How far below a region a handler that started on `home` may reach.
const HANDLERS: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// A system call and its result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
    pub(crate) result: i64,
}

impl Call {
    pub(crate) fn new(number: i64, arguments: &[u64]) -> Self {
        let mut all = [0; 6];
        for (place, value) in all.iter_mut().zip(arguments) {
            *place = *value;
        }
        Self { number, arguments: all, result: NOT_MADE }
    }

    pub(crate) fn bytes(&self) -> impl Iterator<Item = u8> {
        let mut words = [0; 8];
        words[0] = self.number.cast_unsigned();
        words[1..7].copy_from_slice(&self.arguments);
        words[7] = self.result.cast_unsigned();
        words.into_iter().flat_map(u64::to_ne_bytes)
    }
}

/// Where code and region lie in one process.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) pid: i32,
    region: u64,
    cave: u64,
    home: u64,
    run: u64,
    slots: u64,
    length: u64,
}

impl Site {
    /// Finds the places; writes nothing.
    pub(crate) fn choose(held: &Held, maps: &[Mapping]) -> Result<Self> {
        let code = cave::code();
        let cave = room_in_vdso(held, maps, &code)?;
        let region = room_below_stack(held, maps)?;
        Ok(Self {
            pid: held.pid,
            region,
            cave,
            home: cave + code.home,
            run: cave + code.run,
            slots: cave + code.slots,
            length: code.bytes.len() as u64,
        })
    }

    /// An address in the region.
    pub(crate) fn address(&self, offset: u64) -> u64 {
        self.region + offset
    }

    /// A thread that a dead engine left is still on its way home, or its helper still at work.
    pub(crate) fn unfinished(&self, held: &Held) -> bool {
        held.threads.iter().any(|thread| {
            let r = &thread.registers;
            let bottom = self.region.saturating_sub(HANDLERS);
            r.rip.wrapping_sub(self.cave) < self.length
                || r.rsp.wrapping_sub(bottom) < HANDLERS + REGION as u64
        })
    }

    fn write(&self, memory: &File, address: u64, bytes: &[u8]) -> Result<()> {
        steps::count();
        memory.write_all_at(bytes, address).map_err(|error| {
            BackendError::failed(format!("nothing can be written into the memory of process {}", self.pid))
                .because(error)
                .help("a very small limit for the stack (`ulimit -s`) leaves no room; raise it")
        })
    }

    /// Writes into the region.
    pub(crate) fn put(&self, memory: &File, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write(memory, self.address(offset), bytes)
    }

    pub(crate) fn read(&self, memory: &File, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        memory.read_exact_at(&mut bytes, self.address(offset)).map_err(|error| {
            BackendError::failed(format!("the memory of process {} cannot be read", self.pid)).because(error)
        })?;
        Ok(bytes)
    }

    /// Writes code and region; `calls` are what the helper will do.
    pub(crate) fn prepare(&self, held: &Held, calls: &[Call]) -> Result<()> {
        if calls.len() > CALLS {
            let what = format!("process {} has more timers than the engine can save", self.pid);
            return Err(BackendError::new(stasis_plugin_api::error::kind::UNSUPPORTED, what));
        }
        let leader = held.leader()?;
        let mut region = vec![0_u8; REGION];
        let mut put = |offset: u64, bytes: &[u8]| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(place) = region.get_mut(from..from.saturating_add(bytes.len())) {
                place.copy_from_slice(bytes);
            }
        };
        let table = self.address(at::TABLE);
        let first = self.address(at::FIRST_TABLE);
        let frame = |frame: u64, from: u64, to: u64| {
            cave::run_frame(self.run, from, to, self.address(frame) + 8, self.cave)
        };
        put(at::HOME, &cave::home_block(&going_home(&leader.registers), leader.mask));
        put(at::HELPER_FRAME, &frame(at::HELPER_FRAME, table, table + CALL * calls.len() as u64));
        put(at::FIRST_FRAME, &frame(at::FIRST_FRAME, first, first + CALL));
        put(at::COPY_FRAME, &frame(at::COPY_FRAME, first + CALL, first + CALL));
        put(at::TOKEN, &TOKEN.to_ne_bytes());
        put(at::TABLE, &calls.iter().flat_map(Call::bytes).collect::<Vec<u8>>());
        let copy = Call::new(libc::SYS_clone, &[0, self.address(at::COPY_FRAME) + 8]);
        put(at::FIRST_TABLE, &copy.bytes().collect::<Vec<u8>>());
        self.write(&held.memory, self.region, &region)?;
        let mut code = cave::code();
        let slots = usize::try_from(code.slots).unwrap_or(usize::MAX);
        let values = self.slot_values(leader);
        if let Some(place) = code.bytes.get_mut(slots..slots + 16) {
            place.copy_from_slice(&values);
        }
        self.write(&held.memory, self.cave, &code.bytes)
    }

    /// Whose registers lie on `home`, and where it goes on.
    fn slot_values(&self, thread: &HeldThread) -> [u8; 16] {
        let mut values = [0; 16];
        values[..8].copy_from_slice(&self.address(at::HOME).to_ne_bytes());
        values[8..].copy_from_slice(&going_home(&thread.registers).rip.to_ne_bytes());
        values
    }

    /// Makes `home` that of another thread.
    pub(crate) fn house(&self, memory: &File, thread: &HeldThread) -> Result<()> {
        let block = cave::home_block(&going_home(&thread.registers), thread.mask);
        self.write(memory, self.address(at::HOME), &block)?;
        self.write(memory, self.slots, &self.slot_values(thread))
    }

    /// Puts the thread, whose registers lie on `home`, there. The order matters: setting its own mask ends a temporary
    /// one (ppoll, sigsuspend), and everything is masked only when `home` would undo it.
    pub(crate) fn enter(&self, thread: &HeldThread) -> Result<()> {
        let error = |error| failed("preparing", thread.tid, error);
        let mut registers = thread.registers;
        registers.rip = self.home;
        registers.rsp = self.address(at::HOME);
        registers.rax = 0;
        registers.orig_rax = u64::MAX;
        ptrace::set_signal_mask(thread.tid, thread.mask).map_err(error)?;
        ptrace::set_registers(thread.tid, &registers).map_err(error)?;
        ptrace::set_signal_mask(thread.tid, u64::MAX).map_err(error)
    }

    /// Puts it back where it was found. The order matters: dying between the two leaves no mask behind.
    pub(crate) fn leave(&self, thread: &HeldThread) -> Result<()> {
        let error = |error| failed("putting back", thread.tid, error);
        ptrace::set_signal_mask(thread.tid, thread.mask).map_err(error)?;
        ptrace::set_registers(thread.tid, &thread.registers).map_err(error)
    }

    /// One call by a thread that stands on `home`. The second value is the new task's id, when the call made one.
    pub(crate) fn call(&self, tid: i32, call: Call) -> Result<(i64, Option<i32>)> {
        substitute(tid, call, self.home, HOME_CALL)
    }

    /// One call by a task of ours that stands on `rest`.
    pub(crate) fn call_at_rest(&self, tid: i32, call: Call) -> Result<i64> {
        substitute(tid, call, self.cave, REST_CALL).map(|(result, _)| result)
    }

    /// Makes the helper, by a thread that stands on `home`. It stands still then.
    pub(crate) fn make_helper(&self, tid: i32) -> Result<i32> {
        let call = Call::new(libc::SYS_clone, &[THREAD, self.address(at::HELPER_FRAME) + 8]);
        match self.call(tid, call)? {
            (1.., Some(helper)) => {
                expect_stop(helper)?;
                Ok(helper)
            }
            (error, _) => {
                let why = nix::errno::Errno::from_raw(i32::try_from(-error).unwrap_or(0));
                Err(BackendError::failed(format!("process {} can make no helper thread", self.pid))
                    .because(why.desc())
                    .help("raise the limit of processes (`ulimit -u`, the job's pids limit) by two for each process"))
            }
        }
    }

    /// The results of the helper's calls.
    pub(crate) fn results(&self, memory: &File, count: usize) -> Result<Vec<i64>> {
        let bytes = self.read(memory, at::TABLE, count * 64)?;
        let result = |entry: &[u8]| {
            let word = entry.get(56..64).and_then(|word| word.try_into().ok()).unwrap_or_default();
            i64::from_ne_bytes(word)
        };
        Ok(bytes.chunks_exact(64).map(result).collect())
    }

    /// Takes the code away again. Only when no thread can stand in it.
    pub(crate) fn wipe(&self, memory: &File) -> Result<()> {
        let length = usize::try_from(self.length).unwrap_or(0);
        self.write(memory, self.cave, &vec![0; length])
    }
}

/// A new task's first stop.
pub(crate) fn expect_stop(tid: i32) -> Result<()> {
    match wait(tid)? {
        Stop::Event(_) => Ok(()),
        other => Err(unexpected(tid, other)),
    }
}

pub(crate) fn wait(tid: i32) -> Result<Stop> {
    ptrace::wait(tid, Instant::now() + STEP).map_err(|error| failed("waiting for", tid, error))
}

pub(crate) fn unexpected(tid: i32, stop: Stop) -> BackendError {
    BackendError::failed(format!("thread {tid} did not do what it was told")).because(format!("{stop:?}"))
}

/// Continues to the next system call stop or birth. Nothing but SIGSTOP gets through the mask; it is handed on, and the
/// kernel stops the thread again once it is let go.
fn to_call(tid: i32) -> Result<Stop> {
    let mut signal = 0;
    loop {
        ptrace::resume_to_call(tid, signal).map_err(|error| failed("continuing", tid, error))?;
        signal = match wait(tid)? {
            Stop::Event(_) => 0,
            Stop::Signal(signal) => signal,
            stop => return Ok(stop),
        };
    }
}

/// At the entry of the call that the code makes anyway its number and arguments are exchanged, and it returns to the
/// same code: if the engine dies, at most this one call is made.
fn substitute(tid: i32, call: Call, back: u64, own: u64) -> Result<(i64, Option<i32>)> {
    let error = |error| failed("calling in", tid, error);
    match to_call(tid)? {
        Stop::Call => {}
        other => return Err(unexpected(tid, other)),
    }
    let mut registers = ptrace::registers(tid).map_err(error)?;
    if registers.orig_rax != own {
        return Err(BackendError::failed(format!("thread {tid} is not where it was put")));
    }
    registers.orig_rax = call.number.cast_unsigned();
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = call.arguments;
    registers.rip = back;
    ptrace::set_registers(tid, &registers).map_err(error)?;
    let mut born = None;
    loop {
        match to_call(tid)? {
            Stop::Birth => born = Some(ptrace::born(tid).map_err(error)?),
            Stop::Call => break,
            other => return Err(unexpected(tid, other)),
        }
    }
    let registers = ptrace::registers(tid).map_err(error)?;
    Ok((registers.rax.cast_signed(), born))
}

fn room_in_vdso(held: &Held, maps: &[Mapping], code: &Code) -> Result<u64> {
    let none = || {
        BackendError::new(
            stasis_plugin_api::error::kind::UNSUPPORTED,
            "the kernel's vdso leaves no room for the engine",
        )
        .help("use another backend on this kernel")
    };
    let vdso = maps.iter().find(|map| map.name == "[vdso]").ok_or_else(none)?;
    let length = code.bytes.len() as u64;
    let place = (vdso.end - length.min(vdso.length())) & !15;
    let mut found = vec![0; code.bytes.len()];
    held.memory.read_exact_at(&mut found, place).map_err(|error| none().because(error))?;
    let fixed = usize::try_from(code.slots).unwrap_or(0);
    if found.iter().all(|byte| *byte == 0) || found.get(..fixed) == code.bytes.get(..fixed) {
        return Ok(place);
    }
    Err(none())
}

/// The bottom of the main thread's stack. Writing there through /proc/PID/mem extends the mapping from outside. Never
/// below another thread's stack pointer: that may be a coroutine's.
fn room_below_stack(held: &Held, maps: &[Mapping]) -> Result<u64> {
    let size = REGION as u64;
    let stack = maps.iter().find(|map| map.name == "[stack]").ok_or_else(|| {
        let what = format!("process {} has no stack of the kernel's making", held.pid);
        BackendError::new(stasis_plugin_api::error::kind::UNSUPPORTED, what)
    })?;
    let pointer = held.leader()?.registers.rsp;
    let outside = pointer < stack.start || pointer >= stack.end;
    let mut token = [0; 8];
    let ours = held.memory.read_exact_at(&mut token, stack.start + at::TOKEN).is_ok()
        && u64::from_ne_bytes(token) == TOKEN;
    let room = stack.start + size;
    if ours && (outside || pointer < room || pointer >= room + FAR) {
        // Of an earlier capture, still at the very bottom.
        return Ok(stack.start);
    }
    // A main thread that stands elsewhere (alternate stack, coroutine): below all that was ever used.
    let pointer = if outside { stack.start } else { pointer };
    if stack.start + size + FAR <= pointer {
        return Ok(stack.start);
    }
    Ok(pointer.saturating_sub(FAR + size) & !(PAGE - 1))
}
