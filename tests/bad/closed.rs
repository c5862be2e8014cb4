//! Images on a file system that lets nobody in but their owner, not even root: a network file system with root squash,
//! or FUSE, which stands for it here.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::env::USER;
use crate::need::need;

/// A mount that only the thread of this test and what it starts can see, and the process that serves it.
struct Closed {
    server: Child,
    at: PathBuf,
}

impl Closed {
    /// Shows what is in the directory `content` of the test at `closed`, to [`USER`] alone.
    fn new(env: &Env) -> Outcome<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let (packed, at) = (env.path("packed"), env.make_dir("closed")?);
        let mut pack = Command::new("mksquashfs");
        pack.arg(env.path("content")).arg(&packed).args(["-quiet", "-no-progress", "-comp", "gzip"]);
        assert!(pack.stdout(Stdio::null()).status()?.success());
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id={USER},group_id={USER}", device.as_raw_fd());
        mount(
            Some("closed"),
            &at,
            Some("fuse"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(options.as_str()),
        )?;
        let mut serve = Command::new("squashfuse_ll");
        serve.arg("-f").arg(&packed).arg("/dev/fd/0");
        let server = serve.stdin(Stdio::from(device)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { server, at })
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// An image as a directory and as a file, and a definition file, all of the user.
fn content(env: &Env) -> Outcome<()> {
    env.make_dir("content")?;
    env.copy_image("small", "content/image")?;
    env.sif("small", "content/image.sif")?;
    env.write("content/image.def", "Bootstrap: localimage\nFrom: image.sif\n")?;
    Ok(())
}

#[test]
fn root_is_not_let_in_to_an_image() {
    need!(root, image, squashfs, fuse);
    let owner = Env::new(Who::User).unwrap();
    content(&owner).unwrap();
    let closed = Closed::new(&owner).unwrap();
    let at = |name: &str| closed.at.join(name).to_string_lossy().into_owned();
    // Its owner uses it as any other.
    let out = owner.ok(&["exec", &at("image"), "sh", "-c", "echo $STASIS_TEST_IMAGE"]).unwrap().out;
    assert_eq!(out, "small\n");
    owner.ok(&["exec", &at("image.sif"), "true"]).unwrap();
    let env = Env::new(Who::Myself).unwrap();
    let place = closed.at.to_string_lossy().into_owned();
    let told = |words: &[&str]| env.fails(words).unwrap().replace(&place, "$CLOSED");
    let out = env.path("out").to_string_lossy().into_owned();
    env.write("home/from.def", &format!("Bootstrap: localimage\nFrom: {}\n", at("image.sif"))).unwrap();
    for name in ["image", "image.sif"] {
        let image = at(name);
        let words: [&[&str]; 6] = [
            &["exec", &image, "true"],
            &["shell", &image],
            &["instance", "start", &image, "one"],
            &["inspect", &image],
            &["inspect", "--json", &image],
            &["build", "--sandbox", &out, &image],
        ];
        for words in words {
            let told = told(words).replace(&format!("$CLOSED/{name}"), "$CLOSED/$IMAGE");
            insta::allow_duplicates! { insta::assert_snapshot!(told, @r#"
            exit 255
            FATAL:   "$CLOSED/$IMAGE" cannot be read: permission denied
                     because: Permission denied
                     hint:    its file system lets nobody in but the owner, not even root (a network file system with root squash, or FUSE): let the owner copy it to a local disk, or do this as the owner
            "#); }
        }
    }
    let of_definition = told(&["build", &out, &at("image.def")]);
    assert!(of_definition.contains(r#""$CLOSED/image.def" cannot be read"#), "{of_definition}");
    insta::assert_snapshot!(told(&["build", &out, "from.def"]), @r#"
    exit 255
    INFO:    Starting build...
    FATAL:   "$CLOSED/image.sif" cannot be read: permission denied
             because: Permission denied
             hint:    its file system lets nobody in but the owner, not even root (a network file system with root squash, or FUSE): let the owner copy it to a local disk, or do this as the owner
    "#);
    assert!(!env.path("out").exists());
    env.finish().unwrap();
    owner.finish().unwrap();
    drop(closed);
}

/// Root of a user namespace is let in where the owner is behind it, also under an engine whose uid 0 is somebody else.
fn owner_with_subordinate_ids(engine: &str) -> Outcome<()> {
    let env = Env::new(Who::Granted)?;
    content(&env)?;
    let closed = Closed::new(&env)?;
    for name in ["image", "image.sif"] {
        let image = closed.at.join(name).to_string_lossy().into_owned();
        for flags in [&[][..], &["--fakeroot"], &["--pid", "--fakeroot"]] {
            let words = [&["exec"], flags, &[&image, "sh", "-c", "echo $STASIS_TEST_IMAGE"]].concat();
            assert_eq!(env.ok(&words)?.out, "small\n", "{name} {flags:?}");
        }
        env.ok(&["instance", "start", "--backend", engine, "--checkpoint", name, &image, "one", IDLE])?;
        env.ok(&["checkpoint", "instance", "--stop", "one"])?;
        env.ok(&["instance", "start", "--restart", name, "-", "one"])?;
        env.ok(&["instance", "stop", "one"])?;
    }
    // The mount is not to go before whoever uses it.
    env.finish()?;
    drop(closed);
    Ok(())
}

#[test]
fn root_of_the_owners_user_namespace_is_let_in() {
    need!(root, image, squashfs, userns, uidmap, fuse);
    owner_with_subordinate_ids("native").unwrap();
}

#[test]
fn root_of_the_owners_user_namespace_is_let_in_with_criu() {
    need!(root, image, squashfs, userns, uidmap, fuse, criu);
    owner_with_subordinate_ids("criu").unwrap();
}
