//! What registers say about an interrupted system call.

use crate::model::Registers;

/// rt_sigprocmask, the call of `home`.
pub(crate) const HOME_CALL: u64 = 14;
/// rt_sigreturn, the call of `rest`.
pub(crate) const REST_CALL: u64 = 15;
pub(crate) const RESTART_SYSCALL: u64 = 219;
/// The instruction `syscall`.
pub(crate) const SYSCALL: [u8; 2] = [0x0f, 0x05];
const EINTR: i64 = -4;
const RESTARTNOHAND: i64 = -514;
const RESTART_RESTARTBLOCK: i64 = -516;

fn result(registers: &Registers) -> i64 {
    registers.rax.cast_signed()
}

/// The thread was interrupted in a call that the kernel means to restart.
pub(crate) fn restarts(registers: &Registers) -> bool {
    registers.orig_rax.cast_signed() >= 0 && matches!(result(registers), -512 | -513 | -514 | -516)
}

/// As `home` has to leave them: a call that was to be restarted is made anew, a timed wait goes on with the time left.
pub(crate) fn going_home(registers: &Registers) -> Registers {
    let mut home = *registers;
    if restarts(registers) {
        let timed = result(registers) == RESTART_RESTARTBLOCK;
        home.rax = if timed { RESTART_SYSCALL } else { registers.orig_rax };
        home.rip = registers.rip.wrapping_sub(2);
    }
    home
}

/// A wait without limit that gives EINTR for a mere stop: the kernel decides as for one that is restarted unless a
/// handler runs. True when the registers were changed.
pub(crate) fn make_restartable(registers: &mut Registers) -> bool {
    if result(registers) != EINTR || registers.orig_rax.cast_signed() < 0 || !endless(registers) {
        return false;
    }
    registers.rax = RESTARTNOHAND.cast_unsigned();
    true
}

fn endless(registers: &Registers) -> bool {
    const EPOLL_WAIT: u64 = 232;
    const EPOLL_PWAIT: u64 = 281;
    const EPOLL_PWAIT2: u64 = 441;
    const SEMOP: u64 = 65;
    const SEMTIMEDOP: u64 = 220;
    const RT_SIGTIMEDWAIT: u64 = 128;
    match registers.orig_rax {
        EPOLL_WAIT | EPOLL_PWAIT => registers.r10 & 0xffff_ffff == 0xffff_ffff,
        EPOLL_PWAIT2 | SEMTIMEDOP => registers.r10 == 0,
        SEMOP => true,
        RT_SIGTIMEDWAIT => registers.rdx == 0,
        _ => false,
    }
}

/// The number of the call that a restart_syscall continues, from the instruction that loaded it (`code` ends where the
/// thread will go on).
pub(crate) fn call_before(code: &[u8]) -> Option<u64> {
    let code = code.strip_suffix(&SYSCALL)?;
    // mov eax, imm32, somewhere in the last instructions before. Behind a prefix (0x40 to 0x4f) it is another register.
    let mut ends = (5..=code.len()).rev();
    let found =
        ends.find_map(|end| match (end.checked_sub(6).and_then(|at| code.get(at)), code.get(end - 5..end)) {
            (Some(0x40..0x50), Some([0xb8, ..])) => Some(u64::MAX),
            (_, Some([0xb8, a, b, c, d])) => Some(u64::from(u32::from_le_bytes([*a, *b, *c, *d]))),
            _ => None,
        });
    found.filter(|number| *number < 512)
}

/// Where a thread goes on once a call is made that only continues an earlier one: it was stopped in it, or before the
/// kernel's restart of a timed wait was carried out (`code` is what lies at the instruction pointer). On a busy machine
/// that happens to threads that were let go and stopped again at once.
pub(crate) fn continues_another(registers: &Registers, code: [u8; 2]) -> Option<u64> {
    if registers.orig_rax == RESTART_SYSCALL && restarts(registers) {
        return Some(registers.rip);
    }
    let about_to = registers.rax == RESTART_SYSCALL && code == SYSCALL;
    about_to.then(|| registers.rip.wrapping_add(SYSCALL.len() as u64))
}

/// The call that will be continued, where the registers still know.
pub(crate) fn call_to_continue(registers: &Registers) -> Option<u64> {
    Some(registers.orig_rax).filter(|call| *call < 512 && *call != RESTART_SYSCALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupted(call: u64, result: i64) -> Registers {
        Registers { orig_rax: call, rax: result.cast_unsigned(), rip: 0x1002, ..Registers::default() }
    }

    #[test]
    fn a_read_is_made_anew_and_a_sleep_goes_on() {
        let read = going_home(&interrupted(0, -512));
        assert_eq!((read.rax, read.rip), (0, 0x1000));
        let sleep = going_home(&interrupted(230, -516));
        assert_eq!((sleep.rax, sleep.rip), (219, 0x1000));
    }

    #[test]
    fn what_ended_or_never_was_a_call_is_left_alone() {
        for registers in [interrupted(0, -4), interrupted(u64::MAX, -512), interrupted(0, 8)] {
            assert_eq!(going_home(&registers), registers);
        }
    }

    #[test]
    fn only_endless_waits_become_restartable() {
        let mut endless = Registers { r10: 0xffff_ffff, ..interrupted(232, -4) };
        assert!(make_restartable(&mut endless));
        assert_eq!(endless.rax.cast_signed(), -514);
        let mut limited = Registers { r10: 1000, ..interrupted(232, -4) };
        assert!(!make_restartable(&mut limited));
    }

    #[test]
    fn a_wait_that_is_about_to_be_continued_is_known() {
        let stopped = interrupted(RESTART_SYSCALL, -516);
        assert_eq!(continues_another(&stopped, [0x48, 0x3d]), Some(0x1002));
        assert_eq!(call_to_continue(&stopped), None);
        let about = Registers { rip: 0x1000, ..interrupted(230, 219) };
        assert_eq!(continues_another(&about, [0x0f, 0x05]), Some(0x1002));
        assert_eq!(call_to_continue(&about), Some(230));
        assert_eq!(continues_another(&about, [0x48, 0x3d]), None);
        assert_eq!(continues_another(&interrupted(230, -516), [0x48, 0x3d]), None);
        assert_eq!(call_to_continue(&Registers { orig_rax: u64::MAX, ..about }), None);
    }

    #[test]
    fn the_number_of_a_continued_call_is_read_from_its_code() {
        let sleep = [0x90, 0xb8, 0xe6, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(call_before(&sleep), Some(230));
        assert_eq!(call_before(&[0xb8, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x05]), None);
        // mov eax, 202; mov r8d, 1: not a write.
        let other = [0xb8, 0xca, 0, 0, 0, 0x41, 0xb8, 1, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(call_before(&other), None);
        assert_eq!(call_before(&[0x90; 8]), None);
    }
}
