//! The test run: everything that has to hold before a change may stay.

use std::fs;
use std::path::Path;

use crate::shell::{command, run, target};
use crate::{Result, host, image};

/// Prepares the host, then checks format and lints and runs the tests. The last line tells the engines that a test
/// really saved and brought back something with.
pub(crate) fn everything() -> Result<()> {
    host::prepare()?;
    let images = image::make()?;
    let record = target()?.join("stasis-tests/engines");
    fs::write(&record, "").map_err(|why| format!("cannot write {}: {why}", record.display()))?;
    run(&mut command(&["cargo", "fmt", "--all", "--check"]))?;
    run(&mut command(&["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let required = std::env::var("STASIS_TESTS_REQUIRE").unwrap_or_default();
    let mut tests = command(&["cargo", "test", "--workspace", "--no-fail-fast"]);
    tests.env("STASIS_TESTS_IMAGES", &images).env("STASIS_TESTS_RECORD", &record);
    tests.env("STASIS_TESTS_REQUIRE", format!("image,{required}"));
    let tested = run(&mut tests);
    let exercised = engines(&record);
    println!("engines exercised: {}", if exercised.is_empty() { why_none() } else { exercised.join(", ") });
    tested?;
    let wanted = required.split(',').filter(|name| ["dmtcp", "criu", "native"].contains(name));
    let lacking: Vec<&str> =
        wanted.filter(|name| !exercised.iter().any(|line| line.starts_with(name))).collect();
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(format!("required, but not exercised: {}", lacking.join(", ")))
    }
}

/// The lines that tests wrote after a capture and a restart, each once.
fn engines(record: &Path) -> Vec<String> {
    let mut lines: Vec<String> =
        fs::read_to_string(record).unwrap_or_default().lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    lines
}

fn why_none() -> String {
    if crate::shell::on_path("dmtcp_launch") {
        "none (dmtcp_launch is there, but no test brought anything back)".to_owned()
    } else {
        "none (dmtcp_launch not found)".to_owned()
    }
}
