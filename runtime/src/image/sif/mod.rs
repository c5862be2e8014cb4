//! The SIF format: the global header, the descriptors, and what they say lies where in the file. Every
//! number in it is the author's, who may be hostile: nothing is taken before it is checked against the file.
//!
//! [`parse`] takes anything that bytes can be read from, so that a fuzzer can call it with a slice.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

pub mod write;

/// Where the magic is; before it stands the line that starts an interpreter.
pub const MAGIC_AT: usize = 32;
/// With its terminating zero.
pub const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
const HEADER: usize = 128;
const DESCRIPTOR: usize = 585;
/// What other tools write is 48; more than this is no image.
const MOST_DESCRIPTORS: u64 = 4096;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// The definition file.
    Definition,
    /// Environment variables.
    Environment,
    /// Labels.
    Labels,
    /// A file system.
    Partition,
    /// A signature over others.
    Signature,
    /// JSON.
    Json,
    /// Anything.
    Generic,
    /// A message that belongs to an encrypted partition.
    CryptoMessage,
    /// Another one, by its number.
    Other(i32),
}

impl DataType {
    fn from_number(number: i32) -> Self {
        match number {
            0x4001 => Self::Definition,
            0x4002 => Self::Environment,
            0x4003 => Self::Labels,
            0x4004 => Self::Partition,
            0x4005 => Self::Signature,
            0x4006 => Self::Json,
            0x4007 => Self::Generic,
            0x4008 => Self::CryptoMessage,
            other => Self::Other(other),
        }
    }
}

/// What a partition's descriptor says beyond the common part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The file system, by its number.
    pub file_system: i32,
    /// What it is for, by its number.
    pub kind: i32,
    /// For which processors, as in the header.
    pub arch: String,
}

/// [`Partition::kind`]: the root file system.
pub const PRIMARY: i32 = 2;
/// [`Partition::kind`]: a layer to be put over it.
pub const OVERLAY: i32 = 4;
/// [`Partition::file_system`].
pub const SQUASHFS: i32 = 1;

impl Partition {
    /// The file system in words.
    #[must_use]
    pub fn file_system_name(&self) -> &'static str {
        match self.file_system {
            SQUASHFS => "squashfs",
            2 => "ext3",
            3 => "archive",
            4 => "raw",
            5 => "encrypted squashfs",
            6 => "encrypted (gocryptfs)",
            _ => "unknown",
        }
    }

    /// Nothing of it can be seen without a key.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        matches!(self.file_system, 5 | 6)
    }
}

/// One object of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// From 1 on.
    pub id: u32,
    /// What it is.
    pub kind: DataType,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub size: u64,
    /// Its name, often empty.
    pub name: String,
    /// Of a partition.
    pub partition: Option<Partition>,
}

/// A whole file, as far as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sif {
    /// In the usual groups of hexadecimal digits.
    pub uuid: String,
    /// The architecture's code.
    pub arch: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// In the order of their place in the table.
    pub objects: Vec<Descriptor>,
}

impl Sif {
    /// The root file system.
    #[must_use]
    pub fn primary(&self) -> Option<(&Descriptor, &Partition)> {
        let of = |d: &'_ Descriptor| d.partition.as_ref().is_some_and(|p| p.kind == PRIMARY);
        let found = self.objects.iter().find(|d| of(d))?;
        Some((found, found.partition.as_ref()?))
    }

    /// The first object of a kind.
    #[must_use]
    pub fn first(&self, kind: DataType) -> Option<&Descriptor> {
        self.objects.iter().find(|d| d.kind == kind)
    }
}

/// What is wrong with a file, and where in it.
#[derive(Debug, thiserror::Error)]
pub enum SifError {
    /// It contradicts the format or itself.
    #[error("at byte {at}: {what}")]
    Format { at: u64, what: String },
    /// It cannot be read.
    #[error("it cannot be read at byte {at}")]
    Read { at: u64, source: io::Error },
}

