//! An image becomes a SIF file: what it is made of is put into a directory beside it, unless it is one already, and
//! that is packed.

use std::path::{Path, PathBuf};

use super::{Options, Source, Work};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::metadata::Attributes;
use crate::image::oci::Cache;
use crate::image::output::Output;
use crate::image::sif::own_arch;
use crate::image::sif::write::{self, Compression, Parts};
use crate::image::watch::{self, Watch};

/// How it is packed.
#[derive(Debug, Clone, Default)]
pub struct Packing {
    /// Of the file system.
    pub compression: Compression,
    /// Where the directory is made; beside the file where nothing is said.
    pub scratch: Option<PathBuf>,
}

/// Makes a SIF file.
///
/// # Errors
/// What failed. Nothing half made is left, and an older file is as it was.
pub fn to_file(
    source: &Source,
    out: &Path,
    packing: &Packing,
    options: &Options,
    cache: &Cache,
    watch: &dyn Watch,
) -> Result<()> {
    // What can never work is told before the work.
    let out = std::path::absolute(out).map_err(|e| Error::new("cannot find the directory").because(&e))?;
    if out.symlink_metadata().is_ok() {
        write::may_replace(&out, options.force)?;
    }
    write::may_make(&out)?;
    let (root, _place) = match source {
        Source::Directory(path) => (path.clone(), None),
        _ => {
            let name = out.file_name().unwrap_or_default();
            let parent = packing.scratch.as_deref().or_else(|| out.parent()).unwrap_or(Path::new("/"));
            let place = Output::scratch(parent, name, options.fetch.guarded)?;
            source.fill(&place, &mut Work::new(options, cache, watch))?;
            (place.path(), Some(place))
        }
    };
    let image = Image::open(&root.to_string_lossy())?;
    let mut attributes = Attributes::of(&image);
    if attributes.deffile.is_empty() {
        attributes.deffile = source.as_definition();
    }
    let arch = options.fetch.arch.as_deref().unwrap_or(own_arch());
    describe(&mut attributes, arch, options.time);
    watch.info("Creating SIF file...");
    let (compression, time) = (packing.compression, options.time);
    let parts = Parts { root: &image.root, attributes: &attributes, arch, compression, time };
    write::write(&out, &parts, options.force, &watch::standing(watch, "compressing"))
}

/// Labels that every image has.
fn describe(attributes: &mut Attributes, arch: &str, time: Option<u32>) {
    for (name, value) in super::metadata::standard_labels(arch, time) {
        attributes.labels.entry(name).or_insert(value);
    }
}
