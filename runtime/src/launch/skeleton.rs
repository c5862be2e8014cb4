//! The root for kernels without an overlay for users: a tmpfs with the image's entries bound in, and
//! room for the mount points that the image lacks.

use crate::error::Result;
use crate::launch::making::cannot;
use crate::sys::mount as sys;
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Builds it at `at`.
///
/// # Errors
/// The entry that failed and why.
pub fn make(image: BorrowedFd<'_>, at: &Path, missing: &[PathBuf]) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    sys::mount(Some(Path::new("stasis")), at, Some("tmpfs"), flags, Some("mode=0755"))
        .map_err(|e| cannot("mount a tmpfs at", at, e))?;
    let root = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    let missing: Vec<PathBuf> =
        missing.iter().map(|p| p.strip_prefix("/").unwrap_or(p).to_path_buf()).collect();
    fill(image, root.as_fd(), Path::new("/"), &missing)
}

/// Puts such a tmpfs over one directory of a root, which stands in the way because the user may make
/// nothing in it. Returns the tmpfs, which the caller closes when everything is in place.
///
/// # Errors
/// The entry that failed and why.
pub fn over(root: BorrowedFd<'_>, directory: &Path, missing: &[PathBuf]) -> Result<OwnedFd> {
    let failed = |e| cannot("make room for mount points in", directory, e);
    let source = sys::open_below(root, directory, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    sys::mount(
        Some(Path::new("stasis")),
        &sys::path_of(source.as_fd()),
        Some("tmpfs"),
        flags,
        Some("mode=0755"),
    )
    .map_err(failed)?;
    let place = sys::open_below(root, directory, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
    let below: Vec<PathBuf> =
        missing.iter().filter_map(|m| m.strip_prefix(directory).ok().map(Path::to_path_buf)).collect();
    fill(source.as_fd(), place.as_fd(), directory, &below)?;
    Ok(place)
}

/// Fills one directory. `missing` is relative to it; a directory on the way to a missing mount point is
/// made anew and filled likewise, everything else is bound.
fn fill(from: BorrowedFd<'_>, to: BorrowedFd<'_>, shown: &Path, missing: &[PathBuf]) -> Result<()> {
    let listing = sys::open_below(from, Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .map_err(|e| cannot("read", shown, e))?;
    let mut listing = nix::dir::Dir::from_fd(listing).map_err(|e| cannot("read", shown, e))?;
    for entry in listing.iter() {
        let entry = entry.map_err(|e| cannot("read", shown, e))?;
        let name =
            Path::new(std::ffi::OsStr::new(std::str::from_utf8(entry.file_name().to_bytes()).unwrap_or(".")));
        if name == Path::new(".") || name == Path::new("..") {
            continue;
        }
        one(from, to, shown, name, missing)?;
    }
    Ok(())
}

fn one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    shown: &Path,
    name: &Path,
    missing: &[PathBuf],
) -> Result<()> {
    let path = shown.join(name);
    let failed = |e| cannot("show the image's", &path, e);
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFLNK => {
            let link = nix::fcntl::readlinkat(from, name).map_err(failed)?;
            nix::unistd::symlinkat(link.as_os_str(), to, name).map_err(failed)
        }
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::from_bits_truncate(stat.st_mode & 0o7777)).map_err(failed)?;
            let (source, place) = (open(from, name).map_err(failed)?, open(to, name).map_err(failed)?);
            let below: Vec<PathBuf> =
                missing.iter().filter_map(|m| m.strip_prefix(name).ok().map(Path::to_path_buf)).collect();
            if below.is_empty() {
                sys::bind(source.as_fd(), place.as_fd()).map_err(failed)?;
                return read_only(to, name).map_err(failed);
            }
            fill(source.as_fd(), place.as_fd(), &path, &below)
        }
        SFlag::S_IFREG => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            nix::fcntl::openat(to, name, flags, Mode::from_bits_truncate(0o644)).map_err(failed)?;
            let (source, place) = (open(from, name).map_err(failed)?, open(to, name).map_err(failed)?);
            sys::bind(source.as_fd(), place.as_fd()).map_err(failed)?;
            read_only(to, name).map_err(failed)
        }
        // Devices, sockets and pipes of an image are of no use inside.
        _ => Ok(()),
    }
}

/// The image stays as it is, also where the user could write to it.
fn read_only(at: BorrowedFd<'_>, name: &Path) -> std::result::Result<(), nix::errno::Errno> {
    sys::make_read_only(open(at, name)?.as_fd())
}

fn open(at: BorrowedFd<'_>, name: &Path) -> std::result::Result<OwnedFd, nix::errno::Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::openat(at, name, flags, Mode::empty())
}
