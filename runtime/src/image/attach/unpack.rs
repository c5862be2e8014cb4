//! The last way: the content unpacked once into the user's cache, by the digest of the file system, and used
//! from there. One process unpacks while others wait; what is not whole never gets its name.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use nix::fcntl::{Flock, FlockArg, OFlag};

use super::{FileSpec, Wanted};
use crate::error::{Error, Result};
use crate::image::identity;
use crate::image::tools::{self, Watched};
use crate::image::tree::failed;
use crate::store::{DirHandle, remove};

/// No backend's own cache has this name: they begin with a letter or a digit.
const CACHE: &str = "cache/_images";
const LOCK: &str = ".lock";
const PARTIAL: &str = ".partial";

/// The directory with the content, where it was unpacked before.
pub(super) fn known(wanted: &Wanted<'_>) -> Option<PathBuf> {
    let place = wanted.data_root.join(CACHE);
    // Looking is no reason to make one.
    place.symlink_metadata().ok()?;
    in_cache(&DirHandle::open_or_make(&place).ok()?, &key(&wanted.spec, wanted.file).ok()?)
}

fn in_cache(cache: &DirHandle, key: &str) -> Option<PathBuf> {
    let digest = String::from_utf8(cache.read_small(key).ok()??).ok()?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    (is_digest && is_whole(cache, &digest)).then(|| cache.path().join(digest))
}

fn is_whole(cache: &DirHandle, name: &str) -> bool {
    cache.stat(name).is_ok_and(|found| found.is_some())
}

/// The directory with the content, unpacked by now or long ago.
///
/// # Errors
/// Why it could not be unpacked.
pub fn unpack(wanted: &Wanted<'_>, watched: Watched<'_>) -> Result<PathBuf> {
    let cache = DirHandle::open_or_make(&wanted.data_root.join(CACHE))?;
    let key = key(&wanted.spec, wanted.file)?;
    if let Some(directory) = in_cache(&cache, &key) {
        return Ok(directory);
    }
    let digest = identity::file_digest(wanted.file, &wanted.spec, &AtomicBool::new(false))?;
    let digest = digest.trim_start_matches("blake3:").to_owned();
    let lock = cache.open_file(LOCK, OFlag::O_RDWR | OFlag::O_CREAT)?;
    let waiting = |e: nix::errno::Errno| Error::new("cannot lock the cache of images").because(e.desc());
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| waiting(e))?;
    if !is_whole(&cache, &digest) {
        remove(&cache, PARTIAL)?;
        let partial = cache.path().join(PARTIAL);
        let made = unpack_into(&partial, &wanted.spec, wanted.file, watched)
            .and_then(|()| written(&cache))
            .and_then(|()| Ok(cache.rename(PARTIAL, &cache, &digest)?));
        if let Err(error) = made {
            // What is left is in nobody's way and goes with the next try.
            let _ = remove(&cache, PARTIAL);
            return Err(error);
        }
    }
    cache.replace(&key, digest.as_bytes())?;
    Ok(cache.path().join(digest))
}

/// Its name says that it is whole, also after a power failure.
fn written(cache: &DirHandle) -> Result<()> {
    rustix::fs::syncfs(cache).map_err(|e| failed("write to disk", cache.path(), &e.into()))
}

/// The name under which the digest of a file is noted that was unpacked before: it need not be read again.
fn key(spec: &FileSpec, file: &File) -> Result<String> {
    let print = identity::file_fingerprint(spec, file)?;
    Ok(format!(".known-{}", print.trim_start_matches("file1:")))
}

/// Unpacks it into a directory, which is made where it is missing, and empty where it is there.
///
/// # Errors
/// What stands in the way. The directory may have been begun.
pub fn unpack_into(directory: &Path, spec: &FileSpec, file: &File, watched: Watched<'_>) -> Result<()> {
    let mut command = tools::program("unsquashfs", "squashfs-tools")?;
    command.args(["-no-progress", "-offset", &spec.offset.to_string(), "-dest"]);
    command.arg(directory);
    if directory.is_dir() {
        command.arg("-force");
    }
    let root = nix::unistd::geteuid().is_root();
    // What needs a privilege is left out rather than complained about.
    let accepted: &[i32] = if root { &[] } else { &[2] };
    if !root {
        command.arg("-user-xattrs");
    }
    command.arg("/proc/self/fd/3");
    let ours = file.metadata().map(|m| (m.dev(), m.ino())).ok();
    let what = format!("cannot unpack image \"{}\"", spec.path.display());
    tools::run(command, file, &what, accepted, &mut |pid| {
        if let Some(at) = position(pid, ours) {
            watched(at.saturating_sub(spec.offset).min(spec.size), spec.size);
        }
    })?;
    // A file system whose root is closed to its user is none that can be run.
    let opened = crate::sys::mount::open_place(directory);
    opened.map(|_| ()).map_err(|e| Error::new(what).because(e.desc()))
}

/// How far a process has read the file, from `/proc`.
fn position(pid: u32, file: Option<(u64, u64)>) -> Option<u64> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let places = all.flatten().filter(|entry| {
        let found = std::fs::metadata(entry.path()).map(|m| (m.dev(), m.ino())).ok();
        found.is_some() && found == file
    });
    let pos = |name: std::ffi::OsString| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.to_str()?)).ok()?;
        text.lines().next()?.strip_prefix("pos:")?.trim().parse::<u64>().ok()
    };
    places.filter_map(|entry| pos(entry.file_name())).max()
}
