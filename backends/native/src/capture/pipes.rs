//! Pipes and FIFOs: their capacity and what waits in them, copied without taking it.

use super::contents::Contents;
use super::descriptors::Seen;
use crate::model::{Kind, Pipe};
use crate::sys::{fd, process};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::pipe2;
use stasis_plugin_api::error::Result;
use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

const F_SETPIPE_SZ: i32 = 1031;
const F_GETPIPE_SZ: i32 = 1032;

/// All pipes of a tree.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) all: Vec<Pipe>,
    known: HashMap<(u64, u64), usize>,
    /// Of each pipe: an end that reads and one that writes, for the messages about the other one.
    ends: Vec<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    reader: Option<String>,
    writer: Option<String>,
    /// Whether somebody, here or elsewhere, holds the other end.
    other_end: bool,
}

impl Pipes {
    pub(crate) fn describe(
        &mut self,
        contents: &mut Contents,
        seen: &Seen<'_>,
        fifo: Option<String>,
    ) -> Result<Kind> {
        let key = (seen.metadata.dev(), seen.metadata.ino());
        let pipe = *self.known.entry(key).or_insert(self.all.len());
        if pipe == self.all.len() {
            let capacity = process::fcntl(&seen.copy, F_GETPIPE_SZ, 0).map_err(seen.errno())?;
            let capacity = capacity.cast_unsigned();
            self.all.push(Pipe { capacity, content: None, fifo, closed: true });
            self.ends.push(Ends::default());
        }
        let access = seen.info.flags & libc::O_ACCMODE.cast_unsigned();
        let reads = access != libc::O_WRONLY.cast_unsigned();
        let writes = access != libc::O_RDONLY.cast_unsigned();
        let (Some(saved), Some(ends)) = (self.all.get_mut(pipe), self.ends.get_mut(pipe)) else {
            return Err(seen.refuse("it cannot be told from another pipe"));
        };
        if reads && ends.reader.is_none() {
            ends.reader = Some(seen.name());
            let waiting = process::bytes_waiting(&seen.copy).map_err(seen.errno())?;
            if waiting > 0 && !contents.is_dry() {
                let content = peek(seen, waiting, saved.capacity)?;
                saved.content = Some(contents.bytes(&content)?);
            }
        }
        if writes {
            ends.writer.get_or_insert_with(|| seen.name());
            saved.closed = false;
        }
        ends.other_end |= held_elsewhere(&seen.copy, reads, writes).map_err(seen.errno())?;
        Ok(Kind::Pipe { pipe })
    }

    /// The ends whose other end is held outside of the tree: what they are, by name.
    pub(crate) fn leading_out(&self) -> Vec<String> {
        let one_sided = self.ends.iter().filter(|ends| ends.other_end);
        let name = |ends: &Ends| match (&ends.reader, &ends.writer) {
            (Some(name), None) | (None, Some(name)) => Some(name.clone()),
            _ => None,
        };
        one_sided.filter_map(name).collect()
    }
}

/// Whether the end opposite to this one is open: a reader hangs up without writers, a writer fails without readers.
pub(crate) fn held_elsewhere(end: &OwnedFd, reads: bool, writes: bool) -> std::result::Result<bool, Errno> {
    if reads && writes {
        return Ok(false);
    }
    let events = fd::ready(end.as_fd(), PollFlags::empty())?;
    Ok(!events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

fn peek(seen: &Seen<'_>, waiting: usize, capacity: u32) -> Result<Vec<u8>> {
    if seen.info.flags & libc::O_DIRECT.cast_unsigned() != 0 {
        return Err(seen.refuse("packets wait in it, whose borders would be lost"));
    }
    let (from, to) =
        pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK).map_err(seen.errno())?;
    process::fcntl(&to, F_SETPIPE_SZ, capacity.cast_signed()).map_err(seen.errno())?;
    let copied = process::tee(&seen.copy, &to, waiting).map_err(seen.errno())?;
    drop(to);
    if copied != waiting {
        return Err(seen.failed(format!("{copied} of {waiting} bytes that wait in it can be copied")));
    }
    let mut content = Vec::with_capacity(waiting);
    std::fs::File::from(from).read_to_end(&mut content).map_err(|error| seen.failed(error))?;
    Ok(content)
}
