//! `%files`: from the host or from an earlier stage, never to a place outside the image.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, futimens, mkdirat};
use nix::unistd::{linkat, symlinkat};

use super::definition::{Copy, Files};
use super::{glob, sparse};
use crate::error::{Error, Result};
use crate::image::inside::file_type;
use crate::image::io_words;
use crate::image::tree::{Tree, allowed, create_in, is_full, list, remove_in, room, stat_in, time_of};
use crate::image::watch::Watch;
use crate::image::xattr;

/// A link that leads back to where it is makes no end.
const MAX_DEPTH: usize = 100;
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// How things are copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// What a link leads to is copied in its place.
    pub(super) follow: bool,
    /// Owners are kept, which only root can.
    pub(super) owners: bool,
}

/// Copies what a section says.
pub(super) fn copy(
    files: &Files,
    tree: &Tree,
    stages: &BTreeMap<String, PathBuf>,
    cwd: &Path,
    definition: &Path,
    watch: &dyn Watch,
) -> Result<()> {
    let stage = files.from.as_ref().and_then(|name| stages.get(name));
    let source = Tree::open(stage.map_or(Path::new("/"), PathBuf::as_path))?;
    let root = nix::unistd::geteuid().is_root();
    let how = How { follow: stage.is_none(), owners: stage.is_some() && root };
    for copy in &files.copies {
        let base = if stage.is_some() { Path::new("/") } else { cwd };
        let line = || format!("{}, line {}", definition.display(), copy.line);
        let found = glob::expand(&source, base, Path::new(&copy.from)).map_err(|e| {
            Error::new(format!("{}: {:?} cannot be looked for", line(), copy.from)).because(io_words(&e))
        })?;
        if found.is_empty() {
            let place =
                files.from.as_ref().map_or("on the host".to_owned(), |stage| format!("in stage {stage:?}"));
            return Err(Error::new(format!("{}: {:?} cannot be copied", line(), copy.from))
                .because(format!("there is no {} {place}", base.join(&copy.from).display()))
                .help("check the spelling; a relative path on the host starts at the working directory"));
        }
        for from in &found {
            let to = destination(tree, copy, from, found.len() > 1);
            watch.info(&format!("Copying {} to {}", from.display(), to.display()));
            let left = copy_one(&source, from, tree, &to, how).map_err(|e| {
                let error =
                    Error::new(format!("{}: cannot copy {}", line(), from.display())).because(io_words(&e));
                if is_full(&e) { error.help(room(tree.path())) } else { error }
            })?;
            left.tell(watch);
        }
    }
    Ok(())
}

/// As cp(1) chooses: into a directory that is there, else under the new name.
fn destination(tree: &Tree, copy: &Copy, from: &Path, several: bool) -> PathBuf {
    let to = match &copy.to {
        Some(to) => Path::new("/").join(to),
        // Under the name that was written, and with a pattern under what it stands for.
        None if copy.from.contains(['*', '?', '[']) => return from.to_owned(),
        None => return Path::new("/").join(&copy.from),
    };
    let slash = copy.to.as_ref().is_some_and(|to| to.ends_with('/'));
    let directory = tree.open_at(&to, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok();
    match from.file_name() {
        Some(name) if slash || directory || several => to.join(name),
        _ => to,
    }
}

/// Copies a file or a whole directory.
pub(super) fn copy_one(source: &Tree, from: &Path, tree: &Tree, to: &Path, how: How) -> io::Result<LeftOut> {
    if to == Path::new("/") {
        return copy_all(source.open_at(from, DIRECTORY)?.as_fd(), tree, how);
    }
    let (parent, name) = match (from.parent(), from.file_name()) {
        (Some(parent), Some(name)) => (parent, name),
        _ => return Err(Errno::EISDIR.into()),
    };
    let parent = source.open_at(parent, DIRECTORY)?;
    let (to_parent, to_name) = tree.parent_of(to)?;
    let mut copying = Copying::new(tree, how);
    let here = to.parent().unwrap_or(Path::new(""));
    copying.entry((parent.as_fd(), name), (to_parent.as_fd(), &to_name), here, 0)?;
    Ok(copying.left)
}

/// Copies everything in a directory into an image.
pub(super) fn copy_all(from: BorrowedFd<'_>, tree: &Tree, how: How) -> io::Result<LeftOut> {
    let to = tree.open_at(Path::new(""), DIRECTORY)?;
    let mut copying = Copying::new(tree, how);
    copying.inside(from, to.as_fd(), Path::new(""), 0)?;
    Ok(copying.left)
}

/// What has no place in an image: devices, pipes and sockets belong to the machine, or to a program that runs.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    entries: usize,
    first: PathBuf,
    /// Extended attributes that are not an image's, or that its file system does not take.
    attributes: u64,
}

