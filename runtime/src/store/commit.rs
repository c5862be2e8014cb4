//! Turning what an engine wrote into a generation: all of it durable, or none of it.
//!
//! The order is what counts: files in, hashed and synced; manifest; rename; link. Killed anywhere before the
//! rename, the newest generation is still the one before.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, ScopedJoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{FileStat, fchmod};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::error::StoreError;
use super::generation::{Generation, discard, drop_latest, next_number, prepare_latest, switch_latest};
use super::hash::{Hashed, Heard, hash_files};
use super::inherit::{Inherited, take_over};
use super::layout::{self, DirHandle, FILE_MODE, Found, Kind, generation_name, walk};
use super::lock::{LiveLock, ShortLock};
use super::manifest::{FileEntry, Manifest, ManifestDraft};
use super::record::to_json;
use super::staging::Staging;
use super::{Checkpoint, Result, remove};

/// Where the time of a commit went. Hashing and syncing run beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitTimes {
    pub hash_ms: u64,
    pub sync_ms: u64,
    pub total_ms: u64,
    /// Sum of the sizes of the files that were written for it.
    pub bytes: u64,
}

/// A generation that is durable now.
#[derive(Debug)]
pub struct Committed {
    pub generation: Generation,
    pub times: CommitTimes,
}

/// Told how many bytes of how many are done.
type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A file that is in the new generation already.
pub(crate) struct Taken {
    relative: PathBuf,
    text: String,
    size: u64,
}

impl Checkpoint {
    /// Makes a generation of the files in `staging`, of all or of those listed (files or directories, relative
    /// to it); they are moved, and what is not listed stays. Files of an earlier one may be `inherited`. Returns once
    /// everything is durable.
    ///
    /// On an error nothing of the generation is left, the older ones are untouched, and the files that were
    /// moved are lost. `progress` gets bytes done and bytes in all.
    pub fn commit(
        &self,
        live: &LiveLock,
        staging: &Staging,
        files: Option<&[PathBuf]>,
        inherited: Option<Inherited<'_>>,
        draft: ManifestDraft,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Committed> {
        let begun = Instant::now();
        live.covers(&self.name)?;
        let _lock = ShortLock::take(&self.dir)?;
        self.record()?.accepts(&self.name, &draft.backend.name, &draft.image)?;
        let generations = self.generations_dir()?;
        let number = next_number(&generations)?;
        self.remove_leftovers()?;
        let shared = inherited.filter(|shared| !shared.files.is_empty());
        let base = shared.map(|shared| self.generation(Some(shared.generation))).transpose()?;
        let inherited = base.as_ref().zip(shared.map(|shared| shared.files));
        let attempt = Attempt { checkpoint: &self.dir, generations: &generations, number, inherited };
        match attempt.run(staging, files, draft, progress) {
            Ok((generation, mut times)) => {
                times.total_ms = millis(begun.elapsed());
                Ok(Committed { generation, times })
            }
            Err(source) => {
                attempt.undo();
                let (name, source) = (self.name.clone(), Box::new(source));
                Err(StoreError::Commit { name, generation: number, source })
            }
        }
    }
}

struct Attempt<'a> {
    checkpoint: &'a DirHandle,
    generations: &'a DirHandle,
    number: u64,
    inherited: Option<(&'a Generation, &'a [String])>,
}

