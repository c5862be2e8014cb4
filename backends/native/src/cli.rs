//! The engine's commands, as init runs them inside a container: arguments in; one line of JSON on standard output, or
//! one JSON error as the last line of standard error.

use crate::capture::inotify::Places;
use crate::capture::{self, Request, detach};
use crate::refuse;
use serde_json::{Value, json};
use stasis_plugin_api::prelude::*;
use std::io::Write as _;

/// How often a restart looks whether a wait has been too long.
const TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs a command; the result is the exit status.
pub(crate) fn run(arguments: &[String]) -> u8 {
    let answer = std::panic::catch_unwind(|| command(arguments));
    let answer = answer.unwrap_or_else(|_| Err(BackendError::new(kind::PANICKED, "the engine panicked")));
    match answer {
        Ok(line) => u8::from(writeln!(std::io::stdout(), "{line}").is_err()),
        Err(error) => {
            let line = serde_json::to_string(&error).unwrap_or_else(|_| error.to_string());
            // Nobody is left to tell when this fails; the status says that something did.
            let _ = writeln!(std::io::stderr(), "{line}");
            1
        }
    }
}

/// `[--root FD] COMMAND ...`: with the root of that descriptor, which is the container's, instead of the one in which this
/// was loaded.
fn command(arguments: &[String]) -> Result<Value> {
    if let [word, fd, rest @ ..] = arguments
        && word == "--root"
    {
        change_root(number(fd)?)?;
        return command(rest);
    }
    let rest = arguments.get(1..).unwrap_or_default();
    match arguments.first().map(String::as_str) {
        Some("version") => Ok(json!({"engine": env!("CARGO_PKG_VERSION"), "format": crate::model::FORMAT})),
        Some("dump") => dump(rest),
        Some("examine") => examine(rest),
        Some("detach") => detach(rest),
        Some("restore") => {
            // Without it no wait would ever see that its time is over.
            crate::sys::process::ticking(TICK).map_err(handled)?;
            crate::restore::run(rest)
        }
        other => Err(BackendError::failed(format!("the engine knows no command {:?}", other.unwrap_or("")))),
    }
}

fn change_root(fd: i32) -> Result<()> {
    let failed = |e: nix::errno::Errno| {
        BackendError::failed("the engine cannot go into the container's root").because(e.desc())
    };
    let root = crate::sys::fd::inherited(fd).map_err(failed)?;
    nix::unistd::fchdir(root).and_then(|()| nix::unistd::chroot(".")).map_err(failed)
}

/// `--pid PID --dir DIR [--stop] [--plain | --fork] [--room BYTES] [--beside PID]... [--mailbox IN OUT [--base ID]
/// [--track]] [--lock FILE]`; the last of the modes counts.
fn request(arguments: &[String]) -> Result<Request> {
    let mut request = Request::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| BackendError::failed(format!("{word} takes a value")));
        match word.as_str() {
            "--pid" => request.pid = number(value()?)?,
            "--dir" => request.directory = value()?.into(),
            "--beside" => request.beside.push(number(value()?)?),
            "--room" => request.room = Some(number(value()?)?),
            "--mailbox" => request.mailbox = Some([number(value()?)?, number(value()?)?]),
            "--base" => request.base = Some(value()?.clone()),
            "--track" => request.track = true,
            "--lock" => request.lock = Some(value()?.into()),
            "--stop" => request.stop = true,
            "--plain" => (request.plain, request.fork) = (true, false),
            "--fork" => (request.plain, request.fork) = (false, true),
            #[cfg(debug_assertions)]
            "--kill-at" => crate::sys::ptrace::steps::kill_at(number(value()?)?),
            other => return Err(BackendError::failed(format!("the engine knows no option {other}"))),
        }
    }
    if request.pid <= 0 {
        return Err(BackendError::failed("--pid PID is missing"));
    }
    Ok(request)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| BackendError::failed(format!("{text} is no number")))
}

fn handled(error: nix::errno::Errno) -> BackendError {
    BackendError::failed("signals cannot be handled").because(error.desc())
}

fn dump(arguments: &[String]) -> Result<Value> {
    let request = request(arguments)?;
    crate::sys::process::interruptible().map_err(handled)?;
    // A descriptor for each process of the tree, for example.
    crate::sys::process::take_what_is_allowed();
    let report = capture::dump(&request)?;
    let line = json!({
        "pause_us": report.pause.as_micros(),
        "total_us": report.total.as_micros(),
        "pages": report.pages,
        "bytes": report.bytes,
        "processes": report.processes,
        "mode": if report.copied { "fork" } else { "plain" },
        "why_plain": report.why_plain,
        "increment": report.increment,
        "tracking": report.tracking,
        "why_untracked": report.why_untracked,
    });
    #[cfg(debug_assertions)]
    let line = {
        let mut line = line;
        line["steps"] = crate::sys::ptrace::steps::done().into();
        line
    };
    Ok(line)
}

fn examine(arguments: &[String]) -> Result<Value> {
    let request = request(arguments)?;
    let findings = refuse::examine(request.pid, &request.beside, &mut Places::default())?;
    serde_json::to_value(findings).map_err(|error| BackendError::failed("the findings").because(error))
}

/// `--pid-file FILE --lock FILE`.
fn detach(arguments: &[String]) -> Result<Value> {
    let mut order = detach::Order::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| BackendError::failed(format!("{word} takes a value")))?;
        match word.as_str() {
            "--pid-file" => order.pid_file = value.into(),
            "--lock" => order.lock = value.into(),
            #[cfg(debug_assertions)]
            "--kill-at" => crate::sys::ptrace::steps::kill_at(number(value)?),
            other => return Err(BackendError::failed(format!("the engine knows no option {other}"))),
        }
    }
    crate::sys::process::interruptible().map_err(handled)?;
    let done = detach::run(&order)?;
    let longest = done.longest.as_micros();
    Ok(json!({"bytes": done.bytes, "stops": done.stops, "longest_us": longest}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Request> {
        request(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options() {
        let request = parse(&["--pid", "12", "--dir", "/d", "--stop", "--beside", "3"]).unwrap();
        assert_eq!((request.pid, request.stop, request.plain, request.beside), (12, true, false, vec![3]));
        for wrong in [&["--dir", "/d"][..], &["--pid"], &["--pid", "x"], &["--pid", "1", "--else"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
