//! What goes over the channel between a worker and the process that started it. Both are the same
//! binary, so this format has no versions; the plugin's own data travels as the text that it was.

use serde::{Deserialize, Serialize};
use stasis_plugin_api::error::BackendError;
use std::os::fd::RawFd;

/// The first argument of a worker.
pub(crate) const ROLE: &str = "__worker";
/// Begins its second argument; the pid of whoever started it follows. (No filter of the test harness
/// that our own tests run under fits it by accident.)
pub(crate) const PARENT: &str = "parent=";
/// Where a worker finds its end of the channel.
pub(crate) const CHANNEL: RawFd = 3;
/// Where a worker finds the library.
pub(crate) const LIBRARY: RawFd = 4;
/// Where a worker finds the pipe that becomes readable when its caller has given up.
pub(crate) const CANCEL: RawFd = 5;

/// Where a worker finds the image that it is asked about, where that is a mount.
pub(crate) const IMAGE: RawFd = 6;

/// The third argument of a worker that was given one.
pub(crate) const WITH_IMAGE: &str = "image";

/// To the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Load the library; the path is for messages only.
    Load { shown: String },
    /// A [`stasis_plugin_api::abi::Call`] as JSON.
    Call { method: String, call: String },
    /// The answer to [`Report::Request`]: JSON.
    Reply(Result<String, BackendError>),
    /// The answer to [`Report::KeepFd`].
    Kept(Result<(), BackendError>),
    /// The answer to [`Report::KeptFd`]: with one descriptor, or with none.
    Fd,
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The descriptor as JSON.
    Loaded {
        descriptor: String,
    },
    /// The library could not be loaded, or could not say what it is.
    NotLoaded {
        problem: String,
        help: Option<String>,
    },
    /// A [`stasis_plugin_api::abi::Answer`] as JSON.
    Answer {
        answer: String,
    },
    /// The call failed.
    Error(BackendError),
    /// 1 error .. 5 trace.
    Log {
        level: u8,
        target: String,
        message: String,
    },
    /// A request to the host; the payload is JSON.
    Request {
        name: String,
        payload: String,
    },
    /// Comes with one descriptor.
    KeepFd {
        name: String,
    },
    KeptFd {
        name: String,
    },
}
