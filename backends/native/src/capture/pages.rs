//! The memory of a process, or of its copy, as `pages-<pid>.img`.

use super::contents::{Contents, Output};
use super::increments::{Known, Mapping};
use super::tracking::pagemap_of;
use crate::model::{Area, Backing, Layer, Process};
use crate::restore::check;
use crate::sys::{pagemap, ptrace};
use stasis_plugin_api::error::{BackendError, Result};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const PAGE: u64 = 4096;
/// A large area begins in the file as far behind a multiple of this as it does in memory.
const HUGE: u64 = 2 << 20;
/// More untouched memory than this is an area of its own.
const UNTOUCHED: u64 = 256 << 10;
/// Zero pages between two runs that are not worth a run of their own.
const GAP: u64 = 16 * PAGE;

/// Where the pages of a process are read.
pub(crate) struct Source<'a> {
    /// Whose page map and memory these are: the process or its copy, which stands still.
    pub(crate) pid: i32,
    pub(crate) memory: &'a File,
}

impl Source<'_> {
    fn read(&self, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
        // What was killed is not kept from ending.
        if !ptrace::stands(self.pid) {
            return Err(std::io::Error::other("the process was killed"));
        }
        self.memory.read_exact_at(bytes, at)
    }
}

/// An area whose pages are saved, whatever shows them: a file that is gone, an image that was mapped.
pub(crate) type Whole<'a> = &'a dyn Fn(&Area) -> bool;

/// Writes the pages of all areas, except those that an earlier generation has, and fills in where they are.
pub(crate) fn save(
    contents: &mut Contents,
    process: &mut Process,
    source: &Source<'_>,
    whole: Whole<'_>,
    known: Option<&Known>,
) -> Result<()> {
    let map = pagemap_of(source.pid)?;
    let before = contents.written;
    if let Some(known) = known {
        process.layers.clone_from(&known.layers);
        process.layers.push(Layer { file: known.next_file(process.pid), bytes: 0 });
    }
    let output = contents.create(&check::pages(process))?;
    let own = process.layers.len().saturating_sub(1) as u64;
    let areas = &mut process.areas;
    let mut end = 0_u64;
    for mut area in std::mem::take(areas) {
        let unreadable = |error: nix::errno::Errno| {
            let what = format!("the page map of process {} cannot be read at {:x}", source.pid, area.start);
            BackendError::failed(what).because(error.desc())
        };
        if matches!(area.backing, Backing::Vdso | Backing::Vvar { .. } | Backing::Vsyscall) {
            areas.push(area);
            continue;
        }
        if !saved(&area) {
            if may_be_guarded(&area) {
                area.guards = pagemap::guards(&map, area.start, area.end).map_err(unreadable)?;
            }
            areas.push(area);
            continue;
        }
        let guards = pagemap::guards(&map, area.start, area.end).map_err(unreadable)?;
        if let Some(mapping) = known.and_then(|known| known.mappings.get(&[area.start, area.end])) {
            area.guards = guards;
            end = save_changed(contents, &output, source, &mut area, mapping, [own, end])?;
            areas.push(area);
            continue;
        }
        if whole(&area) {
            (area.base, area.guards) = (place(&area, end), guards);
            save_whole(contents, &output, source, &mut area)?;
            end = taken(&mut area, end);
            areas.push(area);
            continue;
        }
        let runs = pagemap::own_pages(&map, area.start, area.end).map_err(unreadable)?;
        area.guards = guards;
        for (mut part, runs) in parts(area, &runs) {
            part.base = place(&part, end);
            save_runs(contents, &output, source, &mut part, &runs)?;
            end = taken(&mut part, end);
            areas.push(part);
        }
    }
    if let Some(layer) = process.layers.last_mut() {
        layer.bytes = contents.written - before;
    }
    output.resize(end)
}

/// Reads bytes of a layer's file at an offset.
pub(crate) type Reading<'a> = &'a (dyn Fn(u64, u64, &mut [u8]) -> std::io::Result<()> + Sync);

