//! The texts of `/proc/PID`. Only parsing; nothing is opened here.

/// What is wanted of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) name: String,
    /// The letter.
    pub(super) state: String,
    pub(super) parent: i32,
    pub(super) threads: u32,
}

/// `/proc/PID/stat`. The name may hold anything, brackets and line ends too.
pub(super) fn stat(text: &str) -> Option<Stat> {
    let (before, behind) = text.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = behind.split_whitespace();
    let state = fields.next()?.to_owned();
    let parent = fields.next()?.parse().ok()?;
    // The 20th field of the line, of which three are behind us and the first two before the bracket.
    let threads = fields.nth(15)?.parse().ok()?;
    Some(Stat { name: name.to_owned(), state, parent, threads })
}

/// The first number of `/proc/PID/schedstat`.
pub(super) fn ran(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The second number of `/proc/PID/statm`.
pub(super) fn resident_pages(text: &str) -> Option<u64> {
    text.split_whitespace().nth(1)?.parse().ok()
}

/// The inode in `socket:[123]`.
pub(super) fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The object of a line of `/proc/PID/maps`, when it is neither plain memory nor a file that is still there.
pub(super) fn special_mapping(line: &str) -> Option<&str> {
    const PREFIXES: [&str; 10] = [
        "/memfd:",
        "/SYSV",
        "/drm mm object",
        "/i915 (deleted)",
        "/[aio]",
        "/dev/zero (deleted)",
        "/anon_hugepage (deleted)",
        "anon_inode:",
        "socket:",
        "[perf",
    ];
    // Files lie in these directories; everything else in /dev is a device.
    const FILES: [&str; 3] = ["/dev/shm/", "/dev/mqueue/", "/dev/hugepages/"];
    let object = mapped_object(line)?;
    let device = object.starts_with("/dev/") && !FILES.iter().any(|dir| object.starts_with(dir));
    let plain_zero = object == "/dev/zero";
    let special = PREFIXES.iter().any(|prefix| object.starts_with(prefix)) || (device && !plain_zero);
    (special || object.ends_with(" (deleted)")).then_some(object)
}

/// What stands behind address, permissions, offset, device and inode.
fn mapped_object(line: &str) -> Option<&str> {
    let mut rest = line;
    for _ in 0..5 {
        rest = rest.trim_start_matches(' ');
        rest = &rest[rest.find(' ')?..];
    }
    let object = rest.trim_start_matches(' ');
    (!object.is_empty()).then_some(object)
}
