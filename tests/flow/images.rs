//! Images in files: built, inspected, brought into view in each of the three ways, saved and brought back.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::transcript::{self, CRIU, OURS, Words};
use crate::env::{Env, Who};
use crate::http::free_port;
use crate::need::need;
use crate::running::{Outcome, PATIENCE, Run};

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A place with an image, in which that is reached in one way.
fn place(who: Who, way: &str, image: &str) -> Outcome<(Env, String)> {
    let mut env = Env::new(who)?;
    if who != Who::Myself && way == "fuse" {
        env.open_fuse()?;
    }
    env.set("STASIS_IMAGE_MOUNT", way);
    let sif = text(&env.sif(image, "image.sif")?);
    Ok((env, sif))
}

fn whole(who: Who, way: &str, words: Words) -> Outcome<()> {
    let (env, sif) = place(who, way, "server")?;
    let port = free_port()?;
    transcript::once(&env, Path::new(&sif), words, port, "server")?;
    assert!(served(&env).is_empty(), "a mount outlived its container: {:?}", env.survivors());
    env.finish()
}

/// Processes that serve a mount.
fn served(env: &Env) -> Vec<String> {
    env.survivors().into_iter().map(|(_, words)| words).filter(|words| words.contains("squashfuse")).collect()
}

#[test]
fn the_transcript_on_a_file_that_the_kernel_mounts() {
    need!(image, squashfs, loop_devices, dmtcp);
    whole(Who::Myself, "kernel", OURS).unwrap();
}

#[test]
fn the_transcript_on_a_file_through_fuse_as_root() {
    need!(image, squashfs, fuse, dmtcp);
    whole(Who::Myself, "fuse", OURS).unwrap();
}

#[test]
fn the_transcript_on_a_file_through_fuse_as_an_ordinary_user() {
    need!(image, squashfs, userns, fuse, dmtcp);
    whole(Who::User, "fuse", OURS).unwrap();
}

#[test]
fn the_transcript_on_a_file_that_is_unpacked() {
    need!(image, squashfs, userns, dmtcp);
    whole(Who::User, "unpack", OURS).unwrap();
}

#[test]
fn the_transcript_on_a_file_with_criu_as_root() {
    need!(root, image, squashfs, loop_devices, criu);
    whole(Who::Myself, "kernel", CRIU).unwrap();
}

#[test]
fn the_transcript_on_a_file_through_fuse_with_criu() {
    need!(image, squashfs, userns, fuse, criu);
    whole(Who::User, "fuse", CRIU).unwrap();
}

#[test]
fn the_transcript_on_a_file_that_is_unpacked_with_criu() {
    need!(image, squashfs, userns, criu);
    whole(Who::User, "unpack", CRIU).unwrap();
}

/// Uid 0 inside is another user, whom a mount through FUSE does not let in.
#[test]
fn the_transcript_on_a_file_with_criu_and_subordinate_ids() {
    need!(image, squashfs, userns, uidmap, fuse, criu);
    whole(Who::Granted, "fuse", CRIU).unwrap();
}

/// What a container shows of itself, to be the same in every way.
fn shows(env: &Env, image: &str) -> Outcome<Run> {
    let script = "cat /etc/passwd | wc -l | cat; echo $STASIS_TEST_IMAGE; echo /opt/subjects/*; touch /etc/x || echo closed";
    env.stasis(&["-v", "exec", image, "sh", "-c", script])
}

