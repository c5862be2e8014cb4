//! A timer that expires while the processes stand still: its `timerfd` has no time left, and CRIU (4.2.1 and
//! before) sets it again with just that, which the kernel takes for "disarmed": a periodic timer never fires again.
//! The saved time left is made a nanosecond, which fires at once and goes on from there.

use crate::protobuf::Message;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;

/// The two numbers at the start of CRIU's `files.img`, as bytes.
const MAGIC: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x38, 0x31, 0x30, 0x56];
/// The timer in a file's entry.
const TIMERFD: u64 = 12;
/// In it: the time left and the period, each as seconds and nanoseconds.
const VALUE: (u64, u64) = (7, 8);
const INTERVAL: (u64, u64) = (9, 10);

/// Mends the timers in the images of a directory; the number of those mended. What is not of the known form is left
/// as it is.
pub(crate) fn timers(images: &Path) -> io::Result<usize> {
    let path = images.join("files.img");
    let mut bytes = Vec::new();
    match OpenOptions::new().read(true).open(&path) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        // An older CRIU has a file for each kind.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let places = stalled(&bytes);
    if places.is_empty() {
        return Ok(0);
    }
    for place in &places {
        if let Some(byte) = bytes.get_mut(*place) {
            *byte = 1;
        }
    }
    OpenOptions::new().write(true).open(&path)?.write_all(&bytes)?;
    Ok(places.len())
}

/// Where the nanoseconds left of stalled periodic timers stand: each is one byte with a zero.
fn stalled(bytes: &[u8]) -> Vec<usize> {
    let mut places = Vec::new();
    let Some(mut rest) = bytes.strip_prefix(&MAGIC) else { return places };
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let at = bytes.len() - after.len();
        let Some((entry, next)) =
            usize::try_from(u32::from_le_bytes(*length)).ok().and_then(|n| after.split_at_checked(n))
        else {
            break;
        };
        places.extend(place(entry).map(|inside| at + inside));
        rest = next;
    }
    places
}

fn place(entry: &[u8]) -> Option<usize> {
    let field = Message(entry).find(TIMERFD)?;
    let timer = Message(entry).bytes(TIMERFD)?;
    let start = field.end - timer.len();
    let number = |which| Message(timer).number(which);
    let left = (number(VALUE.0)?, number(VALUE.1)?);
    let period = (number(INTERVAL.0)?, number(INTERVAL.1)?);
    if left != (0, 0) || period == (0, 0) {
        return None;
    }
    let place = start + Message(timer).find(VALUE.1)?.end - 1;
    (entry.get(place) == Some(&0)).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(left: u8, period: u8) -> Vec<u8> {
        let timer = [0x08, 1, 0x10, 0, 0x38, 0, 0x40, left, 0x48, period, 0x50, 0];
        let mut message = vec![0x08, 17, 0x10, 5, 0x62, timer.len() as u8];
        message.extend(timer);
        let mut entry = u32::try_from(message.len()).unwrap().to_le_bytes().to_vec();
        entry.extend(message);
        entry
    }

    #[test]
    fn only_stalled_periodic_timers_are_mended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files.img");
        let image = |entries: &[(u8, u8)]| {
            MAGIC.iter().copied().chain(entries.iter().flat_map(|(l, p)| entry(*l, *p))).collect::<Vec<u8>>()
        };
        // Running, stalled, expired once and for all, disarmed, stalled.
        std::fs::write(&path, image(&[(9, 5), (0, 5), (0, 0), (7, 0), (0, 1)])).unwrap();
        assert_eq!(timers(dir.path()).unwrap(), 2);
        assert_eq!(std::fs::read(&path).unwrap(), image(&[(9, 5), (1, 5), (0, 0), (7, 0), (1, 1)]));
        assert_eq!(timers(dir.path()).unwrap(), 0);
    }

    #[test]
    fn what_is_cut_or_of_another_kind_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(timers(dir.path()).unwrap(), 0);
        let whole: Vec<u8> = MAGIC.iter().copied().chain(entry(0, 5)).collect();
        for end in 0..whole.len() {
            assert_eq!(stalled(&whole[..end]), Vec::<usize>::new(), "{end}");
        }
        assert_eq!(stalled(&whole).len(), 1);
    }
}
