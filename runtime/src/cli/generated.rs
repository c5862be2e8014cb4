//! `completion` and the manual pages: what is made of the description of the command line, and so never differs
//! from it.

use crate::cli::output;
use crate::error::{Error, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use std::ffi::OsString;

/// As the first argument: write the manual pages into the directory that the second one names. For whoever makes
/// packages, and therefore no command of the users'.
pub(crate) const MAN_PAGES: &str = "__man";

/// `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// For which shell
    shell: Shell,
}

/// Prints a shell's completions.
///
/// # Errors
/// When stdout cannot be written to.
pub fn completion(args: &CompletionArgs, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "stasis", &mut script);
    output::bytes(&script)
}

/// Writes one manual page for each command.
///
/// # Errors
/// When the directory cannot be written to.
pub(crate) fn man_pages(dir: Option<&OsString>, command: Command) -> Result<()> {
    let dir = dir.ok_or_else(|| Error::usage(format!("{MAN_PAGES} wants a directory to write into")))?;
    clap_mangen::generate_to(command, dir)
        .map_err(|why| Error::new(format!("cannot write manual pages into {}", dir.display())).because(why))
}
