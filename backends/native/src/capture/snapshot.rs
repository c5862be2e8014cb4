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
        ptrace::registers(self.pid).is_ok()
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
    // It may stop once more on its way.
    while wait(pid).is_ok_and(|stop| stop != Stop::Gone) {
        if ptrace::resume(pid, 0).is_err() {
            break;
        }
    }
}

/// The first task, made by the helper, which waits for it; both stand still.
struct First {
    helper: i32,
    /// `None` when it could not be made.
    task: Option<i32>,
}

fn first(site: &Site, held: &Held, shared: Descriptors) -> Result<First> {
    site.prepare(held, &calls(site, shared))?;
    let leader = held.leader()?;
    site.enter(leader)?;
    let helper = site.make_helper(leader.tid)?;
    site.leave(leader)?;
    go_on(helper)?;
    let task = child(helper)?;
    if let Some(task) = task {
        expect_stop(task)?;
        ptrace::die_with_the_engine(task).map_err(|error| failed("arming", task, error))?;
        go_on(helper)?;
    }
    Ok(First { helper, task })
}

fn go_on(tid: i32) -> Result<()> {
    ptrace::resume(tid, 0).map_err(|error| failed("continuing", tid, error))
}

/// Whether the first task has the process's descriptors or a copy of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descriptors {
    Shared,
    Copied,
}

/// A userfaultfd of the process: made by a first task, so that the process never has the descriptor.
pub(crate) fn userfaultfd(site: &Site, held: &Held) -> Result<OwnedFd> {
    let First { helper, task } = first(site, held, Descriptors::Copied)?;
    let Some(task) = task else {
        gone(helper)?;
        return Err(no_copy(site, held));
    };
    let made = site.call_at_rest(task, Call::new(libc::SYS_userfaultfd, &[uffd::FLAGS]));
    let refused = |error: nix::errno::Errno| {
        BackendError::failed(format!("no userfaultfd of process {}", held.pid)).because(error.desc())
    };
    let taken = made.and_then(|number| match i32::try_from(number) {
        Ok(number @ 0..) => pidfd::open(task).and_then(|it| pidfd::copy(&it, number)).map_err(refused),
        Ok(error) => Err(refused(nix::errno::Errno::from_raw(-error))),
        Err(_) => Err(refused(nix::errno::Errno::EINVAL)),
    });
    end(task);
    gone(helper)?;
    let taken = taken?;
    uffd::agree(&taken).map_err(refused)?;
    Ok(taken)
}

/// The clone writes the first task's id into the first argument of the wait behind it, so that no engine is needed for
/// the rest.
fn calls(site: &Site, descriptors: Descriptors) -> [Call; 2] {
    let files = if descriptors == Descriptors::Shared { libc::CLONE_FILES } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_FS | files | libc::CLONE_PARENT_SETTID;
    let flags = u64::from(flags.cast_unsigned());
    let id = site.address(at::TABLE) + CALL + 8;
    let all = u64::from(libc::__WALL.cast_unsigned());
    [
        Call::new(libc::SYS_clone, &[flags, site.address(at::FIRST_FRAME) + 8, id]),
        Call::new(libc::SYS_wait4, &[0x7fff_ffff, 0, all]),
    ]
}

/// Copies one process that stands still.
pub(crate) fn take(site: &Site, held: &Held) -> Result<Snapshot> {
    let First { helper, task } = first(site, held, Descriptors::Shared)?;
    let Some(first) = task else { return Err(no_copy(site, held)) };
    go_on(first)?;
    let copy = child(first)?;
    if let Some(copy) = copy {
        expect_stop(copy)?;
        // When memory runs out the copy goes first. Without /proc it is as likely as the application.
        let _ = std::fs::write(format!("/proc/{copy}/oom_score_adj"), "1000");
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
    snapshot.unwrap_or_else(|| Err(no_copy(site, held)))
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

fn no_copy(site: &Site, held: &Held) -> BackendError {
    let result = site.results(&held.memory, 1).ok().and_then(|results| results.first().copied()).unwrap_or(0);
    let why = match result {
        error @ -4095..0 => nix::errno::Errno::from_raw(i32::try_from(-error).unwrap_or(0)).desc(),
        _ => "memory or the number of processes is limited",
    };
    BackendError::failed(format!("process {} cannot be copied", held.pid)).because(why)
}
