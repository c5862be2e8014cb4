//! Threads that read content beside the leader. They end before the process gets its own.

use super::pinned::Pinned;
use super::remote::Remote;
use super::table::Table;
use crate::sys::clone::{CloneArguments, THREAD};
use stasis_plugin_api::prelude::*;

/// So many read at once: memory is emptied for them page by page, and more of them soon wait for each other.
const MOST: usize = 4;
/// What a thread has to have to do to be worth being made.
const EACH: u64 = 4 << 20;

/// What is to be read and by whom, for one process after the other.
#[derive(Debug)]
pub(super) struct Crew<'a> {
    /// How many processors there are for it.
    pub(super) processors: usize,
    /// Where the engine keeps what it makes, and the readers shall not stay.
    pub(super) pinned: Option<&'a Pinned>,
}

/// The threads of one process that read, its leader first.
#[derive(Debug)]
pub(super) struct Readers<'a> {
    remote: &'a Remote,
    tids: Vec<i32>,
}

impl<'a> Readers<'a> {
    /// Makes as many as are worth it; where a limit leaves no room for them there are fewer.
    pub(super) fn make(remote: &'a Remote, bytes: u64, crew: &Crew<'_>) -> Result<Self> {
        let worth = usize::try_from(bytes / EACH).unwrap_or(MOST).min(MOST).min(crew.processors).max(1);
        let mut table = remote.table();
        for _ in 1..worth {
            let arguments = CloneArguments { flags: THREAD, ..CloneArguments::default() }.bytes();
            let at = table.put(&arguments);
            table.try_call("a reader", libc::SYS_clone3, &[at, arguments.len() as u64]);
        }
        let made = remote.share(&[remote.pid], &mut table)?;
        for tid in &made {
            crew.pinned.inspect(|pinned| pinned.let_go(*tid));
        }
        let tids = [remote.pid].into_iter().chain(made).collect();
        Ok(Self { remote, tids })
    }

    /// Reads what is on the list.
    pub(super) fn read(&self, table: &mut Table) -> Result<()> {
        self.remote.share(&self.tids, table).map(drop)
    }

    /// The same where the list is nearly full.
    pub(super) fn make_room(&self, table: &mut Table) -> Result<()> {
        if table.is_full() { self.read(table) } else { Ok(()) }
    }

    /// Only the leader is left.
    pub(super) fn end(self) -> Result<()> {
        self.tids.iter().skip(1).try_for_each(|tid| self.remote.end(*tid))
    }
}
