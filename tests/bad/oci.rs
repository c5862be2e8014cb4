//! Registries and images that are not as they should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::need::need;
use crate::registry::{Answer, Made, Odd, gzip, here, image as made_of, small};

/// A name in a registry that answers this where `part` is in the path.
fn odd(
    made: &Made,
    part: &'static str,
    answer: impl Fn(usize) -> Answer + Send + Sync + 'static,
) -> Outcome<Odd> {
    Odd::with(made, move |(path, _), before| path.contains(part).then(|| answer(before)))
}

/// What a run of it tells, and that nothing of the image was kept.
fn told(env: &Env, registry: &Odd) -> Outcome<String> {
    let told = env.fails(&["run", &registry.name("x/y:v1")])?;
    let left =
        |dir: &str| std::fs::read_dir(env.path("data/cache/_oci").join(dir)).map_or(0, Iterator::count);
    if left("roots") + left("work") > 0 {
        return Err(format!("an image was left in the cache: {told}").into());
    }
    Ok(told)
}

fn digests(text: &str) -> String {
    let mut parts = text.split("sha256:");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("sha256:$DIGEST");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    let mut parts = out.split("layer ");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        all.push_str(if part.len() - rest.len() == 12 { "layer $DIGEST" } else { "layer " });
        all.push_str(if part.len() - rest.len() == 12 { rest } else { part });
    }
    all
}

