//! Who we are to a registry: what users have told `docker login`, `podman login`, `skopeo login` or Apptainer before.
//! Nothing is ever written.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use serde::Deserialize;

const MAX_FILE: u64 = 4 << 20;
/// Under this name docker keeps what is for its own registry.
const DOCKER_IO: &str = "https://index.docker.io/v1/";
/// A helper says this in place of a user's name for a token.
const TOKEN: &str = "<token>";
/// All helpers say this of a registry that they know nothing of.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password { user: String, password: String },
    /// A token with which shorter ones are had.
    Token(String),
}

/// No secret gets into a log.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user:?}, ...)"),
            Self::Token(_) => f.write_str("Token(...)"),
        }
    }
}

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `--authfile`.
    pub authfile: Option<PathBuf>,
    /// The caller's environment.
    pub env: BTreeMap<String, String>,
    /// The caller's home.
    pub home: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// What was found, and remarks for the user on the way to it.
#[derive(Debug, Default)]
pub struct Found {
    /// What to show to the registry.
    pub credentials: Option<Credentials>,
    /// Files that cannot be used, helpers that are missing.
    pub notes: Vec<String>,
}

impl Places {
    /// The credentials for a repository of a registry. The first place that knows it counts.
    #[must_use]
    pub fn find(&self, host: &str, repository: &str) -> Found {
        let mut found = Found::default();
        for prefix in ["STASIS", "APPTAINER", "SINGULARITY"] {
            let of = |name: &str| self.env.get(&format!("{prefix}_DOCKER_{name}")).filter(|v| !v.is_empty());
            if let (Some(user), Some(password)) = (of("USERNAME"), of("PASSWORD")) {
                let (user, password) = (user.clone(), password.clone());
                found.credentials = Some(Credentials::Password { user, password });
                return found;
            }
        }
        for path in self.files() {
            let file = match read(&path) {
                Ok(Some(file)) => file,
                Ok(None) if self.authfile.as_deref() == Some(&path) => {
                    found
                        .notes
                        .push(format!("{} does not exist, so no login is taken from it", path.display()));
                    continue;
                }
                Ok(None) => continue,
                Err(why) => {
                    found.notes.push(format!("logins in {} cannot be used: {why}", path.display()));
                    continue;
                }
            };
            if let Some(credentials) = file.find(host, repository, &self.env, &mut found.notes) {
                found.credentials = Some(credentials);
                return found;
            }
        }
        found
    }

    fn files(&self) -> Vec<PathBuf> {
        if let Some(file) = &self.authfile {
            return vec![file.clone()];
        }
        let var = |name: &str| self.env.get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = self.home.clone();
        let below = |path: &str| home.as_ref().map(|home| home.join(path));
        let config = var("XDG_CONFIG_HOME").or_else(|| below(".config"));
        // Where podman keeps them without a session of its own.
        let session = || PathBuf::from(format!("/run/containers/{}", nix::unistd::geteuid()));
        let runtime = var("XDG_RUNTIME_DIR").map_or_else(session, |dir| dir.join("containers"));
        [
            var("REGISTRY_AUTH_FILE"),
            var("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
            var("APPTAINER_CONFIGDIR")
                .or_else(|| below(".apptainer"))
                .map(|dir| dir.join("docker-config.json")),
            Some(runtime.join("auth.json")),
            config.map(|dir| dir.join("containers/auth.json")),
            below(".docker/config.json"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn read(path: &Path) -> Result<Option<File>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(crate::image::io_words(&e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| crate::image::io_words(&e))?;
    // The parser's words would quote the file, and with it perhaps a password.
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| format!("line {}, column {}: it is not what docker writes", e.line(), e.column()))
}

impl File {
    fn find(
        &self,
        host: &str,
        repository: &str,
        env: &BTreeMap<String, String>,
        notes: &mut Vec<String>,
    ) -> Option<Credentials> {
        let own = self.cred_helpers.iter().find(|(key, _)| plain(key) == host).map(|(_, helper)| helper);
        let asked = if host == "docker.io" { DOCKER_IO } else { host };
        if let Some(helper) = own.or(self.creds_store.as_ref().filter(|helper| !helper.is_empty())) {
            match ask_helper(helper, asked, env) {
                Ok(Some(credentials)) => return Some(credentials),
                Ok(None) => {}
                Err(why) => {
                    notes.push(format!("the login for {host} is kept by docker-credential-{helper}: {why}"))
                }
            }
        }
        // An entry may be for a part of the registry: the longest one that fits counts.
        let whole = format!("{host}/{repository}/");
        let fits = |key: &String| whole.starts_with(&format!("{}/", plain(key)));
        let entry = self.auths.iter().filter(|(key, _)| fits(key)).max_by_key(|(key, _)| plain(key).len());
        entry.and_then(|(key, entry)| match entry.credentials() {
            Ok(credentials) => credentials,
            Err(why) => {
                notes.push(format!("the login for {key} cannot be used: {why}"));
                None
            }
        })
    }
}

impl Entry {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::Token(token.clone())));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credentials::Password { user: user.clone(), password: password.clone() }));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(auth.trim()).map_err(|_| "it is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "it is not text")?;
        let (user, password) = text.split_once(':').ok_or("it has no colon")?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials::Password { user: user.to_owned(), password }))
    }
}

