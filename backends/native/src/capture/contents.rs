//! The image's files besides `core.json`: memory of processes and contents of objects. All are sparse: what is zero
//! costs nothing.

use stasis_plugin_api::error::{BackendError, Result, kind};
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE: usize = 4096;
/// What is read at once; it stays in the processor's cache until it is written.
const CHUNK: usize = 256 << 10;

/// From here on it is worth a thread.
const MUCH: u64 = 8 << 20;
/// The most threads that copy something.
const MOST_THREADS: usize = 4;

/// Gives bytes at an offset.
pub(crate) type Read<'a> = &'a (dyn Fn(u64, &mut [u8]) -> std::io::Result<()> + Sync);

/// One copy under way; threads take its chunks in turn.
struct Copying<'a> {
    output: &'a Output,
    at: u64,
    length: u64,
    read: Read<'a>,
    next: AtomicU64,
}

impl Copying<'_> {
    /// Copies by this thread and so many less one; the answer are the spans that are not zero.
    fn part(&self, buffer: &mut Vec<u8>, threads: usize) -> Result<Vec<(u64, u64)>> {
        std::thread::scope(|scope| {
            let other = || self.chunks(&mut vec![0; CHUNK]);
            // Where the number of tasks is limited this one does it alone.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, other).ok();
            let others: Vec<_> = (1..threads).map_while(spawn).collect();
            let mut told = self.chunks(buffer)?;
            for other in others {
                let part = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                told.extend(part?);
            }
            Ok(told)
        })
    }

    fn chunks(&self, buffer: &mut Vec<u8>) -> Result<Vec<(u64, u64)>> {
        let done = self.all(buffer);
        if done.is_err() {
            // Nobody needs the rest.
            self.next.store(self.length, Ordering::Relaxed);
        }
        done
    }

    fn all(&self, buffer: &mut Vec<u8>) -> Result<Vec<(u64, u64)>> {
        let mut told: Vec<(u64, u64)> = Vec::new();
        loop {
            let done = self.next.fetch_add(CHUNK as u64, Ordering::Relaxed);
            if done >= self.length {
                return Ok(told);
            }
            if crate::sys::process::asked_to_end() {
                return Err(BackendError::new(kind::CANCELLED, "the capture was told to end"));
            }
            let size = usize::try_from(self.length - done).unwrap_or(CHUNK).min(CHUNK);
            buffer.resize(CHUNK, 0);
            let chunk = buffer.get_mut(..size).unwrap_or(&mut []);
            (self.read)(done, chunk).map_err(|error| {
                BackendError::failed("a part of the application's memory or files cannot be read")
                    .because(error)
            })?;
            for (from, to) in spans(chunk) {
                self.output.write(chunk.get(from..to).unwrap_or(&[]), self.at + done + from as u64)?;
                told.push((done + from as u64, (to - from) as u64));
            }
        }
    }
}

/// The directory of an image that is being written.
#[derive(Debug)]
pub(crate) struct Contents {
    directory: PathBuf,
    files: u32,
    buffer: Vec<u8>,
    /// Bytes written, without holes.
    pub(crate) written: u64,
    /// Nothing is read and nothing written: only whether it could be saved is asked.
    dry: bool,
}

/// A write that failed.
pub(crate) fn unwritable(path: &Path, error: &Error) -> BackendError {
    let full =
        [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge].contains(&error.kind());
    let kind = if full { kind::NO_SPACE } else { kind::FAILED };
    BackendError::new(kind, format!("{} cannot be written", path.display())).because(error)
}

impl Contents {
    /// In a directory that exists and is empty.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let files = directory.join("files");
        std::fs::create_dir_all(&files).map_err(|error| unwritable(&files, &error))?;
        Ok(Self { directory: directory.to_owned(), files: 0, buffer: vec![0; CHUNK], written: 0, dry: false })
    }

    /// Keeps nothing.
    pub(crate) fn dry() -> Self {
        Self { directory: PathBuf::new(), files: 0, buffer: Vec::new(), written: 0, dry: true }
    }

    pub(crate) fn is_dry(&self) -> bool {
        self.dry
    }

    pub(crate) fn create(&self, name: &str) -> Result<Output> {
        let path = self.directory.join(name);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(|error| unwritable(&path, &error))?;
        Ok(Output { file, path })
    }

    /// A new `files/<n>`, and n.
    fn next(&mut self) -> Result<(u32, Output)> {
        let number = self.files;
        self.files += 1;
        Ok((number, self.create(&format!("files/{number}"))?))
    }

    /// Keeps these bytes; n of `files/<n>`.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<u32> {
        if self.dry {
            return Ok(0);
        }
        let (number, output) = self.next()?;
        output.write(bytes, 0)?;
        self.written += bytes.len() as u64;
        Ok(number)
    }

    /// Keeps `length` bytes that `read` gives at any offset, and says which n of `files/<n>` they are.
    pub(crate) fn stream(&mut self, length: u64, read: Read<'_>) -> Result<u32> {
        if self.dry {
            return Ok(0);
        }
        let (number, output) = self.next()?;
        output.resize(length)?;
        self.copy(&output, 0, length, &mut |_, _| {}, read)?;
        Ok(number)
    }

    /// Copies `length` bytes to `at` of the output, leaving zero pages out. `kept` is told every span, relative to
    /// the beginning and in its order, that is not zero. Much is copied by several threads.
    pub(crate) fn copy(
        &mut self,
        output: &Output,
        at: u64,
        length: u64,
        kept: &mut dyn FnMut(u64, u64),
        read: Read<'_>,
    ) -> Result<()> {
        let threads = match length {
            ..MUCH => 1,
            _ => std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS),
        };
        let copying = Copying { output, at, length, read, next: AtomicU64::new(0) };
        let mut told = copying.part(&mut self.buffer, threads)?;
        told.sort_unstable();
        for (from, size) in told {
            kept(from, size);
            self.written += size;
        }
        Ok(())
    }

    /// Writes the description, last of all.
    pub(crate) fn describe(&self, image: &crate::model::Image) -> Result<()> {
        let text = serde_json::to_vec(image)
            .map_err(|error| BackendError::failed("the image cannot be described").because(error))?;
        self.create("core.json")?.write(&text, 0)
    }
}

/// A file of the image.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(|error| unwritable(&self.path, &error))
    }

    pub(crate) fn resize(&self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(|error| unwritable(&self.path, &error))
    }
}

/// The parts of a chunk, in whole pages, that are not zero.
pub(crate) fn spans(chunk: &[u8]) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (index, page) in chunk.chunks(PAGE).enumerate() {
        if zero(page) {
            continue;
        }
        let from = index * PAGE;
        match found.last_mut() {
            Some((_, to)) if *to == from => *to += page.len(),
            _ => found.push((from, from + page.len())),
        }
    }
    found
}

fn zero(bytes: &[u8]) -> bool {
    // Blocks that the compiler turns into wide comparisons.
    bytes.chunks(128).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_left_out() {
        let mut chunk = vec![0_u8; 5 * PAGE + 10];
        chunk[PAGE + 7] = 1;
        chunk[2 * PAGE] = 1;
        chunk[5 * PAGE + 9] = 1;
        assert_eq!(spans(&chunk), [(PAGE, 3 * PAGE), (5 * PAGE, 5 * PAGE + 10)]);
        assert_eq!(spans(&[0; PAGE]), []);
    }
}
