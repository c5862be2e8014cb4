//! The gate: a small process is really saved, killed and brought back, in throw-away namespaces. CRIU's own `check`
//! asks for rights that nobody needs here and does not try the kernel's mappings.

#[cfg(test)]
pub(crate) mod tests;

use crate::discover::Criu;
use crate::discover::cache::{Cache, Stamp};
use crate::discover::run::{self, Ended};
use crate::explain::{During, Outcome, explain};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};
use stasis_plugin_api::host::Host;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// All of it, on a busy host.
const LIMIT: Duration = Duration::from_secs(10);
/// A failure may have been cured since.
const FAILURE_HOLDS: Duration = Duration::from_secs(600);
/// What runs as the init of the namespaces: `sh -c SCRIPT NAME DIRECTORY FLAGS CRIU...`. The process to save is a
/// session of its own that holds a socket, waits with a child and answers to a signal. Every run of CRIU is bounded, so that nothing
/// is left where this process is killed meanwhile.
const SCRIPT: &str = include_str!("selftest/script.sh");
/// The flags of a user namespace.
const USER: [&str; 2] = ["--user", "--map-root-user"];

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Getting namespaces.
    Namespaces,
    /// Choosing a pid.
    ChoosePid,
    /// Starting the process to save.
    Start,
    /// Saving it.
    Dump,
    /// Bringing it back.
    Restore,
    /// Seeing that it runs.
    Alive,
}

impl Stage {
    fn of_status(code: Option<i32>) -> Self {
        match code {
            Some(11) => Self::ChoosePid,
            Some(12) => Self::Start,
            Some(13) => Self::Dump,
            Some(14) => Self::Restore,
            Some(15) => Self::Alive,
            _ => Self::Namespaces,
        }
    }

    /// For a sentence: "... failed while ...".
    pub(crate) fn doing(self) -> &'static str {
        match self {
            Self::Namespaces => "making namespaces",
            Self::ChoosePid => "choosing a pid",
            Self::Start => "starting a process",
            Self::Dump => "saving a process",
            Self::Restore => "bringing a process back",
            Self::Alive => "looking at the process that was brought back",
        }
    }
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SelfTest {
    /// A process was saved and brought back, in this time.
    Passed { millis: u64 },
    /// It was not.
    Failed { stage: Stage, why: String },
}

impl SelfTest {
    pub(crate) fn passed(&self) -> bool {
        matches!(self, Self::Passed { .. })
    }
}

/// Where an outcome holds.
#[derive(Debug, Serialize)]
struct Key {
    program: Option<Stamp>,
    version: String,
    kernel: String,
    boot: String,
    euid: u32,
    rootless: bool,
}

/// An outcome as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    outcome: SelfTest,
    /// Seconds since the epoch.
    at: u64,
}

/// Saves a process and brings it back, as an ordinary user does (in a user namespace) or as root, and keeps the
/// outcome for [`known`].
pub(crate) fn run(host: &Host<'_>, criu: &Criu, rootless: bool) -> SelfTest {
    let context = host.context();
    let limit = LIMIT.min(host.time_left());
    let (outcome, keep) = match attempt(&context.scratch, criu, rootless, limit) {
        Ok(outcome) => outcome,
        Err(error) => (SelfTest::Failed { stage: Stage::Namespaces, why: error.to_string() }, false),
    };
    if keep {
        let mut cache = Cache::open(&context.cache, context.euid);
        let at = now();
        cache.remember_test(&key(criu, context.euid, rootless), &Kept { outcome: outcome.clone(), at });
        cache.save();
    }
    outcome
}

/// The outcome of an earlier run under the same conditions.
pub(crate) fn known(host: &Host<'_>, criu: &Criu, rootless: bool) -> Option<SelfTest> {
    let context = host.context();
    let cache = Cache::open(&context.cache, context.euid);
    let kept: Kept = cache.test(&key(criu, context.euid, rootless))?;
    let age = now().checked_sub(kept.at)?;
    Some(kept.outcome).filter(|outcome| outcome.passed() || age < FAILURE_HOLDS.as_secs())
}