impl LeftOut {
    fn add(&mut self, place: &Path) {
        if self.entries == 0 {
            place.clone_into(&mut self.first);
        }
        self.entries += 1;
    }

    pub(super) fn tell(&self, watch: &dyn Watch) {
        if self.attributes > 0 {
            watch.verbose(&format!("{} extended attributes were left out", self.attributes));
        }
        let first = Path::new("/").join(&self.first);
        match self.entries {
            0 => {}
            1 => watch.info(&format!("{} was left out: it is a device, a pipe or a socket", first.display())),
            many => watch.info(&format!(
                "{many} devices, pipes and sockets were left out, the first of them {}",
                first.display()
            )),
        }
    }
}

struct Copying<'a> {
    tree: &'a Tree,
    how: How,
    left: LeftOut,
    /// Files with several names, by device and inode: where the first name was copied to.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl<'a> Copying<'a> {
    fn new(tree: &'a Tree, how: How) -> Self {
        Self { tree, how, left: LeftOut::default(), seen: HashMap::new() }
    }

    fn inside(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        here: &Path,
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::ELOOP.into());
        }
        for name in list(from)? {
            self.entry((from, &name), (to, &name), here, depth + 1)?;
        }
        Ok(())
    }

    /// `here` is where `to` lies in the image.
    fn entry(
        &mut self,
        (from, name): (BorrowedFd<'_>, &OsStr),
        (to, new): (BorrowedFd<'_>, &OsStr),
        here: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let how = self.how;
        let (at, open) = if how.follow {
            (AtFlags::empty(), OFlag::empty())
        } else {
            (AtFlags::AT_SYMLINK_NOFOLLOW, OFlag::O_NOFOLLOW)
        };
        let stat = fstatat(from, name, at)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        let directory = file_type(&stat) == SFlag::S_IFDIR;
        let mode = Mode::from_bits_truncate(stat.st_mode & allowed(directory));
        let open = open | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let place = here.join(new);
        match file_type(&stat) {
            SFlag::S_IFDIR => {
                if stat_in(to, new)?.is_none_or(|stat| file_type(&stat) != SFlag::S_IFDIR) {
                    remove_in(to, new)?;
                    mkdirat(to, new, Mode::S_IRWXU)?;
                }
                let inside = openat(from, name, open | OFlag::O_DIRECTORY, Mode::empty())?;
                let made = openat(to, new, DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
                self.inside(inside.as_fd(), made.as_fd(), &place, depth)?;
                self.attributes(inside.as_fd(), made.as_fd())?;
                if how.owners {
                    rustix::fs::fchown(&made, Some(uid), Some(gid))?;
                }
                fchmod(&made, mode | Mode::S_IRWXU)?;
            }
            SFlag::S_IFREG if self.linked(&stat, to, new)? => {}
            SFlag::S_IFREG => {
                let mut source = File::from(openat(from, name, open, Mode::empty())?);
                remove_in(to, new)?;
                let mut made = create_in(to, new, 0o600)?;
                sparse::copy(&mut source, &mut made, stat.st_size.cast_unsigned())?;
                self.attributes(source.as_fd(), made.as_fd())?;
                if how.owners {
                    rustix::fs::fchown(&made, Some(uid), Some(gid))?;
                }
                fchmod(&made, mode)?;
                let time = time_of(stat.st_mtime);
                futimens(&made, &time, &time)?;
                if stat.st_nlink > 1 && !how.follow {
                    self.seen.insert((stat.st_dev, stat.st_ino), place);
                }
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(from, name)?;
                remove_in(to, new)?;
                symlinkat(target.as_os_str(), to, new)?;
                if how.owners {
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::chownat(to, new, Some(uid), Some(gid), flags)?;
                }
            }
            _ => self.left.add(&place),
        }
        Ok(())
    }

    /// From the host none are taken, as cp(1) does.
    fn attributes(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        if !self.how.follow {
            self.left.attributes += xattr::copy(from, to)?;
        }
        Ok(())
    }

    /// Whether it is another name of a file that was copied, and was made that.
    fn linked(&self, stat: &FileStat, to: BorrowedFd<'_>, new: &OsStr) -> io::Result<bool> {
        let Some(first) = self.seen.get(&(stat.st_dev, stat.st_ino)) else { return Ok(false) };
        let (Some(parent), Some(name)) = (first.parent(), first.file_name()) else { return Ok(false) };
        let parent = self.tree.open_at(parent, DIRECTORY)?;
        remove_in(to, new)?;
        linkat(&parent, name, to, new, AtFlags::empty())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn trees() -> (tempfile::TempDir, Tree, Tree) {
        let top = tempfile::tempdir().unwrap();
        for name in ["from/dir", "to", "outside"] {
            fs::create_dir_all(top.path().join(name)).unwrap();
        }
        fs::write(top.path().join("from/dir/a"), "a").unwrap();
        fs::hard_link(top.path().join("from/dir/a"), top.path().join("from/b")).unwrap();
        symlink("dir/a", top.path().join("from/link")).unwrap();
        symlink("..", top.path().join("from/dir/loop")).unwrap();
        nix::unistd::mkfifo(&top.path().join("from/pipe"), Mode::S_IRWXU).unwrap();
        let (from, to) =
            (Tree::open(&top.path().join("from")).unwrap(), Tree::open(&top.path().join("to")).unwrap());
        (top, from, to)
    }

    #[test]
    fn an_image_is_copied_as_it_is() {
        let (top, from, to) = trees();
        let left = copy_all(from.dir(), &to, How { follow: false, owners: false }).unwrap();
        let at = |path: &str| top.path().join("to").join(path);
        assert_eq!(fs::metadata(at("b")).unwrap().ino(), fs::metadata(at("dir/a")).unwrap().ino());
        assert_ne!(
            fs::metadata(at("b")).unwrap().ino(),
            fs::metadata(top.path().join("from/b")).unwrap().ino()
        );
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("dir/a"));
        assert!(!at("pipe").exists());
        assert_eq!((left.entries, left.first.as_path()), (1, Path::new("pipe")));
    }

    #[test]
    fn holes_stay_holes() {
        let (top, from, to) = trees();
        let file = fs::File::create(top.path().join("from/sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 64 << 20).unwrap();
        file.set_len(128 << 20).unwrap();
        copy_one(&from, Path::new("/sparse"), &to, Path::new("/sparse"), How { follow: true, owners: false })
            .unwrap();
        let made = fs::metadata(top.path().join("to/sparse")).unwrap();
        assert_eq!(made.len(), 128 << 20);
        assert!(made.blocks() * 512 < 1 << 20, "{} blocks", made.blocks());
        let mut middle = [0; 6];
        let made = fs::File::open(top.path().join("to/sparse")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&made, &mut middle, 64 << 20).unwrap();
        assert_eq!(&middle, b"middle");
    }

    #[test]
    fn from_the_host_links_are_followed_and_end() {
        let (top, from, to) = trees();
        let how = How { follow: true, owners: false };
        copy_one(&from, Path::new("/link"), &to, Path::new("/x/y"), how).unwrap();
        assert_eq!(fs::read_to_string(top.path().join("to/x/y")).unwrap(), "a");
        assert!(!top.path().join("to/x/y").is_symlink());
        let e = copy_one(&from, Path::new("/dir"), &to, Path::new("/d"), how).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(Errno::ELOOP as i32));
    }

    #[test]
    fn a_link_of_the_image_does_not_lead_out() {
        let (top, from, to) = trees();
        symlink(top.path().join("outside"), top.path().join("to/out")).unwrap();
        symlink("../outside", top.path().join("to/up")).unwrap();
        let how = How { follow: false, owners: false };
        for path in ["/out/a", "/up/a"] {
            assert!(copy_one(&from, Path::new("/dir/a"), &to, Path::new(path), how).is_err(), "{path}");
        }
        // A link in the very place is replaced.
        copy_one(&from, Path::new("/dir/a"), &to, Path::new("/out"), how).unwrap();
        assert_eq!(fs::read_to_string(top.path().join("to/out")).unwrap(), "a");
        assert_eq!(fs::read_dir(top.path().join("outside")).unwrap().count(), 0);
    }
}
