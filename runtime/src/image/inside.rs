//! Opening paths inside a directory as if it were the root: no link, `..` or mount of magic links leads
//! out of it. The kernel does it where it has openat2 (5.6); elsewhere a walk component by component.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

/// As many links as the kernel itself follows.
const MAX_LINKS: usize = 40;
/// A rename elsewhere in the tree makes openat2 give up; it is worth another try.
const TRIES: usize = 8;

/// Opens `path` below `root`, following links inside of it. An absolute path starts at `root`.
///
/// # Errors
/// As open(2): `NotFound`, ELOOP, EACCES, ...
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match by_kernel(root, path, flags, resolve) {
        Err(Errno::ENOSYS | Errno::EPERM) => by_walk(root, path, flags, true),
        other => other.map_err(io::Error::from),
    }
}

/// Opens `path` below `root` without following any link.
///
/// # Errors
/// As open(2); ELOOP where a link is met.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    match by_kernel(root, path, flags | OFlag::O_NOFOLLOW, resolve) {
        Err(Errno::ENOSYS | Errno::EPERM) => by_walk(root, path, flags, false),
        other => other.map_err(io::Error::from),
    }
}

fn by_kernel(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 1..TRIES {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
    openat2(root, path, how)
}

/// The same without openat2. Each step opens one name without following it, so that a link is seen and
/// its text resolved here; `..` goes back along the directories that were opened, never by the kernel.
fn by_walk(root: BorrowedFd<'_>, path: &Path, flags: OFlag, follow: bool) -> io::Result<OwnedFd> {
    let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut todo: VecDeque<OsString> = components(path).collect();
    let mut walked: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            walked.pop();
            continue;
        }
        let here = walked.last().map_or(root, AsFd::as_fd);
        let found = openat(here, name.as_os_str(), look, Mode::empty())?;
        let kind = file_type(&fstat(&found)?);
        let last = todo.is_empty();
        if kind == SFlag::S_IFLNK && !(last && flags.contains(OFlag::O_NOFOLLOW)) {
            links += 1;
            if !follow || links > MAX_LINKS {
                return Err(Errno::ELOOP.into());
            }
            let target = readlinkat(&found, "")?;
            if target.as_bytes().first() == Some(&b'/') {
                walked.clear();
            }
            let mut rest: VecDeque<OsString> = components(Path::new(&target)).collect();
            rest.append(&mut todo);
            todo = rest;
        } else if last {
            return Ok(openat(
                here,
                name.as_os_str(),
                flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?);
        } else if kind == SFlag::S_IFDIR {
            walked.push(found);
        } else {
            return Err(Errno::ENOTDIR.into());
        }
    }
    let here = walked.last().map_or(root, AsFd::as_fd);
    Ok(openat(here, ".", flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

pub(super) fn components(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.as_os_str()
        .as_bytes()
        .split(|&b| b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsStr::from_bytes(part).to_owned())
}

/// The content of a regular file, `limit` bytes at most; links are followed inside.
///
/// # Errors
/// As open(2); `InvalidInput` for anything but a regular file, `FileTooLarge` above the limit.
pub(crate) fn read_regular(root: BorrowedFd<'_>, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // Looked at first: opening a device or a pipe has effects of its own.
    let regular = |fd: &OwnedFd| fstat(fd).is_ok_and(|s| file_type(&s) == SFlag::S_IFREG);
    let seen = open_in_root(root, path, OFlag::O_PATH)?;
    if !regular(&seen) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let fd = open_in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    if !regular(&fd) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    File::from(fd).take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The type bits of a stat.
pub(crate) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    type Opener = fn(BorrowedFd<'_>, &Path, OFlag) -> io::Result<OwnedFd>;

    fn walk(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        by_walk(root, path, flags, true)
    }

    fn content(open: Opener, root: &Path, path: &str) -> Result<String, Errno> {
        let dir = fs::File::open(root).unwrap();
        let fd = open(dir.as_fd(), Path::new(path), OFlag::O_RDONLY)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
        let mut text = String::new();
        fs::File::from(fd).read_to_string(&mut text).unwrap();
        Ok(text)
    }

    fn tree() -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("secret"), "outside").unwrap();
        let root = top.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "inside").unwrap();
        fs::write(root.join("secret"), "decoy").unwrap();
        symlink("/a/b/file", root.join("absolute")).unwrap();
        symlink("../../../../secret", root.join("a/up")).unwrap();
        symlink("b", root.join("a/c")).unwrap();
        symlink("loop2", root.join("loop1")).unwrap();
        symlink("loop1", root.join("loop2")).unwrap();
        symlink(top.path().join("secret"), root.join("out")).unwrap();
        top
    }

    #[test]
    fn links_stay_inside_with_and_without_openat2() {
        let top = tree();
        let root = top.path().join("root");
        for open in [open_in_root as Opener, walk as Opener] {
            assert_eq!(content(open, &root, "absolute").unwrap(), "inside");
            assert_eq!(content(open, &root, "/absolute").unwrap(), "inside");
            assert_eq!(content(open, &root, "a/c/file").unwrap(), "inside");
            assert_eq!(content(open, &root, "a/c/../b/./file").unwrap(), "inside");
            assert_eq!(content(open, &root, "a/up").unwrap(), "decoy");
            assert_eq!(content(open, &root, "../../secret").unwrap(), "decoy");
            assert_eq!(content(open, &root, "out"), Err(Errno::ENOENT));
            assert_eq!(content(open, &root, "loop1"), Err(Errno::ELOOP));
            assert_eq!(content(open, &root, "secret/x"), Err(Errno::ENOTDIR));
            assert_eq!(content(open, &root, "a/none"), Err(Errno::ENOENT));
        }
    }

    #[test]
    fn no_link_is_followed_beneath() {
        fn walk(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
            by_walk(root, path, flags, false)
        }
        let top = tree();
        let root = top.path().join("root");
        for open in [open_beneath as Opener, walk as Opener] {
            assert_eq!(content(open, &root, "a/b/file").unwrap(), "inside");
            assert_eq!(content(open, &root, "a/c/file"), Err(Errno::ELOOP));
            assert_eq!(content(open, &root, "absolute"), Err(Errno::ELOOP));
        }
    }

    #[test]
    fn a_chain_of_forty_links_is_the_limit() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("l0"), "end").unwrap();
        for i in 1..=41 {
            symlink(format!("l{}", i - 1), top.path().join(format!("l{i}"))).unwrap();
        }
        for open in [open_in_root as Opener, walk as Opener] {
            assert_eq!(content(open, top.path(), "l40").unwrap(), "end");
            assert_eq!(content(open, top.path(), "l41"), Err(Errno::ELOOP));
        }
    }
}
