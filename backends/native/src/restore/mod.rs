//! The engine's `restore`: an image becomes processes again, with their old pids, in the namespaces in which it runs.
//!
//! Everything is checked and opened before the first process is made. Until the last step nothing runs: whatever fails
//! ends the half-built tree.

pub(crate) mod check;
mod late;
mod layout;
mod machine;
mod memory;
mod objects;
mod pinned;
mod readers;
mod remote;
pub(crate) mod skeleton;
mod surroundings;
mod table;
mod talk;
mod threads;

use crate::lock::{self, Lock};
use crate::model::{Credentials, Image, Process, State};
use crate::sys::{process, ptrace, task};
use memory::How;
use objects::Made;
use pinned::Pinned;
use readers::Crew;
use remote::Remote;
use serde_json::json;
use stasis_plugin_api::prelude::*;
use std::path::PathBuf;
use std::time::Instant;
use talk::Talk;

const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;
/// What was asked for.
#[derive(Debug, Default)]
struct Order {
    dir: PathBuf,
    pid_file: Option<PathBuf>,
    how: Option<How>,
    /// Held by what works behind restarts.
    lock: Option<PathBuf>,
    /// Over which it tells that it is loaded, and is told that the container's root is there.
    talk: Option<i32>,
    /// Where the image is before that.
    ahead: Option<PathBuf>,
}

impl Order {
    /// Nothing is said yet of what is to come back.
    fn is_to_come(&self) -> bool {
        self.dir.as_os_str().is_empty()
    }
}

/// `--dir DIR [--map | --copy] [--pid-file FILE] [--lock FILE] [--talk FD --ahead DIR]`. Copying is the rule: memory that
/// is mapped from the image is not quite what it was. `madvise(MADV_DONTNEED)`, after which a program may count on zeros,
/// brings the saved content back.
fn order(arguments: &[String]) -> Result<Order> {
    let mut order = Order::default();
    let mut words = arguments.iter();
    let missing = |word: &str| BackendError::failed(format!("restore: {word} takes a path"));
    while let Some(word) = words.next() {
        match word.as_str() {
            "--dir" => order.dir = words.next().ok_or_else(|| missing(word))?.into(),
            "--pid-file" => order.pid_file = Some(words.next().ok_or_else(|| missing(word))?.into()),
            "--lock" => order.lock = Some(words.next().ok_or_else(|| missing(word))?.into()),
            "--ahead" => order.ahead = Some(words.next().ok_or_else(|| missing(word))?.into()),
            "--talk" => {
                let number = words.next().and_then(|fd| fd.parse().ok());
                let wrong = || BackendError::failed(format!("restore: {word} takes a number"));
                order.talk = Some(number.ok_or_else(wrong)?);
            }
            "--map" => order.how = Some(How::Map),
            "--copy" => order.how = Some(How::Copy),
            other => return Err(BackendError::failed(format!("restore knows no {other:?}"))),
        }
    }
    Ok(order)
}

/// The whole order. What was started before it was known what is to come back hears that.
fn told(order: Order) -> Result<(Order, Option<Talk>)> {
    let mut talk = order.talk.map(Talk::over).transpose()?;
    let order = match &mut talk {
        Some(talk) if order.is_to_come() => self::order(&talk.words()?)?,
        _ => order,
    };
    if order.is_to_come() {
        Err(BackendError::failed("restore: --dir takes a path"))
    } else {
        Ok((order, talk))
    }
}

