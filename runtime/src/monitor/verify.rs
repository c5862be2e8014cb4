//! Whether the content of a generation is what was saved: looked at before the application runs, or behind its start.

use crate::error::{Error, Result};
use crate::monitor::Teller;
use crate::monitor::live::{Live, Phase};
use crate::monitor::order::Verify;
use crate::store::Generation;
use stasis_plugin_api::capability::VERIFY_BEHIND;
use stasis_plugin_api::descriptor::Descriptor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
    let mut tell = |done, total| teller.progress(done, total, "verifying");
    Ok(generation.verify_content(&wanted, &mut tell)?)
}

/// Compares the rest in a thread of its own. A difference ends everything inside, and until it is through nothing is
/// saved.
pub(super) fn behind(live: &Arc<Live>, generation: Generation, files: Vec<PathBuf>) {
    if files.is_empty() {
        return;
    }
    live.change(|s| s.verifying = true);
    let live = Arc::clone(live);
    std::thread::spawn(move || {
        let wanted = |file: &Path| files.iter().any(|waits| waits == file);
        let verified = generation.verify_content(&wanted, &mut |_, _| {});
        if let Err(error) = &verified {
            tracing::error!(%error, "the generation that was brought back is damaged");
            live.end(Some(&format!("generation {} was brought back, and {error}", generation.number())));
        }
        live.change(|s| s.verifying = false);
    });
}

/// Waits until what was brought back is known to be what was saved.
///
/// # Errors
/// It is not.
pub(super) fn wait(live: &Live, teller: &dyn Teller) -> Result<()> {
    while !live.wait(Some(std::time::Instant::now() + Duration::from_millis(200)), |s| !s.verifying) {
        teller.progress(0, 0, "waiting for the verification of what was brought back");
    }
    let state = live.state();
    if state.phase <= Phase::Running {
        return Ok(());
    }
    let ended = Error::new(format!("instance \"{}\" has ended", live.name));
    Err(match &state.reason {
        Some(reason) => ended.because(reason),
        None => ended,
    })
}
