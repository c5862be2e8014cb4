//! What makes an image directory this image: a fingerprint of a few stats for the quick yes, and a digest
//! over everything in it for the rest. Whether a difference matters is decided elsewhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::attach::FileSpec;
use super::inside::{file_type, open_beneath, open_in_root};
use super::{Image, io_words};

/// Looked at for the quick yes: every change of packages touches one of them.
const PROBES: &[&str] = &[
    "/bin/sh",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc",
    "/etc/ld.so.cache",
    "/opt",
    "/usr",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/lib/os-release",
    "/lib64/libc.so.6",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/aarch64-linux-gnu/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
    "/var/lib/dpkg/status",
    "/var/lib/rpm",
    "/lib/apk/db/installed",
    "/.singularity.d",
    "/.singularity.d/env",
    "/.singularity.d/libs",
];
/// Places whose content is the running container's, not the image's.
const SKIPPED: &[&[u8]] = &[b"proc", b"sys", b"dev", b"tmp"];
/// More threads would only wait for the same disk.
const THREADS: usize = 2;
const BUFFER: usize = 256 << 10;

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The caller said so.
    #[error("the digest of image \"{}\" was given up", image.display())]
    Cancelled { image: PathBuf },
    /// Its top directory cannot be read.
    #[error("image \"{}\" cannot be read: {}", image.display(), io_words(source))]
    Root { image: PathBuf, source: io::Error },
}

impl IdentityError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Cancelled { .. } => None,
            Self::Root { .. } => {
                Some("check that the image's directory is still there and readable".to_owned())
            }
        }
    }
}

/// The digest of a whole image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentDigest {
    /// `blake3:` and 64 hexadecimal digits.
    pub digest: String,
    /// Entries of any type.
    pub entries: u64,
    /// Bytes of regular files that were read.
    pub bytes: u64,
    /// What could not be read, so that only its type, mode and size count; sorted, 16 at most.
    pub unreadable: Vec<PathBuf>,
    /// How many there were.
    pub unreadable_count: u64,
}

/// A few stats as one text. Equal: surely the same image, untouched. Not equal: nothing is known.
///
/// # Errors
/// The top directory cannot be looked at.
pub fn fingerprint(image: &Image) -> Result<String, IdentityError> {
    if let Some(file) = &image.file {
        return file_fingerprint(&file.spec, &file.file);
    }
    let failed = |errno: Errno| IdentityError::Root { image: image.root.clone(), source: errno.into() };
    let root = fstat(image.dir()).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    number(&mut hasher, root.st_dev);
    number(&mut hasher, root.st_ino);
    times(&mut hasher, &root);
    let meta = image.list("/.singularity.d").unwrap_or_default();
    let env = image.list("/.singularity.d/env").unwrap_or_default();
    let listed = meta
        .iter()
        .map(|name| format!("/.singularity.d/{name}"))
        .chain(env.iter().map(|name| format!("/.singularity.d/env/{name}")));
    for path in PROBES.iter().map(|path| (*path).to_owned()).chain(listed) {
        text(&mut hasher, path.as_bytes());
        let stat = open_in_root(image.dir(), Path::new(&path), OFlag::O_PATH)
            .and_then(|fd| fstat(&fd).map_err(io::Error::from));
        match stat {
            Ok(stat) => {
                number(&mut hasher, u64::from(stat.st_mode));
                // The size of a directory is the file system's own affair.
                if file_type(&stat) != SFlag::S_IFDIR {
                    number(&mut hasher, stat.st_size.unsigned_abs());
                }
                times(&mut hasher, &stat);
            }
            Err(error) => number(&mut hasher, u64::from(error.raw_os_error().unwrap_or(0).unsigned_abs())),
        }
    }
    Ok(format!("stat1:{}", hasher.finalize().to_hex()))
}

