//! News of a long operation, on the terminal.

use crate::cli::report::{self, Progress};
use crate::monitor::Teller;
use std::sync::Mutex;

/// Prints notes, and a bar for steps that take long.
#[derive(Default)]
pub struct Terminal {
    bar: Mutex<Option<(String, Progress)>>,
}

impl Teller for Terminal {
    fn note(&self, text: &str) {
        report::warning(text);
    }

    fn done(&self, text: &str) {
        report::info(text);
    }

    fn progress(&self, done: u64, total: u64, doing: &str) {
        let Ok(mut bar) = self.bar.lock() else { return };
        if bar.as_ref().is_none_or(|(what, _)| what != doing) {
            *bar = Some((doing.to_owned(), Progress::new(doing, (total > 0).then_some(total))));
        }
        if let Some((_, bar)) = bar.as_mut() {
            bar.set(done);
        }
    }
}
