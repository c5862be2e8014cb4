//! Internet and netlink sockets that are not connected.

use super::{Tried, Trouble};
use crate::model::{Object, Socket, SocketOption};
use crate::restore::check::unhex;
use crate::sys::fd;
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};

const ON: [u8; 4] = 1i32.to_ne_bytes();
const OFF: [u8; 4] = 0i32.to_ne_bytes();
/// Which buffer sizes the application chose itself.
pub(super) const SO_BUF_LOCK: i32 = 72;
/// What these are given the kernel doubles, and it is no longer its own to change.
const BUFFERS: [i32; 2] = [libc::SO_SNDBUF, libc::SO_RCVBUF];

/// One of them.
pub(super) fn make(socket: &Socket, _: &Object) -> Tried<OwnedFd> {
    let made = fd::socket(socket.family, socket.socket_type | libc::SOCK_CLOEXEC, socket.protocol)?;
    options(&made, &socket.options)?;
    // What is left of connections does not keep a listener from its address. A datagram socket would share its address
    // with others.
    let stream = socket.socket_type == libc::SOCK_STREAM;
    if stream || socket.reuse_address {
        fd::set_option(made.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &ON)?;
    }
    if let Some(local) = &socket.local {
        let address = unhex(local).ok_or(Errno::EINVAL)?;
        fd::bind(made.as_fd(), &address).map_err(|errno| taken(errno, socket))?;
    }
    if let Some(peer) = &socket.peer {
        fd::connect(made.as_fd(), &unhex(peer).ok_or(Errno::EINVAL)?)?;
    }
    if let Some(backlog) = socket.listening {
        fd::listen(made.as_fd(), backlog).map_err(|errno| taken(errno, socket))?;
    }
    if stream && !socket.reuse_address {
        fd::set_option(made.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &OFF)?;
    }
    Ok(made)
}

fn taken(errno: Errno, socket: &Socket) -> Trouble {
    let trouble = Trouble::from(errno);
    match errno {
        Errno::EADDRINUSE => Trouble::new(format!("another process listens at{} already", address(socket)))
            .help("end it, or start the instance with a network of its own (--net)"),
        Errno::EADDRNOTAVAIL => trouble.help("the address is not there on this host"),
        Errno::EACCES => trouble.help("ports below 1024 need a privilege that this user does not have"),
        _ => trouble,
    }
}

/// For messages: ` 127.0.0.1:80`.
pub(super) fn address(socket: &Socket) -> String {
    let Some(bytes) = socket.local.as_deref().and_then(unhex) else { return String::new() };
    let part = |from: usize, n: usize| bytes.get(from..from + n).unwrap_or_default();
    let port = part(2, 2).iter().fold(0u16, |sum, b| sum << 8 | u16::from(*b));
    match (socket.family, <[u8; 4]>::try_from(part(4, 4)), <[u8; 16]>::try_from(part(8, 16))) {
        (libc::AF_INET, Ok(ip), _) => format!(" {}:{port}", std::net::Ipv4Addr::from(ip)),
        (libc::AF_INET6, _, Ok(ip)) => format!(" [{}]:{port}", std::net::Ipv6Addr::from(ip)),
        _ => String::new(),
    }
}

/// Sets options as they were read; the sizes of buffers as the application gave them. Some options only privilege may
/// set.
pub(super) fn options(socket: &OwnedFd, options: &[SocketOption]) -> Tried<()> {
    for option in options {
        let value = unhex(&option.value).ok_or(Errno::EINVAL)?;
        let as_read = !(option.level == libc::SOL_SOCKET && BUFFERS.contains(&option.name));
        let now = crate::sys::socket::option(socket, option.level, option.name);
        if as_read && now.is_ok_and(|now| now == value) {
            // Some can only be read.
            continue;
        }
        match fd::set_option(socket.as_fd(), option.level, option.name, &value) {
            // This kernel may have no such congestion control (ENOENT).
            Ok(()) | Err(Errno::EPERM | Errno::ENOPROTOOPT | Errno::ENOENT) => {}
            Err(errno) => {
                return Err(Trouble::new(format!(
                    "option {}/{}: {}",
                    option.level,
                    option.name,
                    errno.desc()
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told() {
        let socket =
            |family, local: &str| Socket { family, local: Some(local.to_owned()), ..Socket::default() };
        assert_eq!(address(&socket(2, "02001f907f0000010000000000000000")), " 127.0.0.1:8080");
        let six = "0a001f9000000000000000000000000000000000000000010000000000";
        assert_eq!(address(&socket(10, six)), " [::1]:8080");
        assert_eq!(address(&socket(2, "02")), " 0.0.0.0:0".replace(" 0.0.0.0:0", ""));
    }
}
