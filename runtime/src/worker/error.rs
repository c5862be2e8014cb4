//! What can go wrong between us and a plugin, told with the plugin's name.

use super::options::OptionError;
use stasis_plugin_api::error::{BackendError, kind};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failed worker or a failed call. `Display` gives one line; the plugin's own last lines are in
/// [`last_words`](Self::last_words).
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("the worker process of backend \"{plugin}\" could not be started: {doing}: {}", reason(source))]
    Start { plugin: String, doing: String, source: io::Error },
    #[error("the library of backend \"{plugin}\" cannot be used: {problem}")]
    NotLoaded { plugin: String, path: PathBuf, problem: String, help: Option<String> },
    #[error("{} is configured as backend \"{plugin}\" but calls itself {says:?}", path.display())]
    Name { plugin: String, path: PathBuf, says: String },
    #[error("backend \"{plugin}\" ({}) says that it has version {says:?}, which is no version: {source}", path.display())]
    NoVersion { plugin: String, path: PathBuf, says: String, source: semver::Error },
    #[error("backend \"{plugin}\" ({}) has version {version}, but plugins.toml demands {wanted}", path.display())]
    Version { plugin: String, path: PathBuf, version: semver::Version, wanted: semver::VersionReq },
    #[error(transparent)]
    Options(#[from] OptionError),
    #[error("backend \"{plugin}\" did not finish {method} within {} and was ended", seconds(*after))]
    TimedOut { plugin: String, method: String, after: Duration, last_words: Option<String> },
    #[error("backend \"{plugin}\" {how} in {method}")]
    Died { plugin: String, method: String, how: String, last_words: Option<String> },
    #[error("backend \"{plugin}\" gave an answer to {method} that cannot be understood: {problem}")]
    Unclear { plugin: String, method: String, problem: String },
    /// The plugin's own words.
    #[error("{error}")]
    Backend { plugin: String, method: String, error: Box<BackendError> },
}

impl WorkerError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("it needs /proc mounted, and its scratch directory to stand".to_owned())
            }
            Self::Start { .. } => None,
            Self::NotLoaded { help, path, .. } => {
                Some(help.clone().unwrap_or_else(|| format!("the library is {}", path.display())))
            }
            Self::Name { plugin, says, .. } => {
                Some(format!("in plugins.toml, write [backends.{says}], or another library for \"{plugin}\""))
            }
            Self::NoVersion { .. } => Some("its author has to correct it".to_owned()),
            Self::Version { plugin, .. } => Some(format!(
                "install a version that fits, or change version of [backends.{plugin}] in plugins.toml"
            )),
            Self::Options(error) => error.help(),
            Self::TimedOut { plugin, .. } => {
                Some(format!("stasis backend check {plugin} tells whether its engine works here"))
            }
            Self::Died { how, .. } if how.contains("signal 9 ") => {
                Some("something else killed it: memory may have run out (see dmesg)".to_owned())
            }
            Self::Died { plugin, .. } | Self::Unclear { plugin, .. } => {
                Some(format!("this is a fault of the plugin; stasis backend info {plugin} names the library"))
            }
            Self::Backend { error, .. } => error.help.clone(),
        }
    }

    /// The last lines that the plugin or its engine printed, when there are any.
    pub fn last_words(&self) -> Option<&str> {
        match self {
            Self::TimedOut { last_words, .. } | Self::Died { last_words, .. } => last_words.as_deref(),
            Self::Backend { error, .. } => error.engine_output.as_deref(),
            _ => None,
        }
    }

    /// The kind of failure in the contract's words, whatever failed: one of
    /// [`stasis_plugin_api::error::kind`], or a word of the plugin's own.
    pub fn kind(&self) -> &str {
        match self {
            Self::Backend { error, .. } => &error.kind,
            Self::TimedOut { .. } => kind::TIMED_OUT,
            Self::Unclear { .. } => kind::PROTOCOL,
            Self::Died { .. } => kind::FAILED,
            _ => kind::UNUSABLE,
        }
    }
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => "no more processes are allowed for this user (see ulimit -u)".to_owned(),
        Some(libc::EMFILE | libc::EINVAL) => "too few files may be open (see ulimit -n)".to_owned(),
        Some(libc::ENOMEM) => "memory ran out".to_owned(),
        Some(libc::ENOSPC) => "no space is left".to_owned(),
        Some(libc::EDQUOT) => "the quota is used up".to_owned(),
        Some(libc::EROFS) => "the file system is read-only".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOENT) => "it does not exist".to_owned(),
        _ => error.to_string(),
    }
}

fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: &WorkerError) -> String {
        format!("{error}\n{}\n{}", error.help().unwrap_or_default(), error.last_words().unwrap_or_default())
    }

    #[test]
    fn messages() {
        let (plugin, path) = ("toy".to_owned(), PathBuf::from("/opt/libtoy.so"));
        let method = "capture".to_owned();
        insta::assert_snapshot!(told(&WorkerError::TimedOut {
            plugin: plugin.clone(),
            method: method.clone(),
            after: Duration::from_secs(20),
            last_words: Some("waiting".into())
        }), @r#"
        backend "toy" did not finish capture within 20 s and was ended
        stasis backend check toy tells whether its engine works here
        waiting
        "#);
        insta::assert_snapshot!(told(&WorkerError::Died {
            plugin: plugin.clone(),
            method: method.clone(),
            how: "was killed by signal 9 (SIGKILL)".into(),
            last_words: None
        }), @r#"
        backend "toy" was killed by signal 9 (SIGKILL) in capture
        something else killed it: memory may have run out (see dmesg)
        "#);
        insta::assert_snapshot!(told(&WorkerError::Name {
            plugin: plugin.clone(), path: path.clone(), says: "tay".into()
        }), @r#"
        /opt/libtoy.so is configured as backend "toy" but calls itself "tay"
        in plugins.toml, write [backends.tay], or another library for "toy"
        "#);
        insta::assert_snapshot!(told(&WorkerError::Version {
            plugin: plugin.clone(),
            path,
            version: semver::Version::new(0, 1, 0),
            wanted: semver::VersionReq::parse(">=0.2, <1").unwrap()
        }), @r#"
        backend "toy" (/opt/libtoy.so) has version 0.1.0, but plugins.toml demands >=0.2, <1
        install a version that fits, or change version of [backends.toy] in plugins.toml
        "#);
        let error =
            BackendError::new(kind::BUSY, "capture of \"web\"").because("one is under way").help("wait");
        let error = WorkerError::Backend { plugin, method, error: Box::new(error.engine_output("E: busy")) };
        assert_eq!(error.kind(), "busy");
        insta::assert_snapshot!(told(&error), @r#"
        capture of "web": one is under way
        wait
        E: busy
        "#);
    }
}
