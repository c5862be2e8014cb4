//! Reads the file of figures that CRIU leaves beside its images, `stats-dump`: two magic
//! numbers, a length, and one small protobuf message. A file that is not of that form has no figures.

use crate::protobuf::Message;

/// The two numbers at the start of either file, as bytes.
const MAGIC: [u8; 8] = [0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57];
/// The outer message's field for a dump.
const DUMP: u64 = 1;

/// What a dump took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DumpStats {
    /// Until every task stood still.
    pub freezing_us: u64,
    /// How long they stood still.
    pub frozen_us: u64,
    /// Finding out which pages to save.
    pub memdump_us: u64,
    /// Writing them.
    pub memwrite_us: u64,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages that an earlier dump holds.
    pub pages_skipped: u64,
    /// Pages in this dump.
    pub pages_written: u64,
    /// Pages that could be brought back on demand.
    pub pages_lazy: u64,
}

/// The figures of `stats-dump`.
pub(crate) fn dump(bytes: &[u8]) -> Option<DumpStats> {
    let fields = Message(inner(bytes, DUMP)?);
    Some(DumpStats {
        freezing_us: fields.number(1)?,
        frozen_us: fields.number(2)?,
        memdump_us: fields.number(3)?,
        memwrite_us: fields.number(4)?,
        pages_scanned: fields.number(5)?,
        pages_skipped: fields.number(6)?,
        pages_written: fields.number(7)?,
        // Younger than the others.
        pages_lazy: fields.number(9).unwrap_or(0),
    })
}

/// The message within the file's only message.
fn inner(bytes: &[u8], which: u64) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    Message(rest.get(..length)?).bytes(which)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that CRIU 4.1.1 wrote.
    const DUMPED: &str =
        "4059105506330957220000000a2008ab0310fc7618960d20d10228573000383840004800500c580c600068007000";
    const RESTORED: &str = "40591055063309570e000000120c0800100018a20220e03a2838";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
        digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
    }

    #[test]
    fn reads_what_criu_wrote() {
        let expected = DumpStats {
            freezing_us: 427,
            frozen_us: 15_228,
            memdump_us: 1686,
            memwrite_us: 337,
            pages_scanned: 87,
            pages_skipped: 0,
            pages_written: 56,
            pages_lazy: 0,
        };
        assert_eq!(dump(&bytes(DUMPED)), Some(expected));
    }

    #[test]
    fn one_is_not_the_other() {
        assert_eq!(dump(&bytes(RESTORED)), None);
    }

    #[test]
    fn survives_every_cut_and_every_changed_byte() {
        for hex in [DUMPED, RESTORED] {
            let whole = bytes(hex);
            for end in 0..whole.len() {
                assert_eq!(dump(&whole[..end]), None, "{end}");
            }
            for at in 0..whole.len() {
                for value in [0x00, 0x7f, 0x80, 0xff] {
                    let mut changed = whole.clone();
                    changed[at] = value;
                    let read = dump(&changed);
                    assert!(at >= MAGIC.len() || changed == whole || read.is_none(), "{at}");
                }
            }
        }
    }
}
