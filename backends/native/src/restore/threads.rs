//! The threads of a process, each with what it has of its own but its registers; identity last.

use super::check::unhex;
use super::remote::Remote;
use super::table::Table;
use crate::model::{Credentials, Process, Thread};
use crate::sys::clone::{CloneArguments, THREAD};
use crate::sys::ptrace;
use stasis_plugin_api::prelude::*;

const SS_ONSTACK: i32 = 1;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// The state of the matrix unit (AMX).
const MATRICES: u64 = 1 << 18;
const CAP_SETPCAP: u64 = 8;
const HIGHEST_CAPABILITY: u64 = 63;
const PR_CAP_AMBIENT: u64 = 47;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Makes the threads beside the leader. They stand before their first instruction.
pub(super) fn make(remote: &Remote, process: &Process) -> Result<()> {
    let mut table = remote.table();
    for thread in process.threads.iter().skip(1) {
        let tid = table.put(&thread.tid.to_ne_bytes());
        let arguments =
            CloneArguments { flags: THREAD, set_tid: tid, set_tid_size: 1, ..CloneArguments::default() }
                .bytes();
        let at = table.put(&arguments);
        table.call(format!("thread {}", thread.tid), libc::SYS_clone3, &[at, arguments.len() as u64]);
        remote.make_room(remote.pid, &mut table)?;
    }
    remote.run(remote.pid, &mut table)?;
    for thread in &process.threads {
        ptrace::set_signal_mask(thread.tid, super::remote::ALL_BUT_TRAP).map_err(|e| {
            BackendError::failed(format!("cannot rebuild thread {}", thread.tid)).because(e.desc())
        })?;
    }
    Ok(())
}

/// What each thread tells the kernel about itself.
pub(super) fn settle(
    remote: &Remote,
    process: &Process,
    engine: &Credentials,
    here: &[[u64; 2]],
) -> Result<()> {
    for thread in &process.threads {
        let mut table = remote.table();
        own(&mut table, thread, process);
        if thread.tid == process.pid {
            limits(&mut table, process, here);
            if process.settings.extended_state & MATRICES != 0 {
                let arguments = [ARCH_REQ_XCOMP_PERM, MATRICES.trailing_zeros().into()];
                table.call("its matrix registers", libc::SYS_arch_prctl, &arguments);
            }
        }
        become_user(&mut table, &process.credentials, engine);
        remote.run(thread.tid, &mut table)?;
    }
    Ok(())
}

fn own(table: &mut Table, thread: &Thread, process: &Process) {
    if thread.rseq.address != 0 {
        let rseq = thread.rseq;
        let arguments = [rseq.address, rseq.size.into(), rseq.flags.into(), rseq.signature.into()];
        table.call("rseq", libc::SYS_rseq, &arguments);
    }
    let [head, length] = thread.robust_list;
    if length != 0 {
        table.call("its robust futexes", libc::SYS_set_robust_list, &[head, length]);
    }
    table.call("its exit notice", libc::SYS_set_tid_address, &[thread.clear_tid]);
    let mut stack = Vec::new();
    stack.extend_from_slice(&thread.altstack.sp.to_ne_bytes());
    stack.extend_from_slice(&i64::from(thread.altstack.flags & !SS_ONSTACK).to_ne_bytes());
    stack.extend_from_slice(&thread.altstack.size.to_ne_bytes());
    let at = table.put(&stack);
    table.call("its signal stack", libc::SYS_sigaltstack, &[at, 0]);
    let at = table.text(&thread.comm);
    table.call("its name", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, at]);
    if process.personality != 0 {
        table.call("its personality", libc::SYS_personality, &[process.personality]);
    }
}

