//! The mappings of the saved process with their content.

use super::objects::{Access, Made};
use super::readers::{Crew, Readers};
use super::remote::Remote;
use super::table::Table;
use crate::model::{Area, Backing, Process};
use crate::proc::maps::{ADVICE, HUGE};
use stasis_plugin_api::prelude::*;
use std::os::fd::AsRawFd;

/// How content comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Page by page from the image when it is touched.
    Map,
    /// All of it now.
    Copy,
}

const PAGE: u64 = 4096;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
/// A mapping takes half as long as reading so many bytes, most of which is giving them memory.
const LEAST: u64 = 16 << 10;
/// Runs that are so near become one mapping.
const GAP: u64 = 1 << 20;
/// So much is read at once: what the processor has just emptied for it is still at hand then.
const PART: u64 = 1 << 20;
/// `vm.max_map_count` is 65530: file mappings do not merge as anonymous ones do.
const MOST_MAPPED: usize = 20_000;
/// Instead of MAP_PRIVATE: the kernel may empty it at any time.
const MAP_DROPPABLE: i32 = 8;
const MADV_GUARD_INSTALL: u64 = 102;
/// Since Linux 5.14.
const MADV_POPULATE_WRITE: u64 = 23;

/// Maps everything: first the areas, then, by several threads where it is much, what is in them, last what they are to be.
/// The scratch area stays.
pub(super) fn fill(remote: &Remote, process: &Process, made: &Made, how: How, crew: &Crew<'_>) -> Result<()> {
    let files = made.pages.get(&process.pid).map_or(&[][..], Vec::as_slice);
    let pieces: usize = process.areas.iter().map(|area| area.pieces.len()).sum();
    let filling = Filling {
        made,
        files: files.iter().map(|(file, _)| file.as_raw_fd()).collect(),
        size: files.last().map_or(0, |(_, size)| *size),
        how: if process.areas.len() + pieces > MOST_MAPPED { How::Copy } else { how },
    };
    let mut table = remote.table();
    place(process, &mut table);
    for area in &process.areas {
        filling.area(&mut table, area)?;
        remote.make_room(remote.pid, &mut table)?;
    }
    remote.run(remote.pid, &mut table)?;
    let readers = Readers::make(remote, filling.bytes(process), crew)?;
    for area in &process.areas {
        filling.content(&readers, &mut table, area)?;
    }
    readers.read(&mut table)?;
    readers.end()?;
    for area in &process.areas {
        filling.finish(remote, &mut table, area)?;
        remote.make_room(remote.pid, &mut table)?;
    }
    layout(process, made, &mut table)?;
    remote.run(remote.pid, &mut table)
}

/// Where memory is to be from now on; threads and children inherit it. Another machine may not have these nodes.
fn place(process: &Process, table: &mut Table) {
    let Some(placement) = &process.settings.placement else { return };
    let nodes: Vec<u8> = placement.nodes.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // The kernel takes one bit less than it is told.
    let bits = nodes.len() as u64 * 8 + 1;
    let at = table.put(&nodes);
    let what = "the nodes of its memory";
    table.try_call(what, libc::SYS_set_mempolicy, &[placement.mode.into(), at, bits]);
}

struct Filling<'a> {
    made: &'a Made,
    /// Those of the process's layers; the last is that of the runs.
    files: Vec<i32>,
    /// Bytes of the last.
    size: u64,
    how: How,
}

fn told(area: &Area, what: &str) -> String {
    format!("{what} {:x}-{:x}", area.start, area.end)
}

fn number(fd: i32) -> u64 {
    i64::from(fd).cast_unsigned()
}

