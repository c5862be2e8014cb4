//! Images that were fetched before, by digest, below the user's data directory: the layers as they were downloaded, and
//! the root directories unpacked from them. What is being made has another name until it is whole; who makes or uses a
//! root directory holds a lock, which the kernel gives back when its holder dies.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::error::{Error, Result};
use crate::image::cached::{self, Item};
use crate::image::tree::failed;
use crate::instance::Host;
use crate::store::{self, DirHandle};

/// Below the data directory. No backend's own cache has this name: they begin with a letter or a digit.
const CACHE: &str = "cache/_oci";
const FORMAT: u32 = 1;
const NOTE: &str = "image.json";
/// The root directory of an unpacked image.
const ROOT: &str = "root";
const MAX_NOTE: u64 = 1 << 20;
/// In seconds. The kernel writes what is older than half a minute.
const WRITTEN_AFTER: i64 = 600;

/// The cache of a user.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
}

/// What is written down of an unpacked image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The format of this note.
    pub format: u32,
    /// The name under which it was asked for first.
    pub name: String,
    /// Its identity.
    pub digest: Digest,
    /// What the name stood for: an index, perhaps, out of which it was chosen.
    #[serde(default)]
    pub top: Option<Digest>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Its files.
    pub entries: u64,
    /// When it was unpacked: RFC 3339, UTC.
    pub made: String,
    /// Where and in which run of the kernel it was unpacked, until its files are surely on the disk.
    #[serde(default)]
    pub unwritten: Option<(String, String)>,
}

/// An unpacked image that cannot be removed while this is held.
#[derive(Debug)]
pub struct Rooted {
    /// Its root directory.
    pub root: PathBuf,
    /// Its identity.
    pub digest: Digest,
    /// A name by which exactly this image is had again.
    pub name: String,
    /// Held as long as it is used.
    pub lock: File,
}

