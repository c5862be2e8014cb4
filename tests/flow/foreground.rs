//! `exec`, `run` and `shell` in the foreground: exit codes, signals, pipes; the same under an engine.

use nix::sys::signal::Signal;

use crate::env::{Env, Who};
use crate::need::need;
use crate::running::Outcome;

/// Without an engine, and under one.
const PLAIN: &[&str] = &[];
const ENGINE: &[&str] = &["--backend", "dmtcp", "--checkpoint", "kept"];

struct Place {
    env: Env,
    engine: &'static [&'static str],
}

impl Place {
    fn new(who: Who, engine: &'static [&'static str]) -> Outcome<Self> {
        Ok(Self { env: Env::new(who)?, engine })
    }

    /// The words of a command in a test image.
    fn words<'a>(&'a self, verb: &'a str, image: &'a str, words: &[&'a str]) -> Vec<&'a str> {
        [&[verb], self.engine, &[image], words].concat()
    }

    fn image(&self, name: &str) -> String {
        self.env.site.image(name).to_string_lossy().into_owned()
    }
}

macro_rules! as_all {
    ($($name:ident)+) => { $( mod $name {
        use super::*;

        #[test]
        fn as_root() {
            need!(root, image);
            super::$name(Who::Myself, PLAIN).unwrap();
        }

        #[test]
        fn as_an_ordinary_user() {
            need!(image, userns);
            super::$name(Who::User, PLAIN).unwrap();
        }

        #[test]
        fn under_an_engine_as_root() {
            need!(root, image, dmtcp);
            super::$name(Who::Myself, ENGINE).unwrap();
        }

        #[test]
        fn under_an_engine_as_an_ordinary_user() {
            need!(image, userns, dmtcp);
            super::$name(Who::User, ENGINE).unwrap();
        }
    } )+ };
}

as_all! { exit_codes pipes standard_input signals scripts processors }

fn exit_codes(who: Who, engine: &'static [&'static str]) -> Outcome<()> {
    let place = Place::new(who, engine)?;
    let small = place.image("small");
    for (script, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("sleep 0.01; exit 37", 37),
    ] {
        let run = place.env.stasis(&place.words("exec", &small, &["sh", "-c", script]))?;
        assert_eq!(run.code, code, "{script}: {}", run.err);
        assert_eq!(run.out, "", "{script}");
    }
    place.env.finish()
}

fn pipes(who: Who, engine: &'static [&'static str]) -> Outcome<()> {
    let place = Place::new(who, engine)?;
    let small = place.image("small");
    let script = "n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); echo a line of some length; done; \
                  echo to stderr >&2; exit 5";
    let run = place.env.stasis(&place.words("exec", &small, &["sh", "-c", script]))?;
    let long = "a line of some length\n".repeat(20_000);
    assert_eq!(run.code, 5, "{}", run.err);
    assert!(run.out == long, "{} of {} bytes came through", run.out.len(), long.len());
    assert!(run.err.ends_with("to stderr\n"), "{}", run.err);
    place.env.finish()
}

fn standard_input(who: Who, engine: &'static [&'static str]) -> Outcome<()> {
    let place = Place::new(who, engine)?;
    let small = place.image("small");
    let mut running = place.env.spawn(&place.words("exec", &small, &["cat"]))?;
    let long = "a line of some length\n".repeat(20_000);
    drop(running.feed(&long)?);
    let run = running.wait()?;
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out == long, "{} of {} bytes came through", run.out.len(), long.len());
    let mut shell = place.env.spawn(&place.words("shell", &small, &[]))?;
    drop(shell.feed("echo in the shell of $STASIS_TEST_IMAGE; exit 4\n")?);
    let shell = shell.wait()?;
    assert_eq!((shell.code, shell.out.as_str()), (4, "in the shell of small\n"), "{}", shell.err);
    place.env.finish()
}

fn signals(who: Who, engine: &'static [&'static str]) -> Outcome<()> {
    let place = Place::new(who, engine)?;
    let small = place.image("small");
    let script = "trap 'echo got it; exit 7' TERM USR1 HUP INT; echo ready; while :; do sleep 0.05; done";
    for signal in [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGHUP, Signal::SIGINT] {
        let running = place.env.spawn(&place.words("exec", &small, &["sh", "-c", script]))?;
        running.wait_for("ready")?;
        running.signal(signal)?;
        let run = running.wait()?;
        assert_eq!((run.code, run.out.as_str()), (7, "ready\ngot it\n"), "{signal}: {}", run.err);
    }
    let running =
        place.env.spawn(&place.words("exec", &small, &["sh", "-c", "echo ready; exec sleep 600"]))?;
    running.wait_for("ready")?;
    running.signal(Signal::SIGTERM)?;
    assert_eq!(running.wait()?.code, 143);
    place.env.finish()
}

