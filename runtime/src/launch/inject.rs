//! Fills `/.stasis`: what the engine asked for, the staging directory, the generation, the logs.

use crate::error::{Error, Result};
use crate::launch::making::{Making, cannot};
use crate::spec::{EngineSpec, RestartStep};
use crate::sys::mount as sys;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::Mode;
use stasis_plugin_api::plan::{CAPTURE_DIR, DescriptorSource, Helper, IMAGE_DIR, INJECT, LOG_DIR};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

fn base(making: &mut Making) -> Result<()> {
    making.fresh("tmpfs", Path::new(INJECT), MsFlags::empty(), Some("mode=0755,size=64m"))
}

/// Only the log files, where no engine is asked for.
pub(crate) fn logs_only(making: &mut Making, logs: &Path) -> Result<()> {
    base(making)?;
    making.bind(logs, Path::new(LOG_DIR), true)
}

/// Everything that the engine asked for.
pub(crate) fn fill(making: &mut Making, engine: &EngineSpec, logs: Option<&Path>) -> Result<()> {
    base(making)?;
    for directory in &engine.needs.directories {
        making.place(&directory.path, true)?;
        if let Some(size) = directory.tmpfs {
            let data = format!("mode={:o},size={size}", directory.mode);
            making.fresh("tmpfs", &directory.path, MsFlags::empty(), Some(&data))?;
        } else {
            change_mode(making, &directory.path, directory.mode)?;
        }
    }
    for file in &engine.needs.files {
        let bytes = file.bytes().map_err(|e| {
            Error::new(format!("the backend's file {} is broken", file.path.display())).because(e)
        })?;
        write(making, &file.path, file.mode, &bytes)?;
    }
    for bind in &engine.needs.binds {
        making.bind(&bind.source, &bind.target, bind.writable)?;
    }
    making.bind(&engine.staging, Path::new(CAPTURE_DIR), true)?;
    if let Some(generation) = &engine.generation {
        making.bind(generation, Path::new(IMAGE_DIR), false)?;
    }
    if let Some(logs) = logs {
        making.bind(logs, Path::new(LOG_DIR), true)?;
    }
    for socket in sockets(engine) {
        if let Some(parent) = socket.parent() {
            making.place(parent, true)?;
        }
    }
    for path in &engine.cover {
        cover(making, path)?;
    }
    Ok(())
}

fn change_mode(making: &Making, path: &Path, mode: u32) -> Result<()> {
    let place = making.open(path)?;
    let path_of = sys::path_of(place.as_fd());
    std::fs::set_permissions(path_of, std::os::unix::fs::PermissionsExt::from_mode(mode))
        .map_err(|e| Error::new(format!("cannot set the mode of {}", path.display())).because(&e))
}

fn write(making: &Making, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let failed = |e: nix::errno::Errno| cannot("write", path, e);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(nix::errno::Errno::EINVAL));
    };
    let within = making.place(parent, true)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let within = sys::open_below(within.as_fd(), Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .map_err(failed)?;
    let made =
        nix::fcntl::openat(within.as_fd(), name, flags, Mode::from_bits_truncate(mode)).map_err(failed)?;
    let mut made = std::fs::File::from(made);
    made.write_all(bytes)
        .and_then(|()| made.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)))
        .map_err(|e| Error::new(format!("cannot write {}", path.display())).because(&e))
}

/// Hides a directory of the host that a bind has brought inside: the application must not reach the
/// states saved of it.
fn cover(making: &mut Making, path: &Path) -> Result<()> {
    if sys::open_below(making.root.as_fd(), path, OFlag::O_PATH | OFlag::O_DIRECTORY).is_err() {
        return Ok(());
    }
    making.fresh("tmpfs", path, MsFlags::MS_RDONLY, Some("mode=0500,size=4k"))
}

fn helpers(engine: &EngineSpec) -> impl Iterator<Item = &Helper> {
    let rebuild = match &engine.restart {
        Some(RestartStep::Rebuild { helper, .. }) => Some(&**helper),
        _ => None,
    };
    engine.needs.helpers.iter().chain(rebuild)
}

fn sockets(engine: &EngineSpec) -> impl Iterator<Item = &PathBuf> {
    helpers(engine).flat_map(|h| &h.descriptors).filter_map(|d| match &d.source {
        DescriptorSource::UnixListener(path) => Some(path),
        DescriptorSource::Kept(_) => None,
    })
}

/// The sockets that helpers find listening. The process stands in the new root already.
pub(crate) fn listeners(engine: Option<&EngineSpec>) -> Result<BTreeMap<PathBuf, UnixListener>> {
    let mut all = BTreeMap::new();
    for path in engine.into_iter().flat_map(sockets) {
        let listener = UnixListener::bind(path).map_err(|e| {
            Error::new(format!("cannot make the engine's socket {}", path.display())).because(&e)
        })?;
        all.insert(path.clone(), listener);
    }
    Ok(all)
}

/// Makes the injected tree read-only, with everything in place.
pub(crate) fn seal() -> Result<()> {
    let inject = Path::new(INJECT);
    let place = sys::open_place(inject).map_err(|e| cannot("open", inject, e))?;
    sys::make_top_read_only(place.as_fd()).map_err(|e| cannot("make read-only", inject, e))
}
