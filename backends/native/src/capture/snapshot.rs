//! A copy of a process that keeps its memory as it is now, while the process runs on.
//!
//! The helper makes the *first* task, which shares the memory and therefore is no child that the application could
//! notice (the helper waits for it itself); the first makes the *copy*, a fork, and ends. The copy belongs to the
//! namespace's init then, stands still, and dies with the engine.

use super::inject::{Call, Site, expect_stop, unexpected, wait};
use super::seize::{Held, failed};
use crate::arch::cave::{CALL, at};
use crate::sys::ptrace::{self, Stop};
use crate::sys::{pidfd, process, uffd};
use stasis_plugin_api::error::{BackendError, Result};
use std::fs::File;
use std::os::fd::OwnedFd;

/// The copy of a process; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) pid: i32,
    /// `/proc/PID/mem`.
    pub(crate) memory: File,
}

impl Snapshot {
    /// Nobody has killed it.
    pub(crate) fn alive(&self) -> bool {
        ptrace::stands(self.pid)
    }

    /// Closes what the copy holds open: the application's readers would wait for its end otherwise.
    pub(crate) fn close_descriptors(&self, site: &Site) -> Result<()> {
        let call = Call::new(libc::SYS_close_range, &[0, u64::from(u32::MAX)]);
        match site.call_at_rest(self.pid, call)? {
            0 => Ok(()),
            error => {
                let why = nix::errno::Errno::from_raw(i32::try_from(-error).unwrap_or(0));
                let what = format!("the copy {} does not close its descriptors", self.pid);
                Err(BackendError::failed(what).because(why.desc()))
            }
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        end(self.pid);
    }
}

fn end(pid: i32) {
    if process::kill(pid, libc::SIGKILL).is_err() {
        return;
    }
    // It stops once more on its way, and cannot be continued while it wakes up.
    while wait(pid).is_ok_and(|stop| stop != Stop::Gone) {
        let _ = ptrace::resume(pid, 0);
    }
}

/// Whether the first task has the process's descriptors or a copy of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descriptors {
    Shared,
    Copied,
}

/// A userfaultfd of the process: made by a first task, so that the process never has the descriptor.
pub(crate) fn userfaultfd(site: &Site, held: &Held) -> Result<OwnedFd> {
    let refused = |error: nix::errno::Errno| {
        BackendError::failed(format!("no userfaultfd of process {}", held.pid)).because(error.desc())
    };
    let taken = by_a_task(site, held, |task| {
        let made = site.call_at_rest(task, Call::new(libc::SYS_userfaultfd, &[uffd::FLAGS]))?;
        match i32::try_from(made) {
            Ok(number @ 0..) => pidfd::open(task).and_then(|it| pidfd::copy(&it, number)).map_err(refused),
            Ok(error) => Err(refused(nix::errno::Errno::from_raw(-error))),
            Err(_) => Err(refused(nix::errno::Errno::EINVAL)),
        }
    })?;
    uffd::agree(&taken).map_err(refused)?;
    Ok(taken)
}

/// Lets a task with the memory of the process make these calls, one by one; their results. Unlike a helper it does
/// nothing any more once the engine dies and lets the others run.
pub(crate) fn make_calls_while_held(site: &Site, held: &Held, calls: &[Call]) -> Result<Vec<i64>> {
    by_a_task(site, held, |task| calls.iter().map(|call| site.call_at_rest(task, *call)).collect())
}

/// Does something with a first task, which stands at rest, has descriptors of its own, and dies with the engine.
fn by_a_task<T>(site: &Site, held: &Held, work: impl FnOnce(i32) -> Result<T>) -> Result<T> {
    // Left alone it makes no copy, which would become a child of whoever adopts orphans.
    let nothing = Call::new(libc::SYS_getpid, &[]).bytes().collect::<Vec<_>>();
    let helper = helper(site, held, &calls(site, Descriptors::Copied, 0), at::FIRST_TABLE, &nothing)?;
    let Some(task) = first(helper)? else {
        gone(helper)?;
        return Err(no_copy(site, held, 0));
    };
    let done = work(task);
    end(task);
    gone(helper)?;
    done
}

const PR_SET_CHILD_SUBREAPER: u64 = 36;
/// How long a helper whose engine died waits, in nanoseconds: the copies of others end meanwhile, and nobody who adopts
/// orphans sees them.
const GRACE: u64 = 50_000_000;

/// The clone writes the first task's id into the first argument of the wait behind it, so that no engine is needed for
/// the rest. `before` calls come first.
fn calls(site: &Site, descriptors: Descriptors, before: u64) -> [Call; 2] {
    let files = if descriptors == Descriptors::Shared { libc::CLONE_FILES } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_FS | files | libc::CLONE_PARENT_SETTID;
    let flags = u64::from(flags.cast_unsigned());
    let id = site.address(at::TABLE) + CALL * (before + 1) + 8;
    let all = u64::from(libc::__WALL.cast_unsigned());
    [
        Call::new(libc::SYS_clone, &[flags, site.address(at::FIRST_FRAME) + 8, id]),
        Call::new(libc::SYS_wait4, &[0x7fff_ffff, 0, all]),
    ]
}

/// The same by a process that adopts orphans: it would be the copy's parent, and see it. It does not for this time,
/// engine or not.
fn calls_of_adopting(site: &Site) -> [Call; 5] {
    let [copy, wait] = calls(site, Descriptors::Shared, 1);
    let adopt = |on: u64| Call::new(libc::SYS_prctl, &[PR_SET_CHILD_SUBREAPER, on]);
    [adopt(0), copy, wait, Call::new(libc::SYS_nanosleep, &[site.address(at::DATA), 0]), adopt(1)]
}

