//! Whether a copy of the processes is saved while they run on, or they themselves while they stand still.

use crate::model::VmFlags;
use crate::proc::{self, maps};

/// Flags of mappings that a copy by fork does not keep: left out, emptied, or not locked any more.
const NOT_COPIED: [&str; 3] = ["dc", "wf", "lo"];

/// Why the processes should not be copied; `None` when they can be. `room` is the memory that the job has left.
pub(crate) fn against_copies(members: &[i32], room: Option<u64>) -> Option<String> {
    let mut resident = 0;
    for pid in members {
        let smaps = proc::read(*pid, "smaps").unwrap_or_default();
        if let Some(why) = not_copied(*pid, &smaps) {
            return Some(why);
        }
        resident += memory(*pid);
    }
    let room = room?;
    // Running on, the application may write to all of its memory, and every page written exists twice. When that does
    // not fit the kernel ends the copy first, but the application next where the copy's memory is not free at once.
    (room < resident).then(|| {
        format!(
            "the job's memory limit leaves {} MiB, too little beside {} MiB in use",
            room >> 20,
            resident >> 20
        )
    })
}

/// A mapping that a copy does not have as it is.
pub(crate) fn not_copied(pid: i32, smaps: &str) -> Option<String> {
    let flags = maps::flags(smaps);
    let special = |flag: &str| NOT_COPIED.contains(&flag);
    // The kernel's own areas (pf, io), and memory that it may drop at any time (dp), are not saved at all.
    let ours = |flags: &VmFlags| !flags.words().any(|flag| ["pf", "io", "dp"].contains(&flag));
    let found = flags.values().any(|flags| flags.words().any(special) && ours(flags));
    found.then(|| format!("process {pid} has memory that is locked or that a fork does not keep"))
}

/// Bytes of its own that a process has in memory.
pub(crate) fn memory(pid: i32) -> u64 {
    status(pid, "RssAnon:")
}

/// Why a process that stands still should not be copied after all: it has locked memory since it was looked at, and the
/// copy would not tell.
pub(crate) fn locked(pid: i32) -> Option<String> {
    (status(pid, "VmLck:") > 0).then(|| format!("process {pid} has memory that is locked"))
}

fn status(pid: i32, name: &str) -> u64 {
    let status = proc::read(pid, "status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fork_does_not_keep() {
        let smaps = |flags: &str| format!("1000-2000 rw-p 00000000 00:00 0 \nVmFlags: {flags}\n");
        assert!(not_copied(1, &smaps("rd wr dc")).is_some());
        assert!(not_copied(1, &smaps("rd wr wf")).is_some());
        assert!(not_copied(1, &smaps("rd pf io dc de")).is_none());
        assert!(not_copied(1, &smaps("rd wr wf dp")).is_none());
        assert!(not_copied(1, &smaps("rd wr")).is_none());
    }
}
