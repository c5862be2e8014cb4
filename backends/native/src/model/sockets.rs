//! Sockets: of the internet, of netlink, and unix sockets.

use serde::{Deserialize, Serialize};

/// A socket option: level, name, value in hex.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketOption {
    pub(crate) level: i32,
    pub(crate) name: i32,
    pub(crate) value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Socket {
    pub(crate) family: i32,
    /// SOCK_STREAM and so on, without flags.
    pub(crate) socket_type: i32,
    pub(crate) protocol: i32,
    /// `struct sockaddr` in hex; absent when not bound.
    pub(crate) local: Option<String>,
    /// The peer of a connected datagram socket.
    pub(crate) peer: Option<String>,
    /// The backlog of a listening socket.
    pub(crate) listening: Option<i32>,
    /// To be set before the binding, in this order; SO_REUSEADDR as the application had it is in `reuse_address`,
    /// because a restart needs it on while it binds.
    pub(crate) options: Vec<SocketOption>,
    pub(crate) reuse_address: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unix {
    pub(crate) socket_type: i32,
    /// `struct sockaddr_un` in hex; absent when not bound. A path begins with a byte other than 0.
    pub(crate) local: Option<String>,
    /// Where a path that is relative begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<String>,
    /// The name of its file, where that has got another one since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) moved: Option<String>,
    /// Permission bits, uid and gid of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<[u32; 3]>,
    /// Uid and gid that it is told of its other end (SO_PEERCRED); a listening one tells its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer_ids: Option<[u32; 2]>,
    pub(crate) listening: Option<i32>,
    /// The object at the other end, which names this one (a connected pair) or is a bound datagram socket.
    pub(crate) peer: Option<usize>,
    /// The peer is gone: the other end was closed.
    pub(crate) orphan: bool,
    /// SHUT_RD 1, SHUT_WR 2.
    pub(crate) shutdown: u32,
    /// What was sent to this socket and not read: one entry for a stream, one a message otherwise. Hex.
    pub(crate) queue: Vec<String>,
    pub(crate) options: Vec<SocketOption>,
}
