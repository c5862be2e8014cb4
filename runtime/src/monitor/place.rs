//! Places of a monitor in the runtime directory: the instance's own, its socket, the common mount point.

use crate::error::{Error, Result};
use crate::name::InstanceName;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where an instance's own directory is.
#[must_use]
pub fn runtime_path(base: &Path, name: &InstanceName) -> PathBuf {
    base.join("run").join(name.as_str())
}

/// A fresh private directory for an instance.
pub(super) fn runtime_directory(base: &Path, name: &InstanceName) -> Result<PathBuf> {
    let path = runtime_path(base, name);
    clear(&path);
    make_private(&base.join("run"))?;
    make_private(&path)?;
    Ok(path)
}

/// The shared empty directory on which containers put their roots together, each in a mount namespace
/// of its own.
///
/// # Errors
/// What the file system says.
pub fn mount_point(base: &Path) -> Result<PathBuf> {
    let path = base.join("mnt");
    make_private(&path)?;
    Ok(path)
}

fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    match made {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::new(format!("cannot make the directory {}", path.display())).because(&e))
        }
        _ => Ok(()),
    }
}

/// Removes an instance's runtime directory: only files that a monitor puts there.
pub fn clear(runtime: &Path) {
    for entry in std::fs::read_dir(runtime).into_iter().flatten().flatten() {
        // Workers remove their scratch directories themselves; what is left of a killed one is small
        // and lies in memory.
        let _ = std::fs::remove_file(entry.path()).or_else(|_| std::fs::remove_dir(entry.path()));
    }
    let _ = std::fs::remove_dir(runtime);
}

/// The instance's socket, for its owner only.
pub(super) fn listen(runtime: &Path) -> Result<UnixListener> {
    let directory = crate::sys::mount::open_place(runtime)
        .map_err(|e| Error::new("cannot open the instance's directory").because(e.desc()))?;
    // Through the descriptor: a long path would not fit into a socket address.
    let path = crate::sys::mount::path_of(std::os::fd::AsFd::as_fd(&directory)).join("control.sock");
    let listener =
        UnixListener::bind(&path).map_err(|e| Error::new("cannot make the instance's socket").because(&e))?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(|e| Error::new("cannot protect the instance's socket").because(&e))?;
    Ok(listener)
}