/// Something that bytes can be read from.
pub trait Source {
    /// Its length.
    ///
    /// # Errors
    /// What the kernel says.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when there is less.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|start| self.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn wrong<T>(at: u64, what: impl Into<String>) -> Result<T, SifError> {
    Err(SifError::Format { at, what: what.into() })
}

/// Fields of a record that was read whole.
struct Fields<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Fields<'_> {
    fn take<const N: usize>(&self, offset: usize) -> [u8; N] {
        let found = self.bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>());
        found.copied().unwrap_or([0; N])
    }

    fn number(&self, offset: usize) -> i32 {
        i32::from_le_bytes(self.take(offset))
    }

    /// Places and lengths are signed in the format and may not be negative.
    fn place(&self, offset: usize, what: &str) -> Result<u64, SifError> {
        let value = i64::from_le_bytes(self.take(offset));
        match u64::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => wrong(self.at + offset as u64, format!("{what} is {value}")),
        }
    }

    /// Up to the first zero.
    fn text(&self, offset: usize, length: usize) -> String {
        let bytes = self.bytes.get(offset..offset + length).unwrap_or_default();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
    }
}

/// Whether the beginning of a file is that of a SIF.
#[must_use]
pub fn is_sif(head: &[u8]) -> bool {
    head.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Reads header and descriptors. No more than two megabytes are held, whatever they say.
///
/// # Errors
/// What contradicts the format, itself or the file's length, and where.
pub fn parse(source: &(impl Source + ?Sized)) -> Result<Sif, SifError> {
    let length = source.length().map_err(|source| SifError::Read { at: 0, source })?;
    let mut head = [0; HEADER];
    read(source, 0, &mut head, length, "the header")?;
    let header = Fields { bytes: &head, at: 0 };
    if !is_sif(&head) {
        return wrong(MAGIC_AT as u64, "there is no SIF magic");
    }
    let version = header.text(42, 3);
    if version != "01" {
        return wrong(42, format!("the format's version is {version:?}, and only 01 is known"));
    }
    let total = header.place(88, "the number of descriptors")?;
    if total > MOST_DESCRIPTORS {
        return wrong(88, format!("it announces {total} descriptors, more than {MOST_DESCRIPTORS}"));
    }
    if header.place(80, "the number of free descriptors")? > total {
        return wrong(80, "more descriptors are free than there are");
    }
    let table = header.place(96, "the descriptors' place")?;
    let room = header.place(104, "the descriptors' length")?;
    let needed = total * DESCRIPTOR as u64;
    if table < HEADER as u64 {
        return wrong(96, format!("the descriptors begin at byte {table}, inside the header"));
    }
    if room < needed {
        return wrong(104, format!("{total} descriptors do not fit into {room} bytes"));
    }
    let data = header.place(112, "the data's place")?;
    if table.checked_add(needed).is_none_or(|end| end > data) {
        return wrong(112, format!("the data begin at byte {data}, before the descriptors' end"));
    }
    let mut bytes = vec![0; usize::try_from(needed).unwrap_or(0)];
    read(source, table, &mut bytes, length, "the descriptors")?;
    let mut objects = Vec::new();
    for (index, bytes) in bytes.chunks_exact(DESCRIPTOR).enumerate() {
        let at = table + (index * DESCRIPTOR) as u64;
        objects.extend(descriptor(&Fields { bytes, at }, data, length)?.map(|object| (at, object)));
    }
    consistent(&objects)?;
    let uuid: String = header.take::<16>(48).iter().map(|b| format!("{b:02x}")).collect();
    let cut = |from: usize, to: usize| uuid.get(from..to).unwrap_or_default();
    Ok(Sif {
        uuid: [cut(0, 8), cut(8, 12), cut(12, 16), cut(16, 20), cut(20, 32)].join("-"),
        arch: header.text(45, 3),
        created: i64::from_le_bytes(header.take(64)),
        objects: objects.into_iter().map(|(_, object)| object).collect(),
    })
}

fn read(
    source: &(impl Source + ?Sized),
    at: u64,
    into: &mut [u8],
    length: u64,
    what: &str,
) -> Result<(), SifError> {
    if at.checked_add(into.len() as u64).is_none_or(|end| end > length) {
        return wrong(
            at,
            format!(
                "{what} would end at byte {}, and the file has {length}",
                at.saturating_add(into.len() as u64)
            ),
        );
    }
    source.read_at(at, into).map_err(|source| SifError::Read { at, source })
}

fn descriptor(fields: &Fields<'_>, data: u64, length: u64) -> Result<Option<Descriptor>, SifError> {
    match fields.take::<1>(4) {
        [0] => return Ok(None),
        [1] => {}
        [other] => return wrong(fields.at + 4, format!("a descriptor is neither used nor free but {other}")),
    }
    let id = u32::from_le_bytes(fields.take(5));
    let (offset, size) = (fields.place(17, "an object's place")?, fields.place(25, "an object's length")?);
    if id == 0 {
        return wrong(fields.at + 5, "an object has the number 0");
    }
    if offset < data {
        return wrong(fields.at + 17, format!("object {id} begins at byte {offset}, before the data"));
    }
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return wrong(
            fields.at + 25,
            format!("object {id} has {size} bytes from byte {offset} on, and the file ends at byte {length}"),
        );
    }
    let kind = DataType::from_number(fields.number(0));
    let partition = (kind == DataType::Partition).then(|| Partition {
        file_system: fields.number(201),
        kind: fields.number(205),
        arch: fields.text(209, 3),
    });
    Ok(Some(Descriptor { id, kind, offset, size, name: fields.text(73, 128), partition }))
}

