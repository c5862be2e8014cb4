//! What the container's own tmpfs mounts hold, written down beside a capture and put back before a restart.
//! The content of a bind is the host's and is never touched.

use crate::error::{Error, Result};
use nix::sys::stat::Mode;
use stasis_plugin_api::host::TmpfsSaved;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header};

/// Directories in each other beyond this are no use of memory.
const DEPTH: usize = 64;

/// Those that hold anything.
#[must_use]
pub fn occupied(mounts: &[PathBuf]) -> Vec<String> {
    let holds = |path: &&PathBuf| {
        let Ok(own) = fs::symlink_metadata(path).map(|m| m.dev()) else { return false };
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|e| e.metadata().ok()).any(|m| m.dev() == own && kept(&m))
    };
    mounts.iter().filter(holds).map(|path| path.to_string_lossy().into_owned()).collect()
}

/// Sockets are made again by whoever listens on them; devices cannot be made without privilege.
fn kept(meta: &Metadata) -> bool {
    let kind = meta.file_type();
    kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_fifo()
}

/// Writes down everything in them. Nobody has to stand still for it, but what changes meanwhile may be
/// saved half. Without content there is no file.
///
/// # Errors
/// The first object that could not be read or written whole.
pub fn save(mounts: &[PathBuf], to: &Path) -> Result<TmpfsSaved> {
    if occupied(mounts).is_empty() {
        return Ok(TmpfsSaved::default());
    }
    let failed = |e: io::Error| cannot("write", to, &e);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    let mut saving = Saving {
        tar: Builder::new(file),
        links: HashMap::new(),
        device: 0,
        saved: TmpfsSaved::default(),
        seen: blake3::Hasher::new(),
    };
    saving.tar.follow_symlinks(false);
    for mount in mounts {
        saving.device = fs::symlink_metadata(mount).map_err(|e| cannot("read", mount, &e))?.dev();
        saving.directory(mount, 0)?;
    }
    let mut saved = saving.saved;
    saved.fingerprint = saving.seen.finalize().to_hex().to_string();
    saving.tar.into_inner().and_then(|file| file.sync_data()).map_err(failed)?;
    Ok(saved)
}

fn cannot(doing: &str, object: &Path, e: &io::Error) -> Error {
    Error::new(format!("cannot {doing} {}", object.display())).because(e)
}

struct Saving {
    tar: Builder<File>,
    /// Files with several names, by inode.
    links: HashMap<u64, PathBuf>,
    device: u64,
    saved: TmpfsSaved,
    /// For the fingerprint.
    seen: blake3::Hasher,
}

impl Saving {
    fn directory(&mut self, path: &Path, depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::new(format!("cannot save {}", path.display()))
                .because(format!("more than {DEPTH} directories lie in each other")));
        }
        for entry in fs::read_dir(path).map_err(|e| cannot("read", path, &e))? {
            let entry = entry.map_err(|e| cannot("read", path, &e))?.path();
            match fs::symlink_metadata(&entry) {
                Ok(meta) if meta.dev() == self.device && kept(&meta) => self.entry(&entry, &meta, depth)?,
                Ok(_) => {}
                // Gone meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(cannot("read", &entry, &e)),
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, meta: &Metadata, depth: usize) -> Result<()> {
        let failed = |e: io::Error| cannot("save", path, &e);
        let name = path.strip_prefix("/").unwrap_or(path);
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        header.set_size(0);
        self.saved.entries += 1;
        self.seen.update(name.as_os_str().as_bytes());
        for number in [u64::from(meta.mode()), meta.size(), meta.ino()] {
            self.seen.update(&number.to_le_bytes());
        }
        for number in [meta.mtime(), meta.mtime_nsec()] {
            self.seen.update(&number.to_le_bytes());
        }
        let kind = meta.file_type();
        if kind.is_dir() {
            self.tar.append_data(&mut header, name, io::empty()).map_err(failed)?;
            return self.directory(path, depth + 1);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            return self.tar.append_link(&mut header, name, target).map_err(failed);
        }
        if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            return self.tar.append_data(&mut header, name, io::empty()).map_err(failed);
        }
        if meta.nlink() > 1 {
            if let Some(first) = self.links.get(&meta.ino()) {
                header.set_entry_type(EntryType::Link);
                return self.tar.append_link(&mut header, name, first).map_err(failed);
            }
            self.links.insert(meta.ino(), name.to_owned());
        }
        self.saved.bytes += meta.len();
        // Not a link that has taken the file's place meanwhile, and not waiting for a pipe's other end.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        self.tar.append_file(name, &mut file).map_err(failed)
    }
}

