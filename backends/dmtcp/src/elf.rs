//! What has to be known of an ELF file to say whether DMTCP can work with it: interpreter, libraries and symbol
//! versions needed or defined. Files of images are hostile: every offset is checked, the counts are bounded.

use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadCache, ReadRef};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// More entries than any real file has; what comes after them is not looked at.
const MOST: usize = 4096;
/// An interpreter's path or a library's name is never longer.
const LONGEST: u64 = 4096;

/// Why a file could not be read as ELF.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ElfError {
    /// Not an ELF file at all.
    #[error("not an ELF file")]
    NotElf,
    /// 32 bit, or of the other byte order.
    #[error("a {0} file, which DMTCP on this machine cannot load")]
    OtherClass(&'static str),
    /// It contradicts itself.
    #[error("damaged ELF file: {0}")]
    Damaged(&'static str),
}

/// The facts of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Elf {
    /// `e_machine`.
    pub machine: u16,
    /// The path in PT_INTERP.
    pub interpreter: Option<String>,
    /// It has a dynamic section. Static programs have none, or one without an interpreter.
    pub dynamic: bool,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// Symbol versions needed, by library: `libc.so.6` -> `GLIBC_2.34`.
    pub versions_needed: BTreeMap<String, BTreeSet<String>>,
    /// Symbol versions defined.
    pub versions_defined: BTreeSet<String>,
}

impl Elf {
    /// Whether the machine is the one this backend was built for.
    pub(crate) fn is_native(&self) -> bool {
        let native = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64 } else { elf::EM_X86_64 };
        self.machine == native.0
    }

    /// Started by musl's loader.
    pub(crate) fn is_musl(&self) -> bool {
        self.interpreter.as_deref().is_some_and(|path| file_name(path).starts_with("ld-musl"))
            || self.needed.iter().any(|name| name.starts_with("libc.musl-"))
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Why a path does not lead to an ELF file that can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// It cannot be opened.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Its content is not what it has to be.
    #[error("{0}")]
    Elf(#[from] ElfError),
}

/// The facts of a file of the host.
pub(crate) fn of(path: &Path) -> Result<Elf, OpenError> {
    Ok(read(File::open(path)?)?)
}

/// What several files together ask of the libraries around them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Symbol versions needed, by library.
    pub versions: BTreeMap<String, BTreeSet<String>>,
    /// Libraries needed, whatever version.
    pub libraries: BTreeSet<String>,
    /// What starts the programs among them.
    pub interpreters: BTreeSet<String>,
}

impl Needs {
    /// Adds what one more file asks for.
    pub(crate) fn add(&mut self, elf: &Elf) {
        for (library, versions) in &elf.versions_needed {
            self.versions.entry(library.clone()).or_default().extend(versions.iter().cloned());
        }
        self.libraries.extend(elf.needed.iter().cloned());
        self.interpreters.extend(elf.interpreter.clone());
    }

    fn highest(&self, prefix: &str) -> Option<Vec<u32>> {
        highest(self.versions.values().flatten(), prefix)
    }

    /// Whether this libc has all of it; if not, what is missing, as the rest of a sentence about the one that needs it.
    pub(crate) fn unmet_by(&self, libc: &Elf) -> Option<String> {
        let needed = self.highest("GLIBC_");
        let has = highest(libc.versions_defined.iter(), "GLIBC_");
        if needed > has {
            let (needed, has) = (text_of(needed).unwrap_or_default(), text_of(has));
            let has = has.map_or_else(|| "no version of it".to_owned(), |has| format!("glibc {has}"));
            return Some(format!("needs glibc {needed}, and the image has {has}"));
        }
        // Names without a number: GLIBC_ABI_DT_RELR and the like.
        let mut names = self.versions.get("libc.so.6").into_iter().flatten();
        let missing = names.find(|name| !libc.versions_defined.contains(*name));
        missing.map(|name| format!("needs {name}, which the image's glibc lacks"))
    }
}

fn highest<'a>(names: impl Iterator<Item = &'a String>, prefix: &str) -> Option<Vec<u32>> {
    let numbers = |name: &'a String| {
        name.strip_prefix(prefix)?.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()
    };
    names.filter_map(numbers).max()
}

fn text_of(version: Option<Vec<u32>>) -> Option<String> {
    Some(version?.iter().map(u32::to_string).collect::<Vec<_>>().join("."))
}

/// The facts of a file of any size; only the parts that matter are read.
pub(crate) fn read(file: File) -> Result<Elf, ElfError> {
    let cache = ReadCache::new(file);
    parse(&cache)
}

