//! `instance start|run|list|stop|logs`.

use crate::cli::action_args::{ActionArgs, parse_duration, signal_number};
use crate::cli::actions::restarted_line;
use crate::cli::compat::CompatArgs;
use crate::cli::images::sources;
use crate::cli::teller::Terminal;
use crate::cli::wanted::Wanted;
use crate::cli::{Session, considered, others, output, report};
use crate::error::{Error, Result};
use crate::instance::{Liveness, Record, Seen};
use crate::monitor::control::{Reply, Request, Started};
use crate::monitor::{self, client, place};
use crate::name::InstanceName;
use crate::spec::resolve::Action;
use crate::store::Store;
use crate::sys::channel::Channel;
use crate::sys::{process, signal};
use clap::{Args, Subcommand};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::time::Duration;

/// `instance`.
#[derive(Debug, Subcommand)]
pub enum InstanceCommand {
    /// Start the image's startscript in the background
    Start(Box<StartArgs>),
    /// Start the image's runscript in the background
    Run(Box<StartArgs>),
    /// What runs, and what became of what ran
    List(ListArgs),
    /// End instances
    Stop(StopArgs),
    /// What an instance printed; after a stop too, until the name is used again
    Logs(LogsArgs),
}

/// `instance start` and `instance run`.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    compat: CompatArgs,
    /// Write the pid of the container's first process into this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<std::path::PathBuf>,
    #[arg(help = concat!("The image: ", sources!(), "; or - for the recorded image of a restart"))]
    image: String,
    /// The instance's name
    name: String,
    /// Arguments of the script
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// `instance list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only names that match, with * and ?
    pattern: Option<String>,
    /// For programs
    #[arg(short, long)]
    json: bool,
    /// Where the logs are
    #[arg(short, long)]
    logs: bool,
}

/// `instance stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Names, with * and ?; instance://NAME is understood too
    pattern: Option<String>,
    /// All of them
    #[arg(short, long)]
    all: bool,
    /// The first signal
    #[arg(short, long, default_value = "INT", value_parser = signal_number)]
    signal: i32,
    /// Killed after this
    #[arg(short, long, default_value = "10", value_parser = parse_duration)]
    timeout: Duration,
    /// Kill at once
    #[arg(short = 'F', long)]
    force: bool,
}

/// `instance logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Which
    name: String,
    /// What went to stderr instead of what went to stdout
    #[arg(short, long)]
    err: bool,
}

/// Runs it.
///
/// # Errors
/// Why it failed.
pub fn run(session: &Session, command: InstanceCommand) -> Result<i32> {
    match command {
        InstanceCommand::Start(args) => start(session, *args, false).map(|()| 0),
        InstanceCommand::Run(args) => start(session, *args, true).map(|()| 0),
        InstanceCommand::List(args) => list(session, &args).map(|()| 0),
        InstanceCommand::Stop(args) => stop(session, &args),
        InstanceCommand::Logs(args) => logs(session, &args).map(|()| 0),
    }
}

/// A name as typed, with or without `instance://`.
///
/// # Errors
/// What is wrong with it.
pub fn named(text: &str) -> Result<InstanceName> {
    Ok(InstanceName::new(text.strip_prefix("instance://").unwrap_or(text))?)
}

/// A running instance and its record.
pub struct Running {
    /// Its record.
    pub record: RunningRecord,
}

/// The parts that commands need.
pub struct RunningRecord {
    /// Its monitor's socket.
    pub control: std::path::PathBuf,
}

/// Finds a running instance; what is left of a lost one is cleaned up, and the truth told.
///
/// # Errors
/// There is none of that name, it ended, was lost, or runs on another host.
pub fn running(session: &Session, name: &InstanceName) -> Result<Running> {
    let instances = session.instances()?;
    let seen = instances.find(name)?;
    if let Liveness::Alive = seen.liveness {
        let control = seen.record()?.control.clone();
        let control = control.ok_or_else(|| Error::new(format!("instance \"{name}\" is still starting")))?;
        return Ok(Running { record: RunningRecord { control } });
    }
    let error = match &seen.liveness {
        Liveness::Elsewhere { host } => {
            return Err(Error::new(format!("instance \"{name}\" runs on host {host}"))
                .help(format!("do this on {host}")));
        }
        Liveness::Lost { why } => Error::new(format!("instance \"{name}\" was lost: {why}")),
        _ => Error::new(format!("instance \"{name}\" has ended ({})", seen.summary())),
    };
    let last = settle_lost(session, &seen)?;
    Err(match last {
        Some((checkpoint, generation)) => error.help(format!("the last state saved is generation {generation} of checkpoint \"{checkpoint}\"; bring it back with --restart {checkpoint}")),
        None => error,
    })
}

