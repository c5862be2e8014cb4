//! The figures: kept run by run, told as medians.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::place::Options;

/// One figure, taken several times.
#[derive(Debug, Serialize)]
struct Figure {
    /// What was measured.
    what: String,
    /// Of whom.
    who: String,
    /// Memory of the program, where it matters.
    mebibytes: Option<u64>,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    /// In the order in which they were taken.
    runs_ms: Vec<f64>,
    /// The median as a multiple of the peer's.
    times_peer: Option<f64>,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    host: BTreeMap<&'static str, String>,
    runs: usize,
    figures: Vec<Figure>,
    /// What could not be measured, and why.
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let host = BTreeMap::from([
            ("kernel", read("/proc/sys/kernel/osrelease")),
            ("cpus", cpus.to_string()),
            ("load", read("/proc/loadavg")),
            ("arch", std::env::consts::ARCH.to_owned()),
        ]);
        Self { host, runs: options.runs, figures: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure from its runs.
    pub(crate) fn add(&mut self, what: &str, who: &str, mebibytes: Option<u64>, runs: &[Duration]) {
        let runs_ms: Vec<f64> = runs.iter().map(|run| run.as_secs_f64() * 1e3).collect();
        let mut sorted = runs_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max), Some(median)) = (sorted.first(), sorted.last(), middle(&sorted)) else {
            return;
        };
        eprintln!(
            "{what}, {who}{}: {median:.1} ms",
            mebibytes.map(|m| format!(", {m} MiB")).unwrap_or_default()
        );
        self.figures.push(Figure {
            what: what.to_owned(),
            who: who.to_owned(),
            mebibytes,
            median_ms: median,
            min_ms: *min,
            max_ms: *max,
            runs_ms,
            times_peer: None,
        });
    }

    /// Compares a figure with that of a peer, of which both are there.
    pub(crate) fn beside(&mut self, what: &str, who: &str, peer: &str) {
        let find = |whose: &str| self.figures.iter().position(|f| f.what == what && f.who == whose);
        if let (Some(ours), Some(theirs)) = (find(who), find(peer)) {
            let theirs = self.figures[theirs].median_ms;
            self.figures[ours].times_peer = (theirs > 0.0).then(|| self.figures[ours].median_ms / theirs);
        }
    }

    /// Says what is missing.
    pub(crate) fn note(&mut self, text: String) {
        eprintln!("{text}");
        self.notes.push(text);
    }

    /// The figures for a person, as a Markdown table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let host =
            self.host.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "{host}; medians of {} runs, milliseconds\n", self.runs);
        let _ = writeln!(
            out,
            "| {:<34} | {:<28} | {:>5} | {:>8} | {:>8} | {:>8} | {:>7} |",
            "what", "who", "MiB", "median", "min", "max", "/ bwrap"
        );
        let _ = writeln!(
            out,
            "|{:-<36}|{:-<30}|{:->7}|{:->10}|{:->10}|{:->10}|{:->9}|",
            "", "", "", "", "", "", ""
        );
        for figure in &self.figures {
            let size = figure.mebibytes.map(|m| m.to_string()).unwrap_or_default();
            let times = figure.times_peer.map(|times| format!("{times:.2}")).unwrap_or_default();
            let Figure { what, who, median_ms, min_ms, max_ms, .. } = figure;
            let _ = writeln!(
                out,
                "| {what:<34} | {who:<28} | {size:>5} | {median_ms:>8.1} | {min_ms:>8.1} | {max_ms:>8.1} | {times:>7} |"
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "\n{note}");
        }
        out
    }

    /// The figures for a program.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|why| why.to_string())?;
        std::fs::write(file, text + "\n").map_err(|why| format!("cannot write {}: {why}", file.display()))
    }
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = sorted.get(half)?;
    if sorted.len() % 2 == 1 { Some(*upper) } else { Some((sorted.get(half - 1)? + upper) / 2.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(middle(&[]), None);
        assert_eq!(middle(&[3.0]), Some(3.0));
        assert_eq!(middle(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(middle(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }

    #[test]
    fn the_table_tells_what_was_measured() {
        let options = Options::parse(&["--runs".to_owned(), "3".to_owned()]).unwrap();
        let mut report = Report::new(&options);
        let runs = [9, 1, 2].map(Duration::from_millis);
        report.add("start of true", "stasis", None, &runs);
        report.add("start of true", "peer", None, &[Duration::from_millis(4)]);
        report.beside("start of true", "stasis", "peer");
        report.beside("start of true", "nobody", "peer");
        report.note("nobody else is here".to_owned());
        let table = report.table();
        let line = table.lines().find(|line| line.contains("start of true")).unwrap();
        assert_eq!(line.split('|').map(str::trim).collect::<Vec<_>>()[4..8], ["2.0", "1.0", "9.0", "0.50"]);
        assert!(table.contains("medians of 3 runs") && table.contains("nobody else is here"));
    }
}