fn scripts(who: Who, engine: &'static [&'static str]) -> Outcome<()> {
    let place = Place::new(who, engine)?;
    let small = place.image("small");
    let run = place.env.ok(&place.words("run", &small, &["sh", "-c", "echo $STASIS_TEST_IMAGE"]))?;
    assert_eq!(run.out, "small\n");
    // Another image, so another checkpoint.
    let place = Place { env: Env::new(who)?, ..place };
    let plain = place.image("plain");
    let run = place.env.ok(&place.words("run", &plain, &["echo", "two words", "*"]))?;
    assert_eq!(run.out, "two words *\nafter\n");
    place.env.finish()
}

/// The first process gets ready on a processor of its own; neither it nor what it starts is kept there.
fn processors(who: Who, engine: &'static [&'static str]) -> Outcome<()> {
    fn lists(status: &str) -> Vec<&str> {
        status.lines().filter(|line| line.starts_with("Cpus_allowed_list")).collect()
    }
    let place = Place::new(who, engine)?;
    let small = place.image("small");
    let ours = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let words = place.words("exec", "--pid", &[&small, "cat", "/proc/self/status", "/proc/1/status"]);
    let run = place.env.ok(&words)?;
    assert_eq!(lists(&run.out), [lists(&ours), lists(&ours)].concat());
    place.env.finish()
}

#[test]
fn what_a_container_shows() {
    need!(image, userns);
    shows().unwrap();
}

fn shows() -> Outcome<()> {
    let mut env = Env::new(Who::User)?;
    env.set("APPTAINERENV_FROM_OUTSIDE", "yes");
    env.set("KEPT", "as it was");
    let small = env.site.image("small").to_string_lossy().into_owned();
    let work = env.make_dir("work")?;
    std::fs::write(work.join("file"), "bound\n")?;
    let said = |words: &[&str]| env.ok(words).map(|run| run.out);
    let in_sh = |script: &str| said(&["exec", &small, "sh", "-c", script]);
    assert_eq!(
        in_sh("echo $FROM_OUTSIDE, $KEPT, $HOME")?,
        format!("yes, as it was, {}\n", env.path("home").display())
    );
    assert_eq!(in_sh("pwd")?, format!("{}\n", env.path("home").display()));
    assert_eq!(said(&["exec", "-e", &small, "sh", "-c", "echo $KEPT."])?, ".\n");
    assert_eq!(said(&["exec", "--env", "A=1", &small, "sh", "-c", "echo $A"])?, "1\n");
    assert_eq!(said(&["exec", "--cwd", "/usr", &small, "pwd"])?, "/usr\n");
    let bind = format!("{}:/opt/bound:ro", work.display());
    assert_eq!(said(&["exec", "-B", &bind, &small, "cat", "/opt/bound/file"])?, "bound\n");
    let written = env.stasis(&["exec", "-B", &bind, &small, "touch", "/opt/bound/new"])?;
    assert!(written.code == 1 && written.err.contains("Read-only file system"), "{written:?}");
    // An image is not changed by running it, not even by whom it belongs to.
    let mine = env.copy_image("small", "mine")?;
    let name = mine.to_string_lossy().into_owned();
    let written = env.stasis(&["exec", &name, "touch", "/usr/new"])?;
    assert!(written.code == 1 && written.err.contains("Read-only file system"), "{written:?}");
    env.ok(&["exec", "--writable", &name, "touch", "/usr/new"])?;
    assert!(mine.join("usr/new").exists());
    assert_eq!(
        said(&["exec", "--writable-tmpfs", &name, "sh", "-c", "touch /usr/newer && echo ok"])?,
        "ok\n"
    );
    assert!(!mine.join("usr/newer").exists());
    assert_eq!(in_sh("touch $HOME/made && echo ok")?, "ok\n");
    assert!(env.path("home/made").exists());
    // Nothing is gained inside.
    let capabilities =
        in_sh("while read a b; do case $a in CapEff:) echo $b;; esac; done </proc/self/status")?;
    assert_eq!(capabilities.trim_matches(['0', '\n']), "");
    env.finish()
}

