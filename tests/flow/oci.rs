//! Images from registries, layouts and archives.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use serde_json::json;

use crate::env::{Env, Who};
use crate::need::need;
use crate::registry::{
    Blob, INDEX, Odd, Registry, Wants, gzip, here, image, layer_of, log_in, skopeo, small,
};
use crate::running::PATIENCE;

fn text(path: &std::path::Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_registry_is_asked_once_and_the_image_is_kept() {
    need!(image, userns, registry);
    let env = Env::new(Who::User).unwrap();
    let registry = Registry::start(&env, Wants::Nothing).unwrap();
    let layout = small(&env).unwrap().layout(&env, "layout").unwrap();
    registry.fill(&env, &layout, "team/small:v1", &[]).unwrap();
    let name = registry.name("team/small:v1");
    assert_eq!(env.ok(&["run", &name]).unwrap().out, "it says nothing\n");
    assert_eq!(env.ok(&["run", &name, "a", "b c"]).unwrap().out, "it says a b c\n");
    let said = env.ok(&["exec", &name, "/bin/sh", "-c", "echo $GREETING"]).unwrap().out;
    assert_eq!(said, "hello 'world'\n");
    let listed = env.ok(&["cache", "list"]).unwrap().out;
    assert!(listed.contains(&name) && listed.lines().count() == 3, "{listed}");
    // Nobody answers any more: what is there is taken, and said so.
    drop(registry);
    let run = env.ok(&["run", &name, "still"]).unwrap();
    assert_eq!(run.out, "it says still\n");
    assert!(run.err.contains("cannot be reached; the image of that name from"), "{}", run.err);
    env.finish().unwrap();
}

/// Registries that limit downloads count manifests; of an image that is there none is wanted.
#[test]
fn an_image_that_is_there_is_not_downloaded() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let registry = Odd::with(&small(&env).unwrap(), |_, _| None).unwrap();
    for _ in 0..2 {
        assert_eq!(env.ok(&["run", &registry.name("x:v1"), "x"]).unwrap().out, "it says x\n");
    }
    let asked: Vec<String> = registry.asked().into_iter().map(|(path, _)| path).collect();
    assert_eq!(asked.len(), 5, "{asked:#?}");
    assert_eq!(
        (asked[0].as_str(), asked[4].as_str()),
        ("HEAD /v2/x/manifests/v1", "HEAD /v2/x/manifests/v1")
    );
    env.finish().unwrap();
}

/// Who waits says for what; and what builds take from the cache is in use as well.
#[test]
fn a_cache_of_several() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let registry = Odd::with(&small(&env).unwrap(), |_, _| None).unwrap();
    let name = registry.name("x:v1");
    let day = std::time::Duration::from_secs(86_400);
    env.ok(&["build", "--sandbox", "one", &name]).unwrap();
    let layers = || fs::read_dir(env.path("data/cache/_oci/blobs")).unwrap().flatten();
    for layer in layers() {
        let file = fs::File::open(layer.path()).unwrap();
        file.set_modified(std::time::SystemTime::now() - 40 * day).unwrap();
    }
    env.ok(&["build", "--sandbox", "two", &name]).unwrap();
    env.ok(&["cache", "clean"]).unwrap();
    assert_eq!(layers().count(), 1, "what a build took a moment ago was removed");
    env.ok(&["run", &name]).unwrap();
    let digest =
        fs::read_dir(env.path("data/cache/_oci/roots")).unwrap().next().unwrap().unwrap().file_name();
    let lock = fs::File::open(env.path("data/cache/_oci/locks").join(&digest)).unwrap();
    env.ok(&["cache", "clean", "--all"]).unwrap();
    lock.lock().unwrap();
    let running = env.spawn(&["run", &name, "x"]).unwrap();
    let until = Instant::now() + PATIENCE;
    while !running.complained().contains("waiting for another process that fetches") {
        assert!(Instant::now() < until && !running.ended(), "{}", running.complained());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(lock);
    assert_eq!(running.wait().unwrap().out, "it says x\n");
    env.finish().unwrap();
}

