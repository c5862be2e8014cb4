//! The environment inside: what passes from the host, what the user asks for, what a container always has.
//! Values are never evaluated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::binds::csv;
use super::identity::HostFacts;
use crate::cli::action_args::ActionArgs;
use crate::image::{Image, io_words};

/// What programs are looked for in when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Put before the PATH that the image's scripts leave. Consumed by the prelude.
pub(crate) const PREPEND: &str = "STASIS_PREPEND_PATH";
/// Put behind it.
pub(crate) const APPEND: &str = "STASIS_APPEND_PATH";

/// Pass also with `--cleanenv`: the terminal and the way out of the site's network.
const ALWAYS: &[&str] = &["TERM", "http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];
/// Never pass: they speak of the host's own directories.
const NEVER: &[&str] = &["HOME", "PATH", "PS1", "LD_LIBRARY_PATH", "APPTAINER_SHELL", "SINGULARITY_SHELL"];
/// `PREFIX_X=v` on the host is `X=v` inside; a later prefix wins.
const PREFIXES: &[&str] = &["SINGULARITYENV_", "APPTAINERENV_", "STASISENV_"];

/// What is wrong with a variable.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// Not `NAME=VALUE`.
    #[error("--env {typed:?} cannot be understood: {problem}")]
    Flag { typed: String, problem: String },
    /// A line of a file.
    #[error("--env-file {}, line {line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    /// The file itself.
    #[error("--env-file {} cannot be read: {}", path.display(), io_words(source))]
    File { path: PathBuf, source: std::io::Error },
}

impl EnvError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Flag { .. } => {
                "write --env NAME=VALUE; several need --env several times, or quotation marks around a value's comma"
                    .to_owned()
            }
            Self::Line { .. } => {
                "write one NAME=VALUE per line; a # begins a comment, quotation marks keep blanks".to_owned()
            }
            Self::File { .. } => "check the spelling and the permissions".to_owned(),
        })
    }
}

/// The environment of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    /// All of it.
    pub(crate) all: BTreeMap<String, String>,
    /// What wins over the image's scripts.
    pub(crate) after: BTreeMap<String, String>,
}

/// What the environment says about the container.
pub(crate) struct Naming<'a> {
    pub(crate) image: &'a Image,
    pub(crate) name: &'a str,
    /// `exec`, `run`, `shell` or `start`.
    pub(crate) command: &'a str,
    pub(crate) instance: bool,
    pub(crate) home: &'a Path,
    /// As `--bind` would say them.
    pub(crate) binds: Vec<String>,
    /// The image's scripts will be sourced.
    pub(crate) source_env: bool,
    /// The application of the image's that was chosen.
    pub(crate) app: Option<&'a str>,
}

/// Makes the environment. `--env` wins over `--env-file`, that over the host's prefixed variables, those over
/// the image's scripts, and these over everything else.
pub(crate) fn environment(
    args: &ActionArgs,
    facts: &HostFacts,
    naming: &Naming<'_>,
) -> Result<Environment, EnvError> {
    let mut asked = prefixed(&facts.env);
    for file in &args.env_file {
        let path = facts.cwd.join(file);
        let text =
            (facts.read)(&path).map_err(|source| EnvError::File { path: PathBuf::from(file), source })?;
        for (index, line) in text.lines().enumerate() {
            let wrong = |problem| EnvError::Line { path: PathBuf::from(file), line: index + 1, problem };
            if let Some((name, value)) = file_line(line).map_err(wrong)? {
                asked.insert(name, value);
            }
        }
    }
    for typed in &args.env {
        for (name, value) in flag_pairs(typed)? {
            asked.insert(name, value);
        }
    }
    let clean = args.cleanenv || args.containall;
    let mut all = passing(&facts.env, clean);
    if clean {
        all.insert("LANG".to_owned(), "C".to_owned());
    }
    all.insert("PATH".to_owned(), DEFAULT_PATH.to_owned());
    // Where no shell can source what the image says of its variables.
    for variable in naming.image.oci.iter().flat_map(|config| config.env.iter().flatten()) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        if is_name(name) && (name == "PATH" || !all.contains_key(name)) {
            all.insert(name.to_owned(), value.to_owned());
        }
    }
    if let Some(path) = facts.env.get("PATH") {
        all.insert("USER_PATH".to_owned(), path.clone());
    }
    all.extend(naming.variables());
    let mut after = asked;
    // A shell that is not interactive forgets it, so it is set again after the scripts.
    after.entry("PS1".to_owned()).or_insert_with(|| "stasis> ".to_owned());
    // The home is mounted where it says, whatever the image's scripts believe.
    after.entry("HOME".to_owned()).or_insert_with(|| naming.home.to_string_lossy().into_owned());
    let prepend = after.remove("PREPEND_PATH");
    let append = after.remove("APPEND_PATH");
    all.extend(after.clone());
    if naming.source_env {
        all.extend(prepend.map(|path| (PREPEND.to_owned(), path)));
        all.extend(append.map(|path| (APPEND.to_owned(), path)));
    } else if let Some(path) = all.get_mut("PATH") {
        *path = [prepend, Some(path.clone()), append].into_iter().flatten().collect::<Vec<_>>().join(":");
    }
    Ok(Environment { all, after })
}

