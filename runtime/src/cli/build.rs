//! `build`: from a definition file, or the name of an image, to an image directory.

use crate::build;
use crate::cli::images::{self, RegistryArgs, Shown};
use crate::cli::{Session, report};
use crate::error::{Error, Result};
use crate::image::oci::{self, reference::Uri};
use crate::spec::binds;
use crate::spec::identity::HostFacts;
use clap::Args;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Replace an image that is there
    #[arg(short = 'F', long)]
    force: bool,
    /// Make an image directory
    #[arg(short, long)]
    sandbox: bool,
    /// As root inside; this is always so
    #[arg(short, long, hide = true)]
    fakeroot: bool,
    /// Leave %test out
    #[arg(short = 'T', long)]
    notest: bool,
    /// Show a path of the host to %post and %test
    #[arg(short = 'B', long, value_name = "SRC[:DST[:ro|rw]],...")]
    bind: Vec<String>,
    /// A value for {{ NAME }} in the definition file
    #[arg(long, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
    /// Values, one NAME=VALUE in a line
    #[arg(long, value_name = "FILE")]
    build_arg_file: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The new image
    image: PathBuf,
    /// A definition file, the name of an image, or an image directory
    spec: String,
}

/// Runs `build`.
///
/// # Errors
/// Why there is no image.
pub fn run(session: &Session, args: &BuildArgs) -> Result<i32> {
    if !args.sandbox {
        return Err(Error::usage("build makes image directories only").help("add --sandbox"));
    }
    let fetch = images::options(session, &args.registry);
    let cache = images::cache(session)?;
    if let Some(uri) = Uri::parse(&args.spec)? {
        oci::pull_to_directory(&uri, &args.image, args.force, &cache, &fetch, &Shown)?;
    } else if Path::new(&args.spec).is_dir() {
        build::copy_directory(Path::new(&args.spec), &args.image, args.force, fetch.guarded)?;
    } else {
        let options = build::Options {
            force: args.force,
            no_test: args.notest,
            arguments: arguments(args)?,
            binds: user_binds(&args.bind)?,
            fetch,
            runtime_dir: session.context.runtime_dir()?,
        };
        build::to_directory(Path::new(&args.spec), &args.image, &options, &cache, &Shown)?;
    }
    report::info(format!("Build complete: {}", args.image.display()));
    Ok(0)
}

fn user_binds(typed: &[String]) -> Result<Vec<(PathBuf, PathBuf, bool)>> {
    let binds = binds::user_binds(typed, &[], &HostFacts::from_process())?;
    Ok(binds.into_iter().map(|bind| (bind.source, bind.target, bind.writable)).collect())
}

/// Values of the file first, so that a flag has the last word.
fn arguments(args: &BuildArgs) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let mut add = |text: &str, place: &str| match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            all.insert(name.trim().to_owned(), value.trim().to_owned());
            Ok(())
        }
        _ => Err(Error::usage(format!("{place}{text:?} is no value for a name")).help("write NAME=VALUE")),
    };
    if let Some(file) = &args.build_arg_file {
        let cannot = |e: std::io::Error| Error::new(format!("cannot read {}", file.display())).because(&e);
        let mut text = String::new();
        std::fs::File::open(file).map_err(cannot)?.take(1 << 20).read_to_string(&mut text).map_err(cannot)?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                add(line, &format!("{}, line {}: ", file.display(), number + 1))?;
            }
        }
    }
    for text in &args.build_arg {
        add(text, "--build-arg ")?;
    }
    Ok(all)
}