/// The same for a file system inside a file.
///
/// # Errors
/// The file cannot be looked at.
pub fn file_fingerprint(spec: &FileSpec, file: &File) -> Result<String, IdentityError> {
    let stat = fstat(file)
        .map_err(|errno| IdentityError::Root { image: spec.path.clone(), source: errno.into() })?;
    let mut hasher = blake3::Hasher::new();
    for value in [stat.st_dev, stat.st_ino, stat.st_size.unsigned_abs(), spec.offset, spec.size] {
        number(&mut hasher, value);
    }
    times(&mut hasher, &stat);
    Ok(format!("file1:{}", hasher.finalize().to_hex()))
}

/// The digest of a file system inside a file: of its bytes, whatever file they are in.
///
/// # Errors
/// `cancel` became true, or it cannot be read to its end.
pub fn file_digest(file: &File, spec: &FileSpec, cancel: &AtomicBool) -> Result<String, IdentityError> {
    use std::os::unix::fs::FileExt as _;
    let failed = |source| IdentityError::Root { image: spec.path.clone(), source };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let (mut at, end) = (spec.offset, spec.offset.saturating_add(spec.size));
    while at < end {
        if cancel.load(Ordering::Relaxed) {
            return Err(IdentityError::Cancelled { image: spec.path.clone() });
        }
        let most = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
        let part = buffer.get_mut(..most).unwrap_or_default();
        match file.read_at(part, at) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                hasher.update(part.get(..count).unwrap_or_default());
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(format!("blake3:{}", hasher.finalize().to_hex()))
}

fn times(hasher: &mut blake3::Hasher, stat: &FileStat) {
    for value in [stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec] {
        hasher.update(&value.to_le_bytes());
    }
}

fn number(hasher: &mut blake3::Hasher, value: u64) {
    hasher.update(&value.to_le_bytes());
}

/// With its length first, so that no two lists of texts are the same bytes.
fn text(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    number(hasher, bytes.len() as u64);
    hasher.update(bytes);
}

/// The digest over everything in the image. Times, owners and inode numbers do not count, so that a copy
/// of an image is the same image.
///
/// # Errors
/// `cancel` became true, or the top directory cannot be read. Anything below that cannot be read is noted.
pub fn content_digest(image: &Image, cancel: &AtomicBool) -> Result<ContentDigest, IdentityError> {
    if let Some(file) = &image.file {
        let digest = file_digest(&file.file, &file.spec, cancel)?;
        let (entries, bytes, unreadable, unreadable_count) = (1, file.spec.size, Vec::new(), 0);
        return Ok(ContentDigest { digest, entries, bytes, unreadable, unreadable_count });
    }
    let root = open_beneath(image.dir(), Path::new(""), OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .map_err(|source| IdentityError::Root { image: image.root.clone(), source })?;
    let walk = Walk {
        root,
        cancel,
        queue: Mutex::new(Queue { waiting: VecDeque::from([Vec::new()]), busy: 0 }),
        changed: Condvar::new(),
    };
    let mut parts = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..THREADS).map(|_| scope.spawn(|| walk.work())).collect();
        let mut all = walk.work();
        for thread in threads {
            match thread.join() {
                Ok(part) => all.add(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    if cancel.load(Ordering::Relaxed) {
        return Err(IdentityError::Cancelled { image: image.root.clone() });
    }
    parts.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut hasher = blake3::Hasher::new();
    for entry in &parts.entries {
        text(&mut hasher, &entry.path);
        number(&mut hasher, u64::from(entry.mode));
        text(&mut hasher, &entry.content);
    }
    parts.unreadable.sort_unstable();
    let unreadable_count = parts.unreadable.len() as u64;
    parts.unreadable.truncate(16);
    Ok(ContentDigest {
        digest: format!("blake3:{}", hasher.finalize().to_hex()),
        entries: parts.entries.len() as u64,
        bytes: parts.bytes,
        unreadable: parts.unreadable,
        unreadable_count,
    })
}

/// One thing in the image.
struct Entry {
    /// Relative to the top, without a leading slash.
    path: Vec<u8>,
    /// Type and permissions.
    mode: u32,
    /// A file's hash, a link's target, a device's number; empty for a directory.
    content: Vec<u8>,
}

#[derive(Default)]
struct Part {
    entries: Vec<Entry>,
    bytes: u64,
    unreadable: Vec<PathBuf>,
}

impl Part {
    fn add(&mut self, mut other: Self) {
        self.entries.append(&mut other.entries);
        self.bytes += other.bytes;
        self.unreadable.append(&mut other.unreadable);
    }

    fn cannot_read(&mut self, path: &[u8]) {
        self.unreadable.push(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())));
    }
}

struct Queue {
    /// Directories to be read, relative to the top.
    waiting: VecDeque<Vec<u8>>,
    /// How many threads may still add to it.
    busy: usize,
}

struct Walk<'a> {
    root: OwnedFd,
    cancel: &'a AtomicBool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Walk<'_> {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = self.lock();
        loop {
            if self.cancelled() {
                return None;
            }
            if let Some(path) = queue.waiting.pop_front() {
                queue.busy += 1;
                return Some(path);
            }
            if queue.busy == 0 {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) -> Part {
        let mut part = Part::default();
        let mut buffer = vec![0; BUFFER];
        while let Some(path) = self.next() {
            let below = self.directory(&path, &mut part, &mut buffer);
            let mut queue = self.lock();
            queue.waiting.extend(below);
            queue.busy -= 1;
            drop(queue);
            self.changed.notify_all();
        }
        self.changed.notify_all();
        part
    }

    /// Reads one directory with the files in it and answers with the directories in it.
    fn directory(&self, path: &[u8], part: &mut Part, buffer: &mut [u8]) -> Vec<Vec<u8>> {
        let mut below = Vec::new();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let opened = open_beneath(self.root.as_fd(), Path::new(std::ffi::OsStr::from_bytes(path)), flags)
            .and_then(|fd| Dir::from_fd(fd).map_err(io::Error::from));
        let Ok(mut dir) = opened else {
            part.cannot_read(path);
            return below;
        };
        // Names first: the iterator holds the directory, whose descriptor is needed for each of them.
        let mut names = Vec::new();
        for entry in dir.iter() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => names.push(entry.file_name().to_owned()),
                Err(_) => {
                    part.cannot_read(path);
                    break;
                }
            }
        }
        for name in names {
            if self.cancelled() {
                break;
            }
            let mut full = path.to_vec();
            if !full.is_empty() {
                full.push(b'/');
            }
            full.extend_from_slice(name.to_bytes());
            let Ok(stat) = fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else {
                part.cannot_read(&full);
                continue;
            };
            let content = match file_type(&stat) {
                SFlag::S_IFDIR => {
                    if !SKIPPED.contains(&full.as_slice()) {
                        below.push(full.clone());
                    }
                    Vec::new()
                }
                SFlag::S_IFLNK => {
                    readlinkat(&dir, name.as_c_str()).map(std::ffi::OsString::into_vec).unwrap_or_else(|_| {
                        part.cannot_read(&full);
                        Vec::new()
                    })
                }
                SFlag::S_IFREG => self.file(&dir, &name, buffer, part).unwrap_or_else(|_| {
                    part.cannot_read(&full);
                    stat.st_size.to_le_bytes().to_vec()
                }),
                _ => stat.st_rdev.to_le_bytes().to_vec(),
            };
            part.entries.push(Entry { path: full, mode: stat.st_mode, content });
        }
        below
    }

    fn file(
        &self,
        dir: &Dir,
        name: &std::ffi::CStr,
        buffer: &mut [u8],
        part: &mut Part,
    ) -> io::Result<Vec<u8>> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(dir, name, flags, Mode::empty())?);
        let mut hasher = blake3::Hasher::new();
        let mut read = 0;
        while !self.cancelled() {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hasher.update(buffer.get(..count).unwrap_or_default());
                    read += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        part.bytes += read;
        Ok(hasher.finalize().as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests;
