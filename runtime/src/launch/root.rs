//! Puts the root file system together in the container's own mount namespace and moves into it.
//! Every target is opened below the new root, links resolved there, and mounted by descriptor.

use crate::error::{Error, Result};
use crate::launch::protocol::Order;
use crate::launch::{inject, room, skeleton};
use crate::spec::{Mount, RootMode, RootWrite};
use crate::sys::mount as sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A root that this process has moved into.
#[derive(Debug)]
pub struct Made {
    /// How the root was made.
    pub mode: RootMode,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// Listening sockets for the engine's helpers, by their path inside.
    pub listeners: BTreeMap<PathBuf, UnixListener>,
    /// Where the container has memory file systems of its own.
    pub tmpfs: Vec<PathBuf>,
}

pub(crate) fn cannot(doing: &str, object: &Path, e: Errno) -> Error {
    let error = Error::new(format!("cannot {doing} {}", object.display())).because(e.desc());
    match e {
        Errno::EPERM | Errno::EACCES => error.help(crate::launch::userns::forbidden_help(Some(e))),
        _ => error,
    }
}

/// Builds the root and makes it this process's own.
///
/// # Errors
/// The mount that failed and why.
pub fn make(order: &Order, image: Option<BorrowedFd<'_>>) -> Result<Made> {
    let slash = Path::new("/");
    // Everybody inside may use what is made here; the application gets its own mask later.
    nix::sys::stat::umask(Mode::S_IWGRP | Mode::S_IWOTH);
    sys::propagation(slash, MsFlags::MS_REC | MsFlags::MS_SLAVE)
        .map_err(|e| cannot("separate the mounts of", slash, e))?;
    let workshop = workshop(&order.mount_point)?;
    let image = content(order, image, &workshop)?;
    let Base { root, mode, done, rooms } = base(order, image.as_fd(), &workshop)?;
    // A bind of everything below `/dev` or `/tmp` must not bring it along. Not before the overlay stands,
    // which has to clone it.
    sys::propagation(&sys::path_of(workshop.as_fd()), MsFlags::MS_UNBINDABLE)
        .map_err(|e| cannot("separate", &order.mount_point, e))?;
    let mut making =
        Making { root, workshop, rooms, notes: Vec::new(), files: 0, made: Vec::new(), tmpfs: Vec::new() };
    for (index, mount) in order.spec.mounts.iter().enumerate() {
        if !done.contains(&index) {
            making.mount(mount)?;
        }
    }
    if let Some(engine) = &order.spec.engine {
        inject::fill(&mut making, engine, order.logs.as_deref())?;
    } else if let Some(logs) = &order.logs {
        inject::logs_only(&mut making, logs)?;
    }
    finish(making, order, mode)
}

fn finish(making: Making, order: &Order, mode: RootMode) -> Result<Made> {
    let slash = Path::new("/");
    let tmpfs = making.visible_tmpfs();
    if order.spec.root.write == RootWrite::ReadOnly {
        for part in std::iter::once(&making.root).chain(&making.rooms) {
            sys::make_top_read_only(part.as_fd()).map_err(|e| cannot("make read-only", slash, e))?;
        }
    }
    sys::pivot_into(making.root.as_fd())
        .map_err(|e| cannot("change the root to", &order.spec.root.directory, e))?;
    let listeners = inject::listeners(order.spec.engine.as_ref())?;
    if order.spec.engine.is_some() {
        inject::seal()?;
    }
    if let Some(name) = &order.spec.hostname
        && order.spec.namespaces.uts
    {
        nix::unistd::sethostname(name)
            .map_err(|e| Error::new(format!("cannot set the host name {name}")).because(e.desc()))?;
    }
    if order.spec.namespaces.net {
        crate::sys::process::loopback_up()
            .map_err(|e| Error::new("cannot bring up the container's own network").because(&e))?;
    }
    Ok(Made { mode, notes: making.notes, listeners, tmpfs })
}

/// A tmpfs of our own, below the coming root and hidden by it: upper directories, generated files.
fn workshop(mount_point: &Path) -> Result<OwnedFd> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    sys::mount(Some(Path::new("stasis")), mount_point, Some("tmpfs"), flags, Some("mode=0755,size=64m"))
        .map_err(|e| cannot("mount a tmpfs at", mount_point, e))?;
    sys::open_place(mount_point).map_err(|e| cannot("open", mount_point, e))
}

