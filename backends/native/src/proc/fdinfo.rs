//! `/proc/PID/fdinfo/FD`.

use super::malformed;
use crate::model::Lock;
use stasis_plugin_api::error::Result;

/// What every descriptor tells, and the lines that only some kinds have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FdInfo {
    pub(crate) position: u64,
    pub(crate) flags: u32,
    lines: Vec<(String, String)>,
}

/// One watch of an epoll instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) fd: i32,
    pub(crate) events: u32,
    pub(crate) data: u64,
    pub(crate) inode: u64,
}

/// One watch of an inotify instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) wd: i32,
    pub(crate) inode: u64,
    /// Major and minor number.
    pub(crate) device: (u64, u64),
    pub(crate) mask: u32,
    /// Kind and bytes of the file handle, where the file system has some.
    pub(crate) handle: Option<(i32, Vec<u8>)>,
}

/// A lock on the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeldLock {
    /// `POSIX`, `FLOCK`, `OFDLCK`, `LEASE`.
    pub(crate) class: String,
    /// The pid of its holder; -1 for one that belongs to the description.
    pub(crate) holder: i32,
    pub(crate) range: Lock,
}

pub(crate) fn parse(text: &str) -> Result<FdInfo> {
    let mut info = FdInfo::default();
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(':') {
            info.lines.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    info.position = info.decimal("pos")?;
    let flags = info.text("flags")?;
    info.flags = u32::from_str_radix(flags, 8).map_err(|_| malformed(&format!("flags `{flags}`")))?;
    Ok(info)
}

impl FdInfo {
    fn text(&self, name: &str) -> Result<&str> {
        self.get(name).ok_or_else(|| malformed(&format!("fdinfo without {name}")))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.lines.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn decimal<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| malformed(&format!("{name} `{text}` of fdinfo")))
    }

    pub(crate) fn hex(&self, name: &str) -> Result<u64> {
        let text = self.text(name)?;
        u64::from_str_radix(text, 16).map_err(|_| malformed(&format!("{name} `{text}` of fdinfo")))
    }

    /// `(seconds, nanoseconds)` in nanoseconds.
    pub(crate) fn time(&self, name: &str) -> Result<u64> {
        let text = self.text(name)?;
        let time = || {
            let (seconds, nanoseconds) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
            let seconds: u64 = seconds.trim().parse().ok()?;
            let nanoseconds: u64 = nanoseconds.trim().parse().ok()?;
            seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
        };
        time().ok_or_else(|| malformed(&format!("{name} `{text}` of fdinfo")))
    }

    pub(crate) fn watches(&self) -> Result<Vec<Watch>> {
        let all = self.lines.iter().filter(|(name, _)| name == "tfd");
        all.map(|(_, value)| watch(value).ok_or_else(|| malformed(&format!("epoll watch `{value}`"))))
            .collect()
    }

    pub(crate) fn marks(&self) -> Result<Vec<Mark>> {
        let all = self.lines.iter().filter(|(name, _)| name == "inotify wd");
        all.map(|(_, value)| mark(value).ok_or_else(|| malformed(&format!("inotify watch `{value}`"))))
            .collect()
    }

    pub(crate) fn locks(&self) -> Result<Vec<HeldLock>> {
        let all = self.lines.iter().filter(|(name, _)| name == "lock");
        all.map(|(_, value)| lock(value).ok_or_else(|| malformed(&format!("lock `{value}`")))).collect()
    }
}

/// `5 events:       19 data: 5  pos:0 ino:61 sdev:5`.
fn watch(text: &str) -> Option<Watch> {
    let (fd, rest) = text.split_once(' ')?;
    let mut watch = Watch { fd: fd.parse().ok()?, ..Watch::default() };
    let rest = rest.replace(':', " ");
    let words: Vec<&str> = rest.split_whitespace().collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        u64::from_str_radix(words.get(at + 1)?, 16).ok()
    };
    watch.events = u32::try_from(value("events")?).ok()?;
    watch.data = value("data")?;
    watch.inode = value("ino").unwrap_or(0);
    Some(watch)
}

