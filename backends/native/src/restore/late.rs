//! What needs all processes to be there: groups, foreground groups, pidfds, watches of epoll instances, record locks,
//! waiting signals, timers.

use super::check::unhex;
use super::objects::Made;
use super::remote::Remote;
use super::skeleton;
use crate::model::{Descriptor, Image, Kind, PosixTimer, Process};
use stasis_plugin_api::prelude::*;
use std::os::fd::AsRawFd as _;

const TIOCSPGRP: u64 = 0x5410;
const EPOLL_CTL_ADD: u64 = 1;
const SIGTRAP: u64 = 5;
const PR_SET_MDWE: u64 = 65;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
/// The registering commands of `membarrier`.
const REGISTRATIONS: [u32; 4] = [1 << 2, 1 << 4, 1 << 6, 1 << 8];
/// Numbers of timers that were made and deleted before this one.
const MOST_TIMERS: i32 = 4096;

/// Joins a group of another leader, who may have ended.
pub(super) fn group(remote: &Remote, image: &Image, process: &Process) -> Result<()> {
    let made = image.processes.iter().any(|p| p.pid == process.pgid)
        || skeleton::founder(image, process.pgid).is_some();
    if process.pgid == process.pid || !made {
        return Ok(());
    }
    let arguments = [0, i64::from(process.pgid).cast_unsigned()];
    remote.single(remote.pid, "its process group", libc::SYS_setpgid, &arguments).map(drop)
}

/// Who has the terminal, then the end of everything that is parked: afterwards only the process's own descriptors are
/// there.
pub(super) fn unpark(remote: &Remote, image: &Image, process: &Process, made: &Made) -> Result<()> {
    let mut table = remote.table();
    if let Some(index) = process.terminal.filter(|_| process.sid == process.pid) {
        let side = image.objects.iter().find_map(|o| match &o.kind {
            Kind::Pty(pty) if pty.index == index && pty.foreground > 0 => Some(pty.foreground),
            _ => None,
        });
        if let (Some(group), Some(follower)) = (side, made.terminals.follower(index)) {
            let at = table.put(&group.to_ne_bytes());
            let fd = i64::from(follower.as_raw_fd()).cast_unsigned();
            table.call("the terminal's foreground", libc::SYS_ioctl, &[fd, TIOCSPGRP, at]);
        }
    }
    let base = i64::from(made.base).cast_unsigned();
    table.call("the engine's descriptors", libc::SYS_close_range, &[base, u32::MAX.into(), 0]);
    remote.run(remote.pid, &mut table)
}

/// Pidfds, then locks. Watches come when every process has all of its descriptors.
pub(super) fn descriptors(remote: &Remote, image: &Image, process: &Process) -> Result<()> {
    let mut table = remote.table();
    for descriptor in &process.descriptors {
        let Some(object) = image.objects.get(descriptor.object) else { continue };
        if let Kind::Pid { pid } = object.kind {
            pidfd(remote, descriptor, pid, object.flags)?;
        }
        for lock in &descriptor.locks {
            let kind: i16 = if lock.write { 1 } else { 0 };
            let length = lock.end.map_or(0, |end| end - lock.start + 1);
            // struct flock: type and whence, start, length, pid.
            let head = i64::from(kind).to_ne_bytes();
            let bytes = [head, lock.start.to_ne_bytes(), length.to_ne_bytes(), [0; 8]].concat();
            let at = table.put(&bytes);
            let fd = i64::from(descriptor.fd).cast_unsigned();
            let what = format!("the lock on descriptor {}", descriptor.fd);
            table.call(what, libc::SYS_fcntl, &[fd, libc::F_SETLK as u64, at]);
            remote.make_room(remote.pid, &mut table)?;
        }
    }
    remote.run(remote.pid, &mut table)
}

fn pidfd(remote: &Remote, descriptor: &Descriptor, pid: i32, flags: u32) -> Result<()> {
    let what = format!("the pidfd {}", descriptor.fd);
    // PIDFD_NONBLOCK and PIDFD_THREAD.
    let flags = u64::from(flags) & (libc::O_NONBLOCK | libc::O_EXCL) as u64;
    let made =
        remote.single(remote.pid, &what, libc::SYS_pidfd_open, &[i64::from(pid).cast_unsigned(), flags])?;
    let wanted = i64::from(descriptor.fd).cast_unsigned();
    if made == wanted {
        // The kernel makes them closed at an exec.
        let keep = u64::from(descriptor.cloexec);
        return remote
            .single(remote.pid, &what, libc::SYS_fcntl, &[wanted, libc::F_SETFD as u64, keep])
            .map(drop);
    }
    let cloexec = if descriptor.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
    remote.single(remote.pid, &what, libc::SYS_dup3, &[made, wanted, cloexec])?;
    remote.single(remote.pid, &what, libc::SYS_close, &[made]).map(drop)
}

