//! What runs in a container, as its init sees it in `/proc`. All pids are those inside.

use serde::{Deserialize, Serialize};

/// A look at everything inside, taken without stopping anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Survey {
    /// The application's processes. Init, the supervisor and the engine's helpers are left out.
    pub processes: Vec<ProcessInfo>,
    /// The IPv4 and IPv6 sockets that those processes hold.
    pub sockets: Vec<SocketInfo>,
    /// The container's own tmpfs mounts that hold anything (inside).
    pub tmpfs: Vec<String>,
    /// Processes of the runtime's, the engine's and of commands beside the application (`exec`), which are left
    /// out of `processes`; their children are not.
    pub beside: Vec<i32>,
    /// One of those runs, or waits for a processor or a disk: the application may be waiting for it.
    pub beside_busy: bool,
}

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    /// Inside.
    pub pid: i32,
    /// Inside.
    pub parent: i32,
    /// `comm`.
    pub name: String,
    /// The letter of `/proc/PID/stat`.
    pub state: String,
    /// The executable, as the container shows it.
    pub exe: String,
    /// The working directory, as the container shows it; empty where it cannot be seen.
    pub cwd: String,
    /// Number of threads.
    pub threads: u32,
    /// For how many nanoseconds its first thread has had a processor; 0 where the kernel does not tell.
    pub ran: u64,
    /// Resident memory in bytes, shared parts included.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: Vec<DescriptorInfo>,
    /// The files that are mapped executable: the program and its libraries, as the container shows them.
    pub mapped: Vec<String>,
    /// Mapped objects that are not files which are still there: `/a/file (deleted)`, `/memfd:x (deleted)`, `/dev/zero (deleted)`, `/SYSV...`, `anon_inode:...`.
    pub special_mappings: Vec<String>,
}

/// One open descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DescriptorInfo {
    /// Its number.
    pub number: i32,
    /// The text of the link in `/proc/PID/fd`: `/a/file`, `socket:[1]`, `anon_inode:[eventpoll]`.
    pub target: String,
    /// The path of a device node's real device: `char:5:2`. Empty for everything else.
    pub device: String,
}

/// One internet socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketInfo {
    /// `tcp`, `tcp6`, `udp`, `udp6`.
    pub protocol: String,
    /// The local address.
    pub local: String,
    /// The local port.
    pub local_port: u16,
    /// The peer's address.
    pub peer: String,
    /// The peer's port; 0 when there is none.
    pub peer_port: u16,
    /// `listen`, `established`, or the kernel's number of another state.
    pub state: String,
    /// The process (inside) that holds it.
    pub pid: i32,
    /// The other end is held by a process of the same container.
    pub peer_inside: bool,
}
