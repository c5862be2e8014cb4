//! The one error that reaches a user: what failed on which object, why, what to do. Plain data, because
//! it also travels from init and worker to the command. Nothing is written here; `cli::report` does that.

use serde::{Deserialize, Serialize};
use stasis_plugin_api::error::{BackendError, kind};
use std::error::Error as StdError;
use std::fmt;

/// What every command returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The exit code of a failure of ours.
pub const FATAL: u8 = 255;

/// The exit code of a command that was typed wrongly.
pub const USAGE: u8 = 1;

fn fatal() -> u8 {
    FATAL
}

/// A failure, told so that a user can act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What failed, with which object. No full stop.
    pub what: String,
    /// Why, from the outermost cause to the innermost.
    #[serde(default)]
    pub why: Vec<String>,
    /// What the user or the administrator can do.
    #[serde(default)]
    pub help: Option<String>,
    /// The last lines of the engine's own output.
    #[serde(default)]
    pub detail: Option<String>,
    /// The exit code.
    #[serde(default = "fatal")]
    pub code: u8,
    /// What a caller may be able to help with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
}

/// Failures that are more to a caller than their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An engine found, before anything ran, that it cannot save the program.
    CannotSave,
    /// There is no way to a registry.
    Unreachable,
    /// An engine may have left the application standing still.
    StandsStill,
}

impl Error {
    /// A failure that ends the command with [`FATAL`].
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        let what = without_numbers(&what.into());
        Self { what, why: Vec::new(), help: None, detail: None, code: FATAL, kind: None }
    }

    /// A command that was typed wrongly: [`USAGE`].
    #[must_use]
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(what).code(USAGE)
    }

    /// From another module's error and its `help()`, with everything that lies behind it.
    #[must_use]
    pub fn from_parts(error: &(dyn StdError + 'static), help: Option<String>) -> Self {
        let mut new = Self::new(error.to_string());
        if let Some(source) = error.source() {
            new = new.because_of(source);
        }
        // What the outer module advises knows more of the situation than what an inner one does.
        Self { help: help.or(new.help), ..new }
    }

    /// Adds a cause.
    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why.push(without_numbers(&why.to_string()));
        self
    }

    /// Adds an error and what lies behind it, leaving out what was already said. An error of this type or a
    /// backend's brings its remedy and its engine's output along, where there are none yet.
    #[must_use]
    pub fn because_of(mut self, error: &(dyn StdError + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let known = error.downcast_ref::<Self>().cloned();
            match known.or_else(|| error.downcast_ref::<BackendError>().cloned().map(Self::from)) {
                Some(inner) => self.take_over(inner),
                None => self.add(&error.to_string()),
            }
            next = error.source();
        }
        self
    }

    /// Sets the remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Sets the engine's last lines. Blank text is none.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        self.detail = if detail.trim().is_empty() { None } else { Some(detail) };
        self
    }

    /// Sets what a caller may be able to help with.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Sets the exit code.
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    fn take_over(&mut self, inner: Self) {
        self.add(&inner.what);
        for why in &inner.why {
            self.add(why);
        }
        self.help = self.help.take().or(inner.help);
        self.detail = self.detail.take().or(inner.detail);
    }

    fn add(&mut self, why: &str) {
        let why = without_numbers(why);
        let said = self.what.contains(&why) || self.why.iter().any(|before| before.contains(&why));
        if !said {
            self.why.push(why);
        }
    }
}

/// The text of an error without the kernel's numbers: the words before each say the same.
fn without_numbers(text: &str) -> String {
    const NUMBER: &str = " (os error ";
    let (mut words, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once(NUMBER) {
        words.push_str(before);
        rest = match behind.split_once(')') {
            Some((number, after)) if number.parse::<u32>().is_ok() => after,
            _ => {
                words.push_str(NUMBER);
                behind
            }
        };
    }
    words + rest
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for why in &self.why {
            write!(f, ": {why}")?;
        }
        Ok(())
    }
}

impl StdError for Error {}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        let kind = (error.kind == kind::STANDS_STILL).then_some(Kind::StandsStill);
        let why = error.why.iter().map(|why| without_numbers(why)).collect();
        let new = Self { why, help: error.help, kind, ..Self::new(error.what) };
        new.detail(error.engine_output.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {path}: {source}")]
    struct Says {
        path: &'static str,
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot load the settings")]
    struct Hides {
        source: Says,
    }

    fn hides() -> Hides {
        Hides { source: Says { path: "/x", source: io::Error::other("the disk is on fire") } }
    }

    #[test]
    fn causes_are_told_once() {
        let error = Error::new("cannot start").because_of(&hides());
        assert_eq!(error.why, ["cannot load the settings", "cannot read /x: the disk is on fire"]);
        insta::assert_snapshot!(error, @"cannot start: cannot load the settings: cannot read /x: the disk is on fire");
        assert_eq!(error.code, FATAL);
    }

    #[test]
    fn the_kernels_numbers_are_left_out() {
        let missing = io::Error::from_raw_os_error(2);
        let error = Error::new(format!("cannot read a: {missing}; nor b: {missing}")).because(&missing);
        insta::assert_snapshot!(error, @"cannot read a: No such file or directory; nor b: No such file or directory: No such file or directory");
        insta::assert_snapshot!(Error::new("it said (os error x) and (os error 2"), @"it said (os error x) and (os error 2");
        let refused = BackendError::failed(format!("it failed: {missing}")).because(&missing);
        insta::assert_snapshot!(Error::from(refused), @"it failed: No such file or directory: No such file or directory");
        let hides = Hides { source: Says { path: "/x", source: missing } };
        insta::assert_snapshot!(Error::new("no").because_of(&hides), @"no: cannot load the settings: cannot read /x: No such file or directory");
    }

    #[test]
    fn another_modules_error() {
        let error = Error::from_parts(&hides(), Some("put it out".into()));
        assert_eq!(error.what, "cannot load the settings");
        assert_eq!(error.why, ["cannot read /x: the disk is on fire"]);
        assert_eq!(error.help.as_deref(), Some("put it out"));
    }

    #[test]
    fn an_inner_error_keeps_its_remedy() {
        let inner = BackendError::failed("the engine died").because("no memory").help("add memory");
        let error = Error::new("cannot save").because_of(&inner.clone().engine_output("oom\n"));
        assert_eq!(error.why, ["the engine died", "no memory"]);
        assert_eq!(error.help.as_deref(), Some("add memory"));
        assert_eq!(error.detail.as_deref(), Some("oom\n"));
        let advised = Error::new("cannot save").help("stop it").because_of(&Error::from(inner));
        assert_eq!(advised.help.as_deref(), Some("stop it"));
    }

    #[test]
    fn it_travels() {
        let error = Error::usage("no such flag").because("x").help("y").detail("z").kind(Kind::CannotSave);
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<Error>(&text).unwrap(), error);
        assert_eq!(error.code, USAGE);
        assert_eq!(serde_json::from_str::<Error>(r#"{"what":"x"}"#).unwrap(), Error::new("x"));
    }
}
