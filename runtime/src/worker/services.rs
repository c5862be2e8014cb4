//! What the caller of a plugin lends to it during a call. The monitor implements it for the container
//! that it owns; where none stands, [`NoServices`] does.

use serde_json::Value;
use stasis_plugin_api::error::{BackendError, kind};
use std::os::fd::OwnedFd;

/// The services behind the plugin's `Host`.
pub trait Services {
    /// A request by name (`run-inside`, `application`, `stderr-tail`, `progress`, `extension:ID`). Blocks the
    /// watching of the deadline: it has to return soon; `run-inside` comes with a `timeout_ms` that is
    /// never more than what is left of the call.
    ///
    /// # Errors
    /// Goes to the plugin as it is; kind `not-implemented` for unknown names.
    fn request(&self, name: &str, payload: Value) -> Result<Value, BackendError>;

    /// Whether the caller has given up; asked about ten times a second.
    fn cancelled(&self) -> bool {
        false
    }

    /// Keeps a descriptor for later calls. The owner is the callee.
    ///
    /// # Errors
    /// Goes to the plugin as an errno.
    fn keep_fd(&self, name: &str, fd: OwnedFd) -> Result<(), BackendError>;

    /// A copy of a kept descriptor.
    fn kept_fd(&self, name: &str) -> Option<OwnedFd>;

    /// An event of the plugin's `tracing`: level 1 (error) to 5 (trace). The target is a field because
    /// targets of our own events are fixed when they are compiled.
    fn log(&self, level: u8, target: &str, message: &str) {
        match level {
            0 | 1 => tracing::error!(from = target, "{message}"),
            2 => tracing::warn!(from = target, "{message}"),
            3 => tracing::info!(from = target, "{message}"),
            4 => tracing::debug!(from = target, "{message}"),
            _ => tracing::trace!(from = target, "{message}"),
        }
    }
}

/// For operations during which no container stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoServices;

impl Services for NoServices {
    fn request(&self, name: &str, _: Value) -> Result<Value, BackendError> {
        match name {
            "progress" => Ok(Value::Null),
            _ => Err(no_container(name)),
        }
    }

    fn keep_fd(&self, name: &str, _: OwnedFd) -> Result<(), BackendError> {
        Err(no_container(name))
    }

    fn kept_fd(&self, _: &str) -> Option<OwnedFd> {
        None
    }
}

fn no_container(name: &str) -> BackendError {
    BackendError::new(kind::NOT_IMPLEMENTED, format!("\"{name}\" is not available here"))
        .because("no container stands during this call")
}
