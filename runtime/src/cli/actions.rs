//! `exec`, `run` and `shell`: what can be typed, and the container that is served until it ends.

use crate::cli::action_args::ActionArgs;
use crate::cli::compat::CompatArgs;
use crate::cli::images::sources;
use crate::cli::teller::Terminal;
use crate::cli::wanted::Wanted;
use crate::cli::{Session, considered, join, others, output, report};
use crate::error::{Error, Result};
use crate::monitor::control::RestartedFrom;
use crate::monitor::foreground::Foreground;
use crate::monitor::{begin, direct, serve};
use crate::spec::resolve::Action;
use clap::Args;
use std::sync::Arc;

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    compat: CompatArgs,
    #[arg(help = concat!("The image: ", sources!(), "; instance://NAME, or - for the recorded image of a restart"))]
    image: String,
    /// The command and its arguments; none at a restart
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    compat: CompatArgs,
    #[arg(help = concat!("The image: ", sources!(), "; instance://NAME, or - for the recorded image of a restart"))]
    image: String,
    /// Arguments of the runscript
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// `shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    compat: CompatArgs,
    #[arg(help = concat!("The image: ", sources!(), "; instance://NAME, or - for the recorded image of a restart"))]
    image: String,
}

/// Runs `exec`.
///
/// # Errors
/// Why the command was not started.
pub fn exec(session: &Session, args: ExecArgs) -> Result<i32> {
    let action = Action::Exec { argv: args.command };
    foreground(
        session,
        Wanted { action, args: args.action, compat: args.compat, image: args.image, name: None },
    )
}

/// Runs `run`.
///
/// # Errors
/// Why the command was not started.
pub fn run(session: &Session, args: RunArgs) -> Result<i32> {
    let action = Action::Run { args: args.args };
    foreground(
        session,
        Wanted { action, args: args.action, compat: args.compat, image: args.image, name: None },
    )
}

/// Runs `shell`.
///
/// # Errors
/// Why the command was not started.
pub fn shell(session: &Session, args: ShellArgs) -> Result<i32> {
    foreground(
        session,
        Wanted {
            action: Action::Shell,
            args: args.action,
            compat: args.compat,
            image: args.image,
            name: None,
        },
    )
}

fn foreground(session: &Session, wanted: Wanted) -> Result<i32> {
    if let Some(name) = wanted.image.strip_prefix("instance://") {
        return join::join(session, name, &wanted.action, &wanted.args);
    }
    if wanted.args.dry_run {
        return considered::show(session, wanted).map(|()| 0);
    }
    let (order, ready) = considered::plan(session, wanted)?;
    if !order.spec.init {
        return direct::run(order, ready.image, ready.kept.is_some());
    }
    // Before any thread exists, so that all of them leave these signals to the main one.
    let signals = serve::signals(true)?;
    let teller = Arc::new(Terminal::default());
    let mut begun =
        begin::begin(&order, ready, &*teller).map_err(|error| others::named(session, &order, error))?;
    if let Some(from) = &begun.restarted {
        report::info(restarted_line(from));
    } else if let Some(engine) = &begun.live.engine {
        report::info(format!(
            "instance \"{}\" can be saved into checkpoint \"{}\"",
            begun.live.name,
            engine.checkpoint.name()
        ));
    }
    let mut side = Foreground::new(&mut begun, teller)?;
    let outcome = serve::serve(begun, &signals, Some(&mut side));
    side.finish();
    match (&outcome.reason, outcome.exit_code) {
        (Some(reason), _) if outcome.damaged => {
            let error = Error::new(reason)
                .help("choose an older generation; what the application did since is of no use");
            return Ok(report::fatal(&error).into());
        }
        (Some(reason), None) => report::warning(reason),
        (Some(reason), Some(_)) => report::info(reason),
        (None, _) => {}
    }
    Ok(outcome.code())
}

/// The line that tells what was brought back.
pub fn restarted_line(from: &RestartedFrom) -> String {
    format!("generation {} (saved {}) of {}", from.generation, output::age(&from.created), from.image)
}
