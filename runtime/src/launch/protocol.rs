//! What monitor and init say to each other.

use crate::error::Error;
use crate::spec::{ClocksGoOn, ContainerSpec, Mount, RootMode, RootSpec};
use crate::sys::terminal::Size;
use serde::{Deserialize, Serialize};
use stasis_plugin_api::host::{RunInside, RunOutput, TmpfsSaved};
use stasis_plugin_api::plan::Helper;
use stasis_plugin_api::request::FailedHelper;
use stasis_plugin_api::survey::Survey;
use std::path::PathBuf;

/// What a container's root is made of whatever its engine wants: a first process is told this first, and has it made by
/// the time that the rest is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ground {
    /// The root file system.
    pub root: RootSpec,
    /// In order. Later ones may lie on earlier ones.
    pub mounts: Vec<Mount>,
    /// There is a user namespace.
    pub user: bool,
    /// Of the application, inside.
    pub uid: u32,
    /// There is going to be an engine.
    pub engine: bool,
    /// There is going to be something in `/.stasis`.
    pub inject: bool,
    /// An empty directory of ours on the host; the root is put together there.
    pub mount_point: PathBuf,
}

impl Ground {
    /// Of a container which an engine may still change.
    pub fn of(spec: &ContainerSpec, engine: bool, inject: bool, mount_point: PathBuf) -> Self {
        Self {
            root: spec.root.clone(),
            mounts: spec.mounts.clone(),
            user: spec.namespaces.user,
            uid: spec.ids.uid,
            engine,
            inject,
            mount_point,
        }
    }
}

/// Everything else that a container's first process needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The container.
    pub spec: ContainerSpec,
    /// The directory for the log files on the host, shown as `/.stasis/log`; `None`: no log files.
    pub logs: Option<PathBuf>,
    /// Standard input is a pipe whose other side the monitor holds; without a terminal only.
    pub fed: bool,
    /// The terminal's first size when the streams are a terminal.
    pub size: Option<Size>,
}

/// What a first process is told when it has its ground. The last of it is the order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToFirst {
    /// Something that can get ready for the order.
    Ahead(Box<Ahead>),
    /// What to do.
    Order(Box<Order>),
}

/// What is going to rebuild a generation, as far as that is known before it is planned.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ahead {
    /// What is to be started, by its command for an early start.
    pub helper: Helper,
    /// How the clocks of what is brought back go on, which it has to be started with.
    pub clocks: Option<ClocksGoOn>,
    /// See [`Becoming`](crate::init::children::Becoming).
    pub keep_capabilities: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It exited with this code.
    Exit(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Ending {
    /// From `wait`'s raw status.
    pub fn from_raw(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal(libc::WTERMSIG(status))
        } else {
            Self::Exit(libc::WEXITSTATUS(status))
        }
    }

    /// The code that a command passes on: 128 and the signal where a signal ended it.
    pub fn code(self) -> i32 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "signal {signal} ({name})"),
                Err(_) => write!(f, "signal {signal}"),
            },
        }
    }
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The application's first process.
    Application,
    /// Every process of the application, but not init, supervisor and the engine's helpers.
    Everybody,
    /// A process started by `Exec` with this id.
    Exec(u64),
}

/// From the monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToInit {
    /// Run a helper and tell how it ended.
    /// `RunInside::kept` come along as descriptors, in the order of their numbers.
    Run {
        /// Repeated in the answer.
        id: u64,
        /// What.
        command: RunInside,
    },
    /// Start a command beside the application. Three descriptors come along unless `size` is given.
    Exec {
        /// Repeated in the answers.
        id: u64,
        /// The command.
        argv: Vec<String>,
        /// Its environment.
        env: Vec<(String, String)>,
        /// Its working directory; `/` where that does not exist.
        cwd: PathBuf,
        /// Make a terminal of this size.
        size: Option<Size>,
    },
    /// Send a signal.
    Signal {
        /// To whom.
        to: Target,
        /// Which.
        signal: i32,
    },
    /// Send a signal to these processes, in this order.
    SignalPids {
        /// Inside.
        pids: Vec<i32>,
        /// Which.
        signal: i32,
    },
    /// Write down what the container's own tmpfs mounts hold.
    SaveTmpfs {
        /// Repeated in the answer.
        id: u64,
        /// A new file below `/.stasis/capture`.
        file: String,
    },
    /// Look at everything that runs.
    Survey {
        /// Repeated in the answer.
        id: u64,
    },
    /// Kill everything and end.
    End,
}

/// From init.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromInit {
    /// The file system stands. With a terminal its master side comes along.
    Mounted {
        /// How the root was made.
        mode: RootMode,
        /// Remarks for the user.
        notes: Vec<String>,
    },
    /// The application's program runs.
    Started {
        /// Its pid inside.
        pid: i32,
        /// The working directory that it got.
        cwd: PathBuf,
        /// Why its clocks do not go on from where they were, where that was ordered.
        clocks: Option<String>,
    },
    /// The container could not be made or the application not be started. The last message.
    Failed(Error),
    /// The engine's helper could not rebuild the generation. The last message.
    NotRebuilt(FailedHelper),
    /// The application ended.
    Ended(Ending),
    /// A helper of the engine's ended.
    HelperEnded {
        /// Its name.
        name: String,
        /// How.
        ending: Ending,
        /// The container cannot go on without it.
        essential: bool,
    },
    /// Answer to `Run`.
    Ran {
        /// Of the request.
        id: u64,
        /// The outcome, or why it could not be started.
        output: Result<RunOutput, Error>,
    },
    /// Answer to `Exec`. With a terminal its master side comes along.
    ExecStarted {
        /// Of the request.
        id: u64,
    },
    /// The end of an `Exec`, also when it could not be started.
    ExecEnded {
        /// Of the request.
        id: u64,
        /// The outcome.
        ending: Result<Ending, Error>,
    },
    /// Answer to `SaveTmpfs`.
    TmpfsSaved {
        /// Of the request.
        id: u64,
        /// What was saved, or why it could not be.
        saved: Result<TmpfsSaved, Error>,
    },
    /// Answer to `Survey`.
    Surveyed {
        /// Of the request.
        id: u64,
        /// What was seen.
        survey: Survey,
    },
}
