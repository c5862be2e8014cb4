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
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header};

/// Directories in each other beyond this are no use of memory.
const DEPTH: usize = 64;
/// Where an entry's inode number stands in the archive. A program may hold on to it: SQLite writes to no database whose
/// file has become another one.
const INODE: &str = "STASIS.inode";
/// So many numbers of a file system are passed over, all in all, to come to the wanted ones: a tmpfs gives them in turn,
/// and each costs a microsecond or two.
const MOST_PASSED: u64 = 1_000_000;

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
        saved: TmpfsSaved::default(),
        seen: blake3::Hasher::new(),
    };
    saving.tar.follow_symlinks(false);
    for mount in mounts {
        let device = fs::symlink_metadata(mount).map_err(|e| cannot("read", mount, &e))?.dev();
        let mut found = Vec::new();
        look(mount, device, 0, 0, &mut found)?;
        found.sort_by_key(|entry| entry.order);
        let mut passing = Passing::default();
        for Found { path, meta, .. } in &found {
            if saving.entry(path, meta)? && !passing.reaches(meta.ino()) {
                saving.saved.renumbered += 1;
            }
        }
    }
    let mut saved = saving.saved;
    saved.fingerprint = saving.seen.finalize().to_hex().to_string();
    saving.tar.into_inner().and_then(|file| file.sync_data()).map_err(failed)?;
    if saved.entries == 0 {
        // All of it went meanwhile.
        fs::remove_file(to).map_err(failed)?;
    }
    Ok(saved)
}

fn cannot(doing: &str, object: &Path, e: &io::Error) -> Error {
    Error::new(format!("cannot {doing} {}", object.display())).because(e)
}

struct Saving {
    tar: Builder<File>,
    /// Files with several names, by inode.
    links: HashMap<(u64, u64), PathBuf>,
    saved: TmpfsSaved,
    /// For the fingerprint.
    seen: blake3::Hasher,
}

/// Something to be saved.
struct Found {
    path: PathBuf,
    meta: Metadata,
    /// Made again in this order, everything can get the number that it had, but what was moved into a directory younger
    /// than itself: inode numbers, and what is in a directory behind it.
    order: (u64, usize),
}

fn look(directory: &Path, device: u64, depth: usize, above: u64, found: &mut Vec<Found>) -> Result<()> {
    if depth > DEPTH {
        return Err(Error::new(format!("cannot save {}", directory.display()))
            .because(format!("more than {DEPTH} directories lie in each other")));
    }
    for entry in fs::read_dir(directory).map_err(|e| cannot("read", directory, &e))? {
        let path = entry.map_err(|e| cannot("read", directory, &e))?.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.dev() == device && kept(&meta) => {
                let number = meta.ino().max(above);
                let inside = meta.is_dir().then(|| path.clone());
                found.push(Found { path, meta, order: (number, depth) });
                if let Some(inside) = inside {
                    look(&inside, device, depth + 1, number, found)?;
                }
            }
            Ok(_) => {}
            // Gone meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(cannot("read", &path, &e)),
        }
    }
    Ok(())
}

impl Saving {
    /// False for one that is gone meanwhile.
    fn entry(&mut self, path: &Path, meta: &Metadata) -> Result<bool> {
        let failed = |e: io::Error| cannot("save", path, &e);
        let kind = meta.file_type();
        // Before anything is written of it: it may be gone.
        let held = match Held::of(path, meta) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            held => held.map_err(failed)?,
        };
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
        if meta.nlink() > 1 && !kind.is_dir() {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(EntryType::Link);
                self.tar.append_link(&mut header, name, first).map_err(failed)?;
                return Ok(true);
            }
            self.links.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        let inode = meta.ino().to_string();
        self.tar.append_pax_extensions([(INODE, inode.as_bytes())]).map_err(failed)?;
        match held {
            Held::Link(target) => self.tar.append_link(&mut header, name, target),
            Held::File(mut file) => {
                self.saved.bytes += meta.len();
                self.tar.append_file(name, &mut file)
            }
            Held::Nothing => {
                if kind.is_fifo() {
                    header.set_entry_type(EntryType::Fifo);
                }
                self.tar.append_data(&mut header, name, io::empty())
            }
        }
        .map_err(failed)?;
        Ok(true)
    }
}

