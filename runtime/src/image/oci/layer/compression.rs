//! A layer without its compression. What it is, its first bytes say: media types are often wrong.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
/// A window of 128 MiB, which is what the format's own tools take without being told.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What came in may become so many times as much, beyond the first gibibytes. No honest layer shrinks to less.
const RATIO: u64 = 100;
/// A small layer may hold a file full of zeroes.
const FREE: u64 = 8 << 30;
/// Enough for every one of the marks above.
const HEAD: usize = 6;

/// The decoded bytes of `inner`. Whatever it says of itself, it does not become more than a hundred times what really
/// came in, beyond 8 GiB.
///
/// # Errors
/// What the reader says, or a compression that is not known.
pub(crate) fn decoded<'a>(mut inner: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = [0; HEAD];
    let length = fill(&mut inner, &mut head)?;
    let whole = io::Cursor::new(head).take(length as u64).chain(inner);
    let received = Rc::new(Cell::new(0));
    let counted = Counted { inner: whole, received: Rc::clone(&received) };
    let buffered = BufReader::with_capacity(64 << 10, counted);
    let bounded = |decoder| Bounded { inner: decoder, passed: 0, received, free: FREE };
    let head = &head[..length];
    if head.starts_with(GZIP) {
        return Ok(Box::new(bounded(Box::new(MultiGzDecoder::new(buffered)))));
    }
    // Skippable frames may stand before the first one.
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18];
    if head.starts_with(ZSTD) || skippable {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(bounded(Box::new(decoder))));
    }
    for (magic, name) in [(BZIP2, "bzip2"), (XZ, "xz")] {
        if head.starts_with(magic) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("it is compressed with {name}, and only gzip and zstd are understood"),
            ));
        }
    }
    Ok(Box::new(buffered))
}

/// The first bytes, however few of them a reader hands out at a time.
fn fill(inner: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match inner.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

struct Counted<R> {
    inner: R,
    received: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.received.set(self.received.get() + n as u64);
        Ok(n)
    }
}

struct Bounded<'a> {
    inner: Box<dyn Read + 'a>,
    passed: u64,
    received: Rc<Cell<u64>>,
    free: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.passed += n as u64;
        if self.passed > self.received.get().saturating_mul(RATIO).saturating_add(self.free) {
            return Err(io::Error::other(format!(
                "it has become more than {RATIO} times its size, as archives do that are made to fill a disk"
            )));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// Hands out one byte at a time, as a connection may.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(1);
            self.0.read(&mut buffer[..most])
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn few_bytes_at_a_time_are_recognized() {
        for packed in [gzip(b"content"), zstd::encode_all(&b"content"[..], 1).unwrap(), b"content".to_vec()] {
            let mut out = String::new();
            decoded(Slow(&packed)).unwrap().read_to_string(&mut out).unwrap();
            assert_eq!(out, "content");
        }
        let mut out = String::new();
        decoded(Slow(b"c")).unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(out, "c");
    }

    #[test]
    fn what_came_in_bounds_what_comes_out() {
        let packed = gzip(&vec![0; 1 << 20]);
        let received = Rc::new(Cell::new(0));
        let counted = Counted { inner: &packed[..], received: Rc::clone(&received) };
        let inner = Box::new(MultiGzDecoder::new(BufReader::new(counted)));
        let mut bounded = Bounded { inner, passed: 0, received, free: 0 };
        let told = io::copy(&mut bounded, &mut io::sink()).unwrap_err().to_string();
        insta::assert_snapshot!(told, @"it has become more than 100 times its size, as archives do that are made to fill a disk");
    }
}
