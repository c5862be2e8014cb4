//! Names typed by a user, as types that cannot hold anything dangerous to a path.
//!
//! A value of one of these types is always `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`, also when it came out of a
//! file. Nothing here touches the file system.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most characters a name may have.
pub const MAX_NAME: usize = 64;

/// Why a text is not a name. `Display` gives the whole message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {} is not allowed: {problem}", quoted(text))]
pub struct NameError {
    /// What the name was for: `checkpoint`, `instance`, `backend`.
    pub kind: &'static str,
    /// The text as it was given; shortened and escaped when displayed.
    pub text: String,
    /// What is wrong with it.
    pub problem: NameProblem,
}

impl NameError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        Some(format!(
            "a name has 1 to {MAX_NAME} characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit"
        ))
    }
}

/// The first thing wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    #[error("it is empty")]
    Empty,
    #[error("it has {0} characters of at most {MAX_NAME}")]
    TooLong(usize),
    #[error("it starts with {0:?}, and only a letter or a digit may come first")]
    Starts(char),
    #[error("it contains {0:?}, and only letters, digits, \".\", \"_\" and \"-\" may be in it")]
    Contains(char),
}

/// Bounded and escaped, so that a message stays one line on any terminal.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(SHOWN).collect();
    if chars.next().is_some() { format!("{head:?}...") } else { format!("{head:?}") }
}

fn check(text: &str) -> Result<(), NameProblem> {
    let first = text.chars().next().ok_or(NameProblem::Empty)?;
    let length = text.chars().count();
    if length > MAX_NAME {
        return Err(NameProblem::TooLong(length));
    }
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !first.is_ascii_alphanumeric() {
        // A character allowed nowhere is told as such, so that the next try does not fail again.
        return Err(if inside(first) { NameProblem::Starts(first) } else { NameProblem::Contains(first) });
    }
    match text.chars().find(|&c| !inside(c)) {
        Some(bad) => Err(NameProblem::Contains(bad)),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks `text` and keeps a copy of it.
            pub fn new(text: &str) -> Result<Self, NameError> {
                match check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(problem) => Err(NameError { kind: $kind, text: text.to_owned(), problem }),
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of a checkpoint: a place for saved states.
    CheckpointName, "checkpoint"
}
name_type! {
    /// The name of an instance: a running container.
    InstanceName, "instance"
}
name_type! {
    /// The name under which a backend is configured.
    BackendName, "backend"
}

/// A checkpoint and, if the user said which, one of its generations: `NAME[@GENERATION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRef {
    pub name: CheckpointName,
    /// `None` is the newest one.
    pub generation: Option<u64>,
}

/// Why a text is not a [`CheckpointRef`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointRefError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("generation {} of checkpoint \"{name}\" is not a number from 1 on", quoted(text))]
    Generation { name: CheckpointName, text: String },
}

impl CheckpointRefError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Name(error) => error.help(),
            Self::Generation { name, .. } => {
                Some(format!("write {name} for the newest generation, {name}@3 for number 3"))
            }
        }
    }
}

impl FromStr for CheckpointRef {
    type Err = CheckpointRefError;

    fn from_str(text: &str) -> Result<Self, CheckpointRefError> {
        let Some((name, number)) = text.split_once('@') else {
            return Ok(Self { name: CheckpointName::new(text)?, generation: None });
        };
        let name = CheckpointName::new(name)?;
        // `parse` alone would take a leading plus sign.
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        match number.parse() {
            Ok(value) if digits && value > 0 => Ok(Self { name, generation: Some(value) }),
            _ => Err(CheckpointRefError::Generation { name, text: number.to_owned() }),
        }
    }
}

impl fmt::Display for CheckpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            Some(number) => write!(f, "{}@{number}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        CheckpointName::new(text).unwrap_err().to_string()
    }

    #[test]
    fn good_names() {
        for good in ["a", "A1", "0", "web.server_2-x", &"x".repeat(64)] {
            assert_eq!(InstanceName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn hostile_names() {
        insta::assert_snapshot!(refused(""), @r#"checkpoint name "" is not allowed: it is empty"#);
        insta::assert_snapshot!(refused("../x"), @r#"checkpoint name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first"#);
        insta::assert_snapshot!(refused("/etc"), @r#"checkpoint name "/etc" is not allowed: it contains '/', and only letters, digits, ".", "_" and "-" may be in it"#);
        insta::assert_snapshot!(refused("a/b"), @r#"checkpoint name "a/b" is not allowed: it contains '/', and only letters, digits, ".", "_" and "-" may be in it"#);
        insta::assert_snapshot!(refused("-x"), @r#"checkpoint name "-x" is not allowed: it starts with '-', and only a letter or a digit may come first"#);
        insta::assert_snapshot!(refused(".x"), @r#"checkpoint name ".x" is not allowed: it starts with '.', and only a letter or a digit may come first"#);
        insta::assert_snapshot!(refused("a b"), @r#"checkpoint name "a b" is not allowed: it contains ' ', and only letters, digits, ".", "_" and "-" may be in it"#);
        insta::assert_snapshot!(refused("a\n"), @r#"checkpoint name "a\n" is not allowed: it contains '\n', and only letters, digits, ".", "_" and "-" may be in it"#);
        insta::assert_snapshot!(refused("a\0b"), @r#"checkpoint name "a\0b" is not allowed: it contains '\0', and only letters, digits, ".", "_" and "-" may be in it"#);
        insta::assert_snapshot!(refused("näme"), @r#"checkpoint name "näme" is not allowed: it contains 'ä', and only letters, digits, ".", "_" and "-" may be in it"#);
        insta::assert_snapshot!(refused(&"x".repeat(300)), @r#"checkpoint name "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"... is not allowed: it has 300 characters of at most 64"#);
        assert_eq!(BackendName::new("x".repeat(65).as_str()).unwrap_err().problem, NameProblem::TooLong(65));
        insta::assert_snapshot!(BackendName::new("a:b").unwrap_err(), @r#"backend name "a:b" is not allowed: it contains ':', and only letters, digits, ".", "_" and "-" may be in it"#);
        insta::assert_snapshot!(InstanceName::new("").unwrap_err().help().unwrap(), @"a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit");
    }

    #[test]
    fn a_file_cannot_bring_in_a_bad_name() {
        let error = serde_json::from_str::<CheckpointName>("\"../x\"").unwrap_err().to_string();
        assert!(error.contains("is not allowed"), "{error}");
        let name: CheckpointName = serde_json::from_str("\"x\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"x\"");
    }

    #[test]
    fn references() {
        let parse = |text: &str| text.parse::<CheckpointRef>();
        assert_eq!(parse("a").unwrap().generation, None);
        assert_eq!(parse("a@12").unwrap().generation, Some(12));
        assert_eq!(parse("a@000012").unwrap().to_string(), "a@12");
        for bad in ["a@", "a@0", "a@+1", "a@-1", "a@1@2", "a@x", "a@99999999999999999999999"] {
            assert!(matches!(parse(bad), Err(CheckpointRefError::Generation { .. })), "{bad}");
        }
        insta::assert_snapshot!(parse("a@x").unwrap_err(), @r#"generation "x" of checkpoint "a" is not a number from 1 on"#);
        insta::assert_snapshot!(parse("@1").unwrap_err(), @r#"checkpoint name "" is not allowed: it is empty"#);
    }
}