impl Filling<'_> {
    /// The mapping, empty and open for what is to be written into it.
    fn area(&self, table: &mut Table, area: &Area) -> Result<()> {
        let Some((fd, offset, kind)) = self.source(area)? else { return Ok(()) };
        let mut flags = kind | libc::MAP_FIXED;
        if area.vm_flags.has("nr") {
            flags |= libc::MAP_NORESERVE;
        }
        if area.vm_flags.has("gd") || area.backing == Backing::Stack {
            flags |= libc::MAP_GROWSDOWN;
        }
        let length = area.end - area.start;
        let arguments = [area.start, length, open(area).into(), flags as u64, number(fd), offset];
        table.call(told(area, "mapping"), libc::SYS_mmap, &arguments);
        if area.vm_flags.has(HUGE.0) {
            // Before the content: huge pages are made when they are touched first.
            table.try_call("huge pages", libc::SYS_madvise, &[area.start, length, HUGE.1]);
        }
        Ok(())
    }

    /// What is read now.
    fn content(&self, readers: &Readers<'_>, table: &mut Table, area: &Area) -> Result<()> {
        let maps = self.maps(area)?;
        self.copy(readers, table, area, &mapped_runs(area, maps))?;
        for piece in &area.pieces {
            let [start, length, file, offset] = *piece;
            let skip = mapped_piece(area, piece, maps);
            self.read(readers, table, area, [start + skip, length - skip, file, offset + skip])?;
        }
        Ok(())
    }

    /// What is mapped from the image instead, and everything about the area that would have been in the way.
    fn finish(&self, remote: &Remote, table: &mut Table, area: &Area) -> Result<()> {
        let length = area.end - area.start;
        if self.source(area)?.is_none() {
            return Ok(());
        }
        if open(area) != area.prot {
            let arguments = [area.start, length, area.prot.into()];
            table.call(told(area, "protecting"), libc::SYS_mprotect, &arguments);
        }
        let maps = self.maps(area)?;
        let own = self.files.len().saturating_sub(1) as u64;
        let of_runs = mapped_runs(area, maps)
            .into_iter()
            .map(|[start, n]| [start, n, own, area.base + (start - area.start)]);
        let pieces = area.pieces.iter().map(|piece| {
            let [start, _, file, offset] = *piece;
            [start, mapped_piece(area, piece, maps), file, offset]
        });
        let reserve = if area.vm_flags.has("nr") { libc::MAP_NORESERVE } else { 0 };
        for [start, length, file, offset] in of_runs.chain(pieces).filter(|[_, length, ..]| *length > 0) {
            let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED | reserve) as u64;
            let arguments = [start, length, area.prot.into(), flags, self.file(file), offset];
            table.call(told(area, "mapping the image into"), libc::SYS_mmap, &arguments);
            remote.make_room(remote.pid, table)?;
        }
        advise(remote, table, area)
    }

    /// How much of the process is read.
    fn bytes(&self, process: &Process) -> u64 {
        let read = |area: &Area| {
            let maps = self.maps(area).unwrap_or(false);
            // Gaps between runs may be mapped as well.
            let runs = mapped_runs(area, maps).into_iter().map(|[_, length]| length);
            let pieces = area.pieces.iter().map(|piece| mapped_piece(area, piece, maps));
            runs.chain(pieces).fold(area.content(), u64::saturating_sub)
        };
        process.areas.iter().map(read).fold(0, u64::saturating_add)
    }

    fn file(&self, index: u64) -> u64 {
        let file = usize::try_from(index).ok().and_then(|index| self.files.get(index));
        number(file.copied().unwrap_or(-1))
    }

    fn read(&self, readers: &Readers<'_>, table: &mut Table, area: &Area, piece: [u64; 4]) -> Result<()> {
        let [mut at, mut left, file, mut offset] = piece;
        while left > 0 {
            let part = PART.min(left);
            if part >= LEAST {
                // One call for all pages instead of a fault for each: reading takes two thirds of the time then.
                let arguments = [at, part, MADV_POPULATE_WRITE];
                table.try_call("making room", libc::SYS_madvise, &arguments);
            }
            let arguments = [self.file(file), at, part, offset];
            table.exact(told(area, "reading the image into"), libc::SYS_pread64, &arguments, part);
            (at, left, offset) = (at + part, left - part, offset + part);
            readers.make_room(table)?;
        }
        Ok(())
    }

    /// Descriptor, offset and flags that say what the area shows; `None` for the kernel's own.
    fn source(&self, area: &Area) -> Result<Option<(i32, u64, i32)>> {
        let droppable = area.vm_flags.has("dp");
        let sharing = match area.shared {
            true => libc::MAP_SHARED,
            false if droppable => MAP_DROPPABLE,
            false => libc::MAP_PRIVATE,
        };
        let missing = || BackendError::failed(told(area, "cannot map")).because("its file was not opened");
        Ok(Some(match &area.backing {
            Backing::Vdso | Backing::Vvar { .. } | Backing::Vsyscall => return Ok(None),
            Backing::Anonymous | Backing::Heap | Backing::Stack => (-1, 0, sharing | libc::MAP_ANONYMOUS),
            Backing::File { file, offset } => {
                let key = (file.path.clone(), Access::of(area));
                let fd = self.made.mapped.get(&key).ok_or_else(missing)?;
                (fd.as_raw_fd(), *offset, sharing)
            }
            Backing::Memory { memory, offset } => {
                let parked = self.made.memories.get(*memory).ok_or_else(missing)?;
                let fd = if Access::of(area) == Access::Read { &parked.readable } else { &parked.file };
                (fd.as_raw_fd(), *offset, sharing)
            }
        }))
    }

    /// Whether what is in the area is mapped from the image as far as that is worth it. Of a private mapping of a file that
    /// is what the program has written into it: to read that, the kernel would first make a copy of what the file has there.
    /// Never a program's code: by the files of executable mappings others know what runs.
    fn maps(&self, area: &Area) -> Result<bool> {
        if self.source(area)?.is_none() {
            return Ok(false);
        }
        let plain = match area.backing {
            Backing::Anonymous | Backing::Heap => true,
            Backing::File { .. } => area.prot & PROT_EXEC == 0,
            _ => false,
        };
        let whole = area.base.checked_add(area.end - area.start).is_some_and(|end| end <= self.size);
        Ok(self.how == How::Map && plain && !area.shared && (whole || area.runs.is_empty()))
    }

    /// Reads what is not mapped.
    fn copy(&self, readers: &Readers<'_>, table: &mut Table, area: &Area, mapped: &[[u64; 2]]) -> Result<()> {
        for [start, length] in &area.runs {
            let mut at = *start;
            while at < start + length {
                let behind = mapped.partition_point(|[from, n]| from + n <= at);
                let next = match mapped.get(behind) {
                    Some([from, n]) if *from <= at => {
                        at = from + n;
                        continue;
                    }
                    Some([from, _]) => *from,
                    None => u64::MAX,
                };
                let part = (start + length - at).min(next - at);
                let own = self.files.len().saturating_sub(1) as u64;
                self.read(readers, table, area, [at, part, own, area.base + (at - area.start)])?;
                at += part;
            }
        }
        Ok(())
    }
}

