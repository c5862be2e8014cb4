//! Saved states on disk: checkpoints, their locks, and their numbered, immutable generations.
//!
//! Everything below the root is reached by directory descriptor and without following links, and the only
//! removal of trees in the project is here. The store knows nothing of engines or containers: it keeps what it
//! is given, says whether it is still what was given, and never shows half of it.

mod commit;
mod document;
mod error;
mod generation;
mod hash;
mod inherit;
mod layout;
mod lock;
mod manifest;
mod record;
mod remove;
mod squash;
mod staging;
#[cfg(test)]
mod testing;
mod verify;

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::name::{BackendName, CheckpointName};

pub use commit::{CommitTimes, Committed};
pub use document::Document;
pub use error::StoreError;
pub use generation::Generation;
pub use hash::Parts;
pub use inherit::Inherited;
pub(crate) use layout::DirHandle;
pub use lock::{Holder, LiveLock};
pub use manifest::{
    BackendEntry, FileEntry, HostEntry, ImageIdentity, Listening, Manifest, ManifestDraft, ProcessEntry,
};
pub use record::{BackendStamp, CheckpointRecord};
pub use squash::Writer;
pub use staging::Staging;
pub use verify::Level;

use lock::ShortLock;
pub(crate) use remove::remove;

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A directory full of checkpoints that belongs to the user alone.
#[derive(Debug)]
pub struct Store {
    root: DirHandle,
    checkpoints: DirHandle,
}

/// One checkpoint, opened. It stays the same one even if its name is taken away meanwhile.
#[derive(Debug)]
pub struct Checkpoint {
    name: CheckpointName,
    dir: DirHandle,
    parent: DirHandle,
}

/// One entry of [`Store::list`]: a damaged one is told and does not hide the others.
#[derive(Debug)]
pub struct Listed {
    /// The name of the directory entry; not a checkpoint's name in every case.
    pub name: String,
    pub summary: Result<Summary>,
}

/// What a listing shows of a checkpoint.
#[derive(Debug)]
pub struct Summary {
    pub name: CheckpointName,
    pub record: CheckpointRecord,
    /// Numbers of the committed generations, ascending.
    pub generations: Vec<u64>,
    /// The newest generation.
    pub latest: Option<LatestSummary>,
    /// Who runs it now.
    pub holder: Option<Holder>,
}

/// What a listing shows of the newest generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatestSummary {
    pub number: u64,
    /// RFC 3339, UTC.
    pub created: String,
    /// Sum of the sizes of its files.
    pub bytes: u64,
}

impl Store {
    /// Opens the store at `root` and makes it, mode 0700, where there is none.
    ///
    /// Refused are a root and a `checkpoints` directory that are links, belong to somebody else, or can be
    /// written to by others. Removes what an interrupted deletion or creation left.
    pub fn open(root: &Path) -> Result<Self> {
        let root = DirHandle::open_or_make(root)?;
        let checkpoints = match root.stat(layout::CHECKPOINTS)? {
            Some(_) => root.child(layout::CHECKPOINTS)?,
            None => match root.make_dir(layout::CHECKPOINTS) {
                // Another process was first.
                Err(StoreError::Io { source, .. }) if error::errno(&source) == Errno::EEXIST => {
                    root.child(layout::CHECKPOINTS)?
                }
                made => made?,
            },
        };
        let store = Self { root, checkpoints };
        store.remove_leftovers();
        Ok(store)
    }

    /// The absolute path of the root.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Whether there is an entry of that name, good or damaged.
    pub fn exists(&self, name: &CheckpointName) -> Result<bool> {
        Ok(self.checkpoints.stat(name.as_str())?.is_some())
    }

    /// Makes a checkpoint without saved states. Backend and image stay open, save a `backend` asked for.
    pub fn create(&self, name: &CheckpointName, backend: Option<&BackendName>) -> Result<Checkpoint> {
        let _lock = ShortLock::take(&self.root)?;
        if self.exists(name)? {
            return Err(StoreError::AlreadyExists(name.clone()));
        }
        // Built under a hidden name, so that nobody ever sees half a checkpoint.
        let hidden = format!("{}{name}", layout::NEW);
        remove(&self.checkpoints, &hidden)?;
        let built = self.build(&hidden, name, backend);
        if built.is_err() {
            // The error being returned says more than one from here would.
            let _ = remove::remove(&self.checkpoints, &hidden);
        }
        built?;
        self.checkpoint(name)
    }

    fn build(&self, hidden: &str, name: &CheckpointName, backend: Option<&BackendName>) -> Result<()> {
        let dir = self.checkpoints.make_dir(hidden)?;
        dir.make_dir(layout::GENERATIONS)?;
        // Made now, so that a disk full later does not prevent deleting.
        dir.write_new(layout::LIVE_LOCK, b"")?;
        dir.write_new(layout::SHORT_LOCK, b"")?;
        dir.write_new(layout::RECORD, &CheckpointRecord::new(backend).to_bytes(dir.path())?)?;
        dir.sync()?;
        self.checkpoints.rename(hidden, &self.checkpoints, name.as_str())?;
        self.checkpoints.sync()
    }

