//! `inspect`: what an image says about itself. A SIF file carries that beside its file system, so that nothing
//! has to be mounted for it.

use crate::cli::images::{Shown, sources};
use crate::cli::{Session, images, output, report};
use crate::error::{Error, Result};
use crate::image::metadata::Attributes;
use crate::image::sif::{self, DataType, Sif};
use crate::image::{refuse, remark, sif_of};
use crate::spec::resolve::SpecError;
use clap::Args;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A longer document is not an image's.
const MOST: u64 = 16 << 20;

/// `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Labels; what is shown when nothing is asked for
    #[arg(short, long)]
    labels: bool,
    /// The definition file
    #[arg(short, long)]
    deffile: bool,
    /// The scripts of the environment
    #[arg(short, long)]
    environment: bool,
    /// The help text
    #[arg(short = 'H', long)]
    helpfile: bool,
    /// The runscript
    #[arg(short, long)]
    runscript: bool,
    /// The startscript
    #[arg(short, long)]
    startscript: bool,
    /// The test script
    #[arg(short, long)]
    test: bool,
    /// Everything
    #[arg(long)]
    all: bool,
    /// Of this application of the image's, in place of the image
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// The names of its applications
    #[arg(long)]
    list_apps: bool,
    /// For programs
    #[arg(short, long)]
    json: bool,
    #[arg(help = concat!("The image: ", sources!()))]
    image: String,
}

/// Shows it.
///
/// # Errors
/// The image cannot be read.
pub fn run(session: &Session, args: &InspectArgs) -> Result<()> {
    let (all, sif) = attributes(session, &args.image)?;
    if args.list_apps {
        let names: Vec<&String> = all.apps.keys().collect();
        return match args.json {
            true => output::json(&names),
            false => output::bytes(
                harmless(&names.iter().map(|name| format!("{name}\n")).collect::<String>()).as_bytes(),
            ),
        };
    }
    let shown = match &args.app {
        None => chosen(args, all),
        Some(name) => {
            let have: Vec<String> = all.apps.keys().cloned().collect();
            let Some((name, app)) = all.apps.into_iter().find(|(app, _)| app == name) else {
                return Err(no_app(&args.image, name, &have));
            };
            let app = chosen(args, app);
            if !args.json && !args.all {
                return output::bytes(text(&app).as_bytes());
            }
            Attributes { apps: [(name, app)].into(), ..Attributes::default() }
        }
    };
    // As in Apptainer, everything is a document for programs.
    if args.json || args.all {
        let mut document = shown.to_json();
        if let (Some(sif), Some(data)) = (&sif, document["data"].as_object_mut()) {
            data.insert("sif".to_owned(), header(sif));
        }
        return output::json(&document);
    }
    output::bytes(text(&shown).as_bytes())
}

fn no_app(image: &str, name: &str, have: &[String]) -> Error {
    let error = SpecError::NoApp { image: image.to_owned(), app: name.to_owned(), have: have.to_vec() };
    let help = error.help();
    Error::from_parts(&error, help)
}

/// What the image says, and its header where it is a SIF file.
fn attributes(session: &Session, given: &str) -> Result<(Attributes, Option<Sif>)> {
    let Ok(Some((file, sif))) = sif_of(given) else {
        return Ok((Attributes::of(&images::open(session, given, false)?), None));
    };
    report::verbose(format!("image {given:?} is a SIF file: {}", described(&sif)));
    remark::of(&sif).iter().for_each(|remark| remark.tell(given, &Shown));
    if let Err(why) = refuse(Path::new(given), &sif, false) {
        report::warning_of(&why.into());
    }
    let found = match carried(given, &file, &sif)? {
        Some(attributes) => attributes,
        // A file system that cannot be opened at all: what stands beside it is all there is.
        None if refuse(Path::new(given), &sif, true).is_err() => beside(given, &file, &sif)?,
        None => Attributes::of(&images::open_to_look(session, given)?),
    };
    Ok((found, Some(sif)))
}

