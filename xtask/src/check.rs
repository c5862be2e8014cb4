//! The test run: everything that has to hold before a change may stay.

use std::fs;
use std::path::Path;

use crate::criu::{self, Criu};
use crate::shell::{command, on_path, run, target};
use crate::{Result, dist, host, image, programs};

/// Prepares the host, then checks format and lints, runs the tests and tries the tarball. The last line tells the
/// engines that a test really saved and brought back something with.
pub(crate) fn everything() -> Result<()> {
    host::prepare_tests()?;
    let images = image::make()?;
    let required = std::env::var("STASIS_TESTS_REQUIRE").unwrap_or_default();
    let required: Vec<&str> = required.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Err(why) = programs::make(&images) {
        if required.contains(&"programs") {
            return Err(format!("programs is required by STASIS_TESTS_REQUIRE, but {why}"));
        }
        eprintln!("tests of programs such as Node and nginx will be skipped: {why}");
    }
    let criu = criu::find_or_fetch();
    if let Err(why) = &criu {
        if required.contains(&"criu") {
            return Err(format!("criu is required by STASIS_TESTS_REQUIRE, but {why}"));
        }
        eprintln!("going on without CRIU: {why}");
    }
    let record = target()?.join("stasis-tests/engines");
    fs::write(&record, "").map_err(|why| format!("cannot write {}: {why}", record.display()))?;
    run(&mut command(&["cargo", "fmt", "--all", "--check"]))?;
    run(&mut command(&["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let tested = tests(&images, &record, criu.as_ref().ok(), &required).and_then(|()| dist::check());
    let exercised = engines(&record);
    if !on_path("dmtcp_launch") {
        println!("not exercised: dmtcp: dmtcp_launch is not on PATH");
    }
    if let Err(why) = criu {
        println!("not exercised: criu: {why}");
    }
    let shown = if exercised.is_empty() { "none".to_owned() } else { exercised.join(", ") };
    println!("engines exercised: {shown}");
    tested?;
    let wanted = required.iter().filter(|name| ["dmtcp", "criu", "native"].contains(name));
    let lacking: Vec<&str> =
        wanted.filter(|name| !exercised.iter().any(|line| line.starts_with(*name))).copied().collect();
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(format!("required, but not exercised: {}", lacking.join(", ")))
    }
}

/// Runs every test, with what we have made for them.
fn tests(images: &Path, record: &Path, criu: Option<&Criu>, required: &[&str]) -> Result<()> {
    let criu = criu.map(Criu::for_every_user).transpose()?.flatten();
    let mut tests = command(&["cargo", "test", "--workspace", "--no-fail-fast"]);
    tests.env("STASIS_TESTS_IMAGES", images).env("STASIS_TESTS_RECORD", record);
    tests.env("STASIS_TESTS_REQUIRE", format!("image,{}", required.join(",")));
    match &criu {
        Some(shared) => tests.env("STASIS_TESTS_CRIU", shared.path()),
        // Left to what is on PATH.
        None => tests.env_remove("STASIS_TESTS_CRIU"),
    };
    run(&mut tests)
}

/// The lines that tests wrote after a capture and a restart, each once.
fn engines(record: &Path) -> Vec<String> {
    let mut lines: Vec<String> =
        fs::read_to_string(record).unwrap_or_default().lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    lines
}
