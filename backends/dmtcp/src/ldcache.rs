//! The loader's cache of libraries (`/etc/ld.so.cache`), read without running anything. What is not in it is sought
//! by the callers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the loader keeps it.
const FILE: &str = "/etc/ld.so.cache";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const OLD_ENTRY: usize = 12;
/// What is larger is no cache.
const LARGEST: u64 = 16 << 20;
/// Flags of a library of this architecture: FLAG_ELF_LIBC6 and the architecture's own.
const NATIVE: u32 = if cfg!(target_arch = "aarch64") { 0x0a03 } else { 0x0303 };

/// The libraries of this architecture, in the loader's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LdCache {
    libraries: BTreeMap<String, Vec<PathBuf>>,
}

impl LdCache {
    /// The host's. A host without one (musl's) has an empty one.
    pub(crate) fn of_host() -> Self {
        let path = Path::new(FILE);
        match path.metadata() {
            Ok(meta) if meta.is_file() && meta.len() <= LARGEST => {}
            _ => return Self::default(),
        }
        std::fs::read(path).ok().and_then(|bytes| Self::parse(&bytes)).unwrap_or_default()
    }

    /// Reads a cache of either form of the file; `None` where it is none, or is cut off.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let cache = if bytes.starts_with(OLD_MAGIC) {
            let count = word(bytes, OLD_MAGIC.len())?;
            let end = count.checked_mul(OLD_ENTRY)?.checked_add(OLD_MAGIC.len() + 4)?;
            bytes.get(end.checked_next_multiple_of(8)?..)?
        } else {
            bytes
        };
        if !cache.starts_with(MAGIC) {
            return None;
        }
        let count = word(cache, MAGIC.len())?;
        let entries = cache.get(HEADER..)?.get(..count.checked_mul(ENTRY)?)?;
        let mut found = Self::default();
        for entry in entries.chunks_exact(ENTRY) {
            // Libraries for better processors (hwcap) may not run on this one.
            if word(entry, 0)? as u32 != NATIVE || entry.get(16..24)? != [0; 8] {
                continue;
            }
            let (name, path) = (text(cache, word(entry, 4)?)?, text(cache, word(entry, 8)?)?);
            if path.starts_with('/') {
                found.libraries.entry(name).or_default().push(path.into());
            }
        }
        Some(found)
    }

    /// Where a library of that name lies, the loader's first choice first.
    pub(crate) fn find(&self, name: &str) -> &[PathBuf] {
        self.libraries.get(name).map_or(&[], Vec::as_slice)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?) as usize)
}

fn text(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().take(4096).position(|byte| *byte == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(libraries: &[(u32, u64, &str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let base = HEADER + ENTRY * libraries.len();
        let mut entries = Vec::new();
        for (flags, hwcap, name, path) in libraries {
            entries.extend(flags.to_le_bytes());
            for text in [name, path] {
                entries.extend(((base + strings.len()) as u32).to_le_bytes());
                strings.extend(text.bytes().chain([0]));
            }
            entries.extend([0; 4]);
            entries.extend(hwcap.to_le_bytes());
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend((libraries.len() as u32).to_le_bytes());
        bytes.extend((strings.len() as u32).to_le_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(entries);
        bytes.extend(strings);
        bytes
    }

    const LIBRARIES: &[(u32, u64, &str, &str)] = &[
        (0x0803, 0, "liba.so.1", "/usr/lib32/liba.so.1"),
        (NATIVE, 1 << 62, "liba.so.1", "/usr/lib/haswell/liba.so.1"),
        (NATIVE, 0, "liba.so.1", "/usr/lib/liba.so.1"),
        (NATIVE, 0, "liba.so.1", "/opt/lib/liba.so.1"),
        (NATIVE, 0, "libb.so.1", "relative/libb.so.1"),
    ];

    #[test]
    fn finds_native_libraries_in_order() {
        let new = cache(LIBRARIES);
        let mut old = OLD_MAGIC.to_vec();
        old.extend(1u32.to_le_bytes());
        old.resize(old.len() + OLD_ENTRY, 7);
        old.resize(old.len().next_multiple_of(8), 0);
        old.extend(&new);
        for bytes in [new, old] {
            let found = LdCache::parse(&bytes).unwrap();
            assert_eq!(
                found.find("liba.so.1"),
                [Path::new("/usr/lib/liba.so.1"), Path::new("/opt/lib/liba.so.1")]
            );
            assert!(found.find("libb.so.1").is_empty() && found.find("").is_empty());
        }
    }

    #[test]
    fn survives_damage() {
        let whole = cache(LIBRARIES);
        assert_eq!(LdCache::parse(b""), None);
        assert_eq!(LdCache::parse(b"ld.so-1.7.0\0\xff\xff\xff\xff"), None);
        for end in 0..whole.len() {
            assert_eq!(LdCache::parse(&whole[..end]), None, "{end}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = 0xff;
            let _ = LdCache::parse(&bytes);
        }
    }

    #[test]
    fn reads_the_hosts() {
        if Path::new(FILE).exists() {
            let found = LdCache::of_host();
            assert!(found.find("libc.so.6").first().is_some_and(|path| path.exists()));
        }
    }
}