/// Rebuilds what a directory holds. The answer tells how long each part took.
pub(crate) fn run(arguments: &[String]) -> Result<serde_json::Value> {
    let order = order(arguments)?;
    let waited = order.is_to_come();
    let (order, talk) = told(order)?;
    let early = talk.is_some();
    let ahead = talk.map(|talk| talk.ahead(order.ahead.as_deref())).transpose()?.flatten();
    let understood = ahead.is_some();
    let _lock = order.lock.as_deref().map(|path| Lock::take(path, lock::PATIENCE)).transpose()?;
    let began = Instant::now();
    let image = ahead.map_or_else(|| check::load(&order.dir).and_then(fitting), Ok)?;
    let engine = engine()?;
    process::take_what_is_allowed();
    let how = order.how.unwrap_or(How::Copy);
    let checked = began.elapsed();
    let made = objects::make(&order.dir, &image)?;
    let opened = began.elapsed();
    // Before they become one.
    let usual = process::affinity(0).unwrap_or_default();
    let pinned = Pinned::here(&image, how, &usual);
    let crew = Crew { processors: count(&usual), pinned: pinned.as_ref() };
    let mut tree = Tree { pids: vec![image.root], released: false };
    skeleton::make(&image, &made).inspect_err(|error| tree.keep_others(error))?;
    let born = began.elapsed();
    let remotes = rebuild(&image, &made, &engine, (how, &crew), &mut tree)?;
    let filled = began.elapsed();
    finish(&image, &made, &remotes, pinned.as_ref())?;
    if let Some(path) = &order.pid_file {
        std::fs::write(path, format!("{}\n", image.root))
            .map_err(|e| BackendError::failed(format!("cannot write {}", path.display())).because(e))?;
    }
    objects::seal(&image, &made)?;
    objects::quiet(&image, &made)?;
    objects::arm(&image, &made)?;
    // Pipes and connections end when their last holder does, which must not be this process.
    drop(made);
    release(&image)?;
    tree.released = true;
    let us = |end: std::time::Duration, start: std::time::Duration| (end - start).as_micros();
    let whole = began.elapsed();
    Ok(json!({
        "mode": if how == How::Map { "map" } else { "copy" },
        "early": early,
        "waited": waited,
        "ahead": understood,
        "check_us": us(checked, std::time::Duration::ZERO),
        "objects_us": us(opened, checked),
        "processes_us": us(born, opened),
        "memory_us": us(filled, born),
        "finish_us": us(whole, filled),
        "restart_us": whole.as_micros(),
    }))
}

/// An image that can be rebuilt by this process on this machine.
fn fitting(image: Image) -> Result<Image> {
    check::not_of(&image)?;
    surroundings::fit(&image.machine)?;
    skeleton::kinship(&image)?;
    Ok(image)
}

/// Reads the description of an image as a restart does, and looks at everything that it can be refused for before
/// anything is made. The answer is a description of the same image.
///
/// # Errors
/// What is wrong with it.
pub fn judge(core: &[u8]) -> Result<Vec<u8>> {
    let image = check::parse(core)?;
    skeleton::kinship(&image)?;
    serde_json::to_vec(&image).map_err(|e| BackendError::failed("the image cannot be written").because(e))
}

/// What was made so far; it ends when the restart fails.
#[derive(Debug)]
struct Tree {
    pids: Vec<i32>,
    released: bool,
}

