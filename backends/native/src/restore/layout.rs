//! The old address space: emptied but for the kernel's own mappings, which move to where the saved process had them.

use super::check::USER_END;
use super::remote::{Place, Remote, VDSO};
use super::table::SCRATCH;
use crate::model::{Backing, Process};
use stasis_plugin_api::prelude::*;

/// Room beside the scratch area for the kernel's mappings while everything else goes.
const PARKING: u64 = 1 << 20;
/// Nothing is looked for below this.
const LOWEST: u64 = 0x1000_0000;
const GRAIN: u64 = 0x1_0000;

/// Empties the process; its scratch area stays.
pub(super) fn clear(remote: &mut Remote, process: &Process) -> Result<()> {
    let now = std::mem::take(&mut remote.places);
    let hole = hole(&now, process).ok_or_else(|| {
        BackendError::failed(format!("cannot rebuild process {}", process.pid))
            .because("its addresses leave no room for the engine")
    })?;
    let rseq = crate::sys::ptrace::rseq(remote.pid).map_err(|e| {
        BackendError::failed(format!("cannot rebuild process {}", process.pid)).because(e.desc())
    })?;
    remote.map_scratch(hole)?;
    let mut table = remote.table();
    if rseq.address != 0 {
        // Else the kernel writes there when the memory is gone.
        let arguments = [rseq.address, rseq.size.into(), 1, rseq.signature.into()];
        table.call("ending rseq", libc::SYS_rseq, &arguments);
    }
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let mut parked: Vec<Place> = Vec::new();
    let mut free = hole + SCRATCH;
    for place in now.iter().filter(|p| p.name == VDSO || p.name.starts_with("[vvar")) {
        let length = place.end - place.start;
        let what = format!("moving {}", place.name);
        table.call(what, libc::SYS_mremap, &[place.start, length, length, flags, free]);
        parked.push(Place { start: free, end: free + length, name: place.name.clone() });
        free += length;
    }
    remote.run(remote.pid, &mut table)?;
    let vdso = |places: &[Place]| places.iter().find(|p| p.name == VDSO).map(|p| p.start);
    let (first, second) = (vdso(&now), vdso(&parked));
    remote.code_moved(first, second);
    table.call("emptying it", libc::SYS_munmap, &[0, hole]);
    table.call("emptying it", libc::SYS_munmap, &[free, USER_END - free]);
    let mut last = None;
    for (name, start, length) in wanted(process) {
        let place = parked.iter().find(|p| p.name == name && p.end - p.start == length);
        let place = place.ok_or_else(|| {
            BackendError::new(kind::UNSUPPORTED, format!("cannot rebuild process {}", process.pid))
                .because(format!("the kernel's {name} was made by another kernel"))
                .help("restart it under the kernel that it was saved under")
        })?;
        let what = format!("moving {name}");
        table.call(what, libc::SYS_mremap, &[place.start, length, length, flags, start]);
        if name == VDSO {
            last = Some(start);
        }
    }
    remote.run(remote.pid, &mut table)?;
    remote.code_moved(second, last);
    Ok(())
}

/// The kernel's mappings of the saved process.
fn wanted(process: &Process) -> impl Iterator<Item = (&str, u64, u64)> {
    process.areas.iter().filter_map(|area| {
        let name = match &area.backing {
            Backing::Vdso => VDSO,
            Backing::Vvar { name } => name.as_str(),
            _ => return None,
        };
        Some((name, area.start, area.end - area.start))
    })
}

/// What lies behind the scratch area afterwards, to go with it.
pub(super) fn room() -> u64 {
    SCRATCH + PARKING
}

/// An address where there is room in the old and in the new process.
fn hole(now: &[Place], process: &Process) -> Option<u64> {
    let old = now.iter().map(|p| (p.start, p.end));
    let new = process.areas.iter().map(|a| (a.start, a.end));
    let mut taken: Vec<(u64, u64)> = old.chain(new).collect();
    taken.sort_unstable();
    let mut at = LOWEST;
    for (start, end) in taken {
        if start >= at.checked_add(room() + GRAIN)? {
            break;
        }
        // One grain away: a stack must have room to be told from it.
        at = at.max(end.checked_add(GRAIN)?.checked_next_multiple_of(GRAIN)?);
    }
    (at.checked_add(room())? <= USER_END).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Area;

    #[test]
    fn the_hole_is_free_in_both() {
        let place = |start, end| Place { start, end, name: String::new() };
        let mut process = Process::default();
        assert_eq!(hole(&[], &process), Some(LOWEST));
        process.areas = vec![Area { start: LOWEST, end: LOWEST + 0x3000, ..Area::default() }];
        assert_eq!(hole(&[], &process), Some(LOWEST + 2 * GRAIN));
        let at = hole(&[place(LOWEST + 2 * GRAIN, LOWEST + 3 * GRAIN)], &process).unwrap();
        assert_eq!(at, LOWEST + 4 * GRAIN);
        assert_eq!(hole(&[place(0, USER_END)], &process), None);
        assert_eq!(
            hole(&[place(0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000)], &process),
            Some(LOWEST + 2 * GRAIN)
        );
    }
}
