//! Which memory was written since the generation before: remembered by the kernel for as long as somebody holds a
//! userfaultfd of each process.
//!
//! Between two captures nobody holds them but a *mailbox*, a pair of sockets that the runtime keeps, in which they
//! wait. A capture takes them out first and puts them back last, with a name for what it saved: an engine that dies on
//! its way, or a generation that was not kept, ends the remembering, and what follows is saved as a whole.

use super::areas::{self, Class, Part};
use super::frozen::{Frozen, freeze};
use super::seize::Held;
use super::snapshot;
use super::{Request, refused};
use crate::proc::{self, maps};
use crate::refuse;
use crate::sys::{mailbox, pagemap, uffd};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use stasis_plugin_api::error::{BackendError, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// One message of the mailbox; the descriptors come along in the order of the pids.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Letter {
    id: String,
    pids: Vec<i32>,
}

/// The end of the mailbox from which is read, and the one into which is written.
pub(crate) type Mailbox = [RawFd; 2];

/// What is remembered of one process.
#[derive(Debug)]
struct Tracker {
    uffd: OwnedFd,
    /// Mappings that were not watched when the generation before was saved: address and length.
    fresh: Vec<[u64; 2]>,
    /// What was written since, found by an attempt that came to nothing.
    found: Vec<[u64; 2]>,
}

/// What is remembered of a tree.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    trackers: HashMap<i32, Tracker>,
    /// What is remembered began with the generation on which this capture builds.
    since_base: bool,
}

fn failed(what: &str) -> impl Fn(Errno) -> BackendError + '_ {
    move |error| BackendError::failed(what).because(error.desc())
}

impl Tracking {
    /// Takes out what an earlier capture left; `base` names the generation on which this one builds.
    pub(crate) fn take(ends: Mailbox, base: Option<&str>) -> Self {
        let mut tracking = Self { since_base: base.is_some(), ..Self::default() };
        while let Some((letter, fds)) = open_letter(ends[0]) {
            tracking.since_base &= base == Some(letter.id.as_str());
            for (pid, uffd) in letter.pids.into_iter().zip(fds) {
                tracking.trackers.insert(pid, Tracker { uffd, fresh: Vec::new(), found: Vec::new() });
            }
        }
        tracking
    }

    /// Puts everything back under a name for what was saved now.
    pub(crate) fn put_back(self, ends: Mailbox) -> Option<String> {
        if self.trackers.is_empty() {
            return None;
        }
        let id = name()?;
        let all: Vec<(i32, OwnedFd)> = self.trackers.into_iter().map(|(pid, t)| (pid, t.uffd)).collect();
        for part in all.chunks(mailbox::MOST) {
            let letter = Letter { id: id.clone(), pids: part.iter().map(|(pid, _)| *pid).collect() };
            let text = serde_json::to_vec(&letter).ok()?;
            let fds: Vec<&OwnedFd> = part.iter().map(|(_, uffd)| uffd).collect();
            // Too many on their way for this user: without them the next generation is whole.
            mailbox::leave(ends[1], &text, &fds).ok()?;
        }
        Some(id)
    }

    /// Whether anything can be left out of a capture.
    pub(crate) fn since_base(&self) -> bool {
        self.since_base && !self.trackers.is_empty()
    }

    /// Watches everything that is not watched yet, from now on. The answer is how long the tree stood still for that:
    /// a process that has no descriptor yet makes it itself.
    pub(crate) fn watch(&mut self, request: &Request) -> Result<Duration> {
        let members = refuse::members(request.pid)?;
        self.trackers.retain(|pid, _| members.contains(pid));
        let mut pause = Duration::ZERO;
        if members.iter().any(|pid| !self.trackers.contains_key(pid)) {
            let begun = Instant::now();
            self.make(&freeze(request)?, request)?;
            pause = begun.elapsed();
        }
        self.trackers.retain(|pid, tracker| {
            // One that ends meanwhile is not saved.
            let Ok(maps) = proc::read(*pid, "maps").and_then(|text| maps::parse(&text)) else { return false };
            let Ok(map) = pagemap_of(*pid) else { return false };
            areas::understand(maps).iter().filter(|part| own_memory(part)).all(|part| {
                // Of a program that this process was before, or of another process that had the pid.
                watch_one(tracker, &map, part) != Err(Errno::ESRCH)
            })
        });
        Ok(pause)
    }

    /// Lets those that have none make a userfaultfd, and everybody run on.
    fn make(&mut self, frozen: &Frozen, request: &Request) -> Result<()> {
        if let Some(error) = refuse::error(&refused(request, frozen)?) {
            return Err(error);
        }
        for (held, site) in frozen.tree.processes.iter().zip(&frozen.sites) {
            if let Entry::Vacant(place) = self.trackers.entry(held.pid) {
                let uffd = snapshot::userfaultfd(site, held)?;
                site.wipe(&held.memory)?;
                place.insert(Tracker { uffd, fresh: Vec::new(), found: Vec::new() });
            }
        }
        Ok(())
    }

