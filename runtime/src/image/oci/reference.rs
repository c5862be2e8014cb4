//! How an image in a registry, a layout or an archive is named. Takes text, touches nothing.

use std::fmt;
use std::path::PathBuf;

use super::digest::Digest;

/// The forms that exist, for messages.
pub const FORMS: &str = "docker://[HOST[:PORT]/]NAME[:TAG|@DIGEST], oci:DIRECTORY[:TAG], oci-archive:FILE[:TAG] and docker-archive:FILE[:NAME:TAG]";
/// Apptainer's other forms, so that they are refused by name.
const OTHERS: &[&str] =
    &["library", "oras", "shub", "http", "https", "ipfs", "docker-daemon", "containers-storage"];
const DEFAULT_HOST: &str = "docker.io";

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// In a registry.
    Registry(Reference),
    /// In an image layout.
    Layout { dir: PathBuf, tag: Option<String> },
    /// In an archive of an image layout.
    LayoutArchive { file: PathBuf, tag: Option<String> },
    /// In an archive as `docker save` writes it.
    DockerArchive { file: PathBuf, tag: Option<String> },
}

/// A name in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// With the port, where one was given.
    pub host: String,
    /// Below the host.
    pub repository: String,
    /// `latest` where neither tag nor digest was given.
    pub tag: Option<String>,
    /// Exactly this image.
    pub digest: Option<Digest>,
}

/// Why a name is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// A form of Apptainer's.
    #[error("image \"{given}\" cannot be had: {scheme} is not supported")]
    Scheme { given: String, scheme: String },
    /// Written wrongly.
    #[error("image \"{given}\" is not a name of an image: {problem}")]
    Name { given: String, problem: String },
}

impl UriError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Scheme { .. } => format!("there are {FORMS}"),
            Self::Name { .. } => {
                "write it as docker://python:3.12, docker://ghcr.io/owner/name:tag or docker://name@sha256:..."
                    .to_owned()
            }
        })
    }
}

impl Uri {
    /// What `text` names; `None` where it is a path.
    ///
    /// # Errors
    /// A form that is not supported, or a name that is none.
    pub fn parse(text: &str) -> Result<Option<Self>, UriError> {
        let Some((scheme, rest)) = text.split_once(':') else { return Ok(None) };
        let name = |problem: &str| UriError::Name { given: text.to_owned(), problem: problem.to_owned() };
        let file = || {
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) if !tag.is_empty() => (path, Some(tag.to_owned())),
                _ => (rest.trim_end_matches(':'), None),
            };
            let path = path.strip_prefix("//").map_or(path, |path| path);
            if path.is_empty() { Err(name("there is no path")) } else { Ok((PathBuf::from(path), tag)) }
        };
        Ok(Some(match scheme {
            "docker" => {
                let Some(rest) = rest.strip_prefix("//") else { return Err(name("two slashes are missing")) };
                Self::Registry(Reference::parse(rest).map_err(|problem| name(&problem))?)
            }
            "oci" => file().map(|(dir, tag)| Self::Layout { dir, tag })?,
            "oci-archive" => file().map(|(file, tag)| Self::LayoutArchive { file, tag })?,
            "docker-archive" => file().map(|(file, tag)| Self::DockerArchive { file, tag })?,
            other if OTHERS.contains(&other) || is_other_scheme(other, rest) => {
                return Err(UriError::Scheme { given: text.to_owned(), scheme: other.to_owned() });
            }
            _ => return Ok(None),
        }))
    }
}

/// `instance://` is an address as well, and somebody else's.
fn is_other_scheme(scheme: &str, rest: &str) -> bool {
    let word = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    word && rest.starts_with("//") && scheme != "instance"
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, tag) = match self {
            Self::Registry(reference) => return write!(f, "docker://{reference}"),
            Self::Layout { dir, tag } => ("oci", dir, tag),
            Self::LayoutArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, tag } => ("docker-archive", file, tag),
        };
        write!(f, "{scheme}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl Reference {
    /// `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`.
    ///
    /// # Errors
    /// What is wrong, as a phrase.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (rest, Some(Digest::try_from(digest.to_owned())?)),
        };
        let (host, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path),
            _ => (DEFAULT_HOST, rest),
        };
        let (name, tag) = match path.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (path, None),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        check_host(host)?;
        check_repository(name)?;
        if let Some(tag) = &tag {
            check_tag(tag)?;
        }
        let library = host == DEFAULT_HOST && !name.contains('/');
        let repository = if library { format!("library/{name}") } else { name.to_owned() };
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }

    /// What a registry is asked for: the digest where there is one.
    #[must_use]
    pub fn asked(&self) -> &str {
        let tag = self.tag.as_deref().unwrap_or("latest");
        self.digest.as_ref().map_or(tag, Digest::as_str)
    }

    /// The same name for exactly this image.
    #[must_use]
    pub fn exactly(&self, digest: &Digest) -> Self {
        Self { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }

    /// The machine that answers.
    #[must_use]
    pub fn server(&self) -> &str {
        if self.host == DEFAULT_HOST { "registry-1.docker.io" } else { &self.host }
    }

    /// The registry is this machine, which nobody can listen in on.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// As docker tells a host from the first part of a name.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn check_host(host: &str) -> Result<(), String> {
    let bare = |h: &str| {
        !h.is_empty()
            && !h.starts_with(['-', '.'])
            && h.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, port)) if ip.parse::<std::net::Ipv6Addr>().is_ok() => (None, port.strip_prefix(':')),
        Some(_) => return Err(format!("{host:?} is not a host")),
        None => host.split_once(':').map_or((Some(host), None), |(name, port)| (Some(name), Some(port))),
    };
    if name.is_some_and(|name| !bare(name)) || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(format!("{host:?} is not a host"));
    }
    Ok(())
}

fn check_repository(name: &str) -> Result<(), String> {
    let small = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let ends = part.bytes().next().is_some_and(small) && part.bytes().last().is_some_and(small);
        ends && part.bytes().all(|b| small(b) || b"._-".contains(&b)) && !part.contains("..")
    };
    if name.is_empty() {
        return Err("there is no name".to_owned());
    }
    if name.len() > 255 {
        return Err("the name is longer than 255 characters".to_owned());
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("{name:?} has capital letters"));
    }
    if !name.split('/').all(part) {
        return Err(format!(
            "{name:?} may hold lower-case letters, digits, and between them dots, hyphens and underscores"
        ));
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fits = tag.bytes().next().is_some_and(word)
        && tag.len() <= 128
        && tag.bytes().all(|b| word(b) || b"-.".contains(&b));
    if fits { Ok(()) } else { Err(format!("{tag:?} is not a tag")) }
}

#[cfg(test)]
mod tests;
