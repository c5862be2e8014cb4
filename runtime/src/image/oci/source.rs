//! The places that images come from, behind one face: documents and layers by digest.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use super::archive::Archive;
use super::digest::Digest;
use super::download::Download;
use super::fetch::Options;
use super::reference::{Reference, Uri};
use super::registry::{Client, Document};
use super::types::{
    Config, Descriptor, Index, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, Manifest, Platform, REF_NAME, Saved,
};
use crate::error::{Error, Result};
use crate::image::inside::file_type;
use crate::image::sif::own_arch;
use crate::image::tree::{Tree, failed};
use crate::image::watch::Watch;

/// An image that was found, before any layer of it was read.
#[derive(Debug)]
pub(super) struct Found {
    /// Its identity: the manifest's digest, or the configuration's where there is no manifest.
    pub(super) digest: Digest,
    /// What its name stood for.
    pub(super) top: Digest,
    pub(super) config: Config,
    pub(super) layers: Vec<Layer>,
}

/// One of its layers.
#[derive(Debug, Clone)]
pub(super) enum Layer {
    /// Named by the digest of what is stored.
    Blob(Descriptor),
    /// A file of an archive; its digest is that of the archive without compression.
    Member { name: String, size: u64, plain: Digest },
}

impl Layer {
    /// What is stored of it.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Blob(descriptor) => descriptor.size,
            Self::Member { size, .. } => *size,
        }
    }
}

/// A place that images come from.
pub(super) enum Source<'a> {
    Registry(Box<Client<'a>>),
    Layout { tree: Tree, tag: Option<String> },
    LayoutArchive { archive: Archive, tag: Option<String> },
    DockerArchive { archive: Archive, tag: Option<String>, path: PathBuf },
}

impl<'a> Source<'a> {
    pub(super) fn open(uri: &Uri, options: &Options, scratch: &Path, watch: &'a dyn Watch) -> Result<Self> {
        let at = |path: &Path| options.cwd.join(path);
        Ok(match uri {
            Uri::Registry(reference) => Self::Registry(Box::new(Client::new(reference, options, watch))),
            Uri::Layout { dir, tag } => Self::Layout {
                tree: Tree::open(&at(dir))
                    .map_err(|e| e.help("check the spelling; write oci:DIRECTORY[:TAG]"))?,
                tag: tag.clone(),
            },
            Uri::LayoutArchive { file, tag } => {
                Self::LayoutArchive { archive: Archive::open(&at(file), scratch)?, tag: tag.clone() }
            }
            Uri::DockerArchive { file, tag } => Self::DockerArchive {
                archive: Archive::open(&at(file), scratch)?,
                tag: tag.clone(),
                path: at(file),
            },
        })
    }

