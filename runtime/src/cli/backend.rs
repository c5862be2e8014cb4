//! `backend list|info|check`.

use crate::cli::images::sources;
use crate::cli::teller::Terminal;
use crate::cli::{Session, engine, images, instance, output};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::launch::userns;
use crate::monitor::client;
use crate::monitor::control::{Reply, Request};
use crate::name::{BackendName, CheckpointRef, InstanceName};
use crate::registry;
use crate::worker::{NoServices, Worker, engine as calls};
use clap::{Args, Subcommand};
use serde::Serialize;
use stasis_plugin_api::descriptor::Descriptor;
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::report::{Finding, Probe, Severity};
use stasis_plugin_api::request::{ImageView, ProbeRequest, ProcessView, Subject};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// `backend`.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// All backends, and whether they can be used here
    List(ListArgs),
    /// What a backend is, and the options it takes
    Info(InfoArgs),
    /// Everything that a backend looks for here, or what stands against saving something
    Check(CheckArgs),
}

/// `backend list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// For programs
    #[arg(short, long)]
    json: bool,
}

/// `backend info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Which
    backend: String,
    /// For programs
    #[arg(short, long)]
    json: bool,
}

/// `backend check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Which; all when not given
    backend: Option<String>,
    #[arg(help = concat!("An image (", sources!(), "), instance://NAME, or checkpoint://NAME[@GEN]"))]
    subject: Option<String>,
    /// For programs
    #[arg(short, long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    enabled: bool,
    version: Option<String>,
    engine: Option<String>,
    engine_version: Option<String>,
    usable: bool,
    reason: Option<String>,
    library: Option<String>,
}

/// Runs it.
///
/// # Errors
/// What could not be asked.
pub fn run(session: &Session, command: BackendCommand) -> Result<i32> {
    match command {
        BackendCommand::List(args) => list(session, args.json).map(|()| 0),
        BackendCommand::Info(args) => info(session, &args).map(|()| 0),
        BackendCommand::Check(args) => check(session, args),
    }
}

/// A backend that answered.
pub(super) struct Asked {
    pub(super) worker: Worker,
    pub(super) descriptor: Descriptor,
    library: String,
}

pub(super) fn ask(session: &Session, name: &str, image: Option<BorrowedFd<'_>>) -> Result<Asked> {
    let settings = session.settings()?;
    // The same refusals as at a start, for unknown and disabled ones.
    registry::select(None, Some(name), None, settings)?;
    let located = registry::locate(&BackendName::new(name)?, settings, &session.context)?;
    let library = located.path.display().to_string();
    let plugin = engine::plugin(session, located, Vec::new())?;
    let mut worker = Worker::spawn_with(&plugin, image, &session.context.runtime_dir()?)?;
    let descriptor = worker.describe()?;
    Ok(Asked { worker, descriptor, library })
}

fn list(session: &Session, json: bool) -> Result<()> {
    let settings = session.settings()?;
    let mut all = Vec::new();
    for (name, entry) in &settings.backends {
        let mut listed = Listed {
            name: name.to_string(),
            enabled: entry.enabled,
            version: None,
            engine: None,
            engine_version: None,
            usable: false,
            reason: None,
            library: None,
        };
        if !entry.enabled {
            listed.reason = Some("disabled by the administrator".to_owned());
        } else {
            match ask(session, name.as_str(), None) {
                Err(error) => listed.reason = Some(error.to_string()),
                Ok(mut asked) => {
                    listed.version = Some(asked.descriptor.version.clone());
                    listed.engine = Some(asked.descriptor.engine.clone());
                    listed.library = Some(asked.library);
                    match calls::probe(&mut asked.worker, &ProbeRequest::default(), &NoServices) {
                        Ok(probe) => {
                            listed.usable = probe.usable;
                            listed.engine_version = probe.engine_version;
                            listed.reason = probe.reason;
                        }
                        Err(error) => listed.reason = Some(Error::from(error).to_string()),
                    }
                }
            }
        }
        all.push(listed);
    }
    if json {
        return output::json(&serde_json::json!({ "backends": all }));
    }
    let mut table = output::Table::new(&["BACKEND", "VERSION", "ENGINE", "USABLE"]);
    for b in all {
        let engine = [b.engine, b.engine_version].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let usable =
            if b.usable { "yes".to_owned() } else { format!("no: {}", b.reason.unwrap_or_default()) };
        table.row([b.name, b.version.unwrap_or_default(), engine, usable]);
    }
    table.print()
}

fn info(session: &Session, args: &InfoArgs) -> Result<()> {
    let asked = ask(session, &args.backend, None)?;
    let d = &asked.descriptor;
    if args.json {
        return output::json(d);
    }
    output::line(format!("{} {}: {}", d.name, d.version, d.summary))?;
    output::line(format!("engine:       {}", d.engine))?;
    output::line(format!("library:      {}", asked.library))?;
    output::line(format!("capabilities: {}", d.capabilities.join(", ")))?;
    for option in &d.options {
        let default =
            if option.default.is_null() { String::new() } else { format!(" (default {})", option.default) };
        output::line(format!("option {}: {}{default}", option.name, option.help))?;
    }
    Ok(())
}

