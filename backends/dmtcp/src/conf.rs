//! `dmtcp-conf.yaml`: which files of DMTCP are wanted, in Apptainer's own form (two lists of texts, `bins` and `libs`).
//! It says names or absolute paths; where names are sought is decided elsewhere.

use serde::Deserialize;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Looked at in this order where no other file is configured.
pub(crate) const DEFAULTS: &[&str] = &[
    "/etc/stasis/dmtcp-conf.yaml",
    "/etc/apptainer/dmtcp-conf.yaml",
    "/usr/local/etc/apptainer/dmtcp-conf.yaml",
];
/// What is larger is something else.
const LARGEST: u64 = 64 << 10;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfError {
    /// It cannot be read.
    #[error("cannot read {}: {}", path.display(), in_words(source))]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// It is far too large.
    #[error("{} is larger than {LARGEST} bytes and no list of DMTCP's files", path.display())]
    TooLarge { path: PathBuf },
    /// Its content is not what it has to be.
    #[error("{}:{line}:{column}: {why}; allowed are two lists of names or absolute paths, `bins` and `libs`", path.display())]
    Invalid { path: PathBuf, line: usize, column: usize, why: String },
}

impl ConfError {
    /// What to do about it.
    pub(crate) fn help(&self) -> String {
        let path = match self {
            Self::Unreadable { path, .. } | Self::TooLarge { path } | Self::Invalid { path, .. } => {
                path.display()
            }
        };
        match self {
            Self::Unreadable { .. } => {
                format!("make {path} readable, or take the option `config` out of plugins.toml")
            }
            Self::TooLarge { .. } => format!("let the option `config` name another file than {path}"),
            Self::Invalid { .. } => format!(
                "correct {path}, for example: bins: [dmtcp_launch], libs: [libdmtcp.so]; DMTCP is found without the file too"
            ),
        }
    }
}

fn in_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "you may not read it".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    }
}

/// The lists of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Conf {
    /// The file itself.
    pub path: PathBuf,
    /// Programs.
    pub bins: Vec<Entry>,
    /// Libraries.
    pub libs: Vec<Entry>,
}

impl Conf {
    /// Whether any place is told, rather than names only.
    pub(crate) fn has_places(&self) -> bool {
        self.bins.iter().chain(&self.libs).any(|entry| entry.path.is_some())
    }

    /// The entry for a file of that name.
    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.bins.iter().chain(&self.libs).find(|entry| entry.name == name)
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The file's name, without directories.
    pub name: String,
    /// The whole path, where the entry is absolute.
    pub path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "the lists")]
struct Raw {
    bins: Option<Vec<String>>,
    libs: Option<Vec<String>>,
}

