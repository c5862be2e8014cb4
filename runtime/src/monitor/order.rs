//! What a monitor is told to do, as plain data, and what was opened for it.

use crate::image::attach::Held;
use crate::monitor::early::First;
use crate::name::BackendName;
use crate::spec::ContainerSpec;
use crate::store::ImageIdentity;
use crate::sys::terminal::Size;
use crate::worker::{Plugin, Worker};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
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

/// What was opened and started for an order.
#[derive(Debug, Default)]
pub struct Ready {
    /// The container's first process, where it was known what that has to be.
    pub first: Option<First>,
    /// The plugin of the order's engine, and the worker that serves this start.
    pub engine: Option<(Plugin, Worker)>,
    /// The image's mount, where it is one.
    pub image: Option<Held>,
    /// Keeps an image in the cache while it is open.
    pub kept: Option<File>,
}

impl Ready {
    /// All that is open for it.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all: Vec<BorrowedFd<'_>> = self.image.iter().flat_map(Held::descriptors).collect();
        all.extend(self.kept.as_ref().map(AsFd::as_fd));
        all.extend(self.first.iter().flat_map(First::descriptors));
        if let Some((plugin, worker)) = &self.engine {
            all.push(plugin.library.as_fd());
            all.extend(worker.descriptors());
        }
        all
    }
}

/// The engine and what it is to do.
#[derive(Debug, Clone)]
pub struct EngineOrder {
    /// Of the plugin.
    pub backend: BackendName,
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