/// The image's content: its directory, or the mount that was handed over, attached out of the way.
fn content(order: &Order, mount: Option<BorrowedFd<'_>>, workshop: &OwnedFd) -> Result<OwnedFd> {
    let root = &order.spec.root;
    if !root.is_mounted() {
        return sys::open_place(&root.directory).map_err(|e| cannot("open the image", &root.directory, e));
    }
    let failed = |e| cannot("mount the image", root.image(), e);
    let mount = mount.ok_or_else(|| failed(Errno::EBADF))?;
    let name = "image";
    mkdirat(workshop, name, Mode::from_bits_truncate(0o700)).map_err(failed)?;
    let open = || sys::open_below(workshop.as_fd(), Path::new(name), OFlag::O_PATH | OFlag::O_DIRECTORY);
    sys::attach(mount, open().map_err(failed)?.as_fd()).map_err(failed)?;
    open().map_err(failed)
}

/// A root without its mounts.
struct Base {
    root: OwnedFd,
    mode: RootMode,
    /// Mounts of the spec that need not be made any more.
    done: Vec<usize>,
    /// Directories over which a tmpfs makes room, closed when everything is in place.
    rooms: Vec<OwnedFd>,
}

fn base(order: &Order, image: BorrowedFd<'_>, workshop: &OwnedFd) -> Result<Base> {
    let spec = &order.spec;
    let at = &order.mount_point;
    let wanted = room::wanted(order, image);
    let whole = || Ok::<_, Error>((RootMode::Overlay, room::whole(order, image, workshop.as_fd(), &wanted)?));
    let skeleton =
        || skeleton::make(image, at, &room::missing(&wanted)).map(|()| (RootMode::Skeleton, Vec::new()));
    let mut rooms = Vec::new();
    let (mode, done) = match (&spec.root.write, spec.root.mode) {
        (RootWrite::Image, _) => plain(image, at, false).map(|()| (RootMode::Plain, Vec::new()))?,
        (RootWrite::Tmpfs, _) | (RootWrite::ReadOnly, RootMode::Overlay) => whole()?,
        (RootWrite::Overlay(directory), _) => {
            room::kept(order, image, directory)?;
            rooms = closed_ones(order, &wanted)?;
            (RootMode::Overlay, Vec::new())
        }
        (RootWrite::ReadOnly, RootMode::Plain) => {
            plain(image, at, true).map(|()| (RootMode::Plain, Vec::new()))?
        }
        (RootWrite::ReadOnly, RootMode::Skeleton) => skeleton()?,
        // Kernels before 5.11 have no overlay for users, and not every file system may be under one.
        (RootWrite::ReadOnly, RootMode::Auto) => {
            let overlays = few(order, image, workshop, &wanted).or_else(|error| {
                tracing::debug!(%error, "one overlay over everything");
                whole()
            });
            overlays.or_else(|error| {
                tracing::debug!(%error, "no overlay");
                skeleton()
            })?
        }
    };
    let root = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    if spec.root.file.is_some() && !spec.namespaces.user {
        // A file is anybody's work, also where it was unpacked. In a user namespace this is so already.
        sys::make_harmless(root.as_fd()).map_err(|e| cannot("take devices away from", at, e))?;
    }
    // Binds of `/dev` or `/tmp` with all below must not bring a copy of the root itself along.
    sys::propagation(at, MsFlags::MS_UNBINDABLE).map_err(|e| cannot("separate", at, e))?;
    Ok(Base { root, mode, done, rooms })
}