    /// Which of the images it is, and what it is made of. `arch` names another machine than this one.
    pub(super) fn find(&self, name: &str, arch: Option<&str>) -> Result<Found> {
        if let Self::DockerArchive { archive, tag, path } = self {
            return saved(archive, tag.as_deref(), path, arch);
        }
        let mut document = self.top(name)?;
        let top = document.digest.clone();
        let wanted = arch.unwrap_or(own_arch());
        // An index may name another one, and nobody has ever seen a third.
        for _ in 0..3 {
            let Ok(index) = serde_json::from_slice::<Index>(&document.bytes) else { break };
            let chosen = choose(&index, wanted, name)?;
            document = self.document(chosen)?;
        }
        let manifest: Manifest = serde_json::from_slice(&document.bytes).map_err(|e| {
            Error::new(format!("the manifest of {name} cannot be understood"))
                .because(e)
                .help("images in docker's formats before 2.2 have to be pushed anew by a newer docker")
        })?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(Error::new(format!("{name} has more than {MAX_LAYERS} layers")));
        }
        let bytes = self.small(&manifest.config, MAX_CONFIG)?;
        let config: Config = serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(format!("the configuration of {name} cannot be understood"))
                .because(e)
                .help("check that it is the image of a container, and no other artifact")
        })?;
        check_machine(&config, wanted, name)?;
        Ok(Found {
            digest: document.digest,
            top,
            config,
            layers: manifest.layers.into_iter().map(Layer::Blob).collect(),
        })
    }

    fn top(&self, name: &str) -> Result<Document> {
        let (bytes, tag) = match self {
            Self::Registry(client) => return client.top(),
            Self::Layout { tree, tag } => {
                let found = tree.read("index.json", MAX_MANIFEST)?;
                let missing = || {
                    Error::new(format!("{} is no image layout: it has no index.json", tree.path().display()))
                        .help("for an image directory leave out `oci:`")
                };
                (found.ok_or_else(missing)?, tag)
            }
            Self::LayoutArchive { archive, tag, .. } => (archive.small("index.json", MAX_MANIFEST)?, tag),
            Self::DockerArchive { .. } => return Err(Error::new(format!("{name} has no index"))),
        };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(format!("the index of {name} cannot be understood")).because(e))?;
        self.document(tagged(&index, tag.as_deref(), name)?)
    }

    /// A manifest or an index by its digest.
    fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        match self {
            Self::Registry(client) => client.manifest_of(descriptor),
            _ => {
                let bytes = self.small(descriptor, MAX_MANIFEST)?;
                Ok(Document { digest: descriptor.digest.clone(), bytes })
            }
        }
    }

    /// A small blob, held against its digest.
    fn small(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let name = blob(&descriptor.digest);
        let bytes = match self {
            Self::Registry(client) => client.small(descriptor, limit)?,
            Self::Layout { tree, .. } => {
                tree.read(&name, limit)?.ok_or_else(|| missing(tree.path(), descriptor))?
            }
            Self::LayoutArchive { archive, .. } | Self::DockerArchive { archive, .. } => {
                archive.small(&name, limit)?
            }
        };
        let got = Digest::of(&bytes);
        if got == descriptor.digest {
            return Ok(bytes);
        }
        Err(damaged(&format!("blob {}", descriptor.digest.short()), &got))
    }

    /// A layer as it is stored, from `start` on where it comes from a registry. The reason for an error of the
    /// reader is left in `why`.
    pub(super) fn layer<'s>(
        &'s self,
        layer: &Layer,
        start: u64,
        why: &Rc<RefCell<Option<Error>>>,
    ) -> Result<Box<dyn Read + 's>> {
        match (self, layer) {
            (Self::Registry(client), Layer::Blob(descriptor)) => Ok(Box::new(Download {
                client,
                descriptor: descriptor.clone(),
                at: start,
                body: None,
                failures: 0,
                arrived: 0,
                why: Rc::clone(why),
            })),
            (Self::Layout { tree, .. }, Layer::Blob(descriptor)) => {
                let file = regular(tree, &blob(&descriptor.digest)).map_err(|e| match e.kind() {
                    io::ErrorKind::NotFound => missing(tree.path(), descriptor),
                    _ => failed("read the layer", &tree.path().join(blob(&descriptor.digest)), &e),
                })?;
                Ok(Box::new(file.take(descriptor.size)))
            }
            (Self::LayoutArchive { archive, .. }, Layer::Blob(descriptor)) => {
                Ok(Box::new(archive.member(&blob(&descriptor.digest))?.take(descriptor.size)))
            }
            (Self::DockerArchive { archive, .. }, Layer::Member { name, .. }) => {
                Ok(Box::new(archive.member(name)?))
            }
            _ => Err(Error::new("a layer is not where it should be")),
        }
    }
}

fn regular(tree: &Tree, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let fd = tree.open_at(Path::new(name), flags)?;
    if file_type(&fstat(&fd)?) == SFlag::S_IFREG {
        Ok(File::from(fd))
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn missing(path: &Path, descriptor: &Descriptor) -> Error {
    Error::new(format!("{} is not whole: blob {} is missing", path.display(), descriptor.digest))
        .help("copy the image anew, for example with `skopeo copy`")
}

/// Content that is not what its name says.
pub(super) fn damaged(what: &str, got: &Digest) -> Error {
    Error::new(format!("{what} is damaged")).because(format!("its content has digest {got}"))
}

/// The one of a layout that has this tag; without a tag, the only one.
fn tagged<'i>(index: &'i Index, tag: Option<&str>, name: &str) -> Result<&'i Descriptor> {
    let name_of = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
    let found = match (tag, index.manifests.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(tag), all) => {
            all.iter().find(|d| name_of(d).as_deref() == Some(tag) || d.digest.as_str() == tag)
        }
    };
    found.ok_or_else(|| {
        let all: Vec<String> = index.manifests.iter().filter_map(name_of).collect();
        let there = if all.is_empty() { "none that has a tag".to_owned() } else { all.join(", ") };
        let what = match tag {
            Some(tag) => format!("{name} has no image with tag {tag:?}"),
            None => format!("{name} holds {} images", index.manifests.len()),
        };
        Error::new(what).help(format!("name one behind a colon; there are: {there}"))
    })
}

