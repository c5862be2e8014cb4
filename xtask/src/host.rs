//! What we need on this host, how it is installed, and what only its administrator can allow.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Once;

use crate::Result;
use crate::shell::{command, on_path, output, run};

/// A program and the package that brings it.
const NEEDED: [(&str, &str); 6] = [
    // Makes the root directory of the test image.
    ("mmdebstrap", "mmdebstrap"),
    // Builds the small programs of the test image, among them a static one.
    ("gcc", "gcc libc6-dev"),
    // Builds the program that uses another C library.
    ("musl-gcc", "musl-tools"),
    // Gives a test a controlling terminal.
    ("setsid", "util-linux"),
    // Gives an ordinary user the ids that the administrator has granted him.
    ("newuidmap", "uidmap"),
    // Makes the root directory where that is not done by root.
    ("fakechroot", "fakechroot fakeroot"),
];

/// What only tests use; those skip what is not there, with one line.
const FOR_TESTS: [(&str, &str); 7] = [
    // Makes and unpacks the file system of an image in a file, and serves it where the kernel may not mount it.
    ("mksquashfs", "squashfs-tools"),
    ("squashfuse_ll", "squashfuse"),
    // A registry for the tests, what fills it, what gives it a password and a certificate.
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("htpasswd", "apache2-utils"),
    ("openssl", "openssl"),
    // Builds a program whose threads and memory no C library manages.
    ("go", "golang-go"),
];

/// Installs what the tests use on top, each by itself: not every release has all of it.
pub(crate) fn prepare_tests() -> Result<()> {
    prepare()?;
    for (program, packages) in missing(&FOR_TESTS) {
        if let Err(why) = install(&[(program, packages)]) {
            eprintln!("tests that use {program} will be skipped: {why}");
        }
    }
    Ok(())
}

/// Installs what is missing; where that cannot be done it says what to type.
pub(crate) fn prepare() -> Result<()> {
    install(&missing(&NEEDED))
}

fn missing(wanted: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    wanted.iter().copied().filter(|(program, _)| !on_path(program)).collect()
}

fn install(missing: &[(&str, &str)]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let programs = programs.join(", ");
    if !on_path("apt-get") {
        return Err(format!(
            "{programs}: missing here, and there is no apt-get to install it; install it yourself"
        ));
    }
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(missing.iter().flat_map(|(_, packages)| packages.split(' ')));
    if !is_root() && !on_path("sudo") {
        return Err(format!(
            "{programs}: missing here, and there is no sudo to install it; as root, once:\n    \
             apt-get update && apt-get {}",
            install.join(" ")
        ));
    }
    update();
    apt(&install)
}

/// The lists of packages, once. One unreachable source of several is no reason to stop: the installation says what
/// cannot be had.
fn update() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        if let Err(why) = apt(&["update"]) {
            eprintln!("{why}");
        }
    });
}

/// Whether containers can be made here. Root needs no user namespace.
pub(crate) fn allows_containers() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let says = |name: &str, value: &str| {
        fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|found| found.trim() == value)
    };
    let remedy = if says("user/max_user_namespaces", "0") {
        "sysctl -w user.max_user_namespaces=15000"
    } else if says("kernel/unprivileged_userns_clone", "0") {
        "sysctl -w kernel.unprivileged_userns_clone=1"
    } else if says("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        let tried = output(&mut command(&["unshare", "--user", "--map-root-user", "--mount", "true"]));
        return tried.map(drop).map_err(|why| {
            format!(
                "this host gives ordinary users no user namespace, without which they have no containers: {why}\n\
                 An outer container often forbids it; start this as root, or outside of it."
            )
        });
    };
    Err(format!(
        "this host gives ordinary users no user namespaces, without which they have no containers; as root, until \
         the next boot:\n    {remedy}"
    ))
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

/// The root's apt-get.
fn apt(words: &[&str]) -> Result<()> {
    let mut all = if is_root() { vec![] } else { vec!["sudo"] };
    // A registry that is installed for tests need not run as a service, too.
    all.extend(["env", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_OFFLINE=1", "apt-get"]);
    all.extend(words);
    run(&mut command(&all))
}
