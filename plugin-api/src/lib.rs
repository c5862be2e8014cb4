//! The contract between the stasis container runtime and its checkpoint backends.
//!
//! A backend is a shared library that implements [`CheckpointBackend`](backend::CheckpointBackend)
//! and calls [`export_backend!`] once. The runtime loads it in a worker process, one per call, tells
//! it everything as plain data and carries out the plans that it answers with:
//!
//! ```text
//! launch:   probe, examine(image), plan_launch    -> the container starts -> ready
//! capture:  examine(instance), capture            -> the runtime hashes, syncs, commits
//! restart:  examine(generation), plan_restart     -> the container starts -> alive
//! end:      stop
//! ```
//!
//! This crate holds types and words. It does no input or output of its own.
#![deny(missing_docs)]

pub mod abi;
pub mod backend;
pub mod capability;
pub mod descriptor;
pub mod error;
mod forward;
pub mod host;
pub mod plan;
pub mod report;
pub mod request;
pub mod still;
pub mod survey;
pub mod version;

/// Everything that an author needs.
pub mod prelude {
    pub use crate::backend::CheckpointBackend;
    pub use crate::descriptor::{Descriptor, Maturity, OptionKind, OptionSpec};
    pub use crate::error::{BackendError, Result, kind};
    pub use crate::host::{
        ApplicationState, CallContext, EngineState, Host, HostServices, RunInside, RunOutput, TmpfsSaved,
    };
    pub use crate::plan::*;
    pub use crate::report::*;
    pub use crate::request::*;
    pub use crate::survey::{DescriptorInfo, ProcessInfo, SocketInfo, Survey};
}

/// The code of the author's guide has to compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/writing-a-backend.md")]
struct AuthorsGuide;