/// The image of an index for a machine.
fn choose<'i>(index: &'i Index, wanted: &str, name: &str) -> Result<&'i Descriptor> {
    let fits = |p: &Platform| p.os == "linux" && p.architecture == wanted;
    let of = |d: &&'i Descriptor| d.platform.as_ref().is_some_and(fits);
    // Of several variants the plain one: it runs on all of these machines.
    let mut all: Vec<&Descriptor> = index.manifests.iter().filter(of).collect();
    all.sort_by_key(|d| d.platform.as_ref().and_then(|p| p.variant.clone()).filter(|v| v != "v8"));
    if let Some(found) = all.first() {
        return Ok(found);
    }
    if let ([only], true) = (index.manifests.as_slice(), index.manifests.iter().all(|d| d.platform.is_none()))
    {
        return Ok(only);
    }
    let mut there: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    there.dedup();
    Err(Error::new(format!("{name} is not made for linux/{wanted}"))
        .because(format!("it is made for {}", there.join(", ")))
        .help("take an image for this machine; --arch chooses another one's, to look into or to copy"))
}

fn check_machine(config: &Config, wanted: &str, name: &str) -> Result<()> {
    let other_os = !config.os.is_empty() && config.os != "linux";
    let other = !config.architecture.is_empty() && config.architecture != wanted;
    if !other_os && !other {
        return Ok(());
    }
    let made_for =
        format!("{}/{}", if config.os.is_empty() { "linux" } else { &config.os }, config.architecture);
    Err(Error::new(format!("{name} is not made for linux/{wanted}"))
        .because(format!("it is made for {made_for}"))
        .help("take an image for this machine; --arch chooses another one's, to look into or to copy"))
}

/// An image of an archive as `docker save` writes it.
fn saved(archive: &Archive, tag: Option<&str>, path: &Path, arch: Option<&str>) -> Result<Found> {
    let shown = path.display();
    if !archive.has("manifest.json") && archive.has("index.json") {
        return Err(Error::new(format!("{shown} is not an archive of docker's"))
            .help(format!("it is one in the layout of OCI: write oci-archive:{shown}")));
    }
    let bytes = archive.small("manifest.json", MAX_MANIFEST)?;
    let all: Vec<Saved> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(format!("manifest.json in {shown} cannot be understood")).because(e))?;
    let names = |one: &Saved| one.repo_tags.clone().unwrap_or_default();
    // Some tools write whole names, some leave out what goes without saying, and so do users.
    let whole =
        |name: &str| Reference::parse(name).map_or_else(|_| name.to_owned(), |found| found.to_string());
    let wanted = tag.map(whole);
    let has = |one: &&Saved| names(one).iter().any(|name| Some(whole(name)) == wanted);
    let found = match (tag, all.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(_), all) => all.iter().find(has),
    };
    let Some(found) = found else {
        let there: Vec<String> = all.iter().flat_map(names).collect();
        return Err(Error::new(match tag {
            Some(tag) => format!("{shown} has no image {tag:?}"),
            None => format!("{shown} holds {} images", all.len()),
        })
        .help(format!("name one behind a colon; there are: {}", there.join(", "))));
    };
    let bytes = archive.small(&found.config, MAX_CONFIG)?;
    let config: Config = serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(format!("{:?} in {shown} cannot be understood", found.config)).because(e))?;
    check_machine(&config, arch.unwrap_or(own_arch()), &shown.to_string())?;
    let plain = &config.rootfs.diff_ids;
    if plain.len() != found.layers.len() || plain.len() > MAX_LAYERS {
        return Err(Error::new(format!("{shown} is damaged")).because(format!(
            "it has {} layers and digests of {}",
            found.layers.len(),
            plain.len()
        )));
    }
    let layers: Result<Vec<Layer>> = found
        .layers
        .iter()
        .zip(plain)
        .map(|(name, plain)| {
            let size = archive.member(name)?.len();
            Ok(Layer::Member { name: name.clone(), size, plain: plain.clone() })
        })
        .collect();
    let digest = Digest::of(&bytes);
    Ok(Found { top: digest.clone(), digest, layers: layers?, config })
}
