//! Shared memory: anonymous, memfd, files of a tmpfs. Each is saved once, whoever maps it or holds a descriptor. A copy
//! by fork does not keep it, so it is written while everything stands still.

use super::areas::{Class, Part, in_memory};
use super::contents::Contents;
use super::seize::Held;
use super::tracking::pagemap_of;
use crate::model::{MemorySource, SharedMemory};
use crate::proc::maps::Mapping;
use crate::sys::{pagemap, process};
use stasis_plugin_api::error::{BackendError, Result};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

const F_GET_SEALS: i32 = 1034;

/// What was found, in the order of its saving.
#[derive(Debug, Default)]
pub(crate) struct Memories {
    pub(crate) saved: Vec<SharedMemory>,
    known: HashMap<(String, u64), usize>,
}

/// As maps writes a device number.
pub(crate) fn device(number: u64) -> String {
    format!("{:02x}:{:02x}", nix::sys::stat::major(number), nix::sys::stat::minor(number))
}

impl Memories {
    pub(crate) fn index(&self, device: &str, inode: u64) -> Option<usize> {
        self.known.get(&(device.to_owned(), inode)).copied()
    }

    /// Saves what the mappings of these processes show and no descriptor does.
    pub(crate) fn save_mapped(
        &mut self,
        contents: &mut Contents,
        processes: &[(&Held, &[Part])],
    ) -> Result<()> {
        let mut found: Vec<(String, u64)> = Vec::new();
        let mut parts: HashMap<(String, u64), Vec<(&Held, &Mapping)>> = HashMap::new();
        for (held, all) in processes {
            for map in all.iter().filter(|part| part.class == Class::Memory).map(|part| &part.map) {
                let key = (map.device.clone(), map.inode);
                if !parts.contains_key(&key) {
                    found.push(key.clone());
                }
                parts.entry(key).or_default().push((held, map));
            }
        }
        for key in found {
            if self.known.contains_key(&key) {
                continue;
            }
            let parts = parts.remove(&key).unwrap_or_default();
            self.save_parts(contents, key, parts)?;
        }
        Ok(())
    }

    /// Memory without a descriptor, through the mappings that show it.
    fn save_parts(
        &mut self,
        contents: &mut Contents,
        key: (String, u64),
        parts: Vec<(&Held, &Mapping)>,
    ) -> Result<()> {
        let Some((_, first)) = parts.first() else { return Ok(()) };
        if !first.deleted() && !first.name.starts_with('[') {
            let file = File::open(&first.name).map_err(|error| unreadable(&first.name, &error))?;
            let name = first.name.clone();
            return self.save_file(contents, key, &file, &name).map(drop);
        }
        let size = parts.iter().map(|(_, map)| map.offset + map.length()).max().unwrap_or(0);
        let content = contents.stream(size, &|offset, bytes| read_mapped(&parts, offset, bytes))?;
        let source = memfd(&first.name);
        self.add(key, SharedMemory { size, content: Some(content), source });
        Ok(())
    }

    /// Memory behind a descriptor: its index.
    pub(crate) fn save_descriptor(
        &mut self,
        contents: &mut Contents,
        pid: i32,
        fd: i32,
        name: &str,
        copy: &OwnedFd,
    ) -> Result<usize> {
        // By a new opening: the descriptor itself may be write-only.
        let path = format!("/proc/{pid}/fd/{fd}");
        let file = File::open(&path).map_err(|error| unreadable(name, &error))?;
        let metadata = file.metadata().map_err(|error| unreadable(name, &error))?;
        let key = (device(metadata.dev()), metadata.ino());
        if let Some(index) = self.known.get(&key) {
            return Ok(*index);
        }
        let index = self.save_file(contents, key, &file, name)?;
        if let Some(SharedMemory { source: MemorySource::Memfd { seals, mode, whose, .. }, .. }) =
            self.saved.get_mut(index)
        {
            // Through an O_PATH descriptor nothing is told.
            *seals = process::fcntl(copy, F_GET_SEALS, 0)
                .or_else(|_| process::fcntl(&file.into(), F_GET_SEALS, 0))
                .map_err(|error| unreadable(name, &error.into()))?
                .cast_unsigned();
            *mode = metadata.mode() & 0o7777;
            *whose = Some([metadata.uid(), metadata.gid()]);
        }
        Ok(index)
    }

    fn save_file(
        &mut self,
        contents: &mut Contents,
        key: (String, u64),
        file: &File,
        name: &str,
    ) -> Result<usize> {
        let metadata = file.metadata().map_err(|error| unreadable(name, &error))?;
        let size = metadata.len();
        let content = contents.stream(size, &|offset, bytes| read_file(file, offset, bytes))?;
        let source = if name.ends_with(" (deleted)") {
            memfd(name)
        } else {
            MemorySource::Path { path: name.to_owned(), mode: metadata.mode() & 0o7777 }
        };
        Ok(self.add(key, SharedMemory { size, content: Some(content), source }))
    }

    fn add(&mut self, key: (String, u64), memory: SharedMemory) -> usize {
        let index = self.saved.len();
        self.saved.push(memory);
        self.known.insert(key, index);
        index
    }
}

/// A descriptor's file that processes may share as memory.
pub(crate) fn is_memory(path: &str, mapped: bool) -> bool {
    path.starts_with("/memfd:") || (mapped && (path.ends_with(" (deleted)") || in_memory(path)))
}

fn memfd(name: &str) -> MemorySource {
    let name = name.strip_prefix("/memfd:").and_then(|name| name.strip_suffix(" (deleted)"));
    let memfd = |name: &str| MemorySource::Memfd { name: name.to_owned(), seals: 0, mode: 0, whose: None };
    name.map_or(MemorySource::Anonymous, memfd)
}

fn unreadable(name: &str, error: &std::io::Error) -> BackendError {
    BackendError::failed(format!("the shared memory {name} cannot be read")).because(error)
}

/// Reads up to the end; the rest is zero.
pub(crate) fn read_file(file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64)? {
            0 => {
                rest.fill(0);
                break;
            }
            count => done += count,
        }
    }
    Ok(())
}

/// Page by page through whichever mapping shows it; what none shows, or lies behind the end, nobody can see.
fn read_mapped(parts: &[(&Held, &Mapping)], offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    for (index, page) in bytes.chunks_mut(4096).enumerate() {
        let at = offset + index as u64 * 4096;
        let shows = |(_, map): &&(&Held, &Mapping)| map.offset <= at && at < map.offset + map.length();
        let address = |map: &Mapping| map.start + (at - map.offset);
        let mut shown = parts.iter().filter(shows);
        if shown.any(|(held, map)| held.memory.read_exact_at(page, address(map)).is_ok()) {
            continue;
        }
        // Under a guard page the content is there, and comes back when the guard goes.
        if let Some((held, map)) = parts.iter().filter(shows).find(|(held, map)| guarded(held, address(map)))
        {
            let place = format!("{:x} of process {}", address(map), held.pid);
            return Err(std::io::Error::other(format!("shared memory lies under a guard page at {place}")));
        }
        page.fill(0);
    }
    Ok(())
}

fn guarded(held: &Held, address: u64) -> bool {
    let guards = pagemap_of(held.pid).map(|map| pagemap::guards(&map, address, address + 4096));
    guards.is_ok_and(|guards| guards.is_ok_and(|guards| !guards.is_empty()))
}