/// The host, and perhaps a part of its repositories, that a key stands for: docker writes addresses of the registry's
/// first interface.
fn plain(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        key => key.to_owned(),
    }
}

/// Runs the program that keeps the user's logins. Where it knows none, it says so and fails.
fn ask_helper(
    helper: &str,
    host: &str,
    env: &BTreeMap<String, String>,
) -> Result<Option<Credentials>, String> {
    if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err("this is not the name of a program".to_owned());
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                "it is not installed here; log in with `docker login` or give --authfile".to_owned()
            }
            _ => crate::image::io_words(&e),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has made up its mind.
        let _ = stdin.write_all(host.as_bytes());
    }
    let out = child.wait_with_output().map_err(|e| crate::image::io_words(&e))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stdout);
        return match said.lines().next().unwrap_or_default().trim() {
            "" => Err(format!("it failed with {}", out.status)),
            NOT_FOUND => Ok(None),
            said => Err(format!("it says: {said}")),
        };
    }
    let helped: Helped =
        serde_json::from_slice(&out.stdout).map_err(|_| "its answer cannot be understood".to_owned())?;
    Ok(Some(if helped.username == TOKEN {
        Credentials::Token(helped.secret)
    } else {
        Credentials::Password { user: helped.username, password: helped.secret }
    }))
}

