//! What a user says about binds and scratch directories, and the mounts that it means. Sources are only looked
//! at, never opened: between here and the mount the launcher opens them by descriptor.

use std::path::{Component, Path, PathBuf};

use stasis_plugin_api::plan::INJECT;

use super::identity::{HostFacts, Source};
use super::{ContainerSpec, Mount};

/// What is wrong with a bind. Every message holds what was typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Not of the shape.
    #[error("{flag} {typed:?} cannot be understood: {problem}")]
    Syntax { flag: &'static str, typed: String, problem: String },
    /// Nothing to show.
    #[error("{flag} {typed:?}: \"{}\" does not exist on this host", path.display())]
    Missing { flag: &'static str, typed: String, path: PathBuf },
    /// No way to it.
    #[error("{flag} {typed:?}: \"{}\" cannot be reached: permission denied", path.display())]
    Denied { flag: &'static str, typed: String, path: PathBuf },
    /// A file where a directory is needed.
    #[error("{flag} {typed:?}: \"{}\" is not a directory", path.display())]
    NotADirectory { flag: &'static str, typed: String, path: PathBuf },
    /// Not absolute.
    #[error("{flag} {typed:?}: the place inside, \"{}\", does not begin with a slash", target.display())]
    RelativeTarget { flag: &'static str, typed: String, target: PathBuf },
    /// `/`.
    #[error("{flag} {typed:?}: nothing can be put over the container's whole root")]
    RootTarget { flag: &'static str, typed: String },
    /// `/.stasis`.
    #[error("{flag} {typed:?}: \"{}\" is reserved for the container itself", target.display())]
    Reserved { flag: &'static str, typed: String, target: PathBuf },
    /// `--bind-remap` of what is not bound.
    #[error("--bind-remap: the container has no bind of \"{}\"", old.display())]
    NothingToRemap { old: PathBuf, have: Vec<PathBuf> },
}

impl BindError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Syntax { flag: "--mount", .. } => "write --mount type=bind,src=SRC,dst=DST[,ro]".to_owned(),
            Self::Syntax { flag: "--bind", .. } => {
                "write --bind SRC[:DST[:ro|rw]]; a comma or a colon in a path needs a backslash before it"
                    .to_owned()
            }
            Self::Syntax { .. } | Self::NotADirectory { .. } => return None,
            Self::Missing { .. } => "check the spelling, or make it first".to_owned(),
            Self::Denied { .. } => "every directory above it needs search permission for you".to_owned(),
            Self::RelativeTarget { target, .. } => format!("write /{}", target.display()),
            Self::RootTarget { .. } => "name a directory below /".to_owned(),
            Self::Reserved { .. } => format!("choose a place that is not below {INJECT}"),
            Self::NothingToRemap { have, .. } if have.is_empty() => {
                "it has no binds of yours at all".to_owned()
            }
            Self::NothingToRemap { have, .. } => {
                let have: Vec<String> = have.iter().map(|p| p.display().to_string()).collect();
                format!("it has {}", have.join(", "))
            }
        })
    }
}

/// One bind as a user meant it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserBind {
    /// On the host, absolute.
    pub source: PathBuf,
    /// Inside, absolute, without `.` and `..`.
    pub target: PathBuf,
    /// Whether writing is allowed.
    pub writable: bool,
}

impl UserBind {
    /// As `--bind` would say it, for the variables inside.
    #[must_use]
    pub fn to_word(&self) -> String {
        let ro = if self.writable { "" } else { ":ro" };
        format!("{}:{}{ro}", self.source.display(), self.target.display())
    }

    /// As a mount.
    #[must_use]
    pub fn into_mount(self) -> Mount {
        Mount::Bind {
            source: self.source,
            target: self.target,
            writable: self.writable,
            optional: false,
            user: true,
        }
    }
}

/// All binds of `--bind` and `--mount`, in this order. Of several for one place the last one is kept.
///
/// # Errors
/// The first one that is wrong.
pub fn user_binds(
    binds: &[String],
    mounts: &[String],
    facts: &HostFacts,
) -> Result<Vec<UserBind>, BindError> {
    let mut all: Vec<UserBind> = Vec::new();
    let mut add = |bind: UserBind| {
        all.retain(|other| other.target != bind.target);
        all.push(bind);
    };
    for flag in binds {
        for item in split_escaped(flag, ',') {
            if !item.trim().is_empty() {
                add(parse_bind(&item, facts)?);
            }
        }
    }
    for flag in mounts {
        add(parse_mount(flag, facts)?);
    }
    Ok(all)
}

fn parse_bind(typed: &str, facts: &HostFacts) -> Result<UserBind, BindError> {
    let flag = "--bind";
    let syntax =
        |problem: &str| BindError::Syntax { flag, typed: typed.to_owned(), problem: problem.to_owned() };
    let parts: Vec<String> = split_escaped(typed, ':').into_iter().map(|part| unescape(&part)).collect();
    let (source, target, options) = match parts.as_slice() {
        [source] => (source, source, None),
        [source, target] => (source, target, None),
        [source, target, options] => (source, target, Some(options)),
        _ => return Err(syntax("there are too many colons in it")),
    };
    if source.is_empty() {
        return Err(syntax("the source is empty"));
    }
    let writable = match options.map(String::as_str) {
        None | Some("rw") => true,
        Some("ro") => false,
        Some(other) => return Err(syntax(&format!("{other:?} is neither ro nor rw"))),
    };
    let source = source_path(flag, typed, source, facts)?;
    let target =
        if parts.len() == 1 || target.is_empty() { clean(&source) } else { checked(flag, typed, target)? };
    // A source without a target can name a forbidden place too.
    let target = checked(flag, typed, &target)?;
    Ok(UserBind { source, target, writable })
}

fn parse_mount(typed: &str, facts: &HostFacts) -> Result<UserBind, BindError> {
    let flag = "--mount";
    let syntax = |problem: String| BindError::Syntax { flag, typed: typed.to_owned(), problem };
    let fields = csv(typed).map_err(&syntax)?;
    let (mut kind, mut source, mut target, mut writable) = (None, None, None, true);
    for field in &fields {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key.trim() {
            "type" => kind = Some(value),
            "source" | "src" => source = Some(value),
            "destination" | "dst" | "target" => target = Some(value),
            "ro" | "readonly" if matches!(value, "" | "true" | "1") => writable = false,
            "ro" | "readonly" if matches!(value, "false" | "0") => writable = true,
            "rw" if value.is_empty() => writable = true,
            // Private propagation is what every bind has.
            "bind-propagation" if matches!(value, "private" | "rprivate") => {}
            other => return Err(syntax(format!("{other:?} is not known"))),
        }
    }
    match kind {
        Some("bind") => {}
        Some(other) => return Err(syntax(format!("the type is {other:?}, and only bind is possible"))),
        None => return Err(syntax("the type is missing".to_owned())),
    }
    let source =
        source.filter(|s| !s.is_empty()).ok_or_else(|| syntax("the source is missing".to_owned()))?;
    let target =
        target.filter(|s| !s.is_empty()).ok_or_else(|| syntax("the destination is missing".to_owned()))?;
    let source = source_path(flag, typed, source, facts)?;
    Ok(UserBind { source, target: checked(flag, typed, target)?, writable })
}

/// A source that is there, absolute. `..` stays in it: over a link only the kernel knows what it means.
pub(crate) fn source_path(
    flag: &'static str,
    typed: &str,
    source: &str,
    facts: &HostFacts,
) -> Result<PathBuf, BindError> {
    let path = facts.cwd.join(source);
    // Trailing slashes and `.` would only make two names of one thing.
    let path: PathBuf = path.components().collect();
    match (facts.look)(&path) {
        Source::Missing => Err(BindError::Missing { flag, typed: typed.to_owned(), path }),
        Source::Denied => Err(BindError::Denied { flag, typed: typed.to_owned(), path }),
        Source::Directory | Source::File => Ok(path),
    }
}

/// The same, and a directory.
pub(crate) fn source_directory(
    flag: &'static str,
    typed: &str,
    facts: &HostFacts,
) -> Result<PathBuf, BindError> {
    let path = source_path(flag, typed, typed, facts)?;
    match (facts.look)(&path) {
        Source::Directory => Ok(path),
        _ => Err(BindError::NotADirectory { flag, typed: typed.to_owned(), path }),
    }
}

/// A place inside, cleaned, that may be mounted on.
pub(crate) fn checked(
    flag: &'static str,
    typed: &str,
    target: impl AsRef<Path>,
) -> Result<PathBuf, BindError> {
    let typed = typed.to_owned();
    let target = target.as_ref();
    if !target.is_absolute() {
        return Err(BindError::RelativeTarget { flag, typed, target: target.to_owned() });
    }
    let target = clean(target);
    if target == Path::new("/") {
        return Err(BindError::RootTarget { flag, typed });
    }
    if target.starts_with(INJECT) {
        return Err(BindError::Reserved { flag, typed, target });
    }
    Ok(target)
}

/// An absolute path without `.`, `..` and doubled slashes.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Splits at `at` where no backslash is before it. Backslashes stay.
fn split_escaped(text: &str, at: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == at {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
            if c == '\\' {
                part.extend(chars.next());
            }
        }
    }
    parts
}