/// The image itself, where nothing is missing, or only in few directories.
fn few(
    order: &Order,
    image: BorrowedFd<'_>,
    workshop: &OwnedFd,
    wanted: &[room::Wanted<'_>],
) -> Result<(RootMode, Vec<usize>)> {
    let at = &order.mount_point;
    let Some(directories) = room::directories(wanted) else {
        return Err(Error::new("the image lacks too much"));
    };
    if !directories.is_empty() && order.spec.engine.is_some() {
        return Err(Error::new("a restart would see it under one overlay"));
    }
    plain(image, at, true)?;
    if directories.is_empty() {
        return Ok((RootMode::Plain, Vec::new()));
    }
    let root = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    let done = room::over(order, image, root.as_fd(), workshop.as_fd(), wanted, &directories)?;
    Ok((RootMode::Overlay, done))
}

/// Room in directories where not even an overlay that is kept lets the user make anything.
fn closed_ones(order: &Order, wanted: &[room::Wanted<'_>]) -> Result<Vec<OwnedFd>> {
    let at = &order.mount_point;
    if !order.spec.namespaces.user {
        return Ok(Vec::new());
    }
    let root = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    let missing = room::missing(wanted);
    let closed = closed(order, root.as_fd(), &missing);
    closed.iter().map(|directory| skeleton::over(root.as_fd(), directory, &missing)).collect()
}

fn plain(image: BorrowedFd<'_>, at: &Path, read_only: bool) -> Result<()> {
    let to = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    sys::bind(image, to.as_fd()).map_err(|e| cannot("bind the image to", at, e))?;
    if !read_only {
        return Ok(());
    }
    let top = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    sys::make_read_only(top.as_fd()).map_err(|e| cannot("make read-only", at, e))
}

/// Directories of the image in which mount points are missing and the user may make none: with the
/// image's owner not mapped, not even an overlay helps.
fn closed(order: &Order, root: BorrowedFd<'_>, missing: &[PathBuf]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    for path in missing {
        let there =
            path.ancestors().skip(1).find_map(|p| Some((p, sys::open_below(root, p, OFlag::O_PATH).ok()?)));
        let Some((parent, fd)) = there else { continue };
        let owner = fstat(fd.as_fd()).map_or(0, |s| s.st_uid);
        if parent != Path::new("/") && owner != order.spec.ids.uid && !all.iter().any(|p| p == parent) {
            all.push(parent.to_path_buf());
        }
    }
    all
}

fn device_of(top: &OwnedFd, path: &Path) -> Result<libc::dev_t> {
    Ok(fstat(top).map_err(|e| cannot("look at", path, e))?.st_dev)
}

/// A root in the making.
pub(crate) struct Making {
    pub(crate) root: OwnedFd,
    pub(crate) workshop: OwnedFd,
    pub(crate) notes: Vec<String>,
    rooms: Vec<OwnedFd>,
    files: u32,
    /// Where something was mounted, and which directory of the host it is.
    made: Vec<(PathBuf, Option<PathBuf>)>,
    /// Where a memory file system of the container's own was mounted, and its device.
    tmpfs: Vec<(PathBuf, libc::dev_t)>,
}

impl Making {
    /// Those that no later mount hides: a bind of `/var` shows the host's `/var/tmp`.
    fn visible_tmpfs(&self) -> Vec<PathBuf> {
        let visible = |(path, device): &&(PathBuf, libc::dev_t)| {
            self.open(path).and_then(|top| device_of(&top, path)).is_ok_and(|d| d == *device)
        };
        self.tmpfs.iter().filter(visible).map(|(path, _)| path.clone()).collect()
    }

    fn mount(&mut self, mount: &Mount) -> Result<()> {
        match mount {
            Mount::Bind { source, target, writable, optional, .. } => {
                match self.bind(source, target, *writable) {
                    Err(error) if *optional => {
                        tracing::debug!(%error, "left out");
                        Ok(())
                    }
                    other => other,
                }
            }
            Mount::Proc => self.fresh("proc", Path::new("/proc"), MsFlags::MS_NOEXEC, None).map_err(|e| {
                e.help("a new /proc is refused where stasis runs inside another container that masks parts of /proc")
            }),
            Mount::MinimalDev => self.minimal_dev(),
            Mount::Devpts => self.devpts(),
            Mount::Tmpfs { target, size, mode } => {
                let size = size.map(|s| format!(",size={s}")).unwrap_or_default();
                self.fresh("tmpfs", target, MsFlags::empty(), Some(&format!("mode={mode:o}{size}")))?;
                let device = device_of(&self.open(target)?, target)?;
                self.tmpfs.push((target.clone(), device));
                Ok(())
            }
            Mount::File { target, content, optional } => match self.file(target, content) {
                Err(error) if *optional => {
                    tracing::debug!(%error, "left out");
                    Ok(())
                }
                other => other,
            },
        }
    }

    /// Shows a path of the host at `target`.
    pub(crate) fn bind(&mut self, source: &Path, target: &Path, writable: bool) -> Result<()> {
        let from = sys::open_place(source).map_err(|e| cannot("open the bind source", source, e))?;
        self.bind_open(from.as_fd(), target, writable)?;
        self.made.push((target.to_owned(), Some(source.to_owned())));
        Ok(())
    }

    fn bind_open(&mut self, from: BorrowedFd<'_>, target: &Path, writable: bool) -> Result<()> {
        let to = self.place(target, is_directory(from))?;
        sys::bind(from, to.as_fd()).map_err(|e| cannot("mount something at", target, e))?;
        if !writable {
            let top = self.open(target)?;
            sys::make_read_only(top.as_fd()).map_err(|e| cannot("make read-only", target, e))?;
        }
        Ok(())
    }

    /// Mounts a new file system.
    pub(crate) fn fresh(
        &mut self,
        kind: &str,
        target: &Path,
        flags: MsFlags,
        data: Option<&str>,
    ) -> Result<()> {
        let to = self.place(target, true)?;
        let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        sys::mount(Some(Path::new("stasis")), &sys::path_of(to.as_fd()), Some(kind), flags, data)
            .map_err(|e| cannot(&format!("mount {kind} at"), target, e))?;
        self.made.push((target.to_owned(), None));
        Ok(())
    }

    fn file(&mut self, target: &Path, content: &str) -> Result<()> {
        self.files += 1;
        let name = format!("file-{}", self.files);
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let made =
            nix::fcntl::openat(self.workshop.as_fd(), name.as_str(), flags, Mode::from_bits_truncate(0o644))
                .map_err(|e| cannot("make the file for", target, e))?;
        let mut made = std::fs::File::from(made);
        std::io::Write::write_all(&mut made, content.as_bytes())
            .map_err(|e| Error::new(format!("cannot write the file for {}", target.display())).because(&e))?;
        let workshop = sys::path_of(self.workshop.as_fd());
        let failed = |e| cannot("separate the file for", target, e);
        sys::propagation(&workshop, MsFlags::MS_PRIVATE).map_err(failed)?;
        self.bind_open(made.as_fd(), target, false)?;
        sys::propagation(&workshop, MsFlags::MS_UNBINDABLE).map_err(failed)
    }

    fn minimal_dev(&mut self) -> Result<()> {
        self.fresh_with_devices("/dev", "mode=0755,size=64k")?;
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let path = Path::new("/dev").join(name);
            if path.exists() {
                self.bind(&path, &path, true)?;
            }
        }
        for name in ["pts", "shm"] {
            self.place(&Path::new("/dev").join(name), true)?;
        }
        let dev = self.open(Path::new("/dev"))?;
        for (name, to) in [
            ("ptmx", "pts/ptmx"),
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            nix::unistd::symlinkat(to, dev.as_fd(), name)
                .map_err(|e| cannot("make the link", &Path::new("/dev").join(name), e))?;
        }
        Ok(())
    }

    fn fresh_with_devices(&mut self, target: &str, data: &str) -> Result<()> {
        let target = Path::new(target);
        let to = self.place(target, true)?;
        sys::mount(
            Some(Path::new("stasis")),
            &sys::path_of(to.as_fd()),
            Some("tmpfs"),
            MsFlags::MS_NOSUID,
            Some(data),
        )
        .map_err(|e| cannot("mount a tmpfs at", target, e))?;
        self.made.push((target.to_owned(), None));
        Ok(())
    }

    fn devpts(&mut self) -> Result<()> {
        let target = Path::new("/dev/pts");
        let to = self.place(target, true)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let data = "newinstance,ptmxmode=0666,mode=0620";
        sys::mount(Some(Path::new("devpts")), &sys::path_of(to.as_fd()), Some("devpts"), flags, Some(data))
            .map_err(|e| cannot("mount terminals at", target, e))?;
        // The host's own node leads to the same terminals, and belongs to somebody who may not be mapped: a
        // terminal opened there could not be given its owner again.
        let node = Path::new("/dev/ptmx");
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        if sys::open_below(self.root.as_fd(), node, flags).is_ok_and(|fd| is_character_device(fd.as_fd())) {
            let ours = self.open(&target.join("ptmx"))?;
            self.bind_open(ours.as_fd(), node, true)?;
        }
        Ok(())
    }

    /// Opens a path of the new root.
    pub(crate) fn open(&self, path: &Path) -> Result<OwnedFd> {
        sys::open_below(self.root.as_fd(), path, OFlag::O_PATH)
            .map_err(|e| cannot("open inside the container", path, e))
    }

    /// Opens a mount point of the new root, making it where the layer on top is ours.
    pub(crate) fn place(&self, path: &Path, directory: bool) -> Result<OwnedFd> {
        match sys::open_below(self.root.as_fd(), path, OFlag::O_PATH) {
            Ok(fd) if is_directory(fd.as_fd()) == directory => Ok(fd),
            Ok(_) => {
                let is = if directory { "a file" } else { "a directory" };
                Err(Error::new(format!("cannot mount at {}: it is {is} in the image", path.display())))
            }
            Err(Errno::ENOENT) => self.create(path, directory),
            Err(e) => Err(cannot("open inside the container", path, e)),
        }
    }

    fn create(&self, path: &Path, directory: bool) -> Result<OwnedFd> {
        let (parent, mut within) = self.deepest(path)?;
        if !is_directory(within.as_fd()) {
            let parent = parent.display();
            return Err(Error::new(format!("cannot mount at {}: {parent} is a file", path.display())));
        }
        self.refuse_the_hosts(path, parent, within.as_fd())?;
        let mut names = path.strip_prefix(parent).unwrap_or(path).iter().peekable();
        while let Some(name) = names.next() {
            let made = if directory || names.peek().is_some() {
                mkdirat(&within, name, Mode::from_bits_truncate(0o755))
            } else {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                nix::fcntl::openat(&within, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
            };
            match made {
                Ok(()) => {}
                // It is not there, and it is: the kernel was asked to follow links.
                Err(Errno::EEXIST) => {
                    let why = format!("on the way is a link, \"{}\", that leads nowhere", name.display());
                    return Err(Error::new(format!("cannot mount at {}", path.display()))
                        .because(why)
                        .help("mount at a place of which the image has the directory"));
                }
                Err(e) => {
                    let help = "make it in the image, or start with --writable-tmpfs";
                    return Err(cannot("make the mount point", path, e).help(help));
                }
            }
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            within = nix::fcntl::openat(&within, name, flags, Mode::empty())
                .map_err(|e| cannot("open inside the container", path, e))?;
        }
        Ok(within)
    }

    /// The deepest thing on the way to `path` that is there.
    fn deepest<'a>(&self, path: &'a Path) -> Result<(&'a Path, OwnedFd)> {
        for parent in path.ancestors().skip(1) {
            match sys::open_below(self.root.as_fd(), parent, OFlag::O_PATH) {
                Err(Errno::ENOENT) => {}
                Ok(there) => return Ok((parent, there)),
                Err(e) => return Err(cannot("open inside the container", parent, e)),
            }
        }
        Err(cannot("make", path, Errno::EINVAL))
    }

    /// A directory that was bound from the host is shown, and nothing more: no mount point is made in it.
    fn refuse_the_hosts(&self, path: &Path, parent: &Path, within: BorrowedFd<'_>) -> Result<()> {
        let root = self.root.as_fd();
        let Some(path_of_root) = sys::real_path(root) else { return Ok(()) };
        let place = |target: &Path| {
            let there = sys::open_below(root, target, OFlag::O_PATH).ok()?;
            sys::real_path_below(&path_of_root, there.as_fd())
        };
        let Some(here) = sys::real_path_below(&path_of_root, within) else { return Ok(()) };
        let above = self.made.iter().filter_map(|(target, source)| {
            let place = place(target)?;
            here.starts_with(&place).then_some((place, target, source))
        });
        // Of two at one place the later one is what is seen.
        let Some((place, target, Some(source))) = above.max_by_key(|(place, ..)| place.iter().count()) else {
            return Ok(());
        };
        let below = here.strip_prefix(&place).unwrap_or(&here);
        let missing = path.strip_prefix(parent).unwrap_or(path);
        let there: PathBuf = source.join(below).join(missing).components().collect();
        Err(Error::new(format!("cannot mount at {}: there is nothing to mount on", path.display()))
            .because(format!(
                "{} is the host's {}, in which stasis makes nothing",
                target.display(),
                source.display()
            ))
            .help(format!("make {} on the host, or mount at another place", there.display())))
    }
}

pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> bool {
    is(fd, SFlag::S_IFDIR)
}

fn is_character_device(fd: BorrowedFd<'_>) -> bool {
    is(fd, SFlag::S_IFCHR)
}

fn is(fd: BorrowedFd<'_>, kind: SFlag) -> bool {
    fstat(fd).is_ok_and(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == kind)
}
