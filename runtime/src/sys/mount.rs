//! Mounts by descriptor, and opening below a root that must not be left.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A descriptor as a path that the kernel follows exactly.
pub fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Where a descriptor's object lies, without any link, as this process sees it.
pub fn real_path(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    nix::fcntl::readlink(&path_of(fd)).ok().map(PathBuf::from)
}

/// The same below a `root` of that path, from there on; `None` where it does not lie there.
pub fn real_path_below(root: &Path, fd: BorrowedFd<'_>) -> Option<PathBuf> {
    Some(Path::new("/").join(real_path(fd)?.strip_prefix(root).ok()?))
}

/// Opens a path of the host as a place (`O_PATH`).
///
/// # Errors
/// What the kernel says.
pub fn open_place(path: &Path) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens a path below `root` as a place: links are resolved as if `root` were `/`, links of `/proc`
/// are not followed.
///
/// # Errors
/// What the kernel says; `ENOSYS` on kernels before 5.6.
pub fn open_below(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        // EAGAIN: something on the way was renamed meanwhile.
        match openat2(root, relative, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// `mount(2)` with `source` and `target` as they are.
///
/// # Errors
/// What the kernel says.
pub fn mount(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), Errno> {
    nix::mount::mount(source, target, kind, flags, data)
}

/// Shows what is behind `source` at `target`, with all that is mounted below it.
///
/// # Errors
/// What the kernel says.
pub fn bind(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    mount(Some(&path_of(source)), &path_of(target), None, MsFlags::MS_BIND | MsFlags::MS_REC, None)
}

/// Makes the mount at `place`, and those below it, read-only. `place` has to be opened after the
/// mount was made.
///
/// # Errors
/// What the kernel says.
pub fn make_read_only(place: BorrowedFd<'_>) -> Result<(), Errno> {
    match set_attribute(place, libc::MOUNT_ATTR_RDONLY) {
        // Kernels before 5.12 have no mount_setattr.
        Err(Errno::ENOSYS) => make_top_read_only(place),
        other => other,
    }
}

fn set_attribute(place: BorrowedFd<'_>, set: u64) -> Result<(), Errno> {
    let attribute = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: an empty C string, a live struct and its size.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            place.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attribute,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(rc).map(drop)
}

/// Makes the mount at `place` read-only and leaves those below it alone. In a user namespace the
/// flags that came with the mount are locked and have to be repeated.
///
/// # Errors
/// What the kernel says.
pub fn make_top_read_only(place: BorrowedFd<'_>) -> Result<(), Errno> {
    let have = fstatvfs(place).map(|s| s.flags()).unwrap_or(FsFlags::empty());
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (is, then) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        flags.set(then, have.contains(is));
    }
    mount(None, &path_of(place), None, flags, None)
}

/// Changes the propagation of a mount and of those below it.
///
/// # Errors
/// What the kernel says.
pub fn propagation(target: &Path, flags: MsFlags) -> Result<(), Errno> {
    mount(None, target, None, flags, None)
}

/// Makes `root`, a mount, the root of this namespace and leaves the old one behind. No mount of the old one may be a
/// peer of one elsewhere.
///
/// # Errors
/// What the kernel says.
pub fn pivot_into(root: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::unistd::fchdir(root.as_fd())?;
    nix::unistd::pivot_root(".", ".")?;
    // The old root lies on top of the new one now; it is the current directory's mount. Its mounts send nothing
    // back to the host.
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}
