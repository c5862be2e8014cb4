//! A command's side of the talk with a monitor.

use crate::error::{Error, Result};
use crate::monitor::Teller;
use crate::monitor::control::{Reply, Request};
use crate::sys::channel::Channel;
use crate::sys::mount::{open_place, path_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Connects to the monitor of an instance.
///
/// # Errors
/// When it is not there.
pub fn connect(name: &str, socket: &Path) -> Result<Channel> {
    let lost = |why: &dyn std::error::Error| {
        Error::new(format!("cannot reach the monitor of instance \"{name}\"")).because(why)
    };
    let (Some(directory), Some(file)) = (socket.parent(), socket.file_name()) else {
        return Err(Error::new(format!("instance \"{name}\" has no socket")));
    };
    // Through the descriptor: a long path would not fit into a socket address.
    let directory = open_place(directory).map_err(|e| lost(&e))?;
    let stream = UnixStream::connect(path_of(directory.as_fd()).join(file)).map_err(|e| lost(&e))?;
    Ok(Channel::new(stream))
}

/// Asks, passes on what is told on the way, and returns the answer.
///
/// # Errors
/// What the monitor answers instead, or that it died.
pub fn ask(
    channel: &Channel,
    request: &Request,
    fds: &[BorrowedFd<'_>],
    teller: &dyn Teller,
) -> Result<(Reply, Vec<OwnedFd>)> {
    channel.send_with(request, fds).map_err(|e| Error::new("cannot talk to the monitor").because(&e))?;
    answer(channel, teller)
}

/// The next answer that is more than news.
///
/// # Errors
/// As [`ask`].
pub fn answer(channel: &Channel, teller: &dyn Teller) -> Result<(Reply, Vec<OwnedFd>)> {
    loop {
        match channel.recv::<Reply>() {
            Ok(Some((Reply::Note(text), _))) => teller.note(&text),
            Ok(Some((Reply::Progress { done, total, doing }, _))) => teller.progress(done, total, &doing),
            Ok(Some((Reply::Failed(error), _))) => return Err(error),
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {
                return Err(Error::new("the monitor died before it answered")
                    .help("`stasis instance list` tells what is left"));
            }
            Err(e) => return Err(Error::new("cannot hear the monitor").because(&e)),
        }
    }
}