/// The watches that were set by this process.
pub(super) fn watches(remote: &Remote, image: &Image, process: &Process) -> Result<()> {
    let mut table = remote.table();
    for (index, object) in image.objects.iter().enumerate() {
        let Kind::Epoll { targets } = &object.kind else { continue };
        for target in targets.iter().filter(|t| t.pid == process.pid) {
            let Some(epoll) = process.descriptors.iter().find(|d| d.object == index) else {
                return Err(BackendError::new(kind::DAMAGED, "the image's core.json is damaged")
                    .because(format!(
                        "process {} watches by an epoll instance that it does not have",
                        process.pid
                    ))
                    .help("take another generation"));
            };
            let bytes = [&target.events.to_ne_bytes()[..], &target.data.to_ne_bytes()[..]].concat();
            let at = table.put(&bytes);
            let number = |fd: i32| i64::from(fd).cast_unsigned();
            let what = format!("the watch on descriptor {} by {}", target.fd, epoll.fd);
            table.call(what, libc::SYS_epoll_ctl, &[number(epoll.fd), EPOLL_CTL_ADD, number(target.fd), at]);
            remote.make_room(remote.pid, &mut table)?;
        }
    }
    remote.run(remote.pid, &mut table)
}

/// Waiting signals and timers. Everything is blocked meanwhile.
pub(super) fn signals(remote: &Remote, process: &Process) -> Result<()> {
    let pid = i64::from(process.pid).cast_unsigned();
    for thread in &process.threads {
        let failed = |e: nix::errno::Errno| {
            BackendError::failed(format!("cannot rebuild thread {}", thread.tid)).because(e.desc())
        };
        // Also SIGTRAP: no list of calls is run from here on.
        crate::sys::ptrace::set_signal_mask(thread.tid, u64::MAX).map_err(failed)?;
        let tid = i64::from(thread.tid).cast_unsigned();
        for info in thread.pending.iter().filter_map(|text| unhex(text)) {
            let signal = number_of(&info);
            let arguments = |at| vec![pid, tid, signal, at];
            remote.single_with(
                thread.tid,
                "a waiting signal",
                libc::SYS_rt_tgsigqueueinfo,
                arguments,
                &info,
            )?;
        }
    }
    for info in process.pending.iter().filter_map(|text| unhex(text)) {
        let signal = number_of(&info);
        let arguments = |at| vec![pid, signal, at];
        remote.single_with(remote.pid, "a waiting signal", libc::SYS_rt_sigqueueinfo, arguments, &info)?;
    }
    // An int3 may have changed what the process does about this one.
    if let Some(action) = process.signals.get(SIGTRAP as usize - 1) {
        let layout = [action.handler, action.flags, action.restorer, action.mask];
        let bytes: Vec<u8> = layout.iter().flat_map(|n| n.to_ne_bytes()).collect();
        let arguments = |at| vec![SIGTRAP, at, 0, 8];
        remote.single_with(remote.pid, "its signal handlers", libc::SYS_rt_sigaction, arguments, &bytes)?;
    }
    timers(remote, process)
}

fn number_of(info: &[u8]) -> u64 {
    let number = info.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    u64::try_from(number).unwrap_or(0)
}

