//! Puts one layer onto what the layers below it have left.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::UtimensatFlags;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, mkdirat, utimensat};
use nix::unistd::{Uid, linkat, symlinkat};

use super::entries::{Entries, Entry, Kind};
use crate::error::{Error, Result};
use crate::image::inside::file_type;
use crate::image::io_words;
use crate::image::tree::{
    Tree, allowed, clear_but, create_in, is_full, remove_but, remove_in, room, stat_in, time_of,
};
use crate::image::xattr;

/// A file of this name removes the one that it names from the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// A file of this name removes everything that the layers below put into its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Longer paths the kernel does not take.
const MAX_PATH: usize = 4096;
const MAX_DEPTH: usize = 200;
const BUFFER: usize = 256 << 10;
/// Blocks of zeroes of this size are left out of a file: the file system knows them anyway.
const HOLE: usize = 4096;

/// How much an image may hold, over all its layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of regular files, holes included.
    pub bytes: u64,
    /// Entries of all kinds.
    pub entries: u64,
}

impl Limits {
    /// For an image whose layers have this many bytes as they are stored. No honest layer shrinks to less than a
    /// hundredth; a small image may.
    #[must_use]
    pub(crate) fn for_stored(bytes: u64) -> Self {
        Self { bytes: bytes.saturating_mul(100).saturating_add(8 << 30), entries: 10_000_000 }
    }
}

/// What was put below the root so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes of regular files.
    pub bytes: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Device nodes that were left out.
    pub devices: u64,
    /// Extended attributes that were left out.
    pub attributes: u64,
}

/// Unpacks one layer. `sum` goes on from layer to layer.
///
/// # Errors
/// A damaged or hostile archive, an exceeded limit, or what the file system says.
pub(crate) fn unpack(root: &Tree, layer: impl Read, limits: Limits, sum: &mut Unpacked) -> Result<()> {
    let mut work = Work {
        root,
        limits,
        sum,
        made: HashSet::new(),
        hasher: RandomState::new(),
        as_root: Uid::effective().is_root(),
        last: None,
        buffer: vec![0; BUFFER],
    };
    let mut entries = Entries::new(layer);
    loop {
        let entry = entries.next().map_err(|e| Error::new("cannot read it").because(archive_words(&e)))?;
        let Some(entry) = entry else { return Ok(()) };
        work.entry(&entry, &mut entries)?;
    }
}

fn archive_words(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "it ends in the middle".to_owned(),
        _ => io_words(e),
    }
}