/// `1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d`, the
/// device as the kernel has it: 20 bits for the minor number.
fn mark(text: &str) -> Option<Mark> {
    let (wd, rest) = text.split_once(' ')?;
    let word =
        |name: &str| rest.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let number = |name: &str| u64::from_str_radix(word(name)?, 16).ok();
    let device = number("sdev")?;
    let handle = || {
        let digits = word("f_handle")?;
        let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
        Some((i32::try_from(number("fhandle-type")?).ok()?, bytes?))
    };
    Some(Mark {
        wd: i32::from_str_radix(wd, 16).ok()?,
        inode: number("ino")?,
        device: (device >> 20, device & 0xf_ffff),
        mask: u32::try_from(number("mask")?).ok()?,
        handle: handle(),
    })
}

/// `1: POSIX  ADVISORY  WRITE 12 08:01:77 0 EOF`.
fn lock(text: &str) -> Option<HeldLock> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, class, _, how, holder, _, start, end] = words.as_slice() else { return None };
    let end = if *end == "EOF" { None } else { Some(end.parse().ok()?) };
    let range = Lock { write: how.contains("WRITE"), start: start.parse().ok()?, end };
    Some(HeldLock { class: (*class).to_owned(), holder: holder.parse().ok()?, range })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t9\nclockid: 1\nticks: 3\nsettime flags: 01\n\
                    it_value: (0, 49406829)\nit_interval: (1, 0)\n";
        let info = parse(text).unwrap();
        assert_eq!(info.flags, 0o2000002);
        assert_eq!(info.decimal::<u64>("ticks").unwrap(), 3);
        assert_eq!(info.time("it_value").unwrap(), 49_406_829);
        assert_eq!(info.time("it_interval").unwrap(), 1_000_000_000);
    }

    #[test]
    fn epoll_watches_and_locks() {
        let text = "pos:\t0\nflags:\t02\ntfd:        5 events:       1d data: ffffffffffffffff  pos:0 ino:61 sdev:5\n\
                    lock:\t1: POSIX  ADVISORY  WRITE 12 08:01:77 3 EOF\nlock:\t2: FLOCK  ADVISORY  READ 12 08:01:77 0 9\n";
        let info = parse(text).unwrap();
        let watches = info.watches().unwrap();
        assert_eq!(watches, [Watch { fd: 5, events: 0x1d, data: u64::MAX, inode: 0x61 }]);
        let locks = info.locks().unwrap();
        assert_eq!((locks[0].class.as_str(), locks[0].holder, locks[0].range.end), ("POSIX", 12, None));
        assert_eq!((locks[1].range.write, locks[1].range.end), (false, Some(9)));
    }

    #[test]
    fn inotify_watches() {
        let text = "pos:\t0\nflags:\t00\n\
                    inotify wd:a ino:9e7e sdev:800013 mask:fce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n\
                    inotify wd:1 ino:2 sdev:5 mask:100 ignored_mask:0 \n";
        let marks = parse(text).unwrap().marks().unwrap();
        let told = (marks[0].wd, marks[0].inode, marks[0].device, marks[0].mask);
        assert_eq!(told, (10, 0x9e7e, (8, 0x13), 0xfce));
        assert_eq!(marks[0].handle, Some((1, vec![0x7e, 0x9e, 0, 0, 0x64, 0x0d, 0x1b, 0x6d])));
        assert_eq!((marks[1].wd, marks[1].device, &marks[1].handle), (1, (0, 5), &None));
        assert!(parse("pos: 1\nflags: 0\ninotify wd:1 ino:2\n").unwrap().marks().is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse("pos: x\nflags: 0\n").is_err());
        assert!(parse("pos: 1\nflags: 9\n").is_err());
        assert!(parse("pos: 1\nflags: 0\ntfd: 5 events\n").unwrap().watches().is_err());
        assert!(parse("pos: 1\nflags: 0\nlock: 1: POSIX\n").unwrap().locks().is_err());
    }
}
