//! Mounts by descriptor, and opening below a root that must not be left.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
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

/// Takes set-user-id programs and devices away from the mount at `place` and from those below it.
///
/// # Errors
/// What the kernel says; `ENOSYS` before 5.12.
pub fn make_harmless(place: BorrowedFd<'_>) -> Result<(), Errno> {
    set_attribute(place, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)
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

const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const CLOEXEC: libc::c_uint = 1;

/// Mounts a file system that is attached nowhere yet: read-only, without devices and set-user-id programs.
/// A value of `None` is a plain flag. The mount goes away with the last descriptor of it, unless it was
/// attached by [`attach`] meanwhile.
///
/// # Errors
/// What the kernel says, with the words of the file system where it has some; `ENOSYS` before 5.2.
pub fn detached(kind: &CStr, options: &[(&CStr, Option<&CStr>)]) -> Result<OwnedFd, (Errno, String)> {
    let plain = |errno: Errno| (errno, String::new());
    // SAFETY: a C string and plain numbers.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) };
    let context = made(context).map_err(plain)?;
    for (key, value) in options {
        let (command, value) = match value {
            Some(value) => (FSCONFIG_SET_STRING, value.as_ptr()),
            None => (FSCONFIG_SET_FLAG, std::ptr::null()),
        };
        configure(&context, command, key.as_ptr(), value).map_err(|e| (e, said(&context)))?;
    }
    configure(&context, FSCONFIG_SET_FLAG, c"ro".as_ptr(), std::ptr::null())
        .and_then(|()| configure(&context, FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null()))
        .map_err(|e| (e, said(&context)))?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    // SAFETY: a live descriptor and plain numbers.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, attributes) };
    made(mount).map_err(plain)
}

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: *const libc::c_char,
    value: *const libc::c_char,
) -> Result<(), Errno> {
    // SAFETY: a live descriptor; the pointers are null or to C strings that the caller holds.
    let rc = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0usize) };
    Errno::result(rc).map(drop)
}

/// What a file system has to say about a failed mount: lines of `e `, `w ` or `i ` and a text.
fn said(context: &OwnedFd) -> String {
    let mut buffer = [0; 512];
    let mut lines = Vec::new();
    while let Ok(count @ 1..) = nix::unistd::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
        lines.push(line.trim_start_matches(['e', 'w', 'i']).trim().to_owned());
    }
    lines.join("; ")
}

fn made(number: libc::c_long) -> Result<OwnedFd, Errno> {
    let number = Errno::result(number)?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number as std::os::fd::RawFd) })
}

/// Attaches a mount made by [`detached`] at `target`, in the mount namespace of this process.
///
/// # Errors
/// What the kernel says.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    const FROM_EMPTY_PATH: libc::c_uint = 4;
    const TO_EMPTY_PATH: libc::c_uint = 0x40;
    // SAFETY: live descriptors, empty C strings and plain numbers.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            FROM_EMPTY_PATH | TO_EMPTY_PATH,
        )
    };
    Errno::result(rc).map(drop)
}
