//! Which backend: a pure decision over names and settings. It opens nothing, and it never falls back from a name
//! that somebody gave to another one.

use crate::config::{DefaultBackend, Settings};
use crate::name::BackendName;

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Named(BackendName),
    /// The first of these that works here; never empty.
    Auto(Vec<BackendName>),
}

/// Why there is no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// `--backend` names another backend than the checkpoint's.
    #[error("the checkpoint belongs to the backend {recorded}, --backend says {flag}")]
    Contradiction {
        /// The checkpoint's.
        recorded: BackendName,
        /// The flag's value.
        flag: String,
    },
    /// No file defines it.
    #[error("there is no backend {name:?} ({by} names it); there is: {there_is}")]
    Unknown {
        /// As it was given.
        name: String,
        /// What names it.
        by: String,
        /// The backends that may be used.
        there_is: String,
    },
    /// It is defined, and forbidden.
    #[error("the backend {name} ({by} names it) is disabled by {place}; there is: {there_is}")]
    Disabled {
        /// Which.
        name: BackendName,
        /// What names it.
        by: String,
        /// The file and line that defines it.
        place: String,
        /// The backends that may be used.
        there_is: String,
    },
    /// `auto` has nothing to try.
    #[error("`auto` ({by}) has no backend to try: none in `order` is enabled")]
    NoneEnabled {
        /// What says `auto`.
        by: String,
    },
}

impl SelectError {
    /// What the user can do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Contradiction { recorded, .. } => {
                Some(format!("leave --backend out, or say --backend {recorded}"))
            }
            Self::Unknown { .. } => Some("`stasis backend list` shows every backend".to_owned()),
            Self::Disabled { .. } => Some("ask the administrator of this host".to_owned()),
            Self::NoneEnabled { .. } => Some("name a backend with --backend".to_owned()),
        }
    }
}

/// Decides. `recorded` is the checkpoint's own backend, `flag` the value of `--backend`, `env` of `STASIS_BACKEND`.
/// The stronger one counts, and a weaker one that differs is no contradiction unless it is a flag.
pub fn select(
    recorded: Option<&BackendName>,
    flag: Option<&str>,
    env: Option<&str>,
    settings: &Settings,
) -> Result<Choice, SelectError> {
    if let Some(recorded) = recorded {
        return match flag {
            Some(flag) if flag != "auto" && flag != recorded.as_str() => {
                Err(SelectError::Contradiction { recorded: recorded.clone(), flag: flag.to_owned() })
            }
            _ => usable(recorded.as_str(), "the checkpoint", settings),
        };
    }
    if let Some(flag) = flag {
        return named(flag, "--backend", settings);
    }
    if let Some(env) = env {
        return named(env, "STASIS_BACKEND", settings);
    }
    let by = match &settings.default.at {
        Some(at) => format!("default in {}:{}", settings.default.source, at.line),
        None => "the default".to_owned(),
    };
    match &settings.default.value {
        DefaultBackend::Auto => auto(&by, settings),
        DefaultBackend::Named(name) => usable(name.as_str(), &by, settings),
    }
}

fn named(name: &str, by: &str, settings: &Settings) -> Result<Choice, SelectError> {
    if name == "auto" { auto(by, settings) } else { usable(name, by, settings) }
}

fn auto(by: &str, settings: &Settings) -> Result<Choice, SelectError> {
    let enabled = |name: &BackendName| settings.backends.get(name).is_some_and(|entry| entry.enabled);
    let mut names: Vec<BackendName> = Vec::new();
    for name in settings.order.iter().map(|name| &name.value) {
        if enabled(name) && !names.contains(name) {
            names.push(name.clone());
        }
    }
    if names.is_empty() {
        Err(SelectError::NoneEnabled { by: by.to_owned() })
    } else {
        Ok(Choice::Auto(names))
    }
}

