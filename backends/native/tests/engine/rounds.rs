//! Rounds of a test: what is done in pid and mount namespaces of its own, by the test's own program started anew.

use super::soon;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What a round is told: which it is, and the words for it.
pub const ROUND: &str = "STASIS_NATIVE_TEST_ROUND";
/// The pid of the subject.
pub const PID: u32 = 100;

pub fn here(name: &str) -> PathBuf {
    std::env::current_dir().unwrap().join(name)
}

/// Pid and mount namespaces of their own, in which the test runs a round.
pub fn apart(words: &[&str]) -> Output {
    let again = super::again();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(again.get_program()).args(again.get_args());
    command.env(ROUND, words.join("\n")).stdin(Stdio::null());
    command.output().unwrap()
}

pub fn passed(out: &Output) -> String {
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    said
}

pub fn next_pid(pid: u32) {
    fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
}

pub fn said(output: &Path) -> String {
    fs::read_to_string(output).unwrap_or_default()
}

/// The subject is well: it says so this many times more, and nothing else.
pub fn well(output: &Path, before: usize, times: usize) {
    soon("it is well", || {
        let said = said(output);
        assert!(!said.contains("bad"), "{said}");
        said.matches("ok").count() >= before + times
    });
}

pub fn times(output: &Path) -> usize {
    said(output).matches("ok").count()
}

pub fn restore(image: &Path, how: &str) -> Output {
    // Nobody else takes a pid of the subject.
    next_pid(5000);
    super::engine(&["restore", "--dir", image.to_str().unwrap(), "--pid-file", "root-pid", how])
        .output()
        .unwrap()
}