/// What a registry asks for in its `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Understands the header; `None` for anything but the two schemes.
pub(super) fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut rest = rest;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').map_or((after, ""), |(value, rest)| (value, rest)),
        };
        values.insert(name.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: values.remove("realm")?,
        service: values.remove("service"),
        scope: values.remove("scope"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(name: &str, text: &str) -> (tempfile::TempDir, Places) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        let places = Places { home: Some(home.path().to_owned()), ..Places::default() };
        (home, places)
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn logins_of_other_programs_are_found() {
        let (_home, places) = places(
            ".docker/config.json",
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnM6ZWNyZXQ="},
                "ghcr.io": {"auth": "YTpi"},
                "ghcr.io/owner/private": {"username": "c", "password": "d"},
                "tokens.example": {"identitytoken": "t"},
                "broken.example": {"auth": "%%%"},
                "empty.example": {}
            }}"#,
        );
        assert_eq!(places.find("docker.io", "library/x").credentials, password("hub", "s:ecret"));
        assert_eq!(places.find("ghcr.io", "owner/x").credentials, password("a", "b"));
        assert_eq!(places.find("ghcr.io", "owner/private").credentials, password("c", "d"));
        assert_eq!(places.find("ghcr.io", "owner/privateer").credentials, password("a", "b"));
        assert_eq!(places.find("tokens.example", "x").credentials, Some(Credentials::Token("t".to_owned())));
        assert_eq!(places.find("hcr.io", "x").credentials, None);
        assert_eq!(places.find("empty.example", "x").credentials, None);
        let broken = places.find("broken.example", "x");
        assert_eq!(broken.credentials, None);
        insta::assert_snapshot!(broken.notes.join("\n"), @"the login for broken.example cannot be used: it is not base64");
    }

    #[test]
    fn a_file_that_is_broken_is_told_without_its_content() {
        let (_home, places) = places(".config/containers/auth.json", r#"{"auths": "secret"}"#);
        let found = places.find("ghcr.io", "x");
        assert!(found.notes[0].contains("it is not what docker writes"), "{:?}", found.notes);
        assert!(!found.notes[0].contains("secret"));
        let (_home, mut places) =
            self::places("x", r#"{"credHelpers": {"ghcr.io": "no-such-helper", "y": "../z"}}"#);
        places.authfile = places.home.as_ref().map(|home| home.join("x"));
        insta::assert_snapshot!(places.find("ghcr.io", "x").notes.join("\n"), @"the login for ghcr.io is kept by docker-credential-no-such-helper: it is not installed here; log in with `docker login` or give --authfile");
        insta::assert_snapshot!(places.find("y", "x").notes.join("\n"), @"the login for y is kept by docker-credential-../z: this is not the name of a program");
    }

    /// One that knows the user of every registry but `none.example`; the password is what it was asked for.
    const HELPER: &str = r#"#!/bin/sh
        read -r asked
        case "$1 $asked" in
            "get none.example") echo "credentials not found in native keychain"; exit 1 ;;
            "get locked.example") echo "the keychain is locked"; exit 2 ;;
            "get token.example") echo '{"ServerURL":"x","Username":"<token>","Secret":"t"}' ;;
            "get "*) echo "{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"$asked\"}" ;;
            *) exit 3 ;;
        esac
    "#;

    #[test]
    fn helpers_are_asked_as_docker_asks_them() {
        let with = |text: &str| {
            let (home, mut places) = places(".docker/config.json", text);
            let helper = home.path().join("docker-credential-kept");
            // Not by this process: other tests start programs, which would hold the file open for writing.
            let write = ["-ec", "printf %s \"$1\" > \"$2\"; chmod 755 \"$2\"", "sh", HELPER.trim_start()];
            assert!(Command::new("/bin/sh").args(write).arg(&helper).status().unwrap().success());
            places.env.insert("PATH".to_owned(), format!("{}:/usr/bin:/bin", home.path().display()));
            (home, places)
        };
        let (_home, store) = with(
            r#"{"credsStore": "kept", "auths": {"none.example": {"auth": "YTpi"}, "locked.example": {"auth": "YTpi"}}}"#,
        );
        assert_eq!(store.find("ghcr.io", "x").credentials, password("me", "ghcr.io"));
        assert_eq!(store.find("docker.io", "library/x").credentials, password("me", DOCKER_IO));
        assert_eq!(store.find("token.example", "x").credentials, Some(Credentials::Token("t".to_owned())));
        let found = store.find("none.example", "x");
        assert_eq!((found.credentials, found.notes), (password("a", "b"), Vec::new()));
        let found = store.find("locked.example", "x");
        assert_eq!(found.credentials, password("a", "b"));
        insta::assert_snapshot!(found.notes.join("\n"), @"the login for locked.example is kept by docker-credential-kept: it says: the keychain is locked");
        for key in ["docker.io", "index.docker.io", DOCKER_IO] {
            let (_home, of_one) = with(&format!(r#"{{"credHelpers": {{"{key}": "kept"}}}}"#));
            assert_eq!(of_one.find("docker.io", "library/x").credentials, password("me", DOCKER_IO), "{key}");
            assert_eq!(of_one.find("ghcr.io", "x").credentials, None);
        }
    }

    #[test]
    fn variables_come_first_and_secrets_are_not_shown() {
        let (_home, mut places) =
            places(".docker/config.json", r#"{"auths": {"ghcr.io": {"auth": "YTpi"}}}"#);
        places.env.insert("APPTAINER_DOCKER_USERNAME".to_owned(), "me".to_owned());
        places.env.insert("APPTAINER_DOCKER_PASSWORD".to_owned(), "mine".to_owned());
        let found = places.find("ghcr.io", "x");
        assert_eq!(found.credentials, password("me", "mine"));
        assert!(!format!("{found:?}").contains("mine"));
    }

    #[test]
    fn challenges() {
        let bearer = challenge(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".to_owned(),
                service: Some("registry.docker.io".to_owned()),
                scope: Some("repository:a/b:pull".to_owned()),
            })
        );
        assert_eq!(challenge("basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(challenge("Negotiate"), None);
        assert_eq!(challenge("Bearer service=x"), None);
        assert_eq!(challenge("Bearer realm=\"x"), None);
    }
}
