//! `checkpoint create|list|instance|show|verify|prune|squash|delete`.

use crate::cli::instance::{named, running};
use crate::cli::teller::Terminal;
use crate::cli::{Session, backend, output, report};
use crate::error::{Error, Result};
use crate::monitor::control::{Captured, Reply, Request};
use crate::monitor::{Teller, client, restart};
use crate::name::{BackendName, CheckpointName, CheckpointRef};
use crate::registry;
use crate::store::{Generation, Holder, Level, Summary, Writer};
use crate::worker::{NoServices, engine};
use clap::{Args, Subcommand};
use stasis_plugin_api::request::{SquashRequest, time_for};
use std::path::PathBuf;

/// `checkpoint`.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Make a place for saved states
    Create(CreateArgs),
    /// All of them
    List(ListArgs),
    /// Save a running instance
    Instance(InstanceArgs),
    /// What is saved
    Show(ShowArgs),
    /// Read everything again and compare it with the hashes
    Verify(RefArgs),
    /// Remove older generations
    Prune(PruneArgs),
    /// Write a generation that shares files with earlier ones anew, by itself
    Squash(SquashArgs),
    /// Remove a checkpoint with all its generations
    Delete(DeleteArgs),
}

/// `checkpoint create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name
    name: String,
    /// Only for this engine
    #[arg(long)]
    backend: Option<String>,
}

/// `checkpoint list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// For programs
    #[arg(short, long)]
    json: bool,
}

/// `checkpoint instance`.
#[derive(Debug, Args)]
pub struct InstanceArgs {
    /// End the instance as soon as its state is safe
    #[arg(long)]
    stop: bool,
    /// Save even though this kind of state would be lost
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    accept_loss: Vec<String>,
    /// Accepted as in Apptainer, without effect
    #[arg(short = 'H', long, hide = true)]
    home: Option<String>,
    /// For programs
    #[arg(short, long)]
    json: bool,
    /// Which; instance://NAME is understood too
    name: String,
}

/// `checkpoint show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// For programs
    #[arg(short, long)]
    json: bool,
    /// NAME for the checkpoint, NAME@GEN for one generation
    reference: String,
}

/// `checkpoint verify`.
#[derive(Debug, Args)]
pub struct RefArgs {
    /// NAME for all generations, NAME@GEN for one
    reference: String,
}

/// `checkpoint squash`.
#[derive(Debug, Args)]
pub struct SquashArgs {
    /// NAME for the newest generation, NAME@GEN for another
    reference: String,
}

/// `checkpoint prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Its name
    name: String,
    /// How many of the newest stay
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
}

/// `checkpoint delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Its name
    name: String,
    /// Also when another machine holds it that is gone for good
    #[arg(short = 'F', long)]
    force: bool,
}

/// Runs it.
///
/// # Errors
/// Why it failed.
pub fn run(session: &Session, command: CheckpointCommand) -> Result<()> {
    match command {
        CheckpointCommand::Create(args) => create(session, &args),
        CheckpointCommand::List(args) => list(session, args.json),
        CheckpointCommand::Instance(args) => instance(session, args),
        CheckpointCommand::Show(args) => show(session, &args),
        CheckpointCommand::Verify(args) => verify(session, &args.reference),
        CheckpointCommand::Prune(args) => prune(session, &args),
        CheckpointCommand::Squash(args) => squash(session, &args.reference),
        CheckpointCommand::Delete(args) => delete(session, &args),
    }
}

fn create(session: &Session, args: &CreateArgs) -> Result<()> {
    let name = CheckpointName::new(&args.name)?;
    let backend = args.backend.as_deref().map(BackendName::new).transpose()?;
    if let Some(backend) = &backend {
        // The same refusals as at a start, for unknown and forbidden ones.
        registry::select(None, Some(backend.as_str()), None, session.settings()?)?;
    }
    session.store()?.create(&name, backend.as_ref())?;
    report::info(format!("Checkpoint \"{name}\" created."));
    Ok(())
}