fn timers(remote: &Remote, process: &Process) -> Result<()> {
    for (which, mut timer) in (0u64..).zip(process.itimers.iter().copied()) {
        if which == 0 && timer[2..] == [0, 0] && timer[..2] != [0, 0] {
            // It has fired and waits until its signal is taken before it goes on. The next one is due an interval
            // later; where the signal came too late to be saved, at once.
            let waits = process.pending.iter().any(|info| fired(info));
            timer = if waits { [timer[0], timer[1], timer[0], timer[1]] } else { [timer[0], timer[1], 0, 1] };
        }
        if timer[2..] != [0, 0] {
            let bytes: Vec<u8> = timer.iter().flat_map(|n| n.to_ne_bytes()).collect();
            let arguments = |at| vec![which, at, 0];
            remote.single_with(remote.pid, "an interval timer", libc::SYS_setitimer, arguments, &bytes)?;
        }
    }
    if process.posix_timers.is_empty() {
        return Ok(());
    }
    let choosing = |on: u64| {
        let arguments = [PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0];
        remote.single(remote.pid, "timer numbers", libc::SYS_prctl, &arguments).is_ok()
    };
    let chosen = choosing(1);
    let made = process.posix_timers.iter().try_for_each(|timer| posix(remote, timer, chosen));
    if chosen {
        choosing(0);
    }
    made
}

/// Whether a waiting signal comes from the real interval timer: SIGALRM, sent by the kernel.
fn fired(info: &str) -> bool {
    const SI_KERNEL: [u8; 4] = 0x80i32.to_ne_bytes();
    unhex(info).is_some_and(|info| number_of(&info) == 14 && info.get(8..12) == Some(&SI_KERNEL))
}

fn posix(remote: &Remote, timer: &PosixTimer, chosen: bool) -> Result<()> {
    let what = format!("timer {}", timer.id);
    // The answer, then struct sigevent: value, signal, how, thread.
    let mut bytes = timer.id.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&timer.sigval.to_ne_bytes());
    for number in [timer.signal, timer.notify, timer.tid] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    bytes.resize(8 + 64, 0);
    let mut tries = 0;
    loop {
        let clock = i64::from(timer.clock).cast_unsigned();
        let arguments = |at| vec![clock, at + 8, at];
        remote.single_with(remote.pid, &what, libc::SYS_timer_create, arguments, &bytes)?;
        let answer = remote.answer(4)?;
        let id = answer.try_into().map_or(-1, i32::from_ne_bytes);
        if id == timer.id {
            break;
        }
        remote.single(remote.pid, &what, libc::SYS_timer_delete, &[i64::from(id).cast_unsigned()])?;
        tries += 1;
        if chosen || id > timer.id || tries > MOST_TIMERS {
            return Err(BackendError::new(
                kind::UNSUPPORTED,
                format!("cannot rebuild process {}", remote.pid),
            )
            .because(format!("a timer has to have the number {}, which this kernel does not give", timer.id))
            .help("take a kernel from 6.15 on"));
        }
    }
    if timer.value == 0 {
        return Ok(());
    }
    let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
    let spec = [split(timer.interval), split(timer.value)];
    let bytes: Vec<u8> = spec.iter().flatten().flat_map(|n| n.to_ne_bytes()).collect();
    let id = i64::from(timer.id).cast_unsigned();
    let arguments = |at| vec![id, 0, at, 0];
    remote.single_with(remote.pid, &what, libc::SYS_timer_settime, arguments, &bytes).map(drop)
}

/// The last of what a process says about itself; the scratch area goes with it.
pub(super) fn last(remote: &Remote, process: &Process) -> Result<()> {
    let leader = remote.pid;
    let prctl = libc::SYS_prctl;
    for command in REGISTRATIONS.iter().filter(|command| process.barriers & **command != 0) {
        remote.single(leader, "its memory barriers", libc::SYS_membarrier, &[u64::from(*command)])?;
    }
    if process.settings.merges {
        // Only a matter of how much memory it takes.
        let _ = remote.single(leader, "equal pages", prctl, &[PR_SET_MEMORY_MERGE, 1]);
    }
    if process.settings.no_new_code != 0 {
        let bits = u64::from(process.settings.no_new_code);
        remote.single(leader, "no new code", prctl, &[PR_SET_MDWE, bits, 0, 0, 0])?;
    }
    // Whoever changed its ids on the way has lost it. 2 can only be had, not set; it is 0 for all but root.
    let dumpable = u64::from(process.dumpable == 1);
    remote.single(leader, "its dumpable flag", prctl, &[libc::PR_SET_DUMPABLE as u64, dumpable])?;
    let signal = i64::from(process.pdeathsig).cast_unsigned();
    remote.single(leader, "its parent's death", prctl, &[libc::PR_SET_PDEATHSIG as u64, signal])?;
    let arguments = [remote.scratch, super::layout::room()];
    remote.single(leader, "the engine's memory", libc::SYS_munmap, &arguments).map(drop)
}
