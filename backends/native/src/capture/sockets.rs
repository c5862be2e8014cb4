//! Sockets. Internet sockets are saved when they are connected to nobody; unix sockets also when both ends belong to
//! the tree, with what waits in them.

use super::descriptors::Seen;
use super::process::hex;
use super::{multicast, unix};
use crate::model::{Kind, Object, Socket, SocketOption};
use crate::sys::netlink::Diagnosis;
use crate::sys::{fd, socket};
use nix::poll::PollFlags;
use stasis_plugin_api::error::{BackendError, Result};
use std::collections::HashMap;
use std::os::fd::AsFd as _;

const SOL_SOCKET: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
/// Which buffer sizes the application chose itself: 1 for sending, 2 for receiving.
const SO_BUF_LOCK: i32 = 72;

/// Options of every socket whose value is what was set: keep alive, broadcast, out of band inline, linger, low water
/// mark, time limits, priority, time stamps, credentials, port sharing, routing, from where it peeks; check sums, mark,
/// time stamping, drops, filter lock, error queue, pacing, zero copies, time of sending, time stamps of the newer kind,
/// hashing, mark and priority of what is received, pidfds, descriptors.
const GENERAL: [i32; 32] = [
    9, 6, 10, 13, 18, 20, 21, 12, 29, 35, 16, 15, 5, 34, 42, 11, 36, 37, 40, 44, 45, 47, 60, 61, 63, 64, 65,
    74, 75, 82, 76, 83,
];
/// No delay, keep alive times and count, deferred accept, user time limit, fast open; segment size, corking, attempts,
/// lingering, thin streams, congestion control, what waits unsent, first packets, the client's fast open, its cookies,
/// what is left to read, delay.
const OF_TCP: [i32; 20] = [1, 4, 5, 6, 9, 18, 23, 2, 3, 7, 8, 16, 17, 13, 25, 27, 30, 34, 36, 37];
/// Check sums that version 6 goes without, many datagrams at once, sent and received.
const OF_UDP: [i32; 4] = [101, 102, 103, 104];
/// Type of service, time to live, multicast time to live and loop, multicasts for others, packet info, errors; options,
/// those received and returned, discovery of path sizes, time to live and type of service told, addresses that are not
/// there, security, foreign addresses, first destinations, least time to live, check sums, late ports, sizes of
/// fragments, range of ports.
const OF_IP: [i32; 23] =
    [1, 2, 33, 34, 49, 8, 11, 4, 6, 7, 10, 12, 13, 15, 18, 19, 20, 21, 23, 24, 25, 26, 51];
/// Only IPv6 first; hops, multicast hops and loop, multicasts for others, packet info, errors, traffic class; discovery of
/// path sizes, flow of what is sent, hops, options, routing and path sizes told, no fragments, traffic class told, flow
/// labels, preferred addresses, least hops, first destinations, foreign addresses, sizes of fragments, addresses that are
/// not there.
const OF_IPV6: [i32; 25] =
    [26, 16, 18, 19, 29, 49, 25, 67, 23, 31, 33, 51, 53, 56, 58, 60, 62, 66, 70, 72, 73, 74, 75, 77, 78];
/// Of netlink: packet info, errors of broadcasts, silence about losses, all namespaces, short and long answers, strict
/// checks.
const OF_NETLINK: [i32; 7] = [3, 4, 5, 8, 10, 11, 12];
const NETLINK: i32 = libc::SOL_NETLINK;

/// The device itself; by which interface multicasts and everything else is sent, by both protocols.
const INTERFACES: [(i32, i32); 5] =
    [(SOL_SOCKET, libc::SO_BINDTODEVICE), (IP, 32), (IP, 50), (IPV6, 17), (IPV6, 76)];

/// What is known of the sockets of a tree beyond their objects.
pub(crate) struct Sockets {
    pub(crate) diagnosis: Option<Diagnosis>,
    /// Object and peer's inode number of each unix socket, by its own.
    pub(crate) unix: HashMap<u32, unix::Found>,
}

impl Sockets {
    pub(crate) fn new(diagnosis: Option<Diagnosis>) -> Self {
        Self { diagnosis, unix: HashMap::new() }
    }