/// Cleans up after a monitor that died; returns the last generation of its checkpoint.
fn settle_lost(session: &Session, seen: &Seen) -> Result<Option<(String, u64)>> {
    if matches!(seen.liveness, Liveness::Lost { .. }) {
        place::clear(&session.context.runtime_dir()?.join("run").join(seen.name.as_str()));
    }
    let Ok(Record { checkpoint: Some(checkpoint), .. }) = &seen.record else { return Ok(None) };
    let store: Store = session.store()?;
    if !store.exists(checkpoint)? {
        return Ok(None);
    }
    let checkpoint = store.checkpoint(checkpoint)?;
    checkpoint.clean_partials()?;
    Ok(checkpoint.generations()?.last().map(|g| (checkpoint.name().to_string(), *g)))
}

fn start(session: &Session, args: StartArgs, runscript: bool) -> Result<()> {
    let name = InstanceName::new(&args.name)?;
    if args.image.starts_with("instance://") {
        return Err(Error::usage("an instance is started from an image, not from an instance"));
    }
    let action =
        if runscript { Action::InstanceRun { args: args.args } } else { Action::Start { args: args.args } };
    let wanted =
        Wanted { action, args: args.action, compat: args.compat, image: args.image, name: Some(name) };
    if wanted.args.dry_run {
        return considered::show(session, wanted);
    }
    let started = spawn(session, wanted)?;
    if let Some(file) = args.pid_file {
        std::fs::write(&file, format!("{}\n", started.pid))
            .map_err(|e| Error::new(format!("cannot write the pid file {}", file.display())).because(&e))?;
    }
    if let Some(from) = &started.restarted {
        report::info(restarted_line(from));
    }
    report::info("instance started successfully");
    Ok(())
}

/// Makes a monitor and waits for its word. It is a fork of this process, which has one thread: what it needs to know
/// is in its memory already.
fn spawn(session: &Session, wanted: Wanted) -> Result<Started> {
    let cannot = |e: &dyn std::error::Error| Error::new("cannot start the instance's monitor").because(e);
    let (ours, theirs) = Channel::pair().map_err(|e| cannot(&e))?;
    let here = nix::unistd::getpid();
    let main = || match plan_and_own(session, wanted, here, &theirs) {
        Ok(code) => code,
        Err(error) => {
            // The command may have been interrupted; then there is nobody to tell.
            let _ = theirs.send(&Reply::Failed(error));
            255
        }
    };
    let monitor = process::fork_with(&[], main).map_err(|e| cannot(&e))?;
    drop(theirs);
    let answer = client::answer(&ours, &Terminal::default());
    match answer {
        Ok((Reply::Started(started), _)) => Ok(started),
        Ok(_) => Err(Error::new("the monitor gave an answer that does not fit")),
        Err(error) => {
            // It ends by itself after an error; waiting means that nothing is left when this returns.
            let _ = process::reap(monitor);
            Err(error)
        }
    }
}

/// The monitor. It plans, too: what is started on the way, a worker and a first process, has to be its own. So long it
/// goes with the command.
fn plan_and_own(session: &Session, wanted: Wanted, command: Pid, channel: &Channel) -> Result<i32> {
    let gone = |e: Errno| Error::new("the command that starts the instance is gone").because(e.desc());
    process::end_with(command).map_err(gone)?;
    // The caller's own ways with signals are not the application's.
    signal::reset(&[libc::SIGPIPE]);
    let (order, ready) = considered::plan(session, wanted)?;
    let tied = |e: Errno| Error::new("the monitor cannot outlive the command").because(e.desc());
    process::outlive_parent().map_err(tied)?;
    monitor::main(channel, &order, ready).map_err(|error| others::named(session, &order, error))
}

