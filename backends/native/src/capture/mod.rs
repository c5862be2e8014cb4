//! Saving a tree of processes.

pub(crate) mod inject;
pub(crate) mod queries;
pub(crate) mod seize;
pub(crate) mod snapshot;

use crate::proc;
use inject::Site;
use seize::Tree;
use stasis_plugin_api::error::{BackendError, Result};
use std::time::{Duration, Instant};

pub(crate) fn trial(pid: i32) -> Result<Duration> {
    let start = Instant::now();
    let (tree, sites) = freeze(pid)?;
    for (held, site) in tree.processes.iter().zip(&sites) {
        let timers = proc::timers::parse(&proc::read(held.pid, "timers")?)?;
        queries::ask(site, held, timers)?;
    }
    let mut copies = Vec::new();
    for (held, site) in tree.processes.iter().zip(&sites) {
        copies.push(snapshot::take(site, held)?);
    }
    for (held, site) in tree.processes.iter().zip(&sites) {
        site.wipe(&held.memory)?;
    }
    tree.release();
    let pause = start.elapsed();
    Ok(pause)
}

/// Stops the tree at a moment when no thread is on its way home from an earlier capture whose engine died.
fn freeze(pid: i32) -> Result<(Tree, Vec<Site>)> {
    for _ in 0..200 {
        let mut tree = Tree::stop(pid)?;
        let mut sites = Vec::new();
        let mut unfinished = false;
        for held in &mut tree.processes {
            held.save_registers()?;
            let maps = proc::maps::parse(&proc::read(held.pid, "maps")?)?;
            let site = Site::choose(held, &maps)?;
            unfinished |= site.unfinished(held);
            sites.push(site);
        }
        if !unfinished {
            return Ok((tree, sites));
        }
        drop(tree);
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(BackendError::failed("an earlier capture that was killed is still under way").help("try again"))
}
