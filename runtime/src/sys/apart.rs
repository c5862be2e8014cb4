//! A child that gets ready on another processor than its maker's.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// A child that is kept off its maker's processor. Left alone, it is put where its maker runs, and woken there by every
/// word it is sent, and both take turns where they could work beside each other.
#[derive(Debug)]
pub struct Apart {
    pid: Pid,
    usual: CpuSet,
}

impl Apart {
    /// Moves it. `None` where there is no other processor.
    #[must_use]
    pub fn keep(pid: Pid) -> Option<Self> {
        let usual = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let mut others = usual;
        others.unset(sched_getcpu().ok()?).ok()?;
        sched_setaffinity(pid, &others).ok()?;
        Some(Self { pid, usual })
    }

    /// Lets it run wherever its maker may: by asking for all processors, where that comes to the same. From Linux 6.2 on
    /// the kernel remembers what was asked for, also for what is started from there, and whoever has asked for some
    /// gets none of those that a control group is given later.
    pub fn end(self) {
        let mut all = CpuSet::new();
        for number in 0..CpuSet::count() {
            let _ = all.set(number);
        }
        // The processors may have changed meanwhile; then the kernel has moved it already.
        let _ = sched_setaffinity(self.pid, &all);
        if sched_getaffinity(self.pid) != Ok(self.usual) {
            let _ = sched_setaffinity(self.pid, &self.usual);
        }
    }
}