/// Writes the pages of a process that lie in several files into one: `read` gives bytes of a file at an offset.
pub(crate) fn gather(contents: &mut Contents, process: &mut Process, read: Reading<'_>) -> Result<()> {
    let own = process.layers.len().saturating_sub(1) as u64;
    process.layers.clear();
    let output = contents.create(&check::pages(process))?;
    let mut end = 0_u64;
    for mut area in std::mem::take(&mut process.areas) {
        let runs = area.runs.iter().map(|[at, n]| [*at, *n, own, area.base + (at - area.start)]);
        let mut pieces: Vec<[u64; 4]> = runs.chain(std::mem::take(&mut area.pieces)).collect();
        pieces.sort_unstable();
        let runs: Vec<[u64; 2]> = pieces.iter().map(|[at, n, ..]| [*at, *n]).collect();
        for (mut part, _) in parts(area, &runs) {
            part.base = place(&part, end);
            part.runs.clear();
            for [at, n, layer, offset] in pieces.iter().filter(|[at, ..]| (part.start..part.end).contains(at))
            {
                let to = part.base + (at - part.start);
                contents.copy(&output, to, *n, &mut |_, _| {}, &|done, bytes| {
                    read(*layer, offset + done, bytes)
                })?;
                // Between the pages of a file lie others of it, not zeros.
                match part.backing {
                    Backing::File { .. } => part.runs.push([*at, *n]),
                    _ => append(&mut part.runs, *at, *n),
                }
            }
            end = taken(&mut part, end);
            process.areas.push(part);
        }
    }
    output.resize(end)
}

/// Writes what was changed, one run behind the other, and puts it between what an earlier generation has. The answer
/// is how long the file is now.
fn save_changed(
    contents: &mut Contents,
    output: &Output,
    source: &Source<'_>,
    area: &mut Area,
    mapping: &Mapping,
    [layer, mut end]: [u64; 2],
) -> Result<u64> {
    area.pieces.clone_from(&mapping.older);
    end = end.next_multiple_of(PAGE);
    for [start, length] in &mapping.written {
        let mut keep = |offset: u64, size: u64| area.pieces.push([start + offset, size, layer, end + offset]);
        contents
            .copy(output, end, *length, &mut keep, &|offset, bytes| source.read(bytes, start + offset))?;
        end += length;
    }
    area.pieces.sort_unstable();
    Ok(end)
}

/// Where an area begins in a file that is so long: large ones so that huge pages fit.
fn place(area: &Area, end: u64) -> u64 {
    match area.end - area.start {
        ..HUGE => end.next_multiple_of(PAGE),
        _ => end.next_multiple_of(HUGE) + area.start % HUGE,
    }
}

/// How long the file is with this area. What holds nothing takes no room: some programs reserve more addresses than a
/// file may have bytes.
fn taken(area: &mut Area, end: u64) -> u64 {
    if area.runs.is_empty() {
        area.base = 0;
        return end;
    }
    area.base + (area.end - area.start)
}

/// An area cut where much of it is untouched, so that the file has no holes that somebody would have to read.
fn parts(area: Area, runs: &[[u64; 2]]) -> Vec<(Area, Vec<[u64; 2]>)> {
    if matches!(area.backing, Backing::Stack | Backing::File { .. }) {
        return vec![(area, runs.to_vec())];
    }
    let mut cuts = vec![area.start];
    let mut at = area.start;
    for [start, length] in runs {
        if start - at > UNTOUCHED {
            cuts.extend([at, *start]);
        }
        at = start + length;
    }
    if area.end - at > UNTOUCHED {
        cuts.push(at);
    }
    cuts.push(area.end);
    cuts.dedup();
    let within = |all: &[[u64; 2]], start: u64, end: u64| {
        all.iter().filter(|[from, _]| (start..end).contains(from)).copied().collect::<Vec<_>>()
    };
    let part = |ends: &[u64]| {
        let (start, end) = (*ends.first()?, *ends.get(1)?);
        let guards = within(&area.guards, start, end);
        Some((Area { start, end, guards, ..area.clone() }, within(runs, start, end)))
    };
    cuts.windows(2).filter_map(part).collect()
}

/// Looking at all page tables of what is not saved takes long where there is much of it. Newer kernels tell (`gu`) where
/// there may be guard pages.
fn may_be_guarded(area: &Area) -> bool {
    const LITTLE: u64 = 256 << 20;
    area.end - area.start <= LITTLE || area.vm_flags.has("gu")
}

