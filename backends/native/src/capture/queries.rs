//! What only a process itself can ask: signal actions, timers, a few prctls; and of each thread its tid address and
//! alternate stack.

use super::inject::{Call, Site, unexpected, wait};
use super::seize::{Held, HeldThread, failed};
use crate::arch::cave::at;
use crate::model::{AltStack, Placement, PosixTimer, Settings, SignalAction};
use crate::sys::ptrace::{self, Stop};
use nix::errno::Errno;
use stasis_plugin_api::error::{BackendError, Result};

const PR_GET_PDEATHSIG: u64 = 2;
const PR_GET_DUMPABLE: u64 = 3;
const PR_GET_SECUREBITS: u64 = 27;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
/// The state of a matrix unit (AMX), which a process has to ask for.
const DYNAMIC_STATE: u64 = 1 << 18;
const PR_THP_DISABLE_EXCEPT_ADVISED: i64 = 1 << 1;
const SIGNALS: u64 = 64;
/// Tells what the process has registered for, since Linux 6.3.
const GET_REGISTRATIONS: u64 = 1 << 9;
/// Barriers that only a process may ask for that has registered: one bit above each is the registration.
const BARRIERS: [u64; 3] = [1 << 3, 1 << 5, 1 << 7];
/// To be reached by barriers of other processes. Before 6.3 nothing tells; having it does no harm.
const REGISTERED_GLOBAL: u64 = 1 << 2;

/// What a process answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) brk: u64,
    pub(crate) signals: Vec<SignalAction>,
    pub(crate) itimers: Vec<[u64; 4]>,
    pub(crate) posix_timers: Vec<PosixTimer>,
    pub(crate) subreaper: bool,
    pub(crate) dumpable: i32,
    pub(crate) securebits: u32,
    pub(crate) thp_disable: bool,
    pub(crate) personality: u64,
    pub(crate) pdeathsig: i32,
    pub(crate) barriers: u32,
    pub(crate) settings: Settings,
    /// In the order of the held threads.
    pub(crate) threads: Vec<OfThread>,
}

/// What a thread answered.
#[derive(Debug, Default)]
pub(crate) struct OfThread {
    pub(crate) clear_tid: u64,
    pub(crate) altstack: AltStack,
    pdeathsig: i32,
}

/// Where the helper's answers lie.
const ACTIONS: u64 = at::DATA;
const ITIMERS: u64 = ACTIONS + SIGNALS * 32;
const SUBREAPER: u64 = ITIMERS + 3 * 32;
const STATE: u64 = SUBREAPER + 8;
const POLICY: u64 = STATE + 8;
const NODES: u64 = POLICY + 8;
/// As many nodes as any kernel of today knows.
const MOST_NODES: u64 = 1024;
const TIMERS: u64 = NODES + MOST_NODES / 8;

/// How many calls come before those of the POSIX timers.
const FIXED: usize = SETTINGS + 4;
/// Where those about barriers begin. They, and all up to the timers, may fail: not every kernel knows them.
const BARRIER: usize = 1 + 64 + 3 + 5;
/// Where those about settings begin.
const SETTINGS: usize = BARRIER + 1 + BARRIERS.len();

fn calls(site: &Site, timers: &[PosixTimer]) -> Vec<Call> {
    let mut calls = vec![Call::new(libc::SYS_brk, &[0])];
    for signal in 1..=SIGNALS {
        let answer = site.address(ACTIONS + (signal - 1) * 32);
        calls.push(Call::new(libc::SYS_rt_sigaction, &[signal, 0, answer, 8]));
    }
    for which in 0..3 {
        calls.push(Call::new(libc::SYS_getitimer, &[which, site.address(ITIMERS + which * 32)]));
    }
    calls.push(Call::new(libc::SYS_prctl, &[PR_GET_CHILD_SUBREAPER, site.address(SUBREAPER)]));
    calls.push(Call::new(libc::SYS_prctl, &[PR_GET_DUMPABLE]));
    calls.push(Call::new(libc::SYS_prctl, &[PR_GET_SECUREBITS]));
    calls.push(Call::new(libc::SYS_prctl, &[PR_GET_THP_DISABLE]));
    calls.push(Call::new(libc::SYS_personality, &[0xffff_ffff]));
    for command in [GET_REGISTRATIONS].into_iter().chain(BARRIERS) {
        calls.push(Call::new(libc::SYS_membarrier, &[command]));
    }
    calls.push(Call::new(libc::SYS_prctl, &[PR_GET_MDWE]));
    calls.push(Call::new(libc::SYS_prctl, &[PR_GET_MEMORY_MERGE]));
    calls.push(Call::new(libc::SYS_arch_prctl, &[ARCH_GET_XCOMP_PERM, site.address(STATE)]));
    let [policy, nodes] = [POLICY, NODES].map(|offset| site.address(offset));
    calls.push(Call::new(libc::SYS_get_mempolicy, &[policy, nodes, MOST_NODES]));
    for (index, timer) in timers.iter().enumerate() {
        let id = u64::from(timer.id.cast_unsigned());
        let answer = site.address(TIMERS + index as u64 * 32);
        calls.push(Call::new(libc::SYS_timer_gettime, &[id, answer]));
        calls.push(Call::new(libc::SYS_timer_getoverrun, &[id]));
    }
    calls
}

