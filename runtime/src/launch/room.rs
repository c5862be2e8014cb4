//! Room for what an image lacks: mount points, and small files that no image has. They lie in a layer of ours, of
//! which an overlay makes one directory with the image's. The layer is filled before the overlay stands: so nothing
//! is copied up, and there is room also in directories of owners who are not mapped, where the user may make nothing.

use crate::error::{Error, Result};
use crate::launch::making::{cannot, is_directory};
use crate::launch::protocol::Ground;
use crate::spec::{Mount, RootWrite};
use crate::sys::mount as sys;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, fchmod, fstat, fstatat, mkdirat};
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// More overlays than this cost more than one over everything.
const MANY: usize = 3;

/// Something that has to be at a place of the root.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The deepest directory of the image on the way to it, links resolved, from the image's root on.
    directory: PathBuf,
    /// Where it is below that.
    below: PathBuf,
    is: Is<'a>,
    /// The image has something there.
    present: bool,
}

#[derive(Debug, Clone, Copy)]
enum Is<'a> {
    /// A mount point.
    Directory,
    /// A mount point.
    File,
    /// The file of this mount, with its text.
    Text(usize, &'a str),
}

impl Wanted<'_> {
    /// Its place in the image.
    fn path(&self) -> PathBuf {
        self.directory.join(&self.below)
    }
}

/// Where the image has nothing.
pub(crate) fn missing(wanted: &[Wanted<'_>]) -> Vec<PathBuf> {
    wanted.iter().filter(|w| !w.present).map(Wanted::path).collect()
}

struct Image<'a> {
    root: BorrowedFd<'a>,
    /// As the kernel tells it.
    path: PathBuf,
}

/// What the image lacks, and the generated files, of which it may have its own.
pub(crate) fn wanted<'a>(ground: &'a Ground, image: BorrowedFd<'_>) -> Vec<Wanted<'a>> {
    let Some(path) = sys::real_path(image) else { return Vec::new() };
    let image = &Image { root: image, path };
    let mut before: Vec<(&Path, &Mount)> = Vec::new();
    let mut all = Vec::new();
    for (index, mount) in ground.mounts.iter().enumerate() {
        let path = match mount {
            Mount::Bind { target, .. } | Mount::Tmpfs { target, .. } | Mount::File { target, .. } => target,
            Mount::Proc => Path::new("/proc"),
            Mount::MinimalDev => Path::new("/dev"),
            // The directory comes with `/dev`.
            Mount::Devpts => continue,
        };
        // What lies on another mount is not the image's to have.
        if !before.iter().any(|(above, mount)| path.starts_with(above) && is_there(mount)) {
            all.extend(look(image, path, index, mount));
        }
        before.push((path, mount));
    }
    let inject = Path::new(stasis_plugin_api::plan::INJECT);
    if ground.inject {
        all.extend(lacking(image, inject, Is::Directory));
    }
    all
}

/// Whether the mount will be made.
fn is_there(mount: &Mount) -> bool {
    !matches!(mount, Mount::Bind { optional: true, source, .. } if !source.exists())
}

fn look<'a>(image: &Image<'_>, path: &Path, index: usize, mount: &'a Mount) -> Option<Wanted<'a>> {
    match (sys::open_below(image.root, path, OFlag::O_PATH), mount) {
        (Ok(there), Mount::File { content, .. }) if !is_directory(there.as_fd()) => {
            let place = sys::real_path_below(&image.path, there.as_fd())?;
            Some(Wanted {
                directory: place.parent()?.to_owned(),
                below: place.file_name()?.into(),
                is: Is::Text(index, content),
                present: true,
            })
        }
        (Err(Errno::ENOENT), Mount::File { content, .. }) => lacking(image, path, Is::Text(index, content)),
        (Err(Errno::ENOENT), Mount::Bind { source, optional, .. }) => match std::fs::metadata(source) {
            Ok(meta) if meta.is_dir() => lacking(image, path, Is::Directory),
            Err(_) if *optional => None,
            _ => lacking(image, path, Is::File),
        },
        (Err(Errno::ENOENT), _) => lacking(image, path, Is::Directory),
        _ => None,
    }
}

