//! What init starts before the container's root is there.

use crate::error::Result;
use crate::init::early::{Early, Waiting};
use crate::init::{app, clocks};
use crate::launch::protocol::{self, Order, ToFirst};
use crate::spec::{ContainerSpec, RestartStep};
use crate::sys::process;

/// Why the clocks do not go on, where that is no error.
type Clocks = Result<Option<String>>;

/// What was begun with, as the monitor told it.
#[derive(Debug, Default)]
pub struct Ahead {
    /// Set for all that is started from then on.
    clocks: Option<Clocks>,
    waiting: Option<Waiting>,
}

/// What was begun with when the order was there.
#[derive(Debug)]
pub struct Begun {
    /// Why the clocks do not go on, and only told.
    pub clocks: Option<String>,
    /// What rebuilds a generation.
    pub early: Option<Early>,
}

impl Ahead {
    /// Begins with what the monitor says; answers when that is the order.
    pub fn hear(&mut self, said: ToFirst) -> Option<(Order, Result<Begun>)> {
        match said {
            ToFirst::Ahead(ahead) => {
                self.begin(*ahead);
                None
            }
            ToFirst::Order(order) => {
                let begun = self.ordered(&order.spec);
                Some((*order, begun))
            }
        }
    }

    /// Starts what is going to rebuild a generation. Its pid is as high as can be, where nobody's is that comes back.
    fn begin(&mut self, ahead: protocol::Ahead) {
        self.clocks = ahead.clocks.map(clocks::ordered);
        let clocks = !matches!(self.clocks, Some(Err(_)));
        if clocks && app::next_pid(process::pid_max() - 1).is_ok() {
            self.waiting = Waiting::begin(ahead.helper, ahead.keep_capabilities);
        }
    }

    fn ordered(&mut self, spec: &ContainerSpec) -> Result<Begun> {
        let waiting = self.waiting.take();
        // The kernel takes this from no process that is protected, and it counts for all that is started from here on.
        let (clocks, waiting) = match self.clocks.take() {
            Some(clocks) => (clocks?, waiting),
            // What runs already is in no time namespace that is made now.
            None => (clocks::go_on(spec)?, waiting.filter(|_| !spec.namespaces.time)),
        };
        Ok(Begun { clocks, early: early(spec, waiting) })
    }
}

/// Starts what rebuilds a generation while the root is made, or tells what waits to do so, where that can be.
fn early(spec: &ContainerSpec, waiting: Option<Waiting>) -> Option<Early> {
    let engine = spec.engine.as_ref()?;
    let Some(RestartStep::Rebuild { helper, reserve_pids_up_to, .. }) = &engine.restart else { return None };
    app::next_pid(reserve_pids_up_to + 1).ok()?;
    let keep = app::keeps_capabilities(spec);
    let planned = waiting.and_then(|waiting| waiting.planned(helper, keep, *reserve_pids_up_to));
    planned.or_else(|| engine.starts_early().then(|| Early::begin(helper, keep)).flatten())
}
