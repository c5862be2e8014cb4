//! Definition files as text: stages, header, sections. Every error names file and line and what could stand there.
//! Touches nothing but the file itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::image::io_words;

mod arguments;
mod sections;

pub use sections::{App, Copy, Files};

/// Longer ones nobody writes.
const MAX_FILE: u64 = 4 << 20;
/// Keywords of a header.
pub(super) const KEYWORDS: &[&str] =
    &["bootstrap", "from", "stage", "registry", "namespace", "osversion", "mirrorurl", "include"];
/// Keywords of bootstrap agents that there are not.
const OTHER_KEYWORDS: &[&str] = &[
    "library",
    "fingerprints",
    "confurl",
    "setopt",
    "updateurl",
    "includecmd",
    "product",
    "user",
    "regcode",
    "productpgp",
    "registerurl",
    "modules",
    "target",
    "frontend",
    "filename",
    "buildargs",
];

/// A definition file.
#[derive(Debug)]
pub struct Definition {
    /// Where it is, as the user named it.
    pub file: PathBuf,
    /// Its text with all values filled in.
    pub text: String,
    /// At least one.
    pub stages: Vec<Stage>,
}

/// From one header to the next.
#[derive(Debug, Default)]
pub struct Stage {
    /// From `Stage:`.
    pub name: Option<String>,
    /// Keywords in lower case.
    pub header: BTreeMap<String, String>,
    /// Where the header begins.
    pub line: usize,
    /// `%help`.
    pub help: Option<String>,
    /// `%environment`.
    pub environment: Option<String>,
    /// `%labels`.
    pub labels: BTreeMap<String, String>,
    /// `%files`, one for each time it is written.
    pub files: Vec<Files>,
    /// `%pre`.
    pub pre: Option<Script>,
    /// `%setup`.
    pub setup: Option<Script>,
    /// `%post`.
    pub post: Option<Script>,
    /// `%test`.
    pub test: Option<Script>,
    /// `%runscript`.
    pub runscript: Option<Script>,
    /// `%startscript`.
    pub startscript: Option<Script>,
    /// `%app...`, by name.
    pub apps: BTreeMap<String, App>,
}

/// A script of a section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// Without the section's own line.
    pub text: String,
    /// From `-c SHELL` behind the section's name.
    pub shell: Option<String>,
}

/// Something in a definition file that is not as it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}, line {line}: {problem}", file.display())]
pub struct DefinitionError {
    file: PathBuf,
    line: usize,
    problem: String,
    help: String,
}

impl DefinitionError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        (!self.help.is_empty()).then(|| self.help.clone())
    }
}

/// Where an error is; made into one with the file's name.
pub(super) struct Wrong {
    pub(super) line: usize,
    pub(super) problem: String,
    pub(super) help: String,
}

pub(super) fn wrong<T>(
    line: usize,
    problem: impl Into<String>,
    help: impl Into<String>,
) -> std::result::Result<T, Wrong> {
    Err(Wrong { line, problem: problem.into(), help: help.into() })
}

impl Definition {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or what is wrong in it.
    pub fn load(file: &Path, arguments: &BTreeMap<String, String>) -> Result<Self> {
        let cannot = |why: String| {
            Error::new(format!("cannot read the definition file {}", file.display())).because(why)
        };
        let opened = std::fs::File::open(file).map_err(|e| cannot(io_words(&e)))?;
        if opened.metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(cannot("it is a directory".to_owned()));
        }
        let mut bytes = Vec::new();
        opened.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| cannot(io_words(&e)))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(cannot(format!("it is longer than {} MiB", MAX_FILE >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|_| {
            cannot("it is not text in UTF-8".to_owned())
                .help("give a definition file; an image is taken by its name")
        })?;
        // What editors of another system put before a text.
        Ok(Self::parse(file, text.strip_prefix('\u{feff}').unwrap_or(&text), arguments)?)
    }

    /// Reads text.
    ///
    /// # Errors
    /// What is wrong in it.
    pub fn parse(
        file: &Path,
        text: &str,
        arguments: &BTreeMap<String, String>,
    ) -> std::result::Result<Self, DefinitionError> {
        let located = |w: Wrong| DefinitionError {
            file: file.to_owned(),
            line: w.line,
            problem: w.problem,
            help: w.help,
        };
        stages(text, arguments)
            .map(|(stages, text)| Self { file: file.to_owned(), text, stages })
            .map_err(located)
    }
}

