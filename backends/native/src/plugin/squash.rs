//! A generation written anew: the memory of each process in one file again.

use super::capture::{CORE, listed};
use crate::capture::contents::Contents;
use crate::capture::pages;
use crate::model::{OLDEST, Process};
use crate::restore::check;
use stasis_plugin_api::prelude::*;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub(super) fn squash(host: &Host<'_>, request: &SquashRequest) -> Result<SquashReport> {
    let generation = &request.generation;
    let mut image = check::load(&generation.directory)?;
    let layers = image.processes.iter().flat_map(|process| &process.layers);
    let layers: Vec<PathBuf> = layers.map(|layer| PathBuf::from(&layer.file)).collect();
    let mut contents = Contents::new(&request.staging)?;
    for process in &mut image.processes {
        host.check("writing the generation anew")?;
        if !process.layers.is_empty() {
            rewrite(&generation.directory, process, &mut contents)?;
        }
    }
    image.format = OLDEST;
    let others = generation.files.iter().filter(|file| !layers.contains(file) && *file != Path::new(CORE));
    for file in others {
        copy(&generation.directory.join(file), &request.staging.join(file))?;
    }
    contents.describe(&image)?;
    Ok(SquashReport {
        files: listed(&request.staging)?,
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn rewrite(directory: &Path, process: &mut Process, contents: &mut Contents) -> Result<()> {
    let files = process.layers.iter().map(|layer| check::open(directory, &layer.file));
    let files: Vec<File> = files.collect::<Result<_>>()?;
    pages::gather(contents, process, &|layer, offset, bytes| {
        let file = usize::try_from(layer).ok().and_then(|layer| files.get(layer));
        file.ok_or_else(|| std::io::Error::other("no such file"))?.read_exact_at(bytes, offset)
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(|e| {
        BackendError::failed(format!("cannot copy {} to {}", from.display(), to.display())).because(e)
    })
}
