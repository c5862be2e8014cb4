//! Image files that are damaged, not for this machine, or cannot be made.

use std::fs;
use std::os::unix::fs::FileExt as _;

use nix::sys::signal::Signal;

use super::*;
use crate::need::need;

/// Puts `bytes` at `at` of a copy of a sound file.
fn changed(env: &Env, sif: &std::path::Path, at: u64, bytes: &[u8]) -> Outcome<String> {
    let path = env.path("changed.sif");
    fs::copy(sif, &path)?;
    fs::OpenOptions::new().write(true).open(&path)?.write_all_at(bytes, at)?;
    crate::env::own(&path, env.uid())?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn headers_that_lie_or_are_not_for_us() {
    need!(image, squashfs);
    let env = Env::new(Who::User).unwrap();
    let sif = env.sif("small", "image.sif").unwrap();
    // How large it is depends on the tools of the host.
    let length = fs::metadata(&sif).unwrap().len();
    let told = |at: u64, bytes: &[u8]| {
        let path = changed(&env, &sif, at, bytes).unwrap();
        let told = env.fails(&["exec", &path, "true"]).unwrap();
        told.replace(&length.to_string(), "$LENGTH").replace(&(length - 36864).to_string(), "$SIZE")
    };
    let root = 4096 + 2 * 585;
    insta::assert_snapshot!(told(88, &[0xff; 7]), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" is a damaged SIF file
             because: at byte 88: it announces 72057594037927935 descriptors, more than 4096
             hint:    it was not copied to its end, or is none: fetch or build it again
    "#);
    insta::assert_snapshot!(told(root + 17, &i64::MAX.to_le_bytes()), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" is a damaged SIF file
             because: at byte 5291: object 3 has $SIZE bytes from byte 9223372036854775807 on, and the file ends at byte $LENGTH
             hint:    it was not copied to its end, or is none: fetch or build it again
    "#);
    insta::assert_snapshot!(told(root + 17, &32180_i64.to_le_bytes()), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" is a damaged SIF file
             because: at byte 5283: objects 1 and 3 overlap
             hint:    it was not copied to its end, or is none: fetch or build it again
    "#);
    insta::assert_snapshot!(told(root + 201, &[5]), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" cannot be run: its root file system is encrypted (encrypted squashfs)
             hint:    build an image that is not encrypted; stasis cannot open encrypted ones
    "#);
    insta::assert_snapshot!(told(root + 201, &[2]), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" cannot be run: its root file system is ext3, and only squashfs is known
             hint:    build it again with a newer Apptainer, which makes squashfs
    "#);
    insta::assert_snapshot!(told(root + 205, &[3]), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" cannot be run: it holds no root file system
             hint:    it may be data only: `singularity sif list` shows what it holds
    "#);
    insta::assert_snapshot!(told(root + 209, b"11"), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" cannot be run: it was made for s390x, and this machine is amd64
             hint:    take an image for this machine, or run it on one that it was made for
    "#);
    insta::assert_snapshot!(told(root + 17, &36900_i64.to_le_bytes()), @r#"
    exit 255
    FATAL:   image "$DIR/changed.sif" is a damaged SIF file
             because: at byte 5291: object 3 has $SIZE bytes from byte 36900 on, and the file ends at byte $LENGTH
             hint:    it was not copied to its end, or is none: fetch or build it again
    "#);
    env.finish().unwrap();
}

#[test]
fn a_file_that_was_not_copied_to_its_end() {
    need!(image, squashfs);
    let env = Env::new(Who::User).unwrap();
    let sif = env.sif("small", "image.sif").unwrap();
    for (length, says) in [(200, "at byte 4096"), (40_000, "at byte 5291"), (60, "at byte 0")] {
        let path = changed(&env, &sif, 0, b"#").unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        let told = env.fails(&["exec", &path, "true"]).unwrap();
        assert!(told.contains("is a damaged SIF file") && told.contains(says), "{length}: {told}");
        let told = env.fails(&["build", "--sandbox", &env.path("s").to_string_lossy(), &path]).unwrap();
        assert!(told.contains("is a damaged SIF file"), "{length}: {told}");
    }
    env.finish().unwrap();
}

/// A sound superblock, and nothing behind it that makes sense: no way may hang, and each says what it met.
#[test]
fn a_file_system_of_garbage() {
    need!(root, image, squashfs, userns, fuse, loop_devices);
    for (who, way) in
        [(Who::Myself, "kernel"), (Who::Myself, "fuse"), (Who::User, "fuse"), (Who::User, "unpack")]
    {
        let mut env = Env::new(who).unwrap();
        if who == Who::User && way == "fuse" {
            env.open_fuse().unwrap();
        }
        let sif = env.sif("small", "image.sif").unwrap();
        let size = usize::try_from(fs::metadata(&sif).unwrap().len()).unwrap();
        let path = changed(&env, &sif, 36864 + 96, &vec![0x5a; size - 36864 - 96]).unwrap();
        env.set("STASIS_IMAGE_MOUNT", way);
        let told = env.fails(&["exec", &path, "true"]).unwrap();
        assert!(
            told.contains("the content of image \"$DIR/changed.sif\" cannot be reached"),
            "{way}: {told}"
        );
        assert!(told.contains("because: "), "{way}: {told}");
        let run = env.stasis(&["build", "--sandbox", &env.path("out").to_string_lossy(), &path]).unwrap();
        assert_ne!(run.code, 0);
        assert!(!env.path("out").exists() && half_built(&env).is_empty(), "{way}: {:?}", half_built(&env));
        env.finish().unwrap();
    }
}

/// What a build may not leave.
fn half_built(env: &Env) -> Vec<String> {
    let mut all = find_begun(env.dir());
    all.extend(find_begun(&env.path("data/cache/_images")));
    all
}

fn find_begun(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".stasis") || name.contains(".partial")).collect()
}

#[test]
fn what_cannot_be_built() {
    need!(image, squashfs);
    let env = Env::new(Who::User).unwrap();
    let sif = env.sif("small", "image.sif").unwrap().to_string_lossy().into_owned();
    let small = image(&env, "small");
    let out = |name: &str| env.path(name).to_string_lossy().into_owned();
    let before = fs::read(env.path("image.sif")).unwrap();
    env.make_dir("full").unwrap();
    env.write("full/file", "of somebody").unwrap();
    insta::assert_snapshot!(env.fails(&["build", &sif, &small]).unwrap(), @r#"
    exit 255
    FATAL:   "$DIR/image.sif" exists already
             hint:    replace it with --force, or choose another name
    "#);
    insta::assert_snapshot!(env.fails(&["build", "--force", &out("home"), &small]).unwrap(), @r#"
    exit 255
    FATAL:   "$DIR/home" is no file and is not replaced by an image
             hint:    choose another name, or move it away
    "#);
    insta::assert_snapshot!(env.fails(&["build", &out("no/such/place.sif"), &small]).unwrap(), @r#"
    exit 255
    FATAL:   cannot make image "$DIR/no/such/place.sif"
             because: there is no directory $DIR/no/such
             hint:    make it first, or choose another name
    "#);
    insta::assert_snapshot!(env.fails(&["build", &out("x.sif"), &out("home")]).unwrap(), @r#"
    exit 255
    FATAL:   directory "$DIR/home" is not an image: it has none of bin, usr, etc and .singularity.d
             hint:    give an image: a SIF file, or the directory into which one was unpacked
    "#);
    insta::assert_snapshot!(env.fails(&["build", &out("x.sif"), &out("gone")]).unwrap(), @r#"
    exit 255
    FATAL:   cannot read the definition file $DIR/gone
             because: it does not exist
    "#);
    insta::assert_snapshot!(env.fails(&["build", "--sandbox", &out("home"), &sif]).unwrap(), @r#"
    exit 255
    FATAL:   "$DIR/home" exists already
             hint:    replace it with --force, or choose another name
    "#);
    insta::assert_snapshot!(env.fails(&["build", "--force", "--sandbox", &out("full"), &sif]).unwrap(), @r#"
    exit 255
    FATAL:   "$DIR/full" holds something else than an image, and is not replaced
             hint:    choose another name, or move it away
    "#);
    insta::assert_snapshot!(env.fails(&["exec", "--writable", &sif, "true"]).unwrap(), @r#"
    exit 255
    FATAL:   --writable cannot be used: image "$DIR/image.sif" is a file, which is never written to
             hint:    write into a directory with --overlay DIR, or unpack it: stasis build --sandbox DIR $DIR/image.sif
    "#);
    assert!(
        fs::read(env.path("image.sif")).unwrap() == before,
        "an image was touched by a build that failed"
    );
    assert!(!env.path("x.sif").exists() && half_built(&env).is_empty());
    env.finish().unwrap();
}

#[test]
fn a_source_that_may_not_be_read_makes_no_image() {
    need!(root, image, squashfs);
    let env = Env::new(Who::User).unwrap();
    let own = env.copy_image("small", "own").unwrap();
    let secret = own.join("etc/secret");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let out = env.path("x.sif").to_string_lossy().into_owned();
    let told = env.fails(&["build", &out, &own.to_string_lossy()]).unwrap();
    assert!(told.contains("you may not read all of it"), "{told}");
    assert!(!env.path("x.sif").exists() && half_built(&env).is_empty());
    env.finish().unwrap();
}

/// Interrupted in the middle, politely or not: nothing half made, and the old image is as it was.
#[test]
fn an_interrupted_build() {
    need!(image, squashfs);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let env = Env::new(Who::User).unwrap();
        let sif = env.sif("small", "image.sif").unwrap();
        let before = fs::read(&sif).unwrap();
        let words =
            ["build", "--force", "--compression-level", "22", &sif.to_string_lossy(), &image(&env, "server")];
        let running = env.spawn(&words).unwrap();
        let until = std::time::Instant::now() + crate::running::PATIENCE;
        while !env.survivors().iter().any(|(_, words)| words.contains("mksquashfs")) {
            assert!(std::time::Instant::now() < until, "the build never began");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        running.signal(signal).unwrap();
        let run = running.wait().unwrap();
        assert_ne!(run.code, 0, "{signal}: {}", run.err);
        assert!(fs::read(&sif).unwrap() == before, "{signal} cost the old image");
        while env.survivors().iter().any(|(_, words)| words.contains("mksquashfs")) {
            assert!(std::time::Instant::now() < until, "{signal}: the tool goes on");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert_eq!(half_built(&env), [""; 0], "{signal}");
        env.finish().unwrap();
    }
}

/// A tool outlives whoever started it by a moment. Until it is gone nobody else unpacks, or the two would write into the
/// same place.
#[test]
fn the_tool_that_unpacks_holds_the_lock() {
    need!(image, squashfs, userns);
    let mut env = Env::new(Who::User).unwrap();
    let sif = env.sif("small", "image.sif").unwrap().to_string_lossy().into_owned();
    let tool = env.write("home/unsquashfs", "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    env.set("PATH", &format!("{}:{path}", env.path("home").display()));
    let running = env.spawn(&["exec", "--unsquash", &sif, "true"]).unwrap();
    let until = std::time::Instant::now() + crate::running::PATIENCE;
    let tool = loop {
        if let Some((pid, _)) = env.survivors().iter().find(|(_, words)| words.starts_with("sleep 600")) {
            break *pid;
        }
        assert!(std::time::Instant::now() < until, "nothing is unpacked");
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let open = fs::read_dir(format!("/proc/{tool}/fd")).unwrap().flatten();
    let open: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(open.iter().any(|path| path.ends_with("cache/_images/.lock")), "{open:?}");
    running.signal(Signal::SIGKILL).unwrap();
    running.wait().unwrap();
    env.set("PATH", &path);
    env.ok(&["exec", "--unsquash", &sif, "true"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn a_disk_that_becomes_full() {
    need!(root, image, squashfs);
    let env = Env::new(Who::User).unwrap();
    let small_disk = env.make_dir("data/disk").unwrap();
    super::disk::small(&small_disk, env.uid(), 8).unwrap();
    let out = small_disk.join("x.sif").to_string_lossy().into_owned();
    let told = env.fails(&["build", &out, &image(&env, "server")]).unwrap();
    assert!(told.contains("the file system is full"), "{told}");
    assert_eq!(fs::read_dir(&small_disk).unwrap().count(), 0);
    nix::mount::umount2(&small_disk, nix::mount::MntFlags::MNT_DETACH).unwrap();
    env.finish().unwrap();
}