fn usable(name: &str, by: &str, settings: &Settings) -> Result<Choice, SelectError> {
    let found = name.parse::<BackendName>().ok().and_then(|name| settings.backends.get_key_value(&name));
    let (by, there_is) = (by.to_owned(), there_is(settings));
    match found {
        None => Err(SelectError::Unknown { name: name.to_owned(), by, there_is }),
        Some((name, entry)) if !entry.enabled => {
            let place = format!("{}:{}", entry.source, entry.at.line);
            Err(SelectError::Disabled { name: name.clone(), by, place, there_is })
        }
        Some((name, _)) => Ok(Choice::Named(name.clone())),
    }
}

fn there_is(settings: &Settings) -> String {
    let names: Vec<String> = settings.enabled().map(ToString::to_string).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Context;

    fn settings(text: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(&file, format!("schema = 1\n{text}")).unwrap();
        let context = Context {
            euid: nix::unistd::geteuid().as_raw(),
            uid: 0,
            home: None.into(),
            env: Default::default(),
            exe: "/usr/bin/stasis".into(),
            system_dir: dir.path().join("etc"),
        };
        let mut settings = Settings::load(&context, Some(&file)).unwrap();
        // The directory has another name in every run.
        let shown = crate::config::Source::File("/etc/stasis/plugins.toml".into());
        settings.default.source = shown.clone();
        settings.backends.values_mut().for_each(|entry| entry.source = shown.clone());
        settings
    }

    fn three() -> Settings {
        settings(
            "default = \"one\"\norder = [\"three\", \"gone\", \"two\", \"one\", \"two\"]\n\
             [backends.one]\n[backends.two]\n[backends.three]\nenabled = false\n",
        )
    }

    #[test]
    fn the_checkpoint_then_the_flag_then_the_environment_then_the_default() {
        let settings = three();
        let named = |name: &str| Ok(Choice::Named(name.parse().unwrap()));
        let two = "two".parse().unwrap();
        assert_eq!(select(Some(&two), None, Some("one"), &settings), named("two"));
        assert_eq!(select(Some(&two), Some("two"), None, &settings), named("two"));
        assert_eq!(select(Some(&two), Some("auto"), None, &settings), named("two"));
        assert_eq!(select(None, Some("two"), Some("one"), &settings), named("two"));
        assert_eq!(select(None, None, Some("two"), &settings), named("two"));
        assert_eq!(select(None, None, None, &settings), named("one"));
    }

    #[test]
    fn auto_tries_what_is_enabled_once_and_in_order() {
        let expected = ["two", "one"].map(|name| name.parse().unwrap());
        assert_eq!(select(None, Some("auto"), None, &three()), Ok(Choice::Auto(expected.into())));
        let nothing = settings("default = \"auto\"\n[backends.one]\nenabled = false\n");
        insta::assert_snapshot!(select(None, None, None, &nothing).unwrap_err(), @"`auto` (default in /etc/stasis/plugins.toml:2) has no backend to try: none in `order` is enabled");
    }

    #[test]
    fn refusals_name_both_sides_and_what_there_is() {
        let settings = three();
        let (two, gone) = ("two".parse().unwrap(), "gone".parse().unwrap());
        let fails = |recorded, flag, env| select(recorded, flag, env, &settings).unwrap_err().to_string();
        insta::assert_snapshot!(fails(Some(&two), Some("one"), None), @"the checkpoint belongs to the backend two, --backend says one");
        insta::assert_snapshot!(fails(Some(&gone), None, None), @r#"there is no backend "gone" (the checkpoint names it); there is: one, two"#);
        insta::assert_snapshot!(fails(None, Some("../x"), Some("one")), @r#"there is no backend "../x" (--backend names it); there is: one, two"#);
        insta::assert_snapshot!(fails(None, None, Some("")), @r#"there is no backend "" (STASIS_BACKEND names it); there is: one, two"#);
        insta::assert_snapshot!(fails(None, Some("three"), None), @"the backend three (--backend names it) is disabled by /etc/stasis/plugins.toml:6; there is: one, two");
    }
}
