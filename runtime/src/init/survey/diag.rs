//! TCP sockets as the kernel lists them over a netlink socket (sock_diag(7)). `/proc/net/tcp` tells the same, but takes
//! milliseconds where the machine has much memory: its walk over the table of connections, which is sized for the whole
//! machine, is the slow one.

use super::net::Socket;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket as open_socket,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

/// The lengths of `nlmsghdr` and `inet_diag_req_v2`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// The kernel fills no more than this at once.
const BUFFER: usize = 64 << 10;

/// All TCP sockets of a family in this process's network namespace. `None` where the kernel does not list them.
pub(super) fn tcp(family: AddressFamily) -> Option<Vec<Socket>> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let socket = open_socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkSockDiag).ok()?;
    send(socket.as_raw_fd(), &request(family), MsgFlags::empty()).ok()?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; BUFFER]);
    loop {
        // What was asked for is there at once, so that nothing has to be waited for.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let length = recv(socket.as_raw_fd(), &mut buffer, flags).ok().filter(|n| *n > 0)?;
        let mut rest = buffer.get(..length)?;
        while !rest.is_empty() {
            let whole = word(rest, 0).and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= HEADER)?;
            let message = rest.get(..whole)?;
            match i32::from(u16::from_ne_bytes(bytes(message, 4)?)) {
                libc::NLMSG_DONE => return Some(found),
                libc::NLMSG_ERROR => return None,
                _ => found.push(parse(message.get(HEADER..)?)?),
            }
            rest = rest.get(whole.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A dump in every state.
fn request(family: AddressFamily) -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or_default();
    let length = u32::try_from(HEADER + REQUEST).unwrap_or_default();
    let mut message = Vec::with_capacity(HEADER + REQUEST);
    message.extend(length.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    // Of any address and port.
    message.resize(HEADER + REQUEST, 0);
    message
}

/// An `inet_diag_msg`.
pub(super) fn parse(message: &[u8]) -> Option<Socket> {
    let [family, state] = bytes(message, 0)?;
    let address = |at| -> Option<IpAddr> {
        match i32::from(family) {
            libc::AF_INET => Some(Ipv4Addr::from(bytes::<4>(message, at)?).into()),
            libc::AF_INET6 => Some(Ipv6Addr::from(bytes::<16>(message, at)?).into()),
            _ => None,
        }
    };
    let port = |at| Some(u16::from_be_bytes(bytes(message, at)?));
    Some(Socket {
        local: SocketAddr::new(address(8)?, port(4)?),
        peer: SocketAddr::new(address(24)?, port(6)?),
        state,
        inode: word(message, 68)?.into(),
    })
}

fn word(from: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes(from, at)?))
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}
