//! Committed generations: which there are, opening one, and removing those no longer wanted.

use std::path::{Path, PathBuf};

use nix::unistd::{UnlinkatFlags, unlinkat};

use super::error::StoreError;
use super::layout::{self, DirHandle, Kind, generation_name, generation_number, kind};
use super::lock::{LiveLock, ShortLock};
use super::manifest::{FileEntry, Manifest};
use super::{Checkpoint, Result, remove};

/// One complete saved state, opened. Its files stay reachable through it until it is dropped.
#[derive(Debug)]
pub struct Generation {
    pub(crate) number: u64,
    pub(crate) dir: DirHandle,
    pub(crate) manifest: Manifest,
}

impl Generation {
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The absolute path of its directory, for a read-only mount.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The absolute path of one of its files.
    pub fn file(&self, relative: &str) -> Option<PathBuf> {
        let known = self.manifest.files.iter().any(|file| file.path == relative);
        known.then(|| self.dir.path().join(relative))
    }

    /// Sum of the sizes of its files, in bytes, as the manifest tells.
    pub fn size(&self) -> u64 {
        self.manifest.size()
    }

    /// The same of those files that no other generation shares now: what removing this one alone would give back.
    pub fn own_size(&self) -> u64 {
        let shared =
            |file: &&FileEntry| matches!(self.dir.stat(&file.path), Ok(Some(stat)) if stat.st_nlink > 1);
        self.manifest.files.iter().filter(|file| !shared(file)).map(|file| file.size).sum()
    }
}

impl Checkpoint {
    pub(crate) fn generations_dir(&self) -> Result<DirHandle> {
        self.dir.child(layout::GENERATIONS)
    }

