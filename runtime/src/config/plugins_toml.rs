//! The schema of `plugins.toml` and its reader: text in, typed values with their places out. Which file counts for
//! what is decided by the layers in `config`, not here; nothing here opens a library.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use semver::VersionReq;
use serde::Deserialize;
use toml::Spanned;

use super::error::{ConfigError, Position};
use crate::config::paths::Context;
use crate::name::BackendName;
use crate::registry::trust;

/// The only schema there is.
const SCHEMA: i64 = 1;
/// Far above any real configuration.
const MAX_SIZE: u64 = 1 << 20;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The configuration compiled into the program.
    BuiltIn,
    /// A file.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in configuration"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A value and where it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// The file that says so.
    pub source: Source,
    /// Where in it; none for a value that nobody set.
    pub at: Option<Position>,
}

impl<T> Sourced<T> {
    /// `FILE:LINE`, for notes and tables, or `not set`.
    pub fn place(&self) -> String {
        match &self.at {
            Some(at) => format!("{}:{}", self.source, at.line),
            None => "not set".to_owned(),
        }
    }
}

/// What is used where nobody names a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultBackend {
    /// The first usable one of `order`.
    Auto,
    /// This one.
    Named(BackendName),
}

/// Where a backend's shared library is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    /// A bare file name, looked for in the search directories.
    Named(String),
    /// An absolute path.
    At(PathBuf),
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::At(path) => write!(f, "{}", path.display()),
        }
    }
}

/// One `[backends.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendEntry {
    /// `library`, else `libstasis_NAME.so`.
    pub library: Library,
    /// What the plugin's own version must satisfy.
    pub version: Option<VersionReq>,
    /// The pinned digest of the library: 64 lower-case hexadecimal digits.
    pub sha256: Option<String>,
    /// Whether it may be used.
    pub enabled: bool,
    /// `[backends.NAME.options]`, to be checked against what the plugin describes.
    pub options: BTreeMap<String, serde_json::Value>,
    /// The file that defines it. Relative paths among the options are relative to its directory.
    pub source: Source,
    /// Where in that file.
    pub at: Position,
}