impl Attempt<'_> {
    fn partial(&self) -> String {
        format!("{}{}", generation_name(self.number), layout::PARTIAL)
    }

    fn run(
        &self,
        staging: &Staging,
        files: Option<&[PathBuf]>,
        draft: ManifestDraft,
        progress: Progress<'_>,
    ) -> Result<(Generation, CommitTimes)> {
        let partial = self.generations.make_dir(self.partial())?;
        let found = choose(staging, files)?;
        let taken = take_in(&staging.dir, &partial, &found)?;
        let (mut entries, times) = seal(&partial, &taken, progress)?;
        if let Some((base, files)) = self.inherited {
            entries.extend(take_over(base, &partial, files)?);
        }
        let manifest = Manifest::new(draft, self.number, entries);
        let bytes = to_json(&partial.path().join(layout::MANIFEST), &manifest)?;
        for entry in found.iter().filter(|entry| entry.kind == Kind::Dir) {
            partial.child(&entry.relative)?.sync()?;
        }
        partial.write_new(layout::MANIFEST, &bytes)?;
        partial.sync()?;
        prepare_latest(self.checkpoint, self.number)?;
        let name = generation_name(self.number);
        self.generations.rename(self.partial(), self.generations, &name)?;
        self.generations.sync()?;
        switch_latest(self.checkpoint)?;
        let dir = self.generations.child(&name)?;
        Ok((Generation { number: self.number, dir, manifest }, times))
    }

    /// Nobody was told of the generation yet. Failing here leaves what the next commit removes.
    fn undo(&self) {
        drop_latest(self.checkpoint);
        let _ = remove::remove(self.generations, self.partial());
        if let Ok(Some(_)) = self.generations.stat(generation_name(self.number)) {
            let _ = discard(self.generations, self.number);
        }
    }
}

/// What is to be taken: directories before what is in them, every one of a kind that can be saved.
pub(crate) fn choose(staging: &Staging, files: Option<&[PathBuf]>) -> Result<Vec<Found>> {
    let unfit = |relative: &Path, problem: String| {
        // Joining nothing would add a slash.
        let whole = relative.as_os_str().is_empty();
        let path = if whole { staging.path() } else { staging.dir.path().join(relative) };
        Err(StoreError::Unfit { path, problem })
    };
    let mut found = match walk(&staging.dir) {
        Err(StoreError::Damaged { path, problem }) => return Err(StoreError::Unfit { path, problem }),
        walked => walked?,
    };
    if let Some(listed) = files {
        for wanted in listed {
            if !found.iter().any(|entry| entry.relative == *wanted) {
                return unfit(wanted, "there is no such file".to_owned());
            }
        }
        let below = |inner: &Path, outer: &Path| inner.starts_with(outer);
        found.retain(|entry| {
            let parent = entry.kind == Kind::Dir && listed.iter().any(|l| below(l, &entry.relative));
            parent || listed.iter().any(|l| below(&entry.relative, l))
        });
    }
    for entry in &found {
        if entry.relative.to_str().is_none() {
            return unfit(&entry.relative, "its name is not UTF-8".to_owned());
        }
        if !matches!(entry.kind, Kind::File | Kind::Dir) {
            return unfit(&entry.relative, format!("it is {}, not a file", entry.kind));
        }
        if entry.relative == Path::new(layout::MANIFEST) {
            return unfit(&entry.relative, "that name belongs to the store".to_owned());
        }
    }
    if !found.iter().any(|entry| entry.kind == Kind::File) {
        return unfit(Path::new(""), "there is no file in it".to_owned());
    }
    Ok(found)
}

pub(crate) fn take_in(staging: &DirHandle, partial: &DirHandle, found: &[Found]) -> Result<Vec<Taken>> {
    let mut taken = Vec::new();
    for entry in found {
        let relative = &entry.relative;
        let (Some(name), Some(text)) = (relative.file_name(), relative.to_str()) else { continue };
        let (from, to) = (parent_of(staging, relative)?, parent_of(partial, relative)?);
        if entry.kind == Kind::Dir {
            to.make_dir(name)?;
            continue;
        }
        take(&from, &to, Path::new(name), &entry.stat)?;
        // The container runs: what was examined and what was moved need not be the same.
        let (file, stat) = match partial.open_regular(relative) {
            Err(StoreError::Damaged { problem, .. }) => {
                return Err(StoreError::Unfit { path: staging.path().join(relative), problem });
            }
            opened => opened?,
        };
        fchmod(&file, FILE_MODE).map_err(|e| StoreError::io("set the mode of", &to.path().join(name), e))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        taken.push(Taken { relative: relative.clone(), text: text.to_owned(), size });
    }
    Ok(taken)
}

fn parent_of(top: &DirHandle, relative: &Path) -> Result<DirHandle> {
    let mut dir = top.try_clone()?;
    for part in relative.parent().into_iter().flat_map(Path::components) {
        dir = dir.child_unchecked(part)?;
    }
    Ok(dir)
}