fn list(session: &Session, json: bool) -> Result<()> {
    let all = session.store()?.list()?;
    if json {
        let rows: Vec<_> = all.iter().map(|l| match &l.summary {
            Ok(s) => serde_json::json!({
                "name": s.name, "backend": s.record.backend.as_ref().map(|b| &b.name), "generations": s.generations,
                "latest": s.latest.as_ref().map(|g| serde_json::json!({"generation": g.number, "created": g.created, "bytes": g.bytes})),
                "inUseBy": s.holder.as_ref().map(|h| &h.instance),
                "image": s.record.image.as_ref().map(|i| &i.path),
            }),
            Err(problem) => serde_json::json!({ "name": l.name, "problem": problem.to_string() }),
        }).collect();
        return output::json(&serde_json::json!({ "checkpoints": rows }));
    }
    let mut table =
        output::Table::new(&["NAME", "BACKEND", "GENERATIONS", "LATEST", "AGE", "SIZE", "IN USE BY"]);
    for listed in all {
        match listed.summary {
            Ok(s) => table.row(row(&s)),
            Err(problem) => {
                table.row([listed.name.clone()]);
                report::warning(format!("{}: {problem}", listed.name));
            }
        }
    }
    table.print()
}

fn row(s: &Summary) -> [String; 7] {
    let latest = s.latest.as_ref();
    [
        s.name.to_string(),
        s.record.backend.as_ref().map(|b| b.name.to_string()).unwrap_or_default(),
        s.generations.len().to_string(),
        latest.map(|g| g.number.to_string()).unwrap_or_default(),
        latest.map(|g| output::age(&g.created)).unwrap_or_default(),
        latest.map(|g| output::size(g.bytes)).unwrap_or_default(),
        s.holder.as_ref().map(|h| h.instance.clone()).unwrap_or_default(),
    ]
}

fn instance(session: &Session, args: InstanceArgs) -> Result<()> {
    let name = named(&args.name)?;
    let found = running(session, &name)?;
    let channel = client::connect(name.as_str(), &found.record.control)?;
    let request = Request::Capture { stop: args.stop, accept_loss: args.accept_loss };
    let answer = client::ask(&channel, &request, &[], &Terminal::default())?;
    let Reply::Captured(saved) = answer.0 else {
        return Err(Error::new("the monitor gave an answer that does not fit"));
    };
    for note in &saved.notes {
        report::warning(note);
    }
    if args.json {
        return output::json(&saved);
    }
    report::info(told(&saved));
    Ok(())
}

fn told(saved: &Captured) -> String {
    let pause = saved.pause_us.map(|us| format!(", paused {} ms", us.div_ceil(1000))).unwrap_or_default();
    let stopped = if saved.stopped { "; the instance is stopped" } else { "" };
    let processes =
        if saved.processes == 1 { "1 process".to_owned() } else { format!("{} processes", saved.processes) };
    let new = match saved.new_bytes {
        new if new < saved.bytes => format!(" ({} new)", output::size(new)),
        _ => String::new(),
    };
    format!(
        "Generation {} of checkpoint \"{}\" saved: {}{new}, {processes}, {} ms{pause}{stopped}",
        saved.generation,
        saved.checkpoint,
        output::size(saved.bytes),
        saved.total_ms
    )
}

