//! The only place that removes trees: by directory descriptor, never through a link, never onto another file
//! system. What it is given is gone afterwards, also when something still writes into it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::Result;
use super::error::{StoreError, errno};
use super::layout::{DIR_MODE, DirHandle, Kind, kind};

/// One open descriptor per level; what lies deeper is pulled up to the top and removed from there.
const LEVELS: usize = 32;
/// How often a directory that keeps filling up is emptied before we give up on it.
const ROUNDS: usize = 4096;

/// Removes the entry `name` of `parent`, whatever it is. Nothing there is success, also when somebody else was quicker.
pub(crate) fn remove(parent: &DirHandle, name: impl AsRef<OsStr>) -> Result<()> {
    let name = name.as_ref();
    match parent.stat(name)? {
        None => return Ok(()),
        Some(stat) if kind(&stat) != Kind::Dir => return unlink(parent, name),
        Some(_) => {}
    }
    let Some(dir) = open_for_removal(parent, name)? else { return Ok(()) };
    for _ in 0..ROUNDS {
        clear(&dir)?;
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            Err(error) => return Err(StoreError::io("remove", &parent.path().join(name), error)),
        }
    }
    Err(StoreError::io("remove", &parent.path().join(name), Errno::ENOTEMPTY))
}

/// Removes everything in `dir` and keeps `dir` itself.
pub(crate) fn clear(dir: &DirHandle) -> Result<()> {
    let (device, _) = dir.identity()?;
    let mut pulled_up = 0;
    for _ in 0..ROUNDS {
        let names = unless_gone(dir.names())?.unwrap_or_default();
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            remove_entry(dir, dir, &name, device, 0, &mut pulled_up)?;
        }
    }
    Err(StoreError::io("empty", dir.path(), Errno::ENOTEMPTY))
}

fn remove_entry(
    top: &DirHandle,
    parent: &DirHandle,
    name: &OsStr,
    device: u64,
    level: usize,
    pulled_up: &mut u64,
) -> Result<()> {
    let Some(stat) = parent.stat(name)? else { return Ok(()) };
    if kind(&stat) != Kind::Dir {
        return unlink(parent, name);
    }
    if stat.st_dev != device {
        let path = parent.path().join(name);
        let problem = "another file system is mounted on it; nothing in it was removed".to_owned();
        return Err(StoreError::Untrusted { path, problem });
    }
    if level >= LEVELS {
        *pulled_up += 1;
        let free = format!(".deep-{}-{pulled_up}", std::process::id());
        return match renameat(parent, name, top, free.as_str()) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(StoreError::io("remove", &parent.path().join(name), error)),
        };
    }
    let Some(dir) = open_for_removal(parent, name)? else { return Ok(()) };
    for inner in unless_gone(dir.names())?.unwrap_or_default() {
        remove_entry(top, &dir, &inner, device, level + 1, pulled_up)?;
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        // Filled again meanwhile: the next round at the top gets it.
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        Err(error) => Err(StoreError::io("remove", &parent.path().join(name), error)),
    }
}

fn unlink(parent: &DirHandle, name: &OsStr) -> Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        // It became a directory since it was examined: the next round sees that.
        Err(Errno::EISDIR) => Ok(()),
        Err(error) => Err(StoreError::io("remove", &parent.path().join(name), error)),
    }
}

/// `None` for what somebody else has removed meanwhile: two commands may clean up the same leftovers.
fn unless_gone<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(StoreError::Io { source, .. }) if errno(&source) == Errno::ENOENT => Ok(None),
        found => found.map(Some),
    }
}

