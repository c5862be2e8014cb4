//! Opens the image of every command, wherever it is; and `cache`.

use crate::cli::report::{self, Progress};
use crate::cli::{Session, output};
use crate::error::Result;
use crate::image::attach::{Kept, Way};
use crate::image::oci::auth::Places;
use crate::image::oci::digest::Digest;
use crate::image::oci::reference::Uri;
use crate::image::oci::{self, Cache, Options, Rooted};
use crate::image::watch::{self, Step, Watch};
use crate::image::{Image, Opening};
use crate::spec::identity::HostFacts;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an image can be, for the help of every command that takes one.
macro_rules! sources {
    () => {
        "a SIF or squashfs file, a directory, or docker://NAME[:TAG], oci:DIR, oci-archive:FILE, docker-archive:FILE"
    };
}
pub(crate) use sources;

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

/// What is kept of images that were fetched or unpacked.
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
pub fn options(session: &Session, args: &RegistryArgs) -> Options {
    let facts = HostFacts::without_names();
    let no_https = ["STASIS_NOHTTPS", "APPTAINER_NOHTTPS", "SINGULARITY_NOHTTPS"].iter().any(|name| {
        facts.env.get(*name).is_some_and(|value| !["", "0", "false", "no"].contains(&value.as_str()))
    });
    Options {
        arch: args.arch.clone(),
        no_https: args.no_https || no_https,
        places: Places {
            authfile: args.authfile.as_ref().map(|file| facts.cwd.join(file)),
            env: facts.env,
            home: session.context.home().map(Path::to_owned),
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

/// Opens the image that a user named: a directory, a file, or by an address, from where it is fetched. Tells what that
/// takes, and what whoever uses it should know.
///
/// # Errors
/// Why it cannot be had.
pub fn open(session: &Session, given: &str, unsquash: bool) -> Result<Image> {
    let image = open_again(session, given, unsquash)?;
    if let Some(file) = &image.file {
        file.notes.iter().for_each(report::verbose);
        file.remarks.iter().for_each(|remark| remark.tell(given, &Shown));
    }
    Ok(image)
}

/// The same for an image of which everything was told already.
///
/// # Errors
/// Why it cannot be had.
pub fn open_again(session: &Session, given: &str, unsquash: bool) -> Result<Image> {
    if let Some(uri) = Uri::parse(given)? {
        let options = options(session, &RegistryArgs::default());
        let fetched = oci::ensure(&uri, &cache(session)?, &options, &Shown)?;
        return in_cache(fetched, given, Some(&uri));
    }
    let way = match unsquash {
        true => Some(Way::Unpacked),
        false => way(session)?,
    };
    let watched = watch::standing(&Shown, "unpacking the image");
    let data_root = session.context.data_root()?;
    Image::open_with(given, &Opening { data_root, way, foreign: false, watched: &watched })
}

/// Opens an image of which nothing is to be run: it may be one for another kind of machine.
///
/// # Errors
/// Why it cannot be had.
pub fn open_to_look(session: &Session, given: &str) -> Result<Image> {
    if Uri::parse(given)?.is_some() {
        return open_again(session, given, false);
    }
    let watched = watch::standing(&Shown, "unpacking the image");
    let (data_root, way) = (session.context.data_root()?, way(session)?);
    Image::open_with(given, &Opening { data_root, way, foreign: true, watched: &watched })
}

/// The way to an image's content that the user wants.
fn way(session: &Session) -> Result<Option<Way>> {
    Way::from_word(session.context.var("STASIS_IMAGE_MOUNT").unwrap_or_default())
}

/// Opens the image that a saved state was recorded with: from the cache, or from where it was fetched.
///
/// # Errors
/// Why it cannot be had.
pub fn open_recorded(session: &Session, name: &str, digest: Option<&str>) -> Result<Image> {
    if let Some(Ok(digest)) = digest.map(|digest| Digest::try_from(digest.to_owned()))
        && let Some(fetched) = oci::cached(&digest, name, &cache(session)?)?
    {
        return in_cache(fetched, name, None);
    }
    open(session, name, false)
}

fn in_cache(fetched: Rooted, given: &str, uri: Option<&Uri>) -> Result<Image> {
    let mut image = Image::open(&fetched.root.to_string_lossy())?;
    given.clone_into(&mut image.given);
    if let Some(uri) = uri {
        image.name = default_name(uri);
    }
    image.fetched = Some(fetched);
    Ok(image)
}

/// As Apptainer names it, without the ending of a file.
pub fn default_name(uri: &Uri) -> String {
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
    tag.map_or_else(|| name.clone(), |tag| format!("{name}_{tag}"))
}

/// Runs `cache ...`.
///
/// # Errors
/// What the file system says.
pub fn run_cache(session: &Session, command: &CacheCommand) -> Result<()> {
    let cache = cache(session)?;
    let unpacked = Kept::existing(&session.context.data_root()?)?;
    match command {
        CacheCommand::List => {
            let mut table = output::Table::new(&["Kind", "Digest", "Size", "Used", "Name"]);
            let mut items = cache.list();
            items.extend(unpacked.map(|kept| kept.list()).transpose()?.unwrap_or_default());
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
            let unused = Duration::from_secs(days.saturating_mul(86_400));
            let (mut gone, mut stayed) = cache.clean(unused, args.dry_run)?;
            if let Some(kept) = unpacked {
                let (more, in_use) = kept.clean(unused, args.dry_run)?;
                gone.extend(more);
                stayed.extend(in_use);
            }
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
    Ok(())
}
