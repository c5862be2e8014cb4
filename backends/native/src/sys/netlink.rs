//! What only the kernel's socket diagnosis tells of a unix socket: its peer, its queue and what was shut down.

use super::process::{again, owned};
use nix::errno::Errno;
use std::os::fd::{AsRawFd as _, OwnedFd};

const SOCK_DIAG: i32 = 4;
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
const SHOW: u32 = 1 | 2 | 4 | 8 | 16; // name, vfs, peer, icons, rqlen
const VFS: u16 = 1;
const PEER: u16 = 2;
const ICONS: u16 = 3;
const RQLEN: u16 = 4;
const SHUTDOWN: u16 = 6;

/// One unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnixState {
    pub(crate) inode: u32,
    /// TCP_ESTABLISHED 1, TCP_LISTEN 10 and so on.
    pub(crate) state: u8,
    /// The inode of the file that it is bound to, as far as 32 bits go.
    pub(crate) file: Option<u32>,
    pub(crate) peer: Option<u32>,
    /// Sockets that wait to be accepted.
    pub(crate) waiting: Vec<u32>,
    /// Bytes (or waiting connections) to read.
    pub(crate) queued: u32,
    pub(crate) backlog: u32,
    pub(crate) shutdown: u8,
}

/// An open connection to the diagnosis, of the network namespace that the engine is in.
#[derive(Debug)]
pub(crate) struct Diagnosis(OwnedFd);

impl Diagnosis {
    pub(crate) fn open() -> Result<Self, Errno> {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, SOCK_DIAG) };
        owned(i64::from(fd)).map(Self)
    }

    /// The socket with this inode number.
    pub(crate) fn unix(&self, inode: u32) -> Result<UnixState, Errno> {
        let mut request = Vec::new();
        request.extend(40_u32.to_ne_bytes());
        request.extend(BY_FAMILY.to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        request.extend(0_u64.to_ne_bytes()); // sequence, port
        request.extend([u8::try_from(libc::AF_UNIX).unwrap_or(1), 0, 0, 0]);
        request.extend(u32::MAX.to_ne_bytes()); // all states
        request.extend(inode.to_ne_bytes());
        request.extend(SHOW.to_ne_bytes());
        request.extend(u64::MAX.to_ne_bytes()); // no cookie
        let fd = self.0.as_raw_fd();
        // SAFETY: the buffer lives through the call.
        again(|| Errno::result(unsafe { libc::send(fd, request.as_ptr().cast(), request.len(), 0) }))?;
        let mut answer = vec![0_u8; 32 << 10];
        // SAFETY: as above.
        let got =
            again(|| Errno::result(unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) }))?;
        answer.truncate(usize::try_from(got).unwrap_or(0));
        parse(&answer)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn parse(message: &[u8]) -> Result<UnixState, Errno> {
    let kind = half(message, 4).ok_or(Errno::EPROTO)?;
    if kind == ERROR {
        let error = word(message, 16).map_or(0, u32::cast_signed);
        return Err(Errno::from_raw(error.saturating_neg()));
    }
    let body = message.get(16..).ok_or(Errno::EPROTO)?;
    let mut state = UnixState {
        inode: word(body, 4).ok_or(Errno::EPROTO)?,
        state: *body.get(2).ok_or(Errno::EPROTO)?,
        ..UnixState::default()
    };
    let mut at = 16;
    while let (Some(length), Some(kind)) = (half(body, at), half(body, at + 2)) {
        let length = usize::from(length);
        let Some(value) = length.checked_sub(4).and_then(|_| body.get(at + 4..at + length)) else { break };
        match kind {
            VFS => state.file = word(value, 0),
            PEER => state.peer = word(value, 0),
            ICONS => state.waiting = (0..value.len() / 4).filter_map(|n| word(value, n * 4)).collect(),
            RQLEN => {
                state.queued = word(value, 0).unwrap_or(0);
                state.backlog = word(value, 4).unwrap_or(0);
            }
            SHUTDOWN => state.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
        at += length.next_multiple_of(4);
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_and_an_error() {
        let mut message = vec![0_u8; 16];
        message[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        message.extend([1, 1, 1, 0]);
        message.extend(77_u32.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([12, 0, 1, 0]);
        message.extend([79_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat());
        message.extend([8, 0, 2, 0]);
        message.extend(78_u32.to_ne_bytes());
        message.extend([12, 0, 4, 0]);
        message.extend([5_u32.to_ne_bytes(), 9_u32.to_ne_bytes()].concat());
        message.extend([5, 0, 6, 0, 2, 0, 0, 0]);
        let state = parse(&message).unwrap();
        assert_eq!((state.inode, state.peer, state.queued, state.shutdown), (77, Some(78), 5, 2));
        assert_eq!(state.file, Some(79));
        let mut error = vec![0_u8; 36];
        error[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        error[16..20].copy_from_slice(&(-2_i32).to_ne_bytes());
        assert_eq!(parse(&error), Err(Errno::ENOENT));
        assert_eq!(parse(&[]), Err(Errno::EPROTO));
    }
}