/// A backslash before a comma, a colon or a backslash goes; any other is part of a name.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(next @ (',' | ':' | '\\'))) => {
                out.push(*next);
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}

/// One line of comma separated values: a field that begins with `"` ends with one, and `""` in it is one.
pub(crate) fn csv(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let field;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut tail = quoted;
            loop {
                let (before, after) = tail.split_once('"').ok_or("a quotation mark is not closed")?;
                text.push_str(before);
                match after.strip_prefix('"') {
                    Some(more) => {
                        text.push('"');
                        tail = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            field = text;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let (text, tail) = rest.split_at(end);
            field = text.to_owned();
            rest = tail;
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return Err("something follows a closing quotation mark".to_owned()),
        }
    }
}

/// Takes the user's binds of a stored spec from other places of the host. `OLD` is a source or a directory above it.
///
/// # Errors
/// No bind of the user's has such a source, or a source is not there afterwards.
pub fn remap(
    spec: &mut ContainerSpec,
    remaps: &[(PathBuf, PathBuf)],
    facts: &HostFacts,
) -> Result<(), BindError> {
    for (old, new) in remaps {
        let typed = format!("{}={}", old.display(), new.display());
        let mut have = Vec::new();
        let mut found = false;
        for mount in &mut spec.mounts {
            let Mount::Bind { source, user: true, .. } = mount else { continue };
            have.push(source.clone());
            if let Ok(below) = source.strip_prefix(old) {
                let moved: PathBuf = new.join(below).components().collect();
                *source = source_path("--bind-remap", &typed, &moved.to_string_lossy(), facts)?;
                found = true;
            }
        }
        if !found {
            return Err(BindError::NothingToRemap { old: old.clone(), have });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