/// Asks one process and all its threads.
pub(crate) fn ask(site: &Site, held: &Held, timers: Vec<PosixTimer>) -> Result<Answers> {
    let calls = calls(site, &timers);
    site.prepare(held, &calls)?;
    let leader = held.leader()?;
    site.enter(leader)?;
    let mut threads = vec![ask_thread(site, held, leader)?];
    let helper = site.make_helper(leader.tid)?;
    site.leave(leader)?;
    ptrace::resume(helper, 0).map_err(|error| failed("continuing", helper, error))?;
    for thread in held.threads.iter().skip(1) {
        site.house(&held.memory, thread)?;
        site.enter(thread)?;
        threads.push(ask_thread(site, held, thread)?);
        site.leave(thread)?;
    }
    match wait(helper)? {
        Stop::Gone => {}
        other => return Err(unexpected(helper, other)),
    }
    let results = site.results(&held.memory, calls.len())?;
    for (index, (call, result)) in calls.iter().zip(&results).enumerate() {
        if (-4095..0).contains(result) && !(BARRIER..FIXED).contains(&index) {
            let why = Errno::from_raw(i32::try_from(-result).unwrap_or(0));
            let what = format!("process {} may not make system call {}", held.pid, call.number);
            return Err(BackendError::failed(what).because(why.desc()));
        }
    }
    let mut answers = understand(site, held, &results, timers)?;
    answers.pdeathsig = threads.first().map_or(0, |leader| leader.pdeathsig);
    answers.threads = threads;
    Ok(answers)
}

fn understand(site: &Site, held: &Held, results: &[i64], mut timers: Vec<PosixTimer>) -> Result<Answers> {
    let length = usize::try_from(TIMERS - at::DATA).unwrap_or(0) + timers.len() * 32;
    let bytes = site.read(&held.memory, at::DATA, length)?;
    let words: Vec<u64> =
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default())).collect();
    let result = |index: usize| results.get(index).copied().unwrap_or(0);
    let four = |offset: u64| {
        let from = usize::try_from((offset - at::DATA) / 8).unwrap_or(0);
        let mut four = [0; 4];
        for (place, word) in four.iter_mut().zip(words.iter().skip(from)) {
            *place = *word;
        }
        four
    };
    let action = |signal: u64| {
        let [handler, flags, restorer, mask] = four(ACTIONS + signal * 32);
        SignalAction { handler, flags, restorer, mask }
    };
    for (index, timer) in timers.iter_mut().enumerate() {
        let [interval_s, interval_ns, value_s, value_ns] = four(TIMERS + index as u64 * 32);
        timer.interval = interval_s.saturating_mul(1_000_000_000).saturating_add(interval_ns);
        timer.value = value_s.saturating_mul(1_000_000_000).saturating_add(value_ns);
        timer.overrun = i32::try_from(result(FIXED + index * 2 + 1)).unwrap_or(0);
    }
    Ok(Answers {
        brk: result(0).cast_unsigned(),
        signals: (0..SIGNALS).map(action).collect(),
        itimers: (0..3).map(|which| four(ITIMERS + which * 32)).collect(),
        posix_timers: timers,
        subreaper: four(SUBREAPER)[0] & 0xffff_ffff != 0,
        dumpable: i32::try_from(result(69)).unwrap_or(0),
        securebits: u32::try_from(result(70)).unwrap_or(0),
        thp_disable: result(71) != 0,
        personality: result(72).cast_unsigned(),
        barriers: barriers(results.get(BARRIER..SETTINGS).unwrap_or_default()),
        settings: Settings {
            huge_when_advised: result(71) & PR_THP_DISABLE_EXCEPT_ADVISED != 0,
            ..settings(results.get(SETTINGS..FIXED).unwrap_or_default(), &words)
        },
        ..Answers::default()
    })
}

