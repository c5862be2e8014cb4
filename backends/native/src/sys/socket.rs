//! Sockets that the engine holds a copy of: addresses, options, and what waits in them, left where it is.

use nix::errno::Errno;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

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

/// Uid and gid of whoever made the other end of a unix socket, or listens at it; `None` where it has none.
pub(crate) fn peer_ids(socket: &OwnedFd) -> Option<[u32; 2]> {
    let told = option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED).ok()?;
    let word = |at: usize| told.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    // Pid, uid, gid.
    Some([word(4)?, word(8)?]).filter(|ids| *ids != [u32::MAX; 2])
}

/// Whether the socket has joined this group on the interface with this number.
pub(crate) fn is_member(socket: &OwnedFd, interface: u32, group: IpAddr) -> bool {
    const MCAST_MSFILTER: i32 = 48;
    // struct group_filter without sources: interface, padding, address, mode, number of sources.
    let mut filter = [0_u8; 144];
    let (level, family, at) = match group {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::AF_INET, 12),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::AF_INET6, 16),
    };
    let address = match group {
        IpAddr::V4(group) => group.octets().to_vec(),
        IpAddr::V6(group) => group.octets().to_vec(),
    };
    let mut put = |from: usize, bytes: &[u8]| {
        if let Some(place) = filter.get_mut(from..from + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &interface.to_ne_bytes());
    put(8, &u16::try_from(family).unwrap_or(0).to_ne_bytes());
    put(at, &address);
    let mut length = 144_u32;
    // SAFETY: filter and length live through the call.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            MCAST_MSFILTER,
            filter.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    answer == 0
}

/// A message, or bytes of a stream, that waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) bytes: Vec<u8>,
    /// Descriptors or credentials come with it.
    pub(crate) carries: bool,
    /// Its sender has an address.
    pub(crate) named: bool,
}

/// The next message or bytes, left in the queue; `None` when nothing waits.
pub(crate) fn peek(socket: &OwnedFd, room: usize) -> Result<Option<Waiting>> {
    let mut bytes = vec![0_u8; room];
    let mut name = [0_u8; 128];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a valid msghdr. Without room for control data descriptors are not made, only told.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = 128;
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
    // An address is more than its family.
    let named = message.msg_namelen > 2;
    Ok(Some(Waiting { bytes, carries: message.msg_flags & libc::MSG_CTRUNC != 0, named }))
}

/// As long as it lives each peek goes on behind the last one. The socket is the application's: another process puts it
/// back when this one dies.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    socket: &'a OwnedFd,
    /// Its end is this process's.
    alive: Option<OwnedFd>,
    watcher: i32,
}

impl<'a> Walk<'a> {
    pub(crate) fn begin(socket: &'a OwnedFd) -> Result<Self> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: this program has one thread, so the copy may do everything that a process may do.
        let watcher = Errno::result(unsafe { libc::fork() })?;
        if watcher == 0 {
            drop(write);
            watch(socket, &read);
        }
        let walk = Self { socket, alive: Some(write), watcher };
        set_peek_offset(socket, 0)?;
        Ok(walk)
    }
}

/// Waits for the engine's end, whatever that is.
fn watch(socket: &OwnedFd, alive: &OwnedFd) -> ! {
    // Whoever ends the engine by its group or session does not mean this process.
    let _ = nix::unistd::setsid();
    while nix::unistd::read(alive, &mut [0]) == Err(Errno::EINTR) {}
    let put_back = set_peek_offset(socket, -1);
    super::task::end(i32::from(put_back.is_err()))
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        // The watcher does the same once more.
        let _ = set_peek_offset(self.socket, -1);
        self.alive = None;
        let process = nix::unistd::Pid::from_raw(self.watcher);
        while nix::sys::wait::waitpid(process, None) == Err(Errno::EINTR) {}
    }
}

/// From where peeking starts; -1 for always the beginning.
fn set_peek_offset(socket: &OwnedFd, offset: i32) -> Result<()> {
    super::ptrace::steps::count();
    // SAFETY: the option is one int.
    let answer =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 42, (&raw const offset).cast(), 4) };
    Errno::result(answer).map(drop)
}

/// What these messages cost their sender until they are read, as [`in_flight`] tells it.
pub(crate) fn cost(socket_type: i32, messages: &[Vec<u8>]) -> Result<u64> {
    let [from, to] = super::fd::socketpair(socket_type)?;
    let most = (i32::MAX / 2).to_ne_bytes();
    super::fd::set_option(from.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, &most)?;
    let mut sum = 0;
    for message in messages {
        super::fd::send(from.as_fd(), message)?;
        sum += in_flight(&from)?;
        nix::unistd::read(&to, &mut [0])?;
    }
    Ok(sum)
}

/// What a unix socket has sent and nobody has read, in the kernel's own measure.
pub(crate) fn in_flight(socket: &OwnedFd) -> Result<u64> {
    const SIOCOUTQ: u64 = 0x5411;
    super::process::ioctl_read::<4>(socket, SIOCOUTQ).map(|bytes| u32::from_ne_bytes(bytes).into())
}
