//! The sections of a stage.

use std::collections::BTreeMap;

use super::{Script, Stage, Wrong, is_blank, wrong};

type Result<T> = std::result::Result<T, Wrong>;

const SECTIONS: &[&str] = &[
    "arguments",
    "environment",
    "files",
    "help",
    "labels",
    "post",
    "pre",
    "runscript",
    "setup",
    "startscript",
    "test",
];
const APP_SECTIONS: &[&str] =
    &["appenv", "appfiles", "apphelp", "appinstall", "applabels", "apprun", "appstart", "apptest"];

/// `%files`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The stage they come from; without one, the host.
    pub from: Option<String>,
    /// Where the section begins.
    pub line: usize,
    /// What is copied.
    pub copies: Vec<Copy>,
}

/// One line of `%files`.
#[derive(Debug, PartialEq, Eq)]
pub struct Copy {
    /// Where it is written.
    pub line: usize,
    /// A path, perhaps with `*` and the like.
    pub from: String,
    /// The same as `from` where it is not written.
    pub to: Option<String>,
}

/// An application of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct App {
    /// `%appenv`.
    pub environment: Option<String>,
    /// `%appfiles`.
    pub files: Vec<Files>,
    /// `%apphelp`.
    pub help: Option<String>,
    /// `%appinstall`.
    pub install: Option<Script>,
    /// `%applabels`.
    pub labels: BTreeMap<String, String>,
    /// `%apprun`.
    pub run: Option<Script>,
    /// `%appstart`.
    pub start: Option<Script>,
    /// `%apptest`.
    pub test: Option<Script>,
}

/// The section that a line begins, if it does.
pub(super) fn name(line: &str) -> Option<&str> {
    let word = line.strip_prefix('%')?.split_whitespace().next()?;
    word.bytes().next().is_some_and(|b| b.is_ascii_alphabetic()).then_some(word)
}

/// Reads all sections. The first line begins one.
pub(super) fn read(stage: &mut Stage, lines: &[String], first: usize) -> Result<()> {
    let begins: Vec<usize> = (0..lines.len()).filter(|i| name(&lines[*i]).is_some()).collect();
    for (index, begin) in begins.iter().enumerate() {
        let end = begins.get(index + 1).copied().unwrap_or(lines.len());
        let line = first + begin;
        let mut words = lines[*begin].split_whitespace();
        let section = words.next().unwrap_or_default().trim_start_matches('%').to_ascii_lowercase();
        let words: Vec<&str> = words.take_while(|word| !word.starts_with('#')).collect();
        let section = Section { name: &section, words: &words, line, body: &lines[begin + 1..end] };
        if APP_SECTIONS.contains(&section.name) {
            section.of_app(stage)?;
        } else {
            section.of_stage(stage)?;
        }
    }
    Ok(())
}

struct Section<'a> {
    name: &'a str,
    words: &'a [&'a str],
    line: usize,
    body: &'a [String],
}

