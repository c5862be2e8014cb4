//! Images that are missing, are none, have changed, or want to lead mounts astray.

use std::os::unix::fs::symlink;

use super::*;
use crate::need::need;

#[test]
fn what_is_no_image() {
    let env = Env::new(Who::User).unwrap();
    let place = |name: &str| env.path(name).to_string_lossy().into_owned();
    let told = |image: &str| env.fails(&["exec", image, "true"]).unwrap();
    insta::assert_snapshot!(told(&place("gone")), @r#"
    exit 255
    FATAL:   image "$DIR/gone" does not exist
             hint:    check the spelling
    "#);
    insta::assert_snapshot!(told(""), @"
    exit 255
    FATAL:   no image was given: the argument is empty
             hint:    give an image: a SIF file, or the directory into which one was unpacked
    ");
    env.make_dir("empty").unwrap();
    insta::assert_snapshot!(told(&place("empty")), @r#"
    exit 255
    FATAL:   directory "$DIR/empty" is not an image: it has none of bin, usr, etc and .singularity.d
             hint:    give an image: a SIF file, or the directory into which one was unpacked
    "#);
    env.write("text", "this is a text\n").unwrap();
    insta::assert_snapshot!(told(&place("text")), @r#"
    exit 255
    FATAL:   image "$DIR/text" is a file of another kind, and images are SIF files, squashfs file systems and directories
             hint:    give an image, or unpack what it holds into a directory and give that
    "#);
    env.write("image.sif", "#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0").unwrap();
    insta::assert_snapshot!(told(&place("image.sif")), @r#"
    exit 255
    FATAL:   image "$DIR/image.sif" is a damaged SIF file
             because: at byte 0: the header would end at byte 128, and the file has 42
             hint:    it was not copied to its end, or is none: fetch or build it again
    "#);
    insta::assert_snapshot!(told("docker-daemon:python:3.11"), @r#"
    exit 255
    FATAL:   image "docker-daemon:python:3.11" cannot be had: docker-daemon is not supported
             hint:    there are docker://[HOST[:PORT]/]NAME[:TAG|@DIGEST], oci:DIRECTORY[:TAG], oci-archive:FILE[:TAG] and docker-archive:FILE[:NAME:TAG]
    "#);
    symlink("loop", env.path("loop")).unwrap();
    insta::assert_snapshot!(told(&place("loop")), @r#"
    exit 255
    FATAL:   image "$DIR/loop" cannot be opened: too many symbolic links
             because: Too many levels of symbolic links
    "#);
    env.finish().unwrap();
}

#[test]
fn wishes_that_no_image_can_be_built_with() {
    need!(image);
    let mut env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    insta::assert_snapshot!(env.fails(&["build", "--arch", "arm64", "image.sif", &small]).unwrap(), @r#"
    exit 1
    ERROR:   --arch arm64 cannot be had of "$IMAGES/small"
             because: it chooses among the images that a registry, a layout or an archive has for several machines
             hint:    leave it out; a definition file builds for this machine
    "#);
    env.set("SOURCE_DATE_EPOCH", "yesterday");
    insta::assert_snapshot!(env.fails(&["build", "image.sif", &small]).unwrap(), @r#"
    exit 1
    ERROR:   SOURCE_DATE_EPOCH is "yesterday"
             because: it has to be a number of seconds since TIME, below 4294967296
    "#);
    assert!(!env.path("home/image.sif").exists());
    env.finish().unwrap();
}

#[test]
fn an_image_that_the_user_may_not_enter() {
    need!(root);
    let env = Env::new(Who::User).unwrap();
    let closed = env.path("closed");
    std::fs::create_dir_all(closed.join("usr")).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    insta::assert_snapshot!(env.fails(&["exec", &closed.to_string_lossy(), "true"]).unwrap(), @r#"
    exit 255
    FATAL:   "$DIR/closed" cannot be read: permission denied
             because: Permission denied
             hint:    the image's directory and everything above it need read and search permission for you
    "#);
    env.finish().unwrap();
}

/// Links where mounts go must not lead out of the image: what lies there on the host stays as it is.
#[test]
fn hostile_links_where_mounts_go() {
    need!(image, userns);
    for who in [Who::User, Who::Myself] {
        let env = Env::new(who).unwrap();
        let target = env.make_dir("target").unwrap();
        for (index, place) in
            ["proc", "dev", "sys", "tmp", "home", "etc/passwd", ".stasis"].iter().enumerate()
        {
            let image = env.copy_image("small", &format!("image{index}")).unwrap();
            let link = image.join(place);
            if link.is_dir() {
                std::fs::remove_dir(&link).unwrap();
            } else {
                let _ = std::fs::remove_file(&link);
            }
            let up = format!("../../../../../../../..{}", target.display());
            symlink(up, &link).unwrap();
            // Whether it runs is not asked; what it may not do is to change the place outside.
            let run = env.stasis(&["exec", &image.to_string_lossy(), "sh", "-c", "echo ran"]).unwrap();
            assert!(run.out.contains("ran") || run.code == 255, "{place}: {run:?}");
            let made: Vec<_> = std::fs::read_dir(&target).unwrap().collect();
            assert!(made.is_empty(), "{place} led out of the image: {made:?}");
        }
        env.finish().unwrap();
    }
}

#[test]
fn a_bind_onto_a_link_stays_inside() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let target = env.make_dir("target").unwrap();
    let work = env.make_dir("work").unwrap();
    std::fs::write(work.join("file"), "bound").unwrap();
    let image = env.copy_image("small", "image").unwrap();
    symlink(&target, image.join("mnt")).unwrap();
    let bind = format!("{}:/mnt/deep", work.display());
    // Nothing of the host is shown but the bind, so that the link leads nowhere inside.
    let words = ["exec", "--containall", "-B", &bind, &image.to_string_lossy(), "cat", "/mnt/deep/file"];
    let run = env.stasis(&words).unwrap();
    assert!(run.out == "bound" || run.code == 255, "{run:?}");
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "the host's directory was changed");
    env.finish().unwrap();
}

/// A directory of the host is shown as it is: a bind is no reason to make something in it.
#[test]
fn nothing_is_made_in_a_bound_directory() {
    need!(image, userns);
    for who in [Who::User, Who::Myself] {
        let env = Env::new(who).unwrap();
        let shown = env.make_dir("shown").unwrap();
        let file = env.write("file", "bound\n").unwrap();
        let mine = env.copy_image("small", "mine").unwrap();
        symlink("/data", mine.join("link")).unwrap();
        symlink("gone", mine.join("loose")).unwrap();
        let mine = mine.to_string_lossy().into_owned();
        let data = format!("{}:/data", shown.display());
        let at = |place: &str| format!("{}:{place}", file.display());
        let told = |place: &str| env.fails(&["exec", "-B", &data, "-B", &at(place), &mine, "true"]).unwrap();
        insta::allow_duplicates! {
            insta::assert_snapshot!(told("/data/new/file"), @"
            exit 255
            FATAL:   cannot mount at /data/new/file: there is nothing to mount on
                     because: /data is the host's $DIR/shown, in which stasis makes nothing
                     hint:    make $DIR/shown/new/file on the host, or mount at another place
            ");
            insta::assert_snapshot!(told("/link/file"), @"
            exit 255
            FATAL:   cannot mount at /link/file: there is nothing to mount on
                     because: /data is the host's $DIR/shown, in which stasis makes nothing
                     hint:    make $DIR/shown/file on the host, or mount at another place
            ");
            insta::assert_snapshot!(told("/loose/file"), @r#"
            exit 255
            FATAL:   cannot mount at /loose/file
                     because: on the way is a link, "loose", that leads nowhere
                     hint:    mount at a place of which the image has the directory
            "#);
        }
        assert_eq!(std::fs::read_dir(&shown).unwrap().count(), 0, "the host's directory was changed");
        // The other way round, and where the place is there, it can be.
        std::fs::write(shown.join("file"), "").unwrap();
        let cat = ["exec", "-B", &data, "-B", &at("/link/file"), &mine, "cat", "/data/file"];
        assert_eq!(env.ok(&cat).unwrap().out, "bound\n");
        assert_eq!(std::fs::read(shown.join("file")).unwrap(), b"");
        // A loose link is covered where it is the place itself.
        assert_eq!(env.ok(&["exec", "-B", &at("/loose"), &mine, "cat", "/loose"]).unwrap().out, "bound\n");
        // A place in a directory of the container's own is made.
        let own = ["exec", "--contain", "-B", &at("/tmp/new/file"), &mine, "cat", "/tmp/new/file"];
        assert_eq!(env.ok(&own).unwrap().out, "bound\n");
        env.finish().unwrap();
    }
}

#[test]
fn binds_that_cannot_be() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let told = |bind: &str| env.fails(&["exec", "-B", bind, &small, "true"]).unwrap();
    insta::assert_snapshot!(told("/no/such/place"), @r#"
    exit 255
    FATAL:   --bind "/no/such/place": "/no/such/place" does not exist on this host
             hint:    check the spelling, or make it first
    "#);
    insta::assert_snapshot!(told("/tmp:/mnt:rx"), @r#"
    exit 255
    FATAL:   --bind "/tmp:/mnt:rx" cannot be understood: "rx" is neither ro nor rw
             hint:    write --bind SRC[:DST[:ro|rw]]; a comma or a colon in a path needs a backslash before it
    "#);
    insta::assert_snapshot!(told("/tmp:mnt"), @r#"
    exit 255
    FATAL:   --bind "/tmp:mnt": the place inside, "mnt", does not begin with a slash
             hint:    write /mnt
    "#);
    // The root of a container has no way up.
    let up = env.path("work");
    env.make_dir("work").unwrap();
    let bind = format!("{}:/../../mnt", up.display());
    env.ok(&["exec", "-B", &bind, &small, "touch", "/mnt/made"]).unwrap();
    assert!(up.join("made").exists());
    env.finish().unwrap();
}

#[test]
fn an_image_without_what_is_to_be_run() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let bare = env.copy_image("small", "bare").unwrap();
    std::fs::remove_file(bare.join(".singularity.d/startscript")).unwrap();
    std::fs::remove_file(bare.join(".singularity.d/runscript")).unwrap();
    let bare = bare.to_string_lossy().into_owned();
    insta::assert_snapshot!(env.fails(&["run", &bare]).unwrap(), @r#"
    exit 255
    FATAL:   image "$DIR/bare" has no /.singularity.d/runscript that can be executed
             hint:    run a command of the image with exec, or put an executable file at /.singularity.d/runscript
    "#);
    // As with Apptainer, such an instance stands for what is run in it; there is nothing to be saved.
    env.ok(&["instance", "start", &bare, "one"]).unwrap();
    assert_eq!(env.ok(&["exec", "instance://one", "sh", "-c", "echo within"]).unwrap().out, "within\n");
    env.ok(&["instance", "stop", "one"]).unwrap();
    let start = ["instance", "start", "--backend", "faulty", "--checkpoint", "kept", &bare, "one"];
    let told = env.fails(&start).unwrap();
    assert!(told.starts_with("exit 255\n") && told.contains("startscript"), "{told}");
    env.finish().unwrap();
}

#[test]
fn an_image_that_changed_since_the_capture() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let mine = env.copy_image("small", "mine").unwrap();
    let name = mine.to_string_lossy().into_owned();
    let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &name, "one", IDLE];
    env.ok(&start).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let other = image(&env, "small");
    let told = env.stasis(&["instance", "start", "--restart", "kept", &other, "one"]).unwrap();
    assert_eq!(told.code, 0, "the same content elsewhere is the same image: {}", told.err);
    env.ok(&["instance", "stop", "one"]).unwrap();
    std::fs::write(mine.join("etc/changed"), "x").unwrap();
    let told = env.fails(&["instance", "start", "--restart", "kept", &name, "one"]).unwrap();
    insta::assert_snapshot!(digests_hidden(&told), @r#"
    exit 255
    FATAL:   generation 1 was saved of another image
             because: it was saved of "$DIR/mine" (directory blake3:$DIGEST)
             because: "$DIR/mine" (directory blake3:$DIGEST) holds other files
             hint:    give the image that it was started from, unchanged
    "#);
    let told = env.fails(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    insta::assert_snapshot!(digests_hidden(&told), @r#"
    exit 255
    FATAL:   generation 1 was saved of another image
             because: it was saved of "$DIR/mine" (directory blake3:$DIGEST)
             because: "$DIR/mine" (directory blake3:$DIGEST) holds other files
             hint:    give the image that it was started from, unchanged
    "#);
    std::fs::remove_file(mine.join("etc/changed")).unwrap();
    // It is read once to see that it is the same again, and not at each later start.
    for read in [true, false] {
        let told = env.ok(&["--debug", "instance", "start", "--restart", "kept", "-", "one"]).unwrap().err;
        assert_eq!(told.contains("all of the image is read"), read, "{told}");
        env.ok(&["instance", "stop", "one"]).unwrap();
    }
    env.finish().unwrap();
}

#[test]
fn another_image_at_restart() {
    need!(image, userns, dmtcp);
    let env = saved(Who::User).unwrap();
    let other = image(&env, "any");
    let told = env.fails(&["instance", "start", "--restart", "kept", &other, "one"]).unwrap();
    insta::assert_snapshot!(digests_hidden(&told), @r#"
    exit 255
    FATAL:   generation 1 was saved of another image
             because: it was saved of "$IMAGES/small" (directory blake3:$DIGEST)
             because: "$IMAGES/any" (directory blake3:$DIGEST) holds other files
             hint:    give the image that it was started from, unchanged
    "#);
    env.finish().unwrap();
}

/// Digests differ with the distribution that the test image is made of.
fn digests_hidden(text: &str) -> String {
    let mut parts = text.split("blake3:");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("blake3:$DIGEST");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    out
}
