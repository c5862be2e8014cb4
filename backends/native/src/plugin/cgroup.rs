//! What the job's control group leaves: memory and processes, the tightest of all groups above it. A snapshot by
//! fork needs some of both, and a job must never die of being saved.

use std::fs;
use std::path::{Path, PathBuf};

/// What is left before a limit is met. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Room {
    /// Bytes. Caches that the kernel can drop count as used, so it is rather too little.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) tasks: Option<u64>,
}

/// The files of one version of control groups.
struct Files {
    memory: (&'static str, &'static str),
    tasks: (&'static str, &'static str),
}

const V2: Files = Files { memory: ("memory.max", "memory.current"), tasks: ("pids.max", "pids.current") };
const V1: Files =
    Files { memory: ("memory.limit_in_bytes", "memory.usage_in_bytes"), tasks: ("pids.max", "pids.current") };
/// Limits of version 1 above this mean none.
const NONE: u64 = 1 << 60;

/// Of this process, which has to be in the job's group.
pub(crate) fn room() -> Room {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    room_in(Path::new("/sys/fs/cgroup"), &own)
}

fn room_in(mount: &Path, own: &str) -> Room {
    let mut room = Room::default();
    for line in own.lines() {
        // hierarchy:controllers:path
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let has = |name: &str| controllers.split(',').any(|c| c == name);
        match (number, has("memory"), has("pids")) {
            ("0", _, _) => {
                let unified = mount.join("unified");
                let root = if unified.is_dir() { unified } else { mount.to_owned() };
                room.memory = least(room.memory, left(&root, path, V2.memory));
                room.tasks = least(room.tasks, left(&root, path, V2.tasks));
            }
            (_, true, _) => room.memory = least(room.memory, left(&mount.join("memory"), path, V1.memory)),
            (_, _, true) => room.tasks = least(room.tasks, left(&mount.join("pids"), path, V1.tasks)),
            _ => {}
        }
    }
    room
}

fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The least that any group from this one up to the root leaves.
fn left(root: &Path, path: &str, (limit, used): (&str, &str)) -> Option<u64> {
    let own: PathBuf = root.join(path.trim_start_matches('/'));
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let groups = own.ancestors().take_while(|group| group.starts_with(root));
    let leaves = groups.filter_map(|group| {
        // "max" is no number.
        let limit = number(&group.join(limit)).filter(|limit| *limit < NONE)?;
        Some(limit.saturating_sub(number(&group.join(used))?))
    });
    leaves.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        let dir = root.join(path);
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        group(
            root.path(),
            "slice",
            &[("memory.max", "1000"), ("memory.current", "900"), ("pids.max", "max")],
        );
        group(
            root.path(),
            "slice/job",
            &[("memory.max", "500"), ("memory.current", "200"), ("pids.max", "50"), ("pids.current", "8")],
        );
        let room = room_in(root.path(), "0::/slice/job\n");
        assert_eq!(room, Room { memory: Some(100), tasks: Some(42) });
        group(root.path(), "slice", &[("memory.max", "max")]);
        assert_eq!(room_in(root.path(), "0::/slice/job\n").memory, Some(300));
        // More than allowed after a limit was lowered.
        group(root.path(), "slice/job", &[("memory.current", "600")]);
        assert_eq!(room_in(root.path(), "0::/slice/job\n").memory, Some(0));
        assert_eq!(room_in(root.path(), "0::/\n"), Room::default());
    }

    #[test]
    fn version_one_has_a_tree_for_each() {
        let root = tempfile::tempdir().unwrap();
        let none = (1_u64 << 63).to_string();
        group(root.path(), "memory", &[("memory.limit_in_bytes", &none), ("memory.usage_in_bytes", "5")]);
        group(root.path(), "memory/job", &[("memory.limit_in_bytes", "70"), ("memory.usage_in_bytes", "30")]);
        group(root.path(), "pids/job", &[("pids.max", "9"), ("pids.current", "4")]);
        let own = "9:pids:/job\n4:cpu,memory:/job\n1:name=systemd:/x\n0::/nowhere\nnonsense\n";
        assert_eq!(room_in(root.path(), own), Room { memory: Some(40), tasks: Some(5) });
    }
}