/// Reads the configured file, or the first of the defaults that is there.
pub(crate) fn load(configured: Option<&Path>) -> Result<Option<Conf>, ConfError> {
    // The documented default may be written down without the file being there.
    if let Some(path) = configured.filter(|path| *path != Path::new(DEFAULTS[0])) {
        return read(path).map(Some);
    }
    for path in DEFAULTS {
        match read(Path::new(path)) {
            Err(ConfError::Unreadable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => return other.map(Some),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Conf, ConfError> {
    let unreadable = |source| ConfError::Unreadable { path: path.to_owned(), source };
    // A FIFO would block the open; nothing but a regular file is a configuration.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other("it is not a regular file")));
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LARGEST {
        return Err(ConfError::TooLarge { path: path.to_owned() });
    }
    parse(path, &text)
}

/// Reads the text of the file at `path`.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Conf, ConfError> {
    let invalid = |line, column, why| ConfError::Invalid { path: path.to_owned(), line, column, why };
    // An empty file, or one of comments only, is one that says nothing.
    let raw: Option<Raw> = serde_yaml::from_str(text).map_err(|error| {
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let why = error.to_string();
        let why = why.split(" at line ").next().unwrap_or(&why).to_owned();
        invalid(line.max(1), column.max(1), why)
    })?;
    let Raw { bins, libs } = raw.unwrap_or(Raw { bins: None, libs: None });
    let entries = |list: Option<Vec<String>>| {
        let list = list.unwrap_or_default().into_iter();
        list.map(|item| {
            entry(&item).ok_or_else(|| {
                let (line, column) = place(text, &item);
                invalid(line, column, format!("{item:?} is neither a name nor an absolute path"))
            })
        })
        .collect::<Result<Vec<_>, _>>()
    };
    Ok(Conf { path: path.to_owned(), bins: entries(bins)?, libs: entries(libs)? })
}

fn entry(item: &str) -> Option<Entry> {
    let name = item.rsplit('/').next().unwrap_or(item);
    if name.is_empty() || name == "." || name == ".." || item.contains('\0') {
        return None;
    }
    match item.contains('/') {
        false => Some(Entry { name: name.to_owned(), path: None }),
        true if item.starts_with('/') => Some(Entry { name: name.to_owned(), path: Some(item.into()) }),
        true => None,
    }
}

/// The first place at which an entry's text stands.
fn place(text: &str, item: &str) -> (usize, usize) {
    let at = if item.is_empty() { None } else { text.find(item) };
    let before = &text[..at.unwrap_or(0)];
    let line = before.matches('\n').count() + 1;
    (line, before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        parse(Path::new("/c.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn reads_names_and_places() {
        let conf = parse(
            Path::new("/c"),
            "# x\nbins:\n  - dmtcp_launch\n  - /opt/d/bin/dmtcp_ssh\nlibs: [libdmtcp.so]\n",
        )
        .unwrap();
        assert_eq!(conf.entry("dmtcp_ssh").unwrap().path, Some("/opt/d/bin/dmtcp_ssh".into()));
        assert_eq!(conf.entry("libdmtcp.so").unwrap().path, None);
        assert!(conf.has_places() && conf.entry("x").is_none());
        for empty in ["", "# nothing\n", "bins:\nlibs:\n", "bins: []\n"] {
            let conf = parse(Path::new("/c"), empty).unwrap();
            assert!(conf.bins.is_empty() && conf.libs.is_empty() && !conf.has_places(), "{empty:?}");
        }
    }

    #[test]
    fn tells_what_is_wrong_and_where() {
        insta::assert_snapshot!(told("bins: []\nlibraries: []\n"), @"/c.yaml:2:1: unknown field `libraries`, expected `bins` or `libs`; allowed are two lists of names or absolute paths, `bins` and `libs`");
        insta::assert_snapshot!(told("bins: 7\nlibs: []\n"), @"/c.yaml:1:7: bins: invalid type: integer `7`, expected a sequence; allowed are two lists of names or absolute paths, `bins` and `libs`");
        insta::assert_snapshot!(told("bins: [dmtcp_launch\nlibs: []\n"), @"/c.yaml:2:5: did not find expected ',' or ']'; allowed are two lists of names or absolute paths, `bins` and `libs`");
        insta::assert_snapshot!(told("bins:\n  - 1: 2\nlibs: []\n"), @"/c.yaml:2:5: bins[0]: invalid type: map, expected a string; allowed are two lists of names or absolute paths, `bins` and `libs`");
        insta::assert_snapshot!(told("- dmtcp_launch\n"), @"/c.yaml:1:1: invalid type: sequence, expected the lists; allowed are two lists of names or absolute paths, `bins` and `libs`");
        insta::assert_snapshot!(told("bins:\n  - dmtcp_launch\n  - bin/dmtcp_ssh\n"), @r#"/c.yaml:3:5: "bin/dmtcp_ssh" is neither a name nor an absolute path; allowed are two lists of names or absolute paths, `bins` and `libs`"#);
        insta::assert_snapshot!(told("libs: ['']\n"), @r#"/c.yaml:1:1: "" is neither a name nor an absolute path; allowed are two lists of names or absolute paths, `bins` and `libs`"#);
        insta::assert_snapshot!(told("bins: [a]\nbins: [b]\n"), @"/c.yaml:1:1: duplicate field `bins`; allowed are two lists of names or absolute paths, `bins` and `libs`");
    }

    #[test]
    fn survives_nonsense() {
        for text in [
            "\0",
            "{{{{",
            "&a [*a, *a]",
            "bins: !!binary x",
            "%YAML 9.9\n---\n",
            "bins: [\"\\0\"]",
            "bins: ['/']",
            "bins: [..]",
            "? :",
            "--- a\n--- b\n",
        ] {
            assert!(parse(Path::new("/c"), text).is_err(), "{text:?}");
        }
        let deep = "[".repeat(20_000);
        assert!(parse(Path::new("/c"), &deep).is_err());
    }

    #[test]
    fn files_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let told = |path: &Path| {
            load(Some(path)).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR")
        };
        insta::assert_snapshot!(told(&path), @"cannot read DIR/c.yaml: there is no such file");
        insta::assert_snapshot!(told(dir.path()), @"cannot read DIR: it is not a regular file");
        std::fs::write(&path, vec![b'#'; 70_000]).unwrap();
        insta::assert_snapshot!(told(&path), @"DIR/c.yaml is larger than 65536 bytes and no list of DMTCP's files");
        std::fs::write(&path, b"bins: [\xff]").unwrap();
        assert!(matches!(load(Some(&path)), Err(ConfError::Unreadable { .. })));
        std::fs::write(&path, "bins: [dmtcp_launch]").unwrap();
        assert_eq!(load(Some(&path)).unwrap().unwrap().path, path);
    }
}
