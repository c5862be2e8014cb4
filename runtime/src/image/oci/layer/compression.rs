//! A layer without its compression. What it is, its first bytes say: media types are often wrong.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
/// A window of 128 MiB, which is what the format's own tools take without being told.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The decoded bytes of `inner`.
///
/// # Errors
/// What the reader says, or a compression that is not known.
pub(crate) fn decoded<'a>(inner: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut inner = BufReader::with_capacity(64 << 10, inner);
    let head = peek(&mut inner)?;
    if head.starts_with(GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(inner)));
    }
    // Skippable frames may stand before the first one.
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18];
    if head.starts_with(ZSTD) || skippable {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(inner)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    for (magic, name) in [(BZIP2, "bzip2"), (XZ, "xz")] {
        if head.starts_with(magic) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("it is compressed with {name}, and only gzip and zstd are understood"),
            ));
        }
    }
    Ok(Box::new(inner))
}

/// The first bytes, left where they are. A reader may hand them out one by one, and more than the buffer
/// holds is never needed.
fn peek(inner: &mut BufReader<impl Read>) -> io::Result<Vec<u8>> {
    let head = inner.fill_buf()?;
    Ok(head[..head.len().min(6)].to_vec())
}
