//! The tables of internet sockets, `/proc/net/{tcp,tcp6,udp,udp6}`: their lines, and what belongs together.

use stasis_plugin_api::survey::SocketInfo;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One line of such a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// The kernel's number.
    pub(super) state: u8,
    /// 0 when no descriptor belongs to it any more, or yet.
    pub(super) inode: u64,
}

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// `None` for the header and whatever else is no socket.
pub(super) fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let peer = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Socket { local, peer, state, inode })
}

/// `0100007F:1F90`: words of 32 bits, each as this machine reads it from memory.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if !ip.is_ascii() {
        return None;
    }
    let words: Vec<[u8; 4]> = ip
        .as_bytes()
        .chunks(8)
        .map(|digits| Some(u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?.to_ne_bytes()))
        .collect::<Option<_>>()?;
    let ip: IpAddr = match (ip.len(), words.as_slice()) {
        (8, [word]) => Ipv4Addr::from(*word).into(),
        (32, words) => Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The end of a connection, whichever table it stands in: a socket of `tcp6` may speak with one of `tcp`.
type Pair = (&'static str, SocketAddr, SocketAddr);

fn pair(protocol: &str, from: SocketAddr, to: SocketAddr) -> Pair {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (if protocol.starts_with("tcp") { "tcp" } else { "udp" }, plain(from), plain(to))
}

/// Puts sockets with their protocol and holder into the form of the contract.
pub(super) fn join(found: &[(&str, Socket, i32)]) -> Vec<SocketInfo> {
    let ends: HashSet<Pair> =
        found.iter().map(|(protocol, socket, _)| pair(protocol, socket.local, socket.peer)).collect();
    found
        .iter()
        .map(|(protocol, socket, pid)| SocketInfo {
            protocol: (*protocol).to_owned(),
            local: socket.local.ip().to_string(),
            local_port: socket.local.port(),
            peer: socket.peer.ip().to_string(),
            peer_port: socket.peer.port(),
            state: match socket.state {
                ESTABLISHED => "established".to_owned(),
                LISTEN => "listen".to_owned(),
                other => other.to_string(),
            },
            pid: *pid,
            peer_inside: socket.peer.port() != 0 && ends.contains(&pair(protocol, socket.peer, socket.local)),
        })
        .collect()
}
