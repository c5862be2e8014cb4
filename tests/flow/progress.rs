//! How far a download is: shown to whoever sits at a terminal, and nobody else.

use std::time::Duration;

use crate::env::{Env, Who};
use crate::need::need;
use crate::registry::{Answer, Odd, small};
use crate::running::Outcome;
use crate::terminal::Terminal;

/// A registry from which the layer takes two seconds, longer than nothing is shown.
fn slow(env: &Env) -> Outcome<Odd> {
    let made = small(env)?;
    let (bytes, of) = (made.layers[0].bytes.clone(), made.layers[0].digest.clone());
    Odd::with(&made, move |(path, _), _| {
        let answer = Answer { pause: Duration::from_millis(200), ..Answer::new(200, bytes.clone()) };
        path.contains(of.as_str()).then_some(answer)
    })
}

#[test]
fn a_pull_shows_a_bar_on_a_terminal() {
    need!(image, userns, squashfs);
    let mut env = Env::new(Who::User).unwrap();
    env.set("TERM", "xterm");
    let registry = slow(&env).unwrap();
    let name = registry.name("team/small:v1");
    let mut terminal = Terminal::start(&env, &["pull", "image.sif", &name]).unwrap();
    terminal.wait_for("fetching small:v1 [=").unwrap();
    terminal.wait_for("MiB of ").unwrap();
    terminal.wait_for(" left").unwrap();
    terminal.wait_for("Pulled: image.sif\n").unwrap();
    // It moves, and nothing of it stays: the last thing done to its line is to clear it.
    let shown = terminal.shown();
    let states: std::collections::BTreeSet<&str> =
        shown.split("fetching small:v1 ").skip(1).filter_map(|text| text.split(" of ").next()).collect();
    assert!(states.len() > 2, "the bar stands still: {states:?}");
    let after = shown.rsplit(" left").next().unwrap_or_default();
    assert!(after.trim_start().starts_with("\x1b[2K"), "the bar stays: {after:?}");
    assert_eq!(terminal.wait().unwrap(), 0);
    // Where no word is wanted there is none.
    env.ok(&["cache", "clean", "--all"]).unwrap();
    let terminal = Terminal::start(&env, &["-q", "pull", "--force", "image.sif", &name]).unwrap();
    let quiet = terminal.wait_with_all().unwrap();
    assert_eq!(quiet, (0, String::new()));
    env.finish().unwrap();
}

#[test]
fn a_pull_into_a_pipe_shows_none() {
    need!(image, userns, squashfs);
    let mut env = Env::new(Who::User).unwrap();
    env.set("TERM", "xterm");
    let registry = slow(&env).unwrap();
    let run = env.ok(&["pull", "image.sif", &registry.name("team/small:v1")]).unwrap();
    insta::assert_snapshot!(env.told(&run), @"
    exit 0
    INFO:    Creating SIF file...
    INFO:    Pulled: image.sif
    ");
    env.finish().unwrap();
}
