//! From a name to a root directory: find the image, get its layers, unpack them while they arrive, describe it in
//! `/.singularity.d`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use super::auth::Places;
use super::cache::{Cache, Kept, Rooted};
use super::digest::{Digest, Hashing};
use super::layer::{Limits, Unpacked, decoded, unpack};
use super::reference::Uri;
use super::source::{Found, Layer, Source, damaged};
use super::types::ContainerConfig;
use crate::error::{Error, Kind, Result};
use crate::image::singularity;
use crate::image::tree::{Tree, failed};
use crate::image::watch::{Step, Watch};

/// What a user can choose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Another machine's image, `arm64` for example.
    pub arch: Option<String>,
    /// A registry without TLS is trusted.
    pub no_https: bool,
    /// Where logins are.
    pub places: Places,
    /// Relative paths start here.
    pub cwd: PathBuf,
    /// Started as a program of its own: a helper cleans up after one that is killed.
    pub guarded: bool,
}

/// The root directory of an image in the cache, fetched and unpacked if it is not there yet. It is the one for this
/// machine: `options.arch` is for images that are only written down.
///
/// # Errors
/// Why the image cannot be had.
pub fn ensure(uri: &Uri, cache: &Cache, options: &Options, watch: &dyn Watch) -> Result<Rooted> {
    let name = uri.to_string();
    if let Uri::Registry(reference) = uri
        && let Some(digest) = &reference.digest
    {
        let digest = cache.chosen(digest).map_or_else(|| digest.clone(), |kept| kept.digest);
        if let Some(rooted) = cached(&digest, &exact(uri, &digest, options), cache)? {
            return Ok(rooted);
        }
    }
    let source = Source::open(uri, options, &cache.scratch(), watch)?;
    match known(&source, uri, cache, options) {
        Ok(Some(rooted)) => return Ok(rooted),
        Ok(None) => {}
        Err(error) => return without_network(&name, uri, cache, options, watch, error),
    }
    let found = match source.find(&name, None) {
        Ok(found) => found,
        Err(error) => return without_network(&name, uri, cache, options, watch, error),
    };
    let exact = exact(uri, &found.digest, options);
    let lock = match cache.find(&found.digest, cache.lock_file(&found.digest)?, exact.clone())? {
        Ok(rooted) => return Ok(rooted),
        Err(lock) => lock,
    };
    alone(&lock, &name, watch)?;
    // Somebody else may have made it while we waited.
    let lock = match cache.find(&found.digest, lock, exact.clone())? {
        Ok(rooted) => return Ok(rooted),
        Err(lock) => lock,
    };
    alone(&lock, &name, watch)?;
    let fresh = cache.fresh(&found.digest)?;
    let made = Tree::open(&Cache::root_of(&fresh)).and_then(|tree| {
        let sum = fill(&tree, &source, &found, cache, watch, &name)?;
        let top = Some(found.top.clone());
        cache.commit(&fresh, &Kept::now(name.clone(), found.digest.clone(), top, sum.bytes, sum.entries))
    });
    if let Err(error) = made {
        // The reason for the failure is the one to tell.
        let _ = cache.drop_fresh(&found.digest);
        return Err(error);
    }
    let kept = cache.find(&found.digest, lock, exact)?;
    kept.map_err(|_| {
        Error::new(format!("{name} was removed from the cache while it was unpacked")).help("try again")
    })
}

/// Waits until nobody else makes or removes the image, and says so where that takes time.
fn alone(lock: &File, name: &str, watch: &dyn Watch) -> Result<()> {
    let waited = lock.try_lock().or_else(|_| {
        watch.info(&format!("waiting for another process that fetches {name}"));
        lock.lock()
    });
    waited.map_err(|e| Error::new(format!("cannot lock {name} in the cache")).because(&e))
}

/// An image that is there already, if that can be told from what the registry says of the name alone.
fn known(source: &Source<'_>, uri: &Uri, cache: &Cache, options: &Options) -> Result<Option<Rooted>> {
    let Source::Registry(client) = source else { return Ok(None) };
    let Some(kept) = client.digest()?.and_then(|top| cache.chosen(&top)) else { return Ok(None) };
    cached(&kept.digest, &exact(uri, &kept.digest, options), cache)
}

/// An image by its digest, if it is in the cache.
///
/// # Errors
/// What the file system says.
pub fn cached(digest: &Digest, name: &str, cache: &Cache) -> Result<Option<Rooted>> {
    Ok(cache.find(digest, cache.lock_file(digest)?, name.to_owned())?.ok())
}

/// A machine without a way to the registry takes what it had last under this name, and says so.
fn without_network(
    name: &str,
    uri: &Uri,
    cache: &Cache,
    options: &Options,
    watch: &dyn Watch,
    error: Error,
) -> Result<Rooted> {
    let cut_off = matches!(uri, Uri::Registry(_)) && error.kind == Some(Kind::Unreachable);
    let Some(kept) = cache.last_of(name).filter(|_| cut_off) else { return Err(error) };
    match cached(&kept.digest, &exact(uri, &kept.digest, options), cache)? {
        Some(rooted) => {
            watch.warning(&format!("{}; the image of that name from {} is taken", error.what, kept.made));
            Ok(rooted)
        }
        None => Err(error),
    }
}

