//! The flags of exec, run, shell and instance start: how they are typed and which variables stand for them.
//! What they mean for a container is decided in `spec::resolve`; nothing is looked up here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::monitor::order::Verify;
use crate::name::{BackendName, CheckpointName, CheckpointRef};

mod from_env;
mod refused;
mod values;

pub use from_env::ArgsError;
pub use refused::{REFUSED, refused, refused_command};
pub use values::{parse_duration, parse_signal, signal_number};
use values::{parse_exit_code, parse_pair, parse_path_pair};

/// Everything that can be said about a container before the image.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct ActionArgs {
    /// Show a path of the host inside; the place inside is the same when not given
    #[arg(short = 'B', long, value_name = "SRC[:DST[:ro|rw]],...", help_heading = "Files")]
    pub bind: Vec<String>,
    /// The same, in long words
    #[arg(long, value_name = "type=bind,src=SRC,dst=DST[,ro]", help_heading = "Files")]
    pub mount: Vec<String>,
    /// The home directory to show, and where
    #[arg(short = 'H', long, value_name = "SRC[:DST]", help_heading = "Files")]
    pub home: Option<String>,
    /// Do not show the home directory
    #[arg(long, help_heading = "Files")]
    pub no_home: bool,
    /// Show little of the host: a small /dev, an empty home and an empty /tmp
    #[arg(short, long, help_heading = "Files")]
    pub contain: bool,
    /// The same, with its own processes and ipc and a clean environment
    #[arg(short = 'C', long, help_heading = "Files")]
    pub containall: bool,
    /// Keep /tmp, /var/tmp and home of --contain, and scratch directories, below this directory
    #[arg(short = 'W', long, value_name = "DIR", help_heading = "Files")]
    pub workdir: Option<String>,
    /// An empty directory at this place
    #[arg(short = 'S', long, value_name = "PATH,...", help_heading = "Files")]
    pub scratch: Vec<String>,
    /// Write changes of the image into this directory
    #[arg(short, long, value_name = "DIR", help_heading = "Files")]
    pub overlay: Vec<String>,
    /// Write changes into the image itself
    #[arg(short, long, help_heading = "Files")]
    pub writable: bool,
    /// Write changes of the image into memory, and forget them
    #[arg(long, help_heading = "Files")]
    pub writable_tmpfs: bool,
    /// Show the host's NVIDIA driver and devices
    #[arg(long, help_heading = "Files")]
    pub nv: bool,
    /// Show the host's ROCm libraries and devices
    #[arg(long, help_heading = "Files")]
    pub rocm: bool,
    /// Unpack an image file into the cache instead of mounting it
    #[arg(long, help_heading = "Files")]
    pub unsquash: bool,
    /// An application of the image's, by its name
    #[arg(long, value_name = "NAME", help_heading = "Files")]
    pub app: Option<String>,
    /// Start in this directory
    #[arg(long, visible_alias = "pwd", value_name = "DIR", help_heading = "Files")]
    pub cwd: Option<String>,

    /// Do not pass the host's environment
    #[arg(short = 'e', long, help_heading = "Environment")]
    pub cleanenv: bool,
    /// Set variables inside
    #[arg(long, value_name = "NAME=VALUE,...", help_heading = "Environment")]
    pub env: Vec<String>,
    /// Set the variables in this file
    #[arg(long, value_name = "FILE", help_heading = "Environment")]
    pub env_file: Vec<String>,

    /// Be root inside
    #[arg(short, long, help_heading = "Isolation")]
    pub fakeroot: bool,
    /// The host name inside
    #[arg(long, value_name = "NAME", help_heading = "Isolation")]
    pub hostname: Option<String>,
    /// A network of its own, with lo and nothing else
    #[arg(short, long, help_heading = "Isolation")]
    pub net: bool,
    /// Process ids of its own
    #[arg(short, long, help_heading = "Isolation")]
    pub pid: bool,
    /// System V and POSIX ipc of its own
    #[arg(short, long, help_heading = "Isolation")]
    pub ipc: bool,
    /// A host name of its own
    #[arg(long, help_heading = "Isolation")]
    pub uts: bool,
    /// A user namespace, also for root
    #[arg(short, long, help_heading = "Isolation")]
    pub userns: bool,

    /// The engine that saves and restarts
    #[arg(long, value_name = "BACKEND", help_heading = "Checkpoints")]
    pub backend: Option<BackendName>,
    /// Start so that it can be saved into this checkpoint, which is made if it is missing
    #[arg(long, value_name = "NAME", conflicts_with_all = ["restart", "resume"], help_heading = "Checkpoints")]
    pub checkpoint: Option<CheckpointName>,
    /// Bring this checkpoint's newest generation, or the given one, back to life
    #[arg(long, value_name = "NAME[@GEN]", conflicts_with = "resume", help_heading = "Checkpoints")]
    pub restart: Option<CheckpointRef>,
    /// Restart if this checkpoint has a good generation, else start and save into it
    #[arg(long, value_name = "NAME", help_heading = "Checkpoints")]
    pub resume: Option<CheckpointName>,
    /// Save this often
    #[arg(long, value_name = "30m", value_parser = parse_duration, help_heading = "Checkpoints")]
    pub checkpoint_interval: Option<Duration>,
    /// Save when one of these signals arrives
    #[arg(long, value_name = "USR1,TERM", value_parser = parse_signal, value_delimiter = ',',
          help_heading = "Checkpoints")]
    pub checkpoint_on: Vec<i32>,
    /// Keep this many generations
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
          help_heading = "Checkpoints")]
    pub keep: Option<u32>,
    /// An option of the backend's
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair, help_heading = "Checkpoints")]
    pub backend_option: Vec<(String, String)>,
    /// What becomes of open TCP connections; short for `--backend-option tcp=...`
    #[arg(long, value_name = "refuse|close|keep", value_parser = ["refuse", "close", "keep"], help_heading = "Checkpoints")]
    pub tcp: Option<String>,
    /// Start or save even though this kind of state would be lost
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', help_heading = "Checkpoints")]
    pub accept_loss: Vec<String>,
    /// At a restart: compare the content with what was saved before the first instruction, or while it runs
    #[arg(long, value_name = "before|behind", help_heading = "Checkpoints")]
    pub verify: Option<Verify>,
    /// At a restart: take a bind from another place of the host
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_path_pair, help_heading = "Checkpoints")]
    pub bind_remap: Vec<(PathBuf, PathBuf)>,
    /// The exit code that says: saved, run me again
    #[arg(long, value_name = "N", value_parser = parse_exit_code, help_heading = "Checkpoints")]
    pub requeue_code: Option<u8>,
    /// Take a checkpoint over from another machine that is gone for good
    #[arg(long, help_heading = "Checkpoints")]
    pub force: bool,
    /// Print what would be done, and do nothing
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Checkpoints")]
    pub dry_run: bool,
}

impl ActionArgs {
    /// Whether an engine is needed: something is to be saved or brought back.
    #[must_use]
    pub fn wants_engine(&self) -> bool {
        self.backend.is_some() || self.checkpoint.is_some() || self.restart.is_some() || self.resume.is_some()
    }

    /// Fills in what the variables `STASIS_*`, `APPTAINER_*` and `SINGULARITY_*` say and no flag does; in
    /// this order, the first one counts. Lists (binds, mounts) are put before those of the flags, so that
    /// a flag has the last word. Answers with notes for the user about variables that lost.
    ///
    /// # Errors
    /// A variable for a yes or no holds something else.
    pub fn fill_from(&mut self, env: &BTreeMap<String, String>) -> Result<Vec<String>, ArgsError> {
        from_env::fill(self, env)
    }
}

#[cfg(test)]
mod tests;
