//! What a restart knows of x86-64: the loop that runs a table of calls, and registers of interrupted calls.

use crate::arch::registers::{RESTART_SYSCALL, SYSCALL};
use crate::model::{Registers, Thread};

/// `loop: cmp rbx,rbp; jae end; mov rax,[rbx]; rdi..r9 from [rbx+8..]; syscall; mov [rbx+0x38],rax; add rbx,64;
/// jmp loop; end: int3`.
pub(super) const LOOP: [u8; 46] = [
    0x48, 0x39, 0xeb, 0x73, 0x27, 0x48, 0x8b, 0x03, 0x48, 0x8b, 0x7b, 0x08, 0x48, 0x8b, 0x73, 0x10, 0x48,
    0x8b, 0x53, 0x18, 0x4c, 0x8b, 0x53, 0x20, 0x4c, 0x8b, 0x43, 0x28, 0x4c, 0x8b, 0x4b, 0x30, 0x0f, 0x05,
    0x48, 0x89, 0x43, 0x38, 0x48, 0x83, 0xc3, 0x40, 0xeb, 0xd4, 0xcc, 0x90,
];
/// The kernel's marks of a call that is to be run again.
const AGAIN: [i64; 3] = [-512, -513, -514];
/// Run again unless a handler ran: ERESTARTNOHAND.
const UNLESS_HANDLED: u64 = -514i64 as u64;
/// Continued by `restart_syscall`, of which a new process knows nothing: ERESTART_RESTARTBLOCK.
const BLOCK: i64 = -516;
const INTERRUPTED: u64 = -4i64 as u64;
const NO_CALL: u64 = u64::MAX;

/// The registers that a thread gets. Marks of interrupted calls stay: the kernel reads them when the thread is let go,
/// and gives EINTR where a handler runs first. A timed wait begins anew with its full time.
pub(super) fn registers(thread: &Thread) -> Registers {
    let mut registers = thread.registers;
    if thread.call.is_some() && registers.rax == RESTART_SYSCALL {
        // It stood before the instruction that would have continued the wait.
        (registers.rax, registers.orig_rax) = (BLOCK.cast_unsigned(), RESTART_SYSCALL);
        registers.rip = registers.rip.wrapping_add(SYSCALL.len() as u64);
    }
    let (mark, call) = (registers.rax.cast_signed(), registers.orig_rax);
    if call.cast_signed() < 0 || !(AGAIN.contains(&mark) || mark == BLOCK) {
        registers.orig_rax = NO_CALL;
        return registers;
    }
    if mark != BLOCK && call != RESTART_SYSCALL {
        return registers;
    }
    match thread.call.or(Some(call)).filter(|call| *call != RESTART_SYSCALL) {
        Some(call) => (registers.orig_rax, registers.rax) = (call, UNLESS_HANDLED),
        None => (registers.orig_rax, registers.rax) = (NO_CALL, INTERRUPTED),
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(mark: i64, call: u64, own: Option<u64>) -> (i64, i64) {
        let mut thread = Thread { call: own, ..Thread::default() };
        (thread.registers.rax, thread.registers.orig_rax) = (mark.cast_unsigned(), call);
        let fixed = registers(&thread);
        (fixed.rax.cast_signed(), fixed.orig_rax.cast_signed())
    }

    #[test]
    fn interrupted_calls() {
        assert_eq!(after(5, 0, None), (5, -1));
        assert_eq!(after(-512, u64::MAX, None), (-512, -1));
        assert_eq!(after(-512, 0, None), (-512, 0));
        assert_eq!(after(-514, 34, None), (-514, 34));
        assert_eq!(after(-516, 230, None), (-514, 230));
        assert_eq!(after(-516, 219, Some(230)), (-514, 230));
        assert_eq!(after(-514, 219, Some(7)), (-514, 7));
        assert_eq!(after(-516, 219, None), (-4, -1));
        assert_eq!(after(-516, 219, Some(219)), (-4, -1));
        assert_eq!(after(219, 230, Some(230)), (-514, 230));
        assert_eq!(after(219, -1i64 as u64, Some(219)), (-4, -1));
        assert_eq!(after(219, 0, None), (219, -1));
    }
}