fn lacking<'a>(image: &Image<'_>, path: &Path, is: Is<'a>) -> Option<Wanted<'a>> {
    for parent in path.ancestors().skip(1) {
        let there = match sys::open_below(image.root, parent, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(there) => there,
            Err(Errno::ENOENT) => continue,
            Err(_) => return None,
        };
        let below = path.strip_prefix(parent).ok()?;
        let mut parts = below.components();
        let first = parts.next()?;
        // A link that leads nowhere may be covered; where it is only on the way, nobody knows what it means.
        let link = fstatat(there.as_fd(), first.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
        if link && parts.next().is_some() {
            return None;
        }
        let directory = sys::real_path_below(&image.path, there.as_fd())?;
        return Some(Wanted { directory, below: below.to_owned(), is, present: false });
    }
    None
}

/// The directories in which something is missing, when they are few and the root is not among them: then overlays over
/// only these are enough, and everything else is found as fast as in the image itself.
pub(crate) fn directories<'a>(wanted: &'a [Wanted<'_>]) -> Option<Vec<&'a Path>> {
    let mut all: Vec<&Path> = wanted.iter().filter(|w| !w.present).map(|w| w.directory.as_path()).collect();
    // Also the order in which they can be mounted: what lies above comes first.
    all.sort_unstable();
    all.dedup();
    (all.len() <= MANY && !all.contains(&Path::new("/"))).then_some(all)
}

/// Overlays over these directories of a root that is the image itself, read-only. Answers with the mounts that are done.
///
/// # Errors
/// What failed and why.
pub(crate) fn over(
    ground: &Ground,
    image: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    workshop: BorrowedFd<'_>,
    wanted: &[Wanted<'_>],
    directories: &[&Path],
) -> Result<Vec<usize>> {
    let mut done = Vec::new();
    for (number, directory) in directories.iter().enumerate() {
        let failed = |e| cannot("make room for mount points in", directory, e);
        let lower = sys::open_below(image, directory, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
        let layer = layer(workshop, format!("room-{number}"), lower.as_fd()).map_err(failed)?;
        for wanted in wanted.iter().filter(|w| w.directory == *directory) {
            done.extend(put(layer.as_fd(), wanted, true)?);
        }
        let at = sys::open_below(root, directory, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
        let data = stacked(layer.as_fd(), lower.as_fd());
        mount(ground, &sys::path_of(at.as_fd()), MsFlags::MS_RDONLY, data).map_err(failed)?;
    }
    Ok(done)
}

/// An overlay over the whole image, with room in the layer on top. Answers with the mounts that are done.
///
/// # Errors
/// What failed and why.
pub(crate) fn whole(
    ground: &Ground,
    image: BorrowedFd<'_>,
    workshop: BorrowedFd<'_>,
    wanted: &[Wanted<'_>],
) -> Result<Vec<usize>> {
    let top = Path::new("/");
    let failed = |e| cannot("mount an overlay over", &ground.root.directory, e);
    let read_only = ground.root.write == RootWrite::ReadOnly;
    let upper = layer(workshop, "upper", image).map_err(failed)?;
    let mut done = Vec::new();
    // What the application may change it may not change in these files.
    for wanted in wanted.iter().filter(|w| read_only || !w.present) {
        let below = wanted.directory.strip_prefix(top).unwrap_or(top);
        let (mut within, mut lower) = (copy(upper.as_fd())?, copy(image)?);
        for name in below {
            let next = directory(lower.as_fd(), name).map_err(failed)?;
            within = layer(within.as_fd(), name, next.as_fd()).map_err(failed)?;
            lower = next;
        }
        done.extend(put(within.as_fd(), wanted, read_only)?);
    }
    let data = match read_only {
        true => stacked(upper.as_fd(), image),
        false => {
            mkdirat(workshop, "work", Mode::from_bits_truncate(0o700)).map_err(failed)?;
            writable(image, workshop)
        }
    };
    mount(ground, &ground.mount_point, MsFlags::empty(), data).map_err(failed)?;
    Ok(done)
}

/// An overlay over the whole image that keeps changes in a directory of the host.
///
/// # Errors
/// What failed and why.
pub(crate) fn kept(ground: &Ground, image: BorrowedFd<'_>, directory: &Path) -> Result<()> {
    let place = sys::open_place(directory).map_err(|e| cannot("open the overlay", directory, e))?;
    for name in ["upper", "work"] {
        match mkdirat(&place, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(cannot("make the overlay directory", &directory.join(name), e)),
        }
    }
    mount(ground, &ground.mount_point, MsFlags::empty(), writable(image, place.as_fd()))
        .map_err(|e| cannot("mount an overlay over", &ground.root.directory, e))
}

fn stacked(layer: BorrowedFd<'_>, lower: BorrowedFd<'_>) -> String {
    format!("lowerdir={}:{}", sys::path_of(layer).display(), sys::path_of(lower).display())
}

fn writable(lower: BorrowedFd<'_>, layers: BorrowedFd<'_>) -> String {
    let (lower, layers) = (sys::path_of(lower), sys::path_of(layers));
    let (lower, layers) = (lower.display(), layers.display());
    format!("lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work")
}

fn mount(ground: &Ground, at: &Path, flags: MsFlags, mut data: String) -> std::result::Result<(), Errno> {
    // One device number for files of all layers: without it a mapped file cannot be told by its numbers.
    data.push_str(",xino=on");
    if ground.user {
        data.push_str(",userxattr");
    }
    sys::mount(Some(Path::new("stasis")), at, Some("overlay"), flags, Some(&data))
}

/// A directory of a layer that looks like the one of the image with which it becomes one. There may be one already.
fn layer(
    within: BorrowedFd<'_>,
    name: impl AsRef<OsStr>,
    like: BorrowedFd<'_>,
) -> std::result::Result<OwnedFd, Errno> {
    let name = name.as_ref();
    match mkdirat(within, name, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => return directory(within, name),
        other => other?,
    }
    let made = nix::fcntl::openat(
        within,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let have = fstat(like)?;
    // Only root can, and only root needs it: other owners are not mapped.
    let _ = nix::unistd::fchown(&made, Some(have.st_uid.into()), Some(have.st_gid.into()));
    fchmod(&made, Mode::from_bits_truncate(have.st_mode & 0o7777))?;
    Ok(made)
}

fn directory(within: BorrowedFd<'_>, name: &OsStr) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::openat(within, name, flags, Mode::empty())
}

fn copy(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|e| Error::new("cannot make room for mount points").because(&e))
}

/// Makes something in a layer; the mount that is done by that, which is a file with its text where `texts` are wanted.
fn put(layer: BorrowedFd<'_>, wanted: &Wanted<'_>, texts: bool) -> Result<Option<usize>> {
    let failed = |e: Errno| cannot("make the mount point", &wanted.path(), e);
    let mut within = copy(layer)?;
    let mut names = wanted.below.iter().peekable();
    while let Some(name) = names.next() {
        if names.peek().is_some() || matches!(wanted.is, Is::Directory) {
            within = made(within.as_fd(), name).map_err(failed)?;
            continue;
        }
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            nix::fcntl::openat(&within, name, flags, Mode::from_bits_truncate(0o644)).map_err(failed)?;
        if let (true, Is::Text(index, text)) = (texts, wanted.is) {
            std::fs::File::from(file).write_all(text.as_bytes()).map_err(|e| {
                Error::new(format!("cannot write the file for {}", wanted.path().display())).because(&e)
            })?;
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn made(within: BorrowedFd<'_>, name: &OsStr) -> std::result::Result<OwnedFd, Errno> {
    match mkdirat(within, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => directory(within, name),
        Err(e) => Err(e),
    }
}