/// Opens a directory that may have been made without the permissions that removing needs.
fn open_for_removal(parent: &DirHandle, name: &OsStr) -> Result<Option<DirHandle>> {
    let opened = match parent.child_unchecked(name) {
        Err(StoreError::Io { source, .. }) if errno(&source) == Errno::EACCES => {
            give_permission(parent, name).and_then(|()| parent.child_unchecked(name))
        }
        opened => opened,
    };
    let Some(dir) = unless_gone(opened)? else { return Ok(None) };
    let stat = fstat(&dir).map_err(|e| StoreError::io("examine", dir.path(), e))?;
    if stat.st_mode & 0o700 != 0o700 {
        // Failing here is told by the unlink that needs it.
        let _ = fchmod(&dir, DIR_MODE);
    }
    Ok(Some(dir))
}

/// chmod of exactly the directory that was opened: by name it could be exchanged for a link.
fn give_permission(parent: &DirHandle, name: &OsStr) -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let failed = |e: Errno| StoreError::io("remove", &parent.path().join(name), e);
    let fd = openat(parent, name, flags, Mode::empty()).map_err(failed)?;
    let magic = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    fchmodat(AT_FDCWD, Path::new(&magic), DIR_MODE, FchmodatFlags::FollowSymlink).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn dir() -> (tempfile::TempDir, DirHandle) {
        let temp = tempfile::tempdir().unwrap();
        let handle = DirHandle::open_or_make(temp.path()).unwrap();
        (temp, handle)
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let (outside, _) = dir();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let (temp, handle) = dir();
        fs::create_dir(temp.path().join("tree")).unwrap();
        symlink(outside.path(), temp.path().join("tree/link")).unwrap();
        symlink("/nowhere", temp.path().join("tree/dangling")).unwrap();
        remove(&handle, "tree").unwrap();
        assert!(!temp.path().join("tree").exists());
        assert!(outside.path().join("precious").exists());

        symlink(outside.path(), temp.path().join("direct")).unwrap();
        remove(&handle, "direct").unwrap();
        assert!(outside.path().join("precious").exists());
        remove(&handle, "never-was").unwrap();
    }

    #[test]
    fn deep_trees_need_few_descriptors() {
        let (temp, handle) = dir();
        let mut current = handle.make_dir("tree").unwrap();
        for _ in 0..1500 {
            current = current.make_dir("d").unwrap();
        }
        drop(current);
        remove(&handle, "tree").unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn closed_directories_are_opened() {
        let (temp, handle) = dir();
        let closed = temp.path().join("tree/closed");
        fs::create_dir_all(closed.join("inner")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        give_permission(&handle.child("tree").unwrap(), OsStr::new("closed")).unwrap();
        assert_eq!(fs::metadata(&closed).unwrap().permissions().mode() & 0o7777, 0o700);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        remove(&handle, "tree").unwrap();
        assert!(!temp.path().join("tree").exists());
    }

    #[test]
    fn two_at_once_are_in_nobodys_way() {
        let (temp, handle) = dir();
        for _ in 0..8 {
            for inner in 0..20 {
                fs::create_dir_all(temp.path().join(format!("tree/{inner}/a/b"))).unwrap();
                fs::write(temp.path().join(format!("tree/{inner}/a/file")), "x").unwrap();
            }
            let start = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                let one = || {
                    start.wait();
                    remove(&handle, "tree")
                };
                for removed in [scope.spawn(one), scope.spawn(one), scope.spawn(one), scope.spawn(one)] {
                    removed.join().unwrap().unwrap();
                }
            });
            assert!(!temp.path().join("tree").exists());
        }
        // One that was opened before it went.
        let open = handle.make_dir("tree").unwrap();
        remove(&handle, "tree").unwrap();
        clear(&open).unwrap();
    }

    #[test]
    fn files_that_appear_meanwhile_go_too() {
        let (temp, handle) = dir();
        let tree = temp.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) && n < 2000 {
                    let _ = fs::create_dir_all(tree.join(format!("sub{n}")).as_path())
                        .and_then(|()| fs::write(tree.join(format!("sub{n}/file")), "x"));
                    n += 1;
                }
            });
            clear(&handle.child("tree").unwrap()).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        remove(&handle, "tree").unwrap();
        assert!(!tree.exists());
    }
}
