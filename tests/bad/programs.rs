//! Programs that an engine cannot save, are not there, or end at once.

use std::process::Command;

use super::*;
use crate::need::need;

/// `verb` is `exec` for the foreground or the words of an instance.
fn told(env: &Env, words: &[&str]) -> String {
    let small = image(env, "small");
    let all =
        [&["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "one"], words].concat();
    env.fails(&all).unwrap_or_else(|why| format!("{why}"))
}

#[test]
fn programs_that_this_engine_cannot_save() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    env.configure("order = [\"dmtcp\"]\n[backends.dmtcp]\n[backends.native]\n").unwrap();
    let small = image(&env, "small");
    let exec = |program: &str| {
        let program = format!("/opt/subjects/bin/{program}");
        let run = env.stasis(&["exec", "--backend", "dmtcp", "--checkpoint", "kept", &small, &program, "5"]);
        env.told(&run.unwrap())
    };
    insta::assert_snapshot!(exec("idle-static"), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: /opt/subjects/bin/idle-static: it is statically linked: DMTCP works by a library that such a program does not load
             hint:    take a dynamically linked build, or another backend; what can save it here: --backend native
    ");
    insta::assert_snapshot!(exec("idle-setuid"), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: /opt/subjects/bin/idle-setuid: it is setuid or setgid, and the loader then ignores DMTCP's library
             hint:    take the bit away in the image, or take another backend; what can save it here: --backend native
    ");
    insta::assert_snapshot!(exec("no-interpreter"), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: /no/such/interpreter: there is no such program in the image
             hint:    check the name
    ");
    assert_eq!(env.ok(&["instance", "list"]).unwrap().out.lines().count(), 1);
    env.finish().unwrap();
}

#[test]
fn a_program_with_musl_that_this_engine_cannot_save() {
    need!(image, userns, dmtcp, musl);
    let env = Env::new(Who::User).unwrap();
    env.configure("order = [\"dmtcp\"]\n[backends.dmtcp]\n[backends.native]\n").unwrap();
    let small = image(&env, "small");
    let program = "/opt/subjects/bin/idle-musl";
    let exec = ["exec", "--backend", "dmtcp", "--checkpoint", "kept", &small, program, "5"];
    insta::assert_snapshot!(env.fails(&exec).unwrap(), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: /opt/subjects/bin/idle-musl: it uses musl: DMTCP works with glibc only
             hint:    take an image with glibc, or another backend; what can save it here: --backend native
    ");
    assert_eq!(env.ok(&["instance", "list"]).unwrap().out.lines().count(), 1);
    env.finish().unwrap();
}

/// What is missing of glibc in an image is said before anything runs: it is the one thing that no engine may bring along.
#[test]
fn images_whose_c_library_is_not_what_this_engine_needs() {
    need!(image, userns, dmtcp, musl);
    let env = Env::new(Who::User).unwrap();
    env.configure("order = [\"dmtcp\"]\n[backends.dmtcp]\n[backends.native]\n").unwrap();
    let told = |name: &str, words: &[&str]| {
        let image = env.path(name).to_string_lossy().into_owned();
        let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &image, "one"];
        let told = env.fails(&[&start[..], words].concat()).unwrap();
        let checked = env.fails(&["backend", "check", "dmtcp", &image]).unwrap();
        let why = told.lines().find(|line| line.contains("because")).unwrap_or_default();
        let why = why.rsplit(": ").next().unwrap_or_default();
        assert!(checked.contains(why), "{why}: {checked}");
        versions_hidden(&told)
    };
    let change = |name: &str, script: &str| {
        let image = env.copy_image("small", name).unwrap();
        let out = Command::new("sh").args(["-ec", script]).current_dir(&image).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    change("part", "find . -name 'libm.so.6' -delete -o -name 'libm-*.so' -delete");
    insta::assert_snapshot!(told("part", &[IDLE]), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: the image $DIR/part: DMTCP V at $PREFIX needs libm.so.6 of glibc, which the image does not have
             hint:    put the whole glibc into the image (Debian: libc6), or take another backend; what can save it here: --backend native
    ");
    change(
        "no-loader",
        "mv usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 usr/lib/ld.so; rm -f usr/lib64/* lib64/*",
    );
    insta::assert_snapshot!(told("no-loader", &["/opt/subjects/bin/idle-static"]), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: the image $DIR/no-loader: DMTCP V at $PREFIX needs /lib64/ld-linux-x86-64.so.2 of glibc, which the image does not have
             hint:    put the whole glibc into the image (Debian: libc6), or take another backend; what can save it here: --backend native
    ");
    change("none", "find . -name 'libc.so.6' -delete -o -name 'ld-musl-*' -delete");
    insta::assert_snapshot!(told("none", &["/opt/subjects/bin/idle-static"]), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: the image $DIR/none: the image has no libc.so.6 in lib64, lib/x86_64-linux-gnu, usr/lib/x86_64-linux-gnu, usr/lib64, lib/aarch64-linux-gnu, usr/lib/aarch64-linux-gnu, lib, usr/lib, and DMTCP works with glibc only
             hint:    take an image with glibc, or another backend; what can save it here: --backend native
    ");
    change("musl", "find . -name 'libc.so.6' -delete");
    insta::assert_snapshot!(told("musl", &["/opt/subjects/bin/idle-musl"]), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: the image $DIR/musl: the image uses musl, and DMTCP works with glibc only
             hint:    take an image with glibc, or another backend; what can save it here: --backend native
    ");
    // One that stands for an old glibc: what the loader would look at is there, and nothing of it runs.
    let script = "echo 'GLIBC_2.2.5 {}; GLIBC_2.14 {}; GLIBC_2.28 {};' > map
        find . -name libc.so.6 | while read file; do echo | gcc -shared -nostdlib -x c - -o \"$file\" \
            -Wl,--version-script=map -Wl,-soname=libc.so.6; done";
    change("old", script);
    insta::assert_snapshot!(told("old", &["/opt/subjects/bin/idle-static"]), @"
    exit 255
    FATAL:   DMTCP cannot save this program
             because: the image $DIR/old: DMTCP V at $PREFIX needs glibc V, and the image has glibc 2.28
             hint:    let the administrator install a DMTCP built against an older glibc, and name it in `prefixes`; what can save it here: --backend native
    ");
    assert_eq!(env.ok(&["instance", "list"]).unwrap().out.lines().count(), 1);
    env.finish().unwrap();
}

/// Which DMTCP that is, and which glibc it was built with, differs from host to host.
fn versions_hidden(text: &str) -> String {
    let is_version = |word: &str| {
        word.contains('.') && word != "2.28" && word.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    let mut before = "";
    let mut words = Vec::new();
    for word in text.split(' ') {
        let plain = word.trim_end_matches(',');
        words.push(match before {
            _ if is_version(plain) => word.replace(plain, "V"),
            "at" => "$PREFIX".to_owned(),
            _ => word.to_owned(),
        });
        before = word;
    }
    words.join(" ")
}

/// What the start script runs is known only when it runs.
#[test]
fn programs_behind_a_start_script_that_this_engine_cannot_save() {
    need!(image, userns, dmtcp);
    for program in ["idle-static", "idle-setuid", "no-interpreter"] {
        behind_a_start_script(program).unwrap();
    }
}

#[test]
fn a_program_with_musl_behind_a_start_script() {
    need!(image, userns, dmtcp, musl);
    behind_a_start_script("idle-musl").unwrap();
}

fn behind_a_start_script(program: &str) -> Outcome<()> {
    let env = Env::new(Who::User)?;
    let (small, path) = (image(&env, "small"), format!("/opt/subjects/bin/{program}"));
    let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "one", &path];
    let run = env.stasis(&start)?;
    assert_ne!(run.code, 0, "{program}: told as success: {run:?}");
    assert_eq!(env.ok(&["instance", "list"])?.out.lines().count(), 1, "{program}");
    env.finish()
}

#[test]
fn programs_that_are_not_found_or_end_at_once_under_an_engine() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    // The moment at which it ends decides who notices: whoever it is has to tell.
    for _ in 0..3 {
        for (words, reason) in [
            (&["/no/such/program"][..], "not found"),
            (&["no-such-program"], "not found"),
            (&["/etc/passwd"], "ermission denied"),
            (&["sh", "-c", "echo went wrong >&2; exit 3"], "went wrong"),
            (&["sh", "-c", "sleep 0.05; echo went wrong >&2; exit 3"], "went wrong"),
        ] {
            let told = told(&env, words);
            assert!(told.starts_with("exit 255\n") && told.contains(reason), "{words:?}: {told}");
        }
    }
    insta::assert_snapshot!(told(&env, &["sh", "-c", "echo went wrong >&2; exit 3"]), @"
    exit 255
    FATAL:   the application ended while it was started
             because: exit 3
             | went wrong
    ");
    assert_eq!(env.ok(&["instance", "list"]).unwrap().out.lines().count(), 1);
    // Nothing of it binds the checkpoint: the next start, which works, does.
    let small = image(&env, "small");
    env.ok(&["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "one", IDLE])
        .unwrap();
    env.finish().unwrap();
}

#[test]
fn programs_that_are_not_found_or_end_at_once() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let exec = |program: &str| env.fails(&["exec", &small, program]).unwrap();
    insta::assert_snapshot!(exec("/no/such/program"), @r#"
    exit 255
    FATAL:   "/no/such/program": no such file
    "#);
    insta::assert_snapshot!(exec("no-such-program"), @r#"
    exit 255
    FATAL:   "no-such-program": executable file not found in $PATH
    "#);
    insta::assert_snapshot!(exec("/etc/passwd"), @r#"
    exit 255
    FATAL:   "/etc/passwd": permission denied
    "#);
    insta::assert_snapshot!(exec("/opt/subjects/bin/no-interpreter"), @"
    exit 127
    stasis: 65: exec: /opt/subjects/bin/no-interpreter: not found
    ");
    // Without an engine every kind of program runs.
    for program in ["idle", "idle-static", "idle-setuid"] {
        let run = env.stasis(&["exec", &small, &format!("/opt/subjects/bin/{program}"), "5"]).unwrap();
        assert_eq!((run.code, run.out.as_str()), (5, "up\n"), "{program}: {}", run.err);
    }
    env.finish().unwrap();
}

#[test]
fn the_exit_of_an_instance_is_kept() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let bind = format!("{}:/srv", env.make_dir("host").unwrap().display());
    let script = "until [ -e /srv/end ]; do sleep 0.05; done; exit 9";
    env.ok(&["instance", "start", "-B", &bind, &small, "one", "sh", "-c", script]).unwrap();
    env.write("host/end", "").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while record(&env, "one").unwrap()["ended"].is_null() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let list = env.ok(&["instance", "list"]).unwrap().out;
    assert!(!list.contains("running"), "an ended instance is listed as running: {list}");
    let state = record(&env, "one").unwrap()["state"].to_string();
    assert!(state.contains('9'), "the exit code is not kept: {state}");
    env.finish().unwrap();
}