#[test]
fn what_is_in_use_stays_in_the_cache() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let layout = small(&env).unwrap().layout(&env, "layout").unwrap();
    let name = format!("oci:{}", layout.display());
    env.ok(&["instance", "start", &name, "one"]).unwrap();
    let told = env.ok(&["cache", "clean", "--all"]).unwrap();
    assert!(
        told.err.contains("is in use and stays") && told.err.contains("0 things were removed"),
        "{}",
        told.err
    );
    assert_eq!(env.ok(&["exec", "instance://one", "/bin/echo", "here"]).unwrap().out, "here\n");
    env.ok(&["instance", "stop", "one"]).unwrap();
    let told = env.ok(&["cache", "clean"]).unwrap();
    assert!(told.err.contains("0 things were removed"), "{}", told.err);
    // The same image of another store counts as in use while a container of another test sees it: only the end of a
    // path can be compared.
    let unused = |words: &[&str], says: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = env.ok(words).unwrap().err;
            if told.contains(says) {
                break;
            }
            assert!(told.contains("is in use and stays") && Instant::now() < deadline, "{told}");
        }
    };
    unused(&["cache", "clean", "--all", "--dry-run"], "1 thing would be removed");
    unused(&["cache", "clean", "--all"], "1 thing was removed");
    assert_eq!(env.ok(&["cache", "list"]).unwrap().out.lines().count(), 1);
    assert_eq!(fs::read_dir(env.path("data/cache/_oci/roots")).unwrap().count(), 0);
    env.finish().unwrap();
}

