//! The last way: the content unpacked once into the user's cache, by the digest of the file system, and used
//! from there. One process unpacks while others wait; what is not whole never gets its name.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::kept::{InUse, KNOWN, Kept, PARTIAL};
use super::{FileSpec, Wanted};
use crate::error::{Error, Result};
use crate::image::identity;
use crate::image::tools::{self, Watched};
use crate::image::tree::failed;
use crate::store::{DirHandle, remove};

/// The directory with the content, where it was unpacked before.
pub(super) fn known(wanted: &Wanted<'_>) -> Option<InUse> {
    let kept = Kept::existing(wanted.data_root).ok()??;
    kept.known(&key(&wanted.spec, wanted.file).ok()?, &wanted.spec.path).ok()?
}

/// The directory with the content, unpacked by now or long ago.
///
/// # Errors
/// Why it could not be unpacked.
pub fn unpack(wanted: &Wanted<'_>, watched: Watched<'_>) -> Result<InUse> {
    let kept = Kept::open(wanted.data_root)?;
    let key = key(&wanted.spec, wanted.file)?;
    if let Some(found) = kept.known(&key, &wanted.spec.path)? {
        return Ok(found);
    }
    let digest = identity::file_digest(wanted.file, &wanted.spec, &AtomicBool::new(false))?;
    let digest = digest.trim_start_matches("blake3:").to_owned();
    let alone = kept.alone()?;
    // Before it is there, so that it cannot go again before it is used.
    let lock = kept.shared(&digest, &wanted.spec.path)?;
    let cache = kept.dir();
    if !kept.has(&digest) {
        remove(cache, PARTIAL)?;
        let partial = cache.path().join(PARTIAL);
        let made = unpack_holding(&partial, &wanted.spec, wanted.file, Some(&alone), watched)
            .and_then(|()| written(cache))
            .and_then(|()| Ok(cache.rename(PARTIAL, cache, &digest)?));
        if let Err(error) = made {
            // What is left is in nobody's way and goes with the next try.
            let _ = remove(cache, PARTIAL);
            return Err(error);
        }
    }
    cache.replace(&key, digest.as_bytes())?;
    Ok(kept.at(&digest, lock))
}

/// Its name says that it is whole, also after a power failure.
fn written(cache: &DirHandle) -> Result<()> {
    rustix::fs::syncfs(cache).map_err(|e| failed("write to disk", cache.path(), &e.into()))
}

/// The name under which the digest of a file is noted that was unpacked before: it need not be read again.
fn key(spec: &FileSpec, file: &File) -> Result<String> {
    let print = identity::file_fingerprint(spec, file)?;
    Ok(format!("{KNOWN}{}", print.trim_start_matches("file1:")))
}

/// Unpacks it into a directory, which is made where it is missing, and empty where it is there.
///
/// # Errors
/// What stands in the way. The directory may have been begun.
pub fn unpack_into(directory: &Path, spec: &FileSpec, file: &File, watched: Watched<'_>) -> Result<()> {
    unpack_holding(directory, spec, file, None, watched)
}

/// The lock is the tool's as well: when we are killed it lives on for a moment, and writes where the next one
/// would begin.
fn unpack_holding(
    directory: &Path,
    spec: &FileSpec,
    file: &File,
    lock: Option<&File>,
    watched: Watched<'_>,
) -> Result<()> {
    let mut command = tools::program("unsquashfs", "squashfs-tools")?;
    command.args(["-no-progress", "-offset", &spec.offset.to_string(), "-dest"]);
    command.arg(directory);
    if directory.is_dir() {
        command.arg("-force");
    }
    let root = nix::unistd::geteuid().is_root();
    // What needs a privilege is left out rather than complained about.
    let accepted: &[i32] = if root { &[] } else { &[2] };
    // Those of the system give rights, and here they would do so on the host.
    command.arg("-user-xattrs").arg("/proc/self/fd/3");
    let ours = file.metadata().map(|m| (m.dev(), m.ino())).ok();
    let what = format!("cannot unpack image \"{}\"", spec.path.display());
    let files: Vec<_> = std::iter::once(file).chain(lock).map(File::as_fd).collect();
    tools::run(command, &files, (&what, directory), accepted, &mut |pid| {
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
