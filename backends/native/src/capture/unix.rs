//! Unix sockets: unconnected, listening, or connected with both ends in the tree.

use super::descriptors::Seen;
use super::process::hex;
use super::sockets::{Sockets, general_options};
use crate::model::{Kind, Object, Unix};
use crate::sys::netlink::UnixState;
use crate::sys::socket;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::collections::HashMap;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
const SO_PEEK_OFF: i32 = 42;
/// More than a datagram may have (the largest send buffer).
const ROOM: usize = 16 << 20;

/// A unix socket of the tree.
#[derive(Debug)]
pub(crate) struct Found {
    object: usize,
    name: String,
    peer: Option<u32>,
}

pub(crate) fn describe(
    sockets: &mut Sockets,
    seen: &Seen<'_>,
    index: usize,
    socket_type: i32,
) -> Result<Kind> {
    let inode = seen.target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
    let inode: u32 =
        inode.and_then(|inode| inode.parse().ok()).ok_or_else(|| seen.refuse("it has no number"))?;
    let diagnosis =
        sockets.diagnosis.as_ref().ok_or_else(|| seen.refuse("the kernel does not tell of unix sockets"))?;
    let state = diagnosis
        .unix(inode)
        .map_err(|error| seen.refuse(format!("the kernel does not tell of it: {}", error.desc())))?;
    let stream = socket_type != libc::SOCK_DGRAM;
    let listens = state.state == LISTEN;
    if listens && !state.waiting.is_empty() && !seen.runs {
        return Err(seen.refuse(format!("{} connections wait to be accepted", state.waiting.len())));
    }
    let connected = stream && state.state == ESTABLISHED;
    let orphan = connected && matches!(state.peer, None | Some(0));
    if orphan && state.shutdown != 3 && !seen.runs {
        return Err(seen.refuse("its connection was not accepted yet"));
    }
    let local = socket::local(&seen.copy).map_err(seen.errno())?;
    // An accepted socket shows its listener's address: it is accepted again where the listener is there as well.
    let named = local.len() > 2;
    let queue = if listens || seen.runs { Vec::new() } else { queue(seen, &state, socket_type)? };
    let peer = state.peer.filter(|peer| *peer != 0);
    sockets.unix.insert(inode, Found { object: index, name: seen.name(), peer });
    Ok(Kind::Unix(Unix {
        socket_type,
        local: named.then(|| hex(&local)),
        listening: listens.then(|| i32::try_from(state.backlog).unwrap_or(i32::MAX)),
        peer: None,
        orphan,
        shutdown: u32::from(state.shutdown),
        queue,
        options: general_options(seen),
    }))
}

/// What waits in the socket, left there.
fn queue(seen: &Seen<'_>, state: &UnixState, socket_type: i32) -> Result<Vec<String>> {
    if state.queued == 0 {
        return Ok(Vec::new());
    }
    let own = socket::number(&seen.copy, libc::SOL_SOCKET, SO_PEEK_OFF).map_err(seen.errno())?;
    if own >= 0 {
        return Err(
            seen.refuse("data waits in it, and the application peeks at it from an offset of its own")
        );
    }
    if socket_type == libc::SOCK_STREAM {
        let room = usize::try_from(state.queued).unwrap_or(0);
        let (bytes, with_more) = socket::peek(&seen.copy, room).map_err(seen.errno())?.unwrap_or_default();
        if with_more {
            return Err(carried(seen));
        }
        if bytes.len() == room {
            return Ok(vec![hex(&bytes)]);
        }
    }
    socket::set_peek_offset(&seen.copy, 0).map_err(seen.errno())?;
    let ends = socket_type == libc::SOCK_STREAM || state.shutdown & 1 != 0;
    let messages = messages(seen, ends);
    socket::set_peek_offset(&seen.copy, -1).map_err(seen.errno())?;
    let messages = messages?;
    Ok(match socket_type {
        libc::SOCK_STREAM => vec![hex(&messages.concat())],
        _ => messages.iter().map(|message| hex(message)).collect(),
    })
}

fn carried(seen: &Seen<'_>) -> BackendError {
    seen.refuse("descriptors or credentials that were sent wait in it")
}

/// `ends`: nothing to read can be the end of the connection.
fn messages(seen: &Seen<'_>, ends: bool) -> Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while let Some((bytes, with_more)) = socket::peek(&seen.copy, ROOM).map_err(seen.errno())? {
        if with_more {
            return Err(carried(seen));
        }
        if bytes.is_empty() && !ends {
            // Peeking does not come past it.
            return Err(seen.refuse("a message without content waits in it"));
        }
        if bytes.is_empty() {
            break;
        }
        all.push(bytes);
    }
    Ok(all)
}

/// Tells the objects of their peers.
pub(crate) fn connect(found: &HashMap<u32, Found>, objects: &mut [Object]) -> Result<()> {
    for socket in found.values() {
        let Some(peer) = socket.peer else { continue };
        let Some(other) = found.get(&peer) else {
            let what = format!("{} cannot be saved", socket.name);
            return Err(BackendError::new(kind::UNSUPPORTED, what)
                .because("the other end of the connection is no part of the application")
                .help("close it before saving"));
        };
        if let Some(Object { kind: Kind::Unix(unix), .. }) = objects.get_mut(socket.object) {
            unix.peer = Some(other.object);
        }
    }
    Ok(())
}