impl Tree {
    /// Whoever has the root's pid already is none of ours. Everybody else dies with the root.
    fn keep_others(&mut self, error: &BackendError) {
        let root = self.pids.first().map(|pid| format!("cannot make a process with pid {pid}"));
        if root.as_deref() == Some(error.what.as_str()) {
            self.pids.clear();
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if !self.released {
            for pid in self.pids.iter().rev() {
                // It may have ended by itself.
                let _ = process::kill(*pid, SIGKILL);
            }
        }
    }
}

fn engine() -> Result<Credentials> {
    let mut credentials = crate::proc::status::parse(&crate::proc::own("status")?)?.credentials;
    let bits = task::prctl(libc::PR_GET_SECUREBITS, 0).unwrap_or(0);
    credentials.securebits = bits.cast_unsigned();
    Ok(credentials)
}

fn living(image: &Image) -> impl Iterator<Item = &Process> {
    image.processes.iter().filter(|p| !matches!(p.state, State::Zombie { .. }))
}

/// Memory and threads of every process.
fn rebuild(
    image: &Image,
    made: &Made,
    engine: &Credentials,
    (how, crew): (How, &Crew<'_>),
    tree: &mut Tree,
) -> Result<Vec<Remote>> {
    let mut remotes = Vec::new();
    for process in living(image) {
        if process.pid != image.root {
            tree.pids.push(process.pid);
        }
        remotes.push(Remote::attach(process.pid)?);
    }
    for (remote, process) in remotes.iter_mut().zip(living(image)) {
        late::group(remote, image, process)?;
        layout::clear(remote, process)?;
        memory::fill(remote, process, made, how, crew)?;
    }
    for (remote, process) in remotes.iter().zip(living(image)) {
        late::unpark(remote, image, process, made)?;
        threads::make(remote, process)?;
        late::descriptors(remote, image, process)?;
    }
    let here = process::limits(0)
        .map_err(|e| BackendError::failed("cannot read the engine's own limits").because(e.desc()))?;
    for (remote, process) in remotes.iter().zip(living(image)) {
        late::watches(remote, image, process)?;
        threads::settle(remote, process, engine, &here)?;
    }
    Ok(remotes)
}

/// Everything that begins to act as soon as it is there.
fn finish(image: &Image, made: &Made, remotes: &[Remote], pinned: Option<&Pinned>) -> Result<()> {
    objects::owners(image, made)?;
    for (remote, process) in remotes.iter().zip(living(image)) {
        late::signals(remote, process)?;
        late::last(remote, process)?;
        threads::finish(process)?;
        scheduling(process, pinned);
    }
    Ok(())
}

/// What another process may set. Values beyond what this user may have stay at what it may.
fn scheduling(process: &Process, pinned: Option<&Pinned>) {
    for thread in &process.threads {
        pinned.inspect(|pinned| pinned.let_go(thread.tid));
        if thread.policy != 0 {
            let policy = i32::try_from(thread.policy).unwrap_or(0);
            let _ = task::set_policy(thread.tid, policy, thread.priority);
        }
        if task::nice(thread.tid) != Some(thread.nice) {
            let _ = task::set_nice(thread.tid, thread.nice);
        }
        affinity(thread.tid, &thread.affinity);
        if let Some(slack) = thread.slack.filter(|slack| task::slack(thread.tid) != Some(*slack)) {
            let _ = task::set_slack(thread.tid, slack);
        }
        if task::io_priority(thread.tid) != Ok(thread.io_priority) {
            let _ = task::set_io_priority(thread.tid, thread.io_priority);
        }
    }
}

fn count(processors: &[u64]) -> usize {
    processors.iter().map(|word| word.count_ones() as usize).sum()
}

/// Only a choice is brought back, and of that what this container may use: a batch system may have given it other processors
/// than the one before.
fn affinity(tid: i32, chosen: &[u64]) {
    let Ok(here) = process::affinity(tid) else { return };
    let both: Vec<u64> = here.iter().zip(chosen).map(|(here, chosen)| here & chosen).collect();
    // Where none of them is there it stays where it is.
    if both != here && count(&both) > 0 {
        let _ = task::set_affinity(tid, &both);
    }
}

/// Lets everybody run, children first.
fn release(image: &Image) -> Result<()> {
    let all: Vec<&Process> = living(image).collect();
    for process in all.iter().rev() {
        if matches!(process.state, State::Stopped { .. }) {
            let stopped = process::kill(process.pid, SIGSTOP);
            stopped.map_err(|e| BackendError::failed("cannot stop a process").because(e.desc()))?;
        }
        for thread in process.threads.iter().rev() {
            ptrace::detach(thread.tid, 0).map_err(|e| {
                BackendError::failed(format!("cannot let go of thread {}", thread.tid)).because(e.desc())
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command() {
        let outcome = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            match order(&words).and_then(told) {
                Ok((o, _)) => format!("{} {:?} {:?}", o.dir.display(), o.pid_file, o.how),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(outcome(&["--dir", "/d", "--copy", "--pid-file", "/p"]), "/d Some(\"/p\") Some(Copy)");
        insta::assert_snapshot!(outcome(&["--talk", "x"]), @"restore: --talk takes a number");
        insta::assert_snapshot!(outcome(&["--dir"]), @"restore: --dir takes a path");
        insta::assert_snapshot!(outcome(&["--fast"]), @r#"restore knows no "--fast""#);
        insta::assert_snapshot!(outcome(&[]), @"restore: --dir takes a path");
    }
}
