//! Whether two processes share something.

use nix::errno::Errno;
use std::cmp::Ordering;

const FILE: i32 = 0;
const FILES: i32 = 2;
const FS: i32 = 3;
const SIGHAND: i32 = 4;
const VM: i32 = 1;

fn compare(a: i32, b: i32, kind: i32, x: i32, y: i32) -> Result<Ordering, Errno> {
    // SAFETY: plain numbers.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, x, y) };
    Errno::result(answer).map(|n| match n {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

/// The order of two open file descriptions, each given as pid and descriptor; equal when they are one.
pub(crate) fn descriptions(a: (i32, i32), b: (i32, i32)) -> Result<Ordering, Errno> {
    compare(a.0, b.0, FILE, a.1, b.1)
}

/// What two of these processes share that ordinary processes do not, and which two.
pub(crate) fn shared(pids: &[i32]) -> Option<(&'static str, i32, i32)> {
    let kinds =
        [(VM, "memory"), (FILES, "descriptors"), (FS, "a working directory"), (SIGHAND, "signal handlers")];
    kinds.into_iter().find_map(|(kind, name)| {
        // The kernel orders all of them, so that each is compared with few.
        let mut sorted: Vec<i32> = Vec::new();
        pids.iter().find_map(|pid| {
            let order = |other: &i32| compare(*other, *pid, kind, 0, 0).unwrap_or(Ordering::Less);
            match sorted.binary_search_by(order) {
                Ok(at) => sorted.get(at).map(|other| (name, *other, *pid)),
                Err(at) => {
                    sorted.insert(at, *pid);
                    None
                }
            }
        })
    })
}

/// What a thread has by itself of that which threads share.
pub(crate) fn apart(pid: i32, tid: i32) -> Option<&'static str> {
    let kinds = [(FILES, "descriptors"), (FS, "a working directory")];
    let other = |kind| compare(pid, tid, kind, 0, 0).is_ok_and(Ordering::is_ne);
    kinds.into_iter().find(|(kind, _)| other(*kind)).map(|(_, name)| name)
}

/// Whether a watch of an epoll instance is on this descriptor: the instance as pid and descriptor, the watch by its
/// number, the candidate as pid and descriptor.
pub(crate) fn watches(epoll: (i32, i32), target: i32, candidate: (i32, i32)) -> Result<bool, Errno> {
    const EPOLL_TARGET: i32 = 7;
    let slot = [epoll.1, target, 0];
    // SAFETY: the slot is three ints and lives through the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_kcmp, candidate.0, epoll.0, EPOLL_TARGET, candidate.1, slot.as_ptr())
    };
    Errno::result(answer).map(|n| n == 0)
}
