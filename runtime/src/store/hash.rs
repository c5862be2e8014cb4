//! BLAKE3 of files, by several processors at once, and the values of the parts that they are made of.
//!
//! BLAKE3 is a tree: the values of its parts are what the hash of the whole is made from, so that both cost one pass
//! and everybody's `b3sum` says the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::Builder;

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use serde::{Deserialize, Serialize};

use super::Result;
use super::error::StoreError;
use super::layout::DirHandle;

/// The size of a part, where there are not too many of it.
const PART: u64 = 4 << 20;
/// The most parts of one file.
const MOST_PARTS: u64 = 4096;
/// The most threads that hash at once.
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
        let (mut one, mut other) = (self.clone(), other.clone());
        while one.size < other.size {
            one = one.coarser()?;
        }
        while other.size < one.size {
            other = other.coarser()?;
        }
        let same = one.size == other.size && one.blake3.len() == other.blake3.len();
        let mut pairs = one.blake3.iter().zip(&other.blake3).filter(|_| same);
        let index = pairs.position(|(one, other)| !one.eq_ignore_ascii_case(other))? as u64;
        Some((index * one.size, ((index + 1) * one.size).min(size)))
    }

    /// The same file in parts of twice the size; `None` when there is only one then.
    pub(crate) fn coarser(&self) -> Option<Self> {
        let pair = |pair: &[String]| match pair {
            [left, right] => {
                let value = |text: &str| blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes());
                Some(hex(&merge_subtrees_non_root(&value(left)?, &value(right)?, Mode::Hash)))
            }
            // The last one, which has none beside it, is its own subtree at every height.
            alone => alone.first().cloned(),
        };
        let blake3: Vec<String> = self.blake3.chunks(2).map(pair).collect::<Option<_>>()?;
        Some(Self { size: self.size.checked_mul(2)?, blake3 }).filter(|parts| parts.blake3.len() > 1)
    }
}

fn part_size(size: u64) -> u64 {
    let mut part = PART;
    while size.div_ceil(part) > MOST_PARTS {
        part *= 2;
    }
    part
}

/// What is heard while files are hashed.
#[derive(Debug)]
pub(crate) enum Heard {
    /// So many bytes more were read.
    Read(u64),
    /// The file of this index is done.
    File(usize, Hashed),
}

/// Hashes files of `dir`, which are given with their sizes: one pool of threads for the parts of all of them. An error of
/// `hear` ends it.
///
/// # Errors
/// Also for a file of another size, or whose size changes meanwhile.
pub(crate) fn hash_files(
    dir: &DirHandle,
    files: &[(&Path, u64)],
    hear: &mut dyn FnMut(Heard) -> Result<()>,
) -> Result<()> {
    hash_by(Builder::new, dir, files, hear)
}

fn hash_by(
    thread: fn() -> Builder,
    dir: &DirHandle,
    files: &[(&Path, u64)],
    hear: &mut dyn FnMut(Heard) -> Result<()>,
) -> Result<()> {
    let pool = Pool::new(dir, files);
    let mut begun = BTreeMap::new();
    let mut gather = |done: Result<Done>| pool.gather(&mut begun, done?, hear);
    // Asking how many there are means reading the cgroups' files: as long as a small file takes.
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if pool.parts > 1 { processors().min(MOST_THREADS) } else { 0 };
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for _ in 0..threads {
            let (pool, tell) = (&pool, tell.clone());
            // Nobody listens after an error.
            let work = move || drop(pool.work(&mut |done| tell.send(done)));
            // Where the number of tasks is limited, those that there are do it.
            if thread().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        drop(tell);
        let heard = told.into_iter().try_for_each(&mut gather);
        pool.stop.store(heard.is_err(), Ordering::Relaxed);
        heard
    })?;
    // What no other thread has done.
    pool.work(&mut gather)
}

/// All parts of all files, and how far they are.
struct Pool<'a> {
    dir: &'a DirHandle,
    files: &'a [(&'a Path, u64)],
    /// How many parts are before those of each file.
    before: Vec<u64>,
    parts: u64,
    next: AtomicU64,
    stop: AtomicBool,
}

/// A part of a file.
#[derive(Debug, Clone, Copy)]
struct Part {
    file: usize,
    index: usize,
    from: u64,
    to: u64,
}

/// A part and its value, or the hash of a file that is one part.
type Done = (Part, ChainingValue);

/// The values of a file's parts, and how many of them are not there yet.
type Begun = (usize, Vec<ChainingValue>);

