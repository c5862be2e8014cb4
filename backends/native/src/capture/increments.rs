//! What a generation need not write because the one before has it.

use super::areas::{Class, Part};
use super::frozen::Frozen;
use super::mode;
use super::tracking::{Tracking, pagemap_of};
use crate::model::{Area, Backing, Image, Layer, Process};
use crate::restore::check;
use crate::sys::pagemap;
use stasis_plugin_api::error::{BackendError, Result};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::Path;

/// Beside the image that is being written: the description of the generation on which it builds.
pub(crate) const BASE: &str = "base.json";
/// More files than this are not read at a restart; the process is saved as a whole then.
const MOST_LAYERS: usize = 24;
/// More pieces than this are not looked for.
const MOST_PIECES: usize = 100_000;
/// Where so much more is in memory than has to be written, copying the page tables takes longer than writing: 25 ms a
/// GiB against 0.6 ms a MiB.
const CHEAPER: u64 = 24;
/// So much that is superseded may always be kept.
const SUPERSEDED: u64 = 16 << 20;

/// The memory of one process in the generation before.
#[derive(Debug, Clone, Default)]
struct Before {
    layers: Vec<Layer>,
    /// As in [`Area::pieces`], over all areas.
    pieces: Vec<[u64; 4]>,
}

/// The generation before.
#[derive(Debug, Default)]
pub(crate) struct Base {
    processes: HashMap<i32, Before>,
}

/// A mapping of which only a part is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The process's own pages that were written since.
    pub(crate) written: Vec<[u64; 2]>,
    /// Where the others lie, as in [`Area::pieces`].
    pub(crate) older: Vec<[u64; 4]>,
}

/// What is known of one process that stands still.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The files in which `older` lies.
    pub(crate) layers: Vec<Layer>,
    /// By start and end of the mapping.
    pub(crate) mappings: HashMap<[u64; 2], Mapping>,
    /// What has to be written all the same.
    bytes: u64,
}

impl Base {
    /// Reads it. One that cannot be read, or is none of ours, is as none at all.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let text = std::fs::read(directory.join(BASE)).ok()?;
        let image = check::parse(&text).ok()?;
        Some(Self::of(&image))
    }

    fn of(image: &Image) -> Self {
        Self { processes: image.processes.iter().map(|process| (process.pid, before(process))).collect() }
    }
}

fn before(process: &Process) -> Before {
    let mut layers = process.layers.clone();
    let own = check::pages(process);
    let index = layers.iter().position(|layer| layer.file == own).unwrap_or_else(|| {
        let bytes = process.areas.iter().flat_map(|area| &area.runs).map(|run| run[1]).sum();
        layers.push(Layer { file: own, bytes });
        layers.len() - 1
    });
    let own_memory = |area: &&Area| {
        !area.shared && matches!(area.backing, Backing::Anonymous | Backing::Heap | Backing::Stack)
    };
    let pieces = process.areas.iter().filter(own_memory).flat_map(|area| {
        let runs = area
            .runs
            .iter()
            .map(move |[start, length]| [*start, *length, index as u64, area.base + (start - area.start)]);
        runs.chain(area.pieces.iter().copied()).collect::<Vec<_>>()
    });
    Before { pieces: pieces.collect(), layers }
}

/// What is known of every process, by its pid.
pub(crate) fn known(frozen: &Frozen, tracking: &mut Tracking, base: &Base) -> Result<HashMap<i32, Known>> {
    let mut all = HashMap::new();
    for (held, parts) in frozen.tree.processes.iter().zip(&frozen.parts) {
        let map = pagemap_of(held.pid)?;
        let before = base.processes.get(&held.pid);
        let mut known = Known::default();
        for part in parts {
            let Some(changed) = tracking.written(held, &map, part)? else {
                known.bytes += part_bytes(&map, part)?;
                continue;
            };
            let mut mapping = Mapping::default();
            for [start, length] in &changed {
                mapping.written.extend(pagemap::own_pages(&map, *start, start + length).map_err(unreadable)?);
            }
            known.bytes += mapping.written.iter().map(|run| run[1]).sum::<u64>();
            mapping.older = before.map(|b| without(&b.pieces, part, &changed)).unwrap_or_default();
            known.mappings.insert([part.map.start, part.map.end], mapping);
        }
        known.layers = before.map(|before| before.layers.clone()).unwrap_or_default();
        if before.is_some() && known.worth_it() {
            known.drop_unused();
            all.insert(held.pid, known);
        }
    }
    Ok(all)
}

impl Known {
    /// Where there are few files, few pieces, and not much in the files that nobody needs any more.
    fn worth_it(&self) -> bool {
        let older = || self.mappings.values().flat_map(|mapping| &mapping.older);
        let (pieces, needed) = older().fold((0, 0), |(count, bytes), piece| (count + 1, bytes + piece[1]));
        let kept: u64 = self.layers.iter().map(|layer| layer.bytes).sum();
        self.layers.len() < MOST_LAYERS
            && pieces < MOST_PIECES
            && kept.saturating_sub(needed) <= needed.max(SUPERSEDED)
    }