fn list(session: &Session, args: &ListArgs) -> Result<()> {
    let all = session.instances()?.matching(args.pattern.as_deref().unwrap_or("*"))?;
    if args.json {
        return output::json(
            &serde_json::json!({ "instances": all.iter().map(as_json).collect::<Vec<_>>() }),
        );
    }
    let header: &[&str] = if args.logs {
        &["INSTANCE NAME", "PID", "LOGS"]
    } else {
        &["INSTANCE NAME", "PID", "IP", "IMAGE", "STATE", "CHECKPOINT"]
    };
    let mut table = output::Table::new(header);
    for seen in &all {
        let record = seen.record.as_ref().ok();
        let pid = record.filter(|_| seen.is_alive()).map(|r| r.init_pid.to_string()).unwrap_or_default();
        let name = seen.name.to_string();
        if args.logs {
            table.row([name.clone(), pid.clone(), seen.err_log().display().to_string()]);
            table.row([name, pid, seen.out_log().display().to_string()]);
            continue;
        }
        let saved = record.and_then(|r| {
            let checkpoint = r.checkpoint.as_ref()?;
            Some(r.last_generation.map_or_else(|| checkpoint.to_string(), |g| format!("{checkpoint}@{g}")))
        });
        let image = record.map(|r| r.image.clone()).unwrap_or_default();
        table.row([name, pid, String::new(), image, seen.summary(), saved.unwrap_or_default()]);
    }
    table.print()
}

fn as_json(seen: &Seen) -> serde_json::Value {
    let record = seen.record.as_ref().ok();
    serde_json::json!({
        "instance": seen.name,
        "pid": record.filter(|_| seen.is_alive()).map(|r| r.init_pid),
        "img": record.map(|r| &r.image),
        "ip": "",
        "logErrPath": seen.err_log(),
        "logOutPath": seen.out_log(),
        "state": seen.summary(),
        "running": seen.is_alive(),
        "host": seen.host,
        "checkpoint": record.and_then(|r| r.checkpoint.as_ref()),
        "backend": record.and_then(|r| r.backend.as_ref()),
        "lastGeneration": record.and_then(|r| r.last_generation),
        "started": record.map(|r| &r.started),
    })
}

fn stop(session: &Session, args: &StopArgs) -> Result<i32> {
    let instances = session.instances()?;
    let pattern = match (&args.pattern, args.all) {
        (Some(pattern), false) => pattern.strip_prefix("instance://").unwrap_or(pattern),
        (None, true) => "*",
        (Some(_), true) => return Err(Error::usage("--all and a name contradict each other")),
        (None, false) => {
            return Err(Error::usage("which instance?").help("stasis instance stop NAME, or --all"));
        }
    };
    let found: Vec<Seen> = instances
        .matching(pattern)?
        .into_iter()
        .filter(|s| !matches!(s.liveness, Liveness::Elsewhere { .. }) || args.pattern.is_some())
        .collect();
    if found.is_empty() {
        return match args.all {
            true => Ok(0),
            false => Err(Error::from(instances.not_found(pattern)).code(1)),
        };
    }
    let mut code = 0;
    for seen in found {
        if let Err(error) = stop_one(session, &seen, args) {
            report::error(&error);
            code = 255;
        }
    }
    Ok(code)
}

fn stop_one(session: &Session, seen: &Seen, args: &StopArgs) -> Result<()> {
    let name = &seen.name;
    match &seen.liveness {
        Liveness::Alive => {}
        Liveness::Elsewhere { host } => {
            return Err(Error::new(format!("instance \"{name}\" runs on host {host}"))
                .help(format!("stop it on {host}")));
        }
        Liveness::Ended | Liveness::Lost { .. } => {
            settle_lost(session, seen)?;
            session.instances()?.remove(name)?;
            report::info(format!(
                "instance \"{name}\" was not running any more ({}); its record is removed",
                seen.summary()
            ));
            return Ok(());
        }
    }
    let record = seen.record()?;
    let control =
        record.control.clone().ok_or_else(|| Error::new(format!("instance \"{name}\" is still starting")))?;
    report::info(format!("Stopping {name} instance of {} (PID={})", record.image, record.init_pid));
    let channel = client::connect(name.as_str(), &control)?;
    let (signal, timeout) =
        if args.force { (libc::SIGKILL, Duration::from_secs(2)) } else { (args.signal, args.timeout) };
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    match client::ask(&channel, &Request::Stop { signal, timeout_ms }, &[], &Terminal::default())? {
        (Reply::Stopped { killed: true, .. }, _) => {
            report::info(format!(
                "Killing {name} instance of {} (PID={}) (Timeout)",
                record.image, record.init_pid
            ));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn logs(session: &Session, args: &LogsArgs) -> Result<()> {
    let name = named(&args.name)?;
    let seen = session.instances()?.find_last(&name)?;
    let path = if args.err { seen.err_log() } else { seen.out_log() };
    let bytes = std::fs::read(&path)
        .map_err(|e| Error::new(format!("cannot read the log {}", path.display())).because(&e))?;
    output::bytes(&bytes)
}