/// Moves a file, or copies it where a move would not make it ours alone.
fn take(from: &DirHandle, to: &DirHandle, name: &Path, stat: &FileStat) -> Result<()> {
    // Another link could change it later; another owner could, too, and it would fail the verification.
    if stat.st_nlink == 1 && stat.st_uid == geteuid().as_raw() {
        match renameat(from, name, to, name) {
            Ok(()) => return Ok(()),
            Err(Errno::EXDEV) => {}
            Err(error) => return Err(StoreError::io("move", &from.path().join(name), error)),
        }
    }
    let (mut source, _) = from.open_regular(name)?;
    let mut target = to.open_file(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
    io::copy(&mut source, &mut target).map_err(|e| StoreError::io("copy to", &to.path().join(name), e))?;
    unlinkat(from, name, UnlinkatFlags::NoRemoveDir)
        .map_err(|e| StoreError::io("remove", &from.path().join(name), e))
}

/// Hashes and syncs every file, beside each other: the one needs the processor, the other the disk.
pub(crate) fn seal(
    partial: &DirHandle,
    taken: &[Taken],
    progress: Progress<'_>,
) -> Result<(Vec<FileEntry>, CommitTimes)> {
    seal_by(Builder::new, partial, taken, progress)
}

fn seal_by(
    thread: fn() -> Builder,
    partial: &DirHandle,
    taken: &[Taken],
    progress: Progress<'_>,
) -> Result<(Vec<FileEntry>, CommitTimes)> {
    let stop = AtomicBool::new(false);
    let sync = || {
        let done = timed(|| sync_all(partial, taken, &stop));
        if done.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        done
    };
    let (hashed, synced) = std::thread::scope(|scope| {
        let syncing = thread().spawn_scoped(scope, sync);
        let hashed = timed(|| hash_all(partial, taken, &stop, progress));
        if hashed.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        match syncing.map(ScopedJoinHandle::join) {
            Ok(Ok(synced)) => (hashed, synced),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // The number of tasks is limited: this one does both.
            Err(_) => (hashed, sync()),
        }
    });
    // A failed sync stops the hashing, not the other way round: it is the one to be told.
    let ((), sync_time) = synced?;
    let (entries, hash_time) = hashed?;
    let bytes = entries.iter().map(|entry| entry.size).sum();
    let times = CommitTimes { hash_ms: millis(hash_time), sync_ms: millis(sync_time), total_ms: 0, bytes };
    Ok((entries, times))
}

fn sync_all(partial: &DirHandle, taken: &[Taken], stop: &AtomicBool) -> Result<()> {
    for item in taken {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (file, _) = partial.open_regular(&item.relative)?;
        file.sync_all().map_err(|e| StoreError::io("write out", &partial.path().join(&item.relative), e))?;
    }
    Ok(())
}

fn hash_all(
    partial: &DirHandle,
    taken: &[Taken],
    stop: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Vec<FileEntry>> {
    let total: u64 = taken.iter().map(|item| item.size).sum();
    let sizes: Vec<(&Path, u64)> = taken.iter().map(|item| (item.relative.as_path(), item.size)).collect();
    let mut done = 0;
    let mut entries = vec![None; taken.len()];
    progress(0, total);
    let hashed = hash_files(partial, &sizes, &mut |heard| {
        match heard {
            Heard::Read(read) => {
                done += read;
                progress(done, total);
            }
            Heard::File(index, Hashed { blake3, size, parts }) => {
                if let (Some(entry), Some(item)) = (entries.get_mut(index), taken.get(index)) {
                    *entry = Some(FileEntry { path: item.text.clone(), size, blake3, parts, from: None });
                }
            }
        }
        match stop.load(Ordering::Relaxed) {
            true => Err(StoreError::io("read", partial.path(), io::Error::other("stopped"))),
            false => Ok(()),
        }
    });
    match hashed {
        // It was written to after it had been handed over.
        Err(StoreError::Damaged { path, problem }) => Err(StoreError::Unfit { path, problem }),
        hashed => hashed.map(|()| entries.into_iter().flatten().collect()),
    }
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    work().map(|done| (done, begun.elapsed()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
