//! Running other programs: each is shown, and its failure names it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// The root of the workspace.
pub(crate) fn workspace() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).ok_or_else(|| "the workspace has no directory".to_owned())
}

/// Where cargo builds, and where we keep what the tests need.
pub(crate) fn target() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir).map_err(|why| format!("CARGO_TARGET_DIR: {why}")),
        None => Ok(workspace()?.join("target")),
    }
}

/// Runs a command in the workspace with our own stdio.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    println!("$ {shown}");
    let status = command
        .current_dir(workspace()?)
        .stdin(Stdio::null())
        .status()
        .map_err(|why| format!("cannot run {shown}: {why}"))?;
    if status.success() { Ok(()) } else { Err(format!("failed ({status}): {shown}")) }
}

/// What a command writes to its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command.output().map_err(|why| format!("cannot run {shown}: {why}"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(format!("failed ({}): {shown}\n{said}", out.status).trim_end().to_owned());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
}

/// A command given as words.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().copied().unwrap_or("false"));
    command.args(words);
    command
}

/// Removes a tree below the target directory or the temporary one; a missing one is fine.
pub(crate) fn remove(tree: &Path) -> Result<()> {
    output(Command::new("rm").arg("-rf").arg("--").arg(tree)).map(|_| ())
}

/// Makes a directory and those above it.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|why| format!("cannot make {}: {why}", dir.display()))
}

/// Writes a file with these rights.
pub(crate) fn write(file: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(file, text)
        .and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(mode)))
        .map_err(|why| format!("cannot write {}: {why}", file.display()))
}

/// Whether a program is on PATH.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
