//! One of a restart, a capture and what works behind a restart at a time: a process has one tracer.

use crate::sys::process::asked_to_end;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer than any step takes that works behind a restart.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(2);

/// Held until it is dropped, or its holder dies.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "it is held, not used")] File);

impl Lock {
    /// Waits for it, at most so long.
    pub(crate) fn take(path: &Path, patience: Duration) -> Result<Self> {
        let failed = |error: &std::io::Error| {
            BackendError::failed(format!("{} cannot be locked", path.display())).because(error)
        };
        let file = File::options().create(true).append(true).open(path).map_err(|error| failed(&error))?;
        let until = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(failed(&error)),
                Err(TryLockError::WouldBlock) if asked_to_end() => {
                    return Err(BackendError::new(kind::CANCELLED, "the engine was told to end"));
                }
                Err(TryLockError::WouldBlock) if Instant::now() > until => {
                    let what = "another step of the engine is under way in the container";
                    return Err(BackendError::new(kind::TIMED_OUT, what).help("try again"));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
        }
    }
}
