//! What the caches of images hold, as it is shown to users, and whether containers still see it.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

/// One thing in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// `image`, `layer`, or `unpacked`, which is the content of a file.
    pub kind: &'static str,
    /// What it is.
    pub digest: String,
    /// Of an image; the file that was unpacked.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// When it was used last.
    pub used: SystemTime,
}

/// Whether a process anywhere has this directory of a cache among its mounts. Commands hold a lock as long as they run;
/// what their applications leave behind holds none. The table shows a path as its own file system knows it, so that
/// only the end of it can be compared.
pub(crate) fn is_mounted(directory: &Path) -> bool {
    let end: std::path::PathBuf =
        directory.components().rev().take(4).collect::<Vec<_>>().into_iter().rev().collect();
    let mut seen = HashSet::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.map(|entry| entry.path()).any(|process| {
        // Many processes share one table. Of somebody else's the link cannot be read, the table can.
        let new = std::fs::read_link(process.join("ns/mnt")).map_or(true, |table| seen.insert(table));
        new && std::fs::read_to_string(process.join("mountinfo")).is_ok_and(|table| shows(&table, &end))
    })
}

fn shows(table: &str, end: &Path) -> bool {
    table.lines().filter_map(|line| line.split(' ').nth(3)).any(|root| Path::new(root).ends_with(end))
}

/// Cleans until something went. A process that another test starts this moment holds every lock until its program runs.
#[cfg(test)]
pub(crate) fn went(clean: impl Fn() -> usize) -> usize {
    let again = |count: &usize| {
        if *count == 0 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        *count > 0
    };
    (0..500).map(|_| clean()).find(again).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_is_found_in_a_table() {
        let line =
            "65 42 254:0 /home/me/.local/share/stasis/cache/_images/00ff / ro,nosuid - ext4 /dev/vda rw";
        assert!(shows(line, Path::new("stasis/cache/_images/00ff")));
        for other in ["stasis/cache/_images/00fe", "stasis/cache/_images/00ff/root", "00ff/rest"] {
            assert!(!shows(line, Path::new(other)), "{other}");
        }
        assert!(!is_mounted(Path::new("/nowhere/cache/_images/00ff")));
    }
}