/// The rights while content is written.
fn open(area: &Area) -> u32 {
    let empty = area.runs.is_empty() && area.pieces.is_empty();
    area.prot | if empty { 0 } else { PROT_WRITE }
}

fn mapped_runs(area: &Area, maps: bool) -> Vec<[u64; 2]> {
    if maps { clusters(area) } else { Vec::new() }
}

/// How much of a piece is mapped. Never the last page of the area, as in `clusters`.
fn mapped_piece(area: &Area, [start, length, ..]: &[u64; 4], maps: bool) -> u64 {
    let worth = (*length).min(area.end - PAGE - start);
    if maps && worth >= LEAST { worth } else { 0 }
}

/// The parts of an area that are worth mapping: runs, with the gaps between them where those are short. Gaps are holes
/// of the image, which read as zeros: not so in a file, of which they show what the file has. Never the last page: an area
/// that grows by `mremap` would go on with what follows in the image, and so it is none of one piece.
fn clusters(area: &Area) -> Vec<[u64; 2]> {
    let end = area.end - PAGE;
    let gap = if matches!(area.backing, Backing::File { .. }) { 0 } else { GAP };
    let mut parts: Vec<[u64; 2]> = Vec::new();
    for [start, length] in &area.runs {
        let stop = (start + length).min(end);
        if *start >= stop {
            continue;
        }
        match parts.last_mut() {
            Some([from, n]) if start - (*from + *n) <= gap => *n = stop - *from,
            _ => parts.push([*start, stop - start]),
        }
    }
    parts.retain(|[_, length]| *length >= LEAST);
    parts
}

