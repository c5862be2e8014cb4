//! What lies below a directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Everything below a directory: files, links, which are not followed, and directories.
pub(crate) fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    below_where(dir, &|_| true)
}

/// The same without what is in those directories that are not `wanted`.
pub(crate) fn below_where(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![fs::read_dir(dir)?];
    while let Some(entries) = waiting.pop() {
        for entry in entries {
            let path = entry?.path();
            if is_dir(&path) && wanted(&path) {
                match fs::read_dir(&path) {
                    Ok(entries) => waiting.push(entries),
                    // Somebody removes it meanwhile.
                    Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
                    Err(why) => return Err(why),
                }
            }
            found.push(path);
        }
    }
    Ok(found)
}

/// The files and links among them.
pub(crate) fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = below(dir)?;
    found.retain(|path| !is_dir(path));
    Ok(found)
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|about| about.is_dir())
}
