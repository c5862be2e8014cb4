//! What the processor can do, as far as saved code may rely on it.

use std::arch::x86_64::__cpuid_count;

/// Rows of leaf, subleaf and the four answers.
pub(crate) fn leaves() -> Vec<[u32; 6]> {
    let leaves = [(1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x8000_0001, 0)];
    let row = |(leaf, subleaf): (u32, u32)| {
        let mut answer = ask(leaf, subleaf);
        if leaf == 1 {
            // The processor number it ran on, and whether the system uses XSAVE.
            answer[1] &= 0x0000_ff00;
        }
        [leaf, subleaf, answer[0], answer[1], answer[2], answer[3]]
    };
    leaves.into_iter().map(row).collect()
}

#[allow(unused_unsafe, reason = "newer compilers know that every x86_64 has the instruction")]
fn ask(leaf: u32, subleaf: u32) -> [u32; 4] {
    // SAFETY: every x86_64 has the instruction; unknown leaves answer with other leaves' values.
    let answer = unsafe { __cpuid_count(leaf, subleaf) };
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}