/// What an entry holds, taken hold of.
enum Held {
    Nothing,
    Link(PathBuf),
    File(File),
}

impl Held {
    fn of(path: &Path, meta: &Metadata) -> io::Result<Self> {
        let kind = meta.file_type();
        if kind.is_symlink() {
            return fs::read_link(path).map(Self::Link);
        }
        if !kind.is_file() {
            return Ok(Self::Nothing);
        }
        // Not a link that has taken the file's place meanwhile, and not waiting for a pipe's other end.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        OpenOptions::new().read(true).custom_flags(flags).open(path).map(Self::File)
    }
}

/// The numbers of a fresh file system, given in turn.
#[derive(Debug, Default)]
struct Passing {
    /// The last one that was given.
    last: u64,
    /// How many were given only to come to others.
    passed: u64,
}

impl Passing {
    /// So many have to be passed over so that the next one is this; `None` where it was given already, or that were too
    /// many.
    fn missing(&self, number: u64) -> Option<u64> {
        let missing = number.checked_sub(self.last)?.checked_sub(1)?;
        (self.passed.saturating_add(missing) <= MOST_PASSED).then_some(missing)
    }

    /// Whether an entry gets this number. Nothing of the container's own is known of here, which takes a few of the first.
    fn reaches(&mut self, number: u64) -> bool {
        let Some(missing) = self.missing(number) else { return false };
        (self.last, self.passed) = (number, self.passed + missing);
        true
    }

