//! `manifest.json`: everything about a generation that a refusal, a listing or a restart needs to know before
//! the plugin is loaded. Plain data; nothing here opens a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Result;
use super::document::Document;
use super::error::StoreError;
use super::hash::{Hashed, Parts};
use super::layout;
use super::record::{FORMAT, Formatted, from_json, now};
use super::squash::Writer;
use crate::clocks::Clocks;
use crate::name::BackendName;

/// The most parts of all files of a generation: below 3 MiB of the manifest.
const MOST_PARTS: usize = 1 << 15;

/// Which image a container was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// `directory`, `sif`, ...
    pub kind: String,
    /// Where it was when it was used; not part of the identity.
    pub path: String,
    /// Cheap to take; changes with anything that could change the content.
    pub fingerprint: String,
    /// Of the content, where it is known.
    #[serde(default)]
    pub digest: Option<String>,
    /// The number that a SIF file carries; not part of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

impl ImageIdentity {
    /// Whether both are the same image: by digest if both have one, else by fingerprint.
    pub fn same_as(&self, other: &Self) -> bool {
        match (&self.digest, &other.digest) {
            // The same file system may be in a SIF file and in one of its own.
            (Some(a), Some(b)) => a == b,
            _ => self.fingerprint == other.fingerprint && self.kind == other.kind,
        }
    }
}

impl fmt::Display for ImageIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.digest.as_ref().unwrap_or(&self.fingerprint);
        let short: String = id.chars().take(16).collect();
        write!(f, "{:?} ({} {})", self.path, self.kind.escape_debug(), short.escape_debug())
    }
}

/// The backend and engine that made a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEntry {
    pub name: BackendName,
    /// The plugin's version.
    pub version: String,
    pub engine: String,
    pub engine_version: String,
}

/// The host on which a generation was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    pub hostname: String,
    /// Release, as `uname -r` tells.
    pub kernel: String,
    pub arch: String,
    #[serde(default)]
    pub cpu_features: Vec<String>,
    pub uid: u32,
    pub gid: u32,
}

/// A socket on which the application listened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// `tcp`, `tcp6`, `udp`, ...
    pub proto: String,
    pub address: String,
    pub port: u16,
}

/// A process of the application, as numbered inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    pub pid: u32,
    pub name: String,
}

/// A file of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the generation, with `/` between its parts.
    pub path: String,
    pub size: u64,
    /// 64 hexadecimal digits, lower case.
    pub blake3: String,
    /// Of a large one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
    /// The earlier generation for which it was written, when it is shared with one. Only told: that generation may be
    /// gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

impl FileEntry {
    /// Compares with what the file holds now; otherwise what is wrong, and where in it as far as that can be told.
    pub(crate) fn compare(&self, now: &Hashed) -> Result<(), String> {
        if self.blake3.eq_ignore_ascii_case(&now.blake3) && self.size == now.size {
            return Ok(());
        }
        let place = self.parts.as_ref().zip(now.parts.as_ref()).and_then(|(a, b)| a.difference(b, self.size));
        let place = place.map(|(from, to)| format!(", first between bytes {from} and {to}"));
        Err(format!("its content is not what was saved{}", place.unwrap_or_default()))
    }
}

/// What the caller of a commit knows; the store adds number, time and files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManifestDraft {
    pub stasis_version: String,
    pub backend: BackendEntry,
    pub image: ImageIdentity,
    pub host: HostEntry,
    /// How user ids were mapped.
    pub id_map: String,
    /// The container specification: mounts, namespaces, environment.
    pub spec: Document,
    pub command: Vec<String>,
    /// What the backend wants handed back at restart.
    #[serde(default)]
    pub engine_state: BTreeMap<String, String>,
    #[serde(default)]
    pub listening: Vec<Listening>,
    #[serde(default)]
    pub processes: Vec<ProcessEntry>,
    /// What its clocks showed once it was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<Clocks>,
    /// What the backend reported about the capture.
    #[serde(default)]
    pub report: Map<String, Value>,
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u64,
    pub generation: u64,
    /// RFC 3339, UTC.
    pub created: String,
    pub stasis_version: String,
    pub backend: BackendEntry,
    pub image: ImageIdentity,
    pub host: HostEntry,
    pub id_map: String,
    pub spec: Document,
    pub command: Vec<String>,
    #[serde(default)]
    pub engine_state: BTreeMap<String, String>,
    #[serde(default)]
    pub listening: Vec<Listening>,
    #[serde(default)]
    pub processes: Vec<ProcessEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<Clocks>,
    #[serde(default)]
    pub report: Map<String, Value>,
    pub files: Vec<FileEntry>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// Makes parts coarser, the finest ones first, until there are at most so many in all: a manifest must not outgrow what
