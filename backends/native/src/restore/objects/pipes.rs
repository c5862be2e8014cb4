//! Pipes and FIFOs with what was written and not read.

use super::{Maker, Tried, Trouble, reopen};
use crate::model::{Kind, Pipe};
use crate::sys::fd;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use stasis_plugin_api::prelude::*;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

/// Every open end, parked, by the index of its object.
pub(super) fn make(maker: &Maker<'_>) -> Result<Vec<(usize, OwnedFd)>> {
    let mut all = Vec::new();
    for (number, pipe) in maker.image.pipes.iter().enumerate() {
        let ends = maker.image.objects.iter().enumerate();
        let mut ends = ends.filter(|(_, o)| o.kind == Kind::Pipe { pipe: number }).peekable();
        let Some((first, _)) = ends.peek().copied() else { continue };
        // Both sides stay open until every end is made, whichever of them the application still has.
        let sides = fill(maker, pipe).map_err(|trouble| maker.of(first, trouble))?;
        for (index, object) in ends {
            let flags = object.flags as i32;
            let side = if flags & libc::O_ACCMODE == libc::O_WRONLY { &sides[1] } else { &sides[0] };
            // Without O_NONBLOCK it would not block either: the other side is open.
            // O_DIRECT (packets) no pipe is opened with; it is set like the others.
            let end = reopen(side, flags & !libc::O_DIRECT).map_err(|e| maker.of(index, e.into()))?;
            all.push((index, maker.park(end)?));
        }
    }
    Ok(all)
}

fn fill(maker: &Maker<'_>, pipe: &Pipe) -> Tried<[OwnedFd; 2]> {
    let sides: [OwnedFd; 2] = match &pipe.fifo {
        None => nix::unistd::pipe2(OFlag::O_CLOEXEC).map(|(read, write)| [read, write])?,
        Some(path) => {
            let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let both = open(path.as_str(), flags, Mode::empty())?;
            [both.try_clone()?, both]
        }
    };
    if pipe.capacity > 0 {
        let rc = fd::fcntl_number(sides[1].as_fd(), libc::F_SETPIPE_SZ, i64::from(pipe.capacity));
        if let Err(Errno::EPERM) = rc {
            return Err(Trouble::new(format!("its {} bytes are more than a user may have", pipe.capacity))
                .help("raise fs.pipe-max-size or fs.pipe-user-pages-soft"));
        }
        rc?;
    }
    let Some(content) = pipe.content else { return Ok(sides) };
    let mut bytes = Vec::new();
    maker.content(content)?.take(u64::from(pipe.capacity)).read_to_end(&mut bytes)?;
    fd::fcntl_number(sides[1].as_fd(), libc::F_SETFL, i64::from(libc::O_NONBLOCK))?;
    let mut writer = File::from(sides[1].try_clone()?);
    writer.write_all(&bytes)?;
    Ok(sides)
}
