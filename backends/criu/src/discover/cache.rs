//! What was costly to find out, kept in a file: CRIU's version and libraries, and the outcome of the self-test. Every
//! entry says of which files, kernel and user it holds; one that does not hold any more, or cannot be read, counts as
//! absent.

use semver::Version;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const NAME: &str = "criu.json";
/// A file that is larger was not written here.
const MOST: u64 = 1 << 20;
/// Several users of one cache, or several installations, are rare.
const ENTRIES: usize = 8;

/// Which file it is and in which state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Where.
    pub path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = path.metadata().ok()?;
        let changed = (meta.mtime(), meta.mtime_nsec());
        Some(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed,
        })
    }

    fn is_fresh(&self) -> bool {
        Self::of(&self.path).as_ref() == Some(self)
    }
}

/// What is known of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The program.
    pub program: Stamp,
    /// What else the answer depends on, by name: the loader, its cache, the libraries.
    pub others: Vec<(String, Stamp)>,
    /// Its version.
    pub version: Version,
}

/// An outcome of the self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tested<K, T> {
    /// Where it holds.
    pub key: K,
    /// What came out.
    pub outcome: T,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Contents {
    programs: Vec<Known>,
    tests: Vec<Tested<serde_json::Value, serde_json::Value>>,
}

/// The file, read.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    directory: Option<PathBuf>,
    contents: Contents,
    dirty: bool,
}

impl Cache {
    /// What is kept in a directory; nothing where there is none, or where another user could have written it.
    pub(crate) fn open(directory: &Path, euid: u32) -> Self {
        if directory.as_os_str().is_empty() {
            return Self::default();
        }
        let contents = read(&directory.join(NAME), euid).unwrap_or_default();
        Self { directory: Some(directory.to_owned()), contents, dirty: false }
    }

    /// What is known of a program, when nothing has changed since.
    pub(crate) fn program(&self, path: &Path) -> Option<&Known> {
        let known = self.contents.programs.iter().find(|known| known.program.path == path)?;
        let fresh = known.program.is_fresh() && known.others.iter().all(|(_, stamp)| stamp.is_fresh());
        Some(known).filter(|_| fresh)
    }

    pub(crate) fn remember(&mut self, known: Known) {
        self.contents.programs.retain(|old| old.program.path != known.program.path);
        self.contents.programs.push(known);
        shorten(&mut self.contents.programs);
        self.dirty = true;
    }

    /// What came out of the self-test under these conditions.
    pub(crate) fn test<T: for<'de> Deserialize<'de>>(&self, key: &impl Serialize) -> Option<T> {
        let key = serde_json::to_value(key).ok()?;
        let tested = self.contents.tests.iter().find(|tested| tested.key == key)?;
        serde_json::from_value(tested.outcome.clone()).ok()
    }

    pub(crate) fn remember_test(&mut self, key: &impl Serialize, outcome: &impl Serialize) {
        let (Ok(key), Ok(outcome)) = (serde_json::to_value(key), serde_json::to_value(outcome)) else {
            return;
        };
        self.contents.tests.retain(|old| old.key != key);
        self.contents.tests.push(Tested { key, outcome });
        shorten(&mut self.contents.tests);
        self.dirty = true;
    }

    /// Writes it down, when there is anything new. That this fails costs time later and nothing else.
    pub(crate) fn save(&mut self) {
        let Some(directory) = self.directory.as_deref().filter(|_| self.dirty) else { return };
        match write(directory, &self.contents) {
            Ok(()) => self.dirty = false,
            Err(error) => tracing::debug!(directory = %directory.display(), %error, "nothing was cached"),
        }
    }
}

fn shorten<T>(entries: &mut Vec<T>) {
    entries.drain(..entries.len().saturating_sub(ENTRIES));
}

fn read(file: &Path, euid: u32) -> Option<Contents> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(file)
        .ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.uid() != euid || meta.mode() & 0o022 != 0 {
        return None;
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write(directory: &Path, contents: &Contents) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let new = directory.join(format!("{NAME}.{}", std::process::id()));
    // Left over by a process with the same pid that was killed right here.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(&serde_json::to_vec(contents)?);
    let written = written.and_then(|()| fs::rename(&new, directory.join(NAME)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn euid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn known(dir: &Path) -> Known {
        fs::write(dir.join("criu"), "x").unwrap();
        fs::write(dir.join("ld.so"), "x").unwrap();
        let stamp = |name| Stamp::of(&dir.join(name)).unwrap();
        let others = vec![("ld.so".to_owned(), stamp("ld.so"))];
        Known { program: stamp("criu"), others, version: Version::new(4, 1, 1) }
    }

    #[test]
    fn what_was_remembered_holds_until_a_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (place, program) = (dir.path().join("cache/deep"), dir.path().join("criu"));
        let mut cache = Cache::open(&place, euid());
        let known = known(dir.path());
        cache.remember(known.clone());
        cache.remember_test(&("key", 1), &"fine");
        cache.save();
        assert_eq!(place.metadata().unwrap().mode() & 0o777, 0o700);
        let cache = Cache::open(&place, euid());
        assert_eq!(cache.program(&program), Some(&known));
        assert_eq!(cache.test::<String>(&("key", 1)).as_deref(), Some("fine"));
        assert_eq!(cache.test::<u64>(&("key", 1)), None);
        assert_eq!(cache.test::<String>(&("key", 2)), None);
        assert_eq!(cache.program(&dir.path().join("other")), None);
        fs::write(dir.path().join("ld.so"), "longer").unwrap();
        assert_eq!(cache.program(&program), None);
        fs::remove_file(dir.path().join("ld.so")).unwrap();
        assert_eq!(cache.program(&program), None);
    }

    #[test]
    fn what_cannot_be_believed_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("criu");
        let mut cache = Cache::open(dir.path(), euid());
        cache.remember(known(dir.path()));
        cache.save();
        assert!(Cache::open(dir.path(), euid()).program(&program).is_some());
        assert!(Cache::open(dir.path(), euid() + 1).program(&program).is_none());
        assert!(Cache::open(Path::new(""), euid()).program(&program).is_none());
        let file = dir.path().join(NAME);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(Cache::open(dir.path(), euid()).program(&program).is_none());
        for text in ["", "{", "[]", "{\"programs\": 1}", "\u{0}"] {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let mut cache = Cache::open(dir.path(), euid());
            assert!(cache.program(&program).is_none());
            cache.remember(known(dir.path()));
            cache.save();
            assert!(Cache::open(dir.path(), euid()).program(&program).is_some(), "{text}");
        }
    }

    #[test]
    fn it_stays_small_and_needs_no_place() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(Path::new(""), euid());
        for number in 0..20 {
            cache.remember_test(&number, &number);
        }
        cache.save();
        assert_eq!((cache.test::<i32>(&19), cache.test::<i32>(&0)), (Some(19), None));
        // A file is in the way.
        fs::write(dir.path().join("file"), "").unwrap();
        let mut cache = Cache::open(&dir.path().join("file"), euid());
        cache.remember_test(&1, &1);
        cache.save();
        assert_eq!(cache.test::<i32>(&1), Some(1));
    }
}
