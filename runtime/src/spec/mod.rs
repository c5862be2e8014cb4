//! What a container will be, as plain data: printed by `--dry-run`, stored with an instance and with
//! every generation, carried out by [`launch`](crate::launch). Nothing here touches the machine.

use crate::clocks::Clocks;
use crate::image::attach::{FileSpec, Way};
use serde::{Deserialize, Serialize};
use stasis_plugin_api::plan::{IdMap, Needs, RestoredRoot, SeccompRule, StdioKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub mod apply;
pub mod binds;
pub mod env;
pub mod gpu;
pub mod identity;
pub mod prelude;
pub mod resolve;

/// The format of a stored spec.
pub const SPEC_FORMAT: u32 = 1;

/// A whole container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// [`SPEC_FORMAT`].
    pub format: u32,
    /// The instance's name; a made one for foreground commands.
    pub name: String,
    /// `exec`, `run`, `shell`, `start` or `instance-run`.
    pub action: String,
    /// What the user typed as image.
    pub image: String,
    /// The root file system.
    pub root: RootSpec,
    /// Which namespaces are new. The mount namespace always is.
    pub namespaces: NamespaceSpec,
    /// Who the application is.
    pub ids: IdSpec,
    /// The host name inside; `None` leaves the host's.
    pub hostname: Option<String>,
    /// In order. Later ones may lie on earlier ones.
    pub mounts: Vec<Mount>,
    /// The application.
    pub process: ProcessSpec,
    /// What the standard streams are.
    pub stdio: StdioKind,
    /// The container has our init as pid 1. Always so under an engine and for instances.
    pub init: bool,
    /// What the engine asked for. Not stored with a generation: a restart asks again.
    pub engine: Option<EngineSpec>,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootSpec {
    /// A directory on the host, absolute and resolved. Of an image in a file that is mounted: the file.
    pub directory: PathBuf,
    /// The file system in a file that is shown instead of a directory, or that the directory was unpacked of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSpec>,
    /// How it is shown.
    pub mode: RootMode,
    /// Who may write to it.
    pub write: RootWrite,
}

impl RootSpec {
    /// Whether the content comes as a mount, handed over by descriptor.
    pub fn is_mounted(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.way != Way::Unpacked)
    }

    /// What the image is: the file or the directory.
    pub fn image(&self) -> &Path {
        self.file.as_ref().map_or(&self.directory, |file| &file.path)
    }
}

/// How the image's directory becomes the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootMode {
    /// Decided when the container is made; what was taken is written back before the spec is stored.
    Auto,
    /// The directory itself: every mount point is there already.
    Plain,
    /// An overlay of a small tmpfs with the mount points that are missing and the image; without an engine perhaps
    /// only over the directories in which they are missing.
    Overlay,
    /// A tmpfs with the image's entries bound in, where the kernel has no such overlay.
    Skeleton,
}

/// Who may write to the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootWrite {
    /// Nobody.
    ReadOnly,
    /// The application, into the image's directory itself (`--writable`).
    Image,
    /// The application, into memory, gone at the end (`--writable-tmpfs`).
    Tmpfs,
    /// The application, into this directory on the host (`--overlay DIR`); it holds `upper` and `work`.
    Overlay(PathBuf),
}

/// Which namespaces are new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    /// User ids.
    pub user: bool,
    /// Process ids.
    pub pid: bool,
    /// System V and POSIX message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Network, with `lo` up and nothing else.
    pub net: bool,
    /// Clocks.
    pub time: bool,
}

/// Who the application is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdSpec {
    /// How ids are mapped when there is a user namespace.
    pub map: IdMap,
    /// Beside root inside there are all the other ids that are granted to the user: for builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub granted: bool,
    /// On the host.
    pub host_uid: u32,
    /// On the host.
    pub host_gid: u32,
    /// Inside.
    pub uid: u32,
    /// Inside.
    pub gid: u32,
}

/// One mount, or one file made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Mount {
    /// A path of the host.
    Bind {
        /// On the host, absolute.
        source: PathBuf,
        /// Inside, absolute.
        target: PathBuf,
        /// Whether writing is allowed.
        writable: bool,
        /// Left out with a note when the source or the place for it is missing.
        optional: bool,
        /// Asked for by the user, in contrast to what every container has.
        user: bool,
    },
    /// A new `/proc` of the container's pid namespace (the host's is bound by `Bind`).
    Proc,
    /// A small `/dev` of its own with null, zero, full, random, urandom, tty.
    MinimalDev,
    /// Terminals of its own at `/dev/pts`, with `/dev/ptmx` leading there.
    Devpts,
    /// An empty tmpfs. Its content belongs to the container and to nothing else.
    Tmpfs {
        /// Inside, absolute.
        target: PathBuf,
        /// At most this many bytes; `None`: the kernel's default.
        size: Option<u64>,
        /// Permission bits.
        mode: u32,
    },
    /// A file with this text, read-only.
    File {
        /// Inside, absolute.
        target: PathBuf,
        /// Its content.
        content: String,
        /// Left out when the place for it is missing.
        optional: bool,
    },
}

/// The application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments, as the user means them, without prelude and wrapping.
    pub argv: Vec<String>,
    /// The image has `/.singularity.d/env`: its scripts are sourced by the image's `/bin/sh` first.
    pub source_env: bool,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Part of `env` that wins over the image's own scripts: what the user asked for by name.
    #[serde(default)]
    pub env_after: BTreeMap<String, String>,
    /// Working directories inside, the first that exists is taken.
    pub cwd: Vec<PathBuf>,
    /// The file mode mask.
    pub umask: u32,
    /// It is killed when whoever started it ends: for builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_with_parent: bool,
    /// System calls that are answered without being carried out: for builds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seccomp: Vec<SeccompRule>,
}

/// What the engine asked for, merged into the spec by [`apply`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineSpec {
    /// The backend.
    pub backend: String,
    /// Its needs.
    pub needs: Needs,
    /// Put before the application's own command at a launch.
    pub wrap: Vec<String>,
    /// At a restart: what is done instead of starting the application's command.
    pub restart: Option<RestartStep>,
    /// The staging directory on the host, shown as `/.stasis/capture`.
    pub staging: PathBuf,
    /// At a restart: the generation on the host, shown as `/.stasis/image`.
    pub generation: Option<PathBuf>,
    /// Covered inside, so that the application does not reach the store.
    pub cover: Vec<PathBuf>,
    /// At a restart: how its clocks go on.
    pub clocks: Option<ClocksGoOn>,
}

impl EngineSpec {
    /// Whether what rebuilds a generation can be started while the root is made. Its pid is beyond all that are to come
    /// back: others that were started before it would get those behind it.
    #[must_use]
    pub fn starts_early(&self) -> bool {
        let Some(RestartStep::Rebuild { helper, .. }) = &self.restart else { return false };
        helper.early.is_some() && helper.descriptors.is_empty() && self.needs.helpers.is_empty()
    }
}

/// How the clocks of what is brought back go on from where they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClocksGoOn {
    /// How far they are ahead of this machine's.
    pub offset: Clocks,
    /// Whether they may go back where that cannot be had.
    pub may_go_back: bool,
}

/// What is done at a restart instead of starting the command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "shape")]
pub enum RestartStep {
    /// Run this.
    Exec {
        /// The command.
        argv: Vec<String>,
    },
    /// Let this helper make the processes, then adopt their root.
    Rebuild {
        /// The helper.
        helper: Box<stasis_plugin_api::plan::Helper>,
        /// How the root process is found.
        root: RestoredRoot,
        /// Everything else gets higher pids.
        reserve_pids_up_to: i32,
    },
}