    /// What was written to a mapping since the generation before, as far as anything is there, or `None` where that is
    /// not known. From now on it counts as not written.
    pub(crate) fn written(&mut self, held: &Held, map: &File, part: &Part) -> Result<Option<Vec<[u64; 2]>>> {
        let Some(tracker) = self.trackers.get_mut(&held.pid).filter(|_| own_memory(part)) else {
            return Ok(None);
        };
        let (start, end) = (part.map.start, part.map.end);
        let unreadable = failed("the page map cannot be read");
        let Some(listed) = pagemap::written(map, start, end).map_err(&unreadable)? else { return Ok(None) };
        tracker.found.extend(&listed);
        for [from, length] in &listed {
            pagemap::forget_written(map, *from, from + length).map_err(&unreadable)?;
        }
        let known = tracker.found.iter().chain(&tracker.fresh);
        let within = known.filter_map(|[from, length]| {
            let (from, to) = ((*from).max(start), (from + length).min(end));
            (from < to).then(|| [from, to - from])
        });
        Ok(Some(joined(within.collect())))
    }
}

/// Memory that a process has by itself, in no file.
fn own_memory(part: &Part) -> bool {
    !part.map.shared && matches!(part.class, Class::Anonymous | Class::Heap | Class::Stack)
}

/// A mapping that cannot be watched is saved as a whole each time.
fn watch_one(tracker: &mut Tracker, map: &File, part: &Part) -> std::result::Result<(), Errno> {
    let (start, end) = (part.map.start, part.map.end);
    if pagemap::written(map, start, start + 4096)?.is_some() {
        return Ok(());
    }
    uffd::watch(&tracker.uffd, start, end - start)?;
    tracker.fresh.push([start, end - start]);
    // What it does not reach counts as written.
    pagemap::forget_written(map, start, end)
}

pub(crate) fn pagemap_of(pid: i32) -> Result<File> {
    let path = format!("/proc/{pid}/pagemap");
    File::open(&path).map_err(|error| BackendError::failed(format!("{path} cannot be opened")).because(error))
}

/// Ranges in the order of their addresses, apart from each other.
fn joined(mut ranges: Vec<[u64; 2]>) -> Vec<[u64; 2]> {
    ranges.sort_unstable();
    let mut all: Vec<[u64; 2]> = Vec::with_capacity(ranges.len());
    for [start, length] in ranges {
        match all.last_mut() {
            Some([from, size]) if start <= *from + *size => *size = (*size).max(start + length - *from),
            _ => all.push([start, length]),
        }
    }
    all
}

/// The next letter and its descriptors, if there is one.
fn open_letter(from: RawFd) -> Option<(Letter, Vec<OwnedFd>)> {
    let (text, fds) = mailbox::take(from)?;
    let letter: Letter = serde_json::from_slice(&text).ok()?;
    (letter.pids.len() == fds.len()).then_some((letter, fds))
}

/// Sixteen random bytes in hexadecimal.
fn name() -> Option<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).ok()?;
    Some(super::process::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsRawFd as _;

    #[test]
    fn ranges_become_one_where_they_meet() {
        assert_eq!(joined(vec![[8, 4], [0, 4], [2, 4], [12, 1], [20, 1]]), [[0, 6], [8, 5], [20, 1]]);
        assert_eq!(joined(vec![[0, 10], [2, 2]]), [[0, 10]]);
    }

    #[test]
    fn what_was_left_counts_for_the_generation_it_was_left_with() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let mailbox = [one.as_raw_fd(), other.as_raw_fd()];
        let tracker = || Tracker {
            uffd: File::open("/dev/null").unwrap().into(),
            fresh: vec![[0, 1]],
            found: Vec::new(),
        };
        let full = || Tracking { trackers: (0..600).map(|n| (n, tracker())).collect(), since_base: false };
        assert!(!Tracking::take(mailbox, Some("x")).since_base());
        let id = full().put_back(mailbox).unwrap();
        let taken = Tracking::take(mailbox, Some(&id));
        assert_eq!((taken.since_base(), taken.trackers.len()), (true, 600));
        assert!(taken.trackers.values().all(|tracker| tracker.fresh.is_empty()));
        assert!(!Tracking::take(mailbox, Some(&id)).since_base(), "it was taken out");
        full().put_back(mailbox).unwrap();
        assert!(!Tracking::take(mailbox, Some(&id)).since_base(), "another generation");
        full().put_back(mailbox).unwrap();
        assert!(!Tracking::take(mailbox, None).since_base());
    }
}