    /// The numbers of the committed generations, ascending.
    pub fn generations(&self) -> Result<Vec<u64>> {
        let dir = self.generations_dir()?;
        let mut numbers = Vec::new();
        for name in dir.names()? {
            let Some(number) = name.to_str().and_then(generation_number) else { continue };
            let Some(stat) = dir.stat(&name)? else { continue };
            // What is no directory with a manifest was not made by a commit. A link is opened by nobody.
            if kind(&stat) == Kind::Dir && dir.stat(Path::new(&name).join(layout::MANIFEST))?.is_some() {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Opens a generation, or the newest for `None`. The error for a missing one names those that exist.
    ///
    /// A newest one that is damaged is an error: an older state is never brought back without being asked for.
    pub fn generation(&self, number: Option<u64>) -> Result<Generation> {
        let existing = self.generations()?;
        let Some(&newest) = existing.last() else {
            return Err(StoreError::NoGeneration(self.name.clone()));
        };
        let number = number.unwrap_or(newest);
        let dir = self.generations_dir()?;
        if !existing.contains(&number) {
            if dir.stat(generation_name(number))?.is_some() {
                // Says what is wrong with it if it is no proper directory.
                let dir = dir.child(generation_name(number))?;
                return Err(StoreError::damaged(dir.path(), "it has no manifest"));
            }
            return Err(StoreError::NoSuchGeneration { name: self.name.clone(), asked: number, existing });
        }
        let dir = dir.child(generation_name(number))?;
        let path = dir.path().join(layout::MANIFEST);
        let Some(bytes) = dir.read_small(layout::MANIFEST)? else {
            return Err(StoreError::damaged(&path, "it is missing"));
        };
        let manifest = Manifest::parse(&path, &bytes, number)?;
        Ok(Generation { number, dir, manifest })
    }

    /// Removes the oldest generations until `keep` are left, never the newest and none in `protect` (such as
    /// the one the instance was restarted from). Also what crashes left. Returns the numbers removed.
    pub fn prune(&self, keep: usize, protect: &[u64], live: &LiveLock) -> Result<Vec<u64>> {
        live.covers(&self.name)?;
        let _lock = ShortLock::take(&self.dir)?;
        self.remove_leftovers()?;
        let dir = self.generations_dir()?;
        let mut numbers = self.generations()?;
        numbers.truncate(numbers.len().saturating_sub(keep.max(1)));
        numbers.retain(|number| !protect.contains(number));
        for &number in &numbers {
            discard(&dir, number)?;
        }
        Ok(numbers)
    }

    /// Removes what a crash left of commits and prunings. Does nothing while one is in progress.
    pub fn clean_partials(&self) -> Result<()> {
        match ShortLock::try_take(&self.dir)? {
            Some(_lock) => self.remove_leftovers(),
            None => Ok(()),
        }
    }

    /// The caller holds the short lock.
    pub(crate) fn remove_leftovers(&self) -> Result<()> {
        let dir = self.generations_dir()?;
        for name in dir.names()? {
            let text = name.to_string_lossy();
            if text.starts_with(layout::DELETED) || text.ends_with(layout::PARTIAL) {
                remove::remove(&dir, &name)?;
            }
        }
        remove::remove(&self.dir, layout::LATEST_NEW)
    }
}

/// Removes a generation. Renamed first, so that no crash leaves a generation that lacks files.
pub(crate) fn discard(generations: &DirHandle, number: u64) -> Result<()> {
    let name = generation_name(number);
    let hidden = format!("{}{name}", layout::DELETED);
    generations.rename(&name, generations, &hidden)?;
    generations.sync()?;
    remove::remove(generations, &hidden)
}

/// The number after all that were ever begun and can still be seen.
pub(crate) fn next_number(generations: &DirHandle) -> Result<u64> {
    let mut highest = 0;
    for name in generations.names()? {
        let text = name.to_string_lossy();
        let text = text.strip_prefix(layout::DELETED).unwrap_or(&text);
        let text = text.strip_suffix(layout::PARTIAL).unwrap_or(text);
        highest = highest.max(generation_number(text).unwrap_or(0));
    }
    match highest.checked_add(1) {
        Some(next) => Ok(next),
        None => Err(StoreError::damaged(generations.path(), "its generations are numbered up to the last")),
    }
}

/// Replaces the link `latest`, prepared before with [`prepare_latest`].
pub(crate) fn switch_latest(checkpoint: &DirHandle) -> Result<()> {
    checkpoint.rename(layout::LATEST_NEW, checkpoint, layout::LATEST)?;
    checkpoint.sync()
}

/// Makes the new `latest` under a hidden name: on a full disk this fails, and must fail before the commit.
pub(crate) fn prepare_latest(checkpoint: &DirHandle, number: u64) -> Result<()> {
    drop_latest(checkpoint);
    let target = format!("{}/{}", layout::GENERATIONS, generation_name(number));
    nix::unistd::symlinkat(target.as_str(), checkpoint, layout::LATEST_NEW)
        .map_err(|e| StoreError::io("make link", &checkpoint.path().join(layout::LATEST_NEW), e))
}

pub(crate) fn drop_latest(checkpoint: &DirHandle) {
    // Usually there is none.
    let _ = unlinkat(checkpoint, layout::LATEST_NEW, UnlinkatFlags::NoRemoveDir);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::testing::{Fixture, message};

    #[test]
    fn which_one_is_opened() {
        let f = Fixture::new();
        let run = f.running("web");
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(None)), @r#"checkpoint "web" has no saved state yet"#);
        for _ in 0..3 {
            run.save(&[("a", "x")]);
        }
        assert_eq!(run.checkpoint.generation(None).unwrap().number(), 3);
        assert_eq!(run.checkpoint.generation(Some(2)).unwrap().number(), 2);
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(Some(9))), @r#"checkpoint "web" has no generation 9 (there are: 1, 2, 3)"#);
        let generation = run.checkpoint.generation(None).unwrap();
        assert!(generation.file("a").unwrap().exists());
        assert_eq!(generation.file("../a"), None);
    }

    #[test]
    fn prune_keeps_the_newest_and_the_protected() {
        let f = Fixture::new();
        let run = f.running("web");
        for _ in 0..5 {
            run.save(&[("a", "x")]);
        }
        assert_eq!(run.checkpoint.prune(3, &[1], &run.live).unwrap(), [2]);
        assert_eq!(run.checkpoint.generations().unwrap(), [1, 3, 4, 5]);
        assert_eq!(run.checkpoint.prune(0, &[], &run.live).unwrap(), [1, 3, 4]);
        assert_eq!(run.checkpoint.prune(7, &[], &run.live).unwrap(), Vec::<u64>::new());
        assert_eq!(run.save(&[("a", "y")]), 6, "numbers are not used again");
    }

    #[test]
    fn leftovers_of_crashes() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "x")]);
        let generations = run.checkpoint.path().join("generations");
        let leave = || {
            fs::create_dir(generations.join("000007.partial")).unwrap();
            fs::write(generations.join("000007.partial/a"), "half").unwrap();
            fs::create_dir(generations.join(".deleted-000008")).unwrap();
            symlink("generations/000009", run.checkpoint.path().join(".latest.new")).unwrap();
        };
        leave();
        assert_eq!(run.checkpoint.generations().unwrap(), [1]);
        assert_eq!(run.save(&[("a", "y")]), 9);
        assert_eq!(fs::read_dir(&generations).unwrap().count(), 2);

        leave();
        let busy = ShortLock::take(&run.checkpoint.dir).unwrap();
        run.checkpoint.clean_partials().unwrap();
        assert!(generations.join("000007.partial").exists(), "a commit in progress is left alone");
        drop(busy);
        run.checkpoint.clean_partials().unwrap();
        assert_eq!(fs::read_dir(&generations).unwrap().count(), 2);
        assert!(run.checkpoint.path().join(".latest.new").symlink_metadata().is_err());
        let latest = fs::read_link(run.checkpoint.path().join("latest")).unwrap();
        assert_eq!(latest.to_str(), Some("generations/000009"));
    }

    #[test]
    fn hostile_generations() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "x")]);
        let generations = run.checkpoint.path().join("generations");
        symlink("000001", generations.join("000002")).unwrap();
        fs::create_dir(generations.join("000003")).unwrap();
        fs::write(generations.join("000004"), "x").unwrap();
        fs::create_dir(generations.join("5")).unwrap();
        assert_eq!(run.checkpoint.generations().unwrap(), [1]);
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(Some(2))), @"/tmp/store/checkpoints/web/generations/000002 is not safe to use: it is a symbolic link, and links are not followed");
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(Some(3))), @"/tmp/store/checkpoints/web/generations/000003 is damaged: it has no manifest");
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(Some(4))), @"/tmp/store/checkpoints/web/generations/000004 is not safe to use: it is not a directory");

        let manifest = generations.join("000001/manifest.json");
        fs::write(&manifest, "garbage").unwrap();
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(None)), @"/tmp/store/checkpoints/web/generations/000001/manifest.json is damaged: expected value at line 1 column 1");
        fs::write(&manifest, vec![b' '; 17 << 20]).unwrap();
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(None)), @"/tmp/store/checkpoints/web/generations/000001/manifest.json is damaged: it is larger than 16 MiB");
        fs::remove_file(&manifest).unwrap();
        symlink("/etc/passwd", &manifest).unwrap();
        insta::assert_snapshot!(message(&f, run.checkpoint.generation(None)), @"cannot open /tmp/store/checkpoints/web/generations/000001/manifest.json: it is a symbolic link, and links are not followed");
    }
}
