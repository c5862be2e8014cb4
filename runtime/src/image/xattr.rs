//! Extended attributes of files. Only a user's own belong to an image: those of the system give rights on the host, and
//! those of overlays would change what a container shows.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// The kernel keeps no longer list and no longer value.
const MOST: usize = 64 << 10;

/// Whether an attribute of that name is the image's.
pub(crate) fn belongs(name: &str) -> bool {
    name.starts_with("user.") && !name.starts_with("user.overlay.")
}

/// Gives a file an attribute if that is the image's. Answers whether it was left out: not every file system has them, and
/// none has room for many.
///
/// # Errors
/// The disk fails.
pub(crate) fn set(fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<bool> {
    if !belongs(name) {
        return Ok(true);
    }
    match fsetxattr(fd, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(false),
        Err(error @ Errno::IO) => Err(error.into()),
        Err(_) => Ok(true),
    }
}

/// Copies those of the image. Answers how many were left out.
///
/// # Errors
/// The disk fails.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<u64> {
    let mut left = 0;
    for name in names(from)? {
        let mut value = vec![0; MOST];
        let Ok(length) = fgetxattr(from, &*name, &mut value) else { continue };
        left += u64::from(set(to, &name, value.get(..length).unwrap_or_default())?);
    }
    Ok(left)
}

/// Takes those away that a lower layer has left.
///
/// # Errors
/// The disk fails.
pub(crate) fn clear(fd: BorrowedFd<'_>) -> io::Result<()> {
    for name in names(fd)?.iter().filter(|name| belongs(name)) {
        fremovexattr(fd, name.as_str())?;
    }
    Ok(())
}

/// Names that are not UTF-8 are none that an image can keep.
fn names(fd: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    // Nearly no file has any, and few have many.
    let mut list = vec![0; 1024];
    let length = match flistxattr(fd, &mut list) {
        Err(Errno::RANGE) => {
            list.resize(MOST, 0);
            flistxattr(fd, &mut list)
        }
        found => found,
    };
    let length = match length {
        Ok(length) => length,
        Err(error @ Errno::IO) => return Err(error.into()),
        Err(_) => 0,
    };
    let all = list.get(..length).unwrap_or_default().split(|byte| *byte == 0);
    Ok(all.filter_map(|name| String::from_utf8(name.to_vec()).ok()).filter(|name| !name.is_empty()).collect())
}
