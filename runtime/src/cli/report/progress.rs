//! A bar for what takes longer than a second, on a terminal and nowhere else. It has no thread of its own:
//! it moves when it is told to.

use super::{Verbosity, says};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long nothing is shown.
const PATIENCE: Duration = Duration::from_secs(1);

/// The bar on the terminal, which has to step aside for other lines.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Tells how far something is. Dropping it takes it off the terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    since: Instant,
    wanted: bool,
    shown: bool,
}

impl Progress {
    /// `what` stands before the bar; `total` in bytes, `None` while nobody knows it.
    #[must_use]
    pub fn new(what: impl Into<String>, total: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        let template = match total {
            Some(_) => "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} left",
            None => "{msg} {spinner} {binary_bytes}",
        };
        // A template that indicatif cannot read costs the looks, nothing else.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let what: String = what.into();
        bar.set_message(what.chars().map(super::harmless).collect::<String>());
        let wanted = says(Verbosity::Normal) && io::stderr().is_terminal();
        Self { bar, since: Instant::now(), wanted, shown: false }
    }

    /// So many bytes more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.show();
        self.bar.inc(bytes);
    }

    /// So many bytes are done in all.
    pub fn set(&mut self, bytes: u64) {
        self.show();
        self.bar.set_position(bytes);
    }

    /// So many bytes are done, as counted from the start.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    fn show(&mut self) {
        if self.shown || !self.wanted || self.since.elapsed() < PATIENCE {
            return;
        }
        self.shown = true;
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        if let Ok(mut shown) = SHOWN.lock() {
            *shown = Some(self.bar.clone());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.shown
            && let Ok(mut shown) = SHOWN.lock()
        {
            *shown = None;
        }
    }
}

/// Does `write` with no bar in the way.
pub(super) fn aside(write: impl FnOnce()) {
    match SHOWN.lock() {
        Ok(shown) => match shown.as_ref() {
            Some(bar) => bar.suspend(write),
            None => write(),
        },
        Err(_) => write(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_and_stays_off_what_is_no_terminal() {
        let mut progress = Progress::new("saving\x1b", Some(100));
        progress.wanted = false;
        progress.since = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        progress.advance(10);
        progress.advance(20);
        assert_eq!(progress.position(), 30);
        progress.set(90);
        assert_eq!(progress.position(), 90);
        assert!(!progress.shown && progress.bar.is_hidden());
        assert_eq!(progress.bar.message(), "saving?");
    }

    #[test]
    fn it_waits_before_it_shows_itself() {
        let mut progress = Progress::new("saving", None);
        progress.wanted = true;
        progress.since = Instant::now() + PATIENCE;
        progress.advance(1);
        assert!(!progress.shown);
        progress.since = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        progress.advance(1);
        assert!(progress.shown && SHOWN.lock().unwrap().is_some());
        let mut written = false;
        aside(|| written = true);
        assert!(written);
        drop(progress);
        assert!(SHOWN.lock().unwrap().is_none());
    }
}
