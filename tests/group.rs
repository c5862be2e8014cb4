//! Control groups of a test's own, in whichever version this host has. They go with the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::env::Env;
use crate::running::{Outcome, Running};

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

/// The directory of one; removed when this is dropped, once nobody is in it.
#[derive(Debug)]
struct Place(PathBuf);

impl Place {
    fn new(root: &Path) -> Outcome<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("stasis-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = root.join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// A command of ours that is in it from its beginning, and with it whatever it starts. It has to succeed.
    fn start(&self, env: &Env, words: &[&str]) -> Outcome<()> {
        // It waits until it is in the group.
        let inner = env.command(words);
        let mut waiting = env.program("sh");
        waiting.args(["-c", "read -r _; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
        let mut waiting = Running::start(waiting, true)?;
        fs::write(self.0.join("cgroup.procs"), waiting.pid().to_string())?;
        drop(waiting.feed("\n")?);
        let run = waiting.wait()?;
        if run.code == 0 { Ok(()) } else { Err(format!("it did not start: {}", run.err).into()) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever was in it may be on the way out; a test that failed has its processes killed by its own surroundings.
        let until = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// One that limits memory.
#[derive(Debug)]
pub(crate) struct Group {
    place: Place,
    limit: &'static str,
    events: &'static str,
}

impl Group {
    pub(crate) fn new(mebibytes: u64) -> Outcome<Self> {
        let [root, _, limit, events] = hierarchy()?;
        let group = Self { place: Place::new(Path::new(root))?, limit, events };
        group.limit(mebibytes)?;
        Ok(group)
    }

    pub(crate) fn limit(&self, mebibytes: u64) -> std::io::Result<()> {
        fs::write(self.place.0.join(self.limit), (mebibytes << 20).to_string())
    }

    /// See [`Place::start`].
    pub(crate) fn start(&self, env: &Env, words: &[&str]) -> Outcome<()> {
        self.place.start(env, words)
    }

    /// How many were killed in it because memory ran out.
    pub(crate) fn killed(&self) -> Outcome<u64> {
        let text = fs::read_to_string(self.place.0.join(self.events))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.ok_or("the kernel does not count whom it kills")?.parse()?)
    }
}

/// The hierarchies in which groups may say where their processes run: where, the file that tells, by a word where it is
/// the newer one.
const SETS: [[&str; 3]; 2] =
    [["/sys/fs/cgroup/cpuset", "cpuset.cpus", ""], ["/sys/fs/cgroup", "cgroup.subtree_control", "cpuset"]];

/// Whether such a group can be made here, with several processors to give.
pub(crate) fn probe_processors() -> Result<(), String> {
    let group = Processors::new().map_err(|why| why.to_string())?;
    if group.first() == group.all() { Err("there is one processor only".to_owned()) } else { Ok(()) }
}

/// One that says on which processors its processes run.
#[derive(Debug)]
pub(crate) struct Processors {
    place: Place,
    all: String,
}

impl Processors {
    pub(crate) fn new() -> Outcome<Self> {
        let tells = |[root, sign, word]: &[&str; 3]| {
            fs::read_to_string(Path::new(root).join(sign)).is_ok_and(|text| text.contains(word))
        };
        let found = SETS.into_iter().find(tells);
        let [root, ..] = found.ok_or("no control group of this host gives processors")?;
        let given = |name: &str| {
            let newer = fs::read_to_string(Path::new(root).join(format!("cpuset.{name}.effective")));
            newer.or_else(|_| fs::read_to_string(Path::new(root).join(format!("cpuset.{name}"))))
        };
        let group = Self { place: Place::new(Path::new(root))?, all: given("cpus")?.trim().to_owned() };
        // The older hierarchy lets nobody in before both are said.
        fs::write(group.place.0.join("cpuset.mems"), given("mems")?.trim())?;
        group.allow(&group.all)?;
        Ok(group)
    }

    /// Those that there are, as the kernel lists them.
    pub(crate) fn all(&self) -> &str {
        &self.all
    }

    /// The first of them.
    pub(crate) fn first(&self) -> &str {
        self.all.split([',', '-']).next().unwrap_or_default()
    }

    /// Gives these from now on.
    pub(crate) fn allow(&self, list: &str) -> std::io::Result<()> {
        fs::write(self.place.0.join("cpuset.cpus"), list)
    }

    /// See [`Place::start`].
    pub(crate) fn start(&self, env: &Env, words: &[&str]) -> Outcome<()> {
        self.place.start(env, words)
    }
}
