//! Where the first files of a definition file come from: archives and layouts that skopeo has made, and a Debian.

use std::fs;
use std::process::Command;

use crate::env::{Env, Who};
use crate::need::need;
use crate::registry::{gzip, skopeo, small};
use crate::running::Outcome;

fn archives(who: Who) -> Outcome<()> {
    let env = Env::new(who)?;
    let layout = small(&env)?.layout(&env, "layout")?;
    let from = format!("oci:{}:v1", layout.display());
    let at = |name: &str| env.path("home").join(name).display().to_string();
    skopeo(&env, &["copy", &from, &format!("oci-archive:{}:v1", at("O.tar"))])?;
    skopeo(&env, &["copy", &from, &format!("docker-archive:{}:some/name:v1", at("D.tar"))])?;
    skopeo(&env, &["copy", &from, &format!("oci:{}:v1", at("L"))])?;
    fs::write(env.path("home/D.tar.gz"), gzip(&fs::read(env.path("home/D.tar"))?)?)?;
    for (number, (agent, name)) in [
        ("oci-archive", "O.tar"),
        ("oci-archive", "O.tar:v1"),
        ("docker-archive", "D.tar"),
        ("docker-archive", "D.tar:some/name:v1"),
        ("docker-archive", "D.tar.gz"),
        ("oci", "L"),
        ("oci", "L:v1"),
    ]
    .into_iter()
    .enumerate()
    {
        let text = format!(
            "Bootstrap: {agent}\nFrom: {name}\n%post\n    echo $GREETING > /made\n%labels\n    number {number}\n"
        );
        env.write("home/image.def", &text)?;
        env.ok(&["build", "--force", "image.sif", "image.def"])
            .map_err(|e| format!("{agent} {name}: {e}"))?;
        let shown = env.ok(&["exec", "image.sif", "sh", "-c", "cat /made; echo $GREETING"])?.out;
        assert_eq!(shown, "hello 'world'\nhello 'world'\n", "{agent} {name}");
        assert_eq!(env.ok(&["run", "image.sif", "x"])?.out, "it says x\n", "{agent} {name}");
        let labels = env.ok(&["inspect", "image.sif"])?.out;
        assert!(labels.contains(&format!("number: {number}\n")) && labels.contains("maintainer: nobody\n"));
        assert_eq!(env.ok(&["inspect", "-d", "image.sif"])?.out, text);
    }
    env.finish()
}

#[test]
fn archives_of_skopeo_as_an_ordinary_user() {
    need!(image, userns, squashfs, registry);
    archives(Who::User).unwrap();
}

#[test]
fn archives_of_skopeo_as_root() {
    need!(root, image, squashfs, registry);
    archives(Who::Myself).unwrap();
}

/// A whole one: release, mirror and packages as the header says.
#[test]
fn a_debian_from_a_named_mirror_with_packages() {
    need!(root, mmdebstrap);
    let mut env = Env::new(Who::Myself).unwrap();
    let scratch = env.make_dir("scratch").unwrap().to_string_lossy().into_owned();
    env.set("TMPDIR", &scratch);
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap();
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format=$(REPO_URI)", "Created-By: Packages", "Component: main"])
        .arg(format!("Codename: {suite}"))
        .output()
        .unwrap();
    let mirror =
        String::from_utf8_lossy(&targets.stdout).lines().next().unwrap().trim_end_matches('/').to_owned();
    let text = format!(
        "Bootstrap: debootstrap\nOSVersion: {suite}\nMirrorURL: {mirror}/\nInclude: mailcap, media-types\n\
         %test\n    test -x /usr/bin/run-mailcap && test -f /etc/mime.types\n"
    );
    env.write("home/image.def", &text).unwrap();
    let mut command = env.command(&["build", "--sandbox", "image", "image.def"]);
    let files = [std::process::Stdio::null(), std::process::Stdio::null(), std::process::Stdio::piped()];
    let [stdin, stdout, stderr] = files;
    let mut child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
    // It takes as long as the mirror does. What mmdebstrap mounts meanwhile would stay for ever if it were killed.
    let mut seen = false;
    while child.try_wait().unwrap().is_none() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&scratch), "it mounts on the host: {mounts}");
        seen |= fs::read_dir(&scratch).unwrap().next().is_some();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(
        seen && fs::read_dir(&scratch).unwrap().next().is_none(),
        "it works elsewhere, or has left something"
    );
    let out = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{err}");
    insta::assert_snapshot!(err.replace(suite, "$SUITE"), @"
    INFO:    Starting build...
    INFO:    Installing $SUITE with mmdebstrap
    INFO:    Adding labels
    INFO:    Adding testscript
    INFO:    Running testscript
    + test -x /usr/bin/run-mailcap
    + test -f /etc/mime.types
    INFO:    Build complete: image
    ");
    let sources = fs::read_to_string(env.path("home/image/etc/apt/sources.list")).unwrap();
    assert!(sources.contains(&mirror), "{sources}");
    env.finish().unwrap();
}
