//! Memory that a restart mapped from an image becomes the process's own, beside the running application.
//!
//! Room of the same size is made and filled with what the mapping shows. Then everybody stands still once more, the pages
//! that were written meanwhile follow, and the room is moved to where the mapping is. A pass that dies on its way leaves
//! some room that nobody uses, and the mapping as it was.

use super::areas::{Class, Part, is_image};
use super::contents::spans;
use super::frozen::{Frozen, stop_at_rest};
use super::inject::{Call, Site};
use super::seize::Held;
use super::snapshot;
use super::tracking::pagemap_of;
use crate::lock::Lock;
use crate::proc::maps::{ADVICE, Flags, HUGE};
use crate::proc::{self, maps};
use crate::refuse;
use crate::sys::{pagemap, task};
use nix::errno::Errno;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CHUNK: u64 = 256 << 10;
/// So many pieces are made ready at once: the application stands still while they take their places.
const MOST_PIECES: usize = 10;
/// And so many bytes of them: a capture waits until they are through.
const MOST_BYTES: u64 = 64 << 20;
/// A restart of the largest memory, or a capture of it, is through before; whoever waits longer ends with the container.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// What has just come back is asked first: nobody makes it stand still for so long.
const FIRST: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(5);
/// How often it is tried to stop the application while something keeps one of its threads in the kernel.
const TRIES: u32 = 10;
/// For the application, whose processors these are.
const NICE: i32 = 10;
const READ_WRITE: u32 = 3;
const NO_MEMORY: i64 = -(libc::ENOMEM as i64);

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// Where a restart tells the root's pid.
    pub(crate) pid_file: PathBuf,
    /// Held by a restart, a capture, or a step of this.
    pub(crate) lock: PathBuf,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) bytes: u64,
    /// How often, and how long at most, the application stood still.
    pub(crate) stops: u32,
    pub(crate) longest: Duration,
}

/// A part of a mapping, and the room that is to take its place.
#[derive(Debug, Clone)]
struct Piece {
    start: u64,
    length: u64,
    prot: u32,
    /// What identifies the mapping: the file, and where the piece lies in it.
    name: String,
    offset: u64,
    room: u64,
    /// All of it could be read.
    filled: bool,
}

/// Makes all of it ordinary memory. An application that ends meanwhile needs none.
pub(crate) fn run(order: &Order) -> Result<Done> {
    // Where that is not allowed it is as busy as others.
    let _ = task::set_nice(0, NICE);
    let pid = restarted(order)?;
    std::thread::sleep(FIRST);
    let mut pass = Pass { pid, done: Done::default(), stop: LOOK, tried: HashSet::new() };
    loop {
        let lock = Lock::take(&order.lock, PATIENCE)?;
        let more = match pass.batch() {
            Err(error) if error.kind == kind::APPLICATION_ENDED => return Ok(pass.done),
            more => more?,
        };
        drop(lock);
        if !more {
            return Ok(pass.done);
        }
        std::thread::sleep(pass.stop.max(LOOK) * 4);
    }
}

/// The root's pid, once the restart is through.
fn restarted(order: &Order) -> Result<i32> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let lock = Lock::take(&order.lock, PATIENCE)?;
        let pid = std::fs::read_to_string(&order.pid_file).ok().and_then(|text| text.trim().parse().ok());
        drop(lock);
        if let Some(pid) = pid {
            return Ok(pid);
        }
        std::thread::sleep(LOOK);
    }
    Err(BackendError::failed("the restart does not end"))
}

struct Pass {
    /// The root of the tree.
    pid: i32,
    done: Done,
    /// How long the application stood still last.
    stop: Duration,
    /// Pieces that were taken up, by process and address: those of which nothing came stay as they are.
    tried: HashSet<(i32, u64)>,
}

impl Pass {
    /// Some pieces of one process; false when there is none left.
    fn batch(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let frozen = stop(self.pid)?;
        let found = self.find(&frozen)?;
        let ready = match found {
            Some((held, site, mut pieces)) => {
                make_rooms(site, held, &mut pieces)?;
                site.wipe(&held.memory)?;
                let memory = held.memory.try_clone().map_err(|error| unreadable(held.pid, &error))?;
                Some((held.pid, memory, pieces))
            }
            None => None,
        };
        frozen.tree.release();
        self.stood(begun);
        let Some((pid, memory, mut pieces)) = ready else { return Ok(false) };
        self.tried.extend(pieces.iter().map(|piece| (pid, piece.start)));
        pieces.retain(|piece| piece.room != 0);
        for piece in &mut pieces {
            // Else the application has unmapped it meanwhile, or has ended.
            piece.filled = copy(&memory, piece, &[[piece.start, piece.length]], Zeros::There).is_ok();
        }
        let begun = Instant::now();
        let frozen = stop(self.pid)?;
        let moved = finish(&frozen, pid, &memory, &pieces);
        frozen.tree.release();
        self.stood(begun);
        self.done.bytes += moved?;
        Ok(true)
    }

