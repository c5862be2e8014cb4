//! The clocks of what init starts.

use crate::clocks::Clocks;
use crate::error::{Error, Result};
use crate::spec::{ClocksGoOn, ContainerSpec};

/// Gives the processes that are started from here on clocks of their own. Returns why they do not go on from where they
/// were, where that does no harm or is accepted.
///
/// # Errors
/// A clock would go back.
pub fn go_on(spec: &ContainerSpec) -> Result<Option<String>> {
    let Some(engine) = &spec.engine else { return Ok(None) };
    let Some(clocks) = engine.clocks else {
        let wanted = engine.needs.namespaces.time.then(|| Clocks::default().for_children());
        return match wanted {
            Some(Err(why)) => {
                Err(Error::new(format!("backend \"{}\" cannot be used", engine.backend)).because(why))
            }
            _ => Ok(None),
        };
    };
    ordered(clocks)
}

/// The same where it is known how they go on.
///
/// # Errors
/// A clock would go back.
pub fn ordered(ordered: ClocksGoOn) -> Result<Option<String>> {
    let refused = ordered.offset.for_children().err();
    let Some(why) = refused.as_ref().filter(|_| ordered.offset.is_ahead() && !ordered.may_go_back) else {
        return Ok(refused);
    };
    Err(Error::new("the application's clock would go back")
        .because(format!(
            "it is {} ahead of this machine's, which runs for a shorter time, and who waits in it would wait that long",
            ordered.offset.roughly()
        ))
        .because(why)
        .help("restart it where time namespaces may be made (sysctl user.max_time_namespaces), or where the machine runs for longer; to go on all the same: --accept-loss=clocks"))
}
