//! What a backend asks of the container. Plain data: the runtime prints it (`--dry-run`), compares
//! it in tests and carries it out; a backend never mounts or starts anything itself.

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where everything that is injected into a container lives.
pub const INJECT: &str = "/.stasis";
/// Inside the container: the directory into which a capture is written.
pub const CAPTURE_DIR: &str = "/.stasis/capture";
/// Inside the container, at a restart: the generation that is brought back, read-only.
pub const IMAGE_DIR: &str = "/.stasis/image";

/// Inside the container: the log files of this start; helpers' output goes there too.
pub const LOG_DIR: &str = "/.stasis/log";

/// What a launch or a restart needs of the container around the application.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    /// Files and directories of the host shown inside, below [`INJECT`].
    pub binds: Vec<Bind>,
    /// Files written into the container's own tmpfs, below [`INJECT`].
    pub files: Vec<FileToWrite>,
    /// Directories made below [`INJECT`], or tmpfs mounts of their own.
    pub directories: Vec<Directory>,
    /// How user ids are mapped.
    pub id_map: IdMap,
    /// Namespaces beyond user, mount, pid, ipc and uts, which every container under an engine has.
    pub namespaces: Namespaces,
    /// System calls answered with an errno, at launch and after a restart.
    pub seccomp: Vec<SeccompRule>,
    /// Who is the application's parent.
    pub supervisor: Supervisor,
    /// The application's first process becomes the parent of processes whose own has ended, in place of init: the
    /// application is one tree then, whatever it starts.
    pub subreaper: bool,
    /// The pid (inside) that the application gets; the next free one when absent.
    pub first_pid: Option<i32>,
    /// The kinds of standard streams that survive a restart, best first. Empty means any.
    pub stdio: Vec<StdioKind>,
    /// Processes of the engine's own that stand before the application starts.
    pub helpers: Vec<Helper>,
    /// Environment of the wrapped application, set after the image's own environment scripts.
    pub env: BTreeMap<String, String>,
    /// Variables taken out of the application's environment; a trailing `*` matches a prefix.
    pub env_remove: Vec<String>,
    /// Let the application and the helpers start with these signals ignored.
    pub ignore_signals: Vec<i32>,
    /// At a restart: what [`Host::save_tmpfs`](crate::host::Host::save_tmpfs) wrote, inside, below
    /// [`IMAGE_DIR`]. It is unpacked before anything else runs.
    pub tmpfs_content: Option<PathBuf>,
}

/// A file or directory of the host that is shown inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host, absolute.
    pub source: PathBuf,
    /// Inside the container, absolute, below [`INJECT`].
    pub target: PathBuf,
    /// Whether writing is allowed.
    #[serde(default)]
    pub writable: bool,
}

/// A file that the runtime writes into the container's tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileToWrite {
    /// Inside the container, absolute, below [`INJECT`].
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Its content, base64.
    pub content: String,
}

impl FileToWrite {
    /// A file with this content.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, mode: u32, content: &[u8]) -> Self {
        let content = base64::engine::general_purpose::STANDARD.encode(content);
        Self { path: path.into(), mode, content }
    }

    /// The content as bytes.
    ///
    /// # Errors
    /// What is wrong with the encoding.
    pub fn bytes(&self) -> Result<Vec<u8>, String> {
        base64::engine::general_purpose::STANDARD.decode(&self.content).map_err(|e| e.to_string())
    }
}

/// A directory made below [`INJECT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Inside the container, absolute, below [`INJECT`].
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// A tmpfs of its own with at most this many bytes, writable for ever. Without it the directory
    /// is part of the injected tree, which is read-only once the container stands.
    #[serde(default)]
    pub tmpfs: Option<u64>,
}

/// How user ids are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdMap {
    /// The application has the user's own ids inside and outside.
    #[default]
    Keep,
    /// The same, and uid 0 is mapped to a subordinate id. Refused where none is granted.
    KeepAndZero,
    /// The user is root inside.
    Root,
}

/// Namespaces that an engine may ask for on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// A network of its own, with `lo` up.
    pub net: bool,
    /// A time namespace.
    pub time: bool,
}

/// A system call answered with an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompRule {
    /// Its number on this architecture.
    pub syscall: i64,
    /// Only when this argument (0 to 5) has this value.
    #[serde(default)]
    pub argument: Option<(u8, u64)>,
    /// Turns the condition round: only when the argument has any other value.
    #[serde(default)]
    pub except: bool,
    /// The errno answered; 0 makes the call return 0 without doing anything.
    pub errno: i32,
}

/// Who is the application's parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Supervisor {
    /// The container's init.
    #[default]
    Init,
    /// A process of the runtime's between init and the application.
    Interposed,
}

/// As whom a process of the engine's runs inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// As the application: its ids, and no capability that it does not have.
    #[default]
    Application,
    /// The application's ids, with every capability that the container's user namespace has.
    Capable,
    /// Uid and gid 0 of the container with every capability. Fails where uid 0 is not mapped.
    Root,
}

/// What the application's standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StdioKind {
    /// The caller's own descriptors. Never under an engine.
    Inherit,
    /// A pseudo terminal whose other side the monitor holds.
    Pty,
    /// stdin is `/dev/null`, stdout and stderr are log files; a foreground command follows them.
    File,
}

