//! An archive of images on disk. It is gone through once to know where each file lies; after that any of them can be
//! read, in whatever order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::layer::decoded;
use super::layer::entries::{Entries, Kind};
use crate::error::{Error, Result};
use crate::image::tree::failed;

const MAX_ENTRIES: usize = 100_000;
/// Longer paths the kernel does not take.
const MAX_NAME: usize = 4096;
/// A compressed archive is unpacked to disk first; more than this no image has.
const MAX_SIZE: u64 = 1 << 40;

/// An opened archive.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    At(u64, u64),
    /// As old versions of docker write a layer that occurs twice.
    LinkTo(String),
}

/// A file in the archive.
pub(super) struct Slice<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Slice<'_> {
    pub(super) fn len(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Counts what passes, so that a place in the archive is known.
struct Counting<R> {
    inner: R,
    passed: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.passed += n as u64;
        Ok(n)
    }
}

impl Archive {
    /// Opens it. `scratch` is where a compressed one is unpacked to, in a file without a name.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| failed("open the archive", path, &e))?;
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return Err(Error::new(format!("the archive {} is not a file", path.display()))
                .help("for a directory in the layout of OCI, write oci:DIRECTORY"));
        }
        let file = plain(file, path, scratch)?;
        let members = members(&file).map_err(|e| {
            Error::new(format!("cannot read the archive {}", path.display()))
                .because(match e.kind() {
                    io::ErrorKind::UnexpectedEof => "it ends in the middle".to_owned(),
                    _ => crate::image::io_words(&e),
                })
                .help("make it anew, for example with `docker save` or `skopeo copy`")
        })?;
        Ok(Self { path: path.to_owned(), file, members })
    }

    /// Whether it has this file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean(name)?;
        for _ in 0..8 {
            match self.members.get(&name)? {
                Member::At(at, size) => return Some((*at, *size)),
                Member::LinkTo(target) => {
                    let parent = Path::new(&name).parent().unwrap_or(Path::new(""));
                    name = clean(&parent.join(target).to_string_lossy())?;
                }
            }
        }
        None
    }

    /// A file of it.
    pub(super) fn member(&self, name: &str) -> Result<Slice<'_>> {
        let (at, size) = self.find(name).ok_or_else(|| {
            Error::new(format!("the archive {} has no {name:?}", self.path.display()))
                .help("it is not whole, or of another kind: there are oci-archive and docker-archive")
        })?;
        Ok(Slice { file: &self.file, at, end: at.saturating_add(size) })
    }

    /// A small file of it.
    pub(super) fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let slice = self.member(name)?;
        let mut bytes = Vec::new();
        let read = slice.take(limit + 1).read_to_end(&mut bytes);
        match read {
            Ok(_) if bytes.len() as u64 <= limit => Ok(bytes),
            Ok(_) => Err(Error::new(format!("{name:?} in the archive {} is too large", self.path.display()))),
            Err(e) => Err(failed("read the archive", &self.path, &e)),
        }
    }
}

/// The archive without compression.
fn plain(mut file: File, path: &Path, scratch: &Path) -> Result<File> {
    let cannot = |e: io::Error| failed("read the archive", path, &e);
    let mut head = [0; 4];
    let n = file.read(&mut head).map_err(cannot)?;
    file.rewind().map_err(cannot)?;
    let packed = head[..n].starts_with(&[0x1f, 0x8b]) || head[..n].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    if !packed {
        return Ok(file);
    }
    let unpacked = || -> io::Result<File> {
        let mut out = tempfile::tempfile_in(scratch)?;
        let copied = io::copy(&mut decoded(&file)?.take(MAX_SIZE), &mut out)?;
        if copied == MAX_SIZE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        out.flush()?;
        out.seek(SeekFrom::Start(0))?;
        Ok(out)
    };
    unpacked().map_err(|e| failed("unpack the archive", path, &e))
}

fn members(file: &File) -> io::Result<BTreeMap<String, Member>> {
    let counting = Counting { inner: BufReader::with_capacity(1 << 20, file), passed: 0 };
    let mut entries = Entries::new(counting);
    let mut members = BTreeMap::new();
    while let Some(entry) = entries.next()? {
        // All of them are kept in memory.
        if entry.path.len().max(entry.link.len()) > MAX_NAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file in it has too long a name"));
        }
        let Some(name) = std::str::from_utf8(&entry.path).ok().and_then(clean) else { continue };
        let member = match entry.kind {
            Kind::File if entry.pieces.is_none() => Member::At(entries.inner().passed, entry.size),
            Kind::Symlink => Member::LinkTo(String::from_utf8_lossy(&entry.link).into_owned()),
            // From the top of the archive, other than a symbolic link.
            Kind::HardLink => {
                match clean(&String::from_utf8_lossy(&entry.link)).and_then(|to| members.get(&to).cloned()) {
                    Some(member) => member,
                    None => continue,
                }
            }
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > MAX_ENTRIES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it holds too many files for an archive of images",
            ));
        }
    }
    Ok(members)
}

/// A name without `.` and `..`; `None` where it would lead outside.
fn clean(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