/// A command in throw-away namespaces, in which its first process is root.
pub(crate) fn unshare(rootless: bool, namespaces: &[&str]) -> std::process::Command {
    let mut command = run::command(Path::new("unshare"));
    command.args(USER.iter().filter(|_| rootless)).args(namespaces);
    command
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn key(criu: &Criu, euid: u32, rootless: bool) -> Key {
    let line = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Key {
        program: Stamp::of(&criu.program()),
        version: criu.version.to_string(),
        kernel: line("/proc/sys/kernel/osrelease"),
        boot: line("/proc/sys/kernel/random/boot_id"),
        euid,
        rootless,
    }
}

/// The outcome, and whether the next run would have the same.
fn attempt(scratch: &Path, criu: &Criu, rootless: bool, limit: Duration) -> io::Result<(SelfTest, bool)> {
    let work = directory(scratch)?;
    let begin = Instant::now();
    let mut command = unshare(rootless, &["--mount", "--pid", "--fork", "--ipc", "--uts", "--mount-proc"]);
    // CRIU looks there for a place for its cache.
    command.env("XDG_RUNTIME_DIR", &work).arg("/bin/sh").arg("-c").arg(SCRIPT).arg("selftest").arg(&work);
    command.arg(if rootless { "--unprivileged" } else { "" }).args(criu.command_on_host());
    // The process holds one: kernels after 6.17 answer less about sockets, and an old CRIU gives them up.
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let ended = match run::run_with(&mut command, limit, Some(socket.as_fd())) {
        Ok(ended) => ended,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let why = "the program unshare (package util-linux) is not installed".to_owned();
            return Ok((SelfTest::Failed { stage: Stage::Namespaces, why }, true));
        }
        Err(error) => return Err(error),
    };
    if ended.succeeded() {
        let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        return Ok((SelfTest::Passed { millis }, true));
    }
    let timed_out = ended.status.is_none();
    let stage = match timed_out {
        true => reached(&work),
        false => Stage::of_status(ended.status.and_then(|status| status.code())),
    };
    let why = match timed_out {
        true => format!("it did not end within {} s", limit.as_secs()),
        false => reason(stage, &work, &ended),
    };
    Ok((SelfTest::Failed { stage, why }, !timed_out))
}

/// A directory of its own; an earlier run's may still be there.
fn directory(scratch: &Path) -> io::Result<PathBuf> {
    let mut number = 0;
    loop {
        let work = scratch.join(format!("selftest-{number}"));
        match fs::DirBuilder::new().mode(0o700).create(&work) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < 1000 => number += 1,
            Ok(()) => return Ok(work),
            Err(error) => return Err(io::Error::other(format!("{}: {error}", work.display()))),
        }
    }
}

/// How far it came before its time was over.
fn reached(work: &Path) -> Stage {
    let there = |name: &str| work.join(name).exists();
    match () {
        () if there("restored") => Stage::Alive,
        () if there("dumped") => Stage::Restore,
        () if there("ready") => Stage::Dump,
        () => Stage::Start,
    }
}

/// Why it failed, in one line.
fn reason(stage: Stage, work: &Path, ended: &Ended) -> String {
    let said = ended.output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    let said: String = said.trim().chars().take(300).collect();
    let (during, log) = match stage {
        Stage::Dump => (During::Capture, "dump.log"),
        Stage::Restore => (During::Restart, "restore.log"),
        Stage::Alive => return "it does not go on".to_owned(),
        Stage::Namespaces | Stage::ChoosePid | Stage::Start => return said,
    };
    let mut text =
        fs::read(work.join(log)).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default();
    if text.is_empty() {
        text = ended.output.clone();
    }
    let code = ended.status.and_then(|status| status.code());
    let (processes, sockets) = (&[], &[]);
    let outcome = Outcome { during, code, signal: None, timed_out: false, log: &text, processes, sockets };
    explain(&outcome).why.join(": ")
}
