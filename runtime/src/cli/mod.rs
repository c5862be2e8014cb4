//! The command line: what can be typed, and which file serves it. Only here is anything printed.

pub mod action_args;
pub mod actions;
mod again;
mod back;
pub mod backend;
pub mod build;
pub mod checkpoint;
pub mod compat;
mod considered;
pub mod engine;
pub mod generated;
pub mod gpu;
pub mod images;
pub mod inspect;
pub mod instance;
pub mod join;
pub mod others;
pub mod output;
pub mod report;
pub mod teller;
mod wanted;

use crate::config::{Context, Settings};
use crate::error::{Error, Result};
use crate::instance::{Host, Instances};
use crate::store::Store;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::PathBuf;

/// Runs applications in containers, saves their whole running state while they run, and brings them
/// back later.
#[derive(Debug, Parser)]
#[command(name = "stasis", version, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Take this file instead of the administrator's and your own plugins.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global")]
    config: Option<PathBuf>,
    /// Print what happens inside
    #[arg(long, global = true, help_heading = "Global")]
    debug: bool,
    /// The same
    // Not after the command: `-d` is the definition file of `inspect` there, as in Apptainer.
    #[arg(short = 'd', help_heading = "Global")]
    debug_too: bool,
    /// Only warnings and errors
    #[arg(short, long, global = true, help_heading = "Global")]
    quiet: bool,
    /// Only errors
    // Not after the command: `-s` is the signal of `instance stop` there, as in Apptainer.
    #[arg(short, long, help_heading = "Global")]
    silent: bool,
    /// More than usual
    #[arg(short, long, global = true, help_heading = "Global")]
    verbose: bool,
    /// Without colours
    #[arg(long, global = true, help_heading = "Global")]
    nocolor: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a container
    Exec(actions::ExecArgs),
    /// Run the image's runscript in a container
    Run(actions::RunArgs),
    /// Run a shell in a container
    Shell(actions::ShellArgs),
    /// Make an image of a definition file or another image
    Build(build::BuildArgs),
    /// Fetch an image
    Pull(build::PullArgs),
    /// What is kept of images that were fetched or unpacked
    #[command(subcommand)]
    Cache(images::CacheCommand),
    /// Show what an image says about itself
    Inspect(inspect::InspectArgs),
    /// Containers in the background
    #[command(subcommand)]
    Instance(instance::InstanceCommand),
    /// Saved states
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// The engines that save and bring back
    #[command(subcommand)]
    Backend(backend::BackendCommand),
    /// Print a shell's completions, for the shell to read
    Completion(generated::CompletionArgs),
}

/// The commands of which the start is felt. Only the flags of the one that was typed are put together; help and
/// messages come from [`Cli`], for which nobody is in a hurry.
#[derive(Debug, Parser)]
struct Quick {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Start,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Start {
    Exec(actions::ExecArgs),
    Run(actions::RunArgs),
    Shell(actions::ShellArgs),
    #[command(subcommand)]
    Instance(StartInstance),
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum StartInstance {
    Start(Box<instance::StartArgs>),
    Run(Box<instance::StartArgs>),
}

/// Wherever one of these is among the words it may be the command.
const QUICK: [&str; 4] = ["exec", "run", "shell", "instance"];

fn parse(arguments: &[OsString]) -> std::result::Result<Cli, clap::Error> {
    if arguments.iter().any(|word| QUICK.iter().any(|quick| word == quick))
        && let Ok(Quick { globals, command }) = Quick::try_parse_from(arguments)
    {
        let command = match command {
            Start::Exec(args) => Command::Exec(args),
            Start::Run(args) => Command::Run(args),
            Start::Shell(args) => Command::Shell(args),
            Start::Instance(command) => Command::Instance(match command {
                StartInstance::Start(args) => instance::InstanceCommand::Start(args),
                StartInstance::Run(args) => instance::InstanceCommand::Run(args),
            }),
        };
        return Ok(Cli { globals, command });
    }
    Cli::try_parse_from(arguments)
}

/// What every command may need; each part is made when it is first asked for.
#[derive(Debug)]
pub struct Session {
    /// The flags of every command.
    pub globals: Globals,
    /// Who and where we are.
    pub context: Context,
    settings: OnceCell<Settings>,
}

impl Session {
    /// The configuration, which is read once and the same for all of a command.
    ///
    /// # Errors
    /// What is wrong in a file.
    pub fn settings(&self) -> Result<&Settings> {
        if let Some(settings) = self.settings.get() {
            return Ok(settings);
        }
        let settings = Settings::load(&self.context, self.globals.config.as_deref())?;
        for note in &settings.notes {
            report::verbose(note);
        }
        Ok(self.settings.get_or_init(|| settings))
    }

