//! Pseudo terminals made inside: both sides with their settings, under their old numbers.

use super::{Maker, Tried, Trouble};
use crate::model::{Kind, Object, Pty};
use crate::restore::check::unhex;
use crate::sys::fd;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod};
use stasis_plugin_api::prelude::*;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

const TCSETS2: u64 = 0x402c_542b;
const TIOCEXCL: u64 = 0x540c;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCPKT: u64 = 0x5420;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTPEER: u64 = 0x5441;
/// `struct termios2`.
const TERMIOS: usize = 44;
/// So many others may have been made in this container meanwhile.
const TRIES: usize = 256;

/// Leader and follower of each by its number.
#[derive(Debug, Default)]
pub(in crate::restore) struct Terminals(HashMap<u32, [OwnedFd; 2]>);

impl Terminals {
    /// A follower side, for the process whose terminal it is.
    pub(in crate::restore) fn follower(&self, index: u32) -> Option<&OwnedFd> {
        self.0.get(&index).map(|[_, follower]| follower)
    }

    /// A description of one side.
    pub(super) fn descriptor(&self, pty: &Pty, object: &Object) -> Tried<OwnedFd> {
        let [leader, _] = self.0.get(&pty.index).ok_or(Errno::ENXIO)?;
        if pty.master {
            // There is only one description of this side: opening it makes another terminal.
            return Ok(leader.try_clone()?);
        }
        Ok(follower(leader, object.flags as i32)?)
    }
}

fn follower(leader: &OwnedFd, flags: i32) -> std::result::Result<OwnedFd, Errno> {
    let flags = flags & libc::O_ACCMODE | libc::O_NOCTTY | libc::O_CLOEXEC;
    let number = fd::ioctl_number(leader.as_fd(), TIOCGPTPEER, i64::from(flags))?;
    let path = format!("/proc/self/fd/{number}");
    // Taken over through a second opening: the number itself belongs to nobody.
    let again = open(path.as_str(), OFlag::from_bits_retain(flags), Mode::empty());
    nix::unistd::close(number)?;
    again
}

/// All of them.
pub(super) fn make(maker: &Maker<'_>) -> Result<Terminals> {
    let mut all = Terminals::default();
    for (index, object) in maker.image.objects.iter().enumerate() {
        let Kind::Pty(pty) = &object.kind else { continue };
        if all.0.contains_key(&pty.index) {
            continue;
        }
        let failed = |trouble: Trouble| maker.of(index, trouble);
        let leader = maker.park(leader(pty).map_err(failed)?)?;
        let follower = maker.park(follower(&leader, libc::O_RDWR).map_err(|e| failed(e.into()))?)?;
        let settings = maker.image.objects.iter().find_map(|o| match &o.kind {
            Kind::Pty(one) if one.index == pty.index && !one.master => Some(one),
            _ => None,
        });
        settle(&leader, &follower, settings.unwrap_or(pty), pty).map_err(failed)?;
        all.0.insert(pty.index, [leader, follower]);
    }
    Ok(all)
}

fn leader(pty: &Pty) -> Tried<OwnedFd> {
    let mut others = Vec::new();
    while others.len() < TRIES {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let leader = open("/dev/ptmx", flags, Mode::empty())?;
        let mut number = [0; 4];
        fd::ioctl_bytes(leader.as_fd(), TIOCGPTN, &mut number)?;
        if u32::from_ne_bytes(number) == pty.index {
            fd::ioctl_bytes(leader.as_fd(), TIOCSPTLCK, &mut 0i32.to_ne_bytes())?;
            return Ok(leader);
        }
        others.push(leader);
    }
    Err(Trouble::new(format!("the number {} is taken", pty.index))
        .help("give the container terminals of its own (leave out --no-devpts and binds of /dev)"))
}

fn settle(leader: &OwnedFd, follower: &OwnedFd, settings: &Pty, pty: &Pty) -> Tried<()> {
    if let Some(mut termios) = unhex(&settings.termios).filter(|t| t.len() == TERMIOS) {
        fd::ioctl_bytes(follower.as_fd(), TCSETS2, &mut termios)?;
    }
    let mut size: Vec<u8> = settings.size.iter().flat_map(|n| n.to_ne_bytes()).collect();
    fd::ioctl_bytes(leader.as_fd(), TIOCSWINSZ, &mut size)?;
    if pty.packet {
        fd::ioctl_bytes(leader.as_fd(), TIOCPKT, &mut 1i32.to_ne_bytes())?;
    }
    if settings.exclusive {
        fd::ioctl_number(follower.as_fd(), TIOCEXCL, 0)?;
    }
    if settings.mode != 0 {
        let (uid, gid) = (settings.uid.into(), settings.gid.into());
        // Only root gives terminals away, and an id may be none here.
        let _ = nix::unistd::fchown(follower.as_fd(), Some(uid), Some(gid));
        fchmod(follower.as_fd(), Mode::from_bits_truncate(settings.mode & 0o7777))?;
    }
    if pty.locked {
        fd::ioctl_bytes(leader.as_fd(), TIOCSPTLCK, &mut 1i32.to_ne_bytes())?;
    }
    Ok(())
}