/// What the kernel or a file gives back needs no saving; what it may drop at any time (the state of random numbers, for
/// example) must not come twice.
fn saved(area: &Area) -> bool {
    if area.vm_flags.has("dp") {
        return false;
    }
    match area.backing {
        Backing::Anonymous | Backing::Heap | Backing::Stack => true,
        Backing::File { .. } => !area.shared,
        Backing::Memory { .. } | Backing::Vdso | Backing::Vvar { .. } | Backing::Vsyscall => false,
    }
}

fn save_runs(
    contents: &mut Contents,
    output: &Output,
    source: &Source<'_>,
    area: &mut Area,
    runs: &[[u64; 2]],
) -> Result<()> {
    // A changed page of a file counts even when it is all zero now.
    let over_file = matches!(area.backing, Backing::File { .. });
    let mut kept: Vec<[u64; 2]> = Vec::new();
    for [start, length] in runs {
        let at = area.base + (start - area.start);
        let mut keep = |offset: u64, size: u64| append(&mut kept, start + offset, size);
        let mut ignore = |_, _| {};
        let told: &mut dyn FnMut(u64, u64) = if over_file { &mut ignore } else { &mut keep };
        contents.copy(output, at, *length, told, &|offset, bytes| source.read(bytes, start + offset))?;
    }
    area.runs = if over_file { runs.to_vec() } else { kept };
    Ok(())
}

/// Reads everything, page by page where something cannot be read (behind the end of a file).
fn save_whole(contents: &mut Contents, output: &Output, source: &Source<'_>, area: &mut Area) -> Result<()> {
    let mut kept: Vec<[u64; 2]> = Vec::new();
    let start = area.start;
    let mut keep = |offset: u64, size: u64| append(&mut kept, start + offset, size);
    contents.copy(output, area.base, area.end - start, &mut keep, &|offset, bytes| {
        if source.read(bytes, start + offset).is_err() {
            for (index, page) in bytes.chunks_mut(4096).enumerate() {
                if source.read(page, start + offset + index as u64 * PAGE).is_err() {
                    page.fill(0);
                }
            }
        }
        Ok(())
    })?;
    area.runs = kept;
    Ok(())
}

/// Adds a run, joining it to the last one over a small gap: the gap's pages are zero in the file too.
fn append(runs: &mut Vec<[u64; 2]>, start: u64, length: u64) {
    match runs.last_mut() {
        Some([address, size]) if start - (*address + *size) <= GAP => *size = start + length - *address,
        _ => runs.push([start, length]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_untouched_is_cut_out() {
        let area =
            Area { start: 0x10_0000, end: 0x1000_0000, guards: vec![[0x80_0000, PAGE]], ..Area::default() };
        let runs = [[0x10_0000, PAGE], [0x12_0000, PAGE], [0x900_0000, 2 * PAGE]];
        let told = |area: &Area, runs: &[[u64; 2]]| {
            let parts = parts(area.clone(), runs);
            parts.iter().map(|(a, r)| (a.start, a.end, r.len(), a.guards.len())).collect::<Vec<_>>()
        };
        let cut = [
            (0x10_0000, 0x12_1000, 2, 0),
            (0x12_1000, 0x900_0000, 0, 1),
            (0x900_0000, 0x900_2000, 1, 0),
            (0x900_2000, 0x1000_0000, 0, 0),
        ];
        assert_eq!(told(&area, &runs), cut);
        assert_eq!(told(&area, &[]), [(0x10_0000, 0x1000_0000, 0, 1)]);
        let stack = Area { backing: Backing::Stack, ..area };
        assert_eq!(told(&stack, &runs).len(), 1);
        assert_eq!((place(&stack, 1), place(&Area { end: 0x10_1000, ..stack }, 1)), (0x30_0000, PAGE));
    }

    #[test]
    fn small_gaps_join_runs() {
        let mut runs = Vec::new();
        append(&mut runs, 0, PAGE);
        append(&mut runs, 2 * PAGE, PAGE);
        append(&mut runs, 3 * PAGE + GAP + PAGE, PAGE);
        assert_eq!(runs, [[0, 3 * PAGE], [4 * PAGE + GAP, PAGE]]);
    }
}
