//! The figures: kept run by run, told as medians.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::place::Options;
use crate::size::Size;

/// One figure, taken several times.
#[derive(Debug, Serialize)]
struct Figure {
    /// What was measured.
    what: String,
    /// Of whom.
    who: String,
    /// Memory of the program, where it matters: N MiB, or KxN, with an h behind it for huge pages.
    size: Option<Size>,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    /// In the order in which they were taken.
    runs_ms: Vec<f64>,
    /// The median as a multiple of the peer's.
    times_peer: Option<f64>,
}

/// How many times as long somebody takes as somebody else.
#[derive(Debug, Serialize)]
struct Ratio {
    what: String,
    who: String,
    beside: String,
    size: Option<Size>,
    median: f64,
    min: f64,
    max: f64,
}

/// The runs of several figures, in the order in which these came up.
#[derive(Debug, Default)]
pub(crate) struct Runs(Vec<(String, String, Vec<Duration>)>);

impl Runs {
    pub(crate) fn add(&mut self, what: &str, who: &str, run: Duration) {
        match self.0.iter_mut().find(|known| known.0 == what && known.1 == who) {
            Some(known) => known.2.push(run),
            None => self.0.push((what.to_owned(), who.to_owned(), vec![run])),
        }
    }

    /// The runs of one figure.
    pub(crate) fn of(&self, what: &str, who: &str) -> &[Duration] {
        self.0.iter().find(|known| known.0 == what && known.1 == who).map_or(&[], |known| &known.2)
    }

    /// Adds all of them, those of one kind together.
    pub(crate) fn tell(&self, size: Option<Size>, report: &mut Report) {
        let mut told: Vec<&str> = Vec::new();
        for (what, ..) in &self.0 {
            if !told.contains(&what.as_str()) {
                told.push(what);
                self.0.iter().filter(|f| f.0 == *what).for_each(|f| report.add(what, &f.1, size, &f.2));
            }
        }
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    host: BTreeMap<&'static str, String>,
    runs: usize,
    figures: Vec<Figure>,
    ratios: Vec<Ratio>,
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
        Self { host, runs: options.runs, figures: Vec::new(), ratios: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure from its runs.
    pub(crate) fn add(&mut self, what: &str, who: &str, size: Option<Size>, runs: &[Duration]) {
        let runs_ms: Vec<f64> = runs.iter().map(|run| run.as_secs_f64() * 1e3).collect();
        let Some([median, min, max]) = spread(&runs_ms) else { return };
        eprintln!("{what}, {who}{}: {median:.1} ms", size.map(|m| format!(", {m} MiB")).unwrap_or_default());
        self.figures.push(Figure {
            what: what.to_owned(),
            who: who.to_owned(),
            size,
            median_ms: median,
            min_ms: min,
            max_ms: max,
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

    /// Adds how many times as long as the others some runs took, round by round: they were taken in turn.
    pub(crate) fn ratio(
        &mut self,
        what: &str,
        who: &str,
        beside: &str,
        [runs, others]: [&[Duration]; 2],
        size: Option<Size>,
    ) {
        let each = runs.iter().zip(others).map(|(run, other)| run.as_secs_f64() / other.as_secs_f64());
        let Some([median, min, max]) = spread(&each.collect::<Vec<_>>()) else { return };
        let [what, who, beside] = [what, who, beside].map(str::to_owned);
        self.ratios.push(Ratio { what, who, beside, size, median, min, max });
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
            let size = figure.size.map(|m| m.to_string()).unwrap_or_default();
            let times = figure.times_peer.map(|times| format!("{times:.2}")).unwrap_or_default();
            let Figure { what, who, median_ms, min_ms, max_ms, .. } = figure;
            let _ = writeln!(
                out,
                "| {what:<34} | {who:<28} | {size:>5} | {median_ms:>8.1} | {min_ms:>8.1} | {max_ms:>8.1} | {times:>7} |"
            );
        }
        if !self.ratios.is_empty() {
            let _ = writeln!(out, "\nHow many times as long as another in the same round\n");
            let _ = writeln!(
                out,
                "| {:<34} | {:<14} | {:<10} | {:>5} | {:>6} | {:>6} | {:>6} |",
                "what", "who", "beside", "MiB", "median", "min", "max"
            );
            let _ = writeln!(
                out,
                "|{:-<36}|{:-<16}|{:-<12}|{:->7}|{:->8}|{:->8}|{:->8}|",
                "", "", "", "", "", "", ""
            );
        }
        for Ratio { what, who, beside, size, median, min, max } in &self.ratios {
            let size = size.map(|m| m.to_string()).unwrap_or_default();
            let _ = writeln!(
                out,
                "| {what:<34} | {who:<14} | {beside:<10} | {size:>5} | {median:>6.2} | {min:>6.2} | {max:>6.2} |"
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

/// Median, least and most.
fn spread(runs: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some([middle(&sorted)?, *sorted.first()?, *sorted.last()?])
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
        let mut taken = Runs::default();
        for (a, b) in [(30, 10), (10, 10), (60, 30)] {
            taken.add("restart", "criu", Duration::from_millis(a));
            taken.add("restart", "bare", Duration::from_millis(b));
        }
        taken.tell(Some(Size::of(64)), &mut report);
        let both = [taken.of("restart", "criu"), taken.of("restart", "bare")];
        report.ratio("restart", "criu", "bare", both, Some(Size::of(64)));
        let table = report.table();
        let line = table.lines().find(|line| line.contains("start of true")).unwrap();
        assert_eq!(line.split('|').map(str::trim).collect::<Vec<_>>()[4..8], ["2.0", "1.0", "9.0", "0.50"]);
        let line = table.lines().rfind(|line| line.contains("restart")).unwrap();
        assert_eq!(line.split('|').map(str::trim).collect::<Vec<_>>()[4..8], ["64", "2.00", "1.00", "3.00"]);
        assert!(table.contains("medians of 3 runs") && table.contains("nobody else is here"));
    }
}