impl Section<'_> {
    fn of_stage(&self, stage: &mut Stage) -> Result<()> {
        match self.name {
            "arguments" => self.nothing_behind(),
            "help" => self.add_text(&mut stage.help),
            "environment" => self.add_text(&mut stage.environment),
            "labels" => self.labels(&mut stage.labels),
            "files" => self.files(&mut stage.files),
            "pre" => self.script(&mut stage.pre),
            "setup" => self.script(&mut stage.setup),
            "post" => self.script(&mut stage.post),
            "test" => self.script(&mut stage.test),
            "runscript" => self.script(&mut stage.runscript),
            "startscript" => self.script(&mut stage.startscript),
            other => {
                let all: Vec<String> =
                    SECTIONS.iter().chain(APP_SECTIONS).map(|name| format!("%{name}")).collect();
                wrong(
                    self.line,
                    format!("there is no section %{other}"),
                    format!("sections are {}", all.join(" ")),
                )
            }
        }
    }

    fn of_app(&self, stage: &mut Stage) -> Result<()> {
        let [app, rest @ ..] = self.words else {
            return wrong(
                self.line,
                format!("%{} names no application", self.name),
                "write the name behind it",
            );
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !app.bytes().all(fits) || app.starts_with(['.', '-']) || app.len() > 64 {
            let help = "letters, digits, dots, hyphens and underscores";
            return wrong(self.line, format!("{app:?} is not a name of an application"), help);
        }
        let app = stage.apps.entry((*app).to_owned()).or_default();
        let section = Section { words: rest, ..*self };
        match self.name {
            "appenv" => section.add_text(&mut app.environment),
            "appfiles" => section.files(&mut app.files),
            "apphelp" => section.add_text(&mut app.help),
            "appinstall" => section.script(&mut app.install),
            "applabels" => section.labels(&mut app.labels),
            "apprun" => section.script(&mut app.run),
            "appstart" => section.script(&mut app.start),
            _ => section.script(&mut app.test),
        }
    }

    fn nothing_behind(&self) -> Result<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => wrong(self.line, format!("{word:?} behind %{} means nothing", self.name), ""),
        }
    }

    fn text(&self) -> String {
        let lines: Vec<&str> = self.body.iter().map(|line| line.trim_end()).collect();
        let text = lines.join("\n");
        let text = text.trim_matches('\n');
        if text.is_empty() { String::new() } else { format!("{text}\n") }
    }

    fn add_text(&self, to: &mut Option<String>) -> Result<()> {
        self.nothing_behind()?;
        to.get_or_insert_default().push_str(&self.text());
        Ok(())
    }

    fn script(&self, to: &mut Option<Script>) -> Result<()> {
        let shell = match self.words {
            [] => None,
            ["-c", shell] if shell.starts_with('/') => Some((*shell).to_owned()),
            _ => {
                let help = "only a shell may: -c /bin/bash";
                return wrong(
                    self.line,
                    format!("{:?} behind %{} means nothing", self.words.join(" "), self.name),
                    help,
                );
            }
        };
        let script = to.get_or_insert_default();
        script.text.push_str(&self.text());
        script.shell = shell.or(script.shell.take());
        Ok(())
    }

    fn labels(&self, to: &mut BTreeMap<String, String>) -> Result<()> {
        self.nothing_behind()?;
        for (index, line) in self.body.iter().enumerate().filter(|(_, line)| !is_blank(line)) {
            let line_text = line.trim();
            let (name, value) =
                line_text.split_once(|c: char| c.is_whitespace() || c == '=').unwrap_or((line_text, ""));
            if name.is_empty() {
                return wrong(self.line + 1 + index, "a label has no name", "write NAME VALUE or NAME=VALUE");
            }
            to.insert(name.to_owned(), unquoted(value.trim()).to_owned());
        }
        Ok(())
    }

    fn files(&self, to: &mut Vec<Files>) -> Result<()> {
        let from = match self.words {
            [] => None,
            ["from", stage] => Some((*stage).to_owned()),
            _ => {
                let help = "only another stage may: from STAGE";
                return wrong(
                    self.line,
                    format!("{:?} behind %{} means nothing", self.words.join(" "), self.name),
                    help,
                );
            }
        };
        let mut files = Files { from, line: self.line, copies: Vec::new() };
        for (index, line) in self.body.iter().enumerate().filter(|(_, line)| !is_blank(line)) {
            let line_number = self.line + 1 + index;
            let mut words = match words(line) {
                Ok(words) => words.into_iter(),
                Err(problem) => return wrong(line_number, problem, "write SOURCE or SOURCE DESTINATION"),
            };
            let (from, to, more) = (words.next(), words.next(), words.next());
            match (from, more) {
                (Some(from), None) => files.copies.push(Copy { line: line_number, from, to }),
                _ => {
                    let help = "write SOURCE or SOURCE DESTINATION, with quotation marks around blanks";
                    return wrong(line_number, "there are more than two paths", help);
                }
            }
        }
        to.push(files);
        Ok(())
    }
}

/// Without the quotation marks around the whole, where they are around the whole.
fn unquoted(text: &str) -> &str {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.filter(|inner| !inner.contains('"')).unwrap_or(text)
}

/// The words of a line as a shell splits them, without any of its other arts.
fn words(line: &str) -> std::result::Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\\', q) if q != Some('\'') => {
                word.get_or_insert_default().push(chars.next().ok_or("it ends with a backslash")?);
            }
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quotation mark is not closed");
    }
    words.extend(word);
    if words.iter().any(String::is_empty) { Err("a path is empty") } else { Ok(words) }
}
