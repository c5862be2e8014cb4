//! The options of a backend: what the files and the command line say, checked against what the plugin
//! describes.

use serde_json::Value;
use stasis_plugin_api::descriptor::{Descriptor, OptionSpec};
use std::collections::BTreeMap;
use std::fmt;

/// Who set an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetBy {
    /// The table `[backends.NAME.options]`.
    File,
    /// `--backend-option`.
    Flag,
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "plugins.toml",
            Self::Flag => "--backend-option",
        })
    }
}

/// Why options are refused. `Display` gives the whole message.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptionError {
    #[error("{by}: backend \"{plugin}\" has no option {}", listed(names))]
    Unknown { plugin: String, by: SetBy, names: Vec<String>, known: Vec<String> },
    #[error("{by}: option \"{name}\" of backend \"{plugin}\" {problem}")]
    Wrong { plugin: String, by: SetBy, name: String, problem: String, about: String },
    #[error("--backend-option {text:?} of backend \"{plugin}\" is not of the form NAME=VALUE")]
    NoValue { plugin: String, text: String, known: Vec<String> },
}

impl OptionError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { known, .. } | Self::NoValue { known, .. } if known.is_empty() => {
                "it takes no options at all".to_owned()
            }
            Self::Unknown { plugin, known, .. } | Self::NoValue { plugin, known, .. } => {
                format!("it has {}; see stasis backend info {plugin}", listed(known))
            }
            Self::Wrong { name, about, .. } => format!("{name}: {about}"),
        })
    }
}

fn listed(names: &[String]) -> String {
    names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}

/// The values in force: the flags (`NAME=VALUE`, the last one counts) over the file over the defaults.
/// An option that nobody sets and that has no default is absent.
///
/// # Errors
/// Every unknown name of one source at once, or the first value of a wrong kind.
pub fn check_options(
    descriptor: &Descriptor,
    from_file: &BTreeMap<String, Value>,
    from_flags: &[String],
) -> Result<BTreeMap<String, Value>, OptionError> {
    let plugin = || descriptor.name.clone();
    let known = || descriptor.options.iter().map(|o| o.name.clone()).collect();
    let spec = |name: &str| descriptor.options.iter().find(|o| o.name == name);
    let none_unknown = |by: SetBy, names: &mut dyn Iterator<Item = &str>| {
        let names: Vec<String> = names.filter(|n| spec(n).is_none()).map(str::to_owned).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(OptionError::Unknown { plugin: plugin(), by, names, known: known() })
    };
    let wrong = |by: SetBy, spec: &OptionSpec, problem: String| OptionError::Wrong {
        plugin: plugin(),
        by,
        name: spec.name.clone(),
        problem,
        about: spec.help.clone(),
    };

    let defaults = descriptor.options.iter().filter(|o| !o.default.is_null());
    let mut values: BTreeMap<_, _> = defaults.map(|o| (o.name.clone(), o.default.clone())).collect();

    none_unknown(SetBy::File, &mut from_file.keys().map(String::as_str))?;
    for (spec, value) in from_file.iter().filter_map(|(name, value)| Some((spec(name)?, value))) {
        spec.kind.check(value).map_err(|problem| wrong(SetBy::File, spec, problem))?;
        values.insert(spec.name.clone(), value.clone());
    }

    let split = |text: &String| {
        let no_value = || OptionError::NoValue { plugin: plugin(), text: text.clone(), known: known() };
        let pair = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(no_value)?;
        Ok((pair.0.to_owned(), pair.1.to_owned()))
    };
    let pairs = from_flags.iter().map(split).collect::<Result<Vec<_>, OptionError>>()?;
    none_unknown(SetBy::Flag, &mut pairs.iter().map(|(name, _)| name.as_str()))?;
    for (spec, text) in pairs.iter().filter_map(|(name, text)| Some((spec(name)?, text))) {
        let value = spec.kind.parse(text).map_err(|problem| wrong(SetBy::Flag, spec, problem))?;
        values.insert(spec.name.clone(), value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use stasis_plugin_api::descriptor::{Maturity, OptionKind};

    fn descriptor(options: Vec<OptionSpec>) -> Descriptor {
        Descriptor {
            name: "toy".into(),
            version: "1.0.0".into(),
            engine: "Toy".into(),
            summary: String::new(),
            maturity: Maturity::Beta,
            capabilities: vec![],
            options,
            waiting: None,
        }
    }

    fn toy() -> Descriptor {
        descriptor(vec![
            OptionSpec::new("level", OptionKind::Integer, "how hard it tries").default_value(3),
            OptionSpec::new("tcp", OptionKind::Boolean, "keep connections").default_value(false),
            OptionSpec::new("prefixes", OptionKind::List, "where it is installed"),
            OptionSpec::new("mode", OptionKind::Choice(vec!["a".into(), "b".into()]), "a or b"),
        ])
    }

    fn file(value: Value) -> BTreeMap<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    fn refused(from_file: Value, flags: &[&str]) -> String {
        let flags: Vec<String> = flags.iter().map(|s| (*s).to_owned()).collect();
        let error = check_options(&toy(), &file(from_file), &flags).unwrap_err();
        format!("{error}\n{}", error.help().unwrap())
    }

    #[test]
    fn flags_over_file_over_defaults() {
        let flags = ["level=7".to_owned(), "level=8".to_owned(), "mode=b".to_owned()];
        let got = check_options(&toy(), &file(json!({"level": 5, "prefixes": ["/a"]})), &flags).unwrap();
        assert_eq!(json!(got), json!({"level": 8, "mode": "b", "prefixes": ["/a"], "tcp": false}));
        let got = check_options(&toy(), &BTreeMap::new(), &[]).unwrap();
        assert_eq!(json!(got), json!({"level": 3, "tcp": false}));
        // What was computed once is accepted again: records keep it.
        assert_eq!(check_options(&toy(), &got, &[]).unwrap(), got);
    }

    #[test]
    fn messages() {
        insta::assert_snapshot!(refused(json!({"levl": 1, "x": 2}), &[]), @r#"
        plugins.toml: backend "toy" has no option "levl", "x"
        it has "level", "tcp", "prefixes", "mode"; see stasis backend info toy
        "#);
        insta::assert_snapshot!(refused(json!({}), &["tpc=yes"]), @r#"
        --backend-option: backend "toy" has no option "tpc"
        it has "level", "tcp", "prefixes", "mode"; see stasis backend info toy
        "#);
        insta::assert_snapshot!(refused(json!({"level": "high"}), &[]), @r#"
        plugins.toml: option "level" of backend "toy" takes a whole number
        level: how hard it tries
        "#);
        insta::assert_snapshot!(refused(json!({}), &["mode=c"]), @r#"
        --backend-option: option "mode" of backend "toy" takes one of a, b, not "c"
        mode: a or b
        "#);
        insta::assert_snapshot!(refused(json!({}), &["tcp"]), @r#"
        --backend-option "tcp" of backend "toy" is not of the form NAME=VALUE
        it has "level", "tcp", "prefixes", "mode"; see stasis backend info toy
        "#);
        let none = check_options(&descriptor(vec![]), &BTreeMap::new(), &["=x".into()]).unwrap_err();
        insta::assert_snapshot!(none.help().unwrap(), @"it takes no options at all");
    }
}
