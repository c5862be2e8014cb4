//! The only writer to stdout: tables, JSON and text that a command was asked for, and the words for sizes
//! and ages. A reader that has gone away is no error.

use super::report::harmless;
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::Serialize;
use std::io::{self, Write};

/// Columns, left aligned, two spaces apart, under a header in upper case.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these column titles.
    #[must_use]
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|title| title.to_uppercase()).collect()] }
    }

    /// Adds a line. Columns without a title are shown all the same.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let clean = |cell: T| -> String { cell.into().chars().map(harmless).collect() };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The table as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// Writes the table.
    ///
    /// # Errors
    /// When stdout cannot be written to.
    pub fn print(&self) -> Result<()> {
        bytes(self.render().as_bytes())
    }
}

/// Writes a value as JSON, indented with tabs as Apptainer does.
///
/// # Errors
/// When the value has no form in JSON or stdout cannot be written to.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    bytes(&to_json(value)?)
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer).map_err(|e| Error::new("cannot put the answer into JSON").because(e))?;
    out.push(b'\n');
    Ok(out)
}

/// Writes a line.
///
/// # Errors
/// When stdout cannot be written to.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    let mut text: String = text.as_ref().to_owned();
    text.push('\n');
    bytes(text.as_bytes())
}

/// Writes bytes as they are: a program's own output.
///
/// # Errors
/// When stdout cannot be written to.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    to(&mut io::stdout().lock(), bytes)
}

fn to(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new("cannot write to standard output").because(error))
        }
        _ => Ok(()),
    }
}

/// A size in bytes for people: `1.5 GiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024.0 is one of the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The age of a time in RFC 3339, for people: `3 min ago`. A text that is no time comes back as it is.
#[must_use]
pub fn age(time: &str) -> String {
    age_at(time, Timestamp::now())
}

fn age_at(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else { return time.to_owned() };
    let seconds = now.as_second().saturating_sub(then.as_second());
    match seconds {
        // Clocks of two hosts differ a little.
        -60..=0 => "just now".to_owned(),
        ..-60 => format!("in the future ({time})"),
        1..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let mut table = Table::new(&["Instance name", "pid", "image"]);
        table.row(["web", "12345", "/images/web.sif"]);
        table.row(["größer\x1b[2J", "1", ""]);
        insta::assert_snapshot!(table.render(), @"
        INSTANCE NAME  PID    IMAGE
        web            12345  /images/web.sif
        größer?[2J     1
        ");
        insta::assert_snapshot!(Table::new(&["name"]).render(), @"NAME");
    }

    #[test]
    fn tab_indented() {
        let text =
            String::from_utf8(to_json(&serde_json::json!({"instances": [{"pid": 1}]})).unwrap()).unwrap();
        assert_eq!(text, "{\n\t\"instances\": [\n\t\t{\n\t\t\t\"pid\": 1\n\t\t}\n\t]\n}\n");
    }

    #[test]
    fn sizes() {
        let shown: Vec<String> =
            [0, 1023, 1024, 1536 << 20, (1 << 20) - 1, u64::MAX].into_iter().map(size).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "1.0 MiB", "16.0 EiB"]);
    }

    #[test]
    fn ages() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let of = |time| age_at(time, now);
        assert_eq!(of("2026-01-31T12:00:30Z"), "just now");
        assert_eq!(of("2026-01-31T11:59:18Z"), "42 s ago");
        assert_eq!(of("2026-01-31T11:56:05Z"), "3 min ago");
        assert_eq!(of("2026-01-30T13:00:00Z"), "23 h ago");
        assert_eq!(of("2025-12-31T12:00:00Z"), "31 days ago");
        assert_eq!(of("2027-12-31T12:00:00Z"), "in the future (2027-12-31T12:00:00Z)");
        assert_eq!(of("yesterday"), "yesterday");
    }

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        to(&mut Fails(io::ErrorKind::BrokenPipe), b"x").unwrap();
        let error = to(&mut Fails(io::ErrorKind::StorageFull), b"x").unwrap_err();
        insta::assert_snapshot!(error, @"cannot write to standard output: no storage space");
    }
}
