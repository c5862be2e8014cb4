//! The machine code that a capture lays into a target, and the memory that it works on.
//!
//! The code lies in the zero bytes at the end of the target's own vdso (the *cave*):
//! - `rest`: rt_sigreturn; tasks of our own stand here and go on with the frame at their stack pointer;
//! - `home`: an application's thread that stands here sets its own signal mask, takes its registers from the stack
//!   and jumps back to where it was. Left alone, it goes home. (Not by rt_sigreturn: that ends the kernel's memory of an
//!   interrupted timed wait.)
//! - `run`: carries out a table of system calls, then ends the task.
//!
//! The memory (the *region*) lies in dead memory at the bottom of the main thread's stack. `home`'s registers lie
//! lowest, so that a signal handler which starts on them grows away from the rest.

use crate::model::Registers;

std::arch::global_asm!(
    ".pushsection .text",
    ".balign 16",
    ".globl stasis_native_cave, stasis_native_home, stasis_native_run, stasis_native_slots, stasis_native_end",
    ".hidden stasis_native_cave, stasis_native_home, stasis_native_run, stasis_native_slots, stasis_native_end",
    "stasis_native_cave:",
    "mov eax, 15",
    "syscall",
    "ud2",
    "stasis_native_home:",
    // A task just made by a call from here has a stack of its own: it goes to its frame.
    "cmp rsp, [rip + stasis_native_slots]",
    "jne stasis_native_cave",
    "mov eax, 14",
    "mov edi, 2",
    "lea rsi, [rsp + 136]",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rax",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "popfq",
    "pop rsp",
    "jmp [rip + stasis_native_slots + 8]",
    "stasis_native_run:",
    "cmp rbx, rbp",
    "jae 2f",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "cmp rsp, r13",
    "jne stasis_native_cave",
    "mov [rbx + 56], rax",
    "add rbx, 64",
    "jmp stasis_native_run",
    "2: xor edi, edi",
    "mov eax, 60",
    "syscall",
    "ud2",
    ".balign 8",
    "stasis_native_slots:",
    ".quad 0, 0",
    "stasis_native_end:",
    ".popsection",
);

unsafe extern "C" {
    static stasis_native_cave: u8;
    static stasis_native_home: u8;
    static stasis_native_run: u8;
    static stasis_native_slots: u8;
    static stasis_native_end: u8;
}

/// Bytes of the region.
pub(crate) const REGION: usize = 16384;
/// The number of calls that a table of the helper has room for.
pub(crate) const CALLS: usize = 128;
/// One call in a table: number, six arguments, result.
pub(crate) const CALL: u64 = 64;
/// What a result is before its call was made.
pub(crate) const NOT_MADE: i64 = -999;

/// Where things lie in the region.
pub(crate) mod at {
    pub(crate) const HOME: u64 = 0;
    pub(crate) const HELPER_FRAME: u64 = 256;
    pub(crate) const FIRST_FRAME: u64 = 576;
    pub(crate) const COPY_FRAME: u64 = 896;
    /// Marks a region that an earlier capture left.
    pub(crate) const TOKEN: u64 = 1216;
    /// Answers of the calls that threads make themselves.
    pub(crate) const ANSWERS: u64 = 1280;
    /// The helper's table.
    pub(crate) const TABLE: u64 = 2048;
    /// The table of the first task of a snapshot, with one call.
    pub(crate) const FIRST_TABLE: u64 = TABLE + super::CALLS as u64 * super::CALL;
    /// Where the helper's calls leave their answers.
    pub(crate) const DATA: u64 = FIRST_TABLE + 128;
}

/// The code as it goes into a target, and the offsets in it.
pub(crate) struct Code {
    pub(crate) bytes: Vec<u8>,
    pub(crate) home: u64,
    pub(crate) run: u64,
    pub(crate) slots: u64,
}

pub(crate) fn code() -> Code {
    let start = (&raw const stasis_native_cave).addr();
    let offset = |address: usize| (address - start) as u64;
    let end = (&raw const stasis_native_end).addr();
    let length = end - start;
    // SAFETY: both symbols delimit the code above.
    let bytes = unsafe { std::slice::from_raw_parts(&raw const stasis_native_cave, length) };
    Code {
        bytes: bytes.to_vec(),
        home: offset((&raw const stasis_native_home).addr()),
        run: offset((&raw const stasis_native_run).addr()),
        slots: offset((&raw const stasis_native_slots).addr()),
    }
}

/// What `home` pops, and the mask behind it.
pub(crate) fn home_block(registers: &Registers, mask: u64) -> Vec<u8> {
    let r = registers;
    let words = [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi,
        r.rdi, r.eflags, r.rsp, mask,
    ];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A frame that rt_sigreturn leads to `run` with: everything masked, no FPU state, an invalid alternate stack (which
/// the kernel ignores).
pub(crate) fn run_frame(run: u64, table: u64, table_end: u64, stack: u64, rest: u64) -> Vec<u8> {
    let mut frame = vec![0_u8; 312];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &rest.to_ne_bytes());
    put(8, &6_u64.to_ne_bytes()); // uc_flags
    put(32, &0x7fff_ffff_u32.to_ne_bytes()); // ss_flags
    put(48 + 8 * 5, &stack.to_ne_bytes()); // r13
    put(112 + 8 * 2, &table_end.to_ne_bytes()); // rbp
    put(112 + 8 * 3, &table.to_ne_bytes()); // rbx
    put(112 + 8 * 7, &stack.to_ne_bytes()); // rsp
    put(112 + 8 * 8, &run.to_ne_bytes()); // rip
    put(112 + 8 * 9, &0x202_u64.to_ne_bytes()); // eflags
    put(192, &[0x33, 0, 0, 0, 0, 0, 0x2b, 0]); // cs, ss
    put(304, &u64::MAX.to_ne_bytes()); // mask
    frame
}
