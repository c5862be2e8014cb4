//! Images by name: `pull`, `cache`, and what opens the image of every other command.

use crate::cli::report::{self, Progress};
use crate::cli::{Session, output};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::oci::auth::Places;
use crate::image::oci::digest::Digest;
use crate::image::oci::reference::{FORMS, Uri};
use crate::image::oci::{self, Cache, Options, Rooted};
use crate::image::watch::{Step, Watch};
use crate::spec::identity::HostFacts;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Flags of whatever asks a registry.
#[derive(Debug, Clone, Default, Args)]
pub struct RegistryArgs {
    /// Trust a registry without TLS
    #[arg(long, help_heading = "Registries")]
    pub no_https: bool,
    /// Take logins from this file only
    #[arg(long, value_name = "FILE", help_heading = "Registries")]
    pub authfile: Option<PathBuf>,
    /// The image for this machine, as amd64 or arm64
    #[arg(long, value_name = "ARCH", help_heading = "Registries")]
    pub arch: Option<String>,
}

/// `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Replace an image that is there
    #[arg(short = 'F', long)]
    force: bool,
    /// Make an image directory
    #[arg(long)]
    sandbox: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The new image, and where it comes from; of one word only, it is where it comes from
    #[arg(required = true, num_args = 1..=2, value_names = ["OUT", "URI"])]
    words: Vec<String>,
}

/// What is kept of fetched images.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// What is kept
    List,
    /// Remove what was not used for a while
    Clean(CleanArgs),
}

/// `cache clean`.
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// Remove everything that is not in use
    #[arg(long, conflicts_with = "days")]
    all: bool,
    /// Remove what was not used for so many days
    #[arg(short = 'D', long, value_name = "N", default_value_t = 30)]
    days: u64,
    /// Only tell what would go
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Tells on the terminal.
#[derive(Debug, Clone, Copy)]
pub struct Shown;

impl Watch for Shown {
    fn info(&self, text: &str) {
        report::info(text);
    }
    fn warning(&self, text: &str) {
        report::warning(text);
    }
    fn verbose(&self, text: &str) {
        report::verbose(text);
    }
    fn step(&self, what: &str, total: Option<u64>) -> Box<dyn Step> {
        Box::new(Progress::new(what, total))
    }
}

impl Step for Progress {
    fn advance(&mut self, bytes: u64) {
        Self::advance(self, bytes);
    }
}

/// What a user can choose, with what is known of the user.
///
/// # Errors
/// The home directory is not known.
pub fn options(session: &Session, args: &RegistryArgs) -> Options {
    let facts = HostFacts::from_process();
    let no_https = ["STASIS_NOHTTPS", "APPTAINER_NOHTTPS", "SINGULARITY_NOHTTPS"].iter().any(|name| {
        facts.env.get(*name).is_some_and(|value| !["", "0", "false", "no"].contains(&value.as_str()))
    });
    Options {
        arch: args.arch.clone(),
        no_https: args.no_https || no_https,
        places: Places {
            authfile: args.authfile.as_ref().map(|file| facts.cwd.join(file)),
            env: facts.env,
            home: session.context.home.clone(),
        },
        cwd: facts.cwd,
        guarded: true,
    }
}

/// The cache of the user.
///
/// # Errors
/// Why it cannot be had.
pub fn cache(session: &Session) -> Result<Cache> {
    Cache::open(&session.context.data_root()?)
}

/// An opened image; what is fetched by name stays in the cache while this lives.
pub struct Opened {
    /// The image.
    pub image: Image,
    /// Its place in the cache.
    pub rooted: Option<Rooted>,
}

/// Opens the image that a user named, fetching it where it is the name of one.
///
/// # Errors
/// Why it cannot be had.
pub fn open(session: &Session, given: &str) -> Result<Opened> {
    let Some(uri) = Uri::parse(given)? else {
        return Ok(Opened { image: Image::open(given)?, rooted: None });
    };
    let rooted = oci::ensure(&uri, &cache(session)?, &options(session, &RegistryArgs::default()), &Shown)?;
    let mut image = Image::open(&rooted.root.to_string_lossy())?;
    given.clone_into(&mut image.given);
    image.name = default_name(&uri).to_string_lossy().into_owned();
    Ok(Opened { image, rooted: Some(rooted) })
}

