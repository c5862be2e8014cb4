//! Definition files become images.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::transcript::{self, CRIU, NATIVE, OURS, Words};
use crate::env::{Env, Who};
use crate::http::free_port;
use crate::need::need;
use crate::registry::{Registry, Wants, here, image, layer_of, small};
use crate::running::{Outcome, Running};

/// A place with the small image in a layout.
fn place(who: Who) -> Outcome<Env> {
    let env = Env::new(who)?;
    small(&env)?.layout(&env, "home/layout")?;
    Ok(env)
}

fn labels(image: &Path) -> Value {
    let text = fs::read_to_string(image.join(".singularity.d/labels.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

const WHOLE: &str = r#"Bootstrap: oci
From: layout:{{ TAG }}

%arguments
    TAG=v0
    WORDS="in the file"

%setup
    echo "from the host" > "$APPTAINER_ROOTFS/from-host"
%files
    data/*.txt /data/
    data/one.txt /renamed
    data /whole
%post
    test "$(cat /from-host)" = "from the host"
    echo "export LATE='written by post'" >> "$APPTAINER_ENVIRONMENT"
    : > /made
    test -w / && test "$HOME" = /root
    echo "{{ WORDS }}" > /words
%environment
    export NAME='of the environment'
%labels
    Author A Person
    Version=1.2
%help
    This is the help.
%runscript
    echo "run: $NAME, $LATE, $GREETING, $*"
%startscript
    exec /opt/subjects/bin/idle
%test
    test "$NAME" = 'of the environment'
    test -f /made
%apprun talk
    echo talking
%appenv talk
    export TALK=1
%appinstall talk
    touch bin/installed
"#;

/// Two applications in one image.
const APPS: &str = r#"Bootstrap: localimage
From: base
%runscript
    echo "the image's own: ${SCIF_APPNAME:-none}"
%apprun talk
    echo "talking: $TALK, $SCIF_APPNAME, $SCIF_APPROOT, $*"
%appenv talk
    export TALK=loud
%applabels talk
    Kind speech
%apphelp talk
    It talks.
%appstart talk
    exec /opt/subjects/bin/idle
%appinstall talk
    printf '#!/bin/sh\necho by its name\n' > bin/say
    chmod +x bin/say
%apprun walk
    echo walking
"#;

fn whole(who: Who) -> Outcome<()> {
    let env = place(who)?;
    env.make_dir("home/data")?;
    env.write("home/data/one.txt", "one\n")?;
    env.write("home/data/two.txt", "two\n")?;
    env.write("home/image.def", WHOLE)?;
    let words =
        ["build", "--sandbox", "--build-arg", "TAG=v1", "--build-arg", "WORDS=given", "image", "image.def"];
    let run = env.ok(&words)?;
    let said: Vec<&str> = run.err.lines().filter(|line| line.starts_with("INFO: ")).collect();
    insta::allow_duplicates! { insta::assert_snapshot!(env.plain(&said.join("\n")), @"
    INFO:    Starting build...
    INFO:    Running setup scriptlet
    INFO:    Copying $DIR/home/data/one.txt to /data/one.txt
    INFO:    Copying $DIR/home/data/two.txt to /data/two.txt
    INFO:    Copying $DIR/home/data/one.txt to /renamed
    INFO:    Copying $DIR/home/data to /whole
    INFO:    Running post scriptlet
    INFO:    Installing app talk
    INFO:    Adding help info
    INFO:    Adding labels
    INFO:    Adding environment to container
    INFO:    Adding startscript
    INFO:    Adding runscript
    INFO:    Adding testscript
    INFO:    Running testscript
    INFO:    Build complete: image
    "); }
    let image = env.path("home/image");
    let read = |path: &str| fs::read_to_string(image.join(path)).unwrap_or_default();
    assert_eq!((read("words"), read("renamed")), ("given\n".to_owned(), "one\n".to_owned()));
    assert_eq!((read("data/two.txt"), read("whole/one.txt")), ("two\n".to_owned(), "one\n".to_owned()));
    let out = env.ok(&["run", "image", "a", "b"])?.out;
    assert_eq!(out, "run: of the environment, written by post, hello 'world', a b\n");
    assert_eq!(read(".singularity.d/runscript.help"), "    This is the help.\n");
    assert!(read(".singularity.d/Singularity").contains("From: layout:v1"));
    let labels = labels(&image);
    assert_eq!((labels["Author"].as_str(), labels["Version"].as_str()), (Some("A Person"), Some("1.2")));
    assert_eq!(labels["org.label-schema.usage.singularity.deffile.bootstrap"].as_str(), Some("oci"));
    assert_eq!(labels["maintainer"].as_str(), Some("nobody"));
    assert!(image.join("scif/apps/talk/bin/installed").is_file());
    assert!(read("scif/apps/talk/scif/runscript").contains("echo talking"));
    assert!(!image.join(".singularity.d/.script").exists());
    env.ok(&["instance", "start", "image", "one"])?;
    env.ok(&["instance", "stop", "one"])?;
    let entries = fs::read_dir(env.path("home"))?.flatten();
    let hidden: Vec<_> =
        entries.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with(".image")).collect();
    assert!(hidden.is_empty(), "left behind: {hidden:?}");
    let out = env.program("rm").args(["-rf", "image"]).output()?;
    assert!(out.status.success() && !image.exists(), "{}", String::from_utf8_lossy(&out.stderr));
    env.finish()
}

#[test]
fn applications_of_an_image() {
    need!(image, userns, squashfs);
    let env = Env::new(Who::User).unwrap();
    let base = env.site.image("any");
    env.write("home/image.def", &APPS.replace("From: base", &format!("From: {}", base.display()))).unwrap();
    env.ok(&["build", "image.sif", "image.def"]).unwrap();
    env.ok(&["build", "--sandbox", "image", "image.sif"]).unwrap();
    let out = |words: &[&str]| env.ok(words).unwrap().out;
    for image in ["image", "image.sif"] {
        assert_eq!(out(&["run", image]), "the image's own: none\n");
        assert_eq!(
            out(&["run", "--app", "talk", image, "a", "b"]),
            "talking: loud, talk, /scif/apps/talk, a b\n"
        );
        assert_eq!(out(&["run", "--app", "walk", image]), "walking\n");
        assert_eq!(out(&["exec", "--app", "talk", image, "say"]), "by its name\n");
        assert_eq!(out(&["inspect", "--list-apps", image]), "talk\nwalk\n");
        assert_eq!(out(&["inspect", "--app", "talk", image]), "Kind: speech\n");
        assert_eq!(out(&["inspect", "--app", "talk", "--helpfile", image]), "    It talks.\n");
        let told: serde_json::Value =
            serde_json::from_str(&out(&["inspect", "--app", "talk", "--json", "--environment", image]))
                .unwrap();
        let scripts = &told["data"]["attributes"]["apps"]["talk"]["environment"];
        assert!(
            scripts["/scif/apps/talk/scif/env/90-environment.sh"].as_str().unwrap().contains("TALK=loud"),
            "{told}"
        );
    }
    // The variable stands for the flag.
    let mut command = env.command(&["run", "image"]);
    command.env("APPTAINER_APP", "walk");
    assert_eq!(Running::start(command, false).unwrap().wait().unwrap().out, "walking\n");
    env.ok(&["instance", "start", "--app", "talk", "image", "one"]).unwrap();
    assert!(out(&["exec", "instance://one", "cat", "/proc/2/cmdline"]).contains("idle"));
    env.ok(&["instance", "stop", "one"]).unwrap();
    insta::assert_snapshot!(env.fails(&["run", "--app", "sing", "image"]).unwrap(), @r#"
    exit 255
    FATAL:   image "image" has no application "sing"
             hint:    it has talk, walk
    "#);
    insta::assert_snapshot!(env.fails(&["inspect", "--app", "../talk", "image"]).unwrap(), @r#"
    exit 255
    FATAL:   image "image" has no application "../talk"
             hint:    it has talk, walk
    "#);
    insta::assert_snapshot!(env.fails(&["instance", "start", "--checkpoint", "c", "--app", "walk", "image", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   image "image" has no /scif/apps/walk/scif/startscript that can be executed
             hint:    run a command of the image with exec, or put an executable file at /scif/apps/walk/scif/startscript
    "#);
    env.finish().unwrap();
}

#[test]
fn every_section_as_an_ordinary_user() {
    need!(image, userns);
    whole(Who::User).unwrap();
}

#[test]
fn every_section_as_root() {
    need!(root, image);
    whole(Who::Myself).unwrap();
}

#[test]
fn every_section_with_subordinate_ids() {
    need!(uidmap, image, userns);
    whole(Who::Granted).unwrap();
}

const OWNERS: &str = "Bootstrap: oci
From: layout
%post
    python3 -c '
import os
os.makedirs(\"/of-others/deep\")
open(\"/of-others/deep/file\", \"w\").close()
os.chown(\"/of-others/deep/file\", 33, 44)
os.chmod(\"/of-others/deep/file\", 0)
os.chown(\"/of-others\", 5, 5)
open(\"/right\", \"w\").close()
os.chmod(\"/right\", 0o6755)
os.setgroups([7]); os.setgid(8); os.setuid(9)
print(\"went through\")'
";

/// What `%post` gives to other users can be used and removed by whoever has built it.
#[test]
fn files_given_away_come_back() {
    need!(image, userns);
    for who in [Who::User, Who::Granted] {
        if who == Who::Granted && !crate::need::met("uidmap", crate::need::uidmap()).unwrap() {
            continue;
        }
        let env = Env::new(who).unwrap();
        let from = env.site.image("server");
        env.write(
            "home/image.def",
            &OWNERS.replace("oci\nFrom: layout", &format!("localimage\nFrom: {}", from.display())),
        )
        .unwrap();
        let run = env.ok(&["build", "--sandbox", "image", "image.def"]).unwrap();
        assert!(run.out.contains("went through"), "{}{}", run.out, run.err);
        assert_eq!(run.err.contains("no subordinate ids are granted to you"), who == Who::User);
        let right = fs::metadata(env.path("home/image/right")).unwrap().permissions().mode();
        assert_eq!(right & 0o7777, 0o755, "{who:?}");
        let out =
            env.program("sh").args(["-ec", "cat image/of-others/deep/file; rm -rf image"]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        env.finish().unwrap();
    }
}

#[test]
fn stages_hand_files_on() {
    need!(image, userns, registry);
    let env = place(Who::User).unwrap();
    let registry = Registry::start(&env, Wants::Nothing).unwrap();
    registry.fill(&env, &env.path("home/layout"), "base/small:v1", &[]).unwrap();
    let text = format!(
        "Bootstrap: docker\nRegistry: 127.0.0.1:{}\nNamespace: base\nFrom: small:v1\nStage: tools\n\
         %setup\n  cd \"$STASIS_ROOTFS\"; mkdir out; ln -s tool out/link; ln -s /etc/hosts out/away\n\
         %post\n  echo made > /out/tool\n\
         Bootstrap: oci\nFrom: layout\n%files from tools\n  /out /got\n  /out/* /each/\n",
        registry.port
    );
    env.write("home/image.def", &text).unwrap();
    env.ok(&["build", "--sandbox", "image", "image.def"]).unwrap();
    let at = |path: &str| env.path("home/image").join(path);
    assert_eq!(fs::read_to_string(at("got/tool")).unwrap(), "made\n");
    assert_eq!(fs::read_link(at("got/link")).unwrap(), Path::new("tool"));
    assert_eq!(fs::read_link(at("got/away")).unwrap(), Path::new("/etc/hosts"));
    // What is named, or what a pattern stands for, is followed: in the stage, whose `/etc/hosts` is empty.
    assert_eq!(fs::read_to_string(at("each/link")).unwrap(), "made\n");
    assert!(!at("each/link").is_symlink() && !at("each/away").is_symlink());
    assert_eq!(fs::read_to_string(at("each/away")).unwrap(), "");
    env.finish().unwrap();
}

/// A directory lies open on the host.
#[test]
fn root_makes_no_directories_with_programs_that_give_rights() {
    need!(root, image);
    let env = place(Who::Myself).unwrap();
    let text = "Bootstrap: oci\nFrom: layout\n%setup\n  cp /bin/true \"$STASIS_ROOTFS/right\"; \
                chmod 6755 \"$STASIS_ROOTFS/right\"\n";
    env.write("home/image.def", text).unwrap();
    let mode = |image: &str| {
        let right = env.path("home").join(image).join("right");
        fs::metadata(right).unwrap().permissions().mode() & 0o7777
    };
    env.ok(&["build", "--sandbox", "made", "image.def"]).unwrap();
    assert_eq!(mode("made"), 0o755);
    // In what others have made there may be some.
    fs::set_permissions(env.path("home/made/right"), fs::Permissions::from_mode(0o6755)).unwrap();
    env.ok(&["build", "image.sif", "made"]).unwrap();
    env.ok(&["build", "--sandbox", "of-a-file", "image.sif"]).unwrap();
    env.ok(&["build", "--sandbox", "copied", "made"]).unwrap();
    assert_eq!((mode("made"), mode("of-a-file"), mode("copied")), (0o6755, 0o755, 0o755));
    env.finish().unwrap();
}

/// Nothing but one program: no shell, no libraries.
#[test]
fn an_image_of_one_program() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let program = env.site.image("server").join("opt/subjects/bin/idle-static");
    let text = format!("Bootstrap: scratch\n%files\n  {} /bin/idle\n", program.display());
    env.write("home/image.def", &text).unwrap();
    env.ok(&["build", "--sandbox", "image", "image.def"]).unwrap();
    let running = env.spawn(&["exec", "image", "/bin/idle"]).unwrap();
    running.wait_for("up").unwrap();
    running.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    running.wait().unwrap();
    env.write("home/post.def", &format!("{text}%post\n  true\n")).unwrap();
    let told = env.fails(&["build", "--sandbox", "other", "post.def"]).unwrap();
    assert!(told.contains("%post cannot run: the image has no /bin/sh"), "{told}");
    env.finish().unwrap();
}

/// A Debian from the host's own mirror, and its package manager at work as an ordinary user.
#[test]
fn a_debian_with_another_package() {
    need!(image, userns, mmdebstrap);
    let env = Env::new(Who::User).unwrap();
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap();
    let text = format!(
        "Bootstrap: debootstrap\nOSVersion: {suite}\n%post\n  apt-get update\n  \
         apt-get install --yes --no-install-recommends mailcap\n  chown mail /srv\n%runscript\n  exec run-mailcap \"$@\"\n"
    );
    env.write("home/image.def", &text).unwrap();
    let mut command = env.command(&["build", "--sandbox", "image", "image.def"]);
    let out = command.stdin(std::process::Stdio::null()).output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{err}");
    assert!(env.path("home/image/usr/bin/run-mailcap").is_file(), "{err}");
    assert!(env.path("home/image/etc/debian_version").is_file());
    env.finish().unwrap();
}

#[test]
fn the_old_image_is_replaced_when_the_new_one_is_whole() {
    need!(image, userns);
    let env = place(Who::User).unwrap();
    env.write("home/image.def", "Bootstrap: oci\nFrom: layout\n%post\n  echo {{ N }} > /number\n").unwrap();
    let build = |n: &str, flags: &[&str]| {
        let argument = format!("N={n}");
        env.stasis(
            &[&["build", "--sandbox", "--build-arg", &argument], flags, &["image", "image.def"]].concat(),
        )
        .unwrap()
    };
    assert_eq!(build("1", &[]).code, 0);
    assert_eq!(build("2", &[]).code, 255);
    assert_eq!(fs::read_to_string(env.path("home/image/number")).unwrap(), "1\n");
    assert_eq!(build("3", &["--force"]).code, 0);
    env.ok(&["build", "--sandbox", "copy", "image"]).unwrap();
    assert_eq!(fs::read_to_string(env.path("home/copy/number")).unwrap(), "3\n");
    assert_eq!(env.ok(&["run", "copy", "x"]).unwrap().out, "it says x\n");
    assert_eq!(fs::read_to_string(env.path("home/image/number")).unwrap(), "3\n");
    env.finish().unwrap();
}

/// Whatever an image is, it becomes a file, a directory, and the beginning of another image.
#[test]
fn every_source_becomes_a_file_or_a_directory() {
    need!(image, squashfs, userns);
    sources().unwrap();
}

fn sources() -> Outcome<()> {
    let mut env = place(Who::User)?;
    let run = env.ok(&["pull", "oci:layout:v1"])?;
    env.make_dir("home/pulled")?;
    env.ok(&["pull", "--dir", "pulled", "oci:layout:v1"])?;
    env.ok(&["pull", "--dir", "pulled", "named.sif", "oci:layout:v1"])?;
    assert!(env.path("home/pulled/layout_v1.sif").is_file() && env.path("home/pulled/named.sif").is_file());
    env.set("APPTAINER_TMPDIR", &env.path("no/such/place").to_string_lossy());
    let told = env.fails(&["build", "other.sif", "oci:layout"])?;
    assert!(told.contains("there is no directory $DIR/no/such/place"), "{told}");
    let elsewhere = env.make_dir("elsewhere")?;
    env.set("APPTAINER_TMPDIR", &elsewhere.to_string_lossy());
    assert!(run.err.ends_with("INFO:    Pulled: layout_v1.sif\n"), "{}", run.err);
    env.write(
        "home/file.def",
        "Bootstrap: localimage\nFrom: layout_v1.sif\n%post\n  : > /more\n%labels\n  own yes\n",
    )?;
    for (flags, image, from) in [
        (&[][..], "again.sif", "layout_v1.sif"),
        (&["--compression", "gzip"], "packed.sif", "oci:layout"),
        (&["--sandbox"], "directory", "again.sif"),
        (&["--sandbox"], "copy", "directory"),
        (&[], "of-directory.sif", "copy"),
        (&[], "defined.sif", "file.def"),
    ] {
        env.ok(&[&["build"], flags, &[image, from]].concat())
            .map_err(|e| format!("{image} of {from}: {e}"))?;
        assert_eq!(env.ok(&["run", image, "x"])?.out, "it says x\n", "{image} of {from}");
        let labels = env.ok(&["inspect", image])?.out;
        assert!(labels.contains("maintainer: nobody\n"), "{image} of {from}: {labels}");
    }
    let about = |flag: &str, image: &str| env.ok(&["inspect", flag, image]).map(|run| run.out);
    assert_eq!(about("-d", "layout_v1.sif")?, "bootstrap: oci\nfrom: layout:v1\n");
    assert!(about("-d", "defined.sif")?.contains("From: layout_v1.sif\n%post"));
    assert!(about("-l", "defined.sif")?.contains("own: yes\n"));
    assert!(about("-l", "oci:layout")?.contains("maintainer: nobody\n"));
    env.ok(&["exec", "defined.sif", "sh", "-c", "test -f /more"])?;
    let hidden = fs::read_dir(env.path("home"))?
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().contains(".partial"));
    assert_eq!(hidden.chain(fs::read_dir(elsewhere)?.flatten()).count(), 0, "something was left behind");
    env.finish()
}

/// What users start from: an image of a registry, a server written down in the definition file, a start script.
const SERVER: &str = r#"Bootstrap: docker
Registry: 127.0.0.1:PORT
Namespace: base
From: python:v1

%post
    mkdir -p /opt/app
    cat > /opt/app/server.py <<'EOF'
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

state = "0"

class Handler(BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(state)))
        self.end_headers()
        self.wfile.write(state.encode())

    def do_GET(self):
        self.answer()

    def do_POST(self):
        global state
        state = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
EOF

%startscript
    exec python3 /opt/app/server.py "$@"

%labels
    Author A Person
"#;

/// From a definition file to a server that was saved and brought back, as an ordinary user.
fn from_definition_to_restart(words: Words) -> Outcome<()> {
    let env = Env::new(Who::User)?;
    let registry = Registry::start(&env, Wants::Nothing)?;
    let python = image(&[layer_of(&env.site.image("server"))?], here(), &json!({ "Cmd": ["python3"] }));
    registry.fill(&env, &python.layout(&env, "layout")?, "base/python:v1", &[])?;
    env.write("home/server.def", &SERVER.replace("PORT", &registry.port.to_string()))?;
    env.ok(&["build", "server.sif", "server.def"])?;
    let sif = env.path("home/server.sif");
    assert_eq!(fs::read(&sif)?.get(32..41), Some(&b"SIF_MAGIC"[..]));
    assert_eq!(
        env.ok(&["inspect", "-d", "server.sif"])?.out.trim_end(),
        SERVER.replace("PORT", &registry.port.to_string()).trim_end()
    );
    drop(registry);
    transcript::once(&env, &sif, words, free_port()?, "server")?;
    env.finish()
}

#[test]
fn a_server_of_a_definition_file_with_dmtcp() {
    need!(image, squashfs, userns, registry, dmtcp);
    from_definition_to_restart(OURS).unwrap();
}

#[test]
fn a_server_of_a_definition_file_with_criu() {
    need!(image, squashfs, userns, registry, criu);
    from_definition_to_restart(CRIU).unwrap();
}

#[test]
fn a_server_of_a_definition_file_with_the_native_engine() {
    need!(image, squashfs, userns, registry);
    from_definition_to_restart(NATIVE).unwrap();
}
