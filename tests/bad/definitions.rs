//! Builds that go wrong: what is wrong, the exit code, nothing half made, the old image as it was.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::*;
use crate::need::need;
use crate::registry::{Answer, Odd, small};

fn place() -> Outcome<Env> {
    let env = Env::new(Who::User)?;
    small(&env)?.layout(&env, "home/layout")?;
    Ok(env)
}

/// Builds `text` and tells what came of it; nothing may be left.
fn told(env: &Env, text: &str) -> Outcome<String> {
    env.write("home/image.def", text)?;
    let told = env.fails(&["build", "--sandbox", "image", "image.def"])?;
    let left = left(env);
    if left.is_empty() { Ok(told) } else { Err(format!("left behind: {left:?}\n{told}").into()) }
}

/// What a build may not leave beside the image.
fn left(env: &Env) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(env.path("home")).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains("image") && name != "image.def")
        })
        .collect()
}

#[test]
fn mistakes_in_the_file() {
    need!(image, userns);
    let env = place().unwrap();
    insta::assert_snapshot!(told(&env, "Bootstrap: oci\nFrom: layout\n%pots\n  true\n").unwrap(), @"
    exit 255
    FATAL:   image.def, line 3: there is no section %pots
             hint:    sections are %arguments %environment %files %help %labels %post %pre %runscript %setup %startscript %test %appenv %appfiles %apphelp %appinstall %applabels %apprun %appstart %apptest
    ");
    insta::assert_snapshot!(told(&env, "Bootstrap: dnf\n").unwrap(), @r#"
    exit 255
    FATAL:   image.def, line 1: there is no bootstrap agent "dnf"
             hint:    agents are docker, oci, oci-archive, docker-archive, localimage, debootstrap, scratch
    "#);
    insta::assert_snapshot!(told(&env, "Bootstrap: oci\n").unwrap(), @"
    exit 255
    FATAL:   image.def, line 1: bootstrap agent oci needs from
             hint:    add a line `From: ...`
    ");
    insta::assert_snapshot!(told(&env, "Bootstrap: oci\nFrom: no-such-layout\n").unwrap(), @"
    exit 255
    INFO:    Starting build...
    FATAL:   cannot open the directory $DIR/home/no-such-layout
             because: it does not exist
             hint:    check the spelling; write oci:DIRECTORY[:TAG]
    ");
    insta::assert_snapshot!(told(&env, "Bootstrap: localimage\nFrom: no-such-image\n").unwrap(), @r#"
    exit 255
    INFO:    Starting build...
    FATAL:   image "$DIR/home/no-such-image" does not exist
             hint:    check the spelling
    "#);
    insta::assert_snapshot!(told(&env, "Bootstrap: docker\nFrom: Capital\n").unwrap(), @r#"
    exit 255
    FATAL:   image.def, line 1: image "docker://Capital" is not a name of an image: "Capital" has capital letters
             hint:    write it as docker://python:3.12, docker://ghcr.io/owner/name:tag or docker://name@sha256:...
    "#);
    insta::assert_snapshot!(told(&env, "Bootstrap: debootstrap\n").unwrap(), @"
    exit 255
    FATAL:   image.def, line 1: bootstrap agent debootstrap needs osversion
             hint:    add a line `OSVersion: bookworm`, or another name of a release
    ");
    insta::assert_snapshot!(told(&env, "Bootstrap: oci\nFrom: layout\n%files\n  no-such-file /x\n").unwrap(), @r#"
    exit 255
    INFO:    Starting build...
    FATAL:   image.def, line 4: "no-such-file" cannot be copied
             because: there is no $DIR/home/no-such-file on the host
             hint:    check the spelling; a relative path on the host starts at the working directory
    "#);
    insta::assert_snapshot!(told(&env, "Bootstrap: scratch\nInclude: x\nOSVersion: y\n%setup\n  exit 4\n").unwrap(), @"
    exit 4
    INFO:    Starting build...
    WARNING: image.def: include means nothing to the bootstrap agent scratch
    WARNING: image.def: osversion means nothing to the bootstrap agent scratch
    INFO:    Running setup scriptlet
    + exit 4
    ERROR:   %setup failed with exit code 4
             because: the image was not made
    ");
    insta::assert_snapshot!(env.fails(&["build", "--sandbox", "image", "none.def"]).unwrap(), @"
    exit 255
    FATAL:   cannot read the definition file none.def
             because: it does not exist
    ");
    env.write("home/arguments", "# Values\nA = 1\n\nnonsense\n").unwrap();
    insta::assert_snapshot!(env.fails(&["build", "--sandbox", "--build-arg-file", "arguments", "image", "image.def"]).unwrap(), @r#"
    exit 1
    ERROR:   arguments, line 4: "nonsense" is no value for a name
             hint:    write NAME=VALUE
    "#);
    insta::assert_snapshot!(env.fails(&["build", "--sandbox", "--build-arg", "X", "image", "image.def"]).unwrap(), @r#"
    exit 1
    ERROR:   --build-arg "X" is no value for a name
             hint:    write NAME=VALUE
    "#);
    env.finish().unwrap();
}

#[test]
fn scripts_that_fail_bring_their_code_along() {
    need!(image, userns);
    let env = place().unwrap();
    let head = "Bootstrap: oci\nFrom: layout\n";
    let told = |text: &str| told(&env, &format!("{head}{text}")).unwrap();
    insta::assert_snapshot!(told("%post\n  echo before\n  exit 7\n"), @"
    exit 7
    before
    INFO:    Starting build...
    WARNING: no subordinate ids are granted to you, so there is one user inside: giving files to other users and becoming another user do nothing there, and are answered as if they had worked. What needs several users fails; the administrator grants ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`
    INFO:    Running post scriptlet
    + echo before
    + exit 7
    ERROR:   %post failed with exit code 7
             because: the image was not made
    ");
    insta::assert_snapshot!(told("%post\n  false\n  echo never\n"), @"
    exit 1
    INFO:    Starting build...
    WARNING: no subordinate ids are granted to you, so there is one user inside: giving files to other users and becoming another user do nothing there, and are answered as if they had worked. What needs several users fails; the administrator grants ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`
    INFO:    Running post scriptlet
    + false
    ERROR:   %post failed with exit code 1
             because: the image was not made
    ");
    insta::assert_snapshot!(told("%test\n  exit 3\n"), @"
    exit 3
    INFO:    Starting build...
    WARNING: no subordinate ids are granted to you, so there is one user inside: giving files to other users and becoming another user do nothing there, and are answered as if they had worked. What needs several users fails; the administrator grants ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`
    INFO:    Adding labels
    INFO:    Adding testscript
    INFO:    Running testscript
    + exit 3
    ERROR:   %test failed with exit code 3
             because: the image was not made
    ");
    insta::assert_snapshot!(told("%setup\n  exit 4\n"), @"
    exit 4
    INFO:    Starting build...
    INFO:    Running setup scriptlet
    + exit 4
    ERROR:   %setup failed with exit code 4
             because: the image was not made
    ");
    insta::assert_snapshot!(told("%setup\n  set +x; kill -9 $$\n"), @"
    exit 137
    INFO:    Starting build...
    INFO:    Running setup scriptlet
    + set +x
    ERROR:   %setup failed with exit code 137
             because: the image was not made
    ");
    insta::assert_snapshot!(told("%post -c /bin/no-such-shell\n  true\n"), @"
    exit 255
    INFO:    Starting build...
    WARNING: no subordinate ids are granted to you, so there is one user inside: giving files to other users and becoming another user do nothing there, and are answered as if they had worked. What needs several users fails; the administrator grants ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`
    INFO:    Running post scriptlet
    FATAL:   %post cannot run: the image has no /bin/no-such-shell
             hint:    bootstrap from an image with a shell, or leave the section out
    ");
    env.finish().unwrap();
}

#[test]
fn files_that_cannot_be_copied() {
    need!(root, image, userns);
    let env = place().unwrap();
    env.make_dir("home/data").unwrap();
    env.write("home/data/one", "").unwrap();
    std::os::unix::fs::symlink("nowhere", env.path("home/data/loose")).unwrap();
    let closed = env.path("home/closed");
    std::fs::create_dir_all(closed.join("in")).unwrap();
    std::fs::write(closed.join("in/file"), "").unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let told = |line: &str| told(&env, &format!("Bootstrap: oci\nFrom: layout\n%files\n  {line}\n")).unwrap();
    insta::assert_snapshot!(told("closed/in/file /x"), @r#"
    exit 255
    INFO:    Starting build...
    FATAL:   image.def, line 4: "closed/in/file" cannot be looked for
             because: permission denied
             hint:    you need read permission for it and for every directory above it
    "#);
    insta::assert_snapshot!(told("closed/in/* /x"), @r#"
    exit 255
    INFO:    Starting build...
    FATAL:   image.def, line 4: "closed/in/*" cannot be looked for
             because: permission denied
             hint:    you need read permission for it and for every directory above it
    "#);
    insta::assert_snapshot!(told("data /x"), @"
    exit 255
    INFO:    Starting build...
    INFO:    Copying $DIR/home/data to /x
    FATAL:   image.def, line 4: cannot copy $DIR/home/data/loose
             because: it is a link that leads nowhere
    ");
    insta::assert_snapshot!(told("/dev/null /x"), @"
    exit 255
    INFO:    Starting build...
    INFO:    Copying /dev/null to /x
    FATAL:   image.def, line 4: cannot copy /dev/null
             because: it is a device, a pipe or a socket
             hint:    leave the line out: containers have the host's devices
    ");
    insta::assert_snapshot!(told("data/one /etc/hosts/x"), @"
    exit 255
    INFO:    Starting build...
    INFO:    Copying $DIR/home/data/one to /etc/hosts/x
    FATAL:   image.def, line 4: cannot copy $DIR/home/data/one
             because: a part of the path is not a directory
    ");
    env.finish().unwrap();
}

#[test]
fn what_is_there_is_not_touched() {
    need!(image, userns);
    let env = place().unwrap();
    env.write("home/image.def", "Bootstrap: oci\nFrom: layout\n%post\n  exit 1\n").unwrap();
    let build = |flags: &[&str]| {
        env.fails(&[&["build", "--sandbox"], flags, &["out", "image.def"]].concat()).unwrap()
    };
    env.make_dir("home/out").unwrap();
    env.write("home/out/precious", "mine").unwrap();
    insta::assert_snapshot!(build(&[]), @r#"
    exit 255
    FATAL:   "$DIR/home/out" exists already
             hint:    replace it with --force, or choose another name
    "#);
    insta::assert_snapshot!(build(&["--force"]), @r#"
    exit 255
    FATAL:   "$DIR/home/out" holds something else than an image, and is not replaced
             hint:    choose another name, or move it away
    "#);
    assert_eq!(std::fs::read_to_string(env.path("home/out/precious")).unwrap(), "mine");
    // A home, or a place where software is installed, is no image because of a name or two.
    for name in ["bin", "etc", "usr"] {
        std::fs::create_dir(env.path("home/out").join(name)).unwrap();
        assert!(build(&["--force"]).contains("holds something else than an image"), "{name}");
    }
    std::fs::create_dir(env.path("home/out/.singularity.d")).unwrap();
    assert!(build(&["--force"]).contains("%post failed with exit code 1"));
    assert_eq!(std::fs::read_to_string(env.path("home/out/precious")).unwrap(), "mine");
    env.write("home/file", "x").unwrap();
    insta::assert_snapshot!(env.fails(&["build", "--sandbox", "--force", "file", "image.def"]).unwrap(), @r#"
    exit 255
    FATAL:   "$DIR/home/file" is not an image directory, and is not replaced by one
             hint:    choose another name, or move it away
    "#);
    insta::assert_snapshot!(env.fails(&["build", "--sandbox", "no/such/place", "image.def"]).unwrap(), @"
    exit 255
    FATAL:   cannot make the image $DIR/home/no/such/place
             because: there is no directory $DIR/home/no/such
             hint:    make it first, or choose another name
    ");
    env.finish().unwrap();
}

#[test]
fn what_appears_meanwhile_is_not_touched() {
    need!(image, userns, squashfs);
    let env = place().unwrap();
    env.write("home/image.def", "Bootstrap: oci\nFrom: layout\n%setup\n  echo mine > late.sif; mkdir late\n")
        .unwrap();
    for (flags, image) in [(&[][..], "late.sif"), (&["--sandbox"], "late")] {
        let told = env.fails(&[&["build"], flags, &[image, "image.def"]].concat()).unwrap();
        assert!(told.to_lowercase().contains("exists"), "{told}");
        assert_eq!(std::fs::read_to_string(env.path("home/late.sif")).unwrap(), "mine\n");
        std::fs::remove_dir(env.path("home/late")).unwrap();
    }
    env.finish().unwrap();
}

/// A Debian that cannot be made: mmdebstrap's own words name the cause, and nothing is left, here and where it works.
#[test]
fn a_debian_that_cannot_be_had() {
    need!(mmdebstrap);
    let mut env = Env::new(Who::User).unwrap();
    let scratch = env.make_dir("scratch").unwrap();
    env.set("TMPDIR", &scratch.to_string_lossy());
    let nothing = Odd::start(|_, _| Answer::new(404, "")).unwrap();
    let hidden = |told: &str| told.replace(&format!(":{}", nothing.port), ":N");
    let head = "Bootstrap: debootstrap\nOSVersion: nosuch\n";
    let mirror = format!("MirrorURL: http://127.0.0.1:{}/of-%{{OSVERSION}}\n", nothing.port);
    insta::assert_snapshot!(hidden(&told(&env, &format!("{head}{mirror}")).unwrap()), @"
    exit 255
    INFO:    Starting build...
    WARNING: no subordinate ids are granted to you, so there is one user inside: giving files to other users and becoming another user do nothing there, and are answered as if they had worked. What needs several users fails; the administrator grants ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`
    INFO:    Installing nosuch with mmdebstrap
    FATAL:   mmdebstrap could not make a nosuch
             because: The repository 'http://127.0.0.1:N/of-nosuch nosuch Release' does not have a Release file.
             hint:    check OSVersion, MirrorURL and Include; without subordinate ids it needs fakechroot and fakeroot as well (`apt install fakechroot fakeroot`)
    ");
    assert!(nothing.asked().iter().any(|(path, _)| path == "/of-nosuch/dists/nosuch/InRelease"));
    let port = crate::http::free_port().unwrap();
    let mirror = format!("MirrorURL: http://127.0.0.1:{port}/\n");
    let told_of = told(&env, &format!("{head}{mirror}")).unwrap();
    assert!(
        told_of.contains("because: Failed to fetch http://127.0.0.1") && told_of.contains("refused"),
        "{told_of}"
    );
    insta::assert_snapshot!(told(&env, &format!("{head}Include: mailcap -oAPT::X=y\n")).unwrap(), @r#"
    exit 255
    FATAL:   image.def, line 1: "-oAPT::X=y" is no name of a package
             hint:    write Include: NAME NAME, with names as apt knows them
    "#);
    insta::assert_snapshot!(told(&env, "Bootstrap: debootstrap\nOSVersion: --help\n").unwrap(), @r#"
    exit 255
    FATAL:   image.def, line 1: "--help" is neither a release nor an address
             hint:    add a line `OSVersion: bookworm`, or another name of a release
    "#);
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "mmdebstrap has left something");
    env.finish().unwrap();
}

/// With subordinate ids mmdebstrap works as one of those, who has to get to where it works.
#[test]
fn a_debian_that_cannot_be_had_with_subordinate_ids() {
    need!(uidmap, userns, mmdebstrap);
    let env = Env::new(Who::Granted).unwrap();
    let nothing = Odd::start(|_, _| Answer::new(404, "")).unwrap();
    let mirror = format!("MirrorURL: http://127.0.0.1:{}/\n", nothing.port);
    let told = told(&env, &format!("Bootstrap: debootstrap\nOSVersion: nosuch\n{mirror}")).unwrap();
    assert!(told.contains("nosuch Release' does not have a Release file."), "{told}");
    env.finish().unwrap();
}

/// Killed while mmdebstrap waits for its mirror: that hears of it, and cleans up.
#[test]
fn an_interrupted_debian_leaves_nothing() {
    need!(root, mmdebstrap);
    for (who, signal) in [(Who::User, Signal::SIGKILL), (Who::Myself, Signal::SIGTERM)] {
        let mut env = Env::new(who).unwrap();
        let scratch = env.make_dir("scratch").unwrap();
        env.set("TMPDIR", &scratch.to_string_lossy());
        let slow =
            Odd::start(|_, _| Answer { pause: Duration::from_secs(2), ..Answer::new(404, "x") }).unwrap();
        let text =
            format!("Bootstrap: debootstrap\nOSVersion: sid\nMirrorURL: http://127.0.0.1:{}/\n", slow.port);
        env.write("home/image.def", &text).unwrap();
        let running = env.spawn(&["build", "--sandbox", "image", "image.def"]).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while slow.asked().is_empty() {
            assert!(Instant::now() < deadline, "the mirror is never asked");
            std::thread::sleep(Duration::from_millis(20));
        }
        running.signal(signal).unwrap();
        assert_ne!(running.wait().unwrap().code, 0);
        let left_over = || std::fs::read_dir(&scratch).unwrap().count();
        while left_over() > 0 || !env.survivors().is_empty() || !left(&env).is_empty() {
            let runs = env.survivors();
            assert!(
                Instant::now() < deadline,
                "{signal}: {} left, {:?}, runs {runs:?}",
                left_over(),
                left(&env)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        env.finish().unwrap();
    }
}

/// However it ends, nothing stays: neither the half image nor what ran in it.
#[test]
fn an_interrupted_build_leaves_nothing() {
    need!(image, userns);
    for (who, signal, kind) in [
        (Who::User, Signal::SIGINT, &["--sandbox"][..]),
        (Who::User, Signal::SIGTERM, &["--sandbox"]),
        (Who::User, Signal::SIGKILL, &["--sandbox"]),
        (Who::User, Signal::SIGKILL, &[]),
        (Who::Granted, Signal::SIGKILL, &["--sandbox"]),
        (Who::Granted, Signal::SIGHUP, &[]),
    ] {
        if who == Who::Granted && !crate::need::met("uidmap", crate::need::uidmap()).unwrap() {
            continue;
        }
        let env = Env::new(who).unwrap();
        small(&env).unwrap().layout(&env, "home/layout").unwrap();
        let image = super::image(&env, "server");
        let text = format!(
            "Bootstrap: localimage\nFrom: {image}\n%post\n  \
             mkdir -p /closed/inside; touch /closed/inside/file; chmod 0 /closed\n  \
             chown -R 5:5 /closed\n  echo reached\n  python3 -c 'import time; time.sleep(600)'\n"
        );
        env.write("home/image.def", &text).unwrap();
        let running = env.spawn(&[&["build"], kind, &["image", "image.def"]].concat()).unwrap();
        running.wait_for("reached").unwrap();
        running.signal(signal).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !(left(&env).is_empty() && env.survivors().is_empty()) {
            let late = std::time::Instant::now() > deadline;
            assert!(!late, "{who:?} {signal} {kind:?}: left {:?}, runs {:?}", left(&env), env.survivors());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let run = running.wait().unwrap();
        assert_ne!(run.code, 0);
        env.finish().unwrap();
    }
}