fn consistent(objects: &[(u64, Descriptor)]) -> Result<(), SifError> {
    let mut sorted: Vec<&(u64, Descriptor)> = objects.iter().collect();
    sorted.sort_by_key(|(_, object)| object.id);
    for pair in sorted.windows(2) {
        if let [(_, first), (at, second)] = pair
            && first.id == second.id
        {
            return wrong(at + 5, format!("two objects have the number {}", second.id));
        }
    }
    sorted.retain(|(_, object)| object.size > 0);
    sorted.sort_by_key(|(_, object)| object.offset);
    for pair in sorted.windows(2) {
        if let [(_, first), (at, second)] = pair
            && first.offset + first.size > second.offset
        {
            return wrong(at + 17, format!("objects {} and {} overlap", first.id, second.id));
        }
    }
    let is_primary = |d: &Descriptor| d.partition.as_ref().is_some_and(|p| p.kind == PRIMARY);
    let mut primary = objects.iter().filter(|(_, object)| is_primary(object));
    match (primary.next(), primary.next()) {
        (Some((_, first)), Some((at, second))) => {
            wrong(*at, format!("objects {} and {} both are the root file system", first.id, second.id))
        }
        _ => Ok(()),
    }
}

/// Codes of architectures with their names, as other tools write them.
const ARCHITECTURES: [(&str, &str); 13] = [
    ("01", "386"),
    ("02", "amd64"),
    ("03", "arm"),
    ("04", "arm64"),
    ("05", "ppc64"),
    ("06", "ppc64le"),
    ("07", "mips"),
    ("08", "mipsle"),
    ("09", "mips64"),
    ("10", "mips64le"),
    ("11", "s390x"),
    ("12", "riscv64"),
    ("13", "loong64"),
];

/// The name of an architecture's code; "unknown" where it has none.
#[must_use]
pub fn arch_name(code: &str) -> &'static str {
    ARCHITECTURES.iter().find(|(known, _)| *known == code).map_or("unknown", |(_, name)| name)
}

/// The name of this machine's architecture.
#[must_use]
pub fn own_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86" => "386",
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// The code of an architecture's name.
#[must_use]
pub fn arch_code(name: &str) -> &'static str {
    ARCHITECTURES.iter().find(|(_, known)| *known == name).map_or("00", |(code, _)| code)
}

/// Whether programs of `image` run on this machine, as far as that is known.
#[must_use]
pub fn runs_here(image: &str) -> bool {
    let here = own_arch();
    image == here
        || image == "unknown"
        || matches!((here, image), ("amd64", "386") | ("arm64", "arm") | ("ppc64le", "ppc64"))
}

#[cfg(test)]
mod tests;
