//! Where the library starts as a program. Inside a container nothing of ours can be executed by name: the dynamic
//! loader of the host is started with the library as its argument, loads what it needs and jumps to this entry.
//! `__libc_start_main` then does what it does for every program: initialisers (also std's, so that arguments are
//! known), `main`, buffers and exit status. No thread is ever started.
#![allow(unsafe_code, reason = "the first instruction of a program cannot be written otherwise")]
#![allow(unreachable_pub, reason = "the linker refers to it")]

use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    /// Of the C library; its address is all that is used here.
    fn __libc_start_main();
}

/// The ELF entry (build.rs): the stack holds argc and argv, rdx the loader's own exit handler.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn stasis_native_entry() -> ! {
    std::arch::naked_asm!(
        "xor ebp, ebp",
        "mov r9, rdx",
        "pop rsi",
        "mov rdx, rsp",
        "and rsp, -16",
        "push rax",
        "push rsp",
        "xor r8d, r8d",
        "xor ecx, ecx",
        "lea rdi, [rip + {main}]",
        "call [rip + {start}@GOTPCREL]",
        "hlt",
        main = sym engine_main,
        start = sym __libc_start_main,
    )
}

extern "C" fn engine_main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let mut arguments = Vec::new();
    for index in 1..count {
        // SAFETY: the kernel and the loader hand over argc pointers to strings that live as long as the process.
        let text = unsafe { CStr::from_ptr(*argv.add(index)) };
        arguments.push(text.to_string_lossy().into_owned());
    }
    c_int::from(crate::cli::run(&arguments))
}
