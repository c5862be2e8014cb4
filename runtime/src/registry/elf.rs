//! Is this a shared library that this program can load: a look at the ELF header and at the extents of the
//! segments, before the dynamic loader maps a file that ends too early and dies of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::config::error::in_words;

/// What a file is instead of a loadable library, in words that follow "PATH is ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// No ELF file at all.
    #[error("not an ELF shared library")]
    NotElf,
    /// Of another word size.
    #[error("a {0}-bit library, this program is 64-bit")]
    Bits(u8),
    /// For another processor or byte order.
    #[error("a library for {found}, this program runs on {ours}", ours = std::env::consts::ARCH)]
    Machine {
        /// The processor, in words.
        found: String,
    },
    /// An ELF file of another type.
    #[error("{0}, not a shared library")]
    Type(&'static str),
    /// It ends before its segments do.
    #[error("cut short: {size} bytes of at least {needed}")]
    Truncated {
        /// In bytes.
        size: u64,
        /// In bytes.
        needed: u64,
    },
    /// The kernel did not let us read it.
    #[error("not readable: {0}")]
    Read(String),
}

const HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
/// Where `e_machine` says this processor.
const OURS: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else if cfg!(target_arch = "riscv64") {
    243
} else {
    0
};

/// Checks `file`; its offset is not moved.
pub(crate) fn check(file: &File) -> Result<(), ElfError> {
    let read = |error: io::Error| ElfError::Read(in_words(&error));
    let size = file.metadata().map_err(read)?.len();
    let mut header = [0; HEADER];
    let have = read_at(file, &mut header, 0).map_err(read)?;
    if have < 6 || !header.starts_with(b"\x7fELF") {
        return Err(ElfError::NotElf);
    }
    if header[4] != 2 {
        return Err(ElfError::Bits(if header[4] == 1 { 32 } else { 0 }));
    }
    if header[5] != if cfg!(target_endian = "little") { 1 } else { 2 } {
        return Err(ElfError::Machine { found: "the other byte order".to_owned() });
    }
    if have < HEADER {
        return Err(ElfError::Truncated { size, needed: HEADER as u64 });
    }
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    if OURS != 0 && half(18) != OURS {
        return Err(ElfError::Machine { found: machine(half(18)) });
    }
    match half(16) {
        ET_DYN => {}
        ET_EXEC => return Err(ElfError::Type("a program")),
        _ => return Err(ElfError::Type("an object file")),
    }
    let needed = extent(file, &header, size).map_err(read)?;
    if needed > size { Err(ElfError::Truncated { size, needed }) } else { Ok(()) }
}

/// The end of the furthest segment or of the table that lists them, in bytes.
fn extent(file: &File, header: &[u8; HEADER], size: u64) -> io::Result<u64> {
    let start = word(header, 32);
    let count = u64::from(u16::from_ne_bytes([header[56], header[57]]));
    let mut needed = start.saturating_add(count * PROGRAM_HEADER);
    for index in 0..count {
        let at = start.saturating_add(index * PROGRAM_HEADER);
        if at.saturating_add(PROGRAM_HEADER) > size {
            break;
        }
        let mut entry = [0; PROGRAM_HEADER as usize];
        read_at(file, &mut entry, at)?;
        if u32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]) == PT_LOAD {
            needed = needed.max(word(&entry, 8).saturating_add(word(&entry, 32)));
        }
    }
    Ok(needed)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(found) = bytes.get(at..at + 8) {
        word.copy_from_slice(found);
    }
    u64::from_ne_bytes(word)
}

/// As many bytes as there are.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn machine(number: u16) -> String {
    match number {
        3 => "x86".to_owned(),
        21 => "powerpc64".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        other => format!("ELF machine {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn verdict(bytes: &[u8]) -> Result<(), ElfError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check(&file)
    }

    /// A header with one segment that covers `end` bytes.
    fn library(end: u64) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&ET_DYN.to_ne_bytes());
        bytes[18..20].copy_from_slice(&OURS.to_ne_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_ne_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_ne_bytes());
        bytes[64..68].copy_from_slice(&PT_LOAD.to_ne_bytes());
        bytes[96..104].copy_from_slice(&end.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_library_passes_and_a_cut_one_does_not() {
        assert_eq!(verdict(&library(120)), Ok(()));
        assert_eq!(verdict(&library(121)), Err(ElfError::Truncated { size: 120, needed: 121 }));
        assert_eq!(verdict(&library(120)[..100]), Err(ElfError::Truncated { size: 100, needed: 120 }));
        assert_eq!(verdict(&library(120)[..20]), Err(ElfError::Truncated { size: 20, needed: 64 }));
        assert_eq!(
            verdict(&library(u64::MAX)).unwrap_err(),
            ElfError::Truncated { size: 120, needed: u64::MAX }
        );
    }

    #[test]
    fn what_is_no_library_of_ours_is_told_in_one_line() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = library(120);
            bytes[at] = byte;
            verdict(&bytes).unwrap_err().to_string()
        };
        assert_eq!(verdict(b"#!/bin/sh\n"), Err(ElfError::NotElf));
        assert_eq!(verdict(b""), Err(ElfError::NotElf));
        insta::assert_snapshot!(changed(4, 1), @"a 32-bit library, this program is 64-bit");
        insta::assert_snapshot!(changed(16, 2), @"a program, not a shared library");
        insta::assert_snapshot!(changed(16, 1), @"an object file, not a shared library");
        let foreign = changed(18, if OURS == 183 { 62 } else { 183 });
        assert!(
            foreign.starts_with("a library for ") && foreign.contains(std::env::consts::ARCH),
            "{foreign}"
        );
    }
}