/// The facts of a file in memory.
pub(crate) fn parse<'data, R: ReadRef<'data>>(data: R) -> Result<Elf, ElfError> {
    let ident = data.read_bytes_at(0, 16).map_err(|()| ElfError::NotElf)?;
    if ident.get(..4) != Some(&elf::ELFMAG[..]) {
        return Err(ElfError::NotElf);
    }
    // EI_CLASS 2 is 64 bit, EI_DATA 1 is little-endian.
    match (ident.get(4), ident.get(5)) {
        (Some(2), Some(1)) => {}
        (Some(1), _) => return Err(ElfError::OtherClass("32-bit")),
        _ => return Err(ElfError::OtherClass("big-endian")),
    }
    let header = elf::FileHeader64::<Endianness>::parse(data).map_err(|_| ElfError::Damaged("header"))?;
    let endian = header.endian().map_err(|_| ElfError::Damaged("byte order"))?;
    let segments = header.program_headers(endian, data).map_err(|_| ElfError::Damaged("program headers"))?;
    let mut facts = Elf { machine: header.e_machine(endian).0, ..Elf::default() };
    let image = Image { data, endian, segments };
    for segment in segments {
        match segment.p_type(endian) {
            elf::PT_INTERP => facts.interpreter = Some(image.interpreter(segment)?),
            elf::PT_DYNAMIC => {
                facts.dynamic = true;
                image.dynamic(segment, &mut facts)?;
            }
            _ => {}
        }
    }
    Ok(facts)
}

/// A file whose parts are found by their virtual addresses, because section headers may be stripped or lie.
struct Image<'a, R> {
    data: R,
    endian: Endianness,
    segments: &'a [elf::ProgramHeader64<Endianness>],
}

