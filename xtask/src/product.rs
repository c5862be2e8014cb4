//! What this workspace makes for users: the program and its backends.

use std::fs;
use std::path::PathBuf;

use crate::Result;
use crate::shell::{command, run, target, workspace};

/// How it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As for tests: quick to make.
    Dev,
    /// As users get it.
    Release,
}

/// The names of the backends: every folder of `backends/`. Their packages are called `stasis-NAME`, their libraries
/// `libstasis_NAME.so`.
pub(crate) fn backends() -> Result<Vec<String>> {
    let dir = workspace()?.join("backends");
    let entries = fs::read_dir(&dir).map_err(|why| format!("cannot read {}: {why}", dir.display()))?;
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let members = folders.filter(|folder| folder.join("Cargo.toml").is_file());
    let mut names: Vec<String> =
        members.filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned())).collect();
    names.sort();
    Ok(names)
}

/// The library of a backend.
pub(crate) fn library(backend: &str) -> String {
    format!("libstasis_{backend}.so")
}

/// Builds the program and these backends; returns the directory in which they lie.
pub(crate) fn build(profile: Profile, backends: &[String]) -> Result<PathBuf> {
    let mut build = command(&["cargo", "build", "--quiet", "--package", "stasis"]);
    for backend in backends {
        build.arg("--package").arg(format!("stasis-{backend}"));
    }
    if profile == Profile::Release {
        build.arg("--release");
    }
    run(&mut build)?;
    Ok(target()?.join(if profile == Profile::Release { "release" } else { "debug" }))
}