    fn stood(&mut self, begun: Instant) {
        self.done.stops += 1;
        self.stop = begun.elapsed();
        self.done.longest = self.done.longest.max(self.stop);
    }

    fn find<'a>(&self, frozen: &'a Frozen) -> Result<Option<(&'a Held, &'a Site, Vec<Piece>)>> {
        let all = frozen.tree.processes.iter().zip(&frozen.sites).zip(&frozen.parts);
        for ((held, site), parts) in all {
            let map = pagemap_of(held.pid)?;
            let mut pieces: Vec<Piece> = Vec::new();
            let mut bytes = 0;
            for part in parts.iter().filter(|part| of_image(part)) {
                for piece in cut(part) {
                    let fits = pieces.len() < MOST_PIECES && bytes + piece.length <= MOST_BYTES;
                    if !fits || self.tried.contains(&(held.pid, piece.start)) {
                        continue;
                    }
                    let guards = pagemap::guards(&map, piece.start, piece.start + piece.length);
                    if guards.is_ok_and(|guards| guards.is_empty()) {
                        bytes += piece.length;
                        pieces.push(piece);
                    }
                }
            }
            if !pieces.is_empty() {
                return Ok(Some((held, site, pieces)));
            }
        }
        Ok(None)
    }
}

/// Everybody stands still, and can be asked something. Giving up leaves the rooms that were made behind.
fn stop(pid: i32) -> Result<Frozen> {
    for _ in 1..TRIES {
        match stop_at_rest(pid, &mut |_| Ok(true)) {
            Err(error) if error.kind == kind::TIMED_OUT => std::thread::sleep(LOOK),
            frozen => return can_be_asked(frozen?),
        }
    }
    can_be_asked(stop_at_rest(pid, &mut |_| Ok(true))?)
}

fn can_be_asked(frozen: Frozen) -> Result<Frozen> {
    refuse::error(&super::untouchable(&frozen)?).map_or(Ok(frozen), Err)
}

fn unreadable(pid: i32, error: &std::io::Error) -> BackendError {
    BackendError::failed(format!("the memory of process {pid} cannot be copied")).because(error)
}

fn of_image(part: &Part) -> bool {
    let name = part.map.name.strip_suffix(" (deleted)").unwrap_or(&part.map.name);
    part.class == Class::Whole && !part.map.shared && is_image(name)
}

/// In pieces that are not too large.
fn cut(part: &Part) -> impl Iterator<Item = Piece> + '_ {
    let map = &part.map;
    (map.start..map.end).step_by(usize::try_from(MOST_BYTES).unwrap_or(usize::MAX)).map(|start| Piece {
        start,
        length: (map.end - start).min(MOST_BYTES),
        prot: map.prot,
        name: map.name.clone(),
        offset: map.offset + (start - map.start),
        room: 0,
        filled: false,
    })
}

/// Sets `room`; it stays 0 where there is none.
fn make_rooms(site: &Site, held: &Held, pieces: &mut [Piece]) -> Result<()> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
    let call = |piece: &Piece| {
        let arguments = [0, piece.length, READ_WRITE.into(), flags.into(), u64::MAX, 0];
        Call::new(libc::SYS_mmap, &arguments)
    };
    let calls: Vec<Call> = pieces.iter().map(call).collect();
    for (piece, result) in pieces.iter_mut().zip(snapshot::make_calls(site, held, &calls)?) {
        piece.room = match result {
            NO_MEMORY => 0,
            error @ -4095..0 => return Err(refused(held.pid, error)),
            address => address.cast_unsigned(),
        };
    }
    Ok(())
}

fn refused(pid: i32, error: i64) -> BackendError {
    let why = Errno::from_raw(i32::try_from(-error).unwrap_or(0));
    BackendError::failed(format!("the memory of process {pid} stays mapped from the saved file"))
        .because(why.desc())
}

/// What becomes of pages that are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// They are so in a new room.
    There,
    /// Something else may have been copied there before.
    Copied,
}

/// Copies these ranges of a piece into its room.
fn copy(memory: &File, piece: &Piece, ranges: &[[u64; 2]], zeros: Zeros) -> std::io::Result<()> {
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    for [start, length] in ranges {
        let mut done = 0;
        while done < *length {
            let size = usize::try_from(CHUNK.min(length - done)).unwrap_or(0);
            let chunk = buffer.get_mut(..size).unwrap_or(&mut []);
            memory.read_exact_at(chunk, start + done)?;
            let to = piece.room + (start + done - piece.start);
            let parts = if zeros == Zeros::There { spans(chunk) } else { vec![(0, size)] };
            for (from, end) in parts {
                memory.write_all_at(chunk.get(from..end).unwrap_or(&[]), to + from as u64)?;
            }
            done += size as u64;
        }
    }
    Ok(())
}