/// A process of the engine's inside the container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Helper {
    /// For messages: `coordinator`.
    pub name: String,
    /// The command, absolute inside the container.
    pub argv: Vec<String>,
    /// Its whole environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Descriptors that it finds at given numbers.
    #[serde(default)]
    pub descriptors: Vec<HelperDescriptor>,
    /// Signals that it starts with ignored.
    #[serde(default)]
    pub ignore_signals: Vec<i32>,
    /// When it counts as standing.
    #[serde(default)]
    pub readiness: Readiness,
    /// Whether the container ends when it does: its death is told as the reason.
    #[serde(default)]
    pub essential: bool,
    /// As whom it runs.
    #[serde(default)]
    pub identity: Identity,
    /// After so many milliseconds without standing it has failed. 0 means ten seconds.
    #[serde(default)]
    pub timeout_ms: u64,
    /// How it can be started before the container's root is there; only that of [`RestartPlan::Rebuild`] is. The runtime
    /// need not do it: where it does not, or where this command cannot be started, the helper is started by `argv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early: Option<EarlyCommand>,
    /// How it is started where a loader finds nothing of the image's. A runtime that does not know of this starts it by `argv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secluded: Option<SecludedCommand>,
}

/// A command that is loaded with another root than the container's: what an image preloads into every program
/// (`/etc/ld.so.preload`) has no part in it, which matters where it has more rights than the application. It has to have
/// the capability to change its root, and to do so when it is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecludedCommand {
    /// Its root at first, inside, below [`INJECT`].
    pub root: PathBuf,
    /// The command, absolute below that root.
    pub argv: Vec<String>,
    /// The number of a descriptor of the container's root.
    pub back: i32,
}

/// The command of a helper that gets ready while the container's root is made. It begins in the container's namespaces, but
/// with the host's root, and finds itself in the container's later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyCommand {
    /// The command. Its program and all that this loads are absolute on the host.
    pub argv: Vec<String>,
    /// The number of a connected stream socket. The helper writes a byte when it has all that it needs of the host's files,
    /// its libraries among them: the root is not changed before. It reads one when the container's root is there and nothing
    /// is left of the host's; where the socket ends instead, there is not going to be one.
    pub talk: i32,
}

/// The command of a helper that gets ready before it is planned, while the engine is asked what it needs. It begins as an
/// [`EarlyCommand`] does, and becomes the helper whose early command begins with this one and whose environment, identity
/// and socket are the same: started with no more words than these, it reads the others from its socket, one line of JSON, a
/// list of texts. From there on it goes as with an early command. Where another helper is planned, the socket ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitingCommand {
    /// The first words of [`EarlyCommand::argv`].
    pub argv: Vec<String>,
    /// See [`EarlyCommand::talk`].
    pub talk: i32,
    /// See [`Helper::env`].
    pub env: BTreeMap<String, String>,
    /// See [`Helper::identity`].
    pub identity: Identity,
}

/// A descriptor handed to a helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperDescriptor {
    /// The number at which it finds it.
    pub number: i32,
    /// What it is.
    pub source: DescriptorSource,
}

/// What a handed descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DescriptorSource {
    /// A unix stream socket, bound at this path inside (below [`INJECT`]) and listening. Only the
    /// helper holds it afterwards.
    UnixListener(PathBuf),
    /// A descriptor given to the runtime by `keep_fd` under this name.
    Kept(String),
}

/// When a helper counts as standing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// When its program was started.
    #[default]
    Started,
    /// When this path exists inside.
    PathExists(PathBuf),
    /// When it ended with status 0.
    Succeeded,
}

/// How an application is started so that it can be saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchPlan {
    /// What the container needs.
    pub needs: Needs,
    /// Put before the application's own command.
    pub wrap: Vec<String>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// How a generation is brought back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "shape")]
pub enum RestartPlan {
    /// Run this command as the application of a fresh container.
    Exec {
        /// What the container needs.
        needs: Needs,
        /// The command.
        argv: Vec<String>,
    },
    /// The engine makes the processes itself: init runs this helper inside the new namespaces,
    /// adopts the restored root process and reports its exit status.
    Rebuild {
        /// What the container needs.
        needs: Needs,
        /// The helper. It has to end with status 0, whatever its readiness says; when it does not, the
        /// backend's `explain` is asked why.
        helper: Box<Helper>,
        /// Where the pid (inside) of the restored root process is found.
        root: RestoredRoot,
        /// Pids (inside) that have to be free: init hands out others to everybody else.
        reserve_pids_up_to: i32,
        /// Files of the generation that the application reads only while it runs: their content is compared with what was
        /// saved behind its start, and a difference ends it. Counts with
        /// [`VERIFY_BEHIND`](crate::capability::VERIFY_BEHIND).
        #[serde(default)]
        verify_behind: Vec<PathBuf>,
    },
}

impl RestartPlan {
    /// What the container needs, whatever the shape.
    #[must_use]
    pub fn needs(&self) -> &Needs {
        match self {
            Self::Exec { needs, .. } | Self::Rebuild { needs, .. } => needs,
        }
    }
}

/// How the root process of a rebuilt tree is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoredRoot {
    /// It has this pid inside.
    Pid(i32),
    /// This file (inside) holds it in decimal digits.
    PidFile(PathBuf),
}