impl<'a> Pool<'a> {
    fn new(dir: &'a DirHandle, files: &'a [(&'a Path, u64)]) -> Self {
        let mut parts = 0;
        let mut before = Vec::with_capacity(files.len());
        for (_, size) in files {
            before.push(parts);
            // An empty one has to be there, too.
            parts += size.div_ceil(part_size(*size)).max(1);
        }
        Self { dir, files, before, parts, next: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    fn take(&self) -> Option<Part> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.parts || self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let file = self.before.partition_point(|before| *before <= number).checked_sub(1)?;
        let (size, index) = (self.files.get(file)?.1, number - self.before.get(file)?);
        let from = index * part_size(size);
        let to = from.saturating_add(part_size(size)).min(size);
        Some(Part { file, index: usize::try_from(index).ok()?, from, to })
    }

    /// Does part after part, until none is left or nobody wants to hear of them.
    fn work<E>(&self, tell: &mut dyn FnMut(Result<Done>) -> Result<(), E>) -> Result<(), E> {
        let mut open = None;
        let mut buffer = Vec::new();
        while let Some(part) = self.take() {
            // As much as is needed: making room in memory costs more than hashing a small file.
            let most = usize::try_from(part.to - part.from).unwrap_or(BUFFER).min(BUFFER);
            if buffer.len() < most {
                buffer.resize(most, 0);
            }
            tell(self.hash(part, &mut open, &mut buffer).map(|value| (part, value)))?;
        }
        Ok(())
    }

    /// `open` is the file of the part before, which is this one's mostly.
    fn hash(&self, part: Part, open: &mut Option<(usize, File)>, buffer: &mut [u8]) -> Result<ChainingValue> {
        let Some(&(relative, size)) = self.files.get(part.file) else { return Ok([0; 32]) };
        let path = self.dir.path().join(relative);
        let failed = |error| StoreError::io("read", &path, error);
        let file = match open {
            Some((of, file)) if *of == part.file => file,
            _ => &mut open.insert((part.file, self.dir.open_regular(relative)?.0)).1,
        };
        let mut hasher = Hasher::new();
        hasher.set_input_offset(part.from);
        let mut at = part.from;
        while at < part.to {
            let length = usize::try_from(part.to - at).unwrap_or(buffer.len()).min(buffer.len());
            let bytes = buffer.get_mut(..length).unwrap_or(&mut []);
            match file.read_exact_at(bytes, at) {
                // Told below.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                read => read.map_err(failed)?,
            }
            hasher.update(bytes);
            at += length as u64;
        }
        // Somebody may write to it still.
        let now = file.metadata().map_err(failed)?.len();
        if now != size || at != part.to {
            return Err(StoreError::damaged(&path, format!("it has {now} bytes instead of {size}")));
        }
        let alone = part.from == 0 && part.to == size;
        Ok(if alone { *hasher.finalize().as_bytes() } else { hasher.finalize_non_root() })
    }

    fn gather(
        &self,
        begun: &mut BTreeMap<usize, Begun>,
        (part, value): Done,
        hear: &mut dyn FnMut(Heard) -> Result<()>,
    ) -> Result<()> {
        hear(Heard::Read(part.to - part.from))?;
        let Some(&(_, size)) = self.files.get(part.file) else { return Ok(()) };
        let length = part_size(size);
        let count = usize::try_from(size.div_ceil(length)).unwrap_or(usize::MAX);
        if count <= 1 {
            return hear(Heard::File(part.file, Hashed { blake3: hex(&value), size, parts: None }));
        }
        let (missing, values) = begun.entry(part.file).or_insert_with(|| (count, vec![[0; 32]; count]));
        if let Some(place) = values.get_mut(part.index) {
            *place = value;
        }
        *missing -= 1;
        if *missing > 0 {
            return Ok(());
        }
        let (_, values) = begun.remove(&part.file).unwrap_or_default();
        let parts = Parts { size: length, blake3: values.iter().map(hex).collect() };
        hear(Heard::File(part.file, Hashed { blake3: root(&values, length, size), size, parts: Some(parts) }))
    }
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
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::store::testing::no_thread;

    fn dir() -> (tempfile::TempDir, DirHandle) {
        let temp = tempfile::tempdir().unwrap();
        let handle = DirHandle::open_or_make(temp.path()).unwrap();
        (temp, handle)
    }

    fn bytes(size: u64) -> Vec<u8> {
        (0..size).map(|n| ((n * n) >> 7) as u8).collect()
    }

    /// By the threads that can be had; the sum of what was read beside it.
    fn hashed(
        thread: fn() -> Builder,
        dir: &DirHandle,
        files: &[(&Path, u64)],
    ) -> Result<(Vec<Hashed>, u64)> {
        let mut all = vec![None; files.len()];
        let mut sum = 0;
        hash_by(thread, dir, files, &mut |heard| {
            match heard {
                Heard::Read(more) => sum += more,
                Heard::File(index, hashed) => assert_eq!(all[index].replace(hashed), None),
            }
            Ok(())
        })?;
        Ok((all.into_iter().map(Option::unwrap).collect(), sum))
    }

    #[test]
    fn the_hash_is_everybodys_whatever_the_size_and_whoever_makes_it() {
        let (temp, dir) = dir();
        let sizes =
            [0, 1, PART - 1, PART, PART + 1, 2 * PART, 0, 2 * PART + 1023, 3 * PART, 5 * PART + 7, 8 * PART];
        let names: Vec<PathBuf> = (0..sizes.len()).map(|n| PathBuf::from(n.to_string())).collect();
        let files: Vec<(&Path, u64)> = names.iter().map(PathBuf::as_path).zip(sizes).collect();
        for (name, size) in &files {
            fs::write(temp.path().join(name), bytes(*size)).unwrap();
        }
        for thread in [Builder::new, no_thread] {
            let (all, read) = hashed(thread, &dir, &files).unwrap();
            assert_eq!(read, sizes.iter().sum::<u64>());
            for (hashed, size) in all.into_iter().zip(sizes) {
                assert_eq!(hashed.blake3, blake3::hash(&bytes(size)).to_hex().to_string(), "{size}");
                assert_eq!(hashed.size, size);
                assert_eq!(
                    hashed.parts.map_or(0, |parts| parts.blake3.len() as u64),
                    if size > PART { size.div_ceil(PART) } else { 0 }
                );
            }
        }
        assert_eq!((part_size(PART * MOST_PARTS), part_size(PART * MOST_PARTS + 1)), (PART, 2 * PART));
    }

    fn parts(dir: &DirHandle, size: u64) -> Parts {
        hashed(Builder::new, dir, &[(Path::new("a"), size)]).unwrap().0.remove(0).parts.unwrap()
    }

    #[test]
    fn a_difference_is_found_in_its_part() {
        let (temp, dir) = dir();
        let size = 3 * PART + 5;
        fs::write(temp.path().join("a"), bytes(size)).unwrap();
        let file = fs::OpenOptions::new().write(true).open(temp.path().join("a")).unwrap();
        let before = parts(&dir, size);
        assert_eq!(before.difference(&parts(&dir, size), size), None);
        file.write_all_at(b"x", size - 1).unwrap();
        assert_eq!(before.difference(&parts(&dir, size), size), Some((3 * PART, size)));
        let twice = before.coarser().unwrap();
        assert_eq!(twice.difference(&parts(&dir, size), size), Some((2 * PART, size)));
        assert_eq!(parts(&dir, size).difference(&twice, size), Some((2 * PART, size)));
        file.write_all_at(b"xyz", PART + 1).unwrap();
        assert_eq!(before.difference(&parts(&dir, size), size), Some((PART, 2 * PART)));
        assert_eq!(twice.difference(&parts(&dir, size), size), Some((0, 2 * PART)));
    }

    #[test]
    fn coarser_parts_are_of_the_same_tree() {
        let (temp, dir) = dir();
        for size in [2 * PART + 9, 5 * PART, 7 * PART + 1, 8 * PART] {
            let bytes = bytes(size);
            fs::write(temp.path().join("a"), &bytes).unwrap();
            let mut parts = parts(&dir, size);
            while let Some(coarser) = parts.coarser() {
                assert_eq!(
                    (coarser.size, coarser.blake3.len()),
                    (2 * parts.size, parts.blake3.len().div_ceil(2))
                );
                parts = coarser;
                let values: Vec<ChainingValue> = parts
                    .blake3
                    .iter()
                    .map(|text| *blake3::Hash::from_hex(text).unwrap().as_bytes())
                    .collect();
                let whole = root(&values, parts.size, size);
                assert_eq!(whole, blake3::hash(&bytes).to_hex().to_string(), "{size}");
            }
            assert_eq!(parts.blake3.len(), 2, "{size}");
        }
        // Anybody may have written them.
        for size in [0, 3, u64::MAX] {
            let hostile = Parts { size, blake3: vec!["x".to_owned(); 9] };
            assert_eq!((hostile.coarser(), hostile.difference(&parts(&dir, 8 * PART), 9)), (None, None));
        }
    }

    #[test]
    fn whoever_listens_can_end_it() {
        let (temp, dir) = dir();
        fs::write(temp.path().join("a"), bytes(9 * PART)).unwrap();
        for thread in [Builder::new, no_thread] {
            let mut heard = 0;
            let ended = hash_by(thread, &dir, &[(Path::new("a"), 9 * PART)], &mut |_| {
                heard += 1;
                if heard > 2 { Err(StoreError::damaged(Path::new("a"), "enough")) } else { Ok(()) }
            });
            assert_eq!(ended.unwrap_err().to_string(), "a is damaged: enough");
            assert_eq!(heard, 3);
        }
    }

    #[test]
    fn a_file_of_another_size_is_none_of_these() {
        let (temp, dir) = dir();
        fs::write(temp.path().join("a"), bytes(2 * PART + 5)).unwrap();
        fs::write(temp.path().join("b"), "b").unwrap();
        let told = |a: u64| {
            let told = hashed(Builder::new, &dir, &[(Path::new("b"), 1), (Path::new("a"), a)]).map(|_| ());
            told.unwrap_err().to_string().replace(temp.path().to_str().unwrap(), "/tmp")
        };
        assert_eq!(told(5), "/tmp/a is damaged: it has 8388613 bytes instead of 5");
        assert_eq!(told(2 * PART + 6), "/tmp/a is damaged: it has 8388613 bytes instead of 8388614");
        assert_eq!(told(40 * PART), "/tmp/a is damaged: it has 8388613 bytes instead of 167772160");
        fs::remove_file(temp.path().join("a")).unwrap();
        assert_eq!(told(5), "cannot open /tmp/a: it does not exist");
    }
}
