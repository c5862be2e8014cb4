//! What runs beside the monitor's loop: the image's digest, captures at intervals.

use crate::monitor::live::{Live, Phase};
use crate::monitor::{Teller, begin, capture};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Computes the content digest of the image when the start is over, where it is wanted and not known. Ends early when the
/// container does.
pub fn digest(live: &Arc<Live>) -> Option<JoinHandle<()>> {
    if live.state().image.as_ref().is_none_or(|i| i.digest.is_some()) {
        return None;
    }
    let live = Arc::clone(live);
    Some(std::thread::spawn(move || {
        let cancel = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                live.wait(None, |s| {
                    s.phase >= Phase::Gone || s.image.as_ref().is_none_or(|i| i.digest.is_some())
                });
                cancel.store(true, Ordering::Relaxed);
            });
            let started = live.state().image.clone();
            let digest = started.and_then(|image| begin::digest_of(&live.spec, &image, &cancel));
            live.change(|s| match (&mut s.image, digest) {
                (Some(image), Some(digest)) => image.digest = Some(digest),
                // A capture then says that the content could not be read.
                (image, _) => *image = None,
            });
            let _ = watcher.join();
        });
    }))
}

/// Captures every `seconds` until the end. What fails is noted in the log; the next one is tried.
pub fn intervals(live: &Arc<Live>, seconds: u64) -> JoinHandle<()> {
    let live = Arc::clone(live);
    std::thread::spawn(move || {
        let mut next = Instant::now() + Duration::from_secs(seconds);
        while !live.wait(Some(next), |s| s.phase >= Phase::Ending) {
            next = Instant::now() + Duration::from_secs(seconds);
            match capture::capture(&live, false, &[], &Quiet) {
                Ok(saved) => tracing::info!(generation = saved.generation, "saved"),
                Err(error) => tracing::warn!(%error, "a capture at its interval failed"),
            }
        }
    })
}

/// Nobody listens.
pub struct Quiet;

impl Teller for Quiet {
    fn note(&self, text: &str) {
        tracing::info!("{text}");
    }

    fn progress(&self, _: u64, _: u64, _: &str) {}
}
