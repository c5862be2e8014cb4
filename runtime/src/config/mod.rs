//! The settings: which backends exist and which may be used, merged from the administrator's, the packages' and
//! the user's files. Each value remembers the file that said it. Choosing a backend and finding its library is the
//! registry's.

pub mod error;
pub mod paths;
pub mod plugins_toml;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, Diagnostic, Position};
pub use paths::{Context, PathsError};
pub use plugins_toml::{BackendEntry, DefaultBackend, Library, PluginsFile, Source, Sourced};

use crate::name::BackendName;

/// The project's own `plugins.toml`, in force where the administrator has written none.
const BUILT_IN: &str = include_str!("../../../plugins.toml");

/// What all the files together say.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is used where nobody names a backend.
    pub default: Sourced<DefaultBackend>,
    /// What `auto` tries, in this order. May name backends that do not exist; see [`Settings::notes`].
    pub order: Vec<Sourced<BackendName>>,
    /// Where bare library names are looked for, in this order, absolute.
    pub search: Vec<Sourced<PathBuf>>,
    /// Whether `--config` and `STASIS_CONFIG` are refused.
    pub locked: Sourced<bool>,
    /// Whether users may bring backends in their own file.
    pub allow_user_plugins: Sourced<bool>,
    /// How many generations a checkpoint keeps where the command does not say; none: all.
    pub keep: Option<Sourced<u32>>,
    /// Every backend, the disabled ones too.
    pub backends: BTreeMap<BackendName, BackendEntry>,
    /// The files that were read, the strongest last.
    pub files: Vec<PathBuf>,
    /// What an administrator should know but nothing fails of: ignored files, names in `order` that are not defined.
    pub notes: Vec<String>,
}

/// What a file may say, by where it lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// The administrator's, one named by the user in its place, or the built-in text: everything.
    Whole,
    /// A package's: backends only.
    DropIn,
    /// The user's: backends and preferences, no policy.
    User,
}

impl Settings {
    /// Reads the files. `config` is the value of `--config`.
    pub fn load(context: &Context, config: Option<&Path>) -> Result<Self, ConfigError> {
        let system_path = context.system_dir().join("plugins.toml");
        let system = plugins_toml::load(&system_path, context)?;
        if let Some((path, named_by)) = replacing(context, config)? {
            if system.as_ref().and_then(|s| s.locked.as_ref()).is_some_and(|locked| locked.value) {
                return Err(ConfigError::Locked { named_by, file: system_path });
            }
            let file = plugins_toml::load(&path, context)?
                .ok_or_else(|| ConfigError::Missing { path: path.clone(), named_by })?;
            let mut settings = Self::empty();
            settings.merge(file, Layer::Whole)?;
            return Ok(settings.finish());
        }
        let mut settings = Self::empty();
        let administered = system.is_some();
        match system {
            Some(file) => settings.merge(file, Layer::Whole)?,
            None => settings.merge(plugins_toml::parse_built_in(BUILT_IN)?, Layer::Whole)?,
        }
        let drop_ins = drop_ins(&context.system_dir().join("plugins.d"))?;
        // Where no administrator has said anything, there is nothing that the user's file could break.
        let unruled = !administered && drop_ins.is_empty();
        for path in drop_ins {
            if let Some(file) = plugins_toml::load(&path, context)? {
                settings.merge(file, Layer::DropIn)?;
            }
        }
        settings.merge_user(context, unruled)?;
        Ok(settings.finish())
    }

    /// The names of the backends that may be used.
    pub fn enabled(&self) -> impl Iterator<Item = &BackendName> {
        self.backends.iter().filter(|(_, entry)| entry.enabled).map(|(name, _)| name)
    }