    /// Opens a checkpoint. The error for a missing one names those that exist.
    pub fn checkpoint(&self, name: &CheckpointName) -> Result<Checkpoint> {
        if !self.exists(name)? {
            return Err(StoreError::NotFound { name: name.clone(), existing: self.names()? });
        }
        let dir = self.checkpoints.child(name.as_str())?;
        Ok(Checkpoint { name: name.clone(), dir, parent: self.checkpoints.try_clone()? })
    }

    /// Every checkpoint, sorted by name, and every entry that should be one and is not.
    pub fn list(&self) -> Result<Vec<Listed>> {
        self.remove_leftovers();
        let mut listed = Vec::new();
        for name in self.checkpoints.names()? {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(layout::DELETED) || name.starts_with(layout::NEW) {
                continue;
            }
            let summary = match CheckpointName::new(&name) {
                Ok(name) => self.checkpoint(&name).and_then(|checkpoint| checkpoint.summary()),
                Err(error) => {
                    Err(StoreError::damaged(&self.checkpoints.path().join(&name), error.to_string()))
                }
            };
            // Deleted between the listing and the look at it.
            if !matches!(summary, Err(StoreError::NotFound { .. })) {
                listed.push(Listed { name, summary });
            }
        }
        Ok(listed)
    }

    /// Deletes a checkpoint and all its generations, also a damaged one; refused while it is in use.
    pub fn delete(&self, name: &CheckpointName) -> Result<()> {
        self.delete_with(name, Checkpoint::lock_live)
    }

    /// Like [`Self::delete`], also when another host never gave the checkpoint back.
    pub fn delete_forced(&self, name: &CheckpointName) -> Result<()> {
        self.delete_with(name, Checkpoint::lock_live_forced)
    }

    fn delete_with(
        &self,
        name: &CheckpointName,
        lock: fn(&Checkpoint, &Holder) -> Result<LiveLock>,
    ) -> Result<()> {
        let checkpoint = self.checkpoint(name)?;
        let _live = lock(&checkpoint, &Holder::here("(being deleted)"))?;
        let hidden = format!("{}{name}-{}", layout::DELETED, jiff::Timestamp::now().as_nanosecond());
        self.checkpoints.rename(name.as_str(), &self.checkpoints, &hidden)?;
        self.checkpoints.sync()?;
        remove::remove(&self.checkpoints, &hidden)
    }

    fn names(&self) -> Result<Vec<CheckpointName>> {
        let names = self.checkpoints.names()?;
        Ok(names.iter().filter_map(|name| CheckpointName::new(name.to_str()?).ok()).collect())
    }

    /// Best effort: what cannot be removed now is hidden anyway, and is tried again the next time.
    fn remove_leftovers(&self) {
        let names = self.checkpoints.names().unwrap_or_default();
        let with = |prefix: &str| {
            let prefix = prefix.to_owned();
            names.iter().filter(move |name| name.to_str().is_some_and(|name| name.starts_with(&prefix)))
        };
        for name in with(layout::DELETED) {
            let _ = remove::remove(&self.checkpoints, name);
        }
        if with(layout::NEW).next().is_some() {
            // Without the lock it may be a creation in progress.
            if let Ok(Some(_lock)) = ShortLock::try_take(&self.root) {
                for name in with(layout::NEW) {
                    let _ = remove::remove(&self.checkpoints, name);
                }
            }
        }
    }
}

impl Checkpoint {
    pub fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// The absolute path of its directory, for mounts and messages.
    pub fn path(&self) -> PathBuf {
        self.parent.path().join(self.name.as_str())
    }

    /// Record, generations and holder in one. Fails if the newest generation cannot be read.
    pub fn summary(&self) -> Result<Summary> {
        let record = self.record()?;
        let generations = self.generations()?;
        let latest = match generations.last() {
            None => None,
            Some(&number) => {
                let generation = self.generation(Some(number))?;
                let created = generation.manifest().created.clone();
                Some(LatestSummary { number, created, bytes: generation.size() })
            }
        };
        let holder = self.live_holder()?;
        Ok(Summary { name: self.name.clone(), record, generations, latest, holder })
    }

    /// Whether the name still leads here: a checkpoint can be deleted between opening and locking it.
    fn still_there(&self) -> Result<()> {
        let now = self.parent.stat(self.name.as_str())?.map(|stat| (stat.st_dev, stat.st_ino));
        if now == Some(self.dir.identity()?) {
            return Ok(());
        }
        Err(StoreError::NotFound { name: self.name.clone(), existing: Vec::new() })
    }
}

#[cfg(test)]
mod tests;