impl<'a, R: ReadRef<'a>> Image<'a, R> {
    fn interpreter(&self, segment: &elf::ProgramHeader64<Endianness>) -> Result<String, ElfError> {
        let (offset, size) = segment.file_range(self.endian);
        if size > LONGEST {
            return Err(ElfError::Damaged("interpreter"));
        }
        let bytes = self.data.read_bytes_at(offset, size).map_err(|()| ElfError::Damaged("interpreter"))?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let start = segment.p_vaddr(self.endian);
            let inside = address.checked_sub(start)?;
            let loaded =
                segment.p_type(self.endian) == elf::PT_LOAD && inside < segment.p_filesz(self.endian);
            if loaded { segment.p_offset(self.endian).checked_add(inside) } else { None }
        })
    }

    fn dynamic(&self, segment: &elf::ProgramHeader64<Endianness>, facts: &mut Elf) -> Result<(), ElfError> {
        let entries = segment
            .dynamic(self.endian, self.data)
            .map_err(|_| ElfError::Damaged("dynamic section"))?
            .unwrap_or_default();
        let value = |tag| {
            let found = entries.iter().take(MOST).find(|entry| entry.tag(self.endian) == tag)?;
            Some(found.d_val(self.endian))
        };
        let Some(strings) = value(elf::DT_STRTAB).and_then(|address| self.offset(address)) else {
            return Ok(());
        };
        for entry in entries.iter().take(MOST) {
            match entry.tag(self.endian) {
                elf::DT_NULL => break,
                elf::DT_NEEDED => facts.needed.push(self.string(strings, entry.d_val(self.endian))?),
                _ => {}
            }
        }
        if let Some(at) = value(elf::DT_VERNEED).and_then(|address| self.offset(address)) {
            self.versions_needed(at, strings, facts)?;
        }
        if let Some(at) = value(elf::DT_VERDEF).and_then(|address| self.offset(address)) {
            self.versions_defined(at, strings, facts)?;
        }
        Ok(())
    }

    fn string(&self, table: u64, offset: u64) -> Result<String, ElfError> {
        let damaged = ElfError::Damaged("string table");
        let start = table.checked_add(offset).ok_or(damaged.clone())?;
        let length = self.data.len().map_err(|()| damaged.clone())?;
        let end = start.saturating_add(LONGEST).min(length);
        let bytes = self.data.read_bytes_at_until(start..end, 0).map_err(|()| damaged)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn record<const N: usize>(&self, at: u64) -> Result<[u32; N], ElfError> {
        let damaged = ElfError::Damaged("symbol versions");
        let bytes = self.data.read_bytes_at(at, 4 * N as u64).map_err(|()| damaged.clone())?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes(chunk.try_into().map_err(|_| damaged.clone())?);
        }
        Ok(words)
    }

    /// Elf64_Verneed: version and count (16 bit each), file, aux, next; Elf64_Vernaux: hash, flags and other, name,
    /// next. Offsets are relative to the record.
    fn versions_needed(&self, start: u64, strings: u64, facts: &mut Elf) -> Result<(), ElfError> {
        let (mut at, mut budget) = (start, MOST);
        while budget > 0 {
            budget -= 1;
            let [head, file, aux, next] = self.record::<4>(at)?;
            let library = self.string(strings, file.into())?;
            let versions = facts.versions_needed.entry(library).or_default();
            let mut entry = at.saturating_add(aux.into());
            for _ in 0..(head >> 16) {
                budget = budget.saturating_sub(1);
                let [_, _, name, following] = self.record::<4>(entry)?;
                versions.insert(self.string(strings, name.into())?);
                if following == 0 || budget == 0 {
                    break;
                }
                entry = entry.saturating_add(following.into());
            }
            if next == 0 {
                break;
            }
            at = at.saturating_add(next.into());
        }
        Ok(())
    }

    /// Elf64_Verdef: version and flags, index and count (16 bit each), hash, aux, next; Elf64_Verdaux: name, next.
    fn versions_defined(&self, start: u64, strings: u64, facts: &mut Elf) -> Result<(), ElfError> {
        let mut at = start;
        for _ in 0..MOST {
            let [_, _, _, aux, next] = self.record::<5>(at)?;
            let [name, _] = self.record::<2>(at.saturating_add(aux.into()))?;
            facts.versions_defined.insert(self.string(strings, name.into())?);
            if next == 0 {
                break;
            }
            at = at.saturating_add(next.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn reads_a_dynamic_program() {
        let elf = read(File::open(std::env::current_exe().unwrap()).unwrap()).unwrap();
        assert!(elf.is_native() && elf.dynamic && elf.interpreter.is_some() && !elf.is_musl());
        assert!(elf.needed.iter().any(|name| name == "libc.so.6"), "{:?}", elf.needed);
        assert!(elf.versions_needed["libc.so.6"].contains("GLIBC_2.34"));
        assert!(elf.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn reads_the_versions_that_a_library_defines() {
        let libc = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"];
        let path = libc.iter().find(|path| std::path::Path::new(path).exists()).unwrap();
        let elf = read(File::open(path).unwrap()).unwrap();
        assert!(elf.versions_defined.contains("GLIBC_2.2.5"));
    }

    #[test]
    fn refuses_what_is_no_elf() {
        for (bytes, error) in [
            (&b""[..], ElfError::NotElf),
            (b"#!/bin/sh\n", ElfError::NotElf),
            (b"\x7fELF", ElfError::NotElf),
            (b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0", ElfError::OtherClass("32-bit")),
            (b"\x7fELF\x02\x02\x01\0\0\0\0\0\0\0\0\0", ElfError::OtherClass("big-endian")),
            (b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0", ElfError::Damaged("header")),
        ] {
            assert_eq!(parse(bytes), Err(error));
        }
    }

    #[test]
    fn survives_damage_everywhere() {
        let shim = crate::preload::SHIM;
        assert!(parse(shim).unwrap().interpreter.is_none());
        // Every truncation and every single byte set to 0xff of a small file, and many of a large one.
        for end in 0..shim.len() {
            let _ = parse(&shim[..end]);
        }
        let mut small = shim.to_vec();
        for at in 0..small.len() {
            let old = std::mem::replace(&mut small[at], 0xff);
            let _ = parse(&small[..]);
            small[at] = old;
        }
        let mut large = own();
        for at in (0..large.len().min(8192)).step_by(3) {
            let old = std::mem::replace(&mut large[at], 0xff);
            let _ = parse(&large[..]);
            large[at] = old;
        }
    }

    #[test]
    fn a_loop_of_version_records_ends() {
        let mut bytes = [0u8; 64];
        bytes[2] = 1; // one entry
        bytes[8] = 16; // at the next record
        bytes[12] = 0; // no next
        bytes[28] = 0;
        let image = Image { data: &bytes[..], endian: Endianness::Little, segments: &[] };
        let mut facts = Elf::default();
        image.versions_needed(0, 40, &mut facts).unwrap();
        // An entry that points to itself by way of the end of the address space.
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let image = Image { data: &bytes[..], endian: Endianness::Little, segments: &[] };
        assert_eq!(image.versions_needed(0, 40, &mut facts), Err(ElfError::Damaged("symbol versions")));
    }
}
