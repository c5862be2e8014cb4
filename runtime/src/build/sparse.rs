//! Files with holes, which stay holes in a copy.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use rustix::fs::SeekFrom as Sought;
use rustix::io::Errno;

/// Copies the first `size` bytes of `from` into `to`, which is empty; all there is where that is 0. File systems that do
/// not tell of holes have none.
///
/// # Errors
/// What the file system says; a file that has become shorter meanwhile.
pub(super) fn copy(from: &mut File, to: &mut File, size: u64) -> io::Result<()> {
    if size == 0 {
        // Files of the kernel's own tell no size.
        return io::copy(from, to).map(drop);
    }
    let mut at = 0;
    while at < size {
        let (start, end) = match rustix::fs::seek(&*from, Sought::Data(at)) {
            Ok(start) => (start, rustix::fs::seek(&*from, Sought::Hole(start))?.min(size)),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size),
            Err(e) => return Err(e.into()),
        };
        if start >= size {
            break;
        }
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let copied = io::copy(&mut from.by_ref().take(end - start), to)?;
        if copied < end - start {
            return Err(io::Error::other("it became shorter while it was copied"));
        }
        at = end;
    }
    to.set_len(size)
}