impl Naming<'_> {
    fn variables(&self) -> BTreeMap<String, String> {
        let root = self.image.root.to_string_lossy().into_owned();
        let base = self.image.name.clone();
        let mut vars = BTreeMap::new();
        let mut set = |name: &str, value: &str| vars.insert(name.to_owned(), value.to_owned());
        for prefix in ["APPTAINER", "SINGULARITY"] {
            set(&format!("{prefix}_CONTAINER"), &root);
            set(&format!("{prefix}_NAME"), &base);
            set(&format!("{prefix}_BIND"), &self.binds.join(","));
            set(&format!("{prefix}_COMMAND"), self.command);
            set(&format!("{prefix}_ENVIRONMENT"), "/.singularity.d/env/91-environment.sh");
            if self.instance {
                set(&format!("{prefix}_INSTANCE"), self.name);
            }
            if let Some(app) = self.app {
                set(&format!("{prefix}_APPNAME"), app);
            }
        }
        if let Some(app) = self.app {
            set("STASIS_APPNAME", app);
        }
        set("STASIS_CONTAINER", &root);
        set("STASIS_NAME", &base);
        if self.instance {
            set("STASIS_INSTANCE", self.name);
        }
        if self.image.has_libs {
            set("LD_LIBRARY_PATH", "/.singularity.d/libs");
        }
        vars
    }
}

/// A name that every shell can export.
pub(crate) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn prefixed(host: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut asked = BTreeMap::new();
    for prefix in PREFIXES {
        for (name, value) in host {
            if let Some(name) = name.strip_prefix(prefix).filter(|name| is_name(name)) {
                asked.insert(name.to_owned(), value.clone());
            }
        }
    }
    asked
}

fn passing(host: &BTreeMap<String, String>, clean: bool) -> BTreeMap<String, String> {
    host.iter()
        .filter(|(name, _)| {
            let kept = ALWAYS.iter().any(|a| a.eq_ignore_ascii_case(name));
            let ours = name.starts_with("STASIS_") || PREFIXES.iter().any(|p| name.starts_with(p));
            (kept || !clean) && !ours && !NEVER.contains(&name.as_str())
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// `A=1`, `A=1,B=2`, and `A=1,2`: with one equals sign a comma belongs to the value.
fn flag_pairs(typed: &str) -> Result<Vec<(String, String)>, EnvError> {
    let wrong = |problem: &str| EnvError::Flag { typed: typed.to_owned(), problem: problem.to_owned() };
    let fields = match typed.matches('=').count() {
        0 => return Err(wrong("there is no equals sign in it")),
        1 => vec![typed.trim_matches('"').to_owned()],
        _ => csv(typed).map_err(|problem| wrong(&problem))?,
    };
    fields
        .iter()
        .map(|field| match field.split_once('=') {
            Some((name, value)) if is_name(name) && !value.contains('\0') => {
                Ok((name.to_owned(), value.to_owned()))
            }
            Some((name, _)) => Err(wrong(&format!("{name:?} cannot be the name of a variable"))),
            None => Err(wrong(&format!("there is no equals sign in {field:?}"))),
        })
        .collect()
}

/// One line of a file: `None` for blank lines and comments.
fn file_line(line: &str) -> Result<Option<(String, String)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, value) = line.split_once('=').ok_or("there is no equals sign")?;
    if !is_name(name) {
        return Err(format!("{name:?} cannot be the name of a variable"));
    }
    let value = value.trim_start();
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => quoted(value.get(1..).unwrap_or_default(), quote)?,
        _ => value.split(" #").next().unwrap_or_default().trim_end().to_owned(),
    };
    if value.contains('\0') {
        return Err("there is a zero byte in it".to_owned());
    }
    Ok(Some((name.to_owned(), value)))
}

