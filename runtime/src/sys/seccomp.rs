//! The small seccomp filter that answers chosen system calls with an errno.

use nix::errno::Errno;
use stasis_plugin_api::plan::SeccompRule;

const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

fn step(code: u16, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: yes, jf: no, k }
}

/// The filter's program: other architectures' calls pass, so that the numbers mean what was meant.
pub fn program(rules: &[SeccompRule]) -> Vec<libc::sock_filter> {
    let mut all = vec![step(LOAD_WORD, 4, 0, 0), step(JUMP_EQUAL, ARCHITECTURE, 1, 0), step(RETURN, ALLOW, 0, 0)];
    for rule in rules {
        let number = u32::try_from(rule.syscall).unwrap_or(u32::MAX);
        let answer = step(RETURN, ERRNO | (rule.errno.unsigned_abs() & 0xffff), 0, 0);
        all.push(step(LOAD_WORD, 0, 0, 0));
        match rule.argument {
            None => all.extend([step(JUMP_EQUAL, number, 0, 1), answer]),
            Some((index, value)) => {
                let low = 16 + 8 * u32::from(index.min(5));
                let halves = [(value & 0xffff_ffff) as u32, (value >> 32) as u32];
                all.extend([
                    step(JUMP_EQUAL, number, 0, 5),
                    step(LOAD_WORD, low, 0, 0),
                    step(JUMP_EQUAL, halves[0], 0, 3),
                    step(LOAD_WORD, low + 4, 0, 0),
                    step(JUMP_EQUAL, halves[1], 0, 1),
                    answer,
                ]);
            }
        }
    }
    all.push(step(RETURN, ALLOW, 0, 0));
    all
}

/// Installs the filter in this thread and all it starts. `no_new_privs` has to be set.
///
/// # Errors
/// What the kernel says.
pub fn install(rules: &[SeccompRule]) -> Result<(), Errno> {
    if rules.is_empty() {
        return Ok(());
    }
    let steps = program(rules);
    let length = u16::try_from(steps.len()).map_err(|_| Errno::E2BIG)?;
    let whole = libc::sock_fprog { len: length, filter: steps.as_ptr().cast_mut() };
    // SAFETY: the program lives until the call returns; the kernel copies and checks it.
    Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, 1u32, 0u32, &raw const whole) }).map(drop)
}