/// A name for exactly this image, where there can be one; else one that means the same from everywhere.
fn exact(uri: &Uri, digest: &Digest, options: &Options) -> String {
    let at = |path: &Path| options.cwd.join(path);
    match uri.clone() {
        Uri::Registry(reference) => Uri::Registry(reference.exactly(digest)),
        Uri::Layout { dir, tag } => Uri::Layout { dir: at(&dir), tag },
        Uri::LayoutArchive { file, tag } => Uri::LayoutArchive { file: at(&file), tag },
        Uri::DockerArchive { file, tag } => Uri::DockerArchive { file: at(&file), tag },
    }
    .to_string()
}

/// Unpacks an image into a directory that is there and empty.
///
/// # Errors
/// Why the image cannot be had.
pub fn fill_from(tree: &Tree, uri: &Uri, cache: &Cache, options: &Options, watch: &dyn Watch) -> Result<()> {
    let name = uri.to_string();
    let source = Source::open(uri, options, &cache.scratch(), watch)?;
    let found = source.find(&name, options.arch.as_deref())?;
    fill(tree, &source, &found, cache, watch, &name).map(drop)
}

/// Puts all layers together and describes the image.
fn fill(
    tree: &Tree,
    source: &Source<'_>,
    found: &Found,
    cache: &Cache,
    watch: &dyn Watch,
    name: &str,
) -> Result<Unpacked> {
    let stored = found.layers.iter().map(Layer::size).fold(0, u64::saturating_add);
    let limits = Limits::for_stored(stored);
    let mut step = watch.step(&format!("fetching {}", name.rsplit('/').next().unwrap_or(name)), Some(stored));
    let mut sum = Unpacked::default();
    for (number, layer) in found.layers.iter().enumerate() {
        watch.verbose(&format!("layer {} of {}", number + 1, found.layers.len()));
        put(tree, source, layer, cache, limits, &mut sum, &mut *step).map_err(|error| {
            let what = format!("cannot unpack layer {} of {}, from {name}", number + 1, found.layers.len());
            Error { code: error.code, ..Error::new(what).because_of(&error) }
        })?;
    }
    drop(step);
    if sum.devices > 0 {
        watch.info(&format!(
            "{} device nodes of the image were left out: containers have the host's",
            sum.devices
        ));
    }
    if sum.attributes > 0 {
        watch.verbose(&format!("{} extended attributes were left out", sum.attributes));
    }
    let config = found.config.config.clone().unwrap_or_default();
    describe(tree, &config, name, &found.digest)?;
    Ok(sum)
}

fn describe(tree: &Tree, config: &ContainerConfig, name: &str, digest: &Digest) -> Result<()> {
    singularity::from_config(tree, config)?;
    let (agent, from) = name.split_once(':').unwrap_or(("", name));
    let labels = [
        ("org.label-schema.schema-version", "1.0"),
        ("org.label-schema.usage.singularity.deffile.bootstrap", agent),
        ("org.label-schema.usage.singularity.deffile.from", from.trim_start_matches('/')),
        ("org.opencontainers.image.digest", digest.as_str()),
    ];
    let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    singularity::add_labels(tree, &labels.collect::<BTreeMap<_, _>>())
}

/// Gets one layer and unpacks it while it arrives. What comes from a registry is kept.
fn put(
    tree: &Tree,
    source: &Source<'_>,
    layer: &Layer,
    cache: &Cache,
    limits: Limits,
    sum: &mut Unpacked,
    step: &mut dyn Step,
) -> Result<()> {
    let why = Rc::new(RefCell::new(None));
    let told = |error: Error| why.borrow_mut().take().unwrap_or(error);
    match layer {
        Layer::Blob(descriptor) => {
            let mut incoming = match source {
                Source::Registry(_) => Incoming::of_registry(cache, source, layer, &descriptor.digest, &why)?,
                _ => Incoming::new(source.layer(layer, 0, &why)?, &why),
            };
            let mut passing = Passing { inner: Hashing::new(&mut incoming), step };
            let unpacked = decoded(&mut passing)
                .map_err(|e| unreadable(&e))
                .and_then(|reader| unpack(tree, reader, limits, sum));
            if let Err(error) = &unpacked
                && (why.borrow().is_some() || io::copy(&mut passing, &mut io::sink()).is_err())
            {
                return Err(told(error.clone()));
            }
            // Behind the archive's end there is padding, and the digest is over all of it. What could not be
            // unpacked may be damaged: then that is the thing to tell.
            let (digest, size) = passing.inner.finish().map_err(|e| told(unreadable(&e)))?;
            if digest != descriptor.digest || size != descriptor.size {
                let place = incoming.discard();
                let mut error = damaged(&format!("layer {}", descriptor.digest.short()), &digest);
                if size != descriptor.size {
                    error = error.because(format!("it has {size} bytes and should have {}", descriptor.size));
                }
                return Err(error.help(match place {
                    Some(()) => "try again: it was removed from the cache",
                    None => "try again; if it stays so, the image is damaged where it comes from",
                }));
            }
            incoming.keep()?;
            unpacked
        }
        Layer::Member { name, plain, .. } => {
            let packed = Passing { inner: source.layer(layer, 0, &why)?, step };
            let reader = decoded(packed).map_err(|e| unreadable(&e))?;
            let mut hashing = Hashing::new(reader);
            unpack(tree, &mut hashing, limits, sum)?;
            let (digest, _) = hashing.finish().map_err(|e| unreadable(&e))?;
            if digest == *plain { Ok(()) } else { Err(damaged(&format!("{name:?}"), &digest)) }
        }
    }
}

