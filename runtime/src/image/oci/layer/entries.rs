//! Reads the entries of a tar archive one after the other, with long names, extended headers and sparse files
//! of both kinds. Nothing is kept of an archive but the entry at hand, and no field of it is believed before
//! it is bounded: the tar crate's own iterator holds extended headers of any length in memory.

use std::io::{self, Read};

use tar::{EntryType, Header};

/// The most bytes of a long name or of an extended header.
const MAX_EXTENDED: u64 = 1 << 20;
/// The most pieces of a sparse file.
const MAX_PIECES: usize = 1 << 16;
const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
}

/// One entry. Its data, if any, is read from the [`Entries`] before the next one is asked for.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    /// Of the file, holes included.
    pub(crate) size: u64,
    /// Where the stored bytes belong, for a sparse file.
    pub(crate) pieces: Option<Vec<(u64, u64)>>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// Extended headers in force for the next entry.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<(String, Vec<u8>)>,
}

/// An archive that is being read.
pub(crate) struct Entries<R> {
    inner: R,
    /// Bytes of the current entry that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// What the archive is read from: right after [`Self::next`] it stands where the entry's data begins.
    pub(crate) fn inner(&self) -> &R {
        &self.inner
    }

    /// The next entry; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| broken("an entry has no size"))?;
            self.set(size);
            match header.entry_type() {
                EntryType::GNULongName => extended.path = Some(self.text()?),
                EntryType::GNULongLink => extended.link = Some(self.text()?),
                EntryType::XHeader => extended.pax = pax(&self.small()?)?,
                // Says nothing about one file that matters here: git puts a comment in it.
                EntryType::XGlobalHeader => {}
                _ => {
                    if let Some(entry) = self.entry(&header, extended)? {
                        return Ok(Some(entry));
                    }
                    extended = Extended::default();
                }
            }
        }
    }

    fn set(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` at the end of the archive, which a block of zeroes or nothing at all marks.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(broken("it is no tar archive, or a header in it is damaged"));
        }
        Ok(Some(header))
    }

    /// `None` for what is no file: volume names and the like.
    fn entry(&mut self, header: &Header, extended: Extended) -> io::Result<Option<Entry>> {
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            _ => return Ok(None),
        };
        let number = |result: io::Result<u64>| result.unwrap_or(0);
        let mut entry = Entry {
            path: extended.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extended.link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            kind,
            mode: header.mode().unwrap_or(0o644) & 0o7777,
            uid: number(header.uid()),
            gid: number(header.gid()),
            mtime: i64::try_from(number(header.mtime())).unwrap_or(0),
            size: self.left,
            pieces: None,
            xattrs: Vec::new(),
        };
        let sparse = self.apply(&mut entry, extended.pax)?;
        // Of a link only the name counts, whatever size it claims: old writers repeat that of the file.
        if kind != Kind::File {
            entry.size = 0;
            if matches!(kind, Kind::HardLink | Kind::Symlink) {
                self.set(0);
            }
        }
        if header.entry_type() == EntryType::GNUSparse {
            self.gnu_sparse(header, &mut entry)?;
        } else if let (Some(sparse), Kind::File) = (sparse, kind) {
            self.pax_sparse(sparse, &mut entry)?;
        }
        if let Some(pieces) = &entry.pieces {
            check_pieces(pieces, entry.size, self.left)?;
        }
        // Archives older than POSIX mark directories by their name only.
        if entry.kind == Kind::File && entry.path.ends_with(b"/") {
            entry.kind = Kind::Directory;
        }
        Ok(Some(entry))
    }

    /// What extended headers say of the entry. Answers with the sparse map's form, where there is one.
    fn apply(&mut self, entry: &mut Entry, pax: Vec<(String, Vec<u8>)>) -> io::Result<Option<Sparse>> {
        let mut sparse = Sparse::default();
        let mut is_sparse = false;
        for (key, value) in pax {
            let text = || String::from_utf8_lossy(&value).into_owned();
            let number = || text().parse::<u64>().map_err(|_| broken(format!("{key} is no number")));
            match key.as_str() {
                "path" => entry.path = value,
                "linkpath" => entry.link = value,
                "size" => {
                    entry.size = number()?;
                    self.set(entry.size);
                }
                "uid" => entry.uid = number()?,
                "gid" => entry.gid = number()?,
                "mtime" => {
                    let whole = text().split('.').next().and_then(|t| t.parse().ok());
                    entry.mtime = whole.unwrap_or(entry.mtime);
                }
                "GNU.sparse.name" => sparse.name = Some(value),
                "GNU.sparse.realsize" | "GNU.sparse.size" => sparse.size = Some(number()?),
                "GNU.sparse.major" => sparse.in_data = number()? == 1,
                "GNU.sparse.map" => sparse.map = Some(text()),
                _ => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        entry.xattrs.push((name.to_owned(), value));
                    }
                }
            }
            is_sparse |= key.starts_with("GNU.sparse.");
        }
        Ok(is_sparse.then_some(sparse))
    }

    /// The map of an old GNU archive: four pieces in the header, more in blocks behind it.
    fn gnu_sparse(&mut self, header: &Header, entry: &mut Entry) -> io::Result<()> {
        let gnu = header.as_gnu().ok_or_else(|| broken("a sparse file has another kind of header"))?;
        entry.size = gnu.real_size()?;
        let mut pieces = Vec::new();
        let mut add = |sparse: &tar::GnuSparseHeader| -> io::Result<()> {
            if !sparse.is_empty() {
                pieces.push((sparse.offset()?, sparse.length()?));
            }
            if pieces.len() > MAX_PIECES { Err(broken("a sparse file has too many pieces")) } else { Ok(()) }
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.inner.read_exact(block.as_mut_bytes())?;
            block.sparse.iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        entry.pieces = Some(pieces);
        Ok(())
    }

    /// The map of a POSIX archive: in the extended header, or as text before the data.
    fn pax_sparse(&mut self, sparse: Sparse, entry: &mut Entry) -> io::Result<()> {
        let size = sparse.size.ok_or_else(|| broken("a sparse file has no size"))?;
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        let numbers: Vec<u64> = if sparse.in_data {
            let before = self.left;
            let mut numbers = vec![self.line()?];
            for _ in 0..numbers[0].saturating_mul(2) {
                if numbers.len() > 2 * MAX_PIECES {
                    return Err(broken("a sparse file has too many pieces"));
                }
                numbers.push(self.line()?);
            }
            // The data begins at the next block.
            let over = (before - self.left) % BLOCK as u64;
            let mut pad = vec![0; usize::try_from((BLOCK as u64 - over) % BLOCK as u64).unwrap_or(0)];
            self.read_exact(&mut pad)?;
            numbers.remove(0);
            numbers
        } else {
            let map = sparse.map.ok_or_else(|| broken("a sparse file has no map"))?;
            let parts: Result<_, _> = map.split(',').map(str::parse).collect();
            parts.map_err(|_| broken("the map of a sparse file is damaged"))?
        };
        if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MAX_PIECES {
            return Err(broken("the map of a sparse file is damaged"));
        }
        entry.size = size;
        entry.pieces = Some(numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect());
        Ok(())
    }

    /// A line with a number, of the entry's data.
    fn line(&mut self) -> io::Result<u64> {
        let mut number: u64 = 0;
        for _ in 0..20 {
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            match byte[0] {
                b'\n' => return Ok(number),
                digit @ b'0'..=b'9' => {
                    number = number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
                }
                _ => break,
            }
        }
        Err(broken("the map of a sparse file is damaged"))
    }

    /// The whole data of the current entry, which has to be small.
    pub(crate) fn small(&mut self) -> io::Result<Vec<u8>> {
        if self.left > MAX_EXTENDED {
            return Err(broken(format!("a header is longer than {} KiB", MAX_EXTENDED >> 10)));
        }
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or(0)];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = self.small()?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(bytes)
    }
}

/// The data of the current entry.
impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[derive(Debug, Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    map: Option<String>,
    in_data: bool,
}

/// Pieces rise, lie within the file, and are as long together as what is stored.
fn check_pieces(pieces: &[(u64, u64)], size: u64, stored: u64) -> io::Result<()> {
    let mut end: u64 = 0;
    let mut sum: u64 = 0;
    for (offset, length) in pieces {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| broken("the map of a sparse file is damaged"))?;
        sum = sum.saturating_add(*length);
    }
    if sum == stored { Ok(()) } else { Err(broken("the map of a sparse file is damaged")) }
}

/// `LENGTH KEY=VALUE\n`, one after the other.
fn pax(bytes: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
    let damaged = || broken("an extended header is damaged");
    let mut records = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() && rest[0] != 0 {
        let space = rest.iter().take(20).position(|b| *b == b' ').ok_or_else(damaged)?;
        let length: usize =
            std::str::from_utf8(&rest[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(damaged)?;
        let record = rest.get(space + 1..length).ok_or_else(damaged)?;
        let record = record.strip_suffix(b"\n").ok_or_else(damaged)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(damaged)?;
        records
            .push((String::from_utf8_lossy(&record[..equals]).into_owned(), record[equals + 1..].to_vec()));
        rest = &rest[length..];
    }
    Ok(records)
}