/// One parsed file.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginsFile {
    /// Which.
    pub source: Source,
    /// `default`.
    pub default: Option<Sourced<DefaultBackend>>,
    /// `order`, each name with its own place.
    pub order: Option<Vec<Sourced<BackendName>>>,
    /// `search`, absolute.
    pub search: Option<Vec<Sourced<PathBuf>>>,
    /// `locked`.
    pub locked: Option<Sourced<bool>>,
    /// `allow-user-plugins`.
    pub allow_user_plugins: Option<Sourced<bool>>,
    /// `keep`: how many generations a checkpoint keeps, at least 1.
    pub keep: Option<Sourced<u32>>,
    /// `[backends.*]`.
    pub backends: BTreeMap<BackendName, BackendEntry>,
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawFile {
    #[serde(rename = "schema")]
    _schema: i64,
    default: Option<Spanned<String>>,
    order: Option<Vec<Spanned<String>>>,
    search: Option<Vec<Spanned<String>>>,
    locked: Option<Spanned<bool>>,
    allow_user_plugins: Option<Spanned<bool>>,
    keep: Option<Spanned<i64>>,
    #[serde(default)]
    backends: BTreeMap<Spanned<String>, RawBackend>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawBackend {
    library: Option<Spanned<String>>,
    version: Option<Spanned<String>>,
    sha256: Option<Spanned<String>>,
    enabled: Option<bool>,
    #[serde(default)]
    options: BTreeMap<Spanned<String>, Spanned<toml::Value>>,
}

/// Reads a file that the user or root owns and nobody else may write. None when there is no such file.
pub fn load(path: &Path, context: &Context) -> Result<Option<PluginsFile>, ConfigError> {
    let path =
        std::path::absolute(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let file = match trust::open_file(&path, context.euid) {
        Ok(file) => file,
        Err(trust::TrustError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(ConfigError::Untrusted(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(ConfigError::TooLarge { path, limit: MAX_SIZE });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let what = format!("not UTF-8 text (byte {})", error.utf8_error().valid_up_to());
        ConfigError::invalid(&path, None, what, None)
    })?;
    parse(&text, &path).map(Some)
}

/// Parses the text of the file `path`, an absolute path; relative paths inside are relative to its directory.
pub fn parse(text: &str, path: &Path) -> Result<PluginsFile, ConfigError> {
    Reader { text, file: path, source: Source::File(path.to_owned()) }.read()
}

/// Parses the configuration that is compiled in.
pub(crate) fn parse_built_in(text: &str) -> Result<PluginsFile, ConfigError> {
    Reader { text, file: Path::new("built-in configuration"), source: Source::BuiltIn }.read()
}

struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
    source: Source,
}

impl Reader<'_> {
    fn read(&self) -> Result<PluginsFile, ConfigError> {
        // Before the rest: a later schema has keys of its own, which are not what is wrong with the file.
        let first: SchemaOnly = toml::from_str(self.text).map_err(|error| self.syntax(&error))?;
        match first.schema {
            None => {
                let what = "there is no `schema`".to_owned();
                return Err(ConfigError::invalid(self.file, None, what, Some("schema = 1".to_owned())));
            }
            Some(schema) if *schema.get_ref() != SCHEMA => {
                let what = format!("schema {} is not known to this version of stasis", schema.get_ref());
                return Err(self.error(schema.span(), what, "schema = 1"));
            }
            Some(_) => {}
        }
        let raw: RawFile = toml::from_str(self.text).map_err(|error| self.syntax(&error))?;
        let mut backends = BTreeMap::new();
        for (name, entry) in raw.backends {
            let (name, entry) = self.backend(&name, entry)?;
            backends.insert(name, entry);
        }
        Ok(PluginsFile {
            source: self.source.clone(),
            default: raw.default.map(|v| self.default(v)).transpose()?,
            order: raw.order.map(|v| v.into_iter().map(|n| self.named(n)).collect()).transpose()?,
            search: raw.search.map(|v| v.into_iter().map(|p| self.directory(p)).collect()).transpose()?,
            locked: raw.locked.map(|v| self.sourced(v.span(), v.into_inner())),
            allow_user_plugins: raw.allow_user_plugins.map(|v| self.sourced(v.span(), v.into_inner())),
            keep: raw.keep.map(|v| self.keep(&v)).transpose()?,
            backends,
        })
    }

    fn backend(
        &self,
        name: &Spanned<String>,
        raw: RawBackend,
    ) -> Result<(BackendName, BackendEntry), ConfigError> {
        if name.get_ref() == "auto" {
            let what = "`auto` stands for a choice and cannot be a backend's name".to_owned();
            return Err(self.error(name.span(), what, "any other name"));
        }
        let parsed = self.name(name)?;
        let version = raw.version.map(|v| self.version(&v)).transpose()?;
        let library = match raw.library {
            Some(library) => self.library(&library)?,
            None => Library::Named(format!("libstasis_{}.so", name.get_ref().replace(['-', '.'], "_"))),
        };
        let mut options = BTreeMap::new();
        for (key, value) in raw.options {
            let span = value.span();
            let value = to_json(value.into_inner()).map_err(|what| {
                self.error(span, format!("the option `{}` {what}", key.get_ref()), "a finite number")
            })?;
            options.insert(key.into_inner(), value);
        }
        let entry = BackendEntry {
            library,
            version,
            sha256: raw.sha256.map(|v| self.digest(&v)).transpose()?,
            enabled: raw.enabled.unwrap_or(true),
            options,
            source: self.source.clone(),
            at: Position::of(self.text, name.span()),
        };
        Ok((parsed, entry))
    }

    fn default(&self, value: Spanned<String>) -> Result<Sourced<DefaultBackend>, ConfigError> {
        let parsed = match value.get_ref().as_str() {
            "auto" => DefaultBackend::Auto,
            _ => DefaultBackend::Named(self.name(&value)?),
        };
        Ok(self.sourced(value.span(), parsed))
    }

    fn named(&self, value: Spanned<String>) -> Result<Sourced<BackendName>, ConfigError> {
        Ok(self.sourced(value.span(), self.name(&value)?))
    }

    fn name(&self, value: &Spanned<String>) -> Result<BackendName, ConfigError> {
        value.get_ref().parse().map_err(|_| {
            let what = format!("{:?} is not a backend's name", value.get_ref());
            self.error(value.span(), what, "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit")
        })
    }

    fn directory(&self, value: Spanned<String>) -> Result<Sourced<PathBuf>, ConfigError> {
        if value.get_ref().is_empty() {
            return Err(self.error(value.span(), "an empty path".to_owned(), "a directory"));
        }
        let path = self.beside(value.get_ref());
        Ok(self.sourced(value.span(), path))
    }

    fn library(&self, value: &Spanned<String>) -> Result<Library, ConfigError> {
        let text = value.get_ref();
        if text.is_empty() || text.ends_with('/') || text.contains('\0') {
            let what = format!("{text:?} is not the name of a library");
            return Err(self.error(value.span(), what, "a file name to search for, or a path"));
        }
        let bare = !text.contains('/');
        Ok(if bare { Library::Named(text.clone()) } else { Library::At(self.beside(text)) })
    }

    /// Absolute, or relative to the directory of the file.
    fn beside(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("/")).join(path)
    }

    fn version(&self, value: &Spanned<String>) -> Result<VersionReq, ConfigError> {
        VersionReq::parse(value.get_ref()).map_err(|error| {
            let what = format!("{:?} is not a version requirement: {error}", value.get_ref());
            self.error(value.span(), what, "comparisons as in \">=0.1, <1\"")
        })
    }

    fn digest(&self, value: &Spanned<String>) -> Result<String, ConfigError> {
        let text = value.get_ref();
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(text.to_ascii_lowercase());
        }
        let what = format!("not a SHA-256 digest: it has {} characters", text.chars().count());
        let what = if text.len() == 64 { "not a SHA-256 digest".to_owned() } else { what };
        Err(self.error(value.span(), what, "the 64 hexadecimal digits that `sha256sum` prints"))
    }

    fn keep(&self, value: &Spanned<i64>) -> Result<Sourced<u32>, ConfigError> {
        match u32::try_from(*value.get_ref()) {
            Ok(keep) if keep > 0 => Ok(self.sourced(value.span(), keep)),
            _ => {
                let what = format!("a checkpoint cannot keep {} generations", value.get_ref());
                Err(self.error(value.span(), what, "1 or more"))
            }
        }
    }

    fn sourced<T>(&self, span: Range<usize>, value: T) -> Sourced<T> {
        Sourced { value, source: self.source.clone(), at: Some(Position::of(self.text, span)) }
    }

    fn error(&self, span: Range<usize>, what: String, allowed: &str) -> ConfigError {
        let at = Some(Position::of(self.text, span));
        ConfigError::invalid(self.file, at, what, Some(allowed.to_owned()))
    }

    /// A complaint of the parser or of serde. The latter ends in what it expected.
    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let message = error.message().trim();
        let (what, allowed) = match message.split_once(", expected ") {
            Some((what, allowed)) => (what, Some(allowed.trim_start_matches("one of ").replace('`', ""))),
            None => (message, None),
        };
        let what = what.replace("unknown field", "unknown key").replace('\n', ", ");
        let at = error.span().map(|span| Position::of(self.text, span));
        ConfigError::invalid(self.file, at, what, allowed)
    }
}

fn to_json(value: toml::Value) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| format!("is {number}, which no plugin can be given"))?,
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?),
        toml::Value::Table(table) => {
            let pairs = table.into_iter().map(|(key, value)| Ok((key, to_json(value)?)));
            Value::Object(pairs.collect::<Result<_, String>>()?)
        }
    })
}

#[cfg(test)]
mod tests;
