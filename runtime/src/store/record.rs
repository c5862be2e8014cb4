//! `checkpoint.json`: what a checkpoint is bound to, from its creation and first start on.
//!
//! Also the one way JSON of the store is read: bounded, version first, problems told in a line.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::layout;
use super::lock::ShortLock;
use super::manifest::ImageIdentity;
use super::{Checkpoint, Result};
use crate::name::{BackendName, CheckpointName};

/// The newest format of `checkpoint.json` and `manifest.json` that is read, and the one written.
pub(crate) const FORMAT: u64 = 1;

/// A backend as a checkpoint remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStamp {
    pub name: BackendName,
    /// The plugin's version; `None` until something was started with it.
    #[serde(default)]
    pub version: Option<String>,
}

/// The content of `checkpoint.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    pub format: u64,
    /// RFC 3339, UTC.
    pub created: String,
    #[serde(default)]
    pub backend: Option<BackendStamp>,
    #[serde(default)]
    pub image: Option<ImageIdentity>,
}

impl CheckpointRecord {
    pub(crate) fn new(backend: Option<&BackendName>) -> Self {
        let backend = backend.map(|name| BackendStamp { name: name.clone(), version: None });
        Self { format: FORMAT, created: now(), backend, image: None }
    }

    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        to_json(path, self)
    }

    /// Refuses a backend or image other than the one bound, naming both. What is open accepts everything.
    pub fn accepts(&self, name: &CheckpointName, backend: &BackendName, image: &ImageIdentity) -> Result<()> {
        if let Some(bound) = &self.backend
            && bound.name != *backend
        {
            let (bound, asked) = (bound.name.clone(), backend.clone());
            return Err(StoreError::BackendMismatch { name: name.clone(), bound, asked });
        }
        if let Some(bound) = &self.image
            && !bound.same_as(image)
        {
            let (bound, asked) = (Box::new(bound.clone()), Box::new(image.clone()));
            return Err(StoreError::ImageMismatch { name: name.clone(), bound, asked });
        }
        Ok(())
    }

    /// What [`Checkpoint::bind`] makes of it.
    #[must_use]
    pub fn bound(&self, backend: &BackendStamp, image: &ImageIdentity) -> Self {
        let image = match &self.image {
            // Without a digest the new one says less than what is there.
            Some(known) if known.digest.is_some() && image.digest.is_none() => known.clone(),
            _ => image.clone(),
        };
        Self { backend: Some(backend.clone()), image: Some(image), ..self.clone() }
    }
}

impl Checkpoint {
    /// Reads `checkpoint.json`.
    pub fn record(&self) -> Result<CheckpointRecord> {
        let path = self.dir.path().join(layout::RECORD);
        match self.dir.read_small(layout::RECORD)? {
            Some(bytes) => from_json(&path, &bytes),
            None => Err(StoreError::damaged(&path, "it is missing")),
        }
    }

    /// Binds the checkpoint to a backend and an image, both or neither. Refused if either contradicts what is
    /// bound already. A newer version of the same backend and a later known digest of the same image are kept.
    pub fn bind(&self, backend: &BackendStamp, image: &ImageIdentity) -> Result<()> {
        let _lock = ShortLock::take(&self.dir)?;
        let old = self.record()?;
        old.accepts(&self.name, &backend.name, image)?;
        let new = old.bound(backend, image);
        if new == old {
            return Ok(());
        }
        self.dir.replace(layout::RECORD, &new.to_bytes(self.dir.path())?)
    }
}

/// The time in RFC 3339, UTC, whole seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn to_json<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let json = serde_json::to_vec_pretty(value);
    let mut bytes = json.map_err(|e| StoreError::io("write", path, std::io::Error::from(e)))?;
    bytes.push(b'\n');
    if bytes.len() as u64 > layout::MAX_JSON {
        let problem = format!("its description would be larger than {} MiB", layout::MAX_JSON >> 20);
        return Err(StoreError::Unfit { path: path.to_owned(), problem });
    }
    Ok(bytes)
}

/// What tells in which format it was written.
pub(crate) trait Formatted {
    fn format(&self) -> u64;
}

impl Formatted for CheckpointRecord {
    fn format(&self) -> u64 {
        self.format
    }
}

pub(crate) fn from_json<T: DeserializeOwned + Formatted>(path: &Path, bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        format: u64,
    }
    // Looked through for what is no text once, not word by word.
    let no_text = |e: std::str::Utf8Error| format!("it is no text from byte {} on", e.valid_up_to());
    let text = std::str::from_utf8(bytes).map_err(|e| StoreError::damaged(path, no_text(e)))?;
    let whole: serde_json::Result<T> = serde_json::from_str(text);
    // What a newer format means by the other fields is unknown: that it cannot be read tells nothing.
    let format = match &whole {
        Ok(value) => value.format(),
        Err(_) => serde_json::from_str::<Version>(text).map_err(|e| json_problem(path, &e))?.format,
    };
    match format {
        FORMAT => whole.map_err(|e| json_problem(path, &e)),
        0 => Err(StoreError::damaged(path, "it has format 0, which there never was")),
        format => Err(StoreError::Newer { path: path.to_owned(), format, known: FORMAT }),
    }
}

