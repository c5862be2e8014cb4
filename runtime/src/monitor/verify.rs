//! Whether the content of a generation is what was saved: looked at before the application runs, or behind its start.

use crate::error::{Error, FATAL, Result};
use crate::monitor::Teller;
use crate::monitor::live::{Live, Phase, State};
use crate::monitor::order::Verify;
use crate::store::Generation;
use stasis_plugin_api::capability::VERIFY_BEHIND;
use stasis_plugin_api::descriptor::Descriptor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Nobody is told how far something is that takes no longer: the telling would take a part of it.
const SHORT: Duration = Duration::from_millis(50);

/// Whether a restart can be planned before the content has been compared.
pub(super) fn may_plan_first(verify: Verify, descriptor: &Descriptor) -> bool {
    match verify {
        Verify::Before => false,
        Verify::Behind => true,
        Verify::Auto => descriptor.capabilities.iter().any(|id| id == VERIFY_BEHIND),
    }
}

/// Compares everything that cannot wait.
///
/// # Errors
/// The first file that is not what was saved.
pub(super) fn before(generation: &Generation, behind: &[PathBuf], teller: &dyn Teller) -> Result<()> {
    let wanted = |file: &Path| !behind.iter().any(|waits| waits == file);
    let begun = Instant::now();
    let mut tell = |done, total| {
        if begun.elapsed() >= SHORT {
            teller.progress(done, total, "verifying");
        }
    };
    Ok(generation.verify_content(&wanted, &mut tell)?)
}

/// An error of a restart whose content was not all compared: what is damaged is why, and is told instead.
pub(super) fn or_damage(generation: Option<&Generation>, behind: &[PathBuf], error: Error) -> Error {
    let Some(generation) = generation.filter(|_| !behind.is_empty()) else { return error };
    let wanted = |file: &Path| behind.iter().any(|waits| waits == file);
    match generation.verify_content(&wanted, &mut |_, _| {}) {
        Err(damage) => damage.into(),
        Ok(()) => error,
    }
}

/// What is left to be compared of a generation that was brought back. A difference ends everything inside, and until it is
/// through nothing is saved, and no end of the application's own is told.
#[derive(Debug)]
pub struct Comparison {
    generation: Generation,
    files: Vec<PathBuf>,
}

impl Comparison {
    /// Of these files, where there are some.
    pub(super) fn due(live: &Live, generation: Generation, files: Vec<PathBuf>) -> Option<Self> {
        if files.is_empty() {
            return None;
        }
        live.change(|s| s.verifying = true);
        Some(Self { generation, files })
    }

    /// Makes it, and settles what follows from it.
    pub(super) fn make(&self, live: &Live) {
        let wanted = |file: &Path| self.files.iter().any(|waits| waits == file);
        let verified = self.generation.verify_content(&wanted, &mut |_, _| {});
        live.change(|s| {
            s.verifying = false;
            if let Err(error) = verified {
                let number = self.generation.number();
                s.reason = Some(format!("generation {number} was brought back, and {error}"));
                s.exit_code = Some(FATAL);
                s.damaged = true;
                s.phase = s.phase.max(Phase::Ending);
            }
        });
    }
}

/// Waits until what was brought back is known to be what was saved, or the application ends.
pub(super) fn wait(live: &Live, teller: &dyn Teller) {
    live.change(|s| s.comparison_wanted = true);
    let through = |s: &State| !s.verifying || s.phase >= Phase::Ending;
    while !live.wait(Some(Instant::now() + Duration::from_millis(200)), through) {
        teller.progress(0, 0, "waiting for the verification of what was brought back");
    }
}