#[test]
fn a_registry_with_a_password() {
    need!(image, userns, registry);
    let env = Env::new(Who::User).unwrap();
    let registry = Registry::start(&env, Wants::Password).unwrap();
    let layout = small(&env).unwrap().layout(&env, "layout").unwrap();
    registry.fill(&env, &layout, "private/small:v1", &["--dest-creds", "tester:a password"]).unwrap();
    let name = registry.name("private/small:v1");
    let told = env.fails(&["run", &name]).unwrap();
    insta::assert_snapshot!(told, @"
    exit 255
    FATAL:   127.0.0.1:N does not let us have the manifest of docker://127.0.0.1:N/private/small:v1
             because: it wants a login, and none is known for it (status 401)
             hint:    log in with `docker login 127.0.0.1:N`, `podman login 127.0.0.1:N` or `skopeo login 127.0.0.1:N`; or set STASIS_DOCKER_USERNAME and STASIS_DOCKER_PASSWORD
    ");
    let host = format!("127.0.0.1:{}", registry.port);
    log_in(&env, &host, "tester", "another").unwrap();
    insta::assert_snapshot!(env.fails(&["run", &name]).unwrap(), @"
    exit 255
    FATAL:   127.0.0.1:N does not let us have the manifest of docker://127.0.0.1:N/private/small:v1
             because: it does not accept the login that is known for it (status 401)
             because: the registry says: authentication required
             hint:    log in again with `docker login 127.0.0.1:N`, and check that the name is spelt correctly
    ");
    log_in(&env, &host, "tester", "a password").unwrap();
    assert_eq!(env.ok(&["run", &name]).unwrap().out, "it says nothing\n");
    env.finish().unwrap();
}

/// Every place where other programs keep logins, and the programs that they leave them to.
#[test]
fn logins_of_other_programs_open_a_registry() {
    need!(image, userns, registry);
    let mut env = Env::new(Who::User).unwrap();
    let registry = Registry::start(&env, Wants::Password).unwrap();
    let layout = small(&env).unwrap().layout(&env, "layout").unwrap();
    registry.fill(&env, &layout, "private/small:v1", &["--dest-creds", "tester:a password"]).unwrap();
    let (name, host) = (registry.name("private/small:v1"), format!("127.0.0.1:{}", registry.port));
    let helper = format!(
        "#!/bin/sh\nread -r asked\n[ \"$1 $asked\" = 'get {host}' ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         echo '{{\"ServerURL\":\"{host}\",\"Username\":\"tester\",\"Secret\":\"a password\"}}'\n"
    );
    for place in [
        "bin",
        "named",
        "docker",
        "home/.apptainer",
        "home/.docker",
        "xdg-run/containers",
        "config/containers",
    ] {
        env.make_dir(place).unwrap();
    }
    env.write("bin/docker-credential-kept", &helper).unwrap();
    fs::set_permissions(env.path("bin/docker-credential-kept"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", env.path("bin").display(), std::env::var("PATH").unwrap());
    env.set("PATH", &path);
    env.set("REGISTRY_AUTH_FILE", &env.path("named/auth.json").to_string_lossy());
    env.set("DOCKER_CONFIG", &env.path("docker").to_string_lossy());
    let auth = "dGVzdGVyOmEgcGFzc3dvcmQ=";
    let plain = json!({"auths": {&host: {"auth": auth}}});
    let store = json!({"credsStore": "kept"});
    let helpers = json!({"credHelpers": {&host: "kept", "other.example": "no-such"}});
    let no_use =
        json!({"credHelpers": {"other.example": "kept"}, "auths": {"other.example": {"auth": auth}}});
    for place in [
        "named/auth.json",
        "docker/config.json",
        "home/.apptainer/docker-config.json",
        "xdg-run/containers/auth.json",
        "config/containers/auth.json",
        "home/.docker/config.json",
    ] {
        for (kind, content) in [("plain", &plain), ("store", &store), ("helpers", &helpers)] {
            env.write(place, &content.to_string()).unwrap();
            let run = env.ok(&["run", &name, place, kind]).unwrap();
            assert_eq!((run.out, run.err), (format!("it says {place} {kind}\n"), String::new()));
        }
        env.write(place, &no_use.to_string()).unwrap();
        let told = env.fails(&["run", &name]).unwrap();
        assert!(told.contains("it wants a login, and none is known for it (status 401)"), "{place}: {told}");
        fs::remove_file(env.path(place)).unwrap();
    }
    env.write("home/mine.json", &helpers.to_string()).unwrap();
    env.ok(&["pull", "--authfile", "mine.json", "out.sif", &name]).unwrap();
    env.finish().unwrap();
}

#[test]
fn a_registry_with_a_certificate() {
    need!(image, userns, registry, openssl);
    let mut env = Env::new(Who::User).unwrap();
    let registry = Registry::start(&env, Wants::Tls).unwrap();
    let layout = small(&env).unwrap().layout(&env, "layout").unwrap();
    registry.fill(&env, &layout, "safe/small:v1", &[]).unwrap();
    let name = registry.name("safe/small:v1");
    let told = env.fails(&["run", &name]).unwrap();
    insta::assert_snapshot!(told.replace(&registry.port.to_string(), "N"), @"
    exit 255
    FATAL:   registry 0.0.0.0:N cannot be reached
             because: no safe connection comes about
             because: invalid peer certificate: UnknownIssuer
             hint:    name your site's certificates with SSL_CERT_FILE; for a registry without TLS that you trust, --no-https
    ");
    fs::set_permissions(env.path("authority.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    env.set("SSL_CERT_FILE", &env.path("authority.pem").to_string_lossy());
    assert_eq!(env.ok(&["run", &name]).unwrap().out, "it says nothing\n");
    // One that is not on this machine and has no certificate is not spoken to without being told so.
    drop(registry);
    let plain = Odd::with(&small(&env).unwrap(), |_, _| None).unwrap();
    let name = format!("docker://0.0.0.0:{}/x:v1", plain.port);
    let told = env.fails(&["run", &name]).unwrap();
    assert!(told.contains("registry 0.0.0.0"), "{told}");
    assert!(!plain.asked().iter().any(|(path, _)| path.contains("/v2")), "it was asked without TLS");
    env.ok(&["pull", "--sandbox", "--no-https", "out", &name]).unwrap();
    env.set("STASIS_NOHTTPS", "1");
    assert_eq!(env.ok(&["run", &name]).unwrap().out, "it says nothing\n");
    env.finish().unwrap();
}

/// The way of docker.io: a token from another place.
#[test]
fn a_registry_with_tokens() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let registry = Odd::with(&made, |(path, headers), _| {
        let authorization = headers.get("authorization").map(String::as_str);
        if path.starts_with("/token") {
            let known = authorization == Some("Basic dXNlcjpwYXNz");
            let body = if known { "{\"token\":\"abc\"}" } else { "{\"token\":\"anonymous\"}" };
            return Some(crate::registry::Answer::new(200, body));
        }
        if authorization == Some("Bearer abc") {
            return None;
        }
        let host = headers.get("host").cloned().unwrap_or_default();
        let wants =
            format!("Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:x/y:pull\"");
        Some(crate::registry::Answer::new(401, "{}").header("WWW-Authenticate", &wants))
    })
    .unwrap();
    let name = registry.name("x/y:v1");
    let told = env.fails(&["run", &name]).unwrap();
    assert!(told.contains("it wants a login, and none is known for it (status 401)"), "{told}");
    log_in(&env, &format!("127.0.0.1:{}", registry.port), "user", "pass").unwrap();
    assert_eq!(env.ok(&["run", &name]).unwrap().out, "it says nothing\n");
    let asked = registry.asked();
    let tokens: Vec<_> = asked.iter().filter(|(path, _)| path.starts_with("/token")).collect();
    assert_eq!(tokens.last().unwrap().0, "/token?service=test&scope=repository%3Ax%2Fy%3Apull");
    let secret = |(path, headers): &&(String, std::collections::BTreeMap<String, String>)| {
        !path.starts_with("/token")
            && headers.get("authorization").is_some_and(|value| value.starts_with("Basic"))
    };
    assert_eq!(asked.iter().filter(secret).count(), 0, "the password went to the registry");
    // To another machine a login does not go without TLS.
    let away = Odd::start(|_, _| {
        let wants = "Bearer realm=\"http://192.0.2.1/token\",service=\"test\"";
        crate::registry::Answer::new(401, "{}").header("WWW-Authenticate", wants)
    })
    .unwrap();
    insta::assert_snapshot!(env.fails(&["run", &away.name("x:v1")]).unwrap(), @r#"
    exit 255
    FATAL:   127.0.0.1:N has its tokens made at "http://192.0.2.1/token"
             because: a login would go there without TLS
             hint:    if you trust everybody on the way, allow it with --no-https
    "#);
    env.finish().unwrap();
}

#[test]
fn every_form_of_the_same_image() {
    need!(image, userns, registry);
    let env = Env::new(Who::User).unwrap();
    let layout = small(&env).unwrap().layout(&env, "layout").unwrap();
    let from = format!("oci:{}:v1", layout.display());
    let at = |name: &str| env.path(name).display().to_string();
    skopeo(&env, &["copy", &from, &format!("oci-archive:{}:v1", at("home/a.tar"))]).unwrap();
    skopeo(&env, &["copy", &from, &format!("docker-archive:{}:some/name:v1", at("home/d.tar"))]).unwrap();
    fs::write(env.path("home/d.tar.gz"), gzip(&fs::read(env.path("home/d.tar")).unwrap()).unwrap()).unwrap();
    let zstd = format!("oci:{}:v1", at("home/zstd"));
    skopeo(&env, &["copy", "--dest-compress-format", "zstd", "--dest-compress", &from, &zstd]).unwrap();
    let blobs = fs::read_dir(env.path("home/zstd/blobs/sha256")).unwrap().flatten();
    let magic = |path: std::path::PathBuf| fs::read(path).unwrap().starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    assert!(blobs.map(|blob| blob.path()).any(magic), "nothing is packed with zstd");
    for name in [
        "oci-archive:a.tar",
        "oci-archive:a.tar:v1",
        "docker-archive:d.tar",
        "docker-archive:d.tar:docker.io/some/name:v1",
        "docker-archive:d.tar.gz",
        "oci:zstd:v1",
    ] {
        assert_eq!(env.ok(&["run", name, "x"]).unwrap().out, "it says x\n", "{name}");
    }
    env.finish().unwrap();
}

#[test]
fn an_archive_for_another_machine() {
    need!(image, userns, registry);
    let env = Env::new(Who::User).unwrap();
    let other = if here() == "amd64" { "arm64" } else { "amd64" };
    let layout = image(&[], other, &json!({})).layout(&env, "layout").unwrap();
    let to = format!("docker-archive:{}:some/name:v1", env.path("home/d.tar").display());
    let from = format!("oci:{}:v1", layout.display());
    skopeo(&env, &["copy", "--override-arch", other, &from, &to]).unwrap();
    let told = env.fails(&["pull", "--sandbox", "foreign", "docker-archive:d.tar"]).unwrap();
    assert!(told.contains("d.tar is not made for linux/"), "{told}");
    env.ok(&["pull", "--sandbox", "--arch", other, "foreign", "docker-archive:d.tar"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn the_image_for_this_machine_is_taken() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let made = small(&env).unwrap();
    let other = if here() == "amd64" { "arm64" } else { "amd64" };
    let platform = |blob: &Blob, machine: &str| {
        let mut descriptor = blob.descriptor();
        descriptor["platform"] = json!({"os": "linux", "architecture": machine});
        descriptor
    };
    let foreign = image(&[], other, &json!({}));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests":
        [platform(&foreign.manifest, other), platform(&made.manifest, here())]});
    let index = Blob::new(INDEX, index.to_string().into_bytes());
    let (bytes, alien) = (index.bytes.clone(), foreign.clone());
    let registry = Odd::with(&made, move |(path, _), _| {
        let last = path.rsplit('/').next().unwrap_or_default();
        let all = [&alien.manifest, &alien.config];
        let found = all.iter().find(|blob| blob.digest == last).map(|blob| blob.bytes.clone());
        let body = if last == "both" { Some(bytes.clone()) } else { found };
        body.map(|body| crate::registry::Answer::new(200, body))
    })
    .unwrap();
    assert_eq!(env.ok(&["run", &registry.name("x:both"), "x"]).unwrap().out, "it says x\n");
    let only = registry.name(&format!("x@{}", foreign.manifest.digest));
    let told = env.fails(&["run", &only]).unwrap().replace(&foreign.manifest.digest, "sha256:$DIGEST");
    insta::assert_snapshot!(told.replace(other, "$OTHER").replace(here(), "$HERE"), @"
    exit 255
    FATAL:   docker://127.0.0.1:N/x@sha256:$DIGEST is not made for linux/$HERE
             because: it is made for linux/$OTHER
             hint:    take an image for this machine; --arch chooses another one's, to look into or to copy
    ");
    env.ok(&["pull", "--sandbox", "--arch", other, "foreign", &only]).unwrap();
    assert!(env.path("home/foreign/.singularity.d/runscript").is_file());
    env.finish().unwrap();
}

#[test]
fn pulled_into_a_directory() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let layout = small(&env).unwrap().layout(&env, "layout").unwrap();
    let name = format!("oci:{}:v1", layout.display());
    env.ok(&["pull", "--sandbox", &name]).unwrap();
    assert!(env.path("home/layout_v1/bin/echo").is_file());
    insta::assert_snapshot!(text(&env.path("home/layout_v1/.singularity.d/runscript")), @r#"
    #!/bin/sh
    # From the Entrypoint and the Cmd of the image.
    if [ $# -eq 0 ]; then set -- 'nothing'; fi
    set -- '/bin/echo' 'it says' "$@"
    exec "$@"
    "#);
    insta::assert_snapshot!(text(&env.path("home/layout_v1/.singularity.d/env/10-docker2singularity.sh")), @r#"
    #!/bin/sh
    # From the Env of the image.
    export PATH='/usr/local/bin:/usr/bin:/bin'
    if [ -z "${GREETING+x}" ]; then export GREETING='hello '\''world'\'''; fi
    "#);
    assert!(
        text(&env.path("home/layout_v1/.singularity.d/labels.json")).contains("\"maintainer\": \"nobody\"")
    );
    let told = env.fails(&["pull", "--sandbox", "layout_v1", &name]).unwrap();
    insta::assert_snapshot!(told, @r#"
    exit 255
    FATAL:   "$DIR/home/layout_v1" exists already
             hint:    replace it with --force, or choose another name
    "#);
    fs::write(env.path("home/layout_v1/mine"), "x").unwrap();
    env.ok(&["pull", "--sandbox", "--force", "layout_v1", &name]).unwrap();
    assert!(!env.path("home/layout_v1/mine").exists());
    // Everything can be removed by who has it.
    let out = env.program("rm").args(["-rf", "layout_v1"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    env.finish().unwrap();
}

/// Saved from an image in the cache, brought back after the cache was emptied: fetched again, exactly that one.
#[test]
fn a_saved_state_finds_its_image_again() {
    need!(image, userns, criu);
    let env = Env::new(Who::User).unwrap();
    let layer = layer_of(&env.site.image("small")).unwrap();
    let run = json!({"Entrypoint": ["/opt/subjects/bin/idle"]});
    let made = image(std::slice::from_ref(&layer), here(), &run);
    let newer = image(&[layer], here(), &json!({"Entrypoint": ["/opt/subjects/bin/idle"], "Cmd": []}));
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (now, fresh) = (std::sync::Arc::clone(&moved), newer.clone());
    let registry = Odd::with(&made, move |(path, _), _| {
        let last = path.rsplit('/').next().unwrap_or_default();
        let moved = now.load(std::sync::atomic::Ordering::Relaxed) && last == "v1";
        let found = if moved { Some(&fresh.manifest) } else { None };
        let found = found.or([&fresh.manifest, &fresh.config].into_iter().find(|blob| blob.digest == last));
        found.map(|blob| crate::registry::Answer::new(200, blob.bytes.clone()))
    })
    .unwrap();
    let name = registry.name("x:v1");
    env.ok(&["instance", "run", "--backend", "criu", "--checkpoint", "kept", &name, "one"]).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    // From the cache nothing has to be asked.
    let asked = registry.asked().len();
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.ok(&["instance", "stop", "one"]).unwrap();
    assert_eq!(registry.asked().len(), asked);
    env.ok(&["cache", "clean", "--all"]).unwrap();
    assert_eq!(fs::read_dir(env.path("data/cache/_oci/roots")).unwrap().count(), 0);
    moved.store(true, std::sync::atomic::Ordering::Relaxed);
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.ok(&["instance", "stop", "one"]).unwrap();
    let told = env.fails(&["instance", "start", "--restart", "kept", &name, "one"]).unwrap();
    assert!(told.contains("was saved of another image"), "{told}");
    env.finish().unwrap();
}

/// Names that hold several layers: the upper ones change the lower ones.
#[test]
fn layers_lie_on_each_other() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let below = layer_of(&env.site.image("small")).unwrap();
    let dir = env.make_dir("home/upper").unwrap();
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/added"), "added\n").unwrap();
    fs::create_dir_all(dir.join("opt")).unwrap();
    fs::write(dir.join("opt/.wh.subjects"), "").unwrap();
    let above = layer_of(&dir).unwrap();
    let made = image(&[below, above], here(), &json!({}));
    let layout = made.layout(&env, "layers").unwrap();
    let script = "cat /etc/added; test -e /opt/subjects || echo gone";
    let name = format!("oci:{}", layout.display());
    assert_eq!(env.ok(&["exec", &name, "/bin/sh", "-c", script]).unwrap().out, "added\ngone\n");
    env.finish().unwrap();
}

/// Distroless images and those of one static program have no shell that could run a runscript.
#[test]
fn an_image_without_a_shell() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let dir = env.make_dir("only").unwrap();
    fs::create_dir(dir.join("bin")).unwrap();
    fs::create_dir(dir.join("etc")).unwrap();
    fs::copy(env.site.image("server").join("opt/subjects/bin/idle-static"), dir.join("bin/idle")).unwrap();
    let run = json!({"Entrypoint": ["idle"], "Env": ["PATH=/bin"]});
    let layout = image(&[layer_of(&dir).unwrap()], here(), &run).layout(&env, "layout").unwrap();
    let name = format!("oci:{}", layout.display());
    let running = env.spawn(&["run", &name]).unwrap();
    running.wait_for("up").unwrap();
    running.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    running.wait().unwrap();
    let told = env.fails(&["shell", &name]).unwrap();
    assert!(told.contains("has no shell"), "{told}");
    env.finish().unwrap();
}
