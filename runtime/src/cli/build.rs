//! `build` and `pull`: a new image, as a SIF file or as a directory.

use crate::build::{self, Options, Packing, Source};
use crate::cli::images::{self, RegistryArgs, Shown, sources};
use crate::cli::{Session, report};
use crate::error::{Error, Result};
use crate::image::oci::reference::{FORMS, Uri};
use crate::image::sif::write::Compression;
use crate::spec::binds;
use crate::spec::identity::HostFacts;
use clap::Args;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Flags of whatever makes an image.
#[derive(Debug, Args)]
pub struct MakeArgs {
    /// Replace an image that is there
    #[arg(short = 'F', long)]
    force: bool,
    /// Make a directory instead of a SIF file
    #[arg(short, long)]
    sandbox: bool,
    /// How the file system is compressed
    #[arg(long, value_name = "zstd|gzip", default_value = "zstd", value_parser = ["zstd", "gzip"])]
    compression: String,
    /// The level of zstd, 1 (fast) to 22 (tight)
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=22))]
    compression_level: u32,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    make: MakeArgs,
    /// As root inside; this is always so
    #[arg(short, long, hide = true)]
    fakeroot: bool,
    /// Leave %test out
    #[arg(short = 'T', long)]
    notest: bool,
    /// Let %test write, into memory that is forgotten; else it can read the image only
    #[arg(long)]
    writable_tmpfs: bool,
    /// Show a path of the host to %post and %test
    #[arg(short = 'B', long, value_name = "SRC[:DST[:ro|rw]],...")]
    bind: Vec<String>,
    /// The same, in long words
    #[arg(long, value_name = "type=bind,src=SRC,dst=DST[,ro]")]
    mount: Vec<String>,
    /// A value for {{ NAME }} in the definition file
    #[arg(long, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
    /// Values, one NAME=VALUE in a line
    #[arg(long, value_name = "FILE")]
    build_arg_file: Option<PathBuf>,
    /// The new image
    image: PathBuf,
    #[arg(help = concat!("What it is made of: a definition file, ", sources!()))]
    spec: String,
}

/// `pull`.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct PullArgs {
    #[command(flatten)]
    make: MakeArgs,
    /// The directory in which the new image is made
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The new image; without it, a name is made of where it comes from
    out: Option<PathBuf>,
    /// Where it comes from: docker://NAME[:TAG], oci:DIR, oci-archive:FILE, docker-archive:FILE
    #[arg(value_name = "URI")]
    from: String,
}

/// Runs `build`.
///
/// # Errors
/// What failed. Nothing half made is left, and an older image is as it was.
pub fn run(session: &Session, args: &BuildArgs) -> Result<()> {
    if args.image.as_os_str().is_empty() {
        return Err(Error::usage("no name was given for the image that is to be made"));
    }
    let source = Source::recognise(&args.spec)?;
    if let (Some(arch), false) = (&args.make.registry.arch, matches!(source, Source::Named(_))) {
        return Err(Error::usage(format!("--arch {arch} cannot be had of \"{}\"", args.spec))
            .because("it chooses among the images that a registry, a layout or an archive has for several machines")
            .help("leave it out; a definition file builds for this machine"));
    }
    let options = Options {
        no_test: args.notest,
        test_writes: args.writable_tmpfs,
        arguments: arguments(args)?,
        binds: user_binds(&args.bind, &args.mount)?,
        ..options(session, &args.make)?
    };
    make(session, &source, &args.image, &args.make, &options)?;
    report::info(format!("Build complete: {}", args.image.display()));
    Ok(())
}

/// Runs `pull`.
///
/// # Errors
/// Why the image was not had.
pub fn pull(session: &Session, args: &PullArgs) -> Result<()> {
    let from = &args.from;
    let uri = Uri::parse(from)?.ok_or_else(|| {
        Error::usage(format!("\"{from}\" is not the name of an image that can be pulled"))
            .help(format!("there are {FORMS}"))
    })?;
    let ending = if args.make.sandbox { "" } else { ".sif" };
    let own = || PathBuf::from(format!("{}{ending}", images::default_name(&uri)));
    let out = args.out.clone().unwrap_or_else(own);
    let out = args.dir.as_ref().map_or(out.clone(), |dir| dir.join(&out));
    make(session, &Source::Named(uri), &out, &args.make, &options(session, &args.make)?)?;
    report::info(format!("Pulled: {}", out.display()));
    Ok(())
}

fn options(session: &Session, args: &MakeArgs) -> Result<Options> {
    // As reproducible builds everywhere: this variable stands for every time in the file.
    let fetch = images::options(session, &args.registry);
    let time = fetch.places.env.get("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty());
    let seconds = |text: &String| {
        text.parse().map_err(|_| {
            Error::usage(format!("SOURCE_DATE_EPOCH is {text:?}"))
                .because("it has to be a number of seconds since 1970, below 4294967296")
        })
    };
    Ok(Options {
        time: time.map(seconds).transpose()?,
        force: args.force,
        fetch,
        runtime_dir: session.context.runtime_dir()?,
        ..Options::default()
    })
}

fn make(session: &Session, source: &Source, out: &Path, args: &MakeArgs, options: &Options) -> Result<()> {
    let cache = images::cache(session)?;
    if args.sandbox {
        return build::to_directory(source, out, options, &cache, &Shown);
    }
    let var = |name: &str| options.fetch.places.env.get(name).filter(|value| !value.is_empty());
    let names = ["STASIS_TMPDIR", "APPTAINER_TMPDIR", "SINGULARITY_TMPDIR"];
    let packing = Packing {
        compression: match args.compression.as_str() {
            "gzip" => Compression::Gzip,
            _ => Compression::Zstd(args.compression_level),
        },
        scratch: names.into_iter().find_map(var).map(PathBuf::from),
    };
    build::to_file(source, out, &packing, options, &cache, &Shown)
}

fn user_binds(binds: &[String], mounts: &[String]) -> Result<Vec<(PathBuf, PathBuf, bool)>> {
    let binds = binds::user_binds(binds, mounts, &HostFacts::from_process())?;
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