impl Cache {
    /// Opens the cache, making it where it is missing.
    ///
    /// # Errors
    /// What the file system says; a directory of somebody else's.
    pub fn open(data_root: &Path) -> Result<Self> {
        let path = data_root.join(CACHE);
        // Owner and modes are looked at there.
        DirHandle::open_or_make(&path)?;
        for name in ["blobs", "roots", "work", "locks"] {
            let dir = path.join(name);
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make the directory", &dir, &e));
                }
                _ => {}
            }
        }
        Ok(Self { path })
    }

    /// Where files without a name may be made.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Where a layer is, or comes to be.
    #[must_use]
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(digest.hex())
    }

    fn image(&self, digest: &Digest) -> PathBuf {
        self.path.join("roots").join(digest.hex())
    }

    fn root(&self, hex: &str) -> PathBuf {
        self.path.join("roots").join(hex).join(ROOT)
    }

    /// The lock of an image or a layer, not taken yet.
    pub(super) fn lock_file(&self, digest: &Digest) -> Result<File> {
        lock_file(&self.path, digest.hex())
    }

    /// An unpacked image, if it is there whole. It is marked as used now.
    pub(super) fn find(
        &self,
        digest: &Digest,
        lock: File,
        name: String,
    ) -> Result<std::result::Result<Rooted, File>> {
        let at = self.image(digest);
        let Some(kept) = read_note(&at).filter(|kept| kept.is_whole() && at.join(ROOT).is_dir()) else {
            return Ok(Err(lock));
        };
        lock.lock_shared().map_err(|e| failed("lock", &at, &e))?;
        // It may have been removed between the look and the lock.
        if read_note(&at).is_none() {
            return Ok(Err(lock));
        }
        kept.settle(&at);
        // A file system that cannot say when it was used last keeps it a little shorter.
        let _ = lock.set_modified(SystemTime::now());
        Ok(Ok(Rooted { root: at.join(ROOT), digest: digest.clone(), name, lock }))
    }

    /// An empty directory in which the image is put together. The caller holds the image's lock alone.
    pub(super) fn fresh(&self, digest: &Digest) -> Result<PathBuf> {
        let work = DirHandle::open_or_make(&self.path.join("work"))?;
        // What somebody left who was killed.
        store::remove(&work, digest.hex())?;
        store::remove(&DirHandle::open_or_make(&self.path.join("roots"))?, digest.hex())?;
        let path = work.make_dir(digest.hex())?.path().to_owned();
        DirBuilder::new()
            .mode(0o755)
            .create(path.join(ROOT))
            .map_err(|e| failed("make the directory", &path, &e))?;
        Ok(path)
    }

    /// Where the image's own root directory is in one of [`Self::fresh`].
    pub(super) fn root_of(fresh: &Path) -> PathBuf {
        fresh.join(ROOT)
    }

    /// Makes a whole image out of one of [`Self::fresh`].
    pub(super) fn commit(&self, fresh: &Path, kept: &Kept) -> Result<()> {
        let to = self.image(&kept.digest);
        let cannot = |e: io::Error| failed("keep the image in the cache at", &to, &e);
        let text = serde_json::to_vec_pretty(kept)
            .map_err(|e| Error::new("cannot describe the image").because(e))?;
        std::fs::write(fresh.join(NOTE), text).map_err(cannot)?;
        std::fs::rename(fresh, &to).map_err(cannot)
    }

    /// Removes what was not finished.
    pub(super) fn drop_fresh(&self, digest: &Digest) -> Result<()> {
        Ok(store::remove(&DirHandle::open_or_make(&self.path.join("work"))?, digest.hex())?)
    }

    /// The image that was last had under this name.
    pub(super) fn last_of(&self, name: &str) -> Option<Kept> {
        let mut all: Vec<Kept> = self.notes().into_iter().filter(|kept| kept.name == name).collect();
        all.sort_by(|a, b| a.made.cmp(&b.made));
        all.pop()
    }

    /// The image that was chosen when a name stood for this.
    pub(super) fn chosen(&self, top: &Digest) -> Option<Kept> {
        self.notes().into_iter().find(|kept| kept.top.as_ref() == Some(top))
    }

    fn notes(&self) -> Vec<Kept> {
        let entries = std::fs::read_dir(self.path.join("roots")).into_iter().flatten().flatten();
        entries.filter_map(|entry| read_note(&entry.path())).collect()
    }

    /// Everything in it, images first.
    #[must_use]
    pub fn list(&self) -> Vec<Item> {
        let time =
            |path: &Path| path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let images = self.notes().into_iter().map(|kept| Item {
            kind: "image",
            used: time(&self.path.join("locks").join(kept.digest.hex())),
            digest: kept.digest.to_string(),
            name: kept.name,
            size: kept.bytes,
        });
        let mut all: Vec<Item> = images.collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let entries = std::fs::read_dir(self.path.join("blobs")).into_iter().flatten().flatten();
        let mut layers: Vec<Item> = entries
            .filter_map(|entry| {
                let meta = entry.metadata().ok()?;
                let name = entry.file_name().into_string().ok()?;
                let (hex, note) = match name.strip_suffix(".partial") {
                    Some(hex) => (hex, "not complete"),
                    None => (name.as_str(), ""),
                };
                Some(Item {
                    kind: "layer",
                    digest: format!("sha256:{hex}"),
                    name: note.to_owned(),
                    size: meta.len(),
                    used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                })
            })
            .collect();
        layers.sort_by(|a, b| a.digest.cmp(&b.digest));
        all.extend(layers);
        all
    }

    /// Removes what was not used for this long, and is not used now. Answers with what went and what stayed because
    /// it is in use.
    ///
    /// # Errors
    /// What the file system says.
    pub fn clean(&self, unused: Duration, dry: bool) -> Result<(Vec<Item>, Vec<Item>)> {
        let now = SystemTime::now();
        let old = |item: &Item| now.duration_since(item.used).unwrap_or_default() >= unused;
        let (mut gone, mut stayed) = (Vec::new(), Vec::new());
        for item in self.list().into_iter().filter(old) {
            let hex = item.digest.strip_prefix("sha256:").unwrap_or_default();
            let lock = lock_file(&self.path, hex)?;
            let mounted = || item.kind == "image" && cached::is_mounted(&self.root(hex));
            if lock.try_lock().is_err() || mounted() {
                stayed.push(item);
                continue;
            }
            if !dry {
                self.remove(&item, hex)?;
            }
            gone.push(item);
        }
        if !dry {
            self.sweep()?;
        }
        Ok((gone, stayed))
    }

    fn remove(&self, item: &Item, hex: &str) -> Result<()> {
        let dir = if item.kind == "image" { "roots" } else { "blobs" };
        let dir = DirHandle::open_or_make(&self.path.join(dir))?;
        let suffix = if item.name == "not complete" { ".partial" } else { "" };
        // The note first: a half removed image is none.
        if item.kind == "image" {
            store::remove(&dir.child(hex)?, NOTE)?;
        }
        Ok(store::remove(&dir, format!("{hex}{suffix}"))?)
    }

    /// What killed processes have left: half made, or half removed.
    fn sweep(&self) -> Result<()> {
        for place in ["work", "roots"] {
            let dir = DirHandle::open_or_make(&self.path.join(place))?;
            for name in dir.names()? {
                // What is put together is whole only when it is among the roots.
                let whole = || place == "roots" && read_note(&dir.path().join(&name)).is_some();
                let Some(hex) = name.to_str().filter(|_| !whole()) else { continue };
                // Held until it is gone: somebody may begin to put the same image together this moment.
                let lock = lock_file(&self.path, hex)?;
                if lock.try_lock().is_ok() && !whole() {
                    store::remove(&dir, hex)?;
                }
            }
        }
        Ok(())
    }
}

