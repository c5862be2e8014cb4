//! Messages with descriptors in them, left in a socket and taken out of it again. Nobody waits.

use super::process::owned;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// Descriptors that fit into one message (SCM_MAX_FD is 253).
pub(crate) const MOST: usize = 250;

/// Leaves a message.
pub(crate) fn leave(at: RawFd, text: &[u8], fds: &[&OwnedFd]) -> Result<(), Errno> {
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let along = [ControlMessage::ScmRights(&fds)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(at, &[IoSlice::new(text)], &along, flags, None).map(drop)
}

/// Takes the next message out; `None` when there is none.
pub(crate) fn take(from: RawFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; 16 << 10];
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(from, &mut parts, Some(&mut space), flags).ok()?;
    let mut fds = Vec::new();
    for along in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(numbers) = along {
            // The kernel made these for this message.
            fds.extend(numbers.into_iter().filter_map(|number| owned(number.into()).ok()));
        }
    }
    let length = message.bytes;
    text.truncate(length);
    (length > 0).then_some((text, fds))
}
