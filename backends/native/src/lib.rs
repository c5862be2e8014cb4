//! The native engine of stasis: a backend of the runtime, and, started by the dynamic loader inside a container, the
//! program that saves and rebuilds processes there. Nothing of it stays in or beside a running application.

mod cli;
mod entry;
mod model;