/// Up to the closing mark. In double quotation marks a backslash keeps a mark, a dollar or a backslash.
fn quoted(text: &str, quote: char) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == quote {
            let rest = chars.as_str().trim();
            return if rest.is_empty() || rest.starts_with('#') {
                Ok(out)
            } else {
                Err("something follows the closing quotation mark".to_owned())
            };
        }
        if c == '\\' && quote == '"' {
            match chars.next() {
                Some('n') => out.push('\n'),
                Some(kept @ ('"' | '\\' | '$' | '`')) => out.push(kept),
                Some(other) => out.extend(['\\', other]),
                None => break,
            }
        } else {
            out.push(c);
        }
    }
    Err("a quotation mark is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        let pairs = |typed: &str| {
            let pairs = flag_pairs(typed).map_err(|e| e.to_string())?;
            Ok::<_, String>(pairs.iter().map(|(k, v)| format!("{k}[{v}]")).collect::<String>())
        };
        assert_eq!(pairs("A=1").unwrap(), "A[1]");
        assert_eq!(pairs("A=").unwrap(), "A[]");
        assert_eq!(pairs("A=1,2").unwrap(), "A[1,2]");
        assert_eq!(pairs("A=1,B=x=y").unwrap(), "A[1]B[x=y]");
        assert_eq!(pairs(r#""A=1,2",B=3"#).unwrap(), "A[1,2]B[3]");
        assert_eq!(pairs("A=$(reboot)").unwrap(), "A[$(reboot)]");
        insta::assert_snapshot!(pairs("A").unwrap_err(), @r#"--env "A" cannot be understood: there is no equals sign in it"#);
        insta::assert_snapshot!(pairs("A=1,2,B=3").unwrap_err(), @r#"--env "A=1,2,B=3" cannot be understood: there is no equals sign in "2""#);
        insta::assert_snapshot!(pairs("A B=1").unwrap_err(), @r#"--env "A B=1" cannot be understood: "A B" cannot be the name of a variable"#);
        insta::assert_snapshot!(pairs("=1").unwrap_err(), @r#"--env "=1" cannot be understood: "" cannot be the name of a variable"#);
    }

    #[test]
    fn lines_of_a_file() {
        let line = |text: &str| file_line(text).map(|pair| pair.map(|(k, v)| format!("{k}[{v}]")));
        for (text, expected) in [
            ("A=1", "A[1]"),
            ("  export A=two words  # said\r", "A[two words]"),
            ("A=x#y", "A[x#y]"),
            ("A='# $B'  # c", "A[# $B]"),
            (r#"A="q\" \$x \n\t""#, "A[q\" $x \n\\t]"),
            ("A=", "A[]"),
        ] {
            assert_eq!(line(text).unwrap().as_deref(), Some(expected), "{text}");
        }
        assert_eq!(line("# c").unwrap(), None);
        assert_eq!(line("   ").unwrap(), None);
        for bad in ["A", "1A=1", "A='x", "A=\"x", "A='x'y", "A-B=1", "=1", "A=\"x\\"] {
            assert!(line(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_passes() {
        let host: BTreeMap<String, String> =
            ["A", "HOME", "PATH", "LD_LIBRARY_PATH", "STASIS_CONFIG", "APPTAINERENV_X", "HTTP_PROXY", "TERM"]
                .into_iter()
                .map(|name| (name.to_owned(), "v".to_owned()))
                .collect();
        let names = |clean| passing(&host, clean).into_keys().collect::<Vec<_>>();
        assert_eq!(names(false), ["A", "HTTP_PROXY", "TERM"]);
        assert_eq!(names(true), ["HTTP_PROXY", "TERM"]);
    }

    #[test]
    fn prefixed_variables_and_their_order() {
        let host: BTreeMap<String, String> = [
            ("SINGULARITYENV_A", "s"),
            ("APPTAINERENV_A", "a"),
            ("SINGULARITYENV_B", "s"),
            ("STASISENV_C", "c"),
            ("APPTAINERENV_", "x"),
            ("APPTAINERENV_a b", "x"),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
        let asked: Vec<_> = prefixed(&host).into_iter().map(|(k, v)| k + &v).collect();
        assert_eq!(asked, ["Aa", "Bs", "Cc"]);
    }
}
