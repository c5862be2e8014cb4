//! Sockets that the engine holds a copy of: addresses, options, and what waits in them, left where it is.

use nix::errno::Errno;
use std::os::fd::{AsRawFd as _, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

/// The value of an option; as long as the kernel makes it.
pub(crate) fn option(socket: &OwnedFd, level: i32, name: i32) -> Result<Vec<u8>> {
    let mut value = vec![0_u8; 256];
    let mut length = 256_u32;
    // SAFETY: value and length live through the call.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    };
    Errno::result(answer)?;
    value.truncate(usize::try_from(length).unwrap_or(0));
    Ok(value)
}

/// An option that is an int.
pub(crate) fn number(socket: &OwnedFd, level: i32, name: i32) -> Result<i32> {
    let value = option(socket, level, name)?;
    value.get(..4).and_then(|v| v.try_into().ok()).map(i32::from_ne_bytes).ok_or(Errno::EINVAL)
}

/// How many instructions the filter attached to a socket has.
pub(crate) fn filter_length(socket: &OwnedFd) -> Result<u32> {
    let mut length = 0_u32;
    let none = std::ptr::null_mut();
    // SAFETY: with length 0 nothing but the length is written.
    let answer = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 26, none, &raw mut length) };
    Errno::result(answer)?;
    Ok(length)
}

/// The local address, as the kernel has it; two bytes (the family) where there is none.
pub(crate) fn local(socket: &OwnedFd) -> Result<Vec<u8>> {
    let mut address = vec![0_u8; 128];
    let mut length = 128_u32;
    // SAFETY: address and length live through the call.
    let answer =
        unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(answer)?;
    address.truncate(usize::try_from(length).unwrap_or(0));
    Ok(address)
}

/// The peer's address; `None` when not connected.
pub(crate) fn peer(socket: &OwnedFd) -> Result<Option<Vec<u8>>> {
    let mut address = vec![0_u8; 128];
    let mut length = 128_u32;
    // SAFETY: as above.
    let answer =
        unsafe { libc::getpeername(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) };
    match Errno::result(answer) {
        Err(Errno::ENOTCONN) => return Ok(None),
        other => other?,
    };
    address.truncate(usize::try_from(length).unwrap_or(0));
    Ok(Some(address))
}

/// The next message or bytes, left in the queue; `None` when nothing waits. The second value tells that descriptors
/// or credentials come with it.
pub(crate) fn peek(socket: &OwnedFd, room: usize) -> Result<Option<(Vec<u8>, bool)>> {
    let mut bytes = vec![0_u8; room];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a valid msghdr. Without room for control data descriptors are not made, only told.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: everything that the message refers to lives through the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let got = match Errno::result(got) {
        Err(Errno::EAGAIN) => return Ok(None),
        other => usize::try_from(other?).unwrap_or(0),
    };
    if got > room {
        return Err(Errno::EMSGSIZE);
    }
    bytes.truncate(got);
    Ok(Some((bytes, message.msg_flags & libc::MSG_CTRUNC != 0)))
}

/// From where peeking starts; -1 for always the beginning.
pub(crate) fn set_peek_offset(socket: &OwnedFd, offset: i32) -> Result<()> {
    // SAFETY: the option is one int.
    let answer =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 42, (&raw const offset).cast(), 4) };
    Errno::result(answer).map(drop)
}