fn check(session: &Session, args: CheckArgs) -> Result<i32> {
    let settings = session.settings()?;
    // A file may have the name of a backend, and a backend that is not there that of no file.
    let is_subject = |text: &str| match BackendName::new(text) {
        Ok(name) => !settings.backends.contains_key(&name) && Path::new(text).exists(),
        Err(_) => true,
    };
    let (backend, given) = match (args.backend, args.subject) {
        (Some(only), None) if is_subject(&only) => (None, Some(only)),
        other => other,
    };
    if let Some(name) = given.as_deref().and_then(|s| s.strip_prefix("instance://")) {
        return check_instance(session, name, args.json);
    }
    let names: Vec<String> = match backend {
        Some(name) => vec![name],
        None => settings.enabled().map(ToString::to_string).collect(),
    };
    let subject = given.as_deref().map(|given| subject_of(session, given)).transpose()?;
    let mut worst = 0;
    for name in names {
        let mut asked = ask(session, &name, subject.as_ref().and_then(|(_, image)| image.as_ref()?.mount()))?;
        let id_maps = userns::possible_maps(session.context.euid);
        let request = ProbeRequest { thorough: true, id_maps };
        let probe = calls::probe(&mut asked.worker, &request, &NoServices)?;
        let findings = match (&subject, probe.usable) {
            (Some((subject, _)), true) => {
                calls::examine(&mut asked.worker, subject, &mut EngineState::new(), &NoServices)?
            }
            _ => Vec::new(),
        };
        if args.json {
            output::json(&serde_json::json!({ "backend": name, "probe": probe, "findings": findings }))?;
        } else {
            show_probe(&asked.descriptor, &probe)?;
            show_findings(&findings, given.as_deref())?;
        }
        worst = worst.max(verdict(probe.usable, &findings));
    }
    Ok(worst)
}

/// 0 nothing, 1 something would be lost, 2 it cannot be done.
fn verdict(usable: bool, findings: &[Finding]) -> i32 {
    match findings.iter().map(|f| f.severity).max() {
        _ if !usable => 2,
        Some(Severity::Fatal) => 2,
        Some(Severity::Loss) => 1,
        _ => 0,
    }
}

/// What is asked about; an image stays open meanwhile.
fn subject_of(session: &Session, text: &str) -> Result<(Subject, Option<Image>)> {
    if let Some(reference) = text.strip_prefix("checkpoint://") {
        let reference: CheckpointRef = reference.parse()?;
        let generation = session.store()?.checkpoint(&reference.name)?.generation(reference.generation)?;
        let manifest = generation.manifest();
        // Where the image is, the container's spec says: its name may be an address.
        let spec: serde_json::Value = manifest.spec.read().unwrap_or_default();
        let root = spec["root"]["directory"].as_str().unwrap_or(&manifest.image.path);
        let image = ImageView { name: manifest.image.path.clone(), root: root.into() };
        return Ok((
            Subject::Generation { generation: crate::monitor::restart::view(&generation), image },
            None,
        ));
    }
    let image = images::open(session, text, false)?;
    let script =
        if image.has_startscript { "/.singularity.d/startscript" } else { "/.singularity.d/runscript" };
    let process = ProcessView { argv: vec![script.to_owned()], ..ProcessView::default() };
    let root = match image.mount() {
        Some(_) => Worker::mounted_image(),
        None => image.directory().to_path_buf(),
    };
    let view = ImageView { name: image.given.clone(), root };
    Ok((Subject::Image { image: view, process }, Some(image)))
}

fn check_instance(session: &Session, name: &str, json: bool) -> Result<i32> {
    let name = InstanceName::new(name)?;
    let seen = instance::running(session, &name)?;
    let channel = client::connect(name.as_str(), &seen.record.control)?;
    let (reply, _) = client::ask(&channel, &Request::Examine, &[], &Terminal::default())?;
    let Reply::Examined { status, findings } = reply else {
        return Err(Error::new("the monitor gave an answer that does not fit"));
    };
    if json {
        output::json(&serde_json::json!({ "status": status, "findings": findings }))?;
    } else {
        if let Some(status) = &status {
            output::line(&status.summary)?;
        }
        show_findings(&findings, Some(name.as_str()))?;
    }
    Ok(verdict(true, &findings))
}

fn show_probe(descriptor: &Descriptor, probe: &Probe) -> Result<()> {
    let engine = probe.engine_version.clone().unwrap_or_default();
    let verdict = match (probe.usable, &probe.reason) {
        (true, _) => "can be used here".to_owned(),
        (false, reason) => format!("cannot be used here: {}", reason.clone().unwrap_or_default()),
    };
    output::line(format!(
        "{} {} ({} {engine}, accepts {}): {verdict}",
        descriptor.name, descriptor.version, descriptor.engine, probe.accepts
    ))?;
    if let (false, Some(help)) = (probe.usable, &probe.help) {
        output::line(format!("  hint: {help}"))?;
    }
    for file in &probe.files {
        let need = if file.required { "required" } else { "optional" };
        let place = file.found.clone().map_or_else(|| "missing".to_owned(), |f| format!("found {f}"));
        let note = file.note.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
        output::line(format!("  {:<28} {need}  {place}{note}", file.name))?;
    }
    for feature in &probe.features {
        let word = if feature.available { "yes" } else { "no" };
        output::line(format!("  {:<28} {word}: {}", feature.name, feature.reason))?;
    }
    for warning in &probe.warnings {
        output::line(format!("  warning: {warning}"))?;
    }
    Ok(())
}

fn show_findings(findings: &[Finding], subject: Option<&str>) -> Result<()> {
    if let (true, Some(subject)) = (findings.is_empty(), subject) {
        return output::line(format!("{subject}: nothing stands against it"));
    }
    for finding in findings {
        let word = match finding.severity {
            Severity::Note => "note",
            Severity::Loss => "would be lost",
            Severity::Fatal => "refused",
        };
        output::line(format!("{word}: {}: {}", finding.object, finding.why))?;
        if !finding.help.is_empty() {
            output::line(format!("  hint: {}", finding.help))?;
        }
    }
    Ok(())
}
