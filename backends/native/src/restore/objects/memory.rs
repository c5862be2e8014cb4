//! Memory that outlives a mapping: a memfd each, or the file of a tmpfs that still has its name.

use super::{Maker, Tried, copy_sparse, reopen};
use crate::model::{MemorySource, Object, SharedMemory};
use crate::sys::fd;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use stasis_plugin_api::prelude::*;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

/// All of it, with its content.
pub(super) fn make(maker: &Maker<'_>) -> Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for memory in &maker.image.memories {
        let failed = |e: std::io::Error| {
            BackendError::failed("cannot bring back shared memory").because(format!("{}: {e}", name(memory)))
        };
        let file = open(memory).map_err(failed)?;
        if let Some(number) = memory.content {
            let content = maker.content(number)?;
            copy_sparse(&content, &file).map_err(failed)?;
        }
        all.push(maker.park(file.into())?);
    }
    Ok(all)
}

fn name(memory: &SharedMemory) -> String {
    match &memory.source {
        MemorySource::Anonymous => "anonymous".to_owned(),
        MemorySource::Memfd { name, .. } => format!("memfd {name}"),
        MemorySource::Path { path, .. } => path.clone(),
    }
}

fn open(memory: &SharedMemory) -> std::io::Result<File> {
    let text = match &memory.source {
        MemorySource::Path { path, mode } => {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(*mode & 0o7777);
            let file = options.open(path)?;
            // Where it is another's file its mode is another's too.
            let _ = file.set_permissions(std::fs::Permissions::from_mode(*mode & 0o7777));
            if file.metadata()?.len() != memory.size {
                file.set_len(memory.size)?;
            }
            return Ok(file);
        }
        MemorySource::Memfd { name, .. } => name.as_str(),
        MemorySource::Anonymous => "shared",
    };
    let text = std::ffi::CString::new(text).map_err(|_| Errno::EINVAL)?;
    let made = fd::memfd(&text, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)?;
    let file = File::from(made);
    file.set_len(memory.size)?;
    Ok(file)
}

/// A descriptor of it.
pub(super) fn descriptor(memories: &[OwnedFd], memory: usize, object: &Object) -> Tried<OwnedFd> {
    let memory = memories.get(memory).ok_or(Errno::EINVAL)?;
    let opened = reopen(memory, object.flags as i32)?;
    lseek(&opened, i64::try_from(object.offset).map_err(|_| Errno::EINVAL)?, Whence::SeekSet)?;
    Ok(opened)
}
