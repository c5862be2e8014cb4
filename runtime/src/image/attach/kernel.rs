//! The kernel's own squashfs, for root: its parser is not made for hostile input, so that it gets only files
//! that nobody but root could have made.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use super::{Held, Wanted};
use crate::error::{Error, Result};
use crate::registry::trust;
use crate::sys::{loop_device, mount};

pub(super) fn mount(wanted: &Wanted<'_>) -> Result<Held> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::new("only root may let the kernel mount a file"));
    }
    let trusted = trust::open_file(&wanted.spec.path, 0)
        .map_err(|e| Error::new("not every part of its path is root's alone").because(e))?;
    let id = |meta: std::io::Result<std::fs::Metadata>| meta.map(|m| (m.dev(), m.ino())).ok();
    if id(trusted.metadata()) != id(wanted.file.metadata()) {
        return Err(Error::new("it was exchanged for another file meanwhile"));
    }
    let spec = &wanted.spec;
    let (device, path) = loop_device::attach(trusted.as_fd(), spec.offset, spec.size)
        .map_err(|e| Error::new("no loop device can be had").because(e.desc()))?;
    let source =
        CString::new(path.as_os_str().as_bytes()).map_err(|e| Error::new("a loop device").because(e))?;
    let mounted = mount::detached(c"squashfs", &[(c"source", Some(source.as_c_str()))]);
    // From here on the mount keeps the device.
    drop(device);
    match mounted {
        Ok(mount) => Ok(Held::new(mount, None)),
        Err((errno, said)) => {
            let error = Error::new("the kernel does not mount it").because(errno.desc());
            Err(if said.is_empty() { error } else { error.because(said) })
        }
    }
}