/// A parser's message repeats what it found, which may be millions of characters of anything.
fn json_problem(path: &Path, error: &serde_json::Error) -> StoreError {
    const SHOWN: usize = 160;
    let text = error.to_string();
    let clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let problem = match clean.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}... at line {}", &clean[..end], error.line()),
        None => clean,
    };
    StoreError::damaged(path, problem)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::store::testing::{Fixture, backend, image, message};

    #[test]
    fn binding_both_and_contradictions() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        assert_eq!(checkpoint.record().unwrap().image, None);
        checkpoint.bind(&backend("one"), &image("/img", "f1", None)).unwrap();
        let bound = checkpoint.record().unwrap();
        assert_eq!(bound.backend.as_ref(), Some(&backend("one")));

        let two = checkpoint.bind(&backend("two"), &image("/img", "f1", None)).unwrap_err();
        insta::assert_snapshot!(f.plain(&two), @r#"checkpoint "web" belongs to backend "one", not to "two""#);
        let other = checkpoint.bind(&backend("one"), &image("/other", "f2", None)).unwrap_err();
        insta::assert_snapshot!(f.plain(&other), @r#"checkpoint "web" was made from image "/img" (directory f1), which is not "/other" (directory f2)"#);
        assert_eq!(checkpoint.record().unwrap(), bound, "a refusal changes nothing");

        // The digest becomes known; then it decides, and is not forgotten again.
        checkpoint.bind(&backend("one"), &image("/img", "f1", Some("d1"))).unwrap();
        checkpoint.bind(&backend("one"), &image("/moved", "f9", Some("d1"))).unwrap();
        checkpoint.bind(&backend("one"), &image("/moved", "f9", None)).unwrap();
        assert_eq!(checkpoint.record().unwrap().image.unwrap().digest.as_deref(), Some("d1"));
        checkpoint.bind(&backend("one"), &image("/moved", "f9", Some("d2"))).unwrap_err();
    }

    #[test]
    fn a_backend_asked_for_at_creation_holds() {
        let f = Fixture::new();
        let checkpoint = f.store.create(&"web".parse().unwrap(), Some(&"one".parse().unwrap())).unwrap();
        checkpoint.bind(&backend("two"), &image("/img", "f1", None)).unwrap_err();
        checkpoint.bind(&backend("one"), &image("/img", "f1", None)).unwrap();
        assert_eq!(checkpoint.record().unwrap().backend.unwrap().version.as_deref(), Some("1.2.3"));
    }

    #[test]
    fn hostile_records() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        let path = checkpoint.path().join("checkpoint.json");
        let refused = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            message(&f, checkpoint.record())
        };
        insta::assert_snapshot!(refused(b""), @"/tmp/store/checkpoints/web/checkpoint.json is damaged: EOF while parsing a value at line 1 column 0");
        insta::assert_snapshot!(refused(b"\x00\xff\x1b[31m"), @"/tmp/store/checkpoints/web/checkpoint.json is damaged: it is no text from byte 1 on");
        insta::assert_snapshot!(refused(b"[1]"), @"/tmp/store/checkpoints/web/checkpoint.json is damaged: invalid length 1, expected struct CheckpointRecord with 4 elements at line 1 column 3");
        insta::assert_snapshot!(refused(b"{\"format\": 0}"), @"/tmp/store/checkpoints/web/checkpoint.json is damaged: it has format 0, which there never was");
        insta::assert_snapshot!(refused(b"{\"format\": 2, \"created\": {}}"), @"/tmp/store/checkpoints/web/checkpoint.json was made by a newer stasis: it has format 2, this one reads up to 1");
        insta::assert_snapshot!(
            refused(b"{\"format\":1,\"created\":\"\",\"backend\":{\"name\":\"../x\",\"version\":null}}"), @r#"/tmp/store/checkpoints/web/checkpoint.json is damaged: backend name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first at line 1 column 49"#);
        let long = format!("{{\"format\": \"{}\"}}", "x".repeat(1 << 20));
        assert!(refused(long.as_bytes()).len() < 400);
        insta::assert_snapshot!(refused(&vec![b' '; 17 << 20]), @"/tmp/store/checkpoints/web/checkpoint.json is damaged: it is larger than 16 MiB");
        assert!(refused("[".repeat(1 << 20).as_bytes()).contains("is damaged"), "deep nesting");

        fs::remove_file(&path).unwrap();
        insta::assert_snapshot!(message(&f, checkpoint.record()), @"/tmp/store/checkpoints/web/checkpoint.json is damaged: it is missing");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        insta::assert_snapshot!(message(&f, checkpoint.record()), @"cannot open /tmp/store/checkpoints/web/checkpoint.json: it is a symbolic link, and links are not followed");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        insta::assert_snapshot!(message(&f, checkpoint.record()), @"/tmp/store/checkpoints/web/checkpoint.json is damaged: it is a device, socket or fifo, not a file");
    }
}