    pub(crate) fn describe(&mut self, seen: &Seen<'_>, index: usize) -> Result<Kind> {
        let number = |name| socket::number(&seen.copy, SOL_SOCKET, name).map_err(seen.errno());
        let family = number(libc::SO_DOMAIN)?;
        let socket_type = number(libc::SO_TYPE)?;
        let protocol = number(libc::SO_PROTOCOL)?;
        // A filter of the newer kind (eBPF) is there and cannot be read: an error.
        if socket::filter_length(&seen.copy) != Ok(0) {
            return Err(seen.refuse("a filter is attached to it"));
        }
        match (family, socket_type) {
            (libc::AF_UNIX, _) => unix::describe(self, seen, index, socket_type),
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_DGRAM)
            | (libc::AF_NETLINK, _) => internet(seen, family, socket_type, protocol),
            _ => Err(seen
                .refuse(format!("the engine does not know sockets of family {family}, type {socket_type}"))),
        }
    }

    /// Once every descriptor is known: tells connected unix sockets of each other.
    pub(crate) fn connect(&self, objects: &mut [Object]) -> Result<()> {
        unix::connect(&self.unix, objects)
    }
}

/// The options of these names that the kernel knows for this socket.
pub(crate) fn options(seen: &Seen<'_>, level: i32, names: &[i32]) -> Vec<SocketOption> {
    let value = |name: &i32| {
        let value = socket::option(&seen.copy, level, *name).ok()?;
        Some(SocketOption { level, name: *name, value: hex(&value) })
    };
    names.iter().filter_map(value).collect()
}

/// The general ones, and the buffer sizes that the application chose, as it gave them: the kernel doubles what it is
/// given. A kernel before 5.14 does not tell who chose; there both are kept.
pub(crate) fn general_options(seen: &Seen<'_>) -> Vec<SocketOption> {
    let mut found = options(seen, SOL_SOCKET, &GENERAL);
    let locked = socket::number(&seen.copy, SOL_SOCKET, SO_BUF_LOCK).unwrap_or(3);
    for (bit, name) in [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)] {
        let size = socket::number(&seen.copy, SOL_SOCKET, name).unwrap_or(0) / 2;
        if locked & bit != 0 && size > 0 {
            found.push(SocketOption { level: SOL_SOCKET, name, value: hex(&size.to_ne_bytes()) });
        }
    }
    found
}

fn internet(seen: &Seen<'_>, family: i32, socket_type: i32, protocol: i32) -> Result<Kind> {
    let stream = socket_type == libc::SOCK_STREAM;
    let accepts = socket::number(&seen.copy, SOL_SOCKET, libc::SO_ACCEPTCONN).map_err(seen.errno())? != 0;
    let mut listening = None;
    if stream {
        // Newer Go programs listen with multipath TCP.
        if protocol != libc::IPPROTO_TCP && protocol != libc::IPPROTO_MPTCP {
            return Err(
                seen.refuse(format!("the engine does not know stream sockets of protocol {protocol}"))
            );
        }
        listening = tcp(seen, accepts)?;
    }
    if !seen.runs {
        left_over(seen, stream)?;
    }
    let local = socket::local(&seen.copy).map_err(seen.errno())?;
    let peer = socket::peer(&seen.copy).map_err(seen.errno())?.filter(|_| family != libc::AF_NETLINK);
    let mut options_found = general_options(seen);
    match family {
        libc::AF_INET => options_found.extend(options(seen, IP, &OF_IP)),
        libc::AF_INET6 => {
            options_found.extend(options(seen, IPV6, &OF_IPV6));
            // For addresses of version 4 in those of 6.
            options_found.extend(options(seen, IP, &OF_IP));
        }
        libc::AF_NETLINK => {
            options_found.extend(options(seen, NETLINK, &OF_NETLINK));
            options_found.extend(memberships(seen));
        }
        _ => {}
    }
    if family != libc::AF_NETLINK && !stream {
        options_found.extend(options(seen, libc::IPPROTO_UDP, &OF_UDP));
    }
    if stream {
        options_found.extend(options(seen, TCP, &OF_TCP));
    }
    bound_to_interface(seen)?;
    let reuse = socket::number(&seen.copy, SOL_SOCKET, libc::SO_REUSEADDR).map_err(seen.errno())? != 0;
    Ok(Kind::Socket(Socket {
        family,
        socket_type,
        protocol,
        local: bound(family, &local).then(|| hex(&local)),
        peer: peer.map(|address| hex(&address)),
        listening,
        options: options_found,
        reuse_address: reuse,
    }))
}