fn lock_file(cache: &Path, hex: &str) -> Result<File> {
    let path = cache.join("locks").join(hex);
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    opened.map_err(|e| failed("open the lock", &path, &e))
}

fn read_note(image: &Path) -> Option<Kept> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    File::open(image.join(NOTE)).ok()?.take(MAX_NOTE).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice::<Kept>(&bytes).ok().filter(|kept| kept.format == FORMAT)
}

impl Kept {
    /// To wait for the disk costs seconds where others write as well. Instead the kernel's run is noted: after a
    /// power failure files of it may be empty, and the image is made anew. Other hosts see it through a network file
    /// system, which writes a file when it is closed.
    fn is_whole(&self) -> bool {
        match (&self.unwritten, Host::from_kernel()) {
            (None, _) => true,
            (Some((name, run)), Ok(now)) => *name != now.name || *run == now.boot_id,
            (Some(_), Err(_)) => false,
        }
    }

    /// Forgets the kernel's run when it has had the time to write everything.
    fn settle(mut self, image: &Path) {
        let age = self
            .made
            .parse::<jiff::Timestamp>()
            .map(|made| jiff::Timestamp::now().as_second() - made.as_second());
        if self.unwritten.is_none() || age.is_ok_and(|age| age < WRITTEN_AFTER) {
            return;
        }
        self.unwritten = None;
        // One that fails is tried again next time.
        if let Ok(text) = serde_json::to_vec_pretty(&self)
            && let Ok(mut new) = tempfile::NamedTempFile::new_in(image)
            && io::Write::write_all(&mut new, &text).is_ok()
            && new.as_file().sync_all().is_ok()
        {
            let _ = new.persist(image.join(NOTE));
        }
    }

    /// A note for an image that was unpacked just now.
    #[must_use]
    pub(super) fn now(name: String, digest: Digest, top: Option<Digest>, bytes: u64, entries: u64) -> Self {
        let made = jiff::Timestamp::now().to_string();
        Self {
            format: FORMAT,
            name,
            digest,
            top,
            bytes,
            entries,
            made,
            unwritten: Host::from_kernel().ok().map(|host| (host.name, host.boot_id)),
        }
    }
}

/// Keeps a root directory of the cache, if it is one, from being removed while the answer lives.
#[must_use]
pub fn hold(root: &Path) -> Option<File> {
    let image = root.parent()?;
    let (roots, hex) = (image.parent()?, image.file_name()?.to_str()?);
    if root.file_name()? != ROOT
        || !roots.ends_with(Path::new(CACHE).join("roots"))
        || read_note(image).is_none()
    {
        return None;
    }
    let lock = lock_file(roots.parent()?, hex).ok()?;
    lock.lock_shared().ok()?;
    // It may have been removed between the look and the lock.
    read_note(image).map(|_| lock)
}

#[cfg(test)]
mod tests;
