//! Registries that answer, but otherwise than they were asked; layers that lock their user out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::deaths::nothing_runs;
use super::*;
use crate::need::need;
use crate::registry::{Answer, Odd, gzip, here, image as made_of, small};

/// Only who cannot be reached is answered for by what was had before: who says no is heard.
#[test]
fn a_registry_that_says_no_is_believed() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&gone);
    let registry = Odd::with(&small(&env).unwrap(), move |_, _| {
        now.load(Ordering::Relaxed).then(|| Answer::new(404, ""))
    })
    .unwrap();
    let name = registry.name("x/y:v1");
    assert_eq!(env.ok(&["run", &name, "x"]).unwrap().out, "it says x\n");
    gone.store(true, Ordering::Relaxed);
    insta::assert_snapshot!(env.fails(&["run", &name]).unwrap(), @"
    exit 255
    FATAL:   127.0.0.1:N does not have the manifest of docker://127.0.0.1:N/x/y:v1
             because: there is no such image (status 404)
             hint:    check name and tag; some registries say this also where a login is missing
    ");
    env.finish().unwrap();
}

/// Whoever plans an instance goes with the command, also by itself: nobody would want it any more.
#[test]
fn a_start_that_is_killed_while_its_image_is_fetched() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let layer = made.layers[0].digest.clone();
    let (held, hold) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let (waits, holds) = (Arc::clone(&held), Arc::clone(&hold));
    let registry = Odd::with(&made, move |(path, _), _| {
        if path.contains(layer.as_str()) {
            waits.store(true, Ordering::Relaxed);
            while holds.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        None
    })
    .unwrap();
    let starting = env.spawn(&["instance", "start", &registry.name("x/y:v1"), "one", IDLE]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !held.load(Ordering::Relaxed) {
        assert!(Instant::now() < deadline, "{}", starting.complained());
        std::thread::sleep(Duration::from_millis(5));
    }
    starting.signal(Signal::SIGKILL).unwrap();
    // Its output ends with it, too.
    assert_eq!(starting.wait().unwrap().code, 137);
    nothing_runs(&env).unwrap();
    hold.store(false, Ordering::Relaxed);
    let list = env.ok(&["instance", "list"]).unwrap();
    assert!(!list.out.contains("one"), "{list:?}");
    env.finish().unwrap();
}

/// What comes from behind the place that was asked for would leave a gap.
#[test]
fn a_registry_that_goes_on_at_another_place() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let layer = made.layers[0].clone();
    let registry = Odd::with(&made, move |(path, headers), _| {
        let mut answer = Answer::new(200, layer.bytes.clone());
        answer.cut = Some(100_000);
        if headers.contains_key("range") {
            let (rest, all) = (layer.bytes[100_001..].to_vec(), layer.bytes.len());
            answer =
                Answer::new(206, rest).header("Content-Range", &format!("bytes 100001-{}/{all}", all - 1));
        }
        path.contains(layer.digest.as_str()).then_some(answer)
    })
    .unwrap();
    let told = env.fails(&["run", &registry.name("x/y:v1")]).unwrap();
    assert!(told.contains("because: the registry did not go on where the download had broken off"), "{told}");
    assert!(told.contains("because: 100000 of "), "{told}");
    env.finish().unwrap();
}

/// Its author was root, for whom modes do not count.
#[test]
fn files_that_say_nobody_may_read_them() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0);
        tar.append_data(&mut header, path, content).unwrap();
    };
    add("closed", tar::EntryType::Directory, b"");
    add("closed/file", tar::EntryType::Regular, b"readable");
    let layer = gzip(&tar.into_inner().unwrap()).unwrap();
    let made = made_of(&[(layer, format!("sha256:{}", "0".repeat(64)))], here(), &json!({}));
    made.layout(&env, "home/layout").unwrap();
    env.ok(&["pull", "--sandbox", "image", "oci:layout"]).unwrap();
    let out = env.program("sh").args(["-ec", "cat image/closed/file; rm -rf image"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "readable", "{out:?}");
    assert!(out.status.success() && !env.path("home/image").exists(), "{out:?}");
    env.finish().unwrap();
}
