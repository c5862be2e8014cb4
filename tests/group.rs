//! A control group of a test's own that limits memory, in whichever version this host has. It goes with the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::running::Outcome;

/// The hierarchies: where, the file that is there where memory can be limited, the limit, the events.
const HIERARCHIES: [[&str; 4]; 3] = [
    ["/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.limit_in_bytes", "memory.oom_control"],
    ["/sys/fs/cgroup", "cgroup.subtree_control", "memory.max", "memory.events"],
    ["/sys/fs/cgroup/unified", "cgroup.subtree_control", "memory.max", "memory.events"],
];

/// The hierarchy in which groups of ours can limit memory.
fn hierarchy() -> Result<[&'static str; 4], String> {
    let limits = |[root, sign, limit, _]: &[&str; 4]| {
        let text = fs::read_to_string(Path::new(root).join(sign)).unwrap_or_default();
        if sign == limit { !text.is_empty() } else { text.split_whitespace().any(|word| word == "memory") }
    };
    let found = HIERARCHIES.into_iter().find(limits);
    found.ok_or_else(|| "no control group of this host limits memory".to_owned())
}

/// Whether one can be made here.
pub(crate) fn probe() -> Result<(), String> {
    let [root, ..] = hierarchy()?;
    let group = Path::new(root).join(format!("stasis-probe-{}", std::process::id()));
    fs::create_dir(&group).map_err(|why| format!("no control group can be made in {root}: {why}"))?;
    fs::remove_dir(&group).map_err(|why| format!("{}: {why}", group.display()))
}

/// It is removed when this is dropped, once nobody is in it.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    limit: &'static str,
    events: &'static str,
}

impl Group {
    pub(crate) fn new(mebibytes: u64) -> Outcome<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let [root, _, limit, events] = hierarchy()?;
        let name = format!("stasis-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(root).join(name);
        fs::create_dir(&path)?;
        let group = Self { path, limit, events };
        group.limit(mebibytes)?;
        Ok(group)
    }

    pub(crate) fn limit(&self, mebibytes: u64) -> std::io::Result<()> {
        fs::write(self.path.join(self.limit), (mebibytes << 20).to_string())
    }

    /// Puts a process into it, and with it whatever that starts from now on.
    pub(crate) fn take(&self, pid: Pid) -> std::io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// How many were killed in it because memory ran out.
    pub(crate) fn killed(&self) -> Outcome<u64> {
        let text = fs::read_to_string(self.path.join(self.events))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.ok_or("the kernel does not count whom it kills")?.parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever was in it may be on the way out; a test that failed has its processes killed by its own surroundings.
        let until = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