/// What a program may want to know of the file itself.
fn header(sif: &Sif) -> serde_json::Value {
    let partition = sif.primary().map(|(_, partition)| partition);
    serde_json::json!({
        "uuid": sif.uuid,
        "architecture": sif::arch_name(partition.map_or(&sif.arch, |partition| &partition.arch)),
        "fileSystem": partition.map(sif::Partition::file_system_name),
        "encrypted": partition.is_some_and(sif::Partition::is_encrypted),
        "signed": sif.first(DataType::Signature).is_some(),
    })
}

fn described(sif: &Sif) -> String {
    let of = |kind| sif.first(kind).is_some();
    let system = sif.primary().map_or("none", |(_, partition)| partition.file_system_name());
    let signed = if of(DataType::Signature) { "signed (not checked)" } else { "not signed" };
    format!("uuid {}, for {}, root file system {system}, {signed}", sif.uuid, sif::arch_name(&sif.arch))
}

/// What the file carries for this purpose; older ones carry nothing.
fn carried(given: &str, file: &File, sif: &Sif) -> Result<Option<Attributes>> {
    let document = sif.objects.iter().find(|o| o.kind == DataType::Json && o.name == "inspect-metadata.json");
    let Some(document) = document else { return Ok(None) };
    let Ok(mut attributes) = Attributes::from_json(&object(given, file, document)?) else {
        report::warning(format!(
            "image {given:?} describes itself in words that stasis does not know; its files are asked"
        ));
        return Ok(None);
    };
    if attributes.deffile.is_empty() {
        attributes.deffile = beside(given, file, sif)?.deffile;
    }
    Ok(Some(attributes))
}

/// What stands beside the file system without a description of its own.
fn beside(given: &str, file: &File, sif: &Sif) -> Result<Attributes> {
    let read = |kind| sif.first(kind).map(|found| object(given, file, found)).transpose();
    let labels = read(DataType::Labels)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let deffile = read(DataType::Definition)?.unwrap_or_default();
    Ok(Attributes {
        labels: labels.unwrap_or_default(),
        deffile: String::from_utf8_lossy(&deffile).into_owned(),
        ..Attributes::default()
    })
}

/// The bytes of an object.
fn object(given: &str, file: &File, object: &sif::Descriptor) -> Result<Vec<u8>> {
    let what = || Error::new(format!("cannot inspect image {given:?}"));
    if object.size > MOST {
        return Err(what().because(format!("object {} describes it in {} bytes", object.id, object.size)));
    }
    let mut bytes = vec![0; usize::try_from(object.size).unwrap_or(0)];
    file.read_exact_at(&mut bytes, object.offset).map_err(|e| what().because(&e))?;
    Ok(bytes)
}

fn chosen(args: &InspectArgs, all: Attributes) -> Attributes {
    if args.all {
        return all;
    }
    let others = [args.deffile, args.environment, args.helpfile, args.runscript, args.startscript, args.test];
    let text = |wanted: bool, text: String| if wanted { text } else { String::new() };
    Attributes {
        labels: if args.labels || others == [false; 6] { all.labels } else { Default::default() },
        environment: if args.environment { all.environment } else { Default::default() },
        deffile: text(args.deffile, all.deffile),
        helpfile: text(args.helpfile, all.helpfile),
        runscript: text(args.runscript, all.runscript),
        startscript: text(args.startscript, all.startscript),
        test: text(args.test, all.test),
        apps: Default::default(),
    }
}

fn text(shown: &Attributes) -> String {
    let mut out = String::new();
    for part in [&shown.helpfile, &shown.deffile, &shown.runscript, &shown.startscript, &shown.test] {
        if !part.is_empty() {
            out.push_str(part);
            out.push_str(if part.ends_with('\n') { "" } else { "\n" });
        }
    }
    for (path, script) in &shown.environment {
        out.push_str(&format!("=== {path} ===\n{}\n", script.trim_end()));
    }
    for (name, value) in &shown.labels {
        out.push_str(&format!("{name}: {value}\n"));
    }
    harmless(&out)
}

/// An image is anybody's work: its text may not play tricks with the terminal.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c == '\n' || c == '\t' { c } else { report::harmless(c) }).collect()
}
