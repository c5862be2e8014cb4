//! The cache of unpacked files: one directory for each file system, named by its digest, notes by which the digest of a
//! file is known that was unpacked before, and a lock for each directory. Who uses a directory shares its lock, which
//! the kernel gives back when its holder dies; what is to be removed is locked alone.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use crate::error::Result;
use crate::image::cached::{Item, is_mounted};
use crate::image::tree::failed;
use crate::store::{DirHandle, remove};

/// No backend's own cache has this name: they begin with a letter or a digit.
const CACHE: &str = "cache/_images";
/// Held by whoever unpacks.
const MAKING: &str = ".lock";
/// What is being unpacked.
pub(super) const PARTIAL: &str = ".partial";
/// With the digest behind it: what is being removed.
const GONE: &str = ".gone-";
/// With the digest behind it: the lock. It was changed when the directory was used last, and holds the path of the file.
const USED: &str = ".used-";
/// With a file's fingerprint behind it: the digest of its file system.
pub(super) const KNOWN: &str = ".known-";

/// The cache of a user.
#[derive(Debug)]
pub struct Kept {
    dir: DirHandle,
}

/// The content of a file, unpacked. It cannot be removed while this is held.
#[derive(Debug)]
pub struct InUse {
    /// Where it is.
    pub directory: PathBuf,
    /// Held as long as it is used.
    pub lock: File,
}

impl Kept {
    /// Opens the cache, making it where it is missing.
    ///
    /// # Errors
    /// What the file system says; a directory of somebody else's.
    pub fn open(data_root: &Path) -> Result<Self> {
        Ok(Self { dir: DirHandle::open_or_make(&data_root.join(CACHE))? })
    }

