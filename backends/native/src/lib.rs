//! The native engine of stasis: a backend of the runtime, and, started by the dynamic loader inside a container, the
//! program that saves and rebuilds processes there. Nothing of it stays in or beside a running application.

mod arch;
mod capture;
mod cli;
mod entry;
mod lock;
mod model;
mod plugin;
mod proc;
mod refuse;
mod restore;
mod sys;

pub use plugin::NativeBackend;
#[doc(hidden)]
pub use restore::judge;
