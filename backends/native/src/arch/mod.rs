//! What depends on the processor: machine code, registers, stack frames. Only x86_64 so far.
#![allow(unsafe_code, reason = "machine code and its symbols")]

pub(crate) mod cave;
pub(crate) mod cpuid;
pub(crate) mod machine;
pub(crate) mod registers;