fn unreadable(e: &io::Error) -> Error {
    Error::new("cannot read it").because(crate::image::io_words(e))
}

/// Moves the bar on.
struct Passing<'a, R> {
    inner: R,
    step: &'a mut dyn Step,
}

impl<R: Read> Read for Passing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.step.advance(n as u64);
        Ok(n)
    }
}

/// A layer on its way: first what the cache has of it, then the rest, which is added to the cache while it passes.
struct Incoming<'a> {
    stored: Option<io::Take<File>>,
    rest: Box<dyn Read + 'a>,
    tee: Option<File>,
    kept: Option<Blob>,
    /// What the reader is to tell in place of an error of its own.
    why: Rc<RefCell<Option<Error>>>,
}

/// Its place in the cache.
struct Blob {
    partial: PathBuf,
    whole: PathBuf,
    complete: bool,
    /// Nobody else downloads it at the same time.
    _lock: File,
}

impl<'a> Incoming<'a> {
    /// One of which nothing is kept.
    fn new(rest: Box<dyn Read + 'a>, why: &Rc<RefCell<Option<Error>>>) -> Self {
        Self { stored: None, rest, tee: None, kept: None, why: Rc::clone(why) }
    }

    fn of_registry(
        cache: &Cache,
        source: &'a Source<'_>,
        layer: &Layer,
        digest: &Digest,
        why: &Rc<RefCell<Option<Error>>>,
    ) -> Result<Self> {
        let lock = cache.lock_file(digest)?;
        lock.lock().map_err(|e| failed("lock", &cache.blob(digest), &e))?;
        let whole = cache.blob(digest);
        let partial = whole.with_extension("partial");
        let complete = whole.is_file();
        let mut blob = Blob { partial, whole, complete, _lock: lock };
        if complete {
            let file = File::open(&blob.whole).map_err(|e| failed("read", &blob.whole, &e))?;
            // Where that cannot be noted it goes a little sooner.
            let _ = file.set_modified(SystemTime::now());
            let stored = Some(file.take(u64::MAX));
            return Ok(Self { stored, kept: Some(blob), ..Self::new(Box::new(io::empty()), why) });
        }
        let mut options = OpenOptions::new();
        let tee = options.read(true).append(true).create(true).mode(0o600).open(&blob.partial);
        let tee = tee.map_err(|e| failed("write to the cache at", &blob.partial, &e))?;
        let have = tee.metadata().map_or(0, |meta| meta.len()).min(layer.size());
        let stored = File::open(&blob.partial).map_err(|e| failed("read", &blob.partial, &e))?;
        blob.complete = false;
        let rest = source.layer(layer, have, why)?;
        let stored = Some(stored.take(have));
        Ok(Self { stored, tee: Some(tee), kept: Some(blob), ..Self::new(rest, why) })
    }

    /// It was what it should be.
    fn keep(self) -> Result<()> {
        match self.kept {
            Some(blob) if !blob.complete => std::fs::rename(&blob.partial, &blob.whole)
                .map_err(|e| failed("keep the layer in the cache at", &blob.whole, &e)),
            _ => Ok(()),
        }
    }

    /// It was not. Answers whether it came out of the cache.
    fn discard(self) -> Option<()> {
        let blob = self.kept?;
        // Where it cannot be removed, it is found damaged again next time.
        let _ = std::fs::remove_file(&blob.whole);
        let _ = std::fs::remove_file(&blob.partial);
        Some(())
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(stored) = &mut self.stored {
            let n = stored.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            self.stored = None;
        }
        let n = self.rest.read(buffer)?;
        if let Some(tee) = &mut self.tee {
            tee.write_all(&buffer[..n]).inspect_err(|e| {
                let place = self.kept.as_ref().map_or(Path::new(""), |blob| &blob.partial);
                *self.why.borrow_mut() = Some(failed("keep the layer in the cache at", place, e));
            })?;
        }
        Ok(n)
    }
}