#[test]
fn statuses_are_told_in_words() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let says = |status: u16, part: &'static str, headers: &'static [(&'static str, &'static str)]| {
        let registry = odd(&made, part, move |_| {
            headers.iter().fold(
                Answer::new(
                    status,
                    "{\"errors\":[{\"code\":\"X\",\"message\":\"because\\u001b[2J of me\"}]}",
                ),
                |answer, (name, value)| answer.header(name, value),
            )
        });
        told(&env, &registry.unwrap()).unwrap()
    };
    insta::assert_snapshot!(says(404, "/manifests/", &[]), @"
    exit 255
    FATAL:   127.0.0.1:N does not have the manifest of docker://127.0.0.1:N/x/y:v1
             because: there is no such image (status 404)
             because: the registry says: because[2J of me
             hint:    check name and tag; some registries say this also where a login is missing
    ");
    insta::assert_snapshot!(says(403, "/manifests/", &[]), @"
    exit 255
    FATAL:   127.0.0.1:N does not let us have the manifest of docker://127.0.0.1:N/x/y:v1
             because: permission denied (status 403)
             because: the registry says: because[2J of me
             hint:    ask the owner of the image for access
    ");
    insta::assert_snapshot!(says(401, "/manifests/", &[]), @r#"
    exit 255
    FATAL:   127.0.0.1:N wants a login of a kind that is not known
             because: it asks for ""; known are Basic and Bearer
    "#);
    insta::assert_snapshot!(says(429, "/manifests/", &[("Retry-After", "3600")]), @"
    exit 255
    FATAL:   127.0.0.1:N has been asked too often
             because: it limits the number of downloads (status 429)
             because: the registry says: because[2J of me
             hint:    try again in 3600 s, or log in: users who are known have a higher limit
    ");
    insta::assert_snapshot!(says(503, "/manifests/", &[("Retry-After", "0")]), @"
    exit 255
    INFO:    127.0.0.1:N is busy (status 503); trying again in 1 s
    INFO:    127.0.0.1:N is busy (status 503); trying again in 1 s
    INFO:    127.0.0.1:N is busy (status 503); trying again in 1 s
    FATAL:   127.0.0.1:N is out of order
             because: it answers with status 503 when asked for the manifest of docker://127.0.0.1:N/x/y:v1
             because: the registry says: because[2J of me
             hint:    try again later
    ");
    insta::assert_snapshot!(says(418, "/manifests/", &[]), @"
    exit 255
    FATAL:   127.0.0.1:N does not give us the manifest of docker://127.0.0.1:N/x/y:v1
             because: it answers with status 418
             because: the registry says: because[2J of me
    ");
    env.finish().unwrap();
}

#[test]
fn a_busy_registry_is_asked_again() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let registry = Odd::with(&made, |_, before| {
        (before < 2).then(|| Answer::new(if before == 0 { 429 } else { 502 }, "").header("Retry-After", "0"))
    })
    .unwrap();
    let run = env.ok(&["run", &registry.name("x:v1"), "x"]).unwrap();
    assert_eq!(run.out, "it says x\n");
    assert!(run.err.contains("is busy (status 429); trying again in"), "{}", run.err);
    env.finish().unwrap();
}

#[test]
fn nobody_there() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let port = crate::http::free_port().unwrap();
    insta::assert_snapshot!(env.fails(&["run", &format!("docker://127.0.0.1:{port}/x")]).unwrap(), @"
    exit 255
    FATAL:   registry 127.0.0.1:N cannot be reached
             because: connection refused
             hint:    check the address, and whether this machine has a way to the network (http_proxy, https_proxy)
    ");
    insta::assert_snapshot!(env.fails(&["run", "docker://no-such-host.invalid/x"]).unwrap(), @"
    exit 255
    FATAL:   registry no-such-host.invalid cannot be reached
             because: no such host is known
             hint:    check the name, and whether this machine has a way to the network (http_proxy, https_proxy)
    ");
    insta::assert_snapshot!(env.fails(&["run", "library://x/y/z"]).unwrap(), @r#"
    exit 255
    FATAL:   image "library://x/y/z" cannot be had: library is not supported
             hint:    there are docker://[HOST[:PORT]/]NAME[:TAG|@DIGEST], oci:DIRECTORY[:TAG], oci-archive:FILE[:TAG] and docker-archive:FILE[:NAME:TAG]
    "#);
    insta::assert_snapshot!(env.fails(&["run", "docker://Capital"]).unwrap(), @r#"
    exit 255
    FATAL:   image "docker://Capital" is not a name of an image: "Capital" has capital letters
             hint:    write it as docker://python:3.12, docker://ghcr.io/owner/name:tag or docker://name@sha256:...
    "#);
    insta::assert_snapshot!(env.fails(&["pull", "--sandbox", "out", "./path"]).unwrap(), @r#"
    exit 1
    ERROR:   "./path" is not the name of an image that can be pulled
             hint:    there are docker://[HOST[:PORT]/]NAME[:TAG|@DIGEST], oci:DIRECTORY[:TAG], oci-archive:FILE[:TAG] and docker-archive:FILE[:NAME:TAG]
    "#);
    env.finish().unwrap();
}

#[test]
fn content_with_another_digest() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let registry = odd(&made, "/manifests/", |_| {
        Answer::new(200, "{}").header("Docker-Content-Digest", &format!("sha256:{}", "0".repeat(64)))
    });
    insta::assert_snapshot!(digests(&told(&env, &registry.unwrap()).unwrap()), @"
    exit 255
    FATAL:   the manifest that 127.0.0.1:N sent is not the one asked for
             because: it has digest sha256:$DIGEST, and sha256:$DIGEST was asked for
             hint:    try again; if it stays so, the registry, or something on the way to it, changes what it sends
    ");
    let exact = odd(&made, "/manifests/", |_| Answer::new(200, "{}")).unwrap();
    let told_exact = env.fails(&["run", &exact.name(&format!("x@{}", made.manifest.digest))]).unwrap();
    assert!(told_exact.contains("is not the one asked for"), "{told_exact}");
    let mut layer = made.layers[0].bytes.clone();
    let last = layer.len() - 1;
    layer[last] ^= 1;
    let digest: &'static str = Box::leak(made.layers[0].digest.clone().into_boxed_str());
    let mut other = gzip(b"").unwrap();
    other.resize(made.layers[0].bytes.len(), 0);
    // The archive in the first is whole, only the packing is not; the second is another one.
    for body in [layer, other] {
        let registry = odd(&made, digest, move |_| Answer::new(200, body.clone())).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(digests(&told(&env, &registry).unwrap()), @"
        exit 255
        FATAL:   cannot unpack layer 1 of N, from docker://127.0.0.1:N/x/y:v1
                 because: layer $DIGEST is damaged
                 because: its content has digest sha256:$DIGEST
                 hint:    try again: it was removed from the cache
        "); }
    }
    // Nothing of it was believed: the right one is had afterwards.
    let right = Odd::with(&made, |_, _| None).unwrap();
    assert_eq!(env.ok(&["run", &right.name("x/y:v1")]).unwrap().out, "it says nothing\n");
    env.finish().unwrap();
}

#[test]
fn a_download_that_breaks_goes_on_where_it_was() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let layer = made.layers[0].clone();
    let digest = layer.digest.clone();
    for ranges in [true, false] {
        env.ok(&["cache", "clean", "--all"]).unwrap();
        let (bytes, of) = (layer.bytes.clone(), digest.clone());
        let registry = Odd::with(&made, move |(path, _), before| {
            let mut answer = Answer::new(200, bytes.clone());
            answer.cut = (before < 2).then_some(100_000 * (before + 1));
            answer.ranges = ranges;
            path.contains(of.as_str()).then_some(answer)
        })
        .unwrap();
        assert_eq!(env.ok(&["run", &registry.name("x:v1"), "x"]).unwrap().out, "it says x\n");
        let asked = registry.asked();
        let ranges: Vec<_> = asked
            .iter()
            .filter(|(path, _)| path.contains(&digest))
            .map(|(_, headers)| headers.get("range"))
            .collect();
        assert_eq!(ranges.len(), 3);
        assert!(ranges[0].is_none() && ranges[1].is_some_and(|range| range == "bytes=100000-"), "{ranges:?}");
    }
    env.finish().unwrap();
}

/// A registry that has all the time in the world: what comes is taken. Whoever does not want to wait interrupts it, and
/// then there is no image.
#[test]
fn a_slow_registry() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let registry = |pause| {
        let (bytes, of) = (made.layers[0].bytes.clone(), made.layers[0].digest.clone());
        Odd::with(&made, move |(path, _), _| {
            let answer = Answer { pause, ..Answer::new(200, bytes.clone()) };
            path.contains(of.as_str()).then_some(answer)
        })
    };
    let slower = registry(Duration::from_secs(30)).unwrap();
    let running = env.spawn(&["pull", "x.sif", &slower.name("x:v1")]).unwrap();
    let until = std::time::Instant::now() + crate::running::PATIENCE;
    while !slower.asked().iter().any(|(path, _)| path.contains(&made.layers[0].digest)) {
        assert!(std::time::Instant::now() < until, "the layer is never asked for");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(nix::sys::signal::Signal::SIGINT).unwrap();
    assert_ne!(running.wait().unwrap().code, 0);
    // The process that cleans up may be a moment behind.
    while std::fs::read_dir(env.path("home")).unwrap().count() > 0 {
        assert!(std::time::Instant::now() < until, "something half made was left");
        std::thread::sleep(Duration::from_millis(5));
    }
    let slow = registry(Duration::from_millis(100)).unwrap();
    assert_eq!(env.ok(&["run", &slow.name("x:v1"), "x"]).unwrap().out, "it says x\n");
    env.finish().unwrap();
}

#[test]
fn a_download_that_was_given_up_goes_on_next_time() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let layer = made.layers[0].clone();
    let healed = Arc::new(AtomicBool::new(false));
    let (now, of, bytes) = (Arc::clone(&healed), layer.digest.clone(), layer.bytes.clone());
    let registry = Odd::with(&made, move |(path, headers), _| {
        let mut answer = Answer::new(200, bytes.clone());
        if !now.load(Ordering::Relaxed) {
            answer.cut = Some(if headers.contains_key("range") { 0 } else { 200_000 });
        }
        path.contains(of.as_str()).then_some(answer)
    })
    .unwrap();
    let shown = digests(&told(&env, &registry).unwrap());
    insta::assert_snapshot!(shown.replace(&layer.bytes.len().to_string(), "$SIZE"), @"
    exit 255
    FATAL:   cannot unpack layer 1 of N, from docker://127.0.0.1:N/x/y:v1
             because: the download of layer $DIGEST from 127.0.0.1:N broke off
             because: Peer disconnected
             because: 200000 of N bytes have arrived
             hint:    try again: it goes on where it was
    ");
    let listed = env.ok(&["cache", "list"]).unwrap().out;
    assert!(listed.contains("not complete"), "{listed}");
    healed.store(true, Ordering::Relaxed);
    assert_eq!(env.ok(&["run", &registry.name("x/y:v1"), "x"]).unwrap().out, "it says x\n");
    let last = registry.asked().into_iter().rfind(|(path, _)| path.contains(&layer.digest)).unwrap();
    assert_eq!(last.1.get("range").map(String::as_str), Some("bytes=200000-"));
    env.finish().unwrap();
}

#[test]
fn images_that_would_do_harm() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let archive = |path: &str| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(4);
        header.set_mode(0o644);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header, &b"evil"[..]).unwrap();
        gzip(&tar.into_inner().unwrap()).unwrap()
    };
    let nothing = format!("sha256:{}", "0".repeat(64));
    let up = made_of(&[(archive("../../../../home/evil"), nothing.clone())], here(), &json!({}));
    let registry = Odd::with(&up, |_, _| None).unwrap();
    insta::assert_snapshot!(told(&env, &registry).unwrap(), @r#"
    exit 255
    FATAL:   cannot unpack layer 1 of N, from docker://127.0.0.1:N/x/y:v1
             because: cannot unpack "../../../../home/evil"
             because: its path leads up with ".."
    "#);
    assert!(!env.path("home/evil").exists());
    let words =
        made_of(&[(b"these are just words, and no archive at all".repeat(30), nothing)], here(), &json!({}));
    insta::assert_snapshot!(told(&env, &Odd::with(&words, |_, _| None).unwrap()).unwrap(), @"
    exit 255
    FATAL:   cannot unpack layer 1 of N, from docker://127.0.0.1:N/x/y:v1
             because: cannot read it
             because: it is no tar archive, or a header in it is damaged
    ");
    let many = json!({"schemaVersion": 2, "config": words.config.descriptor(),
        "layers": vec![words.layers[0].descriptor(); 2000]});
    let registry = odd(&words, "/manifests/", move |_| Answer::new(200, many.to_string())).unwrap();
    assert!(told(&env, &registry).unwrap().contains("has more than 1024 layers"));
    let registry = odd(&words, "/manifests/", move |_| Answer::new(200, vec![b'['; 5 << 20])).unwrap();
    insta::assert_snapshot!(told(&env, &registry).unwrap(), @"
    exit 255
    FATAL:   the answer of N.0.0.1:N is larger than any such answer
             hint:    check that the name is that of an image
    ");
    let registry = odd(&words, "/manifests/", move |_| Answer::new(200, "{\"schemaVersion\":1}")).unwrap();
    insta::assert_snapshot!(told(&env, &registry).unwrap(), @"
    exit 255
    FATAL:   the manifest of docker://127.0.0.1:N/x/y:v1 cannot be understood
             because: missing field `config` at line 1 column 19
             hint:    images in docker's formats before 2.2 have to be pushed anew by a newer docker
    ");
    env.finish().unwrap();
}

#[test]
fn layouts_and_archives_that_are_broken() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let layout = made.layout(&env, "home/layout").unwrap();
    let run = |name: &str| digests(&env.fails(&["run", name]).unwrap());
    insta::assert_snapshot!(run("oci:layout:other"), @r#"
    exit 255
    FATAL:   oci:layout:other has no image with tag "other"
             hint:    name one behind a colon; there are: v1
    "#);
    insta::assert_snapshot!(run("oci:none"), @"
    exit 255
    FATAL:   cannot open the directory $DIR/home/none
             because: it does not exist
             hint:    check the spelling; write oci:DIRECTORY[:TAG]
    ");
    env.make_dir("home/empty").unwrap();
    insta::assert_snapshot!(run("oci:empty"), @"
    exit 255
    FATAL:   $DIR/home/empty is no image layout: it has no index.json
             hint:    for an image directory leave out `oci:`
    ");
    insta::assert_snapshot!(run("oci-archive:layout"), @"
    exit 255
    FATAL:   the archive $DIR/home/layout is not a file
             hint:    for a directory in the layout of OCI, write oci:DIRECTORY
    ");
    env.write("home/words", &"just words ".repeat(100)).unwrap();
    insta::assert_snapshot!(run("docker-archive:words"), @"
    exit 255
    FATAL:   cannot read the archive $DIR/home/words
             because: it is no tar archive, or a header in it is damaged
             hint:    make it anew, for example with `docker save` or `skopeo copy`
    ");
    let out = env.program("tar").args(["-C", "layout", "-cf", "a.tar", "."]).output().unwrap();
    assert!(out.status.success());
    insta::assert_snapshot!(run("docker-archive:a.tar"), @"
    exit 255
    FATAL:   $DIR/home/a.tar is not an archive of docker's
             hint:    it is one in the layout of OCI: write oci-archive:$DIR/home/a.tar
    ");
    let blob = layout.join("blobs/sha256").join(made.layers[0].digest.trim_start_matches("sha256:"));
    let mut bytes = std::fs::read(&blob).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    insta::assert_snapshot!(run("oci:layout"), @"
    exit 255
    FATAL:   cannot unpack layer 1 of N, from oci:layout
             because: layer $DIGEST is damaged
             because: its content has digest sha256:$DIGEST
             hint:    try again; if it stays so, the image is damaged where it comes from
    ");
    std::fs::remove_file(&blob).unwrap();
    insta::assert_snapshot!(run("oci:layout"), @"
    exit 255
    FATAL:   cannot unpack layer 1 of N, from oci:layout
             because: $DIR/home/layout is not whole: blob sha256:$DIGEST is missing
             hint:    copy the image anew, for example with `skopeo copy`
    ");
    env.finish().unwrap();
}

#[test]
fn writing_into_the_cache_is_refused() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    small(&env).unwrap().layout(&env, "home/layout").unwrap();
    insta::assert_snapshot!(env.fails(&["exec", "--writable", "oci:layout", "/bin/true"]).unwrap(), @"
    exit 1
    ERROR:   --writable would change an image of the cache, which others use as well
             hint:    make a directory of it with `stasis build --sandbox DIRECTORY oci:layout`
    ");
    env.finish().unwrap();
}

/// A disk that is full: told, nothing left, and it goes on when there is room.
#[test]
fn no_room_for_an_image() {
    need!(root, image, userns);
    let env = Env::new(Who::User).unwrap();
    let layout = small(&env).unwrap().layout(&env, "home/layout").unwrap();
    super::disk::small(&env.path("data"), env.uid(), 2).unwrap();
    let name = format!("oci:{}", layout.display());
    let told = env.fails(&["run", &name]).unwrap();
    assert!(told.contains("no space left on device") && told.contains("hint:    make room"), "{told}");
    assert_eq!(std::fs::read_dir(env.path("data/cache/_oci/work")).unwrap().count(), 0);
    env.finish().unwrap();
}