struct Work<'a> {
    root: &'a Tree,
    limits: Limits,
    sum: &'a mut Unpacked,
    /// What this very layer has made, as a number for directory and name: only what lies below is whited out.
    made: HashSet<u64>,
    hasher: RandomState,
    as_root: bool,
    /// The directory of the last entry: archives go through a directory in one go.
    last: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Work<'_> {
    fn entry(&mut self, entry: &Entry, data: &mut Entries<impl Read>) -> Result<()> {
        self.sum.entries += 1;
        if self.sum.entries > self.limits.entries {
            return Err(Error::new(format!("it holds more than {} files", self.limits.entries)));
        }
        if entry.kind == Kind::File {
            self.sum.bytes = self.sum.bytes.saturating_add(entry.size);
            if self.sum.bytes > self.limits.bytes {
                let most = self.limits.bytes >> 30;
                return Err(Error::new(format!("it would unpack to more than {most} GiB"))
                    .because("this is many times its stored size, as in an archive made to fill a disk"));
            }
        }
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let done = self.place(entry, data);
        done.map_err(|e| {
            let error = Error::new(format!("cannot unpack {shown:?}")).because(archive_words(&e));
            if is_full(&e) { error.help(room(self.root.path())) } else { error }
        })
    }

    fn place(&mut self, entry: &Entry, data: &mut Entries<impl Read>) -> io::Result<()> {
        let Some((parent, name)) = split(&entry.path)? else {
            // The root itself: its mode counts, and it stays.
            return if entry.kind == Kind::Directory {
                let top = self.root.open_at(Path::new(""), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                self.directory_mode(top.as_fd(), entry)
            } else {
                Ok(())
            };
        };
        let parent = self.parent(&parent)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(parent.as_fd(), &name, hidden);
        }
        match entry.kind {
            Kind::Directory => self.directory(parent.as_fd(), &name, entry)?,
            Kind::Device => {
                self.sum.devices += 1;
                return Ok(());
            }
            Kind::File => {
                self.clear(parent.as_fd(), &name)?;
                self.file(parent.as_fd(), &name, entry, data)?;
            }
            Kind::Fifo => {
                self.clear(parent.as_fd(), &name)?;
                nix::unistd::mkfifoat(&parent, name.as_os_str(), Mode::from_bits_truncate(entry.mode))?;
                self.own(parent.as_fd(), &name, entry)?;
            }
            Kind::Symlink => {
                self.clear(parent.as_fd(), &name)?;
                symlinkat(OsStr::from_bytes(&entry.link), &parent, name.as_os_str())?;
                self.own(parent.as_fd(), &name, entry)?;
            }
            Kind::HardLink => self.hard_link(parent.as_fd(), &name, entry)?,
        }
        let number = self.number(&fstat(&parent)?, &name);
        self.made.insert(number);
        Ok(())
    }

    fn number(&self, parent: &FileStat, name: &OsStr) -> u64 {
        self.hasher.hash_one((parent.st_ino, name))
    }

    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return fd.try_clone();
        }
        let fd = self.root.make_dirs(path)?;
        self.last = Some((path.to_owned(), fd.try_clone()?));
        Ok(fd)
    }

    /// Takes away what is in the way of something new.
    fn clear(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match stat_in(parent, name)? {
            None => Ok(()),
            Some(_) => {
                // It may be, or lead to, the directory that is kept open.
                self.last = None;
                remove_in(parent, name)
            }
        }
    }

    fn whiteout(&mut self, parent: BorrowedFd<'_>, name: &OsStr, hidden: &[u8]) -> io::Result<()> {
        self.last = None;
        let (made, hasher) = (&self.made, &self.hasher);
        let mut keep = |dir: &FileStat, name: &OsStr| made.contains(&hasher.hash_one((dir.st_ino, name)));
        if name.as_bytes() == OPAQUE {
            return clear_but(parent, &mut keep, 0).map(drop);
        }
        // Other names of the kind are aufs's own notes.
        let hidden = OsStr::from_bytes(hidden);
        if hidden.is_empty() || hidden == "." || hidden == ".." || hidden.as_bytes().starts_with(WHITEOUT) {
            return Ok(());
        }
        if keep(&fstat(parent)?, hidden) {
            return Ok(());
        }
        remove_but(parent, hidden, &mut keep, 0).map(drop)
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        let there = stat_in(parent, name)?.is_some_and(|stat| file_type(&stat) == SFlag::S_IFDIR);
        if !there {
            self.clear(parent, name)?;
            mkdirat(parent, name, Mode::from_bits_truncate(0o700))?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::openat(parent, name, flags, Mode::empty())?;
        if there {
            xattr::clear(dir.as_fd())?;
        }
        self.directory_mode(dir.as_fd(), entry)
    }

    /// Its user has to be able to work in it, whatever the mode of whoever owned it says.
    fn directory_mode(&mut self, dir: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        if self.as_root {
            rustix::fs::fchown(dir, owner(entry.uid), group(entry.gid))?;
        }
        let mode = if self.as_root { entry.mode } else { entry.mode | 0o700 };
        fchmod(dir, Mode::from_bits_truncate(mode & allowed(true)))?;
        self.attributes(dir, entry)
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        data: &mut Entries<impl Read>,
    ) -> io::Result<()> {
        let mut file = create_in(parent, name, 0o600)?;
        match &entry.pieces {
            None => self.pour(&mut file, entry.size, data)?,
            Some(pieces) => {
                for (offset, length) in pieces {
                    file.seek(SeekFrom::Start(*offset))?;
                    self.pour(&mut file, *length, data)?;
                }
            }
        }
        file.set_len(entry.size)?;
        self.attributes(file.as_fd(), entry)?;
        if self.as_root {
            rustix::fs::fchown(&file, owner(entry.uid), group(entry.gid))?;
        }
        let mode = if self.as_root { entry.mode } else { entry.mode | 0o400 };
        fchmod(&file, Mode::from_bits_truncate(mode & allowed(false)))?;
        let time = time_of(entry.mtime);
        Ok(nix::sys::stat::futimens(&file, &time, &time)?)
    }

    /// Copies `length` bytes and leaves holes where there are only zeroes.
    fn pour(&mut self, file: &mut File, length: u64, data: &mut impl Read) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let mut filled = 0;
            while filled < most {
                match data.read(&mut self.buffer[filled..most])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => filled += n,
                }
            }
            left -= filled as u64;
            write_sparse(file, &self.buffer[..filled])?;
        }
        Ok(())
    }

    fn hard_link(&mut self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        let Some((from, from_name)) = split(&entry.link)? else {
            return Err(Errno::EPERM.into());
        };
        let missing = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => io::Error::other(format!(
                "the file that it is a link to is missing: {}",
                String::from_utf8_lossy(&entry.link)
            )),
            _ => e,
        };
        // Nothing is made on the way to a file that has to be there.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let from = self.root.open_at(&from, flags).map_err(missing)?;
        let same = |a: &FileStat, b: &FileStat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        if let (Some(old), Some(new)) = (stat_in(from.as_fd(), &from_name)?, stat_in(parent, name)?)
            && same(&old, &new)
        {
            return Ok(());
        }
        self.clear(parent, name)?;
        linkat(&from, from_name.as_os_str(), parent, name, AtFlags::empty()).map_err(|e| missing(e.into()))
    }

    /// Owner and time of what cannot be opened.
    fn own(&self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        if self.as_root {
            let (uid, gid) = (owner(entry.uid), group(entry.gid));
            rustix::fs::chownat(parent, name, uid, gid, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if entry.kind == Kind::Fifo {
            // Made by us a moment ago in a directory of ours; no link can have taken its place.
            let mode = Mode::from_bits_truncate(entry.mode & 0o777);
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        let time = time_of(entry.mtime);
        Ok(utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    fn attributes(&mut self, fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        for (name, value) in &entry.xattrs {
            self.sum.attributes += u64::from(xattr::set(fd, name, value)?);
        }
        Ok(())
    }
}

fn owner(uid: u64) -> Option<rustix::fs::Uid> {
    Some(rustix::fs::Uid::from_raw(id(uid)))
}

fn group(gid: u64) -> Option<rustix::fs::Gid> {
    Some(rustix::fs::Gid::from_raw(id(gid)))
}

/// The largest number means "leave it as it is" to the kernel; what does not fit belongs to nobody.
fn id(number: u64) -> u32 {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX).unwrap_or(65534)
}

fn write_sparse(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let zero = |block: &[u8]| block.len() == HOLE && block.iter().all(|b| *b == 0);
        let holes = rest.chunks(HOLE).take_while(|block| zero(block)).count() * HOLE;
        if holes > 0 {
            file.seek(SeekFrom::Current(i64::try_from(holes).unwrap_or(0)))?;
            rest = &rest[holes..];
            continue;
        }
        let full: usize = rest.chunks(HOLE).take_while(|block| !zero(block)).map(<[u8]>::len).sum();
        file.write_all(&rest[..full])?;
        rest = &rest[full..];
    }
    Ok(())
}

/// The directory and the name of a path in an archive; `None` for the root. What leads up leads up inside: the
/// root is its own parent there.
fn split(path: &[u8]) -> io::Result<Option<(PathBuf, OsString)>> {
    if path.len() > MAX_PATH || path.contains(&0) {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its path leads up with \"..\""));
            }
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its path is too deep"));
    }
    let Some(name) = parts.pop() else { return Ok(None) };
    let parent = parts.iter().map(|part| OsStr::from_bytes(part)).collect();
    Ok(Some((parent, OsStr::from_bytes(name).to_owned())))
}
