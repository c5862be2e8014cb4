//! Messages with descriptors over a unix stream socket: four bytes of length, one byte that counts
//! the descriptors, then the message. Used between command, monitor, init and worker.

use crate::sys::fd;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A longer message is an error: the other side is broken or hostile.
const LIMIT: usize = 64 << 20;
/// More descriptors in one message are an error.
const FD_LIMIT: usize = 16;

/// One end.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Both ends of a new one, close-on-exec.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self { stream: a.into() }, Self { stream: b.into() }))
    }

    /// Over a connected stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()? })
    }

    /// After this time without a byte, `recv` fails with `WouldBlock`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_timeout(&self, after: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(after)
    }

    /// Ends both directions, so that a reader in another thread returns.
    pub fn shutdown(&self) {
        // The other end may be gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The uid and pid of the process that connected.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn peer(&self) -> io::Result<(u32, i32)> {
        let who = nix::sys::socket::getsockopt(&self.stream, nix::sys::socket::sockopt::PeerCredentials)?;
        Ok((who.uid(), who.pid()))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is gone, without a signal.
    pub fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        self.send_with(message, &[])
    }

    /// Sends one message with descriptors; the receiver gets copies.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_with<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let body = serde_json::to_vec(message).map_err(io::Error::other)?;
        let length = u32::try_from(body.len()).ok().filter(|n| (*n as usize) <= LIMIT);
        let length = length.ok_or_else(|| io::Error::other("message too long"))?;
        let count = u8::try_from(fds.len()).map_err(io::Error::other)?;
        let mut whole = Vec::with_capacity(body.len() + 5);
        whole.extend_from_slice(&length.to_le_bytes());
        whole.push(count);
        whole.extend_from_slice(&body);
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let sent = loop {
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(&whole)], control, flags, None) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        // SIGPIPE is ignored by Rust's start-up and by our own processes.
        (&self.stream).write_all(&whole[sent..])
    }

    /// Whether a message has begun to come, or the other end is closed: `recv` waits for no more than the message's end.
    #[must_use]
    pub fn has_something(&self) -> bool {
        fd::is_readable(self.stream.as_fd())
    }

    /// The next message; `None` when the other end closed.
    ///
    /// # Errors
    /// A broken or unexpected message, or what the kernel says.
    pub fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut head = [0u8; 5];
        let (mut have, mut fds) = (0, Vec::new());
        while have < head.len() {
            let got = self.recv_head(&mut head[have..], &mut fds)?;
            if got == 0 && have == 0 {
                return Ok(None);
            }
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += got;
        }
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > LIMIT || fds.len() != head[4] as usize {
            return Err(io::Error::other("a message that this version does not understand"));
        }
        let mut body = vec![0; length];
        (&self.stream).read_exact(&mut body)?;
        // Looked through for what is no text once, not word by word.
        let text = std::str::from_utf8(&body).map_err(io::Error::other)?;
        let message = serde_json::from_str(text).map_err(io::Error::other)?;
        Ok(Some((message, fds)))
    }

    fn recv_head(&self, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; FD_LIMIT]);
        let mut parts = [IoSliceMut::new(into)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: the kernel made these descriptors for us with this very message.
                fds.extend(numbers.into_iter().map(|n| unsafe { OwnedFd::from_raw_fd(n) }));
            }
        }
        Ok(message.bytes)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self { stream: fd.into() }
    }
}