/// is read of one.
pub(crate) fn bound_parts(files: &mut [FileEntry], most: usize) {
    loop {
        let parts = || files.iter().filter_map(|file| file.parts.as_ref());
        let finest = parts().map(|parts| parts.size).min();
        if parts().map(|parts| parts.blake3.len()).sum::<usize>() <= most {
            return;
        }
        for file in files.iter_mut() {
            file.parts = match file.parts.take() {
                Some(parts) if Some(parts.size) == finest => parts.coarser(),
                parts => parts,
            };
        }
    }
}

impl Formatted for Manifest {
    fn format(&self) -> u64 {
        self.format
    }
}

impl Manifest {
    pub(crate) fn new(draft: ManifestDraft, generation: u64, mut files: Vec<FileEntry>) -> Self {
        bound_parts(&mut files, MOST_PARTS);
        let ManifestDraft {
            stasis_version,
            backend,
            image,
            host,
            id_map,
            spec,
            command,
            engine_state,
            listening,
            processes,
            clocks,
            report,
        } = draft;
        Self {
            format: FORMAT,
            generation,
            created: now(),
            stasis_version,
            backend,
            image,
            host,
            id_map,
            spec,
            command,
            engine_state,
            listening,
            processes,
            clocks,
            report,
            files,
            extra: BTreeMap::new(),
        }
    }

    /// The same state in other files, which somebody else may have written.
    pub(crate) fn kept_in(self, mut files: Vec<FileEntry>, writer: Writer) -> Self {
        bound_parts(&mut files, MOST_PARTS);
        let Writer { stasis_version, backend } = writer;
        Self { files, stasis_version, backend, ..self }
    }

    /// Reads a manifest that may have been written by anybody. `path` is for messages.
    pub(crate) fn parse(path: &Path, bytes: &[u8], number: u64) -> Result<Self> {
        let manifest: Self = from_json(path, bytes)?;
        match manifest.problem(number) {
            Some(problem) => Err(StoreError::damaged(path, problem)),
            None => Ok(manifest),
        }
    }

    fn problem(&self, number: u64) -> Option<String> {
        if self.generation != number {
            return Some(format!("it is of generation {}, not of {number}", self.generation));
        }
        if self.created.parse::<jiff::Timestamp>().is_err() {
            return Some("its time of creation is none".to_owned());
        }
        if self.files.len() > layout::MAX_ENTRIES {
            return Some(format!("it lists {} files", self.files.len()));
        }
        let mut seen = BTreeSet::new();
        for file in &self.files {
            let shown: String = file.path.chars().take(80).collect();
            if !is_inside(&file.path) || file.path == layout::MANIFEST {
                return Some(format!("it lists {shown:?}, which is no place for a file of a generation"));
            }
            if !seen.insert(&file.path) {
                return Some(format!("it lists {shown:?} twice"));
            }
            if file.blake3.len() != 64 || !file.blake3.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Some(format!("the hash of {shown:?} is none"));
            }
        }
        let total = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
        total.is_none().then(|| "the sizes of its files are impossible".to_owned())
    }

    /// Sum of the sizes of all files, in bytes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Whether files of it were written for earlier generations, which may be gone.
    pub fn builds_on_others(&self) -> bool {
        self.files.iter().any(|file| file.from.is_some())
    }

    /// When it was made. `None` only for a manifest that was not read by the store.
    pub fn created_at(&self) -> Option<jiff::Timestamp> {
        self.created.parse().ok()
    }
}

