//! What CRIU's failure means for the user. CRIU ends with the same status whatever went wrong and starts every log
//! with complaints that mean nothing; what went wrong is found in the log by the text of its messages. The words
//! that are known are in [`causes`], the objects of the application in [`objects`].

mod causes;
mod log;
mod objects;
#[cfg(test)]
mod tests;
mod told;

use log::{Log, without_flags};
use objects::Seen;
use stasis_plugin_api::error::{BackendError, kind};
use stasis_plugin_api::survey::{ProcessInfo, SocketInfo};

/// The most lines of CRIU's own that are shown, and the longest.
const SHOWN_LINES: usize = 8;
const SHOWN_CHARACTERS: usize = 400;

/// What CRIU was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum During {
    /// It was saving.
    Capture,
    /// It was bringing back.
    Restart,
}

/// How a run of CRIU ended, and what is known of the application.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome<'a> {
    /// What it was doing.
    pub during: During,
    /// Its exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// Its log.
    pub log: &'a str,
    /// The application's processes, as far as known; for their names and descriptors.
    pub processes: &'a [ProcessInfo],
    /// The application's sockets, as far as known.
    pub sockets: &'a [SocketInfo],
}

/// What is told about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    kind: &'static str,
    why: String,
    help: String,
}

impl Told {
    fn new(kind: &'static str, why: impl Into<String>, help: impl Into<String>) -> Self {
        Self { kind, why: why.into(), help: help.into() }
    }
}

/// Why CRIU failed, in words for the user.
pub(crate) fn explain(outcome: &Outcome<'_>) -> BackendError {
    let log = Log::read(outcome.log);
    let what = match outcome.during {
        During::Capture => "the application could not be saved",
        During::Restart => "the saved state could not be brought back",
    };
    tracing::debug!(log = outcome.log, "CRIU failed");
    let error = |told: Told| BackendError::new(told.kind, what).because(told.why).help(told.help);
    match ended(outcome, &log).or_else(|| causes::find(outcome, &log)) {
        Some(told) => error(told),
        None => error(unknown(outcome, &log)).engine_output(log.last_lines(SHOWN_LINES, SHOWN_CHARACTERS)),
    }
}

/// Ends of CRIU that count more than what it wrote.
fn ended(outcome: &Outcome<'_>, log: &Log<'_>) -> Option<Told> {
    let capture = outcome.during == During::Capture;
    if outcome.timed_out {
        let help = match outcome.during {
            During::Capture => {
                "save again when the host and the file system of the checkpoints are less busy; a process that \
                 hangs in the kernel (state D, a dead network file system) cannot be saved"
            }
            During::Restart => {
                "bring an earlier generation back: with damaged files CRIU may go on for ever; otherwise try \
                 again when the host is less busy"
            }
        };
        return Some(Told::new(
            kind::TIMED_OUT,
            "CRIU did not finish within the time that it was given",
            help,
        ));
    }
    let bug = log.errors().find(|line| line.text.contains("BUG at"));
    match outcome.signal {
        Some(9) if !log.has_errors() && capture => Some(Told::new(
            kind::APPLICATION_ENDED,
            "the container ended while it was being saved, and CRIU with it",
            "look at the application's output for why it ended; an earlier generation can be brought back",
        )),
        Some(9) if !log.has_errors() => Some(Told::new(
            kind::FAILED,
            "CRIU was killed, or the container ended meanwhile",
            "see whether the host ran out of memory (`dmesg`), and try again",
        )),
        Some(signal @ (4 | 6 | 7 | 8 | 11)) => {
            let bug = bug.map_or_else(String::new, |line| format!(", {}", line.text));
            Some(crashed(&format!("signal {signal}{bug}")))
        }
        _ => bug.map(|line| crashed(line.text)),
    }
}

fn crashed(how: &str) -> Told {
    Told::new(
        kind::FAILED,
        format!("CRIU crashed ({how})"),
        "this is an error of CRIU itself: try a newer version, or take another backend; its log lies with the \
         other logs of this start",
    )
}

/// CRIU's own words, when nobody knows better.
fn unknown(outcome: &Outcome<'_>, log: &Log<'_>) -> Told {
    let why = match log.last_cause() {
        Some(line) => {
            let words = without_flags(line.text);
            let seen = Seen::new(outcome, log, line);
            match seen.pid {
                Some(pid) => format!("CRIU: {words} (at {})", seen.process(pid)),
                None => format!("CRIU: {words}"),
            }
        }
        None => match (outcome.code, outcome.signal) {
            (_, Some(signal)) => format!("CRIU was ended by signal {signal} and gave no reason"),
            (Some(code), None) => format!("CRIU ended with status {code} and gave no reason"),
            (None, None) => "CRIU gave no reason".to_owned(),
        },
    };
    let help = match outcome.during {
        During::Capture => {
            "`stasis backend check criu` tells whether CRIU works here; another backend may be able to save this \
             application"
        }
        During::Restart => {
            "`stasis backend check criu` tells whether CRIU works here; an earlier generation may come back"
        }
    };
    Told::new(kind::FAILED, why, help)
}
