//! What the tests need on this host, and how it is installed.

use std::os::unix::fs::MetadataExt as _;

use crate::Result;
use crate::shell::{command, on_path, run};

/// A program and the package that brings it.
const NEEDED: [(&str, &str); 4] = [
    // Makes the root directory of the test image.
    ("mmdebstrap", "mmdebstrap"),
    // Builds the small programs of the test image, among them a static one.
    ("gcc", "gcc libc6-dev"),
    // Builds the program that uses another C library.
    ("musl-gcc", "musl-tools"),
    // Gives a test a controlling terminal.
    ("setsid", "util-linux"),
];

/// Installs what is missing; without apt it only says what that is.
pub(crate) fn prepare() -> Result<()> {
    let missing: Vec<(&str, &str)> = NEEDED.into_iter().filter(|(program, _)| !on_path(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    if !on_path("apt-get") {
        return Err(format!("the tests need {}; there is no apt-get to install it", programs.join(", ")));
    }
    let packages: Vec<&str> = missing.iter().flat_map(|(_, packages)| packages.split(' ')).collect();
    // One unreachable source of several is no reason to stop: the installation says what cannot be had.
    if let Err(why) = apt(&["update"]) {
        eprintln!("{why}");
    }
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(packages);
    apt(&words)
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

fn apt(words: &[&str]) -> Result<()> {
    let mut all = Vec::new();
    if !is_root() {
        if !on_path("sudo") {
            return Err(format!("as root: apt-get {}", words.join(" ")));
        }
        all.push("sudo");
    }
    all.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    all.extend(words);
    run(&mut command(&all))
}