    /// Makes the next inode below a mount get this number, where it can.
    fn come_to(&mut self, mount: &Path, number: u64) -> io::Result<()> {
        let name = mount.join(".stasis-inode");
        for _ in 0..self.missing(number).unwrap_or(0) {
            self.last = OpenOptions::new().write(true).create_new(true).open(&name)?.metadata()?.ino();
            fs::remove_file(&name)?;
            self.passed += 1;
            if self.last.saturating_add(1) >= number {
                break;
            }
        }
        Ok(())
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
    let mut passing: HashMap<PathBuf, Passing> = HashMap::new();
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
        if let Some(number) = inode(&mut entry) {
            let fresh = || Passing { last: highest(mount), passed: 0 };
            let passing = passing.entry(mount.clone()).or_insert_with(fresh);
            passing.come_to(mount, number).map_err(failed)?;
        }
        if entry.header().entry_type() == EntryType::Fifo {
            fifo(&path, entry.header()).map_err(failed)?;
        } else if !entry.unpack_in("/").map_err(failed)? {
            return Err(cannot("put back", &path, &io::Error::other("its name leads out of its directory")));
        }
        if let Some(passing) = passing.get_mut(mount) {
            let given = fs::symlink_metadata(&path).map_err(failed)?.ino();
            passing.last = passing.last.max(given);
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

/// The number that an entry had, where the archive tells.
fn inode<R: io::Read>(entry: &mut tar::Entry<'_, R>) -> Option<u64> {
    let mut all = entry.pax_extensions().ok()??.filter_map(std::result::Result::ok);
    all.find(|told| told.key() == Ok(INODE))?.value().ok()?.parse().ok()
}

/// The highest inode number below a directory so far: where other things are mounted, some are there already. A directory
/// tells the number of what a mount hides.
fn highest(directory: &Path) -> u64 {
    let Ok(own) = fs::symlink_metadata(directory) else { return 0 };
    let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| {
        let inside = fs::symlink_metadata(entry.path()).is_ok_and(|m| m.is_dir() && m.dev() == own.dev());
        entry.ino().max(if inside { highest(&entry.path()) } else { 0 })
    });
    below.max().unwrap_or(0).max(own.ino())
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
    fn what_goes_meanwhile_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (mount, archive) = (dir.path().join("shm"), dir.path().join("tmpfs.tar"));
        fs::create_dir(&mount).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(mount.join(name), name).unwrap();
        }
        symlink("a", mount.join("link")).unwrap();
        let mut found = Vec::new();
        look(&mount, mount.metadata().unwrap().dev(), 0, 0, &mut found).unwrap();
        for name in ["b", "link"] {
            fs::remove_file(mount.join(name)).unwrap();
        }
        let file = File::create(&archive).unwrap();
        let (tar, links) = (Builder::new(file), HashMap::new());
        let mut saving = Saving { tar, links, saved: TmpfsSaved::default(), seen: blake3::Hasher::new() };
        let kept: Vec<bool> = found.iter().map(|f| saving.entry(&f.path, &f.meta).unwrap()).collect();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), 2);
        assert_eq!((saving.saved.entries, saving.saved.bytes), (2, 2));
        drop(saving.tar.into_inner().unwrap());
        fs::rename(&mount, dir.path().join("old")).unwrap();
        fs::create_dir(&mount).unwrap();
        restore(&archive, std::slice::from_ref(&mount)).unwrap();
        assert_eq!(fs::read_dir(&mount).unwrap().count(), 2);
        assert_eq!(fs::read_to_string(mount.join("c")).unwrap(), "c");
    }

    #[test]
    fn numbers_are_passed_over_within_bounds() {
        let mut passing = Passing::default();
        assert!(passing.reaches(5) && passing.reaches(6) && passing.reaches(MOST_PASSED));
        assert_eq!(passing.passed, MOST_PASSED - 3);
        assert!(!passing.reaches(MOST_PASSED), "given already");
        assert!(!passing.reaches(2 * MOST_PASSED), "too many");
        assert!(passing.reaches(MOST_PASSED + 4) && !passing.reaches(MOST_PASSED + 6), "all in all");
        assert!(!passing.reaches(u64::MAX));
        assert!(TmpfsSaved { renumbered: 2, ..TmpfsSaved::default() }.note().is_some());
    }

    /// A test that needs a tmpfs of its own, which only root can have without a namespace.
    #[test]
    fn inode_numbers_come_back_on_a_tmpfs() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can mount a tmpfs");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("shm");
        fs::create_dir(&mount).unwrap();
        let fresh = || {
            let status =
                std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount).status();
            assert!(status.unwrap().success());
        };
        let gone = || assert!(nix::mount::umount(&mount).is_ok());
        let numbers = || -> Vec<u64> {
            let names = ["a", "z", "dir", "dir/in", "second", "pipe", "link", "late/moved", "last"];
            names.iter().map(|name| fs::symlink_metadata(mount.join(name)).unwrap().ino()).collect()
        };
        fresh();
        fs::write(mount.join("z"), "z").unwrap();
        for n in 0..20 {
            fs::write(mount.join(format!("passing-{n}")), "").unwrap();
        }
        fs::create_dir(mount.join("dir")).unwrap();
        fs::write(mount.join("a"), "a").unwrap();
        fs::hard_link(mount.join("a"), mount.join("second")).unwrap();
        fs::write(mount.join("dir/in"), "in").unwrap();
        nix::unistd::mkfifo(&mount.join("pipe"), Mode::S_IRUSR).unwrap();
        symlink("a", mount.join("link")).unwrap();
        fs::create_dir(mount.join("late")).unwrap();
        fs::write(mount.join("late/moved"), "moved").unwrap();
        for n in 0..20 {
            fs::remove_file(mount.join(format!("passing-{n}"))).unwrap();
        }
        fs::write(mount.join("last"), "last").unwrap();
        let before = numbers();
        let archive = dir.path().join("tmpfs.tar");
        save(std::slice::from_ref(&mount), &archive).unwrap();
        gone();
        fresh();
        restore(&archive, std::slice::from_ref(&mount)).unwrap();
        let after = numbers();
        gone();
        assert_eq!(after, before);
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
