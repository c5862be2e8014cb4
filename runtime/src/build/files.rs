//! `%files`: from the host or from an earlier stage, never to a place outside the image.

use std::collections::HashMap;
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
use super::{Work, glob, sparse};
use crate::error::{self, Error};
use crate::image::inside::file_type;
use crate::image::io_words;
use crate::image::tree::{
    Identity, Tree, allowed, create_in, is_full, list, remove_in, room, stat_in, time_of,
};
use crate::image::watch::Watch;
use crate::image::xattr;

/// A link that leads back to where it is makes no end.
const MAX_DEPTH: usize = 100;
/// As many links as the kernel itself follows.
const MAX_LINKS: usize = 40;
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
pub(super) fn copy(files: &Files, tree: &Tree, work: &Work<'_>, definition: &Path) -> error::Result<()> {
    let (cwd, watch) = (work.options.fetch.cwd.as_path(), work.watch);
    let stage = files.from.as_ref().and_then(|name| work.done.get(name));
    let source = Tree::open(stage.map_or(Path::new("/"), PathBuf::as_path))?;
    let root = nix::unistd::geteuid().is_root();
    let how = How { follow: stage.is_none(), owners: stage.is_some() && root };
    for copy in &files.copies {
        let base = if stage.is_some() { Path::new("/") } else { cwd };
        let line = || format!("{}, line {}", definition.display(), copy.line);
        let found = glob::expand(&source, base, Path::new(&copy.from)).map_err(|e| {
            Error::new(format!("{}: {:?} cannot be looked for", line(), copy.from))
                .because(io_words(&e))
                .help("you need read permission for it and for every directory above it")
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
            let cannot = |what: &Path| Error::new(format!("{}: cannot copy {}", line(), what.display()));
            let left = copy_one(&source, from, tree, &to, how, &work.own).map_err(|failed| {
                let error = cannot(failed.below(&to, from).as_ref()).because(io_words(&failed.error));
                if is_full(&failed.error) { error.help(room(tree.path())) } else { error }
            })?;
            if left.is_all(&to) && !is_pattern(&copy.from) {
                return Err(cannot(from)
                    .because("it is a device, a pipe or a socket")
                    .help("leave the line out: containers have the host's devices"));
            }
            left.tell(watch);
        }
    }
    Ok(())
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// As cp(1) chooses: into a directory that is there, else under the new name.
fn destination(tree: &Tree, copy: &Copy, from: &Path, several: bool) -> PathBuf {
    let to = match &copy.to {
        Some(to) => Path::new("/").join(to),
        // Under the name that was written, and with a pattern under what it stands for.
        None if is_pattern(&copy.from) => return from.to_owned(),
        None => return Path::new("/").join(&copy.from),
    };
    let slash = copy.to.as_ref().is_some_and(|to| to.ends_with('/'));
    let directory = tree.open_at(&to, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok();
    match from.file_name() {
        Some(name) if slash || directory || several => to.join(name),
        _ => to,
    }
}

/// Copies a file or a whole directory. What is named is followed where it is a link, inside of `source`; of the links
/// below it `how` decides.
pub(super) fn copy_one(
    source: &Tree,
    from: &Path,
    tree: &Tree,
    to: &Path,
    how: How,
    own: &[Identity],
) -> Result<LeftOut, Failed> {
    let mut copying = Copying::new(tree, how, own);
    let done = (|| {
        if to == Path::new("/") {
            let top = tree.open_at(Path::new(""), DIRECTORY)?;
            return copying.inside(source.open_at(from, DIRECTORY)?.as_fd(), top.as_fd(), Path::new(""), 0);
        }
        let from = if how.follow { from.to_owned() } else { end_of_links(source, from)? };
        let (Some(parent), Some(name)) = (from.parent(), from.file_name()) else {
            return Err(Errno::EISDIR.into());
        };
        let parent = source.open_at(parent, DIRECTORY)?;
        let (to_parent, to_name) = tree.parent_of(to)?;
        let here = to.parent().unwrap_or(Path::new(""));
        copying.entry((parent.as_fd(), name), (to_parent.as_fd(), &to_name), here, 0)
    })();
    copying.outcome(done)
}

/// Copies everything in a directory into an image.
pub(super) fn copy_all(from: BorrowedFd<'_>, tree: &Tree, how: How) -> Result<LeftOut, Failed> {
    let mut copying = Copying::new(tree, how, &[]);
    let top = tree.open_at(Path::new(""), DIRECTORY);
    let done = top.and_then(|to| copying.inside(from, to.as_fd(), Path::new(""), 0));
    copying.outcome(done)
}

/// What a path leads to in the end, links followed inside of the tree. A link that leads nowhere is an error.
fn end_of_links(tree: &Tree, path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { break };
        let dir = tree.open_at(parent, DIRECTORY)?;
        match stat_in(dir.as_fd(), name)? {
            Some(stat) if file_type(&stat) == SFlag::S_IFLNK => {
                path = parent.join(readlinkat(&dir, name)?);
            }
            Some(_) => return Ok(path),
            None => return Err(loose()),
        }
    }
    // A link to a directory may end in `..`; only a loop has no end.
    tree.open_at(&path, OFlag::O_PATH).map(|_| path)
}

fn loose() -> io::Error {
    io::Error::other("it is a link that leads nowhere")
}

/// What could not be copied, and why.
#[derive(Debug)]
pub(super) struct Failed {
    /// Its place in the image; none where it was the whole.
    place: Option<PathBuf>,
    pub(super) error: io::Error,
}

impl Failed {
    /// Where it is below `from`, of which the whole was to be copied to `to`.
    pub(super) fn below(&self, to: &Path, from: &Path) -> PathBuf {
        let place = self.place.as_ref().and_then(|place| place.strip_prefix(to).ok());
        place.filter(|rest| !rest.as_os_str().is_empty()).map_or(from.to_owned(), |rest| from.join(rest))
    }
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

    /// Whether it was this very thing, and so nothing was copied.
    fn is_all(&self, place: &Path) -> bool {
        self.entries == 1 && self.first == place
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
    /// Directories in which this very build makes something: they often lie in what is copied.
    own: Vec<Identity>,
    /// The deepest one of what could not be copied.
    failed: Option<PathBuf>,
    /// Files with several names, by device and inode: where the first name was copied to.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl<'a> Copying<'a> {
    fn new(tree: &'a Tree, how: How, own: &[Identity]) -> Self {
        let own = own.iter().copied().chain(tree.identity()).collect();
        Self { tree, how, left: LeftOut::default(), own, failed: None, seen: HashMap::new() }
    }

    fn outcome(self, done: io::Result<()>) -> Result<LeftOut, Failed> {
        match done {
            Ok(()) => Ok(self.left),
            Err(error) => Err(Failed { place: self.failed, error }),
        }
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
            if let Err(e) = self.entry((from, &name), (to, &name), here, depth + 1) {
                self.failed.get_or_insert_with(|| here.join(&name));
                return Err(e);
            }
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
        let stat = fstatat(from, name, at).map_err(|e| match (e, stat_in(from, name)) {
            (Errno::ENOENT, Ok(Some(_))) => loose(),
            _ => e.into(),
        })?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        let directory = file_type(&stat) == SFlag::S_IFDIR;
        let mode = Mode::from_bits_truncate(stat.st_mode & allowed(directory));
        let open = open | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let place = here.join(new);
        match file_type(&stat) {
            SFlag::S_IFDIR if self.own.contains(&(stat.st_dev, stat.st_ino)) => {}
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

    /// Many a definition file copies the directory in which it lies, and in which the image grows.
    #[test]
    fn what_is_being_made_is_not_copied_into_itself() {
        let (top, _, _) = trees();
        let all = Tree::open(top.path()).unwrap();
        let stage = Tree::open(&top.path().join("outside")).unwrap();
        let to = Tree::open(&top.path().join("to")).unwrap();
        let how = How { follow: false, owners: false };
        copy_one(&all, Path::new("/from/.."), &to, Path::new("/"), how, &[stage.identity().unwrap()])
            .unwrap();
        let names = |path: &str| list(Tree::open(&top.path().join(path)).unwrap().dir()).unwrap();
        assert_eq!(names("to"), ["from"]);
        to.remove("from").unwrap();
        copy_all(all.dir(), &to, how).unwrap();
        assert_eq!(names("to"), ["from", "outside"]);
    }

    #[test]
    fn holes_stay_holes() {
        let (top, from, to) = trees();
        let file = fs::File::create(top.path().join("from/sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 64 << 20).unwrap();
        file.set_len(128 << 20).unwrap();
        copy_one(
            &from,
            Path::new("/sparse"),
            &to,
            Path::new("/sparse"),
            How { follow: true, owners: false },
            &[],
        )
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
        copy_one(&from, Path::new("/link"), &to, Path::new("/x/y"), how, &[]).unwrap();
        assert_eq!(fs::read_to_string(top.path().join("to/x/y")).unwrap(), "a");
        assert!(!top.path().join("to/x/y").is_symlink());
        let e = copy_one(&from, Path::new("/dir"), &to, Path::new("/d"), how, &[]).unwrap_err();
        assert_eq!(e.error.raw_os_error(), Some(Errno::ELOOP as i32));
        fs::remove_file(top.path().join("from/dir/loop")).unwrap();
        symlink("nowhere", top.path().join("from/dir/loose")).unwrap();
        let e = copy_one(&from, Path::new("/dir"), &to, Path::new("/d"), how, &[]).unwrap_err();
        assert_eq!(e.below(Path::new("/d"), Path::new("/dir")), Path::new("/dir/loose"));
        assert_eq!(e.error.to_string(), "it is a link that leads nowhere");
    }

    /// As Apptainer: of another stage only what is named is followed.
    #[test]
    fn a_named_link_of_a_stage_is_what_it_leads_to() {
        let (top, from, to) = trees();
        let at = |path: &str| top.path().join(path);
        for (link, target) in [
            ("view", "/dir"),
            ("chain", "view"),
            ("out", "/../outside/x"),
            ("loose", "none"),
            ("round", "round"),
        ] {
            symlink(target, at("from").join(link)).unwrap();
        }
        fs::write(at("outside/x"), "outside").unwrap();
        let copy = |name: &str| {
            let place = Path::new("/").join(name);
            copy_one(&from, &place, &to, &place, How { follow: false, owners: false }, &[])
        };
        for name in ["view", "chain"] {
            copy(name).unwrap();
            assert!(at("to").join(name).symlink_metadata().unwrap().is_dir());
            assert_eq!(fs::read_to_string(at("to").join(name).join("a")).unwrap(), "a");
            assert!(at("to").join(name).join("loop").is_symlink(), "one below it stays a link");
        }
        assert_eq!(copy("loose").unwrap_err().error.to_string(), "it is a link that leads nowhere");
        assert_eq!(copy("out").unwrap_err().error.to_string(), "No such file or directory (os error 2)");
        assert_eq!(copy("round").unwrap_err().error.raw_os_error(), Some(Errno::ELOOP as i32));
    }

    #[test]
    fn a_link_of_the_image_does_not_lead_out() {
        let (top, from, to) = trees();
        symlink(top.path().join("outside"), top.path().join("to/out")).unwrap();
        symlink("../outside", top.path().join("to/up")).unwrap();
        let how = How { follow: false, owners: false };
        for path in ["/out/a", "/up/a"] {
            assert!(copy_one(&from, Path::new("/dir/a"), &to, Path::new(path), how, &[]).is_err(), "{path}");
        }
        // A link in the very place is replaced.
        copy_one(&from, Path::new("/dir/a"), &to, Path::new("/out"), how, &[]).unwrap();
        assert_eq!(fs::read_to_string(top.path().join("to/out")).unwrap(), "a");
        assert_eq!(fs::read_dir(top.path().join("outside")).unwrap().count(), 0);
    }
}
