//! `build`: an image made of something else. What it is made of is recognised here; each source has its own
//! way from there on.

use crate::cli::report;
use crate::cli::teller::Terminal;
use crate::error::{Error, Result};
use crate::image::metadata::Attributes;
use crate::image::sif::write::{self, Compression, Parts};
use crate::image::{self, Image, attach, sif};
use crate::monitor::Teller as _;
use crate::store;
use clap::Args;
use std::path::{Path, PathBuf};

/// `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Replace IMAGE if it exists
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
    /// What is made
    image: PathBuf,
    /// What it is made of: an image directory for a SIF file, an image file for a directory
    spec: String,
}

/// What an image is made of.
#[derive(Debug)]
enum Source {
    /// A directory with a whole root file system.
    Directory(PathBuf),
    /// A SIF file or a bare squashfs file system.
    File,
}

impl Source {
    fn recognise(spec: &str) -> Self {
        let path = Path::new(spec);
        if path.is_dir() { Self::Directory(path.to_owned()) } else { Self::File }
    }
}

/// Makes it.
///
/// # Errors
/// What failed. Nothing half made is left, and an older image is as it was.
pub fn run(args: &BuildArgs) -> Result<()> {
    // What can never work is told before the work.
    if args.image.as_os_str().is_empty() {
        return Err(Error::usage("no name was given for the image that is to be made"));
    }
    match (Source::recognise(&args.spec), args.sandbox) {
        (Source::Directory(_), false) => sif(args)?,
        (Source::File, true) => sandbox(args)?,
        (Source::Directory(directory), true) => {
            return Err(Error::usage(format!("\"{}\" is a directory already", directory.display()))
                .help("copy it, or leave --sandbox out to make a SIF file of it"));
        }
        (Source::File, false) => {
            // Says what is wrong with it, if it is no image at all.
            Image::look_at(&args.spec)?;
            return Err(Error::usage(format!("\"{}\" is an image in a file already", args.spec))
                .help("copy it, or add --sandbox to unpack it"));
        }
    }
    report::info(format!("Build complete: {}", args.image.display()));
    Ok(())
}

fn sif(args: &BuildArgs) -> Result<()> {
    let image = Image::open(&args.spec)?;
    let mut attributes = Attributes::of(&image);
    if attributes.deffile.is_empty() {
        attributes.deffile = format!("bootstrap: localimage\nfrom: {}\n", args.spec);
    }
    let arch = sif::own_arch();
    // As reproducible builds everywhere: this variable stands for every time in the file.
    let time = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    describe(&mut attributes, arch, time);
    if args.image.symlink_metadata().is_ok() {
        write::may_replace(&args.image, args.force)?;
    }
    report::info("Creating SIF file...");
    let compression = match args.compression.as_str() {
        "gzip" => Compression::Gzip,
        _ => Compression::Zstd(args.compression_level),
    };
    let parts = Parts { root: &image.root, attributes: &attributes, arch, compression, time };
    let teller = Terminal::default();
    write::write(&args.image, &parts, args.force, &|done, total| teller.progress(done, total, "compressing"))
}

/// Labels that every image has.
fn describe(attributes: &mut Attributes, arch: &str, time: Option<u32>) {
    let now = time.and_then(|time| jiff::Timestamp::from_second(time.into()).ok());
    let now = now.unwrap_or_else(jiff::Timestamp::now).strftime("%A_%-d_%B_%Y_%-H:%M:%S_UTC").to_string();
    let mut label = |name: &str, value: &str| {
        attributes.labels.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    };
    label("org.label-schema.build-arch", arch);
    label("org.label-schema.build-date", &now);
    label("org.label-schema.schema-version", "1.0");
    label("org.label-schema.usage.stasis.version", env!("CARGO_PKG_VERSION"));
}

fn sandbox(args: &BuildArgs) -> Result<()> {
    let (file, spec, signed) = Image::look_at(&args.spec)?;
    if signed {
        report::info(format!("image \"{}\" is signed; stasis does not check signatures", args.spec));
    }
    let out =
        std::path::absolute(&args.image).map_err(|e| Error::new("cannot find the directory").because(&e))?;
    let exists = out.symlink_metadata().is_ok();
    if exists {
        replaceable(&out, args.force)?;
    }
    let parent = store::DirHandle::open_foreign(out.parent().unwrap_or(Path::new("/")))?;
    let name = out
        .file_name()
        .ok_or_else(|| Error::usage(format!("\"{}\" is no name for an image", out.display())))?;
    let partial = format!(".stasis-build-{}", std::process::id());
    report::info("Extracting local image...");
    let teller = Terminal::default();
    let watched = |done, total| teller.progress(done, total, "unpacking");
    store::remove(&parent, &partial)?;
    let made = attach::unpack_into(&parent.path().join(&partial), &spec, &file, &watched).and_then(|()| {
        if exists {
            parent.exchange(&partial, name)?;
            return Ok(());
        }
        Ok(parent.rename(&partial, &parent, name)?)
    });
    // Either what was replaced, or what never became whole.
    let removed = store::remove(&parent, &partial);
    made?;
    Ok(removed?)
}

fn replaceable(out: &Path, force: bool) -> Result<()> {
    if !force {
        return Err(Error::new(format!("\"{}\" exists already", out.display()))
            .help("replace it with --force, or choose another name"));
    }
    let image = image::Image::open(&out.to_string_lossy()).is_ok();
    let empty = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if image || empty {
        return Ok(());
    }
    Err(Error::new(format!("\"{}\" is no image directory and is not replaced by one", out.display()))
        .help("choose another name, or move it away"))
}
