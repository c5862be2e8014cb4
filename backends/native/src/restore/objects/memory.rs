//! Memory that outlives a mapping: a memfd each, or the file of a tmpfs that still has its name.

use super::{Made, Maker, Tried, copy_sparse, give, reopen};
use crate::model::{Image, MemorySource, Object, SharedMemory};
use crate::sys::fd;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use stasis_plugin_api::prelude::*;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

/// One of them.
#[derive(Debug)]
pub(in crate::restore) struct Parked {
    pub(in crate::restore) file: OwnedFd,
    /// For mappings that nobody can make writable.
    pub(in crate::restore) readable: OwnedFd,
}

/// All of it, with its content.
pub(super) fn make(maker: &Maker<'_>) -> Result<Vec<Parked>> {
    let mut all = Vec::new();
    for memory in &maker.image.memories {
        let failed = |e: std::io::Error| {
            BackendError::failed("cannot bring back shared memory").because(format!("{}: {e}", name(memory)))
        };
        let file = open(memory).map_err(failed)?;
        if let Some(number) = memory.content {
            let content = maker.content(number)?;
            copy_sparse(&content, &file).map_err(failed)?;
            if matches!(memory.source, MemorySource::Path { .. }) {
                clear_holes(&content, &file).map_err(failed)?;
            }
        }
        let readable = reopen(&file, libc::O_RDONLY).map_err(|errno| failed(errno.into()))?;
        all.push(Parked { file: maker.park(file.into())?, readable: maker.park(readable)? });
    }
    Ok(all)
}

/// What has no content in the image has none in a file that was there before.
fn clear_holes(content: &File, file: &File) -> std::io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let size = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
    let mut at = 0;
    while at < size {
        let hole = seek(content, at, Whence::SeekHole, size)?;
        let data = seek(content, hole, Whence::SeekData, size)?;
        if data > hole {
            fallocate(file, flags, hole, data - hole)?;
        }
        at = data;
    }
    Ok(())
}

/// The next hole or content from here on, at most the end.
fn seek(content: &File, from: i64, whence: Whence, end: i64) -> std::io::Result<i64> {
    match lseek(content, from, whence) {
        Ok(at) => Ok(at.min(end)),
        Err(Errno::ENXIO) => Ok(end),
        Err(errno) => Err(errno.into()),
    }
}

/// What may never be done to a memfd again. It forbids some of the mappings that the processes have: they come before.
pub(in crate::restore) fn seal(image: &Image, made: &Made) -> Result<()> {
    for (memory, parked) in image.memories.iter().zip(&made.memories) {
        let MemorySource::Memfd { name, seals: seals @ 1.., .. } = &memory.source else { continue };
        fd::fcntl_number(parked.file.as_fd(), libc::F_ADD_SEALS, i64::from(*seals)).map_err(|errno| {
            BackendError::failed(format!("cannot seal the shared memory {name}")).because(errno.desc())
        })?;
    }
    Ok(())
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
    if let MemorySource::Memfd { mode: mode @ 1.., whose, .. } = memory.source {
        give(&file, whose)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode & 0o7777))?;
    }
    Ok(file)
}

/// A descriptor of it.
pub(super) fn descriptor(memories: &[Parked], memory: usize, object: &Object) -> Tried<OwnedFd> {
    let memory = memories.get(memory).ok_or(Errno::EINVAL)?;
    let opened = reopen(&memory.file, object.flags as i32)?;
    lseek(&opened, i64::try_from(object.offset).map_err(|_| Errno::EINVAL)?, Whence::SeekSet)?;
    Ok(opened)
}
