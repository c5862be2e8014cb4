//! What a restart goes back to, and whether the image is the one that it was saved of.

use crate::cli::Session;
use crate::cli::images;
use crate::cli::wanted::Wanted;
use crate::error::{Error, Result};
use crate::image::{Image, identity};
use crate::name::{BackendName, CheckpointName, CheckpointRef};
use crate::spec::{ContainerSpec, SPEC_FORMAT};
use crate::store::{CheckpointRecord, Generation, ImageIdentity};
use std::sync::atomic::AtomicBool;

/// The kind of an image that was fetched by name: its digest is its identity.
const FETCHED: &str = "oci";

/// What a restart goes back to.
pub(super) struct Back {
    /// What is brought back.
    pub(super) generation: Generation,
    /// The container, as recorded with it.
    pub(super) spec: ContainerSpec,
    /// To what its checkpoint is bound: the image is there as it was at the last start.
    record: CheckpointRecord,
}

impl Back {
    /// The backend to which its checkpoint is bound.
    pub(super) fn backend(&self) -> Option<&BackendName> {
        self.record.backend.as_ref().map(|bound| &bound.name)
    }

    /// What `-` means: an image that was fetched by name is fetched again, should it be gone.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(super) fn image(&self, session: &Session, unsquash: bool) -> Result<Image> {
        let recorded = &self.generation.manifest().image;
        match recorded.kind.as_str() {
            FETCHED => images::open_recorded(session, &recorded.path, recorded.digest.as_deref()),
            _ => images::open(session, &self.spec.root.image().to_string_lossy(), unsquash),
        }
    }
}

/// The backend to which the checkpoint is bound; none where it is made by this start.
///
/// # Errors
/// Of reading the store.
pub(super) fn recorded(
    session: &Session,
    wanted: &Wanted,
    back: Option<&Back>,
) -> Result<Option<BackendName>> {
    if let Some(back) = back {
        return Ok(back.backend().cloned());
    }
    let Some(name) = wanted.checkpoint() else { return Ok(None) };
    let (store, name) = (session.store()?, CheckpointName::new(&name)?);
    match store.exists(&name)? {
        true => Ok(store.checkpoint(&name)?.record()?.backend.map(|b| b.name)),
        false => Ok(None),
    }
}

/// The generation that is brought back, when one is asked for; `--resume` becomes one of the other two.
///
/// # Errors
/// There is no such generation, it is not the user's, or its container is not understood.
pub(super) fn back(session: &Session, wanted: &mut Wanted) -> Result<Option<Back>> {
    let args = &mut wanted.args;
    if let Some(name) = args.resume.take() {
        let store = session.store()?;
        let saved = store.exists(&name)? && !store.checkpoint(&name)?.generations()?.is_empty();
        match saved {
            true => args.restart = Some(CheckpointRef { name, generation: None }),
            false => args.checkpoint = Some(name),
        }
    }
    let Some(from) = &args.restart else { return Ok(None) };
    let checkpoint = session.store()?.checkpoint(&from.name)?;
    let generation = checkpoint.generation(from.generation)?;
    let manifest = generation.manifest();
    let what = format!("generation {} of \"{}\"", generation.number(), from.name);
    if manifest.host.uid != session.context.euid {
        return Err(Error::new(format!(
            "{what} belongs to uid {}, you are uid {}",
            manifest.host.uid, session.context.euid
        ))
        .help("only the user who saved it can bring it back"));
    }
    let with = || format!("bring it back with stasis {} or newer", manifest.stasis_version);
    let spec: ContainerSpec = manifest.spec.read().map_err(|e| {
        let what = format!("{what} describes a container that this stasis does not understand");
        Error::new(what).because(&e).help(with())
    })?;
    if spec.format > SPEC_FORMAT {
        let what = format!("{what} was saved by a newer stasis ({})", manifest.stasis_version);
        return Err(Error::new(what).help(with()));
    }
    let record = checkpoint.record()?;
    Ok(Some(Back { generation, spec, record }))
}

/// The image as it is; at a restart it has to be the recorded one.
///
/// # Errors
/// It is another one, or cannot be read.
pub(super) fn identify(image: &Image, back: Option<&Back>) -> Result<ImageIdentity> {
    let mut found = match &image.fetched {
        Some(fetched) => ImageIdentity {
            kind: FETCHED.to_owned(),
            path: fetched.name.clone(),
            fingerprint: fetched.digest.to_string(),
            digest: Some(fetched.digest.to_string()),
            uuid: None,
        },
        None => ImageIdentity {
            kind: kind_of(image).to_owned(),
            path: image.root.to_string_lossy().into_owned(),
            fingerprint: identity::fingerprint(image)?,
            digest: None,
            uuid: image.file.as_ref().and_then(|file| Some(file.sif.as_ref()?.uuid.clone())),
        },
    };
    let Some(back) = back else { return Ok(found) };
    let recorded = &back.generation.manifest().image;
    // One that was touched since looked like that at the last start already, and was compared then.
    let bound = back.record.image.iter();
    let compared = bound.filter(|bound| bound.digest.is_some() && bound.digest == recorded.digest);
    if let Some(known) = compared.chain([recorded]).find(|known| found.same_as(known)) {
        found.digest.clone_from(&known.digest);
        return Ok(found);
    }
    tracing::debug!(image = %image.root.display(), "all of the image is read, to see whether it is the recorded one");
    found.digest = Some(identity::content_digest(image, &AtomicBool::new(false))?.digest);
    if recorded.digest == found.digest {
        return Ok(found);
    }
    Err(Error::new(format!("generation {} was saved of another image", back.generation.number()))
        .because(format!("it was saved of {recorded}"))
        .because(format!("{found} holds other files"))
        .help("give the image that it was started from, unchanged"))
}

fn kind_of(image: &Image) -> &'static str {
    match &image.file {
        None => "directory",
        Some(file) if file.sif.is_some() => "sif",
        Some(_) => "squashfs",
    }
}
