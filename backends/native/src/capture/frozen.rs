//! The moment at which a tree stands still and nothing of an earlier engine is under way in it.

use super::Request;
use super::areas::{self, Part};
use super::inject::Site;
use super::seize::Tree;
use crate::proc::{self, maps};
use crate::refuse;
use stasis_plugin_api::error::{BackendError, Result};
use std::time::Duration;

/// The tree as it stands still.
pub(crate) struct Frozen {
    pub(super) tree: Tree,
    pub(super) sites: Vec<Site>,
    /// The mappings, in the order of the processes, from before anything was written into them.
    pub(super) parts: Vec<Vec<Part>>,
}

/// Stops the tree at a moment when no thread is on its way home from an earlier capture whose engine died, and none of
/// that capture's copies is left.
pub(super) fn freeze(request: &Request) -> Result<Frozen> {
    let mut patience = 10;
    stop_at_rest(request.pid, &mut |tree| {
        patience -= 1;
        Ok(patience < 0 || refuse::strays(&tree.members(), &request.beside)?.is_empty())
    })
}

/// Stops the tree when no thread is on its way home, and `also` holds.
pub(super) fn stop_at_rest(pid: i32, also: &mut dyn FnMut(&Tree) -> Result<bool>) -> Result<Frozen> {
    for _ in 0..200 {
        let mut frozen = Frozen { tree: Tree::stop(pid)?, sites: Vec::new(), parts: Vec::new() };
        let mut unfinished = false;
        for held in &mut frozen.tree.processes {
            held.save_registers()?;
            let maps = maps::parse(&proc::read(held.pid, "maps")?)?;
            let site = Site::choose(held, &maps)?;
            unfinished |= site.unfinished(held);
            frozen.sites.push(site);
            frozen.parts.push(areas::understand(maps));
        }
        if !unfinished && also(&frozen.tree)? {
            return Ok(frozen);
        }
        drop(frozen);
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(BackendError::failed("an earlier capture that was killed is still under way").help("try again"))
}
