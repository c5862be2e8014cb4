use super::*;
use crate::discover;
use stasis_plugin_api::error::{BackendError, Result, kind};
use stasis_plugin_api::host::{CallContext, HostServices};
use std::io::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// A runtime that lends nothing.
pub(crate) struct NoServices;

impl HostServices for NoServices {
    fn request(&self, name: &str, _: &serde_json::Value) -> Result<serde_json::Value> {
        Err(BackendError::new(kind::NOT_IMPLEMENTED, name))
    }
    fn cancelled(&self) -> bool {
        false
    }
    fn keep_fd(&self, name: &str, _: BorrowedFd<'_>) -> Result<()> {
        Err(BackendError::new(kind::NOT_IMPLEMENTED, name))
    }
    fn kept_fd(&self, _: &str) -> Option<OwnedFd> {
        None
    }
}

/// A call with that option `prefix`.
pub(crate) fn context(scratch: &Path, prefix: &str) -> CallContext {
    CallContext {
        options: [("prefix".to_owned(), prefix.into())].into(),
        euid: nix::unistd::geteuid().as_raw(),
        scratch: scratch.to_owned(),
        cache: scratch.join("cache"),
        ..CallContext::default()
    }
}

/// The directory of a part of a test that runs elsewhere.
const SCRATCH: &str = "STASIS_TESTS_SCRATCH";

/// Runs a part of the test of this name with a real CRIU, as the user who runs the tests and, for root, also as an
/// ordinary one: the test is started anew for each and comes to this place again.
pub(crate) fn as_users(test: &str, part: fn(&Path, &str)) {
    let Some(prefix) = prefix() else { return };
    if let Some(scratch) = std::env::var_os(SCRATCH) {
        return part(Path::new(&scratch), &prefix);
    }
    elsewhere(test, None);
    if nix::unistd::geteuid().is_root() {
        elsewhere(test, Some(1001));
    }
}

/// Without the descriptors that the caller left open: CRIU refuses processes with descriptors from outside their mount
/// namespace, and the runtime hands none to a worker.
fn elsewhere(test: &str, uid: Option<u32>) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [dir.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let mut command = Command::new("/bin/bash");
    let close = "for fd in /proc/$$/fd/*; do fd=${fd##*/}; case $fd in 0|1|2|255) ;; *) eval \"exec $fd>&-\";; esac; \
                 done; exec \"$@\"";
    command.args(["-c", close, "bash"]);
    if let Some(uid) = uid {
        nix::unistd::chown(&scratch, Some(uid.into()), Some(uid.into())).unwrap();
        let id = uid.to_string();
        command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
    }
    command.arg(&program).args(["--exact", test, "--nocapture"]).env(SCRATCH, &scratch);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    let left = processes_of(&scratch);
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn processes_of(scratch: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let commands = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let commands = commands.map(|line| String::from_utf8_lossy(&line).into_owned());
    commands.filter(|line| line.contains(scratch.to_str().unwrap())).collect()
}

fn skipped(why: &str) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// The private prefix to test with; a line says why nothing is tested otherwise.
pub(crate) fn prefix() -> Option<String> {
    let prefix = std::env::var("STASIS_TESTS_CRIU").ok();
    if prefix.is_none() {
        skipped("STASIS_TESTS_CRIU names no private CRIU");
    }
    prefix
}

#[test]
fn a_process_is_saved_and_brought_back() {
    as_users("selftest::tests::a_process_is_saved_and_brought_back", passes_here);
}

fn passes_here(scratch: &Path, prefix: &str) {
    let host = Host::new(&NoServices, context(scratch, prefix));
    let criu = discover::search(&host).chosen.unwrap();
    let rootless = host.context().euid != 0;
    assert_eq!(known(&host, &criu, rootless), None);
    for _ in 0..2 {
        let outcome = run(&host, &criu, rootless);
        assert!(outcome.passed(), "{outcome:?}");
        assert_eq!(known(&host, &criu, rootless), Some(outcome));
    }
    assert_eq!(known(&host, &criu, !rootless), None);
}

/// A CRIU that is a script.
fn fake(dir: &Path, script: &str) -> Criu {
    let program = dir.join("criu");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let kind = discover::Kind::Host { program, loader: None, libraries: Vec::new() };
    Criu { version: semver::Version::new(4, 0, 0), kind }
}

#[test]
fn what_fails_is_told_with_its_stage() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(&NoServices, context(dir.path(), ""));
    let rootless = host.context().euid != 0;
    let tried = |script: &str| run(&host, &fake(dir.path(), script), rootless);
    let failed = |stage, why: &str| SelfTest::Failed { stage, why: why.to_owned() };
    let loader = "echo 'criu: error while loading shared libraries: libnet.so.1: cannot open' >&2; exit 127";
    let outcome = tried(loader);
    if let SelfTest::Failed { stage: Stage::Namespaces, why } = &outcome {
        skipped(&format!("no namespaces here: {why}"));
        return;
    }
    assert_eq!(outcome, failed(Stage::Dump, "CRIU cannot be loaded: libnet.so.1 is missing"));
    assert_eq!(known(&host, &fake(dir.path(), loader), rootless), None, "another program by now");
    let why = "CRIU ended with status 13 and gave no reason";
    assert_eq!(tried("exit 1"), failed(Stage::Dump, why));
    // It says that it worked.
    let silent = "case \" $* \" in *' restore '*) exit 0;; esac; exit 0";
    assert_eq!(tried(silent), failed(Stage::Alive, "it does not go on"));
    let log = "case $1 in restore) shift; echo \"Error (a.c:1): Can't fork for 100: File exists\" > \
               ${XDG_RUNTIME_DIR}/restore.log; exit 1;; esac";
    let outcome = tried(log);
    assert!(
        matches!(&outcome, SelfTest::Failed { stage: Stage::Restore, why } if why.contains("pid 100")),
        "{outcome:?}"
    );
    assert_eq!(known(&host, &criu_of(dir.path()), rootless), Some(outcome));
    assert!(processes_of(dir.path()).is_empty());
}

/// The one that was put there last.
fn criu_of(dir: &Path) -> Criu {
    let kind = discover::Kind::Host { program: dir.join("criu"), loader: None, libraries: Vec::new() };
    Criu { version: semver::Version::new(4, 0, 0), kind }
}

#[test]
fn one_that_hangs_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let rootless = !nix::unistd::geteuid().is_root();
    let criu = fake(dir.path(), "sleep 600");
    let (outcome, keep) = attempt(dir.path(), &criu, rootless, Duration::from_secs(1)).unwrap();
    assert!(!outcome.passed());
    if let SelfTest::Failed { stage: Stage::Dump, why } = outcome {
        assert_eq!((why.as_str(), keep), ("it did not end within 1 s", false));
    }
    // The kernel may need a moment to take the namespaces down.
    while !processes_of(dir.path()).is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
}
