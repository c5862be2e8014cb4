//! stasis: a container runtime for work that must survive. It starts applications in containers without
//! privilege, saves their whole running state while they run, and brings them back.
//!
//! The modules in the order in which data flows through them: what was typed becomes settings and a
//! choice of backend, an image and a spec; a monitor carries the spec out with the help of init and
//! workers; the store keeps what was saved.

pub mod build;
pub mod cli;
pub mod config;
pub mod image;
pub mod init;
pub mod instance;
pub mod launch;
pub mod monitor;
pub mod registry;
pub mod spec;
pub mod store;
pub mod worker;

mod causes;
pub mod clocks;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod name;
pub mod sys;

use std::ffi::OsString;

/// Runs the role that the arguments name: a command of the user's, or one of our own processes.
/// Returns the exit code.
pub fn run(arguments: Vec<OsString>) -> i32 {
    match arguments.get(1).and_then(|role| role.to_str()) {
        Some(init::ROLE) => init::main(),
        Some(worker::ROLE) => worker::child::started(),
        Some(image::output::GUARD) => image::output::guard(arguments.get(2)),
        Some(cli::generated::MAN_PAGES) => cli::write_man_pages(arguments.get(2)),
        _ => cli::main(arguments),
    }
}
