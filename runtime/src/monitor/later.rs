//! What has time until that which was started is under way: the end of the worker that started it, and the comparison of
//! what was brought back with what was saved.

use crate::monitor::live::{Live, State, lock};
use crate::monitor::verify::Comparison;
use crate::sys::process;
use crate::worker::Worker;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What was started has the machine for itself so long, unless somebody waits for the comparison: whoever waited for it is
/// being answered. A nice value does not do that where sessions are scheduled as groups (autogroup), nor would it keep a
/// thread that has just been given a processor from using up its slice; a process that ends takes one for a while, too.
const LEAVE: Duration = Duration::from_millis(100);
/// Of the thread that compares, and of those that it starts: the application goes first.
const NICE: i32 = 10;

/// The work, which goes on by itself.
#[derive(Debug)]
pub(super) struct Later(Arc<Work>);

#[derive(Debug)]
struct Work {
    live: Arc<Live>,
    worker: Mutex<Option<Worker>>,
    comparison: Option<Comparison>,
}

impl Later {
    /// Leaves it to a thread.
    pub(super) fn begin(live: &Arc<Live>, worker: Option<Worker>, comparison: Option<Comparison>) -> Self {
        let idle = worker.is_none() && comparison.is_none();
        let work = Arc::new(Work { live: Arc::clone(live), worker: Mutex::new(worker), comparison });
        if !idle {
            let here = Arc::clone(&work);
            let thread = std::thread::Builder::new().spawn(move || {
                here.live.wait(Some(Instant::now() + LEAVE), State::wants_comparison);
                process::nice(NICE);
                here.all();
            });
            if thread.is_err() {
                // The number of tasks is limited: this one does it.
                work.all();
            }
        }
        Self(work)
    }

    /// Ends the worker now, if it is still there: where it works goes.
    pub(super) fn end_worker(&self) {
        self.0.end_worker();
    }
}

impl Work {
    fn all(&self) {
        self.end_worker();
        if let Some(comparison) = &self.comparison {
            comparison.make(&self.live);
        }
    }

    fn end_worker(&self) {
        drop(lock(&self.worker).take());
    }
}
