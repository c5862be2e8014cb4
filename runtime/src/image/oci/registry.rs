//! A registry: asking for manifests and blobs, showing who we are when asked, waiting when told to, going on where a
//! download broke off.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use serde::Deserialize;

use super::auth::{Challenge, Credentials, challenge};
use super::digest::Digest;
use super::fetch::Options;
use super::http::{Answer, Http, NoAnswer, SILENCE};
use super::reference::Reference;
use super::types::{Descriptor, MANIFESTS, MAX_MANIFEST};
use crate::error::{Error, Kind, Result};
use crate::image::watch::Watch;

/// How often something is asked for again that may be better in a moment.
pub(super) const TRIES: u32 = 4;
/// The longest that a registry can make us wait.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_ANSWER: u64 = 64 << 10;
const MAX_TOKEN: u64 = 1 << 20;

/// A repository of a registry.
pub(super) struct Client<'a> {
    http: Http,
    pub(super) reference: Reference,
    base: String,
    credentials: Option<Credentials>,
    /// What stands in `Authorization`, once the registry has asked for it.
    authorization: RefCell<Option<String>>,
    /// The user trusts everybody on the way.
    no_https: bool,
    watch: &'a dyn Watch,
}

/// A manifest or an index as it came.
pub(super) struct Document {
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl<'a> Client<'a> {
    pub(super) fn new(reference: &Reference, options: &Options, watch: &'a dyn Watch) -> Self {
        Self::patient(reference, options, watch, SILENCE)
    }

    /// With another time that it may be silent.
    pub(super) fn patient(
        reference: &Reference,
        options: &Options,
        watch: &'a dyn Watch,
        silence: Duration,
    ) -> Self {
        let local = reference.is_loopback();
        let plain = local || options.no_https;
        let found = options.places.find(&reference.host, &reference.repository);
        for note in found.notes {
            watch.warning(&note);
        }
        let http = Http::new(plain, local, silence, &options.places.env);
        // Of a registry on this machine nobody has a certificate; with --no-https the user says so of another.
        let scheme = if plain { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}", reference.server(), reference.repository);
        Self {
            http,
            reference: reference.clone(),
            base,
            credentials: found.credentials,
            authorization: RefCell::new(None),
            no_https: options.no_https,
            watch,
        }
    }

    /// The digest of what the name stands for, without having it sent: registries that limit downloads count those.
    /// `None` where the registry does not say; the next question tells why.
    pub(super) fn digest(&self) -> Result<Option<Digest>> {
        let url = format!("{}/manifests/{}", self.base, self.reference.asked());
        let accept = MANIFESTS.join(", ");
        for _ in 0..2 {
            let authorization = self.authorization.borrow().clone();
            let mut headers = vec![("Accept", accept.as_str())];
            headers.extend(authorization.as_ref().map(|value| ("Authorization", value.as_str())));
            let answer = self.http.head(&url, &headers).map_err(|why| self.unreachable(&why))?;
            let wanted = answer.header("WWW-Authenticate").unwrap_or_default();
            match answer.status() {
                200 => {
                    let told = answer.header("Docker-Content-Digest").map(str::to_owned);
                    return Ok(told.and_then(|told| Digest::try_from(told).ok()));
                }
                401 if authorization.is_none() && self.authenticate(wanted, "the manifest").is_ok() => {}
                _ => break,
            }
        }
        Ok(None)
    }

    /// The manifest or index that the name stands for.
    pub(super) fn top(&self) -> Result<Document> {
        let document = self.manifest(self.reference.asked())?;
        match &self.reference.digest {
            Some(asked) if *asked != document.digest => {
                Err(self.wrong_digest("manifest", asked, &document.digest))
            }
            _ => Ok(document),
        }
    }

    /// A manifest that an index names.
    pub(super) fn manifest_of(&self, descriptor: &Descriptor) -> Result<Document> {
        let document = self.manifest(descriptor.digest.as_str())?;
        if document.digest == descriptor.digest {
            return Ok(document);
        }
        Err(self.wrong_digest("manifest", &descriptor.digest, &document.digest))
    }

    fn manifest(&self, asked: &str) -> Result<Document> {
        let accept = MANIFESTS.join(", ");
        let url = format!("{}/manifests/{asked}", self.base);
        let mut answer =
            self.ask(&url, &[("Accept", &accept)], &format!("the manifest of docker://{}", self.reference))?;
        let told =
            answer.header("Docker-Content-Digest").and_then(|told| Digest::try_from(told.to_owned()).ok());
        let bytes = answer.small(MAX_MANIFEST).map_err(|e| self.broke(&e))?;
        let digest = Digest::of(&bytes);
        match told {
            Some(told) if told != digest => Err(self.wrong_digest("manifest", &told, &digest)),
            _ => Ok(Document { digest, bytes }),
        }
    }

    fn wrong_digest(&self, what: &str, wanted: &Digest, got: &Digest) -> Error {
        Error::new(format!("the {what} that {} sent is not the one asked for", self.reference.host))
            .because(format!("it has digest {got}, and {wanted} was asked for"))
            .help("try again; if it stays so, the registry, or something on the way to it, changes what it sends")
    }

    /// A small blob.
    pub(super) fn small(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let what = format!("blob {} of docker://{}", descriptor.digest.short(), self.reference);
        let mut answer = self.ask(&self.blob_url(descriptor), &[], &what)?;
        answer.small(limit).map_err(|e| self.broke(&e))
    }

    pub(super) fn blob_url(&self, descriptor: &Descriptor) -> String {
        format!("{}/blobs/{}", self.base, descriptor.digest)
    }

    fn broke(&self, e: &io::Error) -> Error {
        let host = &self.reference.host;
        if e.kind() == io::ErrorKind::FileTooLarge {
            return Error::new(format!("the answer of {host} is larger than any such answer"))
                .help("check that the name is that of an image");
        }
        Error::new(format!("the answer of {host} broke off"))
            .because(crate::image::io_words(e))
            .help("try again")
    }

    /// Asks until there is an answer that can be used: with a login when one is wanted, again after a while when the
    /// registry is busy.
    pub(super) fn ask(&self, url: &str, headers: &[(&str, &str)], what: &str) -> Result<Answer> {
        let mut challenged = false;
        let mut tries = 0;
        loop {
            let authorization = self.authorization.borrow().clone();
            let mut all = headers.to_vec();
            if let Some(value) = &authorization {
                all.push(("Authorization", value));
            }
            let mut answer = self.http.get(url, &all).map_err(|why| self.unreachable(&why))?;
            tries += 1;
            match answer.status() {
                200 | 206 => return Ok(answer),
                401 if !challenged => {
                    challenged = true;
                    // A second time: the token was for a while only.
                    self.authenticate(answer.header("WWW-Authenticate").unwrap_or_default(), what)?;
                }
                429 | 500..=599 if tries < TRIES => match self.delay(&answer, tries) {
                    Some(delay) => {
                        self.watch.info(&format!(
                            "{} is busy (status {}); trying again in {} s",
                            self.reference.host,
                            answer.status(),
                            delay.as_secs().max(1)
                        ));
                        std::thread::sleep(delay);
                    }
                    None => return Err(self.refused(&mut answer, what)),
                },
                _ => return Err(self.refused(&mut answer, what)),
            }
        }
    }

    /// How long to wait; `None` where that is longer than anybody wants to.
    fn delay(&self, answer: &Answer, tries: u32) -> Option<Duration> {
        let told = answer.header("Retry-After").and_then(|text| text.trim().parse().ok());
        let delay = told.map_or(Duration::from_millis(500 << tries), Duration::from_secs);
        (delay <= PATIENCE).then_some(delay)
    }

    fn authenticate(&self, header: &str, what: &str) -> Result<()> {
        let Some(wanted) = challenge(header) else {
            return Err(Error::new(format!(
                "{} wants a login of a kind that is not known",
                self.reference.host
            ))
            .because(format!("it asks for {header:?}; known are Basic and Bearer")));
        };
        let value = match (wanted, &self.credentials) {
            (Challenge::Basic, Some(Credentials::Password { user, password })) => Some(basic(user, password)),
            (Challenge::Basic, _) => None,
            (Challenge::Bearer { realm, service, scope }, _) => {
                Some(format!("Bearer {}", self.token(&realm, service.as_deref(), scope.as_deref())?))
            }
        };
        let Some(value) = value else { return Err(self.login_needed(what)) };
        *self.authorization.borrow_mut() = Some(value);
        Ok(())
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String> {
        let pull = format!("repository:{}:pull", self.reference.repository);
        let (service, scope) = (service.unwrap_or_default(), scope.unwrap_or(&pull));
        if !self.safe(realm) {
            return Err(Error::new(format!("{} has its tokens made at {realm:?}", self.reference.host))
                .because("a login would go there without TLS")
                .help("if you trust everybody on the way, allow it with --no-https"));
        }
        let answer = match &self.credentials {
            Some(Credentials::Token(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("scope", scope),
                    ("client_id", "stasis"),
                    ("refresh_token", token),
                ];
                self.http.post(realm, &form)
            }
            other => {
                let separator = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{separator}service={}&scope={}", escaped(service), escaped(scope));
                match other {
                    Some(Credentials::Password { user, password }) => {
                        self.http.get(&url, &[("Authorization", &basic(user, password))])
                    }
                    _ => self.http.get(&url, &[]),
                }
            }
        };
        let mut answer = answer.map_err(|why| self.unreachable(&why))?;
        if answer.status() != 200 {
            return Err(self.refused(&mut answer, "a token"));
        }
        let bytes = answer.small(MAX_TOKEN).map_err(|e| self.broke(&e))?;
        let token: Token = serde_json::from_slice(&bytes).unwrap_or_default();
        token.token.or(token.access_token).filter(|token| is_header(token)).ok_or_else(|| {
            Error::new(format!("{} gave no token that can be used", self.reference.host)).help("try again")
        })
    }

    /// Whether a login may be sent there: by TLS, within this machine, or as the user allows.
    fn safe(&self, realm: &str) -> bool {
        let host =
            realm.strip_prefix("http://").map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
        realm.starts_with("https://")
            || host.is_some_and(|host| {
                self.no_https || Reference::parse(&format!("{host}/x")).is_ok_and(|to| to.is_loopback())
            })
    }

    fn login_needed(&self, what: &str) -> Error {
        let host = &self.reference.host;
        let error = Error::new(format!("{host} does not let us have {what}"));
        match &self.credentials {
            None => error
                .because("it wants a login, and none is known for it (status 401)")
                .help(format!("log in with `docker login {host}`, `podman login {host}` or `skopeo login {host}`; or set STASIS_DOCKER_USERNAME and STASIS_DOCKER_PASSWORD")),
            Some(_) => error
                .because("it does not accept the login that is known for it (status 401)")
                .help(format!("log in again with `docker login {host}`, and check that the name is spelt correctly")),
        }
    }

    /// What the status says, for people.
    fn refused(&self, answer: &mut Answer, what: &str) -> Error {
        let host = &self.reference.host;
        let status = answer.status();
        let after = answer.header("Retry-After").map(str::to_owned);
        let error = match status {
            401 => self.login_needed(what),
            403 => Error::new(format!("{host} does not let us have {what}"))
                .because("permission denied (status 403)")
                .help("ask the owner of the image for access"),
            404 => Error::new(format!("{host} does not have {what}"))
                .because("there is no such image (status 404)")
                .help("check name and tag; some registries say this also where a login is missing"),
            429 => Error::new(format!("{host} has been asked too often"))
                .because("it limits the number of downloads (status 429)")
                .help(match after {
                    Some(seconds) if seconds.trim().parse::<u64>().is_ok() => {
                        format!(
                            "try again in {} s, or log in: users who are known have a higher limit",
                            seconds.trim()
                        )
                    }
                    _ => "try again later, or log in: users who are known have a higher limit".to_owned(),
                }),
            500..=599 => Error::new(format!("{host} is out of order"))
                .because(format!("it answers with status {status} when asked for {what}"))
                .help("try again later"),
            _ => Error::new(format!("{host} does not give us {what}"))
                .because(format!("it answers with status {status}")),
        };
        match words(&answer.small(MAX_ANSWER).unwrap_or_default()) {
            Some(words) => error.because(format!("the registry says: {words}")),
            None => error,
        }
    }

    fn unreachable(&self, why: &NoAnswer) -> Error {
        let host = &self.reference.host;
        let error = Error::new(format!("registry {host} cannot be reached"));
        let no_way = error.clone().kind(Kind::Unreachable);
        match why {
            NoAnswer::NoHost => no_way
                .because("no such host is known")
                .help("check the name, and whether this machine has a way to the network (http_proxy, https_proxy)"),
            NoAnswer::NoConnection(why) => no_way
                .because(why)
                .help("check the address, and whether this machine has a way to the network (http_proxy, https_proxy)"),
            NoAnswer::Silence => no_way
                .because("it has not answered for too long")
                .help("try again later; where something on the way swallows what is sent, name a proxy (http_proxy, https_proxy)"),
            NoAnswer::Unsafe(why) => error
                .because("no safe connection comes about")
                .because(why)
                .help("name your site's certificates with SSL_CERT_FILE; for a registry without TLS that you trust, --no-https"),
            NoAnswer::Plain => Error::new(format!("registry {host} wants to go on without TLS"))
                .help("if you trust everybody on the way, allow it with --no-https"),
            NoAnswer::Other(why) => {
                Error::new(format!("registry {host} gives no answer that can be understood")).because(why)
            }
        }
    }
}

/// What a registry says in its own words, without what could change a terminal.
fn words(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let text = errors.errors.iter().map(|one| one.message.as_str()).collect::<Vec<_>>().join("; ");
    let clean: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    (!clean.is_empty()).then_some(clean)
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {both}")
}

fn is_header(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| (0x21..0x7f).contains(&b))
}

/// For a query.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |all, b| match b {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => all + &char::from(b).to_string(),
        b => all + &format!("%{b:02X}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_cleaned_and_cut() {
        let body = format!(
            r#"{{"errors":[{{"code":"X","message":"no\u001b[2J way"}},{{"message":"{}"}}]}}"#,
            "x".repeat(999)
        );
        let told = words(body.as_bytes()).unwrap();
        assert!(told.starts_with("no[2J way; xxx") && told.len() == 300, "{told}");
        assert_eq!(words(b"<html>"), None);
        assert_eq!(words(br#"{"errors":[]}"#), None);
        assert_eq!(escaped("repository:a/b:pull c"), "repository%3Aa%2Fb%3Apull%20c");
        assert!(!is_header("a\r\nX: y") && !is_header("") && is_header("abc.def"));
    }
}
