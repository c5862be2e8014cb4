//! BLAKE3 of files, by all processors at once, and the values of the parts that it is made of.
//!
//! BLAKE3 is a tree: the values of its parts are what the hash of the whole is made from, so that both cost one pass
//! and everybody's `b3sum` says the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use serde::{Deserialize, Serialize};

/// The size of a part, where there are not too many of it.
const PART: u64 = 4 << 20;
/// The most parts of one file.
const MOST_PARTS: u64 = 4096;
/// The most threads that hash one file.
const MOST_THREADS: usize = 4;
const BUFFER: usize = 1 << 20;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hashed {
    /// 64 hexadecimal digits.
    pub(crate) blake3: String,
    pub(crate) size: u64,
    /// Of a file that has several.
    pub(crate) parts: Option<Parts>,
}

/// The parts of a file, by their values in the BLAKE3 tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Bytes of each but the last; a power of two.
    pub size: u64,
    /// 64 hexadecimal digits each.
    pub blake3: Vec<String>,
}

impl Parts {
    /// The first bytes at which the content is another one, from and to, where both tell.
    pub(crate) fn difference(&self, other: &Self, size: u64) -> Option<(u64, u64)> {
        let same = self.size == other.size && self.blake3.len() == other.blake3.len();
        let mut pairs = self.blake3.iter().zip(&other.blake3).filter(|_| same);
        let index = pairs.position(|(one, other)| !one.eq_ignore_ascii_case(other))? as u64;
        Some((index * self.size, ((index + 1) * self.size).min(size)))
    }
}

fn part_size(size: u64) -> u64 {
    let mut part = PART;
    while size.div_ceil(part) > MOST_PARTS {
        part *= 2;
    }
    part
}

/// Hashes a file. `read_on` is told how many bytes more were read; an error of its ends it.
pub(crate) fn hash(file: &File, mut read_on: impl FnMut(u64) -> io::Result<()>) -> io::Result<Hashed> {
    let size = file.metadata()?.len();
    let part = part_size(size);
    let hashed =
        if size <= part { whole(file, &mut read_on)? } else { by_parts(file, size, part, &mut read_on)? };
    // Somebody may write to it still.
    let size = file.metadata()?.len();
    Ok(Hashed { size, ..hashed })
}

fn whole(file: &File, read_on: &mut dyn FnMut(u64) -> io::Result<()>) -> io::Result<Hashed> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read_at(&mut buffer, hasher.count()) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(buffer.get(..read).unwrap_or(&[]));
                read_on(read as u64)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Hashed { blake3: hasher.finalize().to_hex().to_string(), size: hasher.count(), parts: None })
}

/// What a thread tells: so many bytes more, or the value of a part.
enum Told {
    Read(u64),
    Part(usize, ChainingValue),
    Failed(io::Error),
}

fn by_parts(
    file: &File,
    size: u64,
    part: u64,
    read_on: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<Hashed> {
    let count = usize::try_from(size.div_ceil(part)).unwrap_or(usize::MAX);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut values: Vec<ChainingValue> = vec![[0; 32]; count];
    let mut helping = 0;
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for _ in 0..threads.min(count) {
            let tell = tell.clone();
            let (next, stop) = (&next, &stop);
            let work = move || {
                let mut buffer = vec![0; BUFFER];
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let from = index as u64 * part;
                    let read = |bytes| tell.send(Told::Read(bytes)).map_err(io::Error::other);
                    let done = one_part(file, from, (from + part).min(size), &mut buffer, &read);
                    // Nobody listens after an error.
                    let _ = tell.send(done.map_or_else(Told::Failed, |value| Told::Part(index, value)));
                }
            };
            helping += usize::from(std::thread::Builder::new().spawn_scoped(scope, work).is_ok());
        }
        drop(tell);
        let heard = told.into_iter().try_for_each(|word| match word {
            Told::Read(bytes) => read_on(bytes),
            Told::Failed(error) => Err(error),
            Told::Part(index, value) => {
                if let Some(place) = values.get_mut(index) {
                    *place = value;
                }
                Ok(())
            }
        });
        stop.store(heard.is_err(), Ordering::Relaxed);
        heard
    })?;
    if helping == 0 {
        // The number of tasks is limited: this one does it alone, and the parts stay unknown.
        return whole(file, read_on);
    }
    let parts = Parts { size: part, blake3: values.iter().map(hex).collect() };
    Ok(Hashed { blake3: root(&values, part, size), size, parts: Some(parts) })
}