#[test]
fn every_way_shows_the_same() {
    need!(root, image, squashfs, userns, fuse, loop_devices);
    for (who, ways) in [(Who::Myself, &["kernel", "fuse", "unpack"][..]), (Who::User, &["fuse", "unpack"])] {
        let mut seen = Vec::new();
        for way in ways {
            let (env, sif) = place(who, way, "small").unwrap();
            let run = shows(&env, &sif).unwrap();
            assert_eq!(run.code, 0, "{way}: {}", run.err);
            assert!(served(&env).is_empty(), "{way}: something outlived the command");
            let told = ["mounted by the kernel", "mounted through FUSE", "unpacked in"];
            let says = told[["kernel", "fuse", "unpack"].iter().position(|w| w == way).unwrap()];
            assert!(run.err.contains(says), "{way}: {}", run.err);
            assert!(run.out.contains("small\n") && run.out.ends_with("closed\n"), "{way}: {}", run.out);
            seen.push(run.out);
            for flags in [&["--writable-tmpfs"][..], &["--fakeroot"], &["--containall"], &["--pid"]] {
                let words = [&["exec"], flags, &[&sif, "sh", "-c", "echo $STASIS_TEST_IMAGE"]].concat();
                assert_eq!(env.ok(&words).unwrap().out, "small\n", "{way} {flags:?}");
            }
            env.finish().unwrap();
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    }
}

/// For root no program of a file changes the user, and no device in it is one. Anybody else is root of nothing but the
/// container's own namespace.
#[test]
fn a_file_is_mounted_without_rights_for_root() {
    need!(root, image, squashfs, fuse, loop_devices);
    for way in ["kernel", "fuse", "unpack"] {
        let (env, sif) = place(Who::Myself, way, "small").unwrap();
        for flags in [&[][..], &["--writable-tmpfs"], &["--containall"], &["--fakeroot"], &["--pid"]] {
            let words = [&["exec"], flags, &[&sif, "cat", "/proc/self/mountinfo"]].concat();
            let out = env.ok(&words).unwrap().out;
            // Mount point and options of the root, and of layers that lie on parts of it.
            let fields = |line: &'_ str| -> Option<(String, String)> {
                let mut words = line.split(' ').skip(4);
                Some((words.next()?.to_owned(), words.next()?.to_owned()))
            };
            let of_image =
                |(line, (at, _)): &(&str, (String, String))| at == "/" || line.contains(" - overlay ");
            let all = out.lines().filter_map(|line| Some((line, fields(line)?)));
            let mounts: Vec<_> = all.filter(of_image).map(|(_, found)| found).collect();
            assert!(mounts.iter().any(|(at, _)| *at == "/"), "{way} {flags:?}: {out}");
            let open =
                |(_, options): &&(String, String)| !options.contains("nosuid") || !options.contains("nodev");
            let rights: Vec<_> = mounts.iter().filter(open).collect();
            assert!(rights.is_empty(), "{way} {flags:?}: {rights:?}");
        }
        env.finish().unwrap();
    }
}

