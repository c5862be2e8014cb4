//! Which pages of a process hold anything of their own: by PAGEMAP_SCAN (6.7), or by reading the page map.

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

const PAGE: u64 = 4096;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
pub(crate) const SCAN: u64 = 0xc060_6610;
const IS_WRITTEN: u64 = 1 << 1;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO: u64 = 1 << 5;
const IS_GUARD: u64 = 1 << 8;
/// Write-protects what is told (PM_SCAN_WP_MATCHING).
const PROTECT: u64 = 1;
/// Fails where writes are not remembered (PM_SCAN_CHECK_WPASYNC).
const REMEMBERED: u64 = 2;

#[derive(Default)]
#[repr(C)]
struct Arguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    count: u64,
    most: u64,
    inverted: u64,
    mask: u64,
    any: u64,
    told: u64,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Address and length of the pages between `start` and `end` that are the process's own.
pub(crate) fn own_pages(map: &File, start: u64, end: u64) -> Result<Vec<[u64; 2]>, Errno> {
    let own = |not: u64| Arguments {
        inverted: not,
        mask: not,
        any: IS_PRESENT | IS_SWAPPED,
        told: IS_PRESENT,
        ..Arguments::default()
    };
    let not = IS_FILE | IS_ZERO;
    match scan(map, start, end, own(not | IS_GUARD)) {
        // The kernel does not know guard pages, or does not tell them.
        Err(Errno::EINVAL) => scan(map, start, end, own(not)),
        Err(Errno::ENOTTY) => read(map, start, end),
        other => other,
    }
}

/// Address and length of the guard pages (MADV_GUARD_INSTALL) between `start` and `end`.
pub(crate) fn guards(map: &File, start: u64, end: u64) -> Result<Vec<[u64; 2]>, Errno> {
    let guards = Arguments { mask: IS_GUARD, told: IS_GUARD, ..Arguments::default() };
    match scan(map, start, end, guards) {
        // The kernel knows no such pages, or does not tell them.
        Err(Errno::ENOTTY | Errno::EINVAL) => Ok(Vec::new()),
        other => other,
    }
}

/// Address and length of what was written between `start` and `end` since [`forget_written`], or has no page now; `None`
/// where nobody remembers that (userfaultfd, 6.7). What is not told is as it was then.
pub(crate) fn written(map: &File, start: u64, end: u64) -> Result<Option<Vec<[u64; 2]>>, Errno> {
    // With these words alone the kernel has a way that is fifty times as fast.
    let written = Arguments { flags: REMEMBERED, mask: IS_WRITTEN, told: IS_WRITTEN, ..Arguments::default() };
    match scan(map, start, end, written) {
        Err(Errno::EPERM) => Ok(None),
        other => other.map(Some),
    }
}

/// From now on the process's own pages between `start` and `end` count as not written. Those that are not there, or
/// only zero, go on as written ones: no tables are made for untouched memory.
pub(crate) fn forget_written(map: &File, start: u64, end: u64) -> Result<(), Errno> {
    let not = IS_FILE | IS_ZERO;
    let own = Arguments {
        flags: PROTECT | REMEMBERED,
        inverted: not,
        mask: not | IS_WRITTEN,
        any: IS_PRESENT | IS_SWAPPED,
        told: IS_WRITTEN,
        ..Arguments::default()
    };
    scan(map, start, end, own).map(drop)
}

fn scan(map: &File, start: u64, end: u64, what: Arguments) -> Result<Vec<[u64; 2]>, Errno> {
    let mut runs: Vec<[u64; 2]> = Vec::new();
    let mut regions = vec![Region::default(); 1024];
    let mut at = start;
    while at < end {
        let mut arguments = Arguments {
            size: size_of::<Arguments>() as u64,
            start: at,
            end,
            regions: regions.as_mut_ptr().expose_provenance() as u64,
            count: regions.len() as u64,
            ..what
        };
        // SAFETY: both structures live through the call and may be written, and the count is that of the regions.
        let found = unsafe { libc::ioctl(map.as_raw_fd(), SCAN, &raw mut arguments) };
        let found = usize::try_from(Errno::result(found)?).unwrap_or(0);
        for region in regions.get(..found).unwrap_or(&[]) {
            append(&mut runs, region.start, region.end);
        }
        if arguments.walk_end <= at {
            return Err(Errno::EIO);
        }
        at = arguments.walk_end;
    }
    Ok(runs)
}

fn append(runs: &mut Vec<[u64; 2]>, start: u64, end: u64) {
    match runs.last_mut() {
        Some([address, length]) if *address + *length == start => *length += end - start,
        _ => runs.push([start, end - start]),
    }
}

/// Without PAGEMAP_SCAN: bit 63 present, 62 swapped, 61 a page of a file. Untouched zero pages count as own here; they
/// are found by their content later.
fn read(map: &File, start: u64, end: u64) -> Result<Vec<[u64; 2]>, Errno> {
    let mut runs = Vec::new();
    let mut at = start;
    let mut buffer = vec![0_u8; 64 * 1024];
    while at < end {
        let count = usize::try_from((end - at) / PAGE).unwrap_or(usize::MAX).min(buffer.len() / 8);
        let part = buffer.get_mut(..count * 8).ok_or(Errno::EINVAL)?;
        map.read_exact_at(part, at / PAGE * 8)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        for word in part.chunks_exact(8) {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            if word >> 62 != 0 && word & (1 << 61) == 0 {
                append(&mut runs, at, at + PAGE);
            }
            at += PAGE;
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways find the pages that were written, and none that never was.
    #[test]
    fn written_pages_are_found_either_way() {
        let mut memory = vec![0_u8; 4 << 20];
        let start = (memory.as_ptr().addr() as u64).next_multiple_of(2 << 20);
        let first = usize::try_from(start).unwrap() - memory.as_ptr().addr();
        for page in [3, 4, 9] {
            memory[first + page * 4096] = 1;
        }
        let map = File::open("/proc/self/pagemap").unwrap();
        let end = start + (1 << 20);
        let holds = |runs: &[[u64; 2]], page: u64| {
            let address = start + page * PAGE;
            runs.iter().any(|[from, length]| *from <= address && address < from + length)
        };
        for runs in [own_pages(&map, start, end).unwrap(), read(&map, start, end).unwrap()] {
            assert!([3, 4, 9].into_iter().all(|page| holds(&runs, page)), "{runs:x?}");
            // Where the memory is one huge page all of it was written.
            assert!(!holds(&runs, 200) || runs == [[start, 1 << 20]], "{runs:x?}");
            assert!(runs.windows(2).all(|two| two[0][0] + two[0][1] < two[1][0]), "{runs:x?}");
        }
        assert_eq!(guards(&map, start, end).unwrap(), Vec::<[u64; 2]>::new());
        std::hint::black_box(&memory);
    }
}
