//! The clocks that count from a machine's start, which a program may not see go back.
//!
//! Deadlines that a program holds (of `asyncio`, of a `Condvar`, of Go's timers) are times of `CLOCK_MONOTONIC`. On
//! another machine, or after a reboot, that clock may be days behind, and whoever waits would wait so long. A time
//! namespace lets the clocks of what is brought back go on from where they were.

use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// `CLONE_NEWTIME`, which nix does not name.
const NEW_TIME: i32 = 0x80;
const SECOND: i64 = 1_000_000_000;
/// What the kernel tells and takes: the distance to the machine's own clocks of those who are made from now on.
const OFFSETS: &str = "/proc/self/timens_offsets";

/// What the clocks show, or how far they are from others, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`, which stands still while the machine sleeps.
    pub monotonic_ns: i64,
    /// `CLOCK_BOOTTIME`, which does not.
    pub boottime_ns: i64,
}

impl Clocks {
    /// What this process sees.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn now() -> io::Result<Self> {
        let read = |clock| clock_gettime(clock).map(|t| t.tv_sec().saturating_mul(SECOND) + t.tv_nsec());
        Ok(Self {
            monotonic_ns: read(ClockId::CLOCK_MONOTONIC)?,
            boottime_ns: read(ClockId::CLOCK_BOOTTIME)?,
        })
    }

    /// With an offset added to it.
    #[must_use]
    pub const fn plus(self, offset: Self) -> Self {
        Self {
            monotonic_ns: self.monotonic_ns.saturating_add(offset.monotonic_ns),
            boottime_ns: self.boottime_ns.saturating_add(offset.boottime_ns),
        }
    }

    /// How far these are ahead of `other`.
    #[must_use]
    pub const fn ahead_of(self, other: Self) -> Self {
        Self {
            monotonic_ns: self.monotonic_ns.saturating_sub(other.monotonic_ns),
            boottime_ns: self.boottime_ns.saturating_sub(other.boottime_ns),
        }
    }

    /// For an offset: whether who was given it would see a clock go back without it.
    pub const fn is_ahead(self) -> bool {
        self.monotonic_ns > 0 || self.boottime_ns > 0
    }

    /// For an offset: the larger of the two, for people.
    pub fn roughly(self) -> String {
        const UNITS: [(i64, &str); 3] = [(86400, "days"), (3600, "hours"), (60, "minutes")];
        let seconds = self.monotonic_ns.max(self.boottime_ns) / SECOND;
        let (unit, name) = UNITS.into_iter().find(|(unit, _)| seconds >= 2 * unit).unwrap_or((1, "s"));
        format!("{} {name}", (seconds + unit / 2) / unit)
    }

    /// From now on the children of this process are in a time namespace whose clocks are this much ahead.
    ///
    /// # Errors
    /// Which step failed: the kernel has no time namespaces, their number is limited, or offsets may not be set.
    pub fn for_children(self) -> Result<(), String> {
        unshare(CloneFlags::from_bits_retain(NEW_TIME))
            .map_err(|e| format!("a time namespace cannot be made: {}", e.desc()))?;
        let set = || -> io::Result<()> {
            // They count from the machine's own clocks, and this process may be in such a namespace itself.
            let here = parse(&std::fs::read_to_string(OFFSETS)?).ok_or(io::ErrorKind::InvalidData)?;
            std::fs::write(OFFSETS, self.plus(here).to_string())
        };
        set().map_err(|e| format!("the clocks of a time namespace cannot be set ({OFFSETS}: {e})"))
    }
}

/// As the kernel takes it.
impl std::fmt::Display for Clocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in [("monotonic", self.monotonic_ns), ("boottime", self.boottime_ns)] {
            writeln!(f, "{name} {} {}", value.div_euclid(SECOND), value.rem_euclid(SECOND))?;
        }
        Ok(())
    }
}

/// As the kernel tells it.
fn parse(text: &str) -> Option<Clocks> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = line.split_whitespace().map(str::parse::<i64>);
        let (seconds, nanoseconds) = (words.next()?.ok()?, words.next()?.ok()?);
        seconds.checked_mul(SECOND)?.checked_add(nanoseconds)
    };
    Some(Clocks { monotonic_ns: value("monotonic")?, boottime_ns: value("boottime")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_as_the_kernel_writes_them() {
        let offsets = Clocks { monotonic_ns: -1_500_000_000, boottime_ns: 2_592_000 * SECOND + 7 };
        assert_eq!(offsets.to_string(), "monotonic -2 500000000\nboottime 2592000 7\n");
        assert_eq!(parse(&offsets.to_string()), Some(offsets));
        let told = "monotonic           -2  500000000\nboottime       2592000          7\n";
        assert_eq!(parse(told), Some(offsets));
        for bad in ["", "monotonic 1\nboottime 2 3\n", "monotonic 1 2\n", "monotonic x 2\nboottime 1 2\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(parse("monotonic 9223372036854775807 0\nboottime 0 0\n"), None);
    }

    #[test]
    fn only_a_clock_that_would_go_back_matters() {
        let (early, late) =
            (Clocks { monotonic_ns: 5, boottime_ns: 9 }, Clocks { monotonic_ns: 7, boottime_ns: 9 });
        assert!(late.ahead_of(early).is_ahead() && !early.ahead_of(late).is_ahead());
        assert_eq!(early.plus(late.ahead_of(early)), late);
        for (seconds, told) in [(0, "0 s"), (119, "119 s"), (7199, "120 minutes"), (2_591_990, "30 days")] {
            let offset = Clocks { monotonic_ns: 0, boottime_ns: seconds * SECOND };
            assert_eq!(offset.roughly(), told);
        }
        let now = Clocks::now().unwrap();
        assert!(!now.ahead_of(Clocks::now().unwrap()).is_ahead());
    }
}