fn one_part(
    file: &File,
    from: u64,
    to: u64,
    buffer: &mut [u8],
    read_on: &dyn Fn(u64) -> io::Result<()>,
) -> io::Result<ChainingValue> {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(from);
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(buffer.len()).min(buffer.len());
        let bytes = buffer.get_mut(..length).unwrap_or(&mut []);
        file.read_exact_at(bytes, at)?;
        hasher.update(bytes);
        at += length as u64;
        read_on(length as u64)?;
    }
    Ok(hasher.finalize_non_root())
}

/// The hash of the whole, from at least two parts.
fn root(values: &[ChainingValue], part: u64, size: u64) -> String {
    let (left, right) = halves(values, part, size);
    merge_subtrees_root(&left, &right, Mode::Hash).to_hex().to_string()
}

fn node(values: &[ChainingValue], part: u64, size: u64) -> ChainingValue {
    match values {
        [one] => *one,
        more => {
            let (left, right) = halves(more, part, size);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

fn halves(values: &[ChainingValue], part: u64, size: u64) -> (ChainingValue, ChainingValue) {
    let first = left_subtree_len(size);
    let count = usize::try_from(first / part).unwrap_or(values.len()).min(values.len());
    let (left, right) = values.split_at(count);
    (node(left, part, first), node(right, part, size - first))
}

fn hex(value: &ChainingValue) -> String {
    blake3::Hash::from_bytes(*value).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(size: u64) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..size).map(|n| ((n * n) >> 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn the_hash_is_everybodys_whatever_the_size() {
        for size in
            [0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1023, 3 * PART, 5 * PART + 7, 8 * PART]
        {
            let (file, bytes) = file(size);
            let mut read = 0;
            let hashed = hash(&file, |more| {
                read += more;
                Ok(())
            });
            let hashed = hashed.unwrap();
            assert_eq!(hashed.blake3, blake3::hash(&bytes).to_hex().to_string(), "{size}");
            assert_eq!((hashed.size, read), (size, size));
            assert_eq!(
                hashed.parts.map_or(0, |parts| parts.blake3.len() as u64),
                if size > PART { size.div_ceil(PART) } else { 0 }
            );
        }
        assert_eq!((part_size(PART * MOST_PARTS), part_size(PART * MOST_PARTS + 1)), (PART, 2 * PART));
    }

    #[test]
    fn a_difference_is_found_in_its_part() {
        let (file, _) = file(3 * PART + 5);
        let parts = || hash(&file, |_| Ok(())).unwrap().parts.unwrap();
        let before = parts();
        assert_eq!(before.difference(&parts(), 3 * PART + 5), None);
        file.write_all_at(b"x", 3 * PART + 4).unwrap();
        assert_eq!(before.difference(&parts(), 3 * PART + 5), Some((3 * PART, 3 * PART + 5)));
        file.write_all_at(b"xyz", PART + 1).unwrap();
        assert_eq!(before.difference(&parts(), 3 * PART + 5), Some((PART, 2 * PART)));
    }

    #[test]
    fn whoever_listens_can_end_it() {
        let (file, _) = file(9 * PART);
        let mut heard = 0;
        let ended = hash(&file, |_| {
            heard += 1;
            if heard > 2 { Err(io::Error::other("enough")) } else { Ok(()) }
        });
        assert_eq!(ended.unwrap_err().to_string(), "enough");
        assert_eq!(heard, 3);
    }
}
