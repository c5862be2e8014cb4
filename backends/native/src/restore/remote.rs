//! One half-built process under the engine's hand: calls run in it, its memory written. It dies with the engine.

use super::machine::LOOP;
use super::table::{ENTRIES, Failed, SCRATCH, Table};
use crate::arch::registers::SYSCALL;
use crate::model::Registers;
use crate::sys::ptrace::{self, Stop};
use nix::errno::Errno;
use stasis_plugin_api::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// A stop that takes longer has gone wrong; a batch may read gigabytes from a slow disk.
const STOP: Duration = Duration::from_secs(20);
const BATCH: Duration = Duration::from_secs(24 * 3600);
const SIGTRAP: i32 = 5;
const CALLS: &str = "running calls";
/// All signals but SIGTRAP, by which a batch ends.
pub(super) const ALL_BUT_TRAP: u64 = !(1 << (SIGTRAP - 1));

/// The process.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) pid: i32,
    memory: File,
    /// Its mappings as it was taken, until it is emptied.
    pub(super) places: Vec<Place>,
    /// Where a `syscall` instruction is: in the vdso.
    pub(super) syscall: u64,
    /// Where loop, entries and data are; 0 while there are none.
    pub(super) scratch: u64,
}

/// A mapping of the process as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) name: String,
}

/// As the kernel calls its code in every process.
pub(super) const VDSO: &str = "[vdso]";

/// What the kernel shows in `maps`.
pub(super) fn places(maps: &str) -> Vec<Place> {
    let place = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let name = rest.split_whitespace().nth(4).unwrap_or_default().to_owned();
        Some(Place { start: hex(start)?, end: hex(end)?, name })
    };
    maps.lines().filter_map(place).collect()
}

impl Remote {
    /// Takes the process into the engine's hand.
    pub(super) fn attach(pid: i32) -> Result<Self> {
        let failed = |e: Errno| {
            BackendError::failed(format!("cannot take hold of the new process {pid}")).because(e.desc())
        };
        ptrace::seize(pid).map_err(failed)?;
        ptrace::interrupt(pid).map_err(failed)?;
        loop {
            match ptrace::wait(pid, Instant::now() + STOP).map_err(failed)? {
                Stop::Event(_) => break,
                Stop::Gone => return Err(failed(Errno::ESRCH)),
                _ => ptrace::resume(pid, 0).map_err(failed)?,
            }
        }
        ptrace::die_with_the_engine(pid).map_err(failed)?;
        ptrace::set_signal_mask(pid, ALL_BUT_TRAP).map_err(failed)?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.map_err(|e| {
            BackendError::failed(format!("cannot write the memory of process {pid}")).because(e)
        })?;
        let places = places(&crate::proc::read(pid, "maps")?);
        let mut remote = Self { pid, memory, places, syscall: 0, scratch: 0 };
        remote.syscall = remote.find_syscall()?;
        Ok(remote)
    }

    fn failed(&self, what: &str, why: impl std::fmt::Display) -> BackendError {
        BackendError::failed(format!("cannot rebuild process {}", self.pid)).because(format!("{what}: {why}"))
    }

    fn find_syscall(&self) -> Result<u64> {
        let vdso = self.places.iter().find(|p| p.name == VDSO);
        let vdso = vdso.ok_or_else(|| self.failed("its vdso", "there is none"))?;
        let bytes = self.read(vdso.start, (vdso.end - vdso.start).min(1 << 20) as usize)?;
        let at = bytes.windows(2).position(|two| two == SYSCALL);
        let at = at.ok_or_else(|| self.failed("its vdso", "there is no syscall instruction"))?;
        Ok(vdso.start + at as u64)
    }

    /// The vdso lies somewhere else now, and the instruction with it.
    pub(super) fn code_moved(&mut self, from: Option<u64>, to: Option<u64>) {
        if let (Some(from), Some(to)) = (from, to) {
            self.syscall = self.syscall - from + to;
        }
    }

    /// Reads memory.
    pub(super) fn read(&self, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, address).map_err(|e| self.failed("reading memory", e))?;
        Ok(bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write_all_at(bytes, address).map_err(|e| self.failed("writing memory", e))
    }