#[test]
fn the_kernel_gets_only_files_that_are_roots_alone() {
    need!(root, image, squashfs, fuse, loop_devices);
    let env = Env::new(Who::Myself).unwrap();
    let sif = env.sif("small", "image.sif").unwrap();
    let how = || {
        let run = env.ok(&["-v", "exec", &text(&sif), "true"]).unwrap();
        run.err
            .lines()
            .filter(|line| line.contains("mounted"))
            .map(|line| env.plain(line))
            .collect::<Vec<_>>()
    };
    assert_eq!(how(), [r#"VERBOSE: image "$DIR/image.sif" is mounted by the kernel"#]);
    std::os::unix::fs::chown(&sif, Some(crate::env::USER), None).unwrap();
    let told = how();
    assert!(
        told[0].contains("is not mounted by the kernel: not every part of its path is root's alone"),
        "{told:?}"
    );
    assert_eq!(told[1], r#"VERBOSE: image "$DIR/image.sif" is mounted through FUSE"#);
    // What is there already is used, whatever else would be possible.
    env.ok(&["exec", "--unsquash", &text(&sif), "true"]).unwrap();
    let run = env.ok(&["-v", "exec", &text(&sif), "true"]).unwrap();
    assert!(run.err.contains("is unpacked in") && !run.err.contains("mounted"), "{}", run.err);
    env.finish().unwrap();
}

/// Whoever runs something in it keeps it: a command, an instance, also one that the engine had unpacked.
#[test]
fn what_was_unpacked_goes_when_nobody_uses_it() {
    need!(image, squashfs, userns);
    let (env, sif) = place(Who::User, "unpack", "small").unwrap();
    let listed = || {
        let out = env.ok(&["cache", "list"]).unwrap().out;
        out.lines().filter(|line| line.contains("unpacked")).map(str::to_owned).collect::<Vec<_>>()
    };
    let cleaned = |flags: &[&str]| env.ok(&[&["cache", "clean"], flags].concat()).unwrap().err;
    assert_eq!(listed(), Vec::<String>::new());
    env.ok(&["instance", "start", &sif, "one"]).unwrap();
    assert_eq!(listed().len(), 1);
    assert!(listed()[0].ends_with(&sif) && listed()[0].contains(" MiB "), "{:?}", listed());
    let running = env.spawn(&["exec", &sif, "sh", "-c", "echo up; exec sleep 60"]).unwrap();
    running.wait_for("up").unwrap();
    assert!(cleaned(&["--all"]).contains("is in use and stays"));
    env.ok(&["instance", "stop", "one"]).unwrap();
    let told = cleaned(&["--all"]);
    assert!(told.contains("is in use and stays") && told.contains("0 things were removed"), "{told}");
    running.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    running.wait().unwrap();
    assert!(cleaned(&[]).contains("0 things were removed"), "it was used a moment ago");
    // What the command ran ends behind it, and containers of other tests may see the same content.
    let deadline = Instant::now() + PATIENCE;
    while !cleaned(&["--all", "--dry-run"]).contains("1 thing would be removed") {
        assert!(Instant::now() < deadline, "{}", cleaned(&["--all", "--dry-run"]));
    }
    assert_eq!(listed().len(), 1);
    let told = cleaned(&["--all"]);
    assert!(told.contains("1 thing was removed, ") && told.contains(" MiB"), "{told}");
    assert_eq!(listed(), Vec::<String>::new());
    let left = fs::read_dir(env.path("data/cache/_images")).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.path().is_dir()), "a directory was left");
    assert_eq!(env.ok(&["exec", &sif, "echo", "again"]).unwrap().out, "again\n");
    env.finish().unwrap();
}

/// What packages give to users of their own is theirs in a file that root builds; whoever else builds owns all of it,
/// and it is root's inside.
#[test]
fn owners_are_kept_by_root_and_by_nobody_else() {
    need!(root, image, squashfs, userns, fuse);
    let env = Env::new(Who::Myself).unwrap();
    let text = format!(
        "Bootstrap: localimage\nFrom: {}\n%setup\n  cd \"$STASIS_ROOTFS\"; mkdir var/mail; chgrp 8 var/mail; chmod 2775 var/mail\n  \
         echo secret > etc/theirs; chown 105:112 etc/theirs; chmod 644 etc/theirs\n  \
         ln -s theirs etc/link; chown -h 105:112 etc/link\n",
        env.site.image("small").display()
    );
    env.write("home/image.def", &text).unwrap();
    env.ok(&["build", "image.sif", "image.def"]).unwrap();
    // Through a file, a directory, and a file of that directory.
    for (image, source) in [("first", "image.sif"), ("second", "first")] {
        env.ok(&["build", "--sandbox", image, source]).unwrap();
        assert_eq!(
            owners(&env, image),
            [(0, 8, 0o2775), (105, 112, 0o644), (105, 112, 0o777), (0, 0, 0o755)]
        );
    }
    env.ok(&["build", "second.sif", "second"]).unwrap();
    env.ok(&["build", "--sandbox", "third", "second.sif"]).unwrap();
    assert_eq!(owners(&env, "third"), owners(&env, "first"));
    for way in ["fuse", "unpack"] {
        let (mut other, _) = place(Who::User, way, "small").unwrap();
        let theirs = other.path("home/theirs.sif");
        fs::copy(env.path("home/image.sif"), &theirs).unwrap();
        let run = other.ok(&["exec", &theirs.to_string_lossy(), "sh", "-c", "cat /etc/theirs"]).unwrap();
        assert_eq!(run.out, "secret\n", "{way}");
        other.set("STASIS_IMAGE_MOUNT", "");
        other.ok(&["build", "--sandbox", "again", "theirs.sif"]).unwrap();
        other.ok(&["build", "again.sif", "again"]).unwrap();
        fs::copy(other.path("home/again.sif"), env.path("home/again.sif")).unwrap();
        env.ok(&["build", "--force", "--sandbox", "of-a-user", "again.sif"]).unwrap();
        let all = owners(&env, "of-a-user");
        assert!(all.len() == 4 && all.iter().all(|(uid, gid, _)| (*uid, *gid) == (0, 0)), "{way}: {all:?}");
        other.finish().unwrap();
    }
    env.finish().unwrap();
}

/// Of a directory, a file, a link, and what was root's all along.
fn owners(env: &Env, image: &str) -> Vec<(u32, u32, u32)> {
    let look = |path| env.path("home").join(image).join(path).symlink_metadata();
    let all = ["var/mail", "etc/theirs", "etc/link", "etc"].into_iter().filter_map(|path| look(path).ok());
    all.map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o7777)).collect()
}

