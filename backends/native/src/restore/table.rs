//! A list of system calls for another process to run, with the data that they point to.

use nix::errno::Errno;

/// Bytes of an entry: number, six arguments, result.
const ENTRY: usize = 64;
/// Where things lie in the scratch area: the loop, the entries, the data.
pub(super) const ENTRIES: u64 = 4096;
const MOST_ENTRIES: usize = 16384;
const DATA: u64 = ENTRIES + (MOST_ENTRIES * ENTRY) as u64;
const MOST_DATA: usize = 1 << 20;
/// The scratch area's size.
pub(super) const SCRATCH: u64 = DATA + MOST_DATA as u64;
/// Room that one step of the restart may take without asking.
const STEP: (usize, usize) = (64, 16 << 10);

/// The list.
#[derive(Debug)]
pub(super) struct Table {
    scratch: u64,
    entries: Vec<[u64; 8]>,
    /// What each is for, for messages, and what it has to answer.
    told: Vec<(String, Must)>,
    data: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Must {
    Succeed,
    Return(u64),
    Anything,
}

/// An entry that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// What it was for.
    pub(super) what: String,
    /// What the kernel said.
    pub(super) errno: Errno,
}

impl Table {
    /// For a scratch area at this address.
    pub(super) fn new(scratch: u64) -> Self {
        Self { scratch, entries: Vec::new(), told: Vec::new(), data: Vec::new() }
    }

    /// A call that has to succeed.
    pub(super) fn call(&mut self, what: impl Into<String>, number: i64, arguments: &[u64]) {
        self.push(what.into(), Must::Succeed, number, arguments);
    }

    /// A call that has to answer exactly this: a read of so many bytes.
    pub(super) fn exact(&mut self, what: impl Into<String>, number: i64, arguments: &[u64], answer: u64) {
        self.push(what.into(), Must::Return(answer), number, arguments);
    }

    /// A call whose failure does not matter.
    pub(super) fn try_call(&mut self, what: impl Into<String>, number: i64, arguments: &[u64]) {
        self.push(what.into(), Must::Anything, number, arguments);
    }

    fn push(&mut self, what: String, must: Must, number: i64, arguments: &[u64]) {
        let mut entry = [0; 8];
        entry[0] = number.cast_unsigned();
        for (place, argument) in entry.iter_mut().skip(1).take(6).zip(arguments) {
            *place = *argument;
        }
        entry[7] = (-i64::from(libc::ENOSYS)).cast_unsigned();
        self.entries.push(entry);
        self.told.push((what, must));
    }

    /// Data for a call; its address there.
    pub(super) fn put(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let address = self.scratch + DATA + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        address
    }

    /// A string for a call; its address there.
    pub(super) fn text(&mut self, text: &str) -> u64 {
        self.put(&[text.as_bytes(), &[0]].concat())
    }

    /// Whether it ought to be run before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() + STEP.0 > MOST_ENTRIES || self.data.len() + STEP.1 > MOST_DATA
    }

    /// Nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether all of it fits at all.
    pub(super) fn fits(&self) -> bool {
        self.entries.len() <= MOST_ENTRIES && self.data.len() <= MOST_DATA
    }

    /// Start and end of the entries there.
    pub(super) fn range(&self) -> (u64, u64) {
        let start = self.scratch + ENTRIES;
        (start, start + (self.entries.len() * ENTRY) as u64)
    }

    /// The same for so many threads, each of which gets a part of them; fewer where there are not so many.
    pub(super) fn parts(&self, threads: usize) -> Vec<(u64, u64)> {
        let (start, end) = self.range();
        let each = self.entries.len().div_ceil(threads.max(1)).max(1) * ENTRY;
        (start..end).step_by(each).map(|from| (from, (from + each as u64).min(end))).collect()
    }

    /// The entries and the data as bytes, each with its address.
    pub(super) fn bytes(&self) -> [(u64, Vec<u8>); 2] {
        let entries = self.entries.iter().flatten().flat_map(|n| n.to_ne_bytes()).collect();
        [(self.scratch + ENTRIES, entries), (self.scratch + DATA, self.data.clone())]
    }

    /// Checks the entries as they were read back, and empties the list.
    pub(super) fn finish(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let entries = bytes.chunks(ENTRY).zip(self.told.drain(..));
        let mut first: Option<Failed> = None;
        for (entry, (what, must)) in entries {
            let result = entry.get(56..64).and_then(|b| b.try_into().ok()).map_or(0, i64::from_ne_bytes);
            let errno = match (result, must) {
                (_, Must::Anything) => continue,
                (-4095..0, _) => Errno::from_raw(i32::try_from(-result).unwrap_or(libc::EINVAL)),
                (_, Must::Return(answer)) if result.cast_unsigned() != answer => Errno::EIO,
                _ => continue,
            };
            first.get_or_insert(Failed { what, errno });
        }
        self.entries.clear();
        self.data.clear();
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_in_one_part() {
        let mut table = Table::new(0x1000_0000);
        assert!(table.parts(3).is_empty());
        for count in 1..20 {
            table.call("a call", 1, &[]);
            for threads in 1..6 {
                let parts = table.parts(threads);
                assert!(!parts.is_empty() && parts.len() <= threads, "{parts:x?}");
                let (start, end) = table.range();
                let mut at = start;
                for (from, to) in parts {
                    assert!(from == at && to > from && (to - from) % ENTRY as u64 == 0);
                    at = to;
                }
                assert_eq!((at, end - start), (end, count * ENTRY as u64));
            }
        }
    }

    #[test]
    fn the_first_failure_is_told_and_others_may_fail() {
        let mut table = Table::new(0x1000_0000);
        table.try_call("one", 1, &[]);
        table.call("two", 2, &[7]);
        table.call("three", 3, &[]);
        assert_eq!(table.put(b"x"), table.put(b"y") - 16);
        let (start, end) = table.range();
        assert_eq!(end - start, 3 * 64);
        let mut bytes = table.bytes()[0].1.clone();
        assert_eq!(bytes[64..80], [2u64.to_ne_bytes(), 7u64.to_ne_bytes()].concat());
        // The second has run; nothing else did.
        bytes[64 + 56..128].copy_from_slice(&5i64.to_ne_bytes());
        let failed = table.finish(&bytes).unwrap_err();
        assert_eq!((failed.what.as_str(), failed.errno), ("three", Errno::ENOSYS));
        assert!(table.is_empty() && table.fits() && !table.is_full());
        table.exact("four", 4, &[], 7);
        let mut bytes = table.bytes()[0].1.clone();
        bytes[56..64].copy_from_slice(&6i64.to_ne_bytes());
        assert_eq!(table.finish(&bytes).unwrap_err().errno, Errno::EIO);
        table.exact("four", 4, &[], 6);
        table.finish(&bytes).unwrap();
    }
}
