//! `exec` and `shell` on a terminal: that it is one, its size, the keys that send signals, and that it is left as it was.

use crate::env::{Env, Who};
use crate::need::need;
use crate::running::Outcome;
use crate::terminal::Terminal;

const PLAIN: &[&str] = &[];
const ENGINE: &[&str] = &["--backend", "dmtcp", "--checkpoint", "kept"];

macro_rules! as_both {
    ($($name:ident)+) => { $( mod $name {
        use super::*;

        #[test]
        fn without_an_engine() {
            need!(image, userns);
            super::$name(PLAIN).unwrap();
        }

        #[test]
        fn under_an_engine() {
            need!(image, userns, dmtcp);
            super::$name(ENGINE).unwrap();
        }
    } )+ };
}

as_both! { size_and_resize interrupt_and_quit job_control }

fn start(env: &Env, engine: &[&str], verb: &str, words: &[&str]) -> Outcome<Terminal> {
    let image = env.site.image("small").to_string_lossy().into_owned();
    Terminal::start(env, &[&[verb], engine, &[&image], words].concat())
}

fn size_and_resize(engine: &[&str]) -> Outcome<()> {
    let env = Env::new(Who::User)?;
    let script = "tty >/dev/null && echo a terminal; stty size; trap 'stty size; exit 6' WINCH; echo ready; \
                  while :; do sleep 0.05; done";
    let mut terminal = start(&env, engine, "exec", &["sh", "-c", script])?;
    terminal.wait_for("ready\n")?;
    assert!(terminal.shown().contains("a terminal\n40 90\n"), "{}", terminal.shown());
    terminal.resize(31, 77)?;
    terminal.wait_for("31 77\n")?;
    assert_eq!(terminal.wait()?, 6);
    env.finish()
}

fn interrupt_and_quit(engine: &[&str]) -> Outcome<()> {
    let env = Env::new(Who::User)?;
    let script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let mut terminal = start(&env, engine, "exec", &["sh", "-c", script])?;
    let before = terminal.initial.clone();
    terminal.wait_for("ready\n")?;
    terminal.types("\x03")?;
    terminal.wait_for("interrupted\n")?;
    let settings = terminal.settings_at_end()?;
    assert_eq!(settings.0, 9);
    assert_eq!(settings.1, before, "the terminal is not left as it was");
    env.finish()
}

/// An interactive shell: lines are edited and echoed once, ^C ends a command but not the shell, ^Z and fg work.
fn job_control(engine: &[&str]) -> Outcome<()> {
    let env = Env::new(Who::User)?;
    let mut terminal = start(&env, engine, "shell", &[])?;
    // What is typed before somebody reads is echoed by the terminal too.
    terminal.wait_for("> ")?;
    terminal.types("echo one$((1 + 1))three\n")?;
    terminal.wait_for("one2three\n")?;
    assert_eq!(terminal.shown().matches("echo one$((1 + 1))three").count(), 1, "{}", terminal.shown());
    terminal.types("set -m; echo set; sleep 600\n")?;
    terminal.wait_for("\nset\n")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.types("\x03")?;
    terminal.types("echo still $((40 + 2))\n")?;
    terminal.wait_for("still 42\n")?;
    // DMTCP 5.0 by itself, without any container, does not let a stopped job go on; to be tried with later versions.
    if engine.is_empty() {
        // Without a process of its own: one that is stopped between its fork and its exec lets the shell wait on.
        terminal
            .types("sh -c 'echo begun; i=0; while [ $i -lt 500000 ]; do i=$((i + 1)); done; echo done'\n")?;
        terminal.wait_for("\nbegun\n")?;
        terminal.types("\x1a")?;
        terminal.wait_for("Stopped")?;
        terminal.types("fg\n")?;
        terminal.wait_for("\ndone\n")?;
    }
    terminal.types("exit 8\n")?;
    assert_eq!(terminal.wait()?, 8);
    env.finish()
}