/// The helper of a process that adopts orphans, which has stopped doing so and stands still.
pub(crate) fn adopt_no_more(site: &Site, held: &Held) -> Result<i32> {
    let grace = [0, GRACE].map(u64::to_ne_bytes).concat();
    let helper = helper(site, held, &calls_of_adopting(site), at::DATA, &grace)?;
    // Its frame is taken by a call of its own; each call stops at its beginning and at its end.
    for number in [libc::SYS_rt_sigreturn, libc::SYS_prctl] {
        to_next_call(helper)?;
        let error = |error| failed("asking", helper, error);
        let made = ptrace::registers(helper).map_err(error)?.orig_rax.cast_signed();
        to_next_call(helper)?;
        if made != number {
            let what = format!("thread {helper} makes call {made} instead of {number}");
            return Err(BackendError::failed(what));
        }
    }
    Ok(helper)
}

fn to_next_call(helper: i32) -> Result<()> {
    ptrace::resume_to_call(helper, 0).map_err(|error| failed("continuing", helper, error))?;
    match wait(helper)? {
        Stop::Call => Ok(()),
        other => Err(unexpected(helper, other)),
    }
}

/// Lets a helper go its way alone.
pub(crate) fn let_go(helper: i32) {
    // One that was used has ended.
    let _ = ptrace::detach(helper, 0);
}

/// A helper that will make these calls, with these data at a place of the region.
fn helper(site: &Site, held: &Held, calls: &[Call], place: u64, data: &[u8]) -> Result<i32> {
    site.prepare(held, calls)?;
    site.put(&held.memory, place, data)?;
    let leader = held.leader()?;
    site.enter(leader)?;
    let helper = site.make_helper(leader.tid)?;
    site.leave(leader)?;
    Ok(helper)
}

/// Lets the process make these calls, by a thread of ours that ends then; their results.
pub(crate) fn make_calls(site: &Site, held: &Held, calls: &[Call]) -> Result<Vec<i64>> {
    let helper = helper(site, held, calls, at::DATA, &[])?;
    go_on(helper)?;
    gone(helper)?;
    site.results(&held.memory, calls.len())
}

/// Copies one process that stands still.
pub(crate) fn take(site: &Site, held: &Held) -> Result<Snapshot> {
    let helper = helper(site, held, &calls(site, Descriptors::Shared, 0), at::DATA, &[])?;
    copy(site, held, helper, 0)
}

/// Copies one that adopts orphans, by its helper.
pub(crate) fn take_by(site: &Site, held: &Held, helper: i32) -> Result<Snapshot> {
    // Nobody has to be waited for: this engine has not died.
    site.put(&held.memory, at::DATA, &[0; 16])?;
    copy(site, held, helper, 1)
}

/// The first task, made by the helper, which waits for it then; `None` when it could not be made.
fn first(helper: i32) -> Result<Option<i32>> {
    go_on(helper)?;
    let task = child(helper)?;
    if let Some(task) = task {
        expect_stop(task)?;
        ptrace::die_with_the_engine(task).map_err(|error| failed("arming", task, error))?;
        go_on(helper)?;
    }
    Ok(task)
}

fn go_on(tid: i32) -> Result<()> {
    ptrace::resume(tid, 0).map_err(|error| failed("continuing", tid, error))
}

/// `before`: the helper's first calls, which are made already.
fn copy(site: &Site, held: &Held, helper: i32, before: usize) -> Result<Snapshot> {
    let Some(first) = first(helper)? else { return Err(no_copy(site, held, before)) };
    go_on(first)?;
    let copy = child(first)?;
    if let Some(copy) = copy {
        expect_stop(copy)?;
        // When memory runs out the copy goes first. Without /proc it is as likely as the application.
        let _ = std::fs::write(format!("/proc/{copy}/oom_score_adj"), "1000");
        // The kernel takes the application next if the copy has ended before its memory is free. It is not as long as
        // somebody reads it, so the copy must not end before.
        ptrace::stop_at_the_end(copy).map_err(|error| failed("arming", copy, error))?;
        go_on(first)?;
        gone(first)?;
    }
    let snapshot = copy.map(|pid| {
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        memory.map(|memory| Snapshot { pid, memory }).map_err(|error| {
            end(pid);
            BackendError::failed(format!("the memory of the copy {pid} cannot be opened")).because(error)
        })
    });
    gone(helper)?;
    snapshot.unwrap_or_else(|| Err(no_copy(site, held, before)))
}

/// The task that this one makes; `None` when it ended without.
fn child(tid: i32) -> Result<Option<i32>> {
    match wait(tid)? {
        Stop::Birth => ptrace::born(tid).map(Some).map_err(|error| failed("asking", tid, error)),
        Stop::Gone => Ok(None),
        other => Err(unexpected(tid, other)),
    }
}

fn gone(tid: i32) -> Result<()> {
    match wait(tid)? {
        Stop::Gone => Ok(()),
        other => Err(unexpected(tid, other)),
    }
}

fn no_copy(site: &Site, held: &Held, before: usize) -> BackendError {
    let results = site.results(&held.memory, before + 1).ok();
    let result = results.and_then(|results| results.last().copied()).unwrap_or(0);
    let why = match result {
        error @ -4095..0 => nix::errno::Errno::from_raw(i32::try_from(-error).unwrap_or(0)).desc(),
        _ => "memory or the number of processes is limited",
    };
    BackendError::failed(format!("process {} cannot be copied", held.pid)).because(why)
}
