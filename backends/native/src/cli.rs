//! The engine's commands, as init runs them inside a container: arguments in; one line of JSON on standard output, or
//! one JSON error as the last line of standard error.

use serde_json::json;
use stasis_plugin_api::prelude::*;
use std::io::Write as _;

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

fn command(arguments: &[String]) -> Result<serde_json::Value> {
    match arguments.first().map(String::as_str) {
        Some("version") => Ok(json!({"engine": env!("CARGO_PKG_VERSION"), "format": crate::model::FORMAT})),
        Some("trial") => {
            let pid = arguments.get(1).and_then(|p| p.parse().ok()).unwrap_or(0);
            if let Some(k) = arguments.get(2).and_then(|p| p.parse().ok()) {
                crate::sys::ptrace::steps::kill_at(k);
            }
            let _ = crate::sys::process::interruptible();
            let pause = crate::capture::trial(pid)?;
            Ok(json!({"pause_us": pause.as_micros(), "steps": crate::sys::ptrace::steps::done()}))
        }
        other => Err(BackendError::failed(format!("the engine knows no command {:?}", other.unwrap_or("")))),
    }
}
