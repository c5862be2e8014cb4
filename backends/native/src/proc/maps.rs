//! `/proc/PID/maps` and `smaps`.

use super::malformed;
use crate::model::VmFlags;
use stasis_plugin_api::error::Result;
use std::collections::HashMap;

/// One line of maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub(crate) prot: u32,
    pub(crate) shared: bool,
    pub(crate) offset: u64,
    /// `08:01`.
    pub(crate) device: String,
    pub(crate) inode: u64,
    /// A path, `[stack]`, or nothing.
    pub(crate) name: String,
}

impl Mapping {
    pub(crate) fn length(&self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn deleted(&self) -> bool {
        self.name.ends_with(" (deleted)")
    }
}

pub(crate) fn parse(text: &str) -> Result<Vec<Mapping>> {
    text.lines()
        .map(|line| mapping(line).ok_or_else(|| malformed(&format!("line of maps `{line}`"))))
        .collect()
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after.trim_start_matches(' ');
        word
    };
    let (start, end) = word().split_once('-')?;
    let permissions = word().as_bytes();
    let offset = u64::from_str_radix(word(), 16).ok()?;
    let device = word().to_owned();
    let inode = word().parse().ok()?;
    let name = rest.replace("\\012", "\n");
    let [r, w, x, s] = permissions else { return None };
    let prot = u32::from(*r == b'r') | u32::from(*w == b'w') << 1 | u32::from(*x == b'x') << 2;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some(Mapping { start, end, prot, shared: *s == b's', offset, device, inode, name })
}

/// What `VmFlags` say about an area and the advice that makes it so.
pub(crate) const ADVICE: [(&str, u64); 7] =
    [("rr", 1), ("sr", 2), ("dc", 10), ("mg", 12), ("nh", 15), ("dd", 16), ("wf", 18)];
/// The same of huge pages, which have to be asked for before there is any content.
pub(crate) const HUGE: (&str, u64) = ("hg", 14);

/// A flag of ours beside the kernel's: the mapping has a memory protection key.
pub(crate) const KEYED: &str = "protection-key";

/// The flags of mappings, by their ends: a stack's beginning moves.
pub(crate) type Flags = HashMap<u64, VmFlags>;

/// Those of every mapping of smaps.
pub(crate) fn flags(smaps: &str) -> Flags {
    let mut found = HashMap::new();
    let (mut end, mut keyed) = (None, false);
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let flags = VmFlags::of(flags);
            let flags = if keyed { flags.and(KEYED) } else { flags };
            found.extend(end.map(|end| (end, flags)));
        } else if let Some(key) = line.strip_prefix("ProtectionKey:") {
            keyed = key.trim() != "0";
        } else if let Some(map) = mapping(line) {
            (end, keyed) = (Some(map.end), false);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
55d0c0a00000-55d0c0a01000 r--p 00000000 08:01 1234                       /usr/bin/a b
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
7f1000000000-7f1000001000 rw-s 00002000 00:01 77                         /memfd:x (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
";

    #[test]
    fn lines_of_all_kinds() {
        let maps = parse(TEXT).unwrap();
        assert_eq!(maps[0].name, "/usr/bin/a b");
        assert_eq!((maps[0].prot, maps[0].shared, maps[0].inode), (1, false, 1234));
        assert_eq!((maps[1].name.as_str(), maps[1].length()), ("", 0x21000));
        assert!(maps[2].shared && maps[2].deleted() && maps[2].offset == 0x2000);
        assert_eq!(maps[3].name, "[stack]");
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["", "x", "1-2 rw-p", "2-1 rw-p 0 0:0 0", "1-2 rw 0 0:0 0", "1-2 rw-p z 0:0 0"] {
            assert!(parse(&format!("{line}\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn flags_by_address() {
        let text = "1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr gd lo \n\
                    3000-4000 rw-p 00000000 00:00 0 \nVmFlags: rd mr\n";
        let found = flags(text);
        assert_eq!(found[&0x2000], VmFlags::of("rd wr gd lo"));
        assert_eq!(found[&0x4000], VmFlags::of("rd mr"));
        let keys = "1000-2000 rw-p 00000000 00:00 0 \nProtectionKey:         0\nVmFlags: rd\n\
                    3000-4000 rw-p 00000000 00:00 0 \nProtectionKey:         1\nVmFlags: wr\n\
                    5000-6000 rw-p 00000000 00:00 0 \nVmFlags: rd\n";
        let found = flags(keys);
        assert_eq!((&found[&0x2000], &found[&0x6000]), (&VmFlags::of("rd"), &VmFlags::of("rd")));
        assert_eq!(found[&0x4000], VmFlags::of("wr").and(KEYED));
    }
}
