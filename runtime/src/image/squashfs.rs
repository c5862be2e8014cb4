//! The superblock of a squashfs file system: enough to know one, and what its tools have to understand.

use std::io;

use super::sif::Source;

/// At its beginning.
pub const MAGIC: &[u8; 4] = b"hsqs";
const SUPERBLOCK: usize = 96;

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    /// Its beginning is another one.
    #[error("at byte {at}: there is no squashfs file system")]
    NoMagic { at: u64 },
    /// Made for other tools.
    #[error("at byte {at}: the squashfs file system has version {major}.{minor}, and only 4.0 is known")]
    Version { at: u64, major: u16, minor: u16 },
    /// Cut off.
    #[error("at byte {at}: the squashfs file system says that it has {says} bytes, and there are {has}")]
    Short { at: u64, says: u64, has: u64 },
    /// It cannot be read.
    #[error("it cannot be read at byte {at}")]
    Read { at: u64, source: io::Error },
}

/// The part that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Everything that was made of.
    pub inodes: u32,
    /// Its length.
    pub bytes: u64,
}

/// Reads the superblock at `offset` of something with `size` bytes from there on.
///
/// # Errors
/// It is none, of another version, or longer than what is there.
pub fn parse(source: &(impl Source + ?Sized), offset: u64, size: u64) -> Result<Superblock, SquashfsError> {
    let mut block = [0; SUPERBLOCK];
    if size < SUPERBLOCK as u64 {
        return Err(SquashfsError::Short { at: offset, says: SUPERBLOCK as u64, has: size });
    }
    source.read_at(offset, &mut block).map_err(|source| SquashfsError::Read { at: offset, source })?;
    if !block.starts_with(MAGIC) {
        return Err(SquashfsError::NoMagic { at: offset });
    }
    let short = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let (major, minor) = (short(28), short(30));
    if (major, minor) != (4, 0) {
        return Err(SquashfsError::Version { at: offset + 28, major, minor });
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[40..48]);
    let bytes = u64::from_le_bytes(bytes);
    if bytes > size {
        return Err(SquashfsError::Short { at: offset + 40, says: bytes, has: size });
    }
    let mut inodes = [0; 4];
    inodes.copy_from_slice(&block[4..8]);
    Ok(Superblock { inodes: u32::from_le_bytes(inodes), bytes })
}
