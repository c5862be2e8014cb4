//! Capability ids. They are open: an id that the other side does not know is ignored.
//!
//! Ids carry a revision after a slash where their meaning may change; third parties use a
//! reverse domain name; drafts begin with `x-`.

/// The application runs on after a capture.
pub const LEAVE_RUNNING: &str = "leave-running";
/// Works for users without any privilege.
pub const ROOTLESS: &str = "rootless";
/// The application keeps the user's own ids. `auto` takes no backend without it for an ordinary user.
pub const KEEPS_UID: &str = "keeps-uid";
/// A capture may build on an earlier generation.
pub const INCREMENTAL: &str = "incremental/1";
/// Several copies of one generation may run side by side on the host's network.
pub const CLONES: &str = "clones";
/// A restart may be planned from a generation of which only the sizes were compared so far; everything that its plan does
/// not name in `verify_behind` is compared before anything is started.
pub const VERIFY_BEHIND: &str = "verify-behind";
/// A terminal given by the runtime survives.
pub const TERMINAL: &str = "terminal";

/// Extension id reserved for saving device state around a capture.
pub const EXTENSION_DEVICE_STATE: &str = "stasis.device-state/1";
