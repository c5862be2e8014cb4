//! One processor for the engine and what it builds. They take turns at every step, and to wake another processor takes
//! longer than most steps do.

use super::memory::How;
use crate::model::{Area, Image};
use crate::sys::{process, task};

/// From so many bytes on the content takes longer than the steps, and the kernel is to choose where it is read.
const MUCH: u64 = 64 << 20;

/// Where it might run before.
#[derive(Debug)]
pub(super) struct Pinned {
    usual: Vec<u64>,
}

impl Pinned {
    /// Keeps this process, and all that it makes, where it runs now. `None` where that cannot be had or is of no use.
    pub(super) fn here(image: &Image, how: How, usual: &[u64]) -> Option<Self> {
        let areas = image.processes.iter().flat_map(|process| &process.areas);
        if how == How::Copy && areas.map(Area::content).fold(0, u64::saturating_add) >= MUCH {
            return None;
        }
        let here = process::processor()?;
        let mut only = vec![0; usual.len()];
        *only.get_mut(here / 64)? = 1_u64 << (here % 64);
        task::set_affinity(0, &only).ok()?;
        Some(Self { usual: usual.to_vec() })
    }

    /// Lets a thread run wherever it might have run: by asking for all processors, where that comes to the same. From Linux
    /// 6.2 on the kernel remembers what was asked for, and whoever has asked for some gets none of those that a control
    /// group is given later.
    pub(super) fn let_go(&self, tid: i32) {
        // The processors may have changed meanwhile; then the kernel has moved it already.
        let _ = task::set_affinity(tid, &vec![u64::MAX; self.usual.len()]);
        if process::affinity(tid).as_ref() != Ok(&self.usual) {
            let _ = task::set_affinity(tid, &self.usual);
        }
    }
}