fn advise(remote: &Remote, table: &mut Table, area: &Area) -> Result<()> {
    let length = area.end - area.start;
    for (_, advice) in ADVICE.iter().filter(|(flag, _)| area.vm_flags.has(flag)) {
        table.call(told(area, "advice about"), libc::SYS_madvise, &[area.start, length, *advice]);
    }
    for [start, length] in &area.guards {
        let arguments = [*start, *length, MADV_GUARD_INSTALL];
        table.call(told(area, "guard pages in"), libc::SYS_madvise, &arguments);
        remote.make_room(remote.pid, table)?;
    }
    if area.vm_flags.has("lo") {
        // First without touching anything: not all of it can be touched where a stack ends in pages without any right.
        let what = told(area, "locking");
        table.call(what.clone(), libc::SYS_mlock2, &[area.start, length, u64::from(libc::MLOCK_ONFAULT)]);
        if !area.vm_flags.has("lf") {
            table.try_call(what, libc::SYS_mlock, &[area.start, length]);
        }
    }
    Ok(())
}

/// Where program, heap, arguments and so on lie, and which file is the program.
fn layout(process: &Process, made: &Made, table: &mut Table) -> Result<()> {
    let mm = &process.mm;
    let program = made.programs.get(&process.exe.path).ok_or_else(|| {
        BackendError::failed(format!("cannot rebuild process {}", process.pid))
            .because("its program was not opened")
    })?;
    let auxv: Vec<u8> = mm.auxv.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let vector = table.put(&auxv);
    let fields = [
        mm.start_code,
        mm.end_code,
        mm.start_data,
        mm.end_data,
        mm.start_brk,
        mm.brk,
        mm.start_stack,
        mm.arg_start,
        mm.arg_end,
        mm.env_start,
        mm.env_end,
        vector,
        auxv.len() as u64 | u64::from(program.as_raw_fd().cast_unsigned()) << 32,
    ];
    let bytes: Vec<u8> = fields.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let (option, map) = (libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64);
    let at = table.put(&bytes);
    table.call("the places of its parts", libc::SYS_prctl, &[option, map, at, bytes.len() as u64, 0]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_runs_are_mapped_as_one_and_small_ones_are_read() {
        let area =
            |end: u64, runs: &[[u64; 2]]| Area { start: 0, end, runs: runs.to_vec(), ..Area::default() };
        assert!(clusters(&area(0x4000, &[[0, 0x4000]])).is_empty());
        assert_eq!(clusters(&area(0x5000, &[[0, 0x5000]])), [[0, 0x4000]]);
        assert_eq!(clusters(&area(0x80_0000, &[[0, 0x80_0000]])), [[0, 0x7f_f000]]);
        let far = area(
            0x8000_0000,
            &[[0, 0x10000], [0x1_1000, 0x1000], [0x4000_0000, 0x2000], [0x5000_0000, 0x20000]],
        );
        assert_eq!(clusters(&far), [[0, 0x1_2000], [0x5000_0000, 0x20000]]);
        let file = crate::model::FileIdentity::default();
        let backing = Backing::File { file, offset: 0 };
        assert_eq!(clusters(&Area { backing, ..far }), [[0, 0x10000], [0x5000_0000, 0x20000]]);
    }
}
