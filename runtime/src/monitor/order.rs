//! What a monitor is told to do, as plain data.

use crate::spec::ContainerSpec;
use crate::store::ImageIdentity;
use crate::sys::terminal::Size;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A container to be started and owned.
#[derive(Debug, Clone)]
pub struct MonitorOrder {
    /// The container, without the engine's wishes.
    pub spec: ContainerSpec,
    /// Where checkpoints and records are.
    pub data_root: PathBuf,
    /// Where sockets and mount points are.
    pub runtime_dir: PathBuf,
    /// The engine, when one is asked for.
    pub engine: Option<EngineOrder>,
    /// The command stays in the foreground.
    pub foreground: bool,
    /// What the caller's standard input holds is passed on through a pipe.
    pub fed: bool,
    /// The caller's terminal.
    pub size: Option<Size>,
}

/// The engine and what it is to do.
#[derive(Debug, Clone)]
pub struct EngineOrder {
    /// The plugin.
    pub plugin: PluginOrder,
    /// The checkpoint; made when it does not exist.
    pub checkpoint: String,
    /// Bring back this generation instead of starting the command.
    pub restart: Option<u64>,
    /// When the content of the generation is compared with what was saved.
    pub verify: Verify,
    /// Kinds of loss that the user accepts.
    pub accept_loss: Vec<String>,
    /// How many generations are kept; `None`: all.
    pub keep: Option<usize>,
    /// Take over a checkpoint whose lock is held by another machine.
    pub force: bool,
    /// A capture every so many seconds.
    pub interval: Option<u64>,
    /// Signals to the foreground command that capture and end with `requeue_code`.
    pub capture_on: Vec<i32>,
    /// See `capture_on`.
    pub requeue_code: u8,
    /// The image as it is now.
    pub identity: ImageIdentity,
}

/// When the content of a generation is compared with what was saved. Its sizes always are before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Verify {
    /// Before the first instruction, save what the backend reads only later.
    #[default]
    #[value(skip)]
    Auto,
    /// All of it before the first instruction.
    Before,
    /// While the application runs on already; a difference ends it.
    Behind,
}

/// A plugin, found and checked by the registry. Its library travels as a descriptor.
#[derive(Debug, Clone)]
pub struct PluginOrder {
    /// The backend's name.
    pub name: String,
    /// For messages.
    pub path: PathBuf,
    /// The versions accepted.
    pub version: Option<String>,
    /// As the administrator set them.
    pub options: BTreeMap<String, Value>,
    /// As typed: `K=V`.
    pub flags: Vec<String>,
}
