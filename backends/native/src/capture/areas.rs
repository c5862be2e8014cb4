//! What a process's memory is made of: mappings as the kernel lists them, understood.

use super::memories::Memories;
use super::process::identity_of;
use crate::model::{Area, Backing};
use crate::proc::maps::Mapping;
use stasis_plugin_api::error::{BackendError, Result, kind};
use std::os::unix::fs::FileTypeExt as _;

/// How a mapping is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Anonymous,
    Heap,
    Stack,
    Vdso,
    Vvar,
    Vsyscall,
    File,
    /// Private, of a file that has no name any more or of an image: everything that can be read is saved.
    Whole,
    /// Shared memory of processes or a memfd, or a file of a memory file system.
    Memory,
    /// Not understood, for this reason.
    Refused(&'static str),
}

/// A mapping, understood.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) map: Mapping,
    pub(crate) class: Class,
}

/// The mappings of a process.
pub(crate) fn understand(maps: Vec<Mapping>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::with_capacity(maps.len());
    for map in maps {
        // A file mostly has several mappings in a row.
        let like = parts.last().filter(|last| last.map.name == map.name && last.map.shared == map.shared);
        let class = like.map_or_else(|| classify(&map), |last| last.class);
        parts.push(Part { map, class });
    }
    parts
}

pub(crate) fn classify(map: &Mapping) -> Class {
    match map.name.as_str() {
        "" => return Class::Anonymous,
        "[heap]" => return Class::Heap,
        "[stack]" => return Class::Stack,
        "[vdso]" => return Class::Vdso,
        "[vsyscall]" => return Class::Vsyscall,
        name if name.starts_with("[vvar") => return Class::Vvar,
        name if name.starts_with("[anon_shmem:") => return Class::Memory,
        name if name.starts_with("[anon:") => return Class::Anonymous,
        name if name.starts_with("/[aio]") => return Class::Refused("a context of asynchronous I/O"),
        name if name.starts_with("/SYSV") => return Class::Refused("shared memory of System V"),
        name if name.starts_with("/anon_hugepage") || name.starts_with("/hugepages") => {
            return Class::Refused("huge pages of hugetlbfs");
        }
        name if name.starts_with("/secretmem") => {
            return Class::Refused("secret memory, which only the process itself can read");
        }
        name if name.starts_with("/dev/zero") && map.shared => return Class::Memory,
        name if name.starts_with('/') => {}
        _ => return Class::Refused("a mapping of an unknown kind"),
    }
    match (map.shared, map.deleted()) {
        (true, false) if removed_on_nfs(&map.name) => {
            Class::Refused("NFS keeps this file only until it is closed, and it is shared")
        }
        (false, true) => Class::Whole,
        (false, false) if removed_on_nfs(&map.name) => Class::Whole,
        (false, false) if is_image(&map.name) => Class::Whole,
        (true, true) => Class::Memory,
        (shared, false) => of_file(&map.name, shared),
    }
}

/// `pages-<pid>.img` or `pages-<pid>-<n>.img`, mapped at a restart.
pub(crate) fn is_image(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let numbers = name.strip_prefix("pages-").and_then(|rest| rest.strip_suffix(".img"));
    numbers.is_some_and(|numbers| numbers.splitn(2, '-').all(|number| number.parse::<u64>().is_ok()))
}

/// A file that was removed while it was open on NFS: it has another name until the last of this machine closes it.
pub(crate) fn removed_on_nfs(path: &str) -> bool {
    is_removed(path) && nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type().0 == NFS)
}

const NFS: i64 = 0x6969;

/// `.nfs` and digits.
fn is_removed(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let number = name.strip_prefix(".nfs").unwrap_or_default();
    number.len() >= 16 && number.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn of_file(path: &str, shared: bool) -> Class {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Class::Refused("a file that cannot be found under its name");
    };
    let kind = metadata.file_type();
    if kind.is_char_device() && path == "/dev/zero" {
        return Class::Anonymous;
    }
    if !kind.is_file() {
        return Class::Refused("a device");
    }
    if shared && in_memory(path) { Class::Memory } else { Class::File }
}

/// The file lies on a tmpfs.
pub(crate) fn in_memory(path: &str) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// The areas of a process, without their pages and flags.
pub(crate) fn describe(pid: i32, parts: &[Part], memories: &Memories) -> Result<Vec<Area>> {
    let mut areas = Vec::new();
    for Part { map, class } in parts {
        let backing = match class {
            Class::Anonymous | Class::Whole => Backing::Anonymous,
            Class::Heap => Backing::Heap,
            Class::Stack => Backing::Stack,
            Class::Vdso => Backing::Vdso,
            Class::Vvar => Backing::Vvar { name: map.name.clone() },
            Class::Vsyscall => Backing::Vsyscall,
            Class::File => {
                let metadata = std::fs::metadata(&map.name).map_err(|error| {
                    BackendError::failed(format!("{} is mapped and cannot be found", map.name)).because(error)
                })?;
                Backing::File { file: identity_of(&map.name, &metadata), offset: map.offset }
            }
            Class::Memory => {
                let memory = memories.index(&map.device, map.inode).ok_or_else(|| {
                    BackendError::failed(format!(
                        "the shared memory at {:x} of process {pid} is not known",
                        map.start
                    ))
                })?;
                Backing::Memory { memory, offset: map.offset }
            }
            Class::Refused(why) => {
                let what = format!("{} of process {pid} at {:x} cannot be saved", map.name, map.start);
                return Err(BackendError::new(kind::UNSUPPORTED, what).because(why));
            }
        };
        areas.push(Area {
            start: map.start,
            end: map.end,
            prot: map.prot,
            shared: map.shared,
            backing,
            ..Area::default()
        });
    }
    Ok(areas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, shared: bool) -> Class {
        classify(&Mapping { name: name.to_owned(), shared, ..Mapping::default() })
    }

    #[test]
    fn names() {
        assert_eq!(class("", false), Class::Anonymous);
        assert_eq!(class("[other]", false), Class::Refused("a mapping of an unknown kind"));
        assert_eq!(class("[anon:x]", false), Class::Anonymous);
        assert_eq!(class("[vvar_vclock]", false), Class::Vvar);
        assert_eq!(class("/dev/zero (deleted)", true), Class::Memory);
        assert_eq!(class("/memfd:a (deleted)", true), Class::Memory);
        assert_eq!(class("/memfd:a (deleted)", false), Class::Whole);
        assert_eq!(class("/usr/lib/x.so (deleted)", false), Class::Whole);
        assert_eq!(class("/.stasis/image/pages-100.img", false), Class::Whole);
        assert_eq!(class("/.stasis/image/pages-100-3.img", false), Class::Whole);
        assert_eq!(
            class("/proc/self/exe-not-there", false),
            Class::Refused("a file that cannot be found under its name")
        );
        assert_eq!(class("anon_inode:[io_uring]", true), Class::Refused("a mapping of an unknown kind"));
        assert_eq!(class("/SYSV00000000 (deleted)", true), Class::Refused("shared memory of System V"));
        let secret = Class::Refused("secret memory, which only the process itself can read");
        assert_eq!(class("/secretmem (deleted)", true), secret);
        assert_eq!(class("/dev/null", true), Class::Refused("a device"));
        assert_eq!(class("/proc/self/exe", false), Class::File);
        assert!(is_removed("/home/u/.nfs00000000034a1b2c00000007") && !removed_on_nfs("/proc/self/exe"));
        assert!(!is_removed("/home/.nfs00000000034a1b2c00000007/x") && !is_removed("/home/u/.nfsmount.conf"));
    }
}
