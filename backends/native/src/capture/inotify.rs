//! Inotify instances: what each watch is on. The kernel tells a watch's device and inode; a name for it is found by the
//! file handle where that may be asked, among what the application has open, or by a walk of the file system. The walk
//! is only for an application that runs: it opens directories, which others may watch.

use super::descriptors::Seen;
use crate::model::{Kind, Watched};
use crate::proc::fdinfo::Mark;
use crate::proc::link;
use crate::sys::{inotify, process};
use stasis_plugin_api::error::Result;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{DirEntry, Metadata};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Watches are numbered one after the other; a restart counts up to the last one.
pub(crate) const MOST: i32 = 1 << 20;
/// What a walk looks at before it gives up.
const ENTRIES: usize = 500_000;
/// Events, and what a watch was told about them: IN_EXCL_UNLINK, IN_ONESHOT.
const MASK: u32 = 0x8400_0fff;

/// IN_ACCESS, IN_CLOSE_NOWRITE, IN_OPEN: what a walk is seen by.
const OPENED: u32 = 0x31;

/// Device (major, minor) and inode of what is watched.
type Place = ((u64, u64), u64);

/// Names that were found, and places for which a walk has found none.
#[derive(Debug, Default, Clone)]
pub(crate) struct Places {
    found: HashMap<Place, String>,
    vain: HashSet<Place>,
}

pub(crate) fn describe(seen: &Seen<'_>, places: &mut Places) -> Result<Kind> {
    if !seen.runs && process::bytes_waiting(&seen.copy).map_err(seen.errno())? > 0 {
        let help = "try again once the application has read them";
        return Err(seen.refuse("events wait in it that nobody has read").help(help));
    }
    let marks = seen.info.marks()?;
    places.find(seen, &marks);
    let mut watches = Vec::new();
    for mark in marks {
        let (major, minor) = mark.device;
        let Some(path) = places.found.get(&mark.place()).cloned() else {
            return Err(seen.refuse(format!(
                "no name is found for what its watch {} is on, inode {} of device {major}:{minor}",
                mark.wd, mark.inode
            )));
        };
        if !(1..=MOST).contains(&mark.wd) {
            return Err(seen.refuse(format!("a watch has the number {}", mark.wd)));
        }
        watches.push(Watched { wd: mark.wd, path, mask: mark.mask & MASK });
    }
    watches.sort_by_key(|watch| watch.wd);
    Ok(Kind::Inotify { watches })
}

impl Mark {
    fn place(&self) -> Place {
        (self.device, self.inode)
    }
}

fn place(metadata: &Metadata) -> Place {
    let device = metadata.dev();
    ((nix::sys::stat::major(device), nix::sys::stat::minor(device)), metadata.ino())
}

/// What lies under a name, a link itself.
fn at(path: &Path) -> Option<Place> {
    std::fs::symlink_metadata(path).ok().map(|metadata| place(&metadata))
}

impl Places {
    fn find(&mut self, seen: &Seen<'_>, marks: &[Mark]) {
        self.found.retain(|place, path| at(Path::new(path)).as_ref() == Some(place));
        let missing = |places: &Self| -> Vec<Mark> {
            marks.iter().filter(|mark| !places.found.contains_key(&mark.place())).cloned().collect()
        };
        let mounts = if missing(self).is_empty() { Vec::new() } else { mounts() };
        for mark in missing(self) {
            let path = by_handle(&mounts, &mark);
            self.keep(path.filter(|path| at(path) == Some(mark.place())));
        }
        if !missing(self).is_empty() {
            self.used(seen.members, &missing(self));
        }
        if !seen.runs {
            return;
        }
        // Whoever is told of openings is disturbed only where there is no other way.
        let told = marks.iter().filter(|mark| mark.mask & OPENED != 0).map(Mark::place).collect();
        for closed in [told, HashSet::new()] {
            let wanted: HashSet<Place> = missing(self).iter().map(Mark::place).collect();
            if wanted.iter().any(|place| !self.vain.contains(place)) {
                let left = self.walk(seen.members, &mounts, wanted, &closed);
                self.vain.extend(left.into_iter().filter(|_| closed.is_empty()));
            }
        }
    }

