//! What a backend says about itself without touching the machine.

use crate::plan::WaitingCommand;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A backend's static description. Answered where the engine is not installed too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The name used in `plugins.toml` and with `--backend`: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
    pub name: String,
    /// The plugin's own version, semver.
    pub version: String,
    /// The engine behind it, in words for a person: `DMTCP`.
    pub engine: String,
    /// One line for `stasis backend list`.
    pub summary: String,
    /// How far the author trusts it.
    #[serde(default)]
    pub maturity: Maturity,
    /// Capability ids, see [`capability`](crate::capability). Unknown ids are ignored by the runtime.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The options it takes. Every other option is refused before the backend is called.
    #[serde(default)]
    pub options: Vec<OptionSpec>,
    /// What can get ready whenever a generation is to be brought back, before that is planned. The runtime need not start it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingCommand>,
}

/// How far the author of a backend trusts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Maturity {
    /// May lose work.
    #[default]
    Experimental,
    /// Complete and tested, young.
    Beta,
    /// In service.
    Stable,
}

/// One option of a backend, set in `plugins.toml` or by `--backend-option NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptionSpec {
    /// Its name.
    pub name: String,
    /// What values it takes.
    pub kind: OptionKind,
    /// The value when nobody sets it. `Null` means unset.
    #[serde(default)]
    pub default: Value,
    /// One sentence for `stasis backend info`.
    pub help: String,
    /// Offered as a flag of the command line as well: `tcp` becomes `--tcp`.
    #[serde(default)]
    pub flag: Option<String>,
}

impl OptionSpec {
    /// An option without default and without a flag of its own.
    #[must_use]
    pub fn new(name: &str, kind: OptionKind, help: &str) -> Self {
        Self { name: name.to_owned(), kind, default: Value::Null, help: help.to_owned(), flag: None }
    }

    /// The same option with a default.
    #[must_use]
    pub fn default_value(mut self, value: impl Into<Value>) -> Self {
        self.default = value.into();
        self
    }
}

/// What values an option takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptionKind {
    /// Any text.
    String,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A list of texts; on the command line separated by commas.
    List,
    /// One of these words.
    Choice(Vec<String>),
}

impl OptionKind {
    /// Turns what was typed (`K=V`) into a value of this kind; the error tells what is allowed.
    ///
    /// # Errors
    /// A sentence saying what the option takes instead.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::String => Ok(Value::from(text)),
            Self::Integer => text
                .parse::<i64>()
                .map(Value::from)
                .map_err(|_| format!("takes a whole number, not \"{text}\"")),
            Self::Boolean => match text {
                "true" | "yes" | "on" | "1" => Ok(Value::Bool(true)),
                "false" | "no" | "off" | "0" => Ok(Value::Bool(false)),
                _ => Err(format!("takes true or false, not \"{text}\"")),
            },
            Self::List => Ok(Value::from(
                text.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>(),
            )),
            Self::Choice(words) if words.iter().any(|w| w == text) => Ok(Value::from(text)),
            Self::Choice(words) => Err(format!("takes one of {}, not \"{text}\"", words.join(", "))),
        }
    }

    /// Whether a value from `plugins.toml` is of this kind; the error tells what is allowed.
    ///
    /// # Errors
    /// A sentence saying what the option takes instead.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Self::String, Value::String(_)) | (Self::Boolean, Value::Bool(_)) => Ok(()),
            (Self::Integer, Value::Number(n)) if n.is_i64() => Ok(()),
            (Self::List, Value::Array(items)) if items.iter().all(Value::is_string) => Ok(()),
            (Self::Choice(_), Value::String(text)) => self.parse(text).map(|_| ()),
            (Self::String, _) => Err("takes a text".to_owned()),
            (Self::Integer, _) => Err("takes a whole number".to_owned()),
            (Self::Boolean, _) => Err("takes true or false".to_owned()),
            (Self::List, _) => Err("takes a list of texts".to_owned()),
            (Self::Choice(words), _) => Err(format!("takes one of {}", words.join(", "))),
        }
    }
}
