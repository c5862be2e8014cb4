//! Files, directories and harmless devices, opened by their names again. A file without a name is made anew.

use super::{Maker, Tried, Trouble, copy_sparse, give, kept, reopen};
use crate::model::{Kind, Object};
use crate::sys::fd;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Whence, lseek};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Files that are deleted already, by the number of their content.
#[derive(Debug, Default)]
pub(super) struct Deleted(HashMap<u32, File>);

/// One of them.
pub(super) fn make(maker: &Maker<'_>, object: &Object, deleted: &mut Deleted) -> Tried<OwnedFd> {
    let flags = object.flags as i32;
    let opened = match &object.kind {
        Kind::File { file, mode, deleted: Some(number), whose } => {
            if !deleted.0.contains_key(number) {
                let made = nameless(maker, &file.path, *mode, *number)?;
                give(&made, *whose)?;
                deleted.0.insert(*number, made);
            }
            let file = deleted.0.get(number).ok_or(Errno::ENOENT)?;
            reopen(file, flags)?
        }
        Kind::File { file, .. } => {
            let opened = by_name(&file.path, kept(flags, false))?;
            let kind = SFlag::from_bits_truncate(fstat(&opened)?.st_mode) & SFlag::S_IFMT;
            if kind != SFlag::S_IFREG {
                return Err(Trouble::new("it is no plain file any more"));
            }
            opened
        }
        Kind::Directory { path } => by_name(path, kept(flags, true) | libc::O_DIRECTORY)?,
        Kind::Device { path, major, minor } => device(path, flags, [*major, *minor])?,
        _ => return Err(Errno::EINVAL.into()),
    };
    let seekable = matches!(object.kind, Kind::File { .. } | Kind::Directory { .. });
    if seekable && flags & libc::O_PATH == 0 {
        lseek(&opened, i64::try_from(object.offset).map_err(|_| Errno::EINVAL)?, Whence::SeekSet)?;
    }
    Ok(opened)
}

fn by_name(path: &str, flags: i32) -> Tried<OwnedFd> {
    // Whatever lies there now must not let the opening wait; the flag goes where the others are set.
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK);
    open(path, flags, Mode::empty()).map_err(|errno| {
        Trouble::from(errno)
            .help("put it back where it was when the application was saved, or take another generation")
    })
}

fn device(path: &str, flags: i32, [major, minor]: [u32; 2]) -> Tried<OwnedFd> {
    // Looked at before it is opened: an opening can act.
    let meta = nix::sys::stat::stat(path)?;
    let is = SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT;
    let number = nix::sys::stat::makedev(u64::from(major), u64::from(minor));
    if is != SFlag::S_IFCHR || meta.st_rdev != number {
        return Err(Trouble::new(format!("it is not the device {major}:{minor} here")));
    }
    by_name(path, kept(flags, false))
}

/// A file that is deleted already, beside where it was: a limit or a quota there counts as before.
fn nameless(maker: &Maker<'_>, path: &str, mode: u32, number: u32) -> Tried<File> {
    let content = maker.content(number)?;
    let made = beside(Path::new(path), number).or_else(|_| {
        // That place is gone or closed: memory holds it as well.
        fd::memfd(c"deleted", libc::MFD_CLOEXEC).map(File::from)
    })?;
    copy_sparse(&content, &made)?;
    made.set_len(content.metadata()?.len())?;
    fchmod(made.as_fd(), Mode::from_bits_truncate(mode))?;
    Ok(made)
}

/// Without a name from the beginning, where the file system can: it may be given one later, as a file of O_TMPFILE may.
fn beside(path: &Path, number: u32) -> std::result::Result<File, Errno> {
    let parent = path.parent().ok_or(Errno::ENOENT)?;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    if let Ok(made) = open(parent, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        return Ok(made.into());
    }
    let name = parent.join(format!(".stasis-deleted-{number}-{}", std::process::id()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&name).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    nix::unistd::unlink(&name)?;
    fstat(&file)?;
    Ok(file)
}