/// Puts the rooms in the place of the mappings; how many bytes that were.
fn finish(frozen: &Frozen, pid: i32, memory: &File, pieces: &[Piece]) -> Result<u64> {
    let all = frozen.tree.processes.iter().zip(&frozen.sites).zip(&frozen.parts);
    let Some(((held, site), parts)) = all.into_iter().find(|((held, _), _)| held.pid == pid) else {
        return Ok(0);
    };
    if pieces.iter().any(|piece| memory.read_exact_at(&mut [0], piece.room).is_err()) {
        // It has become another program, which has none of this.
        return Ok(0);
    }
    let map = pagemap_of(pid)?;
    let flags = maps::flags(&proc::read(pid, "smaps")?);
    let (mut calls, mut moves, mut bytes) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        match still(parts, piece).filter(|part| piece.filled && !locked(&flags, part)) {
            Some(part) => {
                let written = pagemap::own_pages(&map, piece.start, piece.start + piece.length);
                let written = written.map_err(|error| refused(pid, -i64::from(error as i32)))?;
                copy(memory, piece, &written, Zeros::Copied).map_err(|error| unreadable(pid, &error))?;
                calls.extend(calls_for(piece, &flags, part));
                moves.push(calls.len() - 1);
                bytes += piece.length;
            }
            None => calls.push(Call::new(libc::SYS_munmap, &[piece.room, piece.length])),
        }
    }
    let results = snapshot::make_calls_while_held(site, held, &calls)?;
    site.wipe(&held.memory)?;
    let failed = moves.into_iter().filter_map(|index| results.get(index)).find(|result| **result < 0);
    failed.map_or(Ok(bytes), |error| Err(refused(pid, *error)))
}

/// The mapping, where it is still the one that was copied.
fn still<'a>(parts: &'a [Part], piece: &Piece) -> Option<&'a Part> {
    let end = piece.start + piece.length;
    let part = parts.iter().find(|part| part.map.start <= piece.start && end <= part.map.end)?;
    let same = of_image(part)
        && part.map.name == piece.name
        && part.map.prot == piece.prot
        && part.map.offset + (piece.start - part.map.start) == piece.offset;
    same.then_some(part)
}

fn has(flags: &Flags, part: &Part, flag: &str) -> bool {
    flags.get(&part.map.end).is_some_and(|flags| flags.has(flag))
}

fn locked(flags: &Flags, part: &Part) -> bool {
    has(flags, part, "lo")
}

/// The room becomes as the mapping is, and moves there last.
fn calls_for(piece: &Piece, flags: &Flags, part: &Part) -> Vec<Call> {
    let advice = ADVICE.iter().chain(&[HUGE]).filter(|(flag, _)| has(flags, part, flag));
    let mut calls: Vec<Call> = advice
        .map(|(_, advice)| Call::new(libc::SYS_madvise, &[piece.room, piece.length, *advice]))
        .collect();
    if piece.prot != READ_WRITE {
        calls.push(Call::new(libc::SYS_mprotect, &[piece.room, piece.length, piece.prot.into()]));
    }
    let how = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).cast_unsigned();
    let arguments = [piece.room, piece.length, piece.length, how.into(), piece.start];
    calls.push(Call::new(libc::SYS_mremap, &arguments));
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::Mapping;

    const PAGE: u64 = 4096;

    fn part(start: u64, end: u64, name: &str) -> Part {
        let map =
            Mapping { start, end, prot: 3, offset: 0x5000, name: name.to_owned(), ..Mapping::default() };
        Part { map, class: Class::Whole }
    }

    #[test]
    fn large_mappings_are_cut() {
        let pieces: Vec<_> = cut(&part(PAGE, PAGE + MOST_BYTES + PAGE, "/x/pages-1.img")).collect();
        let told: Vec<_> = pieces.iter().map(|piece| (piece.start, piece.length, piece.offset)).collect();
        assert_eq!(told, [(PAGE, MOST_BYTES, 0x5000), (PAGE + MOST_BYTES, PAGE, 0x5000 + MOST_BYTES)]);
    }

    #[test]
    fn only_the_mapping_that_was_copied_is_replaced() {
        let whole = part(0x10_0000, 0x20_0000, "/x/pages-1.img (deleted)");
        let piece = cut(&whole).next().unwrap();
        assert!(of_image(&whole) && still(&[whole], &piece).is_some());
        let larger = part(0x10_0000, 0x30_0000, "/x/pages-1.img (deleted)");
        assert!(still(&[larger], &piece).is_some());
        let smaller = part(0x10_1000, 0x20_0000, "/x/pages-1.img (deleted)");
        assert!(still(&[smaller], &piece).is_none());
        let mut other = part(0x10_0000, 0x20_0000, "/x/pages-1.img (deleted)");
        other.map.prot = 1;
        assert!(still(&[other], &piece).is_none());
        assert!(!of_image(&part(0, PAGE, "/x/data.img")));
    }
}
