//! Requests over HTTP: the only file that knows the library. Blocking and without threads that outlive a call, so that
//! nothing of it is in the way when a container is cloned.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, http};

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// And to send the next bytes.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// Certificates of authorities, where the distributions keep them.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const MAX_BUNDLE: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The name is not known.
    NoHost,
    /// Nobody listens, or the way is closed.
    NoConnection(String),
    /// Nothing came for too long.
    Silence,
    /// The certificate, or what else makes the connection safe.
    Unsafe(String),
    /// It would have to go on without TLS.
    Plain,
    /// Anything else.
    Other(String),
}

/// An answer, whatever its status.
pub(super) struct Answer {
    parts: http::response::Parts,
    body: Option<Body>,
}

impl Answer {
    /// The status.
    pub(super) fn status(&self) -> u16 {
        self.parts.status.as_u16()
    }

    /// A header; the first one of the name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// The whole body, `limit` bytes at most.
    pub(super) fn small(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(body) = self.body.take() {
            reader(body).take(limit + 1).read_to_end(&mut bytes)?;
        }
        if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    /// The body as it arrives.
    pub(super) fn reader(mut self) -> Box<dyn Read> {
        match self.body.take() {
            Some(body) => Box::new(reader(body)),
            None => Box::new(io::empty()),
        }
    }
}

/// A body whose silence is an error of its own kind, which the library hides in another.
struct Timed<R>(R);

fn reader(body: Body) -> impl Read + 'static {
    Timed(body.into_with_config().limit(u64::MAX).reader())
}

impl<R: Read> Read for Timed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|e| {
            let hidden = e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
            let silence = matches!(hidden, Some(ureq::Error::Timeout(_)))
                || matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
            if silence {
                io::Error::new(io::ErrorKind::TimedOut, "nothing has arrived for too long")
            } else {
                e
            }
        })
    }
}

/// Makes requests.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
}

impl Http {
    /// `plain`: without TLS is allowed. `local`: no proxy stands between. `silence`: how long until the next bytes.
    pub(super) fn new(plain: bool, local: bool, silence: Duration, env: &BTreeMap<String, String>) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!plain)
            .user_agent(concat!("stasis/", env!("CARGO_PKG_VERSION")))
            .max_redirects(5)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(silence))
            .timeout_per_write(Some(silence))
            .tls_config(TlsConfig::builder().root_certs(authorities(env)).build());
        if local {
            config = config.proxy(None);
        }
        Self { agent: config.build().new_agent() }
    }

    /// Asks for something. What is sent along goes to this host only, also when it sends us elsewhere.
    pub(super) fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, NoAnswer> {
        let request =
            headers.iter().fold(self.agent.get(url), |request, (name, value)| request.header(*name, *value));
        answer(request.call())
    }

    /// Asks for the headers only.
    pub(super) fn head(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, NoAnswer> {
        let request =
            headers.iter().fold(self.agent.head(url), |request, (name, value)| request.header(*name, *value));
        answer(request.call())
    }

    /// Sends a form.
    pub(super) fn post(&self, url: &str, form: &[(&str, &str)]) -> Result<Answer, NoAnswer> {
        answer(self.agent.post(url).send_form(form.iter().copied()))
    }
}

fn answer(result: Result<http::Response<Body>, ureq::Error>) -> Result<Answer, NoAnswer> {
    match result {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            Ok(Answer { parts, body: Some(body) })
        }
        Err(ureq::Error::HostNotFound) => Err(NoAnswer::NoHost),
        Err(ureq::Error::Timeout(_)) => Err(NoAnswer::Silence),
        Err(ureq::Error::RequireHttpsOnly(_)) => Err(NoAnswer::Plain),
        Err(ureq::Error::Io(e)) => Err(of_io(&e)),
        Err(ureq::Error::ConnectionFailed) => {
            Err(NoAnswer::NoConnection("no connection could be made".to_owned()))
        }
        Err(ureq::Error::Tls(why)) => Err(NoAnswer::Unsafe(why.to_owned())),
        Err(ureq::Error::Rustls(why)) => Err(NoAnswer::Unsafe(why.to_string())),
        Err(e) => Err(NoAnswer::Other(e.to_string())),
    }
}

fn of_io(e: &io::Error) -> NoAnswer {
    match e.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => NoAnswer::Silence,
        // The standard library has no kind of its own for it.
        _ if e.raw_os_error().is_none() && e.to_string().contains("lookup address") => NoAnswer::NoHost,
        // The library hides TLS's own words in an error of this kind.
        io::ErrorKind::InvalidData => NoAnswer::Unsafe(e.to_string()),
        _ => NoAnswer::NoConnection(crate::image::io_words(e)),
    }
}

/// The host's authorities, so that those of a site count too; where there are none, those that browsers have.
fn authorities(env: &BTreeMap<String, String>) -> RootCerts {
    let named = env.get("SSL_CERT_FILE").map(String::as_str);
    for path in named.into_iter().chain(BUNDLES.iter().copied()) {
        let mut bytes = Vec::new();
        let Ok(file) = std::fs::File::open(path) else { continue };
        if file.take(MAX_BUNDLE).read_to_end(&mut bytes).is_err() {
            continue;
        }
        let found: Vec<_> = parse_pem(&bytes)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if !found.is_empty() {
            return RootCerts::new_with_certs(&found);
        }
    }
    RootCerts::WebPki
}
