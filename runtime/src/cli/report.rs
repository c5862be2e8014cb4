//! The only place that turns errors and remarks into text on stderr, in Apptainer's levels. Also owns the
//! progress bar, because both share the terminal. Never writes to stdout and decides nothing.

mod progress;

pub use progress::Progress;

use crate::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verbosity {
    /// Errors only (`--silent`).
    Silent = 0,
    /// Warnings and errors (`--quiet`).
    Quiet = 1,
    /// What a user wants to know.
    #[default]
    Normal = 2,
    /// More (`--verbose`).
    Verbose = 3,
    /// Everything (`--debug`).
    Debug = 4,
}

impl Verbosity {
    /// From the global flags; where several are given, the one that says more wins.
    #[must_use]
    pub fn from_flags(quiet: bool, silent: bool, verbose: bool, debug: bool) -> Self {
        match (debug, verbose, quiet, silent) {
            (true, ..) => Self::Debug,
            (_, true, ..) => Self::Verbose,
            (_, _, true, _) => Self::Quiet,
            (_, _, _, true) => Self::Silent,
            _ => Self::Normal,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Fatal,
    Error,
    Warning,
    Info,
    Verbose,
    Debug,
}

impl Level {
    /// The word in front of a line: nine columns.
    fn label(self) -> &'static str {
        match self {
            Self::Fatal => "FATAL:   ",
            Self::Error => "ERROR:   ",
            Self::Warning => "WARNING: ",
            Self::Info => "INFO:    ",
            Self::Verbose => "VERBOSE: ",
            Self::Debug => "DEBUG:   ",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Fatal | Self::Error => "\x1b[31m",
            Self::Warning => "\x1b[33m",
            Self::Info | Self::Verbose | Self::Debug => "\x1b[34m",
        }
    }

    fn needs(self) -> Verbosity {
        match self {
            Self::Fatal | Self::Error => Verbosity::Silent,
            Self::Warning => Verbosity::Quiet,
            Self::Info => Verbosity::Normal,
            Self::Verbose => Verbosity::Verbose,
            Self::Debug => Verbosity::Debug,
        }
    }
}

/// What stands under a label.
const INDENT: &str = "         ";

/// The most lines of an engine's output that are shown, and the longest line.
const DETAIL_LINES: usize = 20;
const LINE_LENGTH: usize = 400;

static VERBOSITY: AtomicU8 = AtomicU8::new(Verbosity::Normal as u8);
static NO_COLOUR: AtomicBool = AtomicBool::new(false);

/// Sets how much is said, once, after the command line was read.
pub fn configure(verbosity: Verbosity, no_colour: bool) {
    VERBOSITY.store(verbosity as u8, Ordering::Relaxed);
    NO_COLOUR.store(no_colour, Ordering::Relaxed);
}

/// Whether something of this verbosity is said: to spare the work of finding it out.
#[must_use]
pub fn says(verbosity: Verbosity) -> bool {
    VERBOSITY.load(Ordering::Relaxed) >= verbosity as u8
}

/// A failure that ends the command. Returns the exit code.
#[must_use]
pub fn fatal(error: &Error) -> u8 {
    let level = if error.code == crate::error::FATAL { Level::Fatal } else { Level::Error };
    say(level, |colour| render(error, level, colour));
    error.code
}

/// A failure after which the command goes on: one of several objects.
pub fn error(error: &Error) {
    say(Level::Error, |colour| render(error, Level::Error, colour));
}

/// A failure that costs nothing but has to be known.
pub fn warning_of(error: &Error) {
    say(Level::Warning, |colour| render(error, Level::Warning, colour));
}

/// Something is not as the user may think.
pub fn warning(text: impl AsRef<str>) {
    say(Level::Warning, |colour| line(Level::Warning, text.as_ref(), colour));
}

/// Something was done.
pub fn info(text: impl AsRef<str>) {
    say(Level::Info, |colour| line(Level::Info, text.as_ref(), colour));
}

/// How something was done.
pub fn verbose(text: impl AsRef<str>) {
    say(Level::Verbose, |colour| line(Level::Verbose, text.as_ref(), colour));
}

/// For whoever looks for a mistake of ours.
pub fn debug(text: impl AsRef<str>) {
    say(Level::Debug, |colour| line(Level::Debug, text.as_ref(), colour));
}

/// Text that somebody else laid out for stderr: clap's messages.
pub fn raw(text: &str) {
    write(text);
}

fn say(level: Level, render: impl FnOnce(bool) -> String) {
    if says(level.needs()) {
        write(&render(colourful()));
    }
}

fn colourful() -> bool {
    let unwanted =
        NO_COLOUR.load(Ordering::Relaxed) || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    !unwanted && io::stderr().is_terminal()
}

fn write(text: &str) {
    // One write, so that lines of two processes do not mix. There is nobody to tell that stderr is gone.
    progress::aside(|| drop(io::stderr().lock().write_all(text.as_bytes())));
}

fn line(level: Level, text: &str, colour: bool) -> String {
    let mut out = String::new();
    if colour {
        out.push_str(level.colour());
    }
    out.push_str(level.label());
    if colour {
        out.push_str("\x1b[0m");
    }
    put(&mut out, "", text);
    out
}

fn render(error: &Error, level: Level, colour: bool) -> String {
    let mut out = line(level, &error.what, colour);
    for why in &error.why {
        out.push_str(INDENT);
        put(&mut out, "because: ", why);
    }
    if let Some(detail) = &error.detail {
        let lines: Vec<&str> = detail.lines().filter(|line| !line.trim().is_empty()).collect();
        for text in lines.iter().skip(lines.len().saturating_sub(DETAIL_LINES)) {
            let _ = writeln!(out, "{INDENT}| {}", safe(text));
        }
    }
    if let Some(help) = &error.help {
        out.push_str(INDENT);
        put(&mut out, "hint:    ", help);
    }
    out
}

/// Writes the rest of a line that has its indent; further lines of `text` come under its first one.
fn put(out: &mut String, word: &str, text: &str) {
    let mut lines = text.trim_end().lines();
    let _ = writeln!(out, "{word}{}", safe(lines.next().unwrap_or_default()));
    for next in lines {
        let _ = writeln!(out, "{INDENT}{}{}", " ".repeat(word.len()), safe(next));
    }
}

/// Without anything that a terminal would obey, and not endless.
fn safe(line: &str) -> String {
    let mut chars = line.trim_end().chars();
    let mut out: String = chars.by_ref().take(LINE_LENGTH).map(harmless).collect();
    if chars.next().is_some() {
        out.push_str("...");
    }
    out
}

/// A tab and whatever moves or recolours becomes something that does not.
pub(crate) fn harmless(c: char) -> char {
    // The last range turns the direction of the text that follows.
    match c {
        '\t' => ' ',
        c if c.is_control() => '?',
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(error: &Error) -> String {
        render(error, Level::Fatal, false)
    }

    #[test]
    fn a_whole_error() {
        let error = Error::new("cannot start instance \"web\"")
            .because("the engine did not come up")
            .because("it could not listen:\nport 80 is taken")
            .detail("line 1\n\n\x1b[31mline 2\n")
            .help("stop what uses port 80,\nor choose another");
        insta::assert_snapshot!(shown(&error), @r#"
        FATAL:   cannot start instance "web"
                 because: the engine did not come up
                 because: it could not listen:
                          port 80 is taken
                 | line 1
                 | ?[31mline 2
                 hint:    stop what uses port 80,
                          or choose another
        "#);
    }

    #[test]
    fn only_the_last_lines_of_an_engine() {
        let many: String = (1..=100).map(|n| format!("line {n}\n")).collect();
        let text = shown(&Error::new("x").detail(many));
        assert_eq!(text.lines().count(), 1 + DETAIL_LINES);
        assert!(text.ends_with("| line 100\n") && !text.contains("line 80\n"), "{text}");
        assert!(shown(&Error::new("x".repeat(10_000))).len() < 500);
    }

    #[test]
    fn a_terminal_obeys_nothing() {
        assert_eq!(line(Level::Info, "a\x1b]0;b\x07\tc\u{202e}d", false), "INFO:    a?]0;b? c?d\n");
        assert_eq!(line(Level::Warning, "x", true), "\x1b[33mWARNING: \x1b[0mx\n");
    }

    #[test]
    fn labels_are_as_wide_as_the_indent() {
        for level in [Level::Fatal, Level::Error, Level::Warning, Level::Info, Level::Verbose, Level::Debug] {
            assert_eq!(level.label().len(), INDENT.len());
        }
    }

    #[test]
    fn flags() {
        let of = Verbosity::from_flags;
        assert_eq!(of(false, false, false, false), Verbosity::Normal);
        assert_eq!(of(true, true, false, false), Verbosity::Quiet);
        assert_eq!(of(true, true, true, true), Verbosity::Debug);
        assert!(Level::Error.needs() == Verbosity::Silent && Level::Warning.needs() > Verbosity::Silent);
    }
}