    fn keep(&mut self, path: Option<PathBuf>) {
        if let Some((path, place)) = path.and_then(|path| at(&path).map(|place| (path, place)))
            && let Some(text) = path.to_str()
        {
            self.found.insert(place, text.to_owned());
        }
    }

    /// Working directories, programs and open files, and the directories in which they lie.
    fn used(&mut self, members: &[i32], missing: &[Mark]) {
        for pid in members {
            let open = crate::proc::numbers(&format!("/proc/{pid}/fd")).unwrap_or_default();
            let names = open.iter().map(|fd| format!("fd/{fd}")).chain(["cwd".to_owned(), "exe".to_owned()]);
            let paths: HashSet<String> = names.filter_map(|name| link(*pid, &name).ok()).collect();
            for path in paths.iter().filter(|path| path.starts_with('/')) {
                for path in Path::new(path).ancestors().take(2) {
                    let wanted = |place: Place| missing.iter().any(|mark| mark.place() == place);
                    self.keep(at(path).is_some_and(wanted).then(|| path.to_owned()));
                }
            }
        }
    }

    /// What lies near to the working directories first, then all mounts of the devices that are watched, as far as it
    /// may be read. Directories that are `closed` are not looked into. What is left was not found.
    fn walk(
        &mut self,
        members: &[i32],
        mounts: &[((u64, u64), PathBuf)],
        mut wanted: HashSet<Place>,
        closed: &HashSet<Place>,
    ) -> HashSet<Place> {
        let devices: HashSet<(u64, u64)> = wanted.iter().map(|(device, _)| *device).collect();
        let near = members.iter().filter_map(|pid| link(*pid, "cwd").ok()).map(PathBuf::from);
        let far =
            mounts.iter().filter(|(device, _)| devices.contains(device)).map(|(_, mount)| mount.clone());
        let mut entries = 0;
        for start in near.chain(far) {
            let Some((device, _)) = at(&start).filter(|(device, _)| devices.contains(device)) else {
                continue;
            };
            let mut waiting = VecDeque::from([start]);
            while let Some(directory) =
                waiting.pop_front().filter(|_| !wanted.is_empty() && entries < ENTRIES)
            {
                let Some(place) = at(&directory).filter(|(on, _)| *on == device) else { continue };
                if wanted.remove(&place) {
                    self.keep(Some(directory.clone()));
                }
                if closed.contains(&place) {
                    continue;
                }
                for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                    entries += 1;
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        waiting.push_back(entry.path());
                    } else if let Some(place) = watched(&entry, device, &wanted) {
                        wanted.remove(&place);
                        self.keep(Some(entry.path()));
                    }
                }
            }
        }
        wanted
    }
}

/// Asks for more only where the number is one of those wanted.
fn watched(entry: &DirEntry, device: (u64, u64), wanted: &HashSet<Place>) -> Option<Place> {
    wanted.get(&(device, entry.ino())).filter(|place| at(&entry.path()).as_ref() == Some(place)).copied()
}

/// Device and place of every mount.
fn mounts() -> Vec<((u64, u64), PathBuf)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split(' ').skip(2);
        let (major, minor) = words.next()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let place = words.nth(1)?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        Some((device, PathBuf::from(place)))
    };
    table.lines().filter_map(line).collect()
}

/// The kernel opens what a handle stands for only where the file system belongs to the user namespace.
fn by_handle(mounts: &[((u64, u64), PathBuf)], mark: &Mark) -> Option<PathBuf> {
    let handle = mark.handle.as_ref()?;
    mounts.iter().filter(|(device, _)| *device == mark.device).find_map(|(_, mount)| {
        let mount = inotify::only_path(mount).ok()?;
        let opened = inotify::open_by_handle(mount.as_fd(), handle.0, &handle.1).ok()?;
        std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened))).ok()
    })
}