/// A process that the application leaves behind has its files for as long as it lives, and no longer.
#[test]
fn a_mount_lives_as_long_as_its_last_process() {
    need!(image, squashfs, userns, fuse);
    let (env, sif) = place(Who::User, "fuse", "small").unwrap();
    let wait = "while [ ! -e \"$HOME/go\" ]; do sleep 0.05; done";
    let script = &format!("({wait}; exec cat /etc/group) > \"$HOME/late\" 2>&1 &");
    env.ok(&["exec", &sif, "sh", "-c", script]).unwrap();
    assert_eq!(served(&env).len(), 1, "the mount is gone before its last process");
    env.write("home/go", "").unwrap();
    let late = env.path("home/late");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !fs::read_to_string(&late).is_ok_and(|text| text.contains("root:")) {
        assert!(
            std::time::Instant::now() < until,
            "the process lost its files: {:?}",
            fs::read_to_string(&late)
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    env.finish().unwrap();
}

#[test]
fn what_is_built_comes_out_again() {
    need!(image, squashfs, userns);
    let mut env = Env::new(Who::User).unwrap();
    env.set("SOURCE_DATE_EPOCH", "1000000000");
    let sif = text(&env.sif("small", "image.sif").unwrap());
    let sandbox = text(&env.path("sandbox"));
    let built = env.ok(&["build", "--sandbox", &sandbox, &sif]).unwrap();
    insta::assert_snapshot!(env.told(&built), @"
    exit 0
    INFO:    Extracting local image...
    INFO:    Build complete: $DIR/sandbox
    ");
    let small = text(&env.site.image("small"));
    let same = Command::new("diff").args(["-r", "--no-dereference", &small, &sandbox]).output().unwrap();
    let same = String::from_utf8_lossy(&same.stdout).replace(&sandbox, "sandbox");
    // Made for what containers mount there.
    assert_eq!(same, "Only in sandbox/etc: hosts\nOnly in sandbox/etc: resolv.conf\n");
    let all = env.ok(&["inspect", "--all", &sif]).unwrap().out;
    let of_sandbox = env.ok(&["inspect", "--all", &sandbox]).unwrap().out;
    for part in ["runscript", "startscript", "environment"] {
        let of = |text: &str| {
            serde_json::from_str::<serde_json::Value>(text).unwrap()["data"]["attributes"][part].clone()
        };
        assert_eq!(of(&all), of(&of_sandbox), "{part}");
    }
    insta::assert_snapshot!(env.ok(&["inspect", "-l", "-r", "-s", "-e", &sif]).unwrap().out, @r#"
    #!/bin/sh

    exec "$@"
    #!/bin/sh

    exec "$@"
    === /.singularity.d/env/90-environment.sh ===
    export STASIS_TEST_IMAGE=small
    export PYTHONDONTWRITEBYTECODE=1
    org.label-schema.build-arch: amd64
    org.label-schema.build-date: Sunday_9_September_2001_1:46:40_UTC
    org.label-schema.schema-version: 1.0
    org.label-schema.usage.stasis.version: 0.1.0
    "#);
    insta::assert_snapshot!(env.plain(&env.ok(&["inspect", "-d", &sif]).unwrap().out), @"
    bootstrap: localimage
    from: $IMAGES/small
    ");
    insta::assert_snapshot!(env.ok(&["inspect", "--json", "-r", &sandbox]).unwrap().out, @r##"
    {
    	"data": {
    		"attributes": {
    			"runscript": "#!/bin/sh\n\nexec \"$@\"\n"
    		}
    	},
    	"type": "container"
    }
    "##);
    // A directory is replaced as a whole.
    fs::write(env.path("sandbox/marker"), "").unwrap();
    env.ok(&["build", "--force", "--sandbox", &sandbox, &sif]).unwrap();
    assert!(!env.path("sandbox/marker").exists());
    assert_eq!(left(&env), [""; 0]);
    env.finish().unwrap();
}

/// What a build may not leave.
fn left(env: &Env) -> Vec<String> {
    let entries = fs::read_dir(env.dir()).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".stasis") || name.contains(".partial")).collect()
}

#[test]
fn the_same_directory_at_the_same_time_is_the_same_file() {
    need!(image, squashfs);
    let mut env = Env::new(Who::User).unwrap();
    env.set("SOURCE_DATE_EPOCH", "1000000000");
    let (one, two) = (env.sif("small", "one.sif").unwrap(), env.sif("small", "two.sif").unwrap());
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap());
    // A definition file likewise, as far as what it runs allows.
    let from = env.site.image("small");
    let definition =
        format!("Bootstrap: localimage\nFrom: {}\n%environment\n    export A=1\n", from.display());
    env.write("home/image.def", &definition).unwrap();
    for name in ["three.sif", "four.sif"] {
        env.ok(&["build", name, "image.def"]).unwrap();
    }
    let read = |name: &str| fs::read(env.path("home").join(name)).unwrap();
    assert!(read("three.sif") == read("four.sif"));
    // Not only because they were made in the same second.
    for name in ["one.sif", "home/three.sif"] {
        let sif = fs::read(env.path(name)).unwrap();
        let system = (36864..sif.len()).step_by(4096).find(|at| sif[*at..].starts_with(b"hsqs")).unwrap();
        for (at, length) in [(64, 8), (72, 8), (system + 8, 4)] {
            let seconds = sif[at..at + length].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
            assert_eq!(seconds, 1_000_000_000, "{name}, byte {at}");
        }
        let labels = env.ok(&["inspect", &text(&env.path(name))]).unwrap().out;
        assert!(labels.contains("build-date: Sunday_9_September_2001_1:46:40_UTC\n"), "{labels}");
    }
    env.finish().unwrap();
}

/// Where somebody's Apptainer or SingularityCE is installed: what one writes, the other reads.
#[test]
fn apptainer_reads_ours_and_we_read_theirs() {
    need!(image, squashfs, apptainer);
    for program in crate::need::apptainers() {
        exchange(program).unwrap_or_else(|e| panic!("{program}: {e}"));
    }
}

fn exchange(program: &str) -> Outcome<()> {
    let env = Env::new(Who::Myself)?;
    let (ours, theirs) = (text(&env.sif("small", "ours.sif")?), text(&env.path("theirs.sif")));
    let apptainer = |words: &[&str]| env.program(program).args(words).output();
    let listed = apptainer(&["sif", "list", &ours])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for kind in ["Def.FILE", "JSON.Generic", "FS (Squashfs/*System/"] {
        assert!(listed.contains(kind), "{listed}");
    }
    // What ours tells of the file itself stands beside that.
    let attributes = |bytes: &[u8]| -> Outcome<serde_json::Value> {
        Ok(serde_json::from_slice::<serde_json::Value>(bytes)?["data"]["attributes"].take())
    };
    let of_theirs = |image: &str| attributes(&apptainer(&["inspect", "--all", image])?.stdout);
    let of_ours = |image: &str| attributes(env.ok(&["inspect", "--all", image])?.out.as_bytes());
    assert_eq!(of_theirs(&ours)?, of_ours(&ours)?);
    let built = apptainer(&["build", &theirs, &text(&env.site.image("small"))])?;
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert_eq!(env.ok(&["exec", &theirs, "sh", "-c", "echo $STASIS_TEST_IMAGE"])?.out, "small\n");
    assert_eq!(of_theirs(&theirs)?, of_ours(&theirs)?);
    // Not everywhere where it is installed it may make containers.
    if apptainer(&["exec", &theirs, "true"])?.status.success() {
        assert!(apptainer(&["exec", &ours, "true"])?.status.success());
    }
    env.finish()
}

#[test]
fn a_restart_knows_its_image_by_its_content() {
    need!(image, squashfs, userns, dmtcp);
    known().unwrap();
}

fn known() -> Outcome<()> {
    let env = Env::new(Who::User)?;
    let sif = env.sif("small", "image.sif")?;
    let idle = "/opt/subjects/bin/idle";
    env.ok(&["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &text(&sif), "one", idle])?;
    env.ok(&["checkpoint", "instance", "--stop", "one"])?;
    let shown = env.ok(&["checkpoint", "show", "--json", "kept@1"])?.out;
    let image = &serde_json::from_str::<serde_json::Value>(&shown)?["image"];
    assert_eq!(image["kind"], "sif", "{shown}");
    assert_eq!(image["uuid"].as_str().map(str::len), Some(36), "{image}");
    assert!(image["digest"].as_str().is_some_and(|digest| digest.starts_with("blake3:")), "{image}");
    let (copy, bare) = (env.path("copy.sif"), env.path("bare.squashfs"));
    let bytes = fs::read(&sif)?;
    fs::write(&copy, &bytes)?;
    let root =
        (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"hsqs")).ok_or("no root")?;
    fs::write(&bare, &bytes[root..])?;
    for path in [&copy, &bare] {
        crate::env::own(path, env.uid())?;
    }
    fs::rename(&sif, env.path("away.sif"))?;
    for image in [&text(&copy), &text(&bare)] {
        env.ok(&["instance", "start", "--restart", "kept", image, "one"])?;
        env.ok(&["instance", "stop", "one"])?;
    }
    fs::rename(env.path("away.sif"), &sif)?;
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"])?;
    env.ok(&["instance", "stop", "one"])?;
    let other = env.sif("plain", "other.sif")?;
    let told = env.fails(&["instance", "start", "--restart", "kept", &text(&other), "one"])?;
    assert!(told.contains("generation 1 was saved of another image"), "{told}");
    env.finish()
}