    fn empty() -> Self {
        fn unset<T>(value: T) -> Sourced<T> {
            Sourced { value, source: Source::BuiltIn, at: None }
        }
        Self {
            default: unset(DefaultBackend::Auto),
            order: Vec::new(),
            search: Vec::new(),
            locked: unset(false),
            allow_user_plugins: unset(false),
            keep: None,
            backends: BTreeMap::new(),
            files: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn merge_user(&mut self, context: &Context, unruled: bool) -> Result<(), ConfigError> {
        if context.is_root() {
            return Ok(());
        }
        // Without a home there is no file of the user's, which is no error.
        let Ok(home) = context.config_home() else { return Ok(()) };
        let path = home.join("plugins.toml");
        if unruled || self.allow_user_plugins.value {
            if let Some(file) = plugins_toml::load(&path, context)? {
                self.merge(file, Layer::User)?;
            }
        } else if path.symlink_metadata().is_ok() {
            let why = self.allow_user_plugins.place();
            self.notes.push(format!("{} is ignored: allow-user-plugins is false ({why})", path.display()));
        }
        Ok(())
    }

    fn merge(&mut self, file: PluginsFile, layer: Layer) -> Result<(), ConfigError> {
        check_layer(&file, layer)?;
        for (name, entry) in file.backends {
            if let Some(earlier) = self.backends.get(&name)
                && earlier.source != Source::BuiltIn
            {
                let what = format!("the backend `{name}` is already defined in {}", earlier.source);
                let other = "another name, or a change of that file".to_owned();
                let here = PathBuf::from(entry.source.to_string());
                return Err(ConfigError::invalid(&here, Some(entry.at), what, Some(other)));
            }
            self.backends.insert(name, entry);
        }
        self.default = file.default.unwrap_or_else(|| self.default.clone());
        self.order = file.order.unwrap_or_else(|| std::mem::take(&mut self.order));
        // A user's directories come after the administrator's, so that they shadow nothing.
        self.search.extend(file.search.unwrap_or_default());
        self.locked = file.locked.unwrap_or_else(|| self.locked.clone());
        self.allow_user_plugins = file.allow_user_plugins.unwrap_or_else(|| self.allow_user_plugins.clone());
        self.keep = file.keep.or_else(|| self.keep.take());
        if let Source::File(path) = file.source {
            self.files.push(path);
        }
        Ok(())
    }

    fn finish(mut self) -> Self {
        if self.order.is_empty() {
            let of = |(name, entry): (&BackendName, &BackendEntry)| Sourced {
                value: name.clone(),
                source: entry.source.clone(),
                at: Some(entry.at.clone()),
            };
            self.order = self.backends.iter().map(of).collect();
        }
        for name in self.order.iter().filter(|name| !self.backends.contains_key(&name.value)) {
            self.notes.push(format!(
                "{}: `order` names {}, which no file defines; it is passed over",
                name.place(),
                name.value
            ));
        }
        self
    }
}

/// The file that stands in for all others, if one is named, and what names it.
fn replacing(
    context: &Context,
    config: Option<&Path>,
) -> Result<Option<(PathBuf, &'static str)>, ConfigError> {
    if let Some(path) = config {
        return Ok(Some((path.to_owned(), "--config")));
    }
    match context.var("STASIS_CONFIG") {
        Some(value) if context.is_root() => Err(ConfigError::EnvironmentAsRoot { value: value.to_owned() }),
        Some(value) => Ok(Some((PathBuf::from(value), "STASIS_CONFIG"))),
        None => Ok(None),
    }
}

/// The packages' files, in the order of their names. Each is checked when it is opened.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Refuses keys that a file of this layer may not set.
fn check_layer(file: &PluginsFile, layer: Layer) -> Result<(), ConfigError> {
    fn at<T>(value: &Option<Sourced<T>>) -> Option<Option<Position>> {
        value.as_ref().map(|sourced| sourced.at.clone())
    }
    fn first<T>(values: &Option<Vec<Sourced<T>>>) -> Option<Option<Position>> {
        values.as_ref().map(|list| list.first().and_then(|sourced| sourced.at.clone()))
    }
    let policy = [("locked", at(&file.locked)), ("allow-user-plugins", at(&file.allow_user_plugins))];
    let preferences = [
        ("default", at(&file.default)),
        ("order", first(&file.order)),
        ("search", first(&file.search)),
        ("keep", at(&file.keep)),
    ];
    let (refused, allowed): (Vec<_>, _) = match layer {
        Layer::Whole => return Ok(()),
        Layer::User => (policy.into(), "default, order, search, keep and [backends.NAME]"),
        Layer::DropIn => (policy.into_iter().chain(preferences).collect(), "[backends.NAME]"),
    };
    for (key, place) in refused {
        if let Some(place) = place {
            let what = match layer {
                Layer::User => format!("`{key}` is the administrator's to set"),
                _ => format!("`{key}` belongs into the main plugins.toml"),
            };
            let path = PathBuf::from(file.source.to_string());
            return Err(ConfigError::invalid(&path, place, what, Some(allowed.to_owned())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
