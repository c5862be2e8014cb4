//! The files of a capture, looked at from the host.

use stasis_plugin_api::prelude::*;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What every image of DMTCP 4.0 and later begins with.
const MAGIC: &[u8] = b"DMTCP_CHECKPOINT_IMAGE_v";
/// How the name of an image ends.
const IMAGE: &str = ".dmtcp";
/// What DMTCP's script for a restart is called, which is a link to it.
const SCRIPT: &str = "dmtcp_restart_script.sh";
/// More than any honest script.
const MOST: u64 = 8 << 20;
/// Deeper and more than any honest capture.
const LIMIT: usize = 4096;

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SavedImage {
    /// Its file name.
    pub(crate) file: String,
    /// The program's name.
    pub(crate) name: String,
    /// The pid that the program sees.
    pub(crate) pid: i32,
}

/// What lies in the staging directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Complete images.
    pub(crate) images: Vec<SavedImage>,
    /// Images still being written.
    pub(crate) unfinished: Vec<String>,
    /// Directories with contents of files that the application had open.
    pub(crate) open_files: Vec<String>,
}

fn cannot(path: &Path, e: &std::io::Error) -> BackendError {
    BackendError::failed(format!("cannot look at {}", path.display())).because(e)
}

/// Lists the staging directory.
pub(crate) fn list(staging: &Path) -> Result<Set> {
    let mut set = Set::default();
    for entry in std::fs::read_dir(staging).map_err(|e| cannot(staging, &e))?.take(LIMIT) {
        let entry = entry.map_err(|e| cannot(staging, &e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A link is neither: what it leads to is no part of the capture.
        let (is_file, is_dir) = entry.file_type().map_or((false, false), |t| (t.is_file(), t.is_dir()));
        if name.ends_with(".temp") {
            set.unfinished.push(name);
        } else if name.starts_with("ckpt_") && name.ends_with(IMAGE) && is_file {
            set.images.push(parse(&name));
        } else if name.starts_with("ckpt_") && name.ends_with("_files") && is_dir {
            set.open_files.push(name);
        }
    }
    set.images.sort_by(|a, b| a.file.cmp(&b.file));
    set.open_files.sort();
    Ok(set)
}

/// Keeps those images that DMTCP's own script for a restart lists. False while it is not there, and while one that it
/// lists is not.
pub(crate) fn only_listed(staging: &Path, set: &mut Set) -> bool {
    let Some(mut listed) = listed(staging) else { return false };
    set.images.retain(|image| {
        let there = listed.contains(&image.file);
        listed = listed.replace(&image.file, "");
        there
    });
    !set.images.is_empty() && !listed.contains(IMAGE)
}

/// The line with the images in the script. The link to it is made when all of it is written.
fn listed(staging: &Path) -> Option<String> {
    let script = std::fs::read_link(staging.join(SCRIPT)).ok()?.into_os_string().into_string().ok()?;
    if !script.starts_with("dmtcp_restart_script_") || script.contains('/') {
        return None;
    }
    let mut text = String::new();
    let file = open(&staging.join(script)).ok()?;
    file.take(MOST).read_to_string(&mut text).ok()?;
    text.lines().find(|line| line.starts_with("given_ckpt_files=")).map(str::to_owned)
}

/// Opens a regular file. The application can write here, too: no link is followed, and nobody waited for.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("it is no file")) }
}

/// `ckpt_PROGRAM_HOSTID-PID-TIME.dmtcp`.
fn parse(file: &str) -> SavedImage {
    let inner = file.trim_start_matches("ckpt_").trim_end_matches(IMAGE);
    let (name, ids) = inner.rsplit_once('_').unwrap_or((inner, ""));
    let pid = ids.split('-').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    SavedImage { file: file.to_owned(), name: name.to_owned(), pid }
}

/// Checks that an image begins as one.
pub(crate) fn check(path: &Path) -> Result<()> {
    let mut head = [0; MAGIC.len()];
    let read = open(path).and_then(|mut file| file.read_exact(&mut head));
    match read {
        Ok(()) if head == *MAGIC => Ok(()),
        Ok(()) => Err(BackendError::new(kind::DAMAGED, format!("{} is no image of DMTCP's", path.display()))),
        Err(e) => {
            Err(BackendError::new(kind::DAMAGED, format!("cannot read the image {}", path.display()))
                .because(e))
        }
    }
}

/// All regular files below a directory, relative to `base`.
pub(crate) fn below(base: &Path, directory: &str, depth: usize) -> Result<Vec<PathBuf>> {
    let path = base.join(directory);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(|e| cannot(&path, &e))?.take(LIMIT) {
        let entry = entry.map_err(|e| cannot(&path, &e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let relative = format!("{directory}/{name}");
        match entry.file_type() {
            Ok(t) if t.is_file() => all.push(relative.into()),
            Ok(t) if t.is_dir() && depth > 0 => all.extend(below(base, &relative, depth - 1)?),
            _ => {}
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "ckpt_python3.11_98ff-40000-14c1.dmtcp",
            "ckpt_a_b_1-41000-2.dmtcp",
            "ckpt_x_1-2-3.dmtcp.temp",
            "dmtcp_restart_script.sh",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("ckpt_x_1-2-3_files")).unwrap();
        std::fs::write(dir.path().join("ckpt_x_1-2-3_files/log_1"), "").unwrap();
        let set = list(dir.path()).unwrap();
        let seen: Vec<_> = set.images.iter().map(|i| (i.name.as_str(), i.pid)).collect();
        assert_eq!(seen, [("a_b", 41000), ("python3.11", 40000)]);
        assert_eq!(set.unfinished, ["ckpt_x_1-2-3.dmtcp.temp"]);
        assert_eq!(
            below(dir.path(), &set.open_files[0], 3).unwrap(),
            [PathBuf::from("ckpt_x_1-2-3_files/log_1")]
        );
    }

    #[test]
    fn the_script_tells_which_images_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let names = ["ckpt_a_1-40000-1.dmtcp", "ckpt_b_1-41000-2.dmtcp", "ckpt_c_1-42000-3.dmtcp"];
        for name in &names[..2] {
            std::fs::write(path(name), "").unwrap();
        }
        let kept = || {
            let mut set = list(dir.path()).unwrap();
            only_listed(dir.path(), &mut set).then(|| set.images.iter().map(|i| i.pid).collect::<Vec<_>>())
        };
        let write = |names: &[&str]| {
            let all: String = names.iter().map(|name| format!(" /.stasis/capture/{name}")).collect();
            let text = format!("#!/bin/bash\ngiven_ckpt_files=\"{all}\"\nfor tmp in $given_ckpt_files; do\n");
            std::fs::write(path("dmtcp_restart_script_1-40000-9.sh"), text).unwrap();
        };
        write(&names[..2]);
        assert_eq!(kept(), None, "it may not be complete before the link is there");
        std::os::unix::fs::symlink("dmtcp_restart_script_1-40000-9.sh", path(SCRIPT)).unwrap();
        assert_eq!(kept(), Some(vec![40000, 41000]));
        write(&names[..1]);
        assert_eq!(kept(), Some(vec![40000]), "one that ended meanwhile is none of them");
        write(&names);
        assert_eq!(kept(), None, "one is missing");
        write(&[]);
        assert_eq!(kept(), None);
        std::fs::remove_file(path(SCRIPT)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path(SCRIPT)).unwrap();
        assert_eq!(kept(), None);
    }

    #[test]
    fn foreign_and_short_files_are_no_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.dmtcp");
        for bad in [&b""[..], b"DMTCP", b"something else entirely, and long"] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(check(&path).unwrap_err().kind, kind::DAMAGED);
        }
        std::fs::write(&path, b"DMTCP_CHECKPOINT_IMAGE_v4.0\nrest").unwrap();
        check(&path).unwrap();
        // What stands there may be of the application's making.
        let (link, fifo) = (dir.path().join("link"), dir.path().join("fifo"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in [link, fifo] {
            assert_eq!(check(&other).unwrap_err().kind, kind::DAMAGED);
        }
    }

    #[test]
    fn links_are_no_part_of_a_capture() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join("ckpt_b_1-2-3_files")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("ckpt_a_1-2-3_files")).unwrap();
        std::os::unix::fs::symlink("/none", dir.path().join("ckpt_a_1-2-3.dmtcp")).unwrap();
        let seen = list(dir.path()).unwrap();
        assert_eq!((seen.images.len(), seen.open_files), (0, vec!["ckpt_b_1-2-3_files".to_owned()]));
    }
}