    /// Puts the scratch area at an address that is free.
    pub(super) fn map_scratch(&mut self, address: u64) -> Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let arguments = [address, SCRATCH, 7, flags as u64, u64::MAX, 0];
        self.single(self.pid, "room for calls", libc::SYS_mmap, &arguments)?;
        self.scratch = address;
        self.write(address, &LOOP)
    }

    /// A list of calls to be run.
    pub(super) fn table(&self) -> Table {
        Table::new(self.scratch)
    }

    fn set(&self, tid: i32, registers: &Registers) -> Result<()> {
        ptrace::set_registers(tid, registers).map_err(|e| self.failed("its registers", e.desc()))
    }

    fn registers(&self, tid: i32) -> Result<Registers> {
        ptrace::registers(tid).map_err(|e| self.failed("its registers", e.desc()))
    }

    /// One call in one thread; its result.
    pub(super) fn single(&self, tid: i32, what: &str, number: i64, arguments: &[u64]) -> Result<u64> {
        let mut registers = self.registers(tid)?;
        let argument = |n: usize| arguments.get(n).copied().unwrap_or(0);
        (registers.rip, registers.rax, registers.orig_rax) = (self.syscall, number.cast_unsigned(), u64::MAX);
        (registers.rdi, registers.rsi, registers.rdx) = (argument(0), argument(1), argument(2));
        (registers.r10, registers.r8, registers.r9) = (argument(3), argument(4), argument(5));
        self.set(tid, &registers)?;
        for _ in 0..2 {
            ptrace::resume_to_call(tid, 0).map_err(|e| self.failed(what, e.desc()))?;
            let stop = ptrace::wait(tid, Instant::now() + STOP).map_err(|e| self.failed(what, e.desc()))?;
            if stop != Stop::Call {
                return Err(self.failed(what, format!("it stopped in an unexpected way ({stop:?})")));
            }
        }
        let result = self.registers(tid)?.rax;
        match result.cast_signed() {
            error @ -4095..0 => {
                let errno = Errno::from_raw(i32::try_from(-error).unwrap_or(libc::EINVAL));
                Err(self.failed(what, errno.desc()))
            }
            _ => Ok(result),
        }
    }

    /// One call whose argument is a pointer to these bytes, which come last in `arguments`' gap of `u64::MAX - 1`.
    pub(super) fn single_with(
        &self,
        tid: i32,
        what: &str,
        number: i64,
        arguments: impl FnOnce(u64) -> Vec<u64>,
        bytes: &[u8],
    ) -> Result<u64> {
        let address = self.scratch + ENTRIES;
        self.write(address, bytes)?;
        self.single(tid, what, number, &arguments(address))
    }

    /// The bytes that the last [`single_with`](Self::single_with) left.
    pub(super) fn answer(&self, length: usize) -> Result<Vec<u8>> {
        self.read(self.scratch + ENTRIES, length)
    }

    /// Runs a list in a thread. Threads that it makes stand before their first instruction afterwards.
    pub(super) fn run(&self, tid: i32, table: &mut Table) -> Result<()> {
        self.share(&[tid], table).map(drop)
    }

    /// Runs a list in several threads at once, each of which takes a part of it. Answers with the threads that it made.
    pub(super) fn share(&self, tids: &[i32], table: &mut Table) -> Result<Vec<i32>> {
        if table.is_empty() {
            return Ok(Vec::new());
        }
        if !table.fits() {
            return Err(self.failed("a list of calls", "it is too long"));
        }
        for (address, bytes) in table.bytes() {
            self.write(address, &bytes)?;
        }
        let parts = table.parts(tids.len());
        for (tid, (start, end)) in tids.iter().zip(&parts) {
            let mut registers = self.registers(*tid)?;
            (registers.rip, registers.orig_rax) = (self.scratch, u64::MAX);
            (registers.rbx, registers.rbp) = (*start, *end);
            self.set(*tid, &registers)?;
            ptrace::resume(*tid, 0).map_err(|e| self.failed(CALLS, e.desc()))?;
        }
        let mut born = Vec::new();
        for (tid, _) in tids.iter().zip(&parts) {
            self.until_trap(*tid, &mut born)?;
        }
        let (start, end) = table.range();
        let bytes = self.read(start, (end - start) as usize)?;
        table.finish(&bytes).map_err(|Failed { what, errno }| self.failed(&what, errno.desc()))?;
        Ok(born)
    }

    /// Waits for the end of what a thread was set to.
    fn until_trap(&self, tid: i32, born: &mut Vec<i32>) -> Result<()> {
        let failed = |e: Errno| self.failed(CALLS, e.desc());
        loop {
            match ptrace::wait(tid, Instant::now() + BATCH).map_err(failed)? {
                Stop::Signal(SIGTRAP) => return Ok(()),
                Stop::Birth => {
                    let new = ptrace::born(tid).map_err(failed)?;
                    ptrace::wait(new, Instant::now() + STOP).map_err(failed)?;
                    born.push(new);
                    ptrace::resume(tid, 0).map_err(failed)?;
                }
                stop => {
                    let at = ptrace::registers(tid).map(|r| r.rip).unwrap_or(0);
                    let why = format!("it stopped in an unexpected way ({stop:?} at {at:x})");
                    return Err(self.failed(CALLS, why));
                }
            }
        }
    }

    /// Runs the list when it is nearly full.
    pub(super) fn make_room(&self, tid: i32, table: &mut Table) -> Result<()> {
        if table.is_full() { self.run(tid, table) } else { Ok(()) }
    }

    /// Ends a thread that was made for the rebuilding only.
    pub(super) fn end(&self, tid: i32) -> Result<()> {
        let failed = |e: Errno| self.failed("ending a thread", e.desc());
        let mut registers = self.registers(tid)?;
        let exit = libc::SYS_exit.cast_unsigned();
        (registers.rip, registers.rax, registers.orig_rax) = (self.syscall, exit, u64::MAX);
        registers.rdi = 0;
        self.set(tid, &registers)?;
        ptrace::resume(tid, 0).map_err(failed)?;
        match ptrace::wait(tid, Instant::now() + STOP).map_err(failed)? {
            Stop::Gone => Ok(()),
            stop => {
                Err(self.failed("ending a thread", format!("it stopped in an unexpected way ({stop:?})")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let text = "7f00-7f10 r-xp 00000000 fe:00 12 /lib/a b\n7f20-7f30 r-xp 00000000 00:00 0 [vdso]\n7f30-7f40 rw-p 0 0:0 0\nx\n";
        let place = |start, end, name: &str| Place { start, end, name: name.to_owned() };
        assert_eq!(
            places(text),
            [place(0x7f00, 0x7f10, "/lib/a"), place(0x7f20, 0x7f30, "[vdso]"), place(0x7f30, 0x7f40, "")]
        );
    }
}
