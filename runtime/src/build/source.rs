//! What an image can be made of, recognised by how it is named and by what is there.

use std::path::{Path, PathBuf};

use super::{Work, bootstrap};
use crate::error::Result;
use crate::image::oci::fill_from;
use crate::image::oci::reference::Uri;
use crate::image::output::Output;
use crate::image::{is_image_file, may_read};

/// What an image is made of.
#[derive(Debug)]
pub enum Source {
    /// An image in a registry, a layout or an archive.
    Named(Uri),
    /// A directory with a whole root file system.
    Directory(PathBuf),
    /// A SIF file or a bare squashfs file system.
    File(PathBuf),
    /// A definition file.
    Definition(PathBuf),
}

impl Source {
    /// What the user named.
    ///
    /// # Errors
    /// An address of a form that is not supported, or one that is none; what may not be read could be anything.
    pub fn recognise(spec: &str) -> Result<Self> {
        if let Some(uri) = Uri::parse(spec)? {
            return Ok(Self::Named(uri));
        }
        let path = Path::new(spec);
        may_read(path)?;
        Ok(if path.is_dir() {
            Self::Directory(path.to_owned())
        } else if is_image_file(path) {
            Self::File(path.to_owned())
        } else {
            Self::Definition(path.to_owned())
        })
    }

    /// The definition file of an image that has none: where it comes from.
    pub(super) fn as_definition(&self) -> String {
        let (agent, from) = match self {
            Self::Named(uri) => {
                let name = uri.to_string();
                let (agent, rest) = name.split_once(':').unwrap_or(("docker", &name));
                (agent.to_owned(), rest.strip_prefix("//").unwrap_or(rest).to_owned())
            }
            Self::Directory(path) | Self::File(path) | Self::Definition(path) => {
                ("localimage".to_owned(), path.display().to_string())
            }
        };
        format!("bootstrap: {agent}\nfrom: {from}\n")
    }

    /// Puts the whole image into a directory in the making.
    pub(super) fn fill(&self, output: &Output, work: &mut Work<'_>) -> Result<()> {
        match self {
            Self::Named(uri) => fill_from(&output.tree()?, uri, work.cache, &work.options.fetch, work.watch),
            Self::Directory(path) | Self::File(path) => bootstrap::local(path, &output.tree()?, work.watch),
            Self::Definition(file) => work.definition(file, output),
        }
    }
}