/// Puts it back into the mounts, which are fresh.
///
/// # Errors
/// The first object that could not be made.
pub fn restore(archive: &Path, mounts: &[PathBuf]) -> Result<()> {
    let broken = |e: io::Error| cannot("read", archive, &e);
    let mut tar = Archive::new(File::open(archive).map_err(broken)?);
    tar.set_preserve_permissions(true);
    tar.set_preserve_ownerships(true);
    tar.set_preserve_mtime(true);
    // Its own time is set when everything is in it.
    let mut directories = Vec::new();
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = Path::new("/").join(entry.path().map_err(broken)?);
        let Some(mount) = mounts.iter().filter(|m| path.starts_with(m)).max_by_key(|m| m.as_os_str().len())
        else {
            return Err(Error::new(format!("cannot put back {}", path.display()))
                .because("this container has no tmpfs of its own there")
                .help("restart it with the same binds and the same `--contain` as at the capture"));
        };
        let failed = |e: io::Error| cannot("put back", &path, &e);
        if entry.header().entry_type() == EntryType::Fifo {
            fifo(&path, entry.header()).map_err(failed)?;
            continue;
        }
        if !entry.unpack_in("/").map_err(failed)? {
            return Err(cannot("put back", &path, &io::Error::other("its name leads out of its directory")));
        }
        if entry.header().entry_type() == EntryType::Directory && path != *mount {
            directories.push((path, entry.header().mtime().map_err(broken)?));
        }
    }
    for (path, mtime) in directories.into_iter().rev() {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(mtime);
        // The content is there; only a date would be wrong.
        let _ = File::open(&path).and_then(|d| d.set_modified(time));
    }
    Ok(())
}

fn fifo(path: &Path, header: &Header) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or(OsStr::new("."));
    // No link on the way: the directory was made by this very restore.
    let parent = nix::fcntl::open(
        parent,
        nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    nix::sys::stat::mknodat(&parent, name, nix::sys::stat::SFlag::S_IFIFO, Mode::empty(), 0)?;
    let id = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok());
    nix::unistd::fchownat(
        &parent,
        name,
        id(header.uid()).map(nix::unistd::Uid::from_raw),
        id(header.gid()).map(nix::unistd::Gid::from_raw),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    // Not at once: our own mask would take bits away. Nobody runs yet who could have put a link there.
    let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
    nix::sys::stat::fchmodat(&parent, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn everything_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (mount, archive) = (dir.path().join("shm"), dir.path().join("tmpfs.tar"));
        let mounts = [mount.clone()];
        fs::create_dir_all(mount.join("a/deep")).unwrap();
        fs::write(mount.join("a/deep/file"), "content").unwrap();
        fs::set_permissions(mount.join("a/deep/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(mount.join("a/deep/file"), mount.join("second-name")).unwrap();
        symlink("/etc/passwd", mount.join("link")).unwrap();
        nix::unistd::mkfifo(&mount.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        fs::set_permissions(mount.join("pipe"), fs::Permissions::from_mode(0o666)).unwrap();
        let sparse = File::create(mount.join("sparse")).unwrap();
        sparse.set_len(3 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 2 << 20).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(mount.join("socket")).unwrap();
        assert_eq!(occupied(&mounts), [mount.to_string_lossy()]);
        let saved = save(&mounts, &archive).unwrap();
        assert_eq!((saved.entries, saved.bytes), (7, 7 + (3 << 20)));
        let again = save(&mounts, &dir.path().join("again.tar")).unwrap();
        assert_eq!(saved, again);
        fs::write(mount.join("second-name"), "contend").unwrap();
        let changed = save(&mounts, &dir.path().join("changed.tar")).unwrap();
        assert_ne!(saved.fingerprint, changed.fingerprint);
        fs::write(mount.join("second-name"), "content").unwrap();
        assert!(archive.metadata().unwrap().len() < 100 << 10, "holes cost nothing");
        fs::rename(&mount, dir.path().join("old")).unwrap();
        fs::create_dir(&mount).unwrap();
        restore(&archive, &mounts).unwrap();
        assert_eq!(fs::read_to_string(mount.join("second-name")).unwrap(), "content");
        let meta = fs::metadata(mount.join("a/deep/file")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o640, 2));
        assert_eq!(fs::read_link(mount.join("link")).unwrap(), Path::new("/etc/passwd"));
        let pipe = fs::symlink_metadata(mount.join("pipe")).unwrap();
        assert_eq!((pipe.file_type().is_fifo(), pipe.mode() & 0o7777), (true, 0o666));
        let meta = fs::metadata(mount.join("sparse")).unwrap();
        assert_eq!(meta.len(), 3 << 20);
        assert!(meta.blocks() < 1000, "holes are holes again");
        assert!(!mount.join("socket").exists());
    }

    #[test]
    fn nothing_makes_no_file_and_a_missing_mount_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (mount, archive) = (dir.path().join("shm"), dir.path().join("tmpfs.tar"));
        fs::create_dir(&mount).unwrap();
        assert_eq!(save(std::slice::from_ref(&mount), &archive).unwrap(), TmpfsSaved::default());
        assert!(!archive.exists());
        fs::write(mount.join("file"), "content").unwrap();
        save(std::slice::from_ref(&mount), &archive).unwrap();
        let error = restore(&archive, &[]).unwrap_err().to_string();
        insta::assert_snapshot!(
            error.replace(&*dir.path().to_string_lossy(), "DIR"),
            @"cannot put back DIR/shm/file: this container has no tmpfs of its own there"
        );
        assert!(mount.join("file").exists());
    }
}