fn show(session: &Session, args: &ShowArgs) -> Result<()> {
    let reference: CheckpointRef = args.reference.parse()?;
    let checkpoint = session.store()?.checkpoint(&reference.name)?;
    if reference.generation.is_some() {
        let generation = checkpoint.generation(reference.generation)?;
        if args.json {
            return output::json(generation.manifest());
        }
        let m = generation.manifest();
        output::line(format!("generation {} of checkpoint \"{}\"", m.generation, reference.name))?;
        for (word, value) in [
            ("saved", format!("{} ({})", m.created, output::age(&m.created))),
            (
                "backend",
                format!(
                    "{} {}, {} {}",
                    m.backend.name, m.backend.version, m.backend.engine, m.backend.engine_version
                ),
            ),
            ("image", m.image.to_string()),
            ("host", format!("{}, {} {}", m.host.hostname, m.host.kernel, m.host.arch)),
            ("command", m.command.join(" ")),
            (
                "processes",
                m.processes.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect::<Vec<_>>().join(", "),
            ),
            (
                "listens on",
                m.listening
                    .iter()
                    .map(|l| format!("{} {}:{}", l.proto, l.address, l.port))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
            ("size", size(&generation)),
        ] {
            output::line(format!("{word:<11} {value}"))?;
        }
        return Ok(());
    }
    let summary = checkpoint.summary()?;
    let mut table = output::Table::new(&["GENERATION", "SAVED", "SIZE", "ENGINE", "PROCESSES"]);
    let mut rows = Vec::new();
    for number in &summary.generations {
        match checkpoint.generation(Some(*number)) {
            Ok(g) => {
                let m = g.manifest();
                rows.push(serde_json::to_value(m).unwrap_or_default());
                table.row([
                    number.to_string(),
                    output::age(&m.created),
                    size(&g),
                    format!("{} {}", m.backend.engine, m.backend.engine_version),
                    m.processes.len().to_string(),
                ]);
            }
            Err(problem) => report::warning(format!("generation {number}: {problem}")),
        }
    }
    if args.json { output::json(&serde_json::json!({ "generations": rows })) } else { table.print() }
}

/// With what is shared with other generations told apart.
fn size(generation: &Generation) -> String {
    let (all, own) = (generation.size(), generation.own_size());
    if own == all {
        return output::size(all);
    }
    format!("{} ({} of its own)", output::size(all), output::size(own))
}

/// Writes a generation anew, by the backend that made it.
fn squash(session: &Session, reference: &str) -> Result<()> {
    let reference: CheckpointRef = reference.parse()?;
    let checkpoint = session.store()?.checkpoint(&reference.name)?;
    let lock = checkpoint.lock_live(&Holder::here("squash"))?;
    let generation = checkpoint.generation(reference.generation)?;
    let (manifest, number) = (generation.manifest(), generation.number());
    if !manifest.builds_on_others() {
        report::info(format!("Generation {number} was written by itself already."));
        return Ok(());
    }
    let teller = Terminal::default();
    generation.verify(Level::Full, &mut |done, total| teller.progress(done, total, "verifying"))?;
    let before = manifest.size();
    let mut asked = backend::ask(session, manifest.backend.name.as_str(), None)?;
    let staging = checkpoint.staging(&lock)?;
    let request = SquashRequest { generation: restart::view(&generation), staging: staging.path() };
    let deadline = time_for(before);
    teller.progress(0, 0, "writing anew");
    let written = engine::squash(&mut asked.worker, &request, &NoServices, deadline);
    let replaced = written.map_err(Error::from).and_then(|report| {
        let files: Vec<PathBuf> = report.files.iter().map(PathBuf::from).collect();
        let mut tell = |done, total| teller.progress(done, total, "making it durable");
        let mut backend = manifest.backend.clone();
        backend.version.clone_from(&asked.descriptor.version);
        if !report.engine_version.is_empty() {
            backend.engine_version = report.engine_version;
        }
        let writer = Writer { stasis_version: env!("CARGO_PKG_VERSION").to_owned(), backend };
        Ok(checkpoint.replace(&lock, &generation, &staging, &files, writer, &mut tell)?)
    });
    // What is left of a failed one is of no use to anybody.
    let removed = staging.remove();
    let squashed = replaced?;
    removed?;
    report::info(format!(
        "Generation {number} of checkpoint \"{}\" is kept by itself now: {}, before {}",
        reference.name,
        output::size(squashed.size()),
        output::size(before)
    ));
    Ok(())
}

fn verify(session: &Session, reference: &str) -> Result<()> {
    let reference: CheckpointRef = reference.parse()?;
    let checkpoint = session.store()?.checkpoint(&reference.name)?;
    let numbers = match reference.generation {
        Some(number) => vec![number],
        None => checkpoint.generations()?,
    };
    let teller = Terminal::default();
    let mut damaged = 0;
    for number in &numbers {
        let verified = checkpoint.generation(Some(*number)).and_then(|g| {
            g.verify(Level::Full, &mut |done, total| teller.progress(done, total, "verifying"))
        });
        match verified {
            Ok(()) => {
                report::info(format!("Generation {number} of checkpoint \"{}\" is whole.", reference.name))
            }
            Err(error) => {
                damaged += 1;
                report::error(&error.into());
            }
        }
    }
    match damaged {
        0 if numbers.is_empty() => {
            Err(Error::new(format!("checkpoint \"{}\" has no saved state yet", reference.name)))
        }
        0 => Ok(()),
        n => Err(Error::new(format!(
            "{n} of {} generations of checkpoint \"{}\" cannot be brought back",
            numbers.len(),
            reference.name
        ))),
    }
}

fn prune(session: &Session, args: &PruneArgs) -> Result<()> {
    let checkpoint = session.store()?.checkpoint(&CheckpointName::new(&args.name)?)?;
    let lock = checkpoint.lock_live(&Holder::here("prune"))?;
    let gone = checkpoint.prune(args.keep as usize, &[], &lock)?;
    report::info(match gone.len() {
        0 => "Nothing to remove.".to_owned(),
        n => format!(
            "{n} generation(s) removed: {}",
            gone.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    });
    Ok(())
}

fn delete(session: &Session, args: &DeleteArgs) -> Result<()> {
    let name = CheckpointName::new(&args.name)?;
    let store = session.store()?;
    if args.force {
        store.delete_forced(&name)?
    } else {
        store.delete(&name)?
    }
    report::info(format!("Checkpoint \"{name}\" deleted."));
    Ok(())
}
