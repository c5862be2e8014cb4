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
    let mut all =
        vec![step(LOAD_WORD, 4, 0, 0), step(JUMP_EQUAL, ARCHITECTURE, 1, 0), step(RETURN, ALLOW, 0, 0)];
    for rule in rules {
        let number = u32::try_from(rule.syscall).unwrap_or(u32::MAX);
        let answer = step(RETURN, ERRNO | (rule.errno.unsigned_abs() & 0xffff), 0, 0);
        all.push(step(LOAD_WORD, 0, 0, 0));
        match rule.argument {
            None => all.extend([step(JUMP_EQUAL, number, 0, 1), answer]),
            Some((index, value)) => {
                // Behind the two comparisons lie the answer and, one further, what follows the rule.
                let (equal, other) = if rule.except { (1, 0) } else { (0, 1) };
                let low = 16 + 8 * u32::from(index.min(5));
                let halves = [(value & 0xffff_ffff) as u32, (value >> 32) as u32];
                all.extend([
                    step(JUMP_EQUAL, number, 0, 5),
                    step(LOAD_WORD, low, 0, 0),
                    step(JUMP_EQUAL, halves[0], 0, 2 + other),
                    step(LOAD_WORD, low + 4, 0, 0),
                    step(JUMP_EQUAL, halves[1], equal, other),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program on a call, as the kernel would.
    fn answer(rules: &[SeccompRule], number: i64, arguments: [u64; 6]) -> u32 {
        let mut data = vec![u32::try_from(number).unwrap(), ARCHITECTURE, 0, 0];
        data.extend(arguments.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
        let steps = program(rules);
        let (mut at, mut value) = (0, 0);
        loop {
            let s = steps[at];
            at += 1;
            match s.code {
                LOAD_WORD => value = data[s.k as usize / 4],
                JUMP_EQUAL => at += usize::from(if value == s.k { s.jt } else { s.jf }),
                _ => return s.k,
            }
        }
    }

    #[test]
    fn rules_hit_what_they_name_and_nothing_else() {
        let rules = [
            SeccompRule { syscall: 28, argument: Some((2, 102)), except: false, errno: 22 },
            SeccompRule { syscall: 12, argument: Some((0, 0)), except: true, errno: 0 },
            SeccompRule { syscall: 7, argument: None, except: false, errno: 1 },
        ];
        let big = 1 << 32;
        for (number, arguments, expected) in [
            (28, [0, 0, 102, 0, 0, 0], ERRNO | 22),
            (28, [0, 0, 103, 0, 0, 0], ALLOW),
            (28, [0, 0, 102 + big, 0, 0, 0], ALLOW),
            (28, [102, 0, 0, 0, 0, 0], ALLOW),
            (12, [0; 6], ALLOW),
            (12, [5, 0, 0, 0, 0, 0], ERRNO),
            (12, [big, 0, 0, 0, 0, 0], ERRNO),
            (12, [big + 1, 0, 0, 0, 0, 0], ERRNO),
            (7, [1, 2, 3, 4, 5, 6], ERRNO | 1),
            (8, [0; 6], ALLOW),
        ] {
            assert_eq!(answer(&rules, number, arguments), expected, "{number} {arguments:?}");
        }
    }
}