/// What it told of its settings: the calls' answers, and what they left.
fn settings(answers: &[i64], words: &[u64]) -> Settings {
    let answer = |index: usize| answers.get(index).copied().filter(|answer| *answer >= 0);
    let place = |offset: u64| usize::try_from((offset - at::DATA) / 8).unwrap_or(0);
    let word = |offset: u64| words.get(place(offset)).copied().unwrap_or(0);
    let mode = answer(3).map_or(0, |_| word(POLICY) as u32);
    let mut nodes = words.get(place(NODES)..place(TIMERS)).unwrap_or_default().to_vec();
    nodes.truncate(nodes.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1));
    Settings {
        no_new_code: answer(0).and_then(|bits| u32::try_from(bits).ok()).unwrap_or(0),
        merges: answer(1) == Some(1),
        extended_state: answer(2).map_or(0, |_| word(STATE) & DYNAMIC_STATE),
        placement: (mode != 0).then_some(Placement { mode, nodes }),
        ..Settings::default()
    }
}

/// What the process has registered for, from the answers to the calls about it.
fn barriers(answers: &[i64]) -> u32 {
    match answers {
        [] => 0,
        [known, ..] if *known >= 0 => u32::try_from(*known).unwrap_or(0),
        // A kernel without such barriers.
        [error, ..] if *error == -i64::from(libc::ENOSYS) => 0,
        [_, tried @ ..] => {
            let granted = BARRIERS.iter().zip(tried).filter(|(_, answer)| **answer == 0);
            let registered = granted.fold(REGISTERED_GLOBAL, |all, (barrier, _)| all | barrier << 1);
            u32::try_from(registered).unwrap_or(0)
        }
    }
}

/// The questions that every thread has to answer itself. It stands on `home`.
fn ask_thread(site: &Site, held: &Held, thread: &HeldThread) -> Result<OfThread> {
    let answer = |offset: u64| site.address(at::ANSWERS + offset);
    let mut questions = vec![
        Call::new(libc::SYS_prctl, &[PR_GET_TID_ADDRESS, answer(0)]),
        Call::new(libc::SYS_sigaltstack, &[0, answer(8)]),
    ];
    if thread.tid == held.pid {
        questions.push(Call::new(libc::SYS_prctl, &[PR_GET_PDEATHSIG, answer(32)]));
    }
    for call in questions {
        let (result, _) = site.call(thread.tid, call)?;
        if result < 0 {
            let why = Errno::from_raw(i32::try_from(-result).unwrap_or(0));
            let what = format!("thread {} may not make system call {}", thread.tid, call.number);
            return Err(BackendError::failed(what).because(why.desc()));
        }
    }
    let bytes = site.read(&held.memory, at::ANSWERS, 40)?;
    let word = |offset: usize| {
        u64::from_ne_bytes(bytes.get(offset..offset + 8).and_then(|w| w.try_into().ok()).unwrap_or_default())
    };
    let low = |word: u64| {
        i32::from_ne_bytes([word as u8, (word >> 8) as u8, (word >> 16) as u8, (word >> 24) as u8])
    };
    Ok(OfThread {
        clear_tid: word(0),
        altstack: AltStack { sp: word(8), flags: low(word(16)), size: word(24) },
        pdeathsig: if thread.tid == held.pid { low(word(32)) } else { 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_the_kernel_does_not_know_are_none() {
        let mut words = vec![0; usize::try_from((TIMERS - at::DATA) / 8).unwrap()];
        let mut put =
            |offset: u64, word: u64| words[usize::try_from((offset - at::DATA) / 8).unwrap()] = word;
        put(STATE, DYNAMIC_STATE | 7);
        put(POLICY, 0xffff_ffff_0000_0002);
        put(NODES + 8, 5);
        let unknown = [-i64::from(libc::EINVAL); 4];
        assert_eq!(settings(&unknown, &words), Settings::default());
        let told = Settings {
            no_new_code: 1,
            merges: true,
            extended_state: DYNAMIC_STATE,
            placement: Some(Placement { mode: 2, nodes: vec![0, 5] }),
            ..Settings::default()
        };
        assert_eq!(settings(&[1, 1, 0, 0], &words), told);
    }

    #[test]
    fn registrations_for_barriers() {
        let (unknown, denied) = (-i64::from(libc::EINVAL), -i64::from(libc::EPERM));
        assert_eq!(barriers(&[0x110, 0, denied, 0]), 0x110);
        assert_eq!(barriers(&[unknown, 0, denied, 0]), 0x114);
        assert_eq!(barriers(&[unknown, denied, denied, unknown]), 0x4);
        assert_eq!(barriers(&[-i64::from(libc::ENOSYS); 4]), 0);
    }
}