#[test]
fn an_image_that_lacks_the_mount_points() {
    need!(image, userns);
    for who in [Who::User, Who::Myself] {
        lacks(who).unwrap();
    }
}

/// The image is as a rule somebody else's, and its directories are closed to the user.
fn lacks(who: Who) -> Outcome<()> {
    let env = Env::new(who)?;
    let small = env.site.image("small").to_string_lossy().into_owned();
    env.make_dir("work")?;
    let file = env.write("work/file", "bound\n")?;
    let kept = env.make_dir("kept")?.to_string_lossy().into_owned();
    let directory = format!("{}:/etc/deep/er", env.path("work").display());
    let single = format!("{}:/usr/share/single", file.display());
    let top = format!("{}:/top", env.path("work").display());
    let few: &[&str] = &["-B", &directory, "-B", &single];
    let all: &[&str] = &["-B", &directory, "-B", &single, "-B", &top];
    let script = "cat /etc/deep/er/file /usr/share/single; \
                  for f in /etc/passwd /etc/group /bin/sh /usr/bin/env; do [ -r $f ] || echo no $f; done; \
                  while IFS=: read -r name x uid rest; do [ $uid != $1 ] || echo known; done </etc/passwd; \
                  (: >>/etc/passwd) 2>/dev/null && echo passwd can be written; \
                  (: >/etc/deep/new) 2>/dev/null && echo etc can be written; exit 0";
    let uid = env.uid().to_string();
    for (flags, says) in [
        (&[][..], "bound\nbound\nknown\n"),
        (&["--contain"], "bound\nbound\nknown\n"),
        (&["--writable-tmpfs"], "bound\nbound\nknown\netc can be written\n"),
        (&["--overlay", &kept], "bound\nbound\nknown\netc can be written\n"),
    ] {
        for binds in [few, all] {
            let words = [&["exec"], flags, binds, &[&small, "sh", "-c", script, "sh", &uid]].concat();
            assert_eq!(env.ok(&words)?.out, says, "{words:?}");
        }
    }
    for place in ["etc/deep", "usr/share/single", "top"] {
        assert!(!env.site.image("small").join(place).exists(), "the image has got {place}");
    }
    env.finish()
}

#[test]
fn a_run_is_saved_from_another_command_and_goes_on() {
    need!(image, userns, dmtcp);
    run_is_saved(Who::User).unwrap();
}

#[test]
fn a_run_is_saved_from_another_command_and_goes_on_as_root() {
    need!(root, image, dmtcp);
    run_is_saved(Who::Myself).unwrap();
}

fn run_is_saved(who: Who) -> Outcome<()> {
    let env = Env::new(who)?;
    let any = env.site.image("any").to_string_lossy().into_owned();
    // It starts no program: one that does it just when it is to be saved waits for DMTCP 5.0 for ever, now and then.
    let script = "import itertools, time\nfor n in itertools.count(1): print(f'line {n}.', flush=True); time.sleep(0.05)";
    let first =
        env.spawn(&["run", "--backend", "dmtcp", "--checkpoint", "kept", &any, "python3", "-c", script])?;
    first.wait_for("line 5.")?;
    let listed: serde_json::Value = serde_json::from_str(&env.ok(&["instance", "list", "--json"])?.out)?;
    let name = listed["instances"][0]["instance"].as_str().ok_or("the run has no record")?.to_owned();
    env.ok(&["checkpoint", "instance", &name])?;
    let saved = first.so_far().lines().count();
    first.wait_for(&format!("line {}.", saved + 5))?;
    first.signal(Signal::SIGTERM)?;
    let first = first.wait()?;
    assert_eq!(first.code, 143, "{}", first.err);

    let second = env.spawn(&["run", "--restart", "kept", &any])?;
    second.wait_for(&format!("line {}.", saved + 10))?;
    second.signal(Signal::SIGTERM)?;
    let second = second.wait()?;
    assert_eq!(second.code, 143, "{}", second.err);
    // Each line once and in order: none is lost, none comes again.
    let numbers = |text: &str| -> Vec<usize> {
        text.lines().filter_map(|line| line.strip_prefix("line ")?.strip_suffix('.')?.parse().ok()).collect()
    };
    let (before, after) = (numbers(&first.out), numbers(&second.out));
    assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1), "{after:?}");
    assert!(
        (2..=saved + 1).contains(&after[0]) && before.contains(&(after[0] - 1)),
        "{after:?} after {saved}"
    );
    env.finish()
}
