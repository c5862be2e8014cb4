//! What the administrator and the user may set.

use stasis_plugin_api::prelude::*;

/// The option, and what is remembered of it.
const TCP: &str = "tcp";

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tcp {
    /// An application with a connection is not saved.
    Refuse,
    /// It finds its connections closed after a restart.
    Close,
    /// They go on after a restart, as long as the other end has not given up.
    Keep,
}

impl Tcp {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Close => "close",
            Self::Keep => "keep",
        }
    }

    fn from_word(word: &str) -> Self {
        match word {
            "close" => Self::Close,
            "keep" => Self::Keep,
            _ => Self::Refuse,
        }
    }
}

/// For `describe`.
pub(crate) fn specs() -> Vec<OptionSpec> {
    let words = ["refuse", "close", "keep"].map(str::to_owned).to_vec();
    let tcp = OptionSpec::new(
        TCP,
        OptionKind::Choice(words),
        "what becomes of open TCP connections: the capture is refused (unless said otherwise), the application finds them closed after a restart, or they are kept",
    );
    vec![
        OptionSpec::new(
            "prefix",
            OptionKind::String,
            "a directory with a CRIU of its own: usr/sbin/criu and its libraries below usr/lib",
        ),
        OptionSpec::new("path", OptionKind::String, "the program criu, where it is not on PATH"),
        OptionSpec { flag: Some(TCP.to_owned()), ..tcp },
        OptionSpec::new(
            "ghost-limit",
            OptionKind::String,
            "the largest deleted file that is saved because it is still open, such as 64M",
        )
        .default_value("64M"),
        OptionSpec::new(
            "lazy",
            OptionKind::Boolean,
            "at a restart let the application run at once and bring its memory when it is touched",
        )
        .default_value(false),
        OptionSpec::new(
            "pre-dump",
            OptionKind::Boolean,
            "save the memory once while the application runs, and in the pause only what changed since",
        )
        .default_value(false),
    ]
}

/// As it is said now, or was said when the application was started.
pub(crate) fn tcp(host: &Host<'_>) -> Tcp {
    Tcp::from_word(host.option_str(TCP).or_else(|| host.state(TCP)).unwrap_or_default())
}

/// Lets later captures, also after a restart, know.
pub(crate) fn remember_tcp(host: &mut Host<'_>) {
    let tcp = tcp(host);
    host.remember(TCP, tcp.word());
}

/// As it was at the capture: a restart has to say the same.
pub(crate) fn recorded_tcp(generation: &GenerationView) -> Tcp {
    Tcp::from_word(generation.facts.get(TCP).and_then(|v| v.as_str()).unwrap_or_default())
}

/// The largest deleted file, as CRIU takes it.
pub(crate) fn ghost_limit(host: &Host<'_>) -> Result<String> {
    let text = host.option_str("ghost-limit").unwrap_or("64M");
    let digits = text.strip_suffix(['K', 'M', 'G']).unwrap_or(text);
    if !digits.is_empty() && digits.len() < 10 && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    Err(BackendError::failed(format!("the option ghost-limit cannot be \"{text}\""))
        .help("give a number of bytes with K, M or G, such as ghost-limit=64M"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    struct Nothing;

    impl HostServices for Nothing {
        fn request(&self, name: &str, _: &Value) -> Result<Value> {
            Err(BackendError::new(kind::NOT_IMPLEMENTED, name))
        }
        fn cancelled(&self) -> bool {
            false
        }
        fn keep_fd(&self, name: &str, _: std::os::fd::BorrowedFd<'_>) -> Result<()> {
            Err(BackendError::new(kind::NOT_IMPLEMENTED, name))
        }
        fn kept_fd(&self, _: &str) -> Option<std::os::fd::OwnedFd> {
            None
        }
    }

    #[test]
    fn sizes() {
        for (text, fine) in [
            ("64M", true),
            ("1G", true),
            ("4096", true),
            ("", false),
            ("M", false),
            ("1T", false),
            ("-1", false),
        ] {
            let options = [("ghost-limit".to_owned(), Value::from(text))].into();
            let host = Host::new(&Nothing, CallContext { options, ..CallContext::default() });
            assert_eq!(ghost_limit(&host).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn every_word_of_tcp_comes_back() {
        for tcp in [Tcp::Refuse, Tcp::Close, Tcp::Keep] {
            assert_eq!(Tcp::from_word(tcp.word()), tcp);
        }
    }
}