/// The groups of a netlink socket, each as what joins it.
fn memberships(seen: &Seen<'_>) -> Vec<SocketOption> {
    const ADD_MEMBERSHIP: i32 = 1;
    const LIST_MEMBERSHIPS: i32 = 9;
    let told = socket::option(&seen.copy, NETLINK, LIST_MEMBERSHIPS).unwrap_or_default();
    let joined = (1_u32..).zip(told.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)));
    let join =
        |group: u32| SocketOption { level: NETLINK, name: ADD_MEMBERSHIP, value: hex(&group.to_ne_bytes()) };
    joined.filter(|(_, joined)| *joined).map(|(group, _)| join(group)).collect()
}

/// Interfaces have other numbers and names elsewhere.
fn bound_to_interface(seen: &Seen<'_>) -> Result<()> {
    let chosen = |(level, name): &(i32, i32)| {
        let value = socket::option(&seen.copy, *level, *name).unwrap_or_default();
        value.iter().any(|byte| *byte != 0)
    };
    if INTERFACES.iter().any(chosen) {
        return Err(seen.refuse("it is bound to one network interface"));
    }
    match multicast::group(seen) {
        None => Ok(()),
        Some(group) => Err(seen.refuse(format!("it is a member of the multicast group {group}"))),
    }
}

/// Port (or netlink number) other than 0.
fn bound(family: i32, address: &[u8]) -> bool {
    let number = if family == libc::AF_NETLINK { address.get(4..8) } else { address.get(2..4) };
    number.is_some_and(|number| number.iter().any(|byte| *byte != 0))
}

/// The backlog of a listening TCP socket; an error for one that is connected.
fn tcp(seen: &Seen<'_>, accepts: bool) -> Result<Option<i32>> {
    const CLOSE: u8 = 7;
    let info = socket::option(&seen.copy, TCP, libc::TCP_INFO).map_err(seen.errno())?;
    let word = |at: usize| info.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes);
    if accepts {
        // tcpi_unacked is the queue's length, tcpi_sacked the most that it may have.
        if word(24) > 0 && !seen.runs {
            return Err(seen.refuse(format!("{} connections wait to be accepted", word(24))));
        }
        return Ok(Some(i32::try_from(word(28)).unwrap_or(i32::MAX)));
    }
    if info.first() == Some(&CLOSE) {
        return Ok(None);
    }
    let peer = socket::peer(&seen.copy).ok().flatten().map_or_else(String::new, |peer| readable(&peer));
    Err(connected(seen, &peer))
}

/// Refuses a socket that holds something for the application: what nobody reads again would be lost. Poll tells of it
/// without taking anything, also of a pending error, which a read would take.
fn left_over(seen: &Seen<'_>, stream: bool) -> Result<()> {
    let events = fd::ready(seen.copy.as_fd(), PollFlags::POLLIN).map_err(seen.errno())?;
    let why = if events.contains(PollFlags::POLLERR) {
        "an error waits in it that nobody has been told"
    } else if !events.contains(PollFlags::POLLIN) {
        return Ok(());
    } else if stream {
        "its connection has ended, and what is left of it would be lost"
    } else {
        "a message waits in it that nobody has read"
    };
    Err(seen.refuse(why).help("try again once the application has looked at it, or let it close it"))
}

fn connected(seen: &Seen<'_>, peer: &str) -> BackendError {
    seen.refuse(format!("it is a TCP connection{peer}; the other side would not know of the restart"))
        .help("close it before saving, or let the application connect anew")
}

/// ` to 10.0.0.1:80`.
fn readable(address: &[u8]) -> String {
    let family = address.get(..2).and_then(|f| f.try_into().ok()).map(u16::from_ne_bytes);
    let port = address.get(2..4).and_then(|p| p.try_into().ok()).map_or(0, u16::from_be_bytes);
    match (family.map(i32::from), address.get(4..8), address.get(8..24)) {
        (Some(libc::AF_INET), Some([a, b, c, d]), _) => format!(" to {a}.{b}.{c}.{d}:{port}"),
        (Some(libc::AF_INET6), _, Some(bytes)) => {
            let bytes: [u8; 16] = bytes.try_into().unwrap_or_default();
            format!(" to [{}]:{port}", std::net::Ipv6Addr::from(bytes))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(readable(&[2, 0, 0, 80, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), " to 10.0.0.1:80");
        let mut six = vec![10, 0, 0x1f, 0x90, 0, 0, 0, 0];
        six.extend(std::net::Ipv6Addr::LOCALHOST.octets());
        six.extend([0; 4]);
        assert_eq!(readable(&six), " to [::1]:8080");
        assert!(!bound(libc::AF_INET, &[2, 0, 0, 0]) && bound(libc::AF_INET, &[2, 0, 0, 1]));
    }
}