/// Relative, in its shortest spelling, and without a way out.
fn is_inside(path: &str) -> bool {
    const LONGEST: usize = 4096;
    let parts = Path::new(path).components();
    let spelled: Vec<&str> = parts
        .map(|part| match part {
            Component::Normal(part) => part.to_str().unwrap_or_default(),
            _ => "",
        })
        .collect();
    !path.is_empty()
        && path.len() <= LONGEST
        && !path.contains('\0')
        && spelled.len() <= layout::MAX_DEPTH + 1
        && spelled.iter().all(|part| !part.is_empty())
        && spelled.join("/") == path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{draft, image};

    #[test]
    fn paths_that_lead_outside() {
        for good in ["a", "a/b", "ckpt_x.img", "..a/b..", ".hidden"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "/", "/a", "..", "../a", "a/../b", "a/..", ".", "./a", "a/./b", "a//b", "a/", "a\0b"]
        {
            assert!(!is_inside(bad), "{bad:?}");
        }
        assert!(!is_inside(&"a/".repeat(50)));
        assert!(!is_inside(&"a".repeat(5000)));
    }

    #[test]
    fn identity_by_digest_then_fingerprint() {
        let same = |a: &ImageIdentity, b: &ImageIdentity| a.same_as(b) && b.same_as(a);
        assert!(same(&image("/a", "f", Some("d")), &image("/b", "g", Some("d"))));
        assert!(!same(&image("/a", "f", Some("d")), &image("/a", "f", Some("e"))));
        assert!(same(&image("/a", "f", Some("d")), &image("/b", "f", None)));
        assert!(!same(&image("/a", "f", None), &image("/a", "g", None)));
        let sif = ImageIdentity { kind: "sif".into(), ..image("/a", "f", None) };
        assert!(!same(&sif, &image("/a", "f", None)));
    }

    #[test]
    fn unknown_fields_survive() {
        let manifest = Manifest::new(draft("one"), 3, Vec::new());
        let mut value = serde_json::to_value(&manifest).unwrap();
        value["later"] = serde_json::json!({"a": [1, 2]});
        let bytes = serde_json::to_vec(&value).unwrap();
        let read = Manifest::parse(Path::new("m"), &bytes, 3).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), value);
    }

    fn file(path: &str) -> FileEntry {
        FileEntry { path: path.into(), size: 1, blake3: "0".repeat(64), parts: None, from: None }
    }

    #[test]
    fn parts_become_coarser_until_they_fit() {
        let of = |size: u64, count: usize| {
            let parts = Some(Parts { size, blake3: vec!["0".repeat(64); count] });
            FileEntry { parts, ..file(&format!("{size}-{count}")) }
        };
        let bounded = |most: usize| {
            let mut files = vec![of(4, 100), file("small"), of(8, 30), of(4, 2)];
            bound_parts(&mut files, most);
            let parts = files.iter().map(|file| file.parts.as_ref().map(|p| (p.size, p.blake3.len())));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(bounded(132), [Some((4, 100)), None, Some((8, 30)), Some((4, 2))]);
        assert_eq!(bounded(131), [Some((8, 50)), None, Some((8, 30)), None]);
        assert_eq!(bounded(40), [Some((16, 25)), None, Some((16, 15)), None]);
        assert_eq!(bounded(1), [None; 4]);
        // What cannot be joined is dropped.
        let mut hostile = vec![of(0, 9), of(u64::MAX, 9)];
        hostile[0].parts.as_mut().unwrap().blake3[0] = "x".to_owned();
        bound_parts(&mut hostile, 1);
        assert!(hostile.iter().all(|file| file.parts.is_none()));
    }

    #[test]
    fn the_largest_generation_can_be_read_again() {
        let parts = Some(Parts { size: 4 << 20, blake3: vec!["0".repeat(64); 4096] });
        let files: Vec<FileEntry> =
            (0..100).map(|n| FileEntry { parts: parts.clone(), ..file(&n.to_string()) }).collect();
        let manifest = Manifest::new(draft("one"), 3, files);
        let bytes = crate::store::record::to_json(Path::new("m"), &manifest).unwrap();
        assert!(bytes.len() < 3 << 20, "{}", bytes.len());
        assert_eq!(Manifest::parse(Path::new("m"), &bytes, 3).unwrap(), manifest);
        assert!(manifest.files.iter().all(|file| file.parts.as_ref().unwrap().size == 64 << 20));
    }

    #[test]
    fn hostile_manifests() {
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = Manifest::new(draft("one"), 3, vec![file("a")]);
            change(&mut manifest);
            let bytes = serde_json::to_vec(&manifest).unwrap();
            Manifest::parse(Path::new("m"), &bytes, 3).unwrap_err().to_string()
        };
        insta::assert_snapshot!(refused(&|m| m.format = 7), @"m was made by a newer stasis: it has format 7, this one reads up to 1");
        insta::assert_snapshot!(refused(&|m| m.generation = 4), @"m is damaged: it is of generation 4, not of 3");
        insta::assert_snapshot!(refused(&|m| m.created = "yesterday".into()), @"m is damaged: its time of creation is none");
        insta::assert_snapshot!(refused(&|m| m.files[0].path = "../../etc/passwd".into()), @r#"m is damaged: it lists "../../etc/passwd", which is no place for a file of a generation"#);
        insta::assert_snapshot!(refused(&|m| m.files[0].path = "manifest.json".into()), @r#"m is damaged: it lists "manifest.json", which is no place for a file of a generation"#);
        insta::assert_snapshot!(refused(&|m| m.files[0].blake3 = "xyz".into()), @r#"m is damaged: the hash of "a" is none"#);
        insta::assert_snapshot!(refused(&|m| m.files.push(file("a"))), @r#"m is damaged: it lists "a" twice"#);
        insta::assert_snapshot!(
            refused(&|m| { m.files[0].size = u64::MAX; m.files.push(file("b")) }), @"m is damaged: the sizes of its files are impossible");
        let wrong = Manifest::parse(Path::new("m"), b"{\"format\":1,\"generation\":\"3\"}", 3).unwrap_err();
        insta::assert_snapshot!(wrong, @r#"m is damaged: invalid type: string "3", expected u64 at line 1 column 28"#);
    }
}