/// Opens the image that a saved state was recorded with: from the cache, or from where it was fetched.
///
/// # Errors
/// Why it cannot be had.
pub fn open_recorded(session: &Session, name: &str, digest: Option<&str>) -> Result<Opened> {
    if let Some(Ok(digest)) = digest.map(|digest| Digest::try_from(digest.to_owned()))
        && let Some(rooted) = oci::cached(&digest, name, &cache(session)?)?
    {
        let mut image = Image::open(&rooted.root.to_string_lossy())?;
        name.clone_into(&mut image.given);
        return Ok(Opened { image, rooted: Some(rooted) });
    }
    open(session, name)
}

/// Runs `pull`.
///
/// # Errors
/// Why the image was not had.
pub fn pull(session: &Session, args: &PullArgs) -> Result<i32> {
    let (out, from) = match args.words.as_slice() {
        [from] => (None, from),
        [out, from, ..] => (Some(PathBuf::from(out)), from),
        [] => return Err(Error::usage("pull needs the name of an image")),
    };
    let uri = Uri::parse(from)?.ok_or_else(|| {
        Error::usage(format!("\"{from}\" is not the name of an image that can be pulled"))
            .help(format!("there are {FORMS}"))
    })?;
    let out = out.unwrap_or_else(|| default_name(&uri));
    if !args.sandbox {
        return Err(Error::usage("pull makes image directories only").help("add --sandbox"));
    }
    let options = options(session, &args.registry);
    let digest = oci::pull_to_directory(&uri, &out, args.force, &cache(session)?, &options, &Shown)?;
    report::verbose(format!("its digest is {digest}"));
    report::info(format!("Pulled: {}", out.display()));
    Ok(0)
}

/// As Apptainer names it, without the ending of a file.
fn default_name(uri: &Uri) -> PathBuf {
    let (name, tag) = match uri {
        Uri::Registry(reference) => (
            reference.repository.rsplit('/').next().unwrap_or_default().to_owned(),
            reference.tag.clone().or_else(|| reference.digest.as_ref().map(|d| d.short().to_owned())),
        ),
        Uri::Layout { dir: path, tag }
        | Uri::LayoutArchive { file: path, tag }
        | Uri::DockerArchive { file: path, tag } => {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            (stem, tag.as_ref().map(|tag| tag.replace(['/', ':'], "_")))
        }
    };
    PathBuf::from(tag.map_or_else(|| name.clone(), |tag| format!("{name}_{tag}")))
}

/// Runs `cache ...`.
///
/// # Errors
/// What the file system says.
pub fn run_cache(session: &Session, command: &CacheCommand) -> Result<i32> {
    let cache = cache(session)?;
    match command {
        CacheCommand::List => {
            let mut table = output::Table::new(&["Kind", "Digest", "Size", "Used", "Name"]);
            let items = cache.list();
            for item in &items {
                let used = jiff::Timestamp::try_from(item.used).map(|t| output::age(&t.to_string()));
                let short = item.digest.get(7..19).unwrap_or_default().to_owned();
                let used = used.unwrap_or_default();
                table.row([item.kind.to_owned(), short, output::size(item.size), used, item.name.clone()]);
            }
            table.print()?;
            let sum = items.iter().map(|item| item.size).fold(0, u64::saturating_add);
            report::info(format!("{} in all", output::size(sum)));
        }
        CacheCommand::Clean(args) => {
            let days = if args.all { 0 } else { args.days };
            let (gone, stayed) =
                cache.clean(Duration::from_secs(days.saturating_mul(86_400)), args.dry_run)?;
            for item in &stayed {
                report::info(format!("{} {} is in use and stays", item.kind, item.digest));
            }
            let sum = gone.iter().map(|item| item.size).fold(0, u64::saturating_add);
            let would = match (args.dry_run, gone.len()) {
                (true, 1) => "1 thing would be removed".to_owned(),
                (false, 1) => "1 thing was removed".to_owned(),
                (true, count) => format!("{count} things would be removed"),
                (false, count) => format!("{count} things were removed"),
            };
            report::info(format!("{would}, {}", output::size(sum)));
        }
    }
    Ok(0)
}