    /// The checkpoints.
    ///
    /// # Errors
    /// Why they cannot be reached.
    pub fn store(&self) -> Result<Store> {
        Ok(Store::open(&self.context.data_root()?)?)
    }

    /// The instances.
    ///
    /// # Errors
    /// Why they cannot be reached.
    pub fn instances(&self) -> Result<Instances> {
        Ok(Instances::open(&self.context.data_root()?, Host::from_kernel()?))
    }
}

/// The command. Returns its exit code.
pub fn main(arguments: Vec<OsString>) -> i32 {
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error),
    };
    let g = &cli.globals;
    let debug = g.debug || g.debug_too;
    report::configure(report::Verbosity::from_flags(g.quiet, g.silent, g.verbose, debug), g.nocolor);
    if debug {
        let shown =
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG);
        // A second subscriber cannot be there; if it were, it would do.
        let _ = shown.try_init();
    }
    match run(cli) {
        Ok(code) => code,
        Err(error) => i32::from(report::fatal(&error)),
    }
}

/// What packages bring along; see `generated`. Returns the exit code.
pub(crate) fn write_man_pages(dir: Option<&OsString>) -> i32 {
    match generated::man_pages(dir, Cli::command()) {
        Ok(()) => 0,
        Err(error) => i32::from(report::fatal(&error)),
    }
}

fn run(cli: Cli) -> Result<i32> {
    let session =
        Session { globals: cli.globals, context: Context::from_process()?, settings: OnceCell::new() };
    match cli.command {
        Command::Exec(args) => actions::exec(&session, args),
        Command::Run(args) => actions::run(&session, args),
        Command::Shell(args) => actions::shell(&session, args),
        Command::Build(args) => build::run(&session, &args).map(|()| 0),
        Command::Pull(args) => build::pull(&session, &args).map(|()| 0),
        Command::Cache(command) => images::run_cache(&session, &command).map(|()| 0),
        Command::Inspect(args) => inspect::run(&session, &args).map(|()| 0),
        Command::Instance(command) => instance::run(&session, command),
        Command::Checkpoint(command) => checkpoint::run(&session, command).map(|()| 0),
        Command::Backend(command) => backend::run(&session, command),
        Command::Completion(args) => generated::completion(&args, Cli::command()).map(|()| 0),
    }
}

/// What clap says, in Apptainer's exit codes; a flag or a command of Apptainer's that we lack is refused by name.
fn misunderstood(error: &clap::Error) -> i32 {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Into a closed pipe nothing can be printed, and nothing has to be.
        let _ = error.print();
        return 0;
    }
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    let refused = match error.kind() {
        ErrorKind::UnknownArgument => word(ContextKind::InvalidArg)
            .and_then(|argument| argument.split(['=', ' ']).next())
            .and_then(action_args::refused),
        ErrorKind::InvalidSubcommand => {
            word(ContextKind::InvalidSubcommand).and_then(action_args::refused_command)
        }
        _ => None,
    };
    if let Some(message) = refused {
        return i32::from(report::fatal(&Error::usage(message)));
    }
    let _ = error.print();
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_do_not_contradict_each_other() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        <Quick as clap::CommandFactory>::command().debug_assert();
    }

    /// The quick way may only take what the whole one takes too, and has to understand it alike.
    #[test]
    fn both_ways_of_reading_understand_the_same() {
        for line in [
            "stasis exec image true",
            "stasis -q --config file exec -B /a:/b -C --env A=1 -s image sh -c exec",
            "stasis exec -d image --nocolor",
            "stasis run --checkpoint kept --backend auto image --verbose",
            "stasis shell --restart kept@3 -",
            "stasis instance run image name exec",
            "stasis --quiet instance start --restart kept -B /a image name --nocolor",
            "stasis instance start image",
            "stasis instance start --help",
            "stasis instance list --json",
            "stasis instance",
            "stasis exec",
            "stasis exec --help",
            "stasis exec --no-such image true",
            "stasis shell image more",
            "stasis --version exec",
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let said = |read: std::result::Result<Cli, clap::Error>| match read {
                Ok(cli) => format!("{cli:?}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(said(parse(&words)), said(Cli::try_parse_from(&words)), "{line}");
        }
    }
}