    /// The same where there is one: looking is no reason to make it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn existing(data_root: &Path) -> Result<Option<Self>> {
        match data_root.join(CACHE).symlink_metadata() {
            Ok(_) => Self::open(data_root).map(Some),
            Err(_) => Ok(None),
        }
    }

    pub(super) fn dir(&self) -> &DirHandle {
        &self.dir
    }

    /// Waits until nobody unpacks; nobody else does while the answer lives.
    pub(super) fn alone(&self) -> Result<File> {
        let lock = self.dir.open_file(MAKING, OFlag::O_RDWR | OFlag::O_CREAT)?;
        lock.lock().map_err(|e| failed("lock", self.dir.path(), &e))?;
        Ok(lock)
    }

    /// What the note of this name says of a file, where it is unpacked.
    pub(super) fn known(&self, note: &str, file: &Path) -> Result<Option<InUse>> {
        let digest = self.dir.read_small(note)?.and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(digest) = digest.filter(|digest| is_digest(digest)) else { return Ok(None) };
        let lock = self.shared(&digest, file)?;
        Ok(self.has(&digest).then(|| self.at(&digest, lock)))
    }

    /// Whether there is a directory of this name, and so a whole one.
    pub(super) fn has(&self, digest: &str) -> bool {
        self.dir.stat(digest).is_ok_and(|found| found.is_some())
    }

    pub(super) fn at(&self, digest: &str, lock: File) -> InUse {
        InUse { directory: self.dir.path().join(digest), lock }
    }

    /// Takes part in the lock, and notes who used it last.
    pub(super) fn shared(&self, digest: &str, file: &Path) -> Result<File> {
        let mut lock = self.lock_file(digest)?;
        lock.lock_shared().map_err(|e| failed("lock", &self.dir.path().join(digest), &e))?;
        // For those who look at the list; without it they see no name, or an older date.
        let _ = lock.set_len(0).and_then(|()| lock.write_all(file.as_os_str().as_bytes()));
        let _ = lock.set_modified(SystemTime::now());
        Ok(lock)
    }

    fn lock_file(&self, digest: &str) -> Result<File> {
        Ok(self.dir.open_file(format!("{USED}{digest}"), OFlag::O_RDWR | OFlag::O_CREAT)?)
    }

    /// Everything in it, by name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn list(&self) -> Result<Vec<Item>> {
        let names = self.dir.names()?.into_iter().filter_map(|name| name.into_string().ok());
        let mut all: Vec<Item> =
            names.filter(|name| is_digest(name)).map(|digest| self.item(&digest)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn item(&self, digest: &str) -> Item {
        let directory = self.dir.path().join(digest);
        let lock = self.dir.path().join(format!("{USED}{digest}"));
        // One that was never locked was unpacked by an older program.
        let used = lock.metadata().or_else(|_| directory.metadata()).and_then(|meta| meta.modified());
        Item {
            kind: "unpacked",
            digest: format!("blake3:{digest}"),
            name: std::fs::read(&lock)
                .map(|path| String::from_utf8_lossy(&path).into_owned())
                .unwrap_or_default(),
            size: size_below(&directory),
            used: used.unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    /// Removes what was not used for this long, and is not used now. Answers with what went and what stayed because
    /// it is in use.
    ///
    /// # Errors
    /// What the file system says.
    pub fn clean(&self, unused: Duration, dry: bool) -> Result<(Vec<Item>, Vec<Item>)> {
        let now = SystemTime::now();
        let (mut gone, mut stayed) = (Vec::new(), Vec::new());
        for item in self.list()? {
            if now.duration_since(item.used).unwrap_or_default() < unused {
                continue;
            }
            let digest = item.digest.trim_start_matches("blake3:");
            let lock = self.lock_file(digest)?;
            if lock.try_lock().is_err() || is_mounted(&self.dir.path().join(digest)) {
                stayed.push(item);
                continue;
            }
            if !dry {
                // One that was killed may have left another one half removed; the lock is ours.
                remove(&self.dir, format!("{GONE}{digest}"))?;
                // Under its name it is whole or not there.
                self.dir.rename(digest, &self.dir, format!("{GONE}{digest}"))?;
                self.forget(digest)?;
                remove(&self.dir, format!("{GONE}{digest}"))?;
                // The path of somebody's file is nobody's business any more. The lock itself stays: others may wait for it.
                let _ = lock.set_len(0);
            }
            gone.push(item);
        }
        if !dry {
            self.sweep()?;
        }
        Ok((gone, stayed))
    }

    /// Removes the notes that name it.
    fn forget(&self, digest: &str) -> Result<()> {
        for name in self.dir.names()? {
            let Some(name) = name.to_str().filter(|name| name.starts_with(KNOWN)) else { continue };
            if self.dir.read_small(name)?.is_some_and(|noted| noted == digest.as_bytes()) {
                remove(&self.dir, name)?;
            }
        }
        Ok(())
    }

    /// What killed processes have left: half made, or half removed.
    fn sweep(&self) -> Result<()> {
        let making = self.dir.open_file(MAKING, OFlag::O_RDWR | OFlag::O_CREAT)?;
        if making.try_lock().is_ok() {
            remove(&self.dir, PARTIAL)?;
        }
        for name in self.dir.names()? {
            let digest =
                name.to_str().and_then(|name| name.strip_prefix(GONE)).filter(|name| is_digest(name));
            let Some(digest) = digest else { continue };
            // Else somebody is removing it this moment.
            let lock = self.lock_file(digest)?;
            if lock.try_lock().is_ok() {
                remove(&self.dir, &name)?;
            }
        }
        Ok(())
    }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What it takes on the disk. What cannot be looked at counts as nothing.
fn size_below(directory: &Path) -> u64 {
    let mut todo = vec![directory.to_owned()];
    let (mut seen, mut sum) = (HashSet::new(), 0_u64);
    while let Some(here) = todo.pop() {
        for entry in std::fs::read_dir(here).into_iter().flatten().flatten() {
            // Links are not followed.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.nlink() == 1 || seen.insert(meta.ino()) {
                sum = sum.saturating_add(meta.blocks().saturating_mul(512));
            }
        }
    }
    sum
}

/// Keeps a directory of the cache, if it is one, from being removed while the answer lives.
#[must_use]
pub fn hold(directory: &Path) -> Option<File> {
    let (cache, name) = (directory.parent()?, directory.file_name()?.to_str()?);
    if !cache.ends_with(CACHE) || !is_digest(name) {
        return None;
    }
    let kept = Kept { dir: DirHandle::open_or_make(cache).ok()? };
    let lock = kept.lock_file(name).ok()?;
    lock.lock_shared().ok()?;
    kept.has(name).then_some(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    /// A cache that holds one directory, of a file that is known.
    fn cache() -> (tempfile::TempDir, Kept) {
        let dir = tempfile::tempdir().unwrap();
        assert!(Kept::existing(dir.path()).unwrap().is_none());
        let kept = Kept::open(dir.path()).unwrap();
        let image = dir.path().join(CACHE).join(DIGEST);
        std::fs::create_dir_all(image.join("deep")).unwrap();
        std::fs::write(image.join("deep/file"), vec![1; 10_000]).unwrap();
        std::fs::hard_link(image.join("deep/file"), image.join("again")).unwrap();
        std::fs::write(dir.path().join(CACHE).join(".known-1"), DIGEST).unwrap();
        (dir, kept)
    }

    /// How many things went.
    fn went(kept: &Kept, dry: bool) -> usize {
        crate::image::cached::went(|| kept.clean(Duration::ZERO, dry).unwrap().0.len())
    }

    #[test]
    fn what_is_used_is_listed_and_stays() {
        let (_dir, kept) = cache();
        let used = kept.known(".known-1", Path::new("/a/file.sif")).unwrap().unwrap();
        let listed = kept.list().unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].kind), (1, "/a/file.sif", "unpacked"));
        assert!((10_000..20_000).contains(&listed[0].size), "a file with two names counts once: {listed:?}");
        let held = hold(&used.directory).unwrap();
        drop(used.lock);
        let (gone, stayed) = kept.clean(Duration::ZERO, false).unwrap();
        assert!(gone.is_empty() && stayed.len() == 1 && used.directory.join("again").is_file());
        drop(held);
        assert!(kept.clean(Duration::from_secs(60), false).unwrap().0.is_empty());
        assert_eq!(went(&kept, true), 1);
        assert!(used.directory.is_dir());
        assert_eq!(went(&kept, false), 1);
        assert!(!used.directory.exists() && kept.list().unwrap().is_empty());
        assert!(kept.known(".known-1", Path::new("/a")).unwrap().is_none());
        assert!(hold(&used.directory).is_none() && hold(Path::new("/")).is_none());
    }

    #[test]
    fn what_was_left_half_is_swept_away() {
        let (dir, kept) = cache();
        let here = dir.path().join(CACHE);
        let gone = format!("{GONE}{DIGEST}");
        for name in [PARTIAL, gone.as_str()] {
            std::fs::create_dir_all(here.join(name).join("deep")).unwrap();
        }
        let making = kept.alone().unwrap();
        kept.clean(Duration::from_secs(60), false).unwrap();
        assert!(here.join(PARTIAL).exists(), "somebody unpacks this moment");
        assert!(!here.join(&gone).exists() && here.join(DIGEST).exists());
        drop(making);
        let swept = (0..500).any(|_| {
            kept.clean(Duration::from_secs(60), false).unwrap();
            std::thread::sleep(Duration::from_millis(10));
            !here.join(PARTIAL).exists()
        });
        assert!(swept);
        // It was unpacked again before somebody cleaned up.
        std::fs::create_dir_all(here.join(&gone).join("deep")).unwrap();
        assert_eq!(went(&kept, false), 1);
        assert!(!here.join(&gone).exists() && !here.join(DIGEST).exists());
    }
}
