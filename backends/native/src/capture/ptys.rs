//! Pseudo terminals of the container's own devpts: both sides, with settings and size.

use super::descriptors::Seen;
use super::process::hex;
use crate::model::{Kind, Pty};
use crate::sys::process;
use stasis_plugin_api::error::Result;
use std::os::unix::fs::MetadataExt as _;

const TIOCGPTN: u64 = 0x8004_5430;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGEXCL: u64 = 0x8004_5440;
/// `struct termios2` is 44 bytes.
const TCGETS2: u64 = 0x802c_542a;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCGPGRP: u64 = 0x540f;
const TIOCGSID: u64 = 0x5429;
const TIOCOUTQ: u64 = 0x5411;

/// `/dev/ptmx`, or a slave.
pub(crate) fn is_pty(major: u64, minor: u64) -> bool {
    (major, minor) == (5, 2) || (136..=143).contains(&major)
}

/// The number of a slave, from its device number.
pub(crate) fn slave_index(major: u64, minor: u64) -> Option<u32> {
    (136..=143).contains(&major).then(|| u32::try_from((major - 136) * 256 + minor).unwrap_or(u32::MAX))
}

pub(crate) fn describe(seen: &Seen<'_>, major: u64, minor: u64) -> Result<Kind> {
    let int = |request| process::ioctl_read::<4>(&seen.copy, request).map(i32::from_ne_bytes);
    let slave = slave_index(major, minor);
    let index = match slave {
        Some(index) => index,
        None => int(TIOCGPTN).map_err(seen.errno())?.cast_unsigned(),
    };
    let path = format!("/dev/pts/{index}");
    let node =
        std::fs::metadata(&path).map_err(|_| seen.refuse("it belongs to another terminal file system"))?;
    if slave.is_some() && node.rdev() != seen.metadata.rdev() {
        return Err(seen.refuse("it belongs to another terminal file system"));
    }
    let waiting = process::bytes_waiting(&seen.copy).map_err(seen.errno())?;
    let going = int(TIOCOUTQ).map_err(seen.errno())?;
    if !seen.runs && (waiting > 0 || going > 0) {
        return Err(seen.refuse("text waits in the terminal that nobody has read"));
    }
    let size = process::ioctl_read::<8>(&seen.copy, TIOCGWINSZ).map_err(seen.errno())?;
    let part = |at: usize| u16::from_ne_bytes([*size.get(at).unwrap_or(&0), *size.get(at + 1).unwrap_or(&0)]);
    let master = slave.is_none();
    let flag = |request| master && int(request).is_ok_and(|value| value != 0);
    Ok(Kind::Pty(Pty {
        index,
        master,
        termios: hex(&process::ioctl_read::<44>(&seen.copy, TCGETS2).map_err(seen.errno())?),
        size: [part(0), part(2), part(4), part(6)],
        foreground: int(TIOCGPGRP).unwrap_or(0),
        session: int(TIOCGSID).unwrap_or(0),
        locked: flag(TIOCGPTLCK),
        packet: flag(TIOCGPKT),
        exclusive: int(TIOCGEXCL).is_ok_and(|value| value != 0),
        mode: node.mode() & 0o7777,
        uid: node.uid(),
        gid: node.gid(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert!(is_pty(5, 2) && is_pty(136, 0) && !is_pty(5, 0) && !is_pty(4, 1));
        assert_eq!((slave_index(137, 3), slave_index(5, 2)), (Some(259), None));
    }
}