fn stages(text: &str, given: &BTreeMap<String, String>) -> std::result::Result<(Vec<Stage>, String), Wrong> {
    let lines: Vec<&str> = text.lines().collect();
    let begins: Vec<usize> =
        (0..lines.len()).filter(|i| keyword(lines[*i]) == Some("bootstrap".to_owned())).collect();
    let Some(first) = begins.first() else {
        let line = lines.iter().position(|l| !is_blank(l)).unwrap_or(0) + 1;
        let help = format!(
            "a definition file begins with `Bootstrap: AGENT`; agents are {}",
            super::bootstrap::AGENTS
        );
        return wrong(line, "there is no Bootstrap: keyword", help);
    };
    let mut used = BTreeSet::new();
    let (mut stages, mut whole): (Vec<Stage>, String) = (Vec::new(), String::new());
    for (number, begin) in begins.iter().enumerate() {
        // What stands before the first header belongs to it.
        let begin = if begin == first { 0 } else { *begin };
        let end = begins.get(number + 1).copied().unwrap_or(lines.len());
        let filled = arguments::fill(&lines[begin..end], begin + 1, given, &mut used)?;
        let stage = stage(&filled, begin + 1)?;
        check_stage(&stage, &stages)?;
        stages.push(stage);
        filled.iter().for_each(|line| whole.extend([line.as_str(), "\n"]));
    }
    if let Some(name) = given.keys().find(|name| !used.contains(*name)) {
        return wrong(
            1,
            format!("nothing in it is called {{{{ {name} }}}}, for which a value was given"),
            "leave the value out, or check its spelling",
        );
    }
    Ok((stages, whole))
}

fn check_stage(stage: &Stage, before: &[Stage]) -> std::result::Result<(), Wrong> {
    let names: Vec<&str> = before.iter().filter_map(|s| s.name.as_deref()).collect();
    if let Some(name) = stage.name.as_deref().filter(|name| names.contains(name)) {
        return wrong(
            stage.line,
            format!("there is a stage {name:?} already"),
            "give each stage a name of its own",
        );
    }
    let files = stage.files.iter().chain(stage.apps.values().flat_map(|app| &app.files));
    for files in files {
        if let Some(from) = files.from.as_deref().filter(|from| !names.contains(from)) {
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let help = format!("stages before this one are: {there}");
            return wrong(
                files.line,
                format!("%files wants something from stage {from:?}, which there is not"),
                help,
            );
        }
    }
    Ok(())
}

/// The keyword of a header line, in lower case.
fn keyword(line: &str) -> Option<String> {
    let (key, _) = line.split_once(':')?;
    let word = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric());
    word.then(|| key.to_ascii_lowercase())
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

fn stage(lines: &[String], first: usize) -> std::result::Result<Stage, Wrong> {
    let body = lines.iter().position(|line| sections::name(line).is_some()).unwrap_or(lines.len());
    let mut stage = Stage::default();
    for (index, line) in lines[..body].iter().enumerate() {
        let number = first + index;
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let Some((key, value)) = text.split_once(':') else {
            return wrong(
                number,
                format!("{text:?} is neither a keyword with a value nor a section"),
                "write `Keyword: value`, or %section in the first column",
            );
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_owned());
        check_keyword(&key, &value, number)?;
        if key == "bootstrap" {
            stage.line = number;
        }
        if stage.header.insert(key.clone(), value).is_some() {
            return wrong(number, format!("{key} is said twice"), "");
        }
    }
    if let Err((problem, help)) = super::bootstrap::check(&stage.header) {
        return wrong(stage.line, problem, help);
    }
    stage.name = stage.header.get("stage").cloned();
    sections::read(&mut stage, &lines[body..], first + body)?;
    Ok(stage)
}

fn check_keyword(key: &str, value: &str, line: usize) -> std::result::Result<(), Wrong> {
    let there = format!("keywords are {}", KEYWORDS.join(", "));
    let numbered = key.strip_prefix("otherurl").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    if OTHER_KEYWORDS.contains(&key) || numbered {
        return wrong(line, format!("the keyword {key} is not supported"), there);
    }
    if !KEYWORDS.contains(&key) {
        return wrong(line, format!("{key:?} is not a keyword"), there);
    }
    if value.is_empty() {
        return wrong(line, format!("{key} has no value"), "");
    }
    if key == "bootstrap" && !super::bootstrap::is_agent(value) {
        let help = format!("agents are {}", super::bootstrap::AGENTS);
        return wrong(line, format!("there is no bootstrap agent {value:?}"), help);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