    /// Leaves out the files of which nothing is needed.
    fn drop_unused(&mut self) {
        let older = || self.mappings.values().flat_map(|mapping| &mapping.older);
        let needed: BTreeSet<u64> = older().map(|piece| piece[2]).collect();
        let places: HashMap<u64, u64> = needed.iter().copied().zip(0..).collect();
        for piece in self.mappings.values_mut().flat_map(|mapping| &mut mapping.older) {
            piece[2] = places.get(&piece[2]).copied().unwrap_or(0);
        }
        let mut index = 0..;
        self.layers.retain(|_| index.next().is_some_and(|index| needed.contains(&index)));
    }

    /// The name of the file for what is written now.
    pub(crate) fn next_file(&self, pid: i32) -> String {
        let number = |layer: &Layer| {
            let rest = layer.file.strip_prefix(&format!("pages-{pid}"))?.strip_suffix(".img")?;
            rest.strip_prefix('-').map_or(Some(0), |number| number.parse::<u64>().ok())
        };
        format!("pages-{pid}-{}.img", self.layers.iter().filter_map(number).max().unwrap_or(0) + 1)
    }
}

/// Whether copying the page tables takes less time than writing what has to be written: of a process of which nothing
/// is known, all that it has.
pub(crate) fn worth_a_copy(frozen: &Frozen, known: &HashMap<i32, Known>) -> bool {
    let (mut resident, mut write) = (0, 0);
    for held in &frozen.tree.processes {
        let all = mode::memory(held.pid);
        resident += all;
        write += known.get(&held.pid).map_or(all, |known| known.bytes);
    }
    write > resident / CHEAPER
}

fn part_bytes(map: &File, part: &Part) -> Result<u64> {
    if part.map.shared || matches!(part.class, Class::Vdso | Class::Vvar | Class::Vsyscall) {
        return Ok(0);
    }
    let runs = pagemap::own_pages(map, part.map.start, part.map.end).map_err(unreadable)?;
    Ok(runs.iter().map(|run| run[1]).sum())
}

/// The pieces inside a mapping, without what lies in these ranges. Both ascend.
fn without(pieces: &[[u64; 4]], part: &Part, ranges: &[[u64; 2]]) -> Vec<[u64; 4]> {
    let first = pieces.partition_point(|[start, length, ..]| start + length <= part.map.start);
    let mut left = Vec::new();
    for [start, length, layer, offset] in pieces.get(first..).unwrap_or(&[]) {
        if *start >= part.map.end {
            break;
        }
        let (mut at, end) = ((*start).max(part.map.start), (start + length).min(part.map.end));
        let mut keep = |from: u64, to: u64| {
            if from < to {
                left.push([from, to - from, *layer, offset + (from - start)]);
            }
        };
        let next = ranges.partition_point(|[from, size]| from + size <= at);
        for [from, size] in ranges.get(next..).unwrap_or(&[]) {
            if *from >= end {
                break;
            }
            keep(at, (*from).min(end));
            at = at.max(from + size);
        }
        keep(at, end);
    }
    left
}

fn unreadable(error: nix::errno::Errno) -> BackendError {
    BackendError::failed("the page map cannot be read").because(error.desc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps;

    const PAGE: u64 = 4096;

    fn part(start: u64, end: u64) -> Part {
        Part { map: maps::Mapping { start, end, ..maps::Mapping::default() }, class: Class::Anonymous }
    }

    #[test]
    fn what_was_written_is_cut_out_of_what_was_saved() {
        let pieces = [[0, 10 * PAGE, 0, 0], [20 * PAGE, 10 * PAGE, 1, 7 * PAGE]];
        let all = part(0, 100 * PAGE);
        assert_eq!(without(&pieces, &all, &[]), pieces);
        let changed = [[2 * PAGE, PAGE], [9 * PAGE, 12 * PAGE], [29 * PAGE, 50 * PAGE]];
        assert_eq!(
            without(&pieces, &all, &changed),
            [[0, 2 * PAGE, 0, 0], [3 * PAGE, 6 * PAGE, 0, 3 * PAGE], [21 * PAGE, 8 * PAGE, 1, 8 * PAGE],]
        );
        assert_eq!(without(&pieces, &part(5 * PAGE, 6 * PAGE), &[]), [[5 * PAGE, PAGE, 0, 5 * PAGE]]);
        assert_eq!(without(&pieces, &part(10 * PAGE, 20 * PAGE), &[]), Vec::<[u64; 4]>::new());
        assert_eq!(without(&pieces, &all, &[[0, 100 * PAGE]]), Vec::<[u64; 4]>::new());
    }

    fn layers(names: &[&str]) -> Vec<Layer> {
        names.iter().map(|name| Layer { file: (*name).to_owned(), bytes: SUPERSEDED }).collect()
    }

    #[test]
    fn files_that_nobody_needs_are_left_out() {
        let mapping = Mapping { older: vec![[0, PAGE, 2, 0], [PAGE, PAGE, 0, 0]], ..Mapping::default() };
        let mappings = [([0, PAGE], mapping)].into();
        let names = ["pages-7.img", "pages-7-1.img", "pages-7-9.img"];
        let mut known = Known { layers: layers(&names), mappings, bytes: 0 };
        assert_eq!(known.next_file(7), "pages-7-10.img");
        assert!(!known.worth_it(), "most of it is superseded");
        known.drop_unused();
        assert_eq!(known.layers, layers(&["pages-7.img", "pages-7-9.img"]));
        assert_eq!(known.mappings[&[0, PAGE]].older, [[0, PAGE, 1, 0], [PAGE, PAGE, 0, 0]]);
        known.layers.truncate(1);
        assert!(known.worth_it());
    }
}
