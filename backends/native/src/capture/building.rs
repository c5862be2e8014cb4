//! What a capture builds on: the generation before, and what is known to have changed since.

use super::Request;
use super::increments::Base;
use super::tracking::Tracking;
use crate::model::{Backing, Image};
use crate::proc::{self, maps};
use crate::refuse;
use stasis_plugin_api::error::Result;
use std::collections::HashMap;
use std::time::Duration;

/// Flags of mappings by their ends, by process.
pub(crate) type Flags = HashMap<i32, maps::Flags>;

/// What a capture builds on.
pub(crate) struct Building {
    pub(crate) tracking: Tracking,
    pub(crate) base: Option<Base>,
    /// As they were just before everybody was stopped: reading them takes long where much memory is in use. Empty where
    /// they are read while everybody stands still.
    pub(crate) flags: Flags,
    /// Flags are read while everybody stands still.
    pub(crate) patient: bool,
}

impl Building {
    pub(crate) fn begin(request: &Request) -> Self {
        let tracking = match request.mailbox {
            Some(mailbox) => Tracking::take(mailbox, request.base.as_deref()),
            None => Tracking::default(),
        };
        let base = tracking.since_base().then(|| Base::read(&request.directory)).flatten();
        Self { tracking, base, flags: Flags::new(), patient: request.stop }
    }

    /// Watches what is not watched: how long everybody stood still for that, and why nobody is watched.
    pub(crate) fn watch(&mut self, request: &Request) -> (Duration, Option<String>) {
        if !request.track || request.mailbox.is_none() {
            return Default::default();
        }
        match self.tracking.watch(request) {
            Ok(pause) => (pause, None),
            // A capture works without, and says itself what stands against it.
            Err(error) => {
                (self.tracking, self.base) = (Tracking::default(), None);
                (Duration::ZERO, Some(error.to_string()))
            }
        }
    }

    pub(crate) fn flags_before(&mut self, request: &Request) -> Result<()> {
        self.flags.clear();
        if self.base.is_some() && !self.patient {
            for pid in refuse::members(request.pid)? {
                self.flags.insert(pid, maps::flags(&proc::read(pid, "smaps").unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// Whether the flags that were read before are those of now. What they were in between they were at both ends.
    pub(crate) fn flags_hold(&self, image: &Image) -> bool {
        image.processes.iter().all(|process| {
            let Some(before) = self.flags.get(&process.pid) else { return true };
            // A process that has ended had no time to change them.
            let Ok(smaps) = proc::read(process.pid, "smaps") else { return true };
            let now = maps::flags(&smaps);
            now.is_empty()
                || process.areas.iter().filter(|area| area.backing != Backing::Vsyscall).all(|area| {
                    let told = before.get(&area.end);
                    told.is_some() && now.get(&area.end).is_none_or(|now| Some(now) == told)
                })
        })
    }

    pub(crate) fn end(self, request: &Request) -> Option<String> {
        let mailbox = request.mailbox.filter(|_| request.track)?;
        self.tracking.put_back(mailbox)
    }
}
