//! Files that a new generation shares with an earlier one: the same file under a second name, so that either
//! generation may go without the other.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::linkat;

use super::Result;
use super::commit::hash_file;
use super::error::StoreError;
use super::generation::Generation;
use super::layout::DirHandle;
use super::manifest::FileEntry;

/// What a new generation takes over, as it is and by the same names.
#[derive(Debug, Clone, Copy)]
pub struct Inherited<'a> {
    /// From this generation of the same checkpoint.
    pub generation: u64,
    /// Relative to it.
    pub files: &'a [String],
}

/// Links the files into the new generation's directory, or copies them where the file system has no links. Their
/// entries are those of the earlier generation: what was hashed once is not hashed again.
pub(crate) fn take_over(base: &Generation, partial: &DirHandle, files: &[String]) -> Result<Vec<FileEntry>> {
    files.iter().map(|name| take(base, partial, name)).collect()
}

fn take(base: &Generation, partial: &DirHandle, name: &str) -> Result<FileEntry> {
    let unfit =
        |problem: &str| Err(StoreError::Unfit { path: base.path().join(name), problem: problem.to_owned() });
    let Some(entry) = base.manifest.files.iter().find(|entry| entry.path == name) else {
        return unfit("that generation has no such file");
    };
    let relative = Path::new(name);
    if relative.components().count() != 1 {
        return unfit("only files at the top of a generation can belong to two");
    }
    let (mut file, stat) = base.dir.open_regular(relative)?;
    if u64::try_from(stat.st_size).ok() != Some(entry.size) {
        return unfit("it is not what was saved");
    }
    match linkat(&base.dir, relative, partial, relative, nix::fcntl::AtFlags::empty()) {
        Ok(()) => {}
        // No links there, or none more of this one.
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK | Errno::EXDEV) => {
            copy(&mut file, partial, relative, entry)?;
        }
        Err(error) => return Err(StoreError::io("link", &partial.path().join(name), error)),
    }
    Ok(FileEntry { from: entry.from.or(Some(base.number)), ..entry.clone() })
}

fn copy(from: &mut std::fs::File, partial: &DirHandle, name: &Path, entry: &FileEntry) -> Result<()> {
    let path = partial.path().join(name);
    let failed = |e: io::Error| StoreError::io("copy to", &path, e);
    let mut to = partial.open_file(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
    io::copy(from, &mut to).map_err(failed)?;
    to.sync_all().map_err(failed)?;
    let (copied, _) = partial.open_regular(name)?;
    match hash_file(&copied, |_| Ok(())).map_err(failed)? {
        (hash, size) if hash.eq_ignore_ascii_case(&entry.blake3) && size == entry.size => Ok(()),
        _ => Err(StoreError::damaged(&path, "its content is not what was saved")),
    }
}
