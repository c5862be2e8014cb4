//! Where an engine writes before anything is committed: one directory for the whole life of an instance.
//!
//! It is mounted into the container, so it stays the same directory over all commits.

use std::path::{Path, PathBuf};

use super::layout::{self, DirHandle};
use super::lock::LiveLock;
use super::{Checkpoint, Result, remove};

/// An empty directory, mode 0700, for an engine to write into.
#[derive(Debug)]
pub struct Staging {
    pub(crate) dir: DirHandle,
    parent: DirHandle,
    name: String,
}

impl Checkpoint {
    /// A fresh staging directory inside the checkpoint; what an earlier instance left in it is removed.
    pub fn staging(&self, live: &LiveLock) -> Result<Staging> {
        live.covers(&self.name)?;
        Staging::fresh(self.dir.try_clone()?, layout::STAGING.to_owned())
    }

    /// A fresh staging directory elsewhere, such as on a disk of this node when the store is on a network file
    /// system. `parent` is made where missing and must belong to the user alone. A commit copies from there.
    pub fn staging_at(&self, live: &LiveLock, parent: &Path) -> Result<Staging> {
        live.covers(&self.name)?;
        Staging::fresh(DirHandle::open_or_make(parent)?, format!("{}-{}", layout::STAGING, self.name))
    }
}

impl Staging {
    fn fresh(parent: DirHandle, name: String) -> Result<Self> {
        // A new directory instead of the old one emptied: a lost container may still have that one mounted.
        remove::remove(&parent, &name)?;
        let dir = parent.make_dir(&name)?;
        Ok(Self { dir, parent, name })
    }

    /// Its absolute path.
    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Removes everything in it; the directory itself stays.
    pub fn clear(&self) -> Result<()> {
        remove::clear(&self.dir)
    }

    /// Removes it and everything in it, when the instance has ended.
    pub fn remove(&self) -> Result<()> {
        remove::remove(&self.parent, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use crate::store::testing::{Fixture, holder, message};

    #[test]
    fn fresh_cleared_and_removed() {
        let f = Fixture::new();
        let checkpoint = f.checkpoint("web");
        let live = checkpoint.lock_live(&holder("web")).unwrap();
        let old = checkpoint.path().join("staging");
        fs::create_dir_all(old.join("left/over")).unwrap();
        let staging = checkpoint.staging(&live).unwrap();
        assert_eq!(staging.path(), old);
        assert_eq!(fs::read_dir(&old).unwrap().count(), 0);
        assert_eq!(fs::metadata(&old).unwrap().permissions().mode() & 0o7777, 0o700);

        let inode = fs::metadata(&old).unwrap().ino();
        fs::create_dir(old.join("sub")).unwrap();
        fs::write(old.join("sub/file"), "x").unwrap();
        staging.clear().unwrap();
        assert_eq!(fs::read_dir(&old).unwrap().count(), 0);
        assert_eq!(fs::metadata(&old).unwrap().ino(), inode);
        staging.remove().unwrap();
        assert!(!old.exists());
    }

    #[test]
    fn the_lock_of_another_checkpoint_does_not_do() {
        let f = Fixture::new();
        let (one, two) = (f.checkpoint("one"), f.checkpoint("two"));
        let live = one.lock_live(&holder("x")).unwrap();
        insta::assert_snapshot!(message(&f, two.staging(&live)), @r#"the lock of checkpoint "one" does not cover checkpoint "two""#);
    }
}
