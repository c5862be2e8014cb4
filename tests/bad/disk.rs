//! A file system that is full costs the generation, never the job.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::http::{get, post};
use crate::need::need;
use crate::running::Run;

/// Mounts a small file system that only the thread of this test and what it starts can see: nothing of it reaches the
/// host, and it goes away with them.
pub(super) fn small(at: &Path, uid: u32, mebibytes: u32) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let options = format!("size={mebibytes}m,mode=0700,uid={uid},gid={uid}");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
}

/// Waits until a capture has written something.
pub(super) fn begun(env: &Env) -> Outcome<()> {
    let staging = store(env, "kept").join("staging");
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_dir(&staging).map_or(0, Iterator::count) == 0 {
        if Instant::now() > deadline {
            return Err("the capture never wrote anything".into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Gives it so many bytes.
pub(super) fn size(at: &Path, bytes: u64) -> nix::Result<()> {
    let options = format!("size={bytes}");
    mount(None::<&str>, at, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str()))
}

/// Leaves it so many MiB beside what is in it now, also while somebody writes.
pub(super) fn shrink(at: &Path, mebibytes: u64) -> nix::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let fs = nix::sys::statvfs::statvfs(at)?;
        let used = (fs.blocks() - fs.blocks_free()) * fs.fragment_size();
        match size(at, used + (mebibytes << 20)) {
            // More was written meanwhile than is left.
            Err(nix::errno::Errno::EINVAL) if Instant::now() < deadline => {}
            done => return done,
        }
    }
}

#[test]
fn the_store_is_full_at_a_capture() {
    need!(root, image, userns, dmtcp);
    for who in [Who::User, Who::Myself] {
        let env = Env::new(who).unwrap();
        small(&env.path("data"), env.uid(), 220).unwrap();
        let any = image(&env, "any");
        let port = memory_server(&env, "dmtcp", 0).unwrap();
        assert_eq!(post(port, "1").unwrap(), "1");
        env.ok(&["checkpoint", "instance", "one"]).unwrap();
        std::fs::write(env.path("data/filler"), vec![0; 150 << 20]).unwrap();
        assert_eq!(post(port, "2").unwrap(), "2");
        let told = env.fails(&["checkpoint", "instance", "one"]).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(sizes_hidden(&told), @"
        exit 255
        FATAL:   there is no room for the state
                 because: it may take N MiB, and N MiB are free at $DIR/data/checkpoints/kept/staging
                 because: the application runs on, and nothing was saved
                 hint:    free some space there, or remove older generations with `stasis checkpoint prune`
        "); }
        assert_eq!(get(port, "/").unwrap(), "2", "the job was lost");
        std::fs::remove_file(env.path("data/filler")).unwrap();
        env.ok(&["checkpoint", "instance", "one"]).unwrap();
        env.ok(&["instance", "stop", "one"]).unwrap();
        env.ok(&["instance", "start", "--restart", "kept@1", &any, "one"]).unwrap();
        assert_eq!(get(port, "/").unwrap(), "1");
        env.ok(&["instance", "stop", "one"]).unwrap();
        env.finish().unwrap();
    }
}

/// The estimate before a capture cannot know all: here the room vanishes while the engine writes.
fn becomes_full(engine: &str) -> Outcome<Run> {
    let env = Env::new(Who::User)?;
    let data = env.path("data");
    small(&data, env.uid(), 900)?;
    let any = image(&env, "any");
    let port = memory_server(&env, engine, 256)?;
    assert_eq!(post(port, "1")?, "1");
    env.ok(&["checkpoint", "instance", "one"])?;
    let capture = env.spawn(&["checkpoint", "instance", "one"])?;
    begun(&env)?;
    shrink(&data, 20)?;
    let capture = capture.wait()?;
    size(&data, 900 << 20)?;
    if engine == "criu" {
        assert_eq!(get(port, "/check")?, "good");
    }
    env.stasis(&["instance", "stop", "one"])?;
    env.ok(&["instance", "start", "--restart", "kept@1", &any, "one"])?;
    assert_eq!(get(port, "/check")?, "good");
    env.ok(&["instance", "stop", "one"])?;
    env.finish()?;
    Ok(capture)
}

#[test]
fn the_store_becomes_full_during_a_capture() {
    need!(root, image, userns, dmtcp);
    let run = becomes_full("dmtcp").unwrap();
    assert!(run.code != 0 && (run.err.contains("space") || run.err.contains("full")), "{}", run.err);
}

#[test]
fn the_store_becomes_full_while_criu_saves() {
    need!(root, image, userns, criu);
    let run = becomes_full("criu").unwrap();
    assert!(run.code != 0, "{}", run.err);
    insta::assert_snapshot!(run.err, @"
    FATAL:   the application could not be saved
             because: the file system of the checkpoints is full, or its quota is used up; the application runs on
             because: the application runs on, and nothing was saved
             hint:    remove old checkpoints (`stasis checkpoint prune`), or keep them on a larger file system
    ");
}

#[test]
fn nothing_can_be_written_to_the_store() {
    need!(root, image, userns);
    let env = Env::new(Who::User).unwrap();
    small(&env.path("data"), env.uid(), 1).unwrap();
    // Down to the last page.
    let fill = |number: i32| std::fs::write(env.path(&format!("data/filler{number}")), vec![0; 4096]).is_ok();
    let filled = (0..1000).take_while(|number| fill(*number)).count();
    assert!(filled < 1000);
    insta::assert_snapshot!(env.fails(&["checkpoint", "create", "x"]).unwrap(), @"
    exit 255
    FATAL:   cannot write $DIR/data/checkpoints/.new-x/checkpoint.json: no space is left on the file system
             because: No space left on device
             hint:    make room on the file system of $DIR/data/checkpoints/.new-x/checkpoint.json (df), or remove old generations: stasis checkpoint prune
    ");
    let small = image(&env, "small");
    insta::assert_snapshot!(env.fails(&["instance", "start", &small, "one", IDLE]).unwrap(), @"
    exit 255
    FATAL:   cannot write $DIR/data/instances/HOST/one/instance.json: no space is left on the file system
             because: No space left on device
             hint:    make room on the file system of $DIR/data/instances/HOST/one/instance.json (df)
    ");
    let _ = std::fs::remove_file(env.path("data/filler0"));
    let checkpoints = env.path("data/checkpoints");
    std::fs::set_permissions(&checkpoints, std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "create", "x"]).unwrap(), @"
    exit 255
    FATAL:   cannot make directory $DIR/data/checkpoints/.new-x: permission denied
             because: Permission denied
             hint:    check owner and mode: ls -ld $DIR/data/checkpoints/.new-x
    ");
    env.finish().unwrap();
}

/// Sizes differ with what the test image is made of.
fn sizes_hidden(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let size =
        |at: usize| words.get(at + 1).is_some_and(|unit| unit.starts_with("MiB") || unit.starts_with("GiB"));
    let hidden: Vec<&str> =
        words.iter().enumerate().map(|(at, word)| if size(at) { "N" } else { *word }).collect();
    hidden.join(" ")
}