/// The limits, at most those that the engine has itself; more where that is allowed.
fn limits(table: &mut Table, process: &Process, here: &[[u64; 2]]) {
    for (resource, (wanted, [_, most])) in (0u64..).zip(process.rlimits.iter().zip(here)) {
        let mut set = |[soft, hard]: [u64; 2], must: bool| {
            let bytes = [soft.to_ne_bytes(), hard.to_ne_bytes()].concat();
            let at = table.put(&bytes);
            let (what, number, arguments) = ("its limits", libc::SYS_prlimit64, [0, resource, at, 0]);
            match must {
                true => table.call(what, number, &arguments),
                false => table.try_call(what, number, &arguments),
            }
        };
        set(wanted.map(|n| n.min(*most)), true);
        if wanted[1] > *most {
            set(*wanted, false);
        }
    }
}

/// Only what is not so already: most calls here need a privilege.
fn become_user(table: &mut Table, wanted: &Credentials, now: &Credentials) {
    let prctl = libc::SYS_prctl;
    if now.effective & 1 << CAP_SETPCAP != 0 {
        for capability in (0..=HIGHEST_CAPABILITY).filter(|c| now.bounding & !wanted.bounding & 1 << c != 0) {
            table.call("its bounding set", prctl, &[libc::PR_CAPBSET_DROP as u64, capability]);
        }
    }
    if wanted.securebits != now.securebits {
        table.call("its securebits", prctl, &[libc::PR_SET_SECUREBITS as u64, wanted.securebits.into()]);
    }
    if wanted.groups != now.groups {
        let groups: Vec<u8> = wanted.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        let at = table.put(&groups);
        table.call("its groups", libc::SYS_setgroups, &[wanted.groups.len() as u64, at]);
    }
    let ids = |ids: [u32; 4]| [u64::from(ids[0]), ids[1].into(), ids[2].into()];
    if wanted.gids != now.gids {
        table.call("its group id", libc::SYS_setresgid, &ids(wanted.gids));
        table.call("its group id", libc::SYS_setfsgid, &[wanted.gids[3].into()]);
    }
    if wanted.uids != now.uids {
        table.call("its capabilities", prctl, &[libc::PR_SET_KEEPCAPS as u64, 1]);
        table.call("its user id", libc::SYS_setresuid, &ids(wanted.uids));
        table.call("its user id", libc::SYS_setfsuid, &[wanted.uids[3].into()]);
        table.call("its capabilities", prctl, &[libc::PR_SET_KEEPCAPS as u64, 0]);
    }
    // PR_CAP_AMBIENT_CLEAR_ALL.
    table.call("its capabilities", prctl, &[PR_CAP_AMBIENT, 4, 0, 0, 0]);
    let mut bytes: Vec<u8> = [CAPABILITY_VERSION_3, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let header = table.put(&bytes);
    bytes.clear();
    for half in [0, 32] {
        for set in [wanted.effective, wanted.permitted, wanted.inheritable] {
            bytes.extend_from_slice(&((set >> half) as u32).to_ne_bytes());
        }
    }
    let data = table.put(&bytes);
    table.call("its capabilities", libc::SYS_capset, &[header, data]);
    for capability in (0..=HIGHEST_CAPABILITY).filter(|c| wanted.ambient & 1 << c != 0) {
        table.call("its capabilities", prctl, &[PR_CAP_AMBIENT, 2, capability, 0, 0]);
    }
    if wanted.no_new_privs && !now.no_new_privs {
        table.call("no_new_privs", prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]);
    }
}

/// Registers and signal masks: afterwards the threads are as they were, and still stand.
pub(super) fn finish(process: &Process) -> Result<()> {
    for thread in &process.threads {
        let failed = |what: &str, e: nix::errno::Errno| {
            BackendError::failed(format!("cannot rebuild thread {}", thread.tid))
                .because(format!("{what}: {}", e.desc()))
        };
        let state = unhex(&thread.xstate).unwrap_or_default();
        if !state.is_empty() {
            ptrace::set_extended_state(thread.tid, &state).map_err(|e| failed("extended registers", e))?;
        }
        let registers = super::machine::registers(thread);
        ptrace::set_registers(thread.tid, &registers).map_err(|e| failed("registers", e))?;
        ptrace::set_signal_mask(thread.tid, thread.sigmask).map_err(|e| failed("signal mask", e))?;
    }
    Ok(())
}
