//! Puts the root file system together in the container's own mount namespace and moves into it.
//! Every target is opened below the new root, links resolved there, and mounted by descriptor.

use crate::error::{Error, Result};
use crate::launch::making::{Making, cannot};
use crate::launch::protocol::{Ground, Order};
use crate::launch::{inject, room, skeleton};
use crate::spec::{RootMode, RootWrite};
use crate::sys::mount as sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, fstat, mkdirat};
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

/// A root on which everything lies that does not depend on the engine. This process has not moved into it.
pub struct Laid {
    making: Making,
    mode: RootMode,
}

/// Builds the root, as far as it can be built before an engine was asked. `between` is done again and again meanwhile.
///
/// # Errors
/// The mount that failed and why.
pub fn lay(ground: &Ground, image: Option<BorrowedFd<'_>>, between: &mut dyn FnMut()) -> Result<Laid> {
    let slash = Path::new("/");
    // Everybody inside may use what is made here; the application gets its own mask later.
    nix::sys::stat::umask(Mode::S_IWGRP | Mode::S_IWOTH);
    sys::propagation(slash, MsFlags::MS_REC | MsFlags::MS_SLAVE)
        .map_err(|e| cannot("separate the mounts of", slash, e))?;
    let workshop = workshop(&ground.mount_point)?;
    let image = content(ground, image, &workshop)?;
    between();
    let Base { root, mode, done, rooms } = base(ground, image.as_fd(), &workshop)?;
    // A bind of everything below `/dev` or `/tmp` must not bring it along. Not before the overlay stands,
    // which has to clone it.
    sys::propagation(&sys::path_of(workshop.as_fd()), MsFlags::MS_UNBINDABLE)
        .map_err(|e| cannot("separate", &ground.mount_point, e))?;
    let mut making = Making::new(root, workshop, rooms);
    for (index, mount) in ground.mounts.iter().enumerate() {
        if !done.contains(&index) {
            between();
            making.mount(mount)?;
        }
    }
    Ok(Laid { making, mode })
}

impl std::fmt::Debug for Laid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Laid").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Laid {
    /// Puts the rest in and makes it this process's own; `last` is done when only the host's root has to go.
    ///
    /// # Errors
    /// The mount that failed and why.
    pub fn complete(mut self, order: &Order, last: impl FnOnce()) -> Result<Made> {
        if let Some(engine) = &order.spec.engine {
            inject::fill(&mut self.making, engine, order.logs.as_deref())?;
        } else if let Some(logs) = &order.logs {
            inject::logs_only(&mut self.making, logs)?;
        }
        finish(self.making, order, self.mode, last)
    }
}

fn finish(making: Making, order: &Order, mode: RootMode, last: impl FnOnce()) -> Result<Made> {
    let slash = Path::new("/");
    let tmpfs = making.visible_tmpfs();
    if order.spec.root.write == RootWrite::ReadOnly {
        for part in std::iter::once(&making.root).chain(&making.rooms) {
            sys::make_top_read_only(part.as_fd()).map_err(|e| cannot("make read-only", slash, e))?;
        }
    }
    last();
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
fn content(ground: &Ground, mount: Option<BorrowedFd<'_>>, workshop: &OwnedFd) -> Result<OwnedFd> {
    let root = &ground.root;
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

fn base(ground: &Ground, image: BorrowedFd<'_>, workshop: &OwnedFd) -> Result<Base> {
    let at = &ground.mount_point;
    let wanted = room::wanted(ground, image);
    let whole =
        || Ok::<_, Error>((RootMode::Overlay, room::whole(ground, image, workshop.as_fd(), &wanted)?));
    let skeleton =
        || skeleton::make(image, at, &room::missing(&wanted)).map(|()| (RootMode::Skeleton, Vec::new()));
    let mut rooms = Vec::new();
    let (mode, done) = match (&ground.root.write, ground.root.mode) {
        (RootWrite::Image, _) => plain(image, at, false).map(|()| (RootMode::Plain, Vec::new()))?,
        (RootWrite::Tmpfs, _) | (RootWrite::ReadOnly, RootMode::Overlay) => whole()?,
        (RootWrite::Overlay(directory), _) => {
            room::kept(ground, image, directory)?;
            rooms = closed_ones(ground, &wanted)?;
            (RootMode::Overlay, Vec::new())
        }
        (RootWrite::ReadOnly, RootMode::Plain) => {
            plain(image, at, true).map(|()| (RootMode::Plain, Vec::new()))?
        }
        (RootWrite::ReadOnly, RootMode::Skeleton) => skeleton()?,
        // Kernels before 5.11 have no overlay for users, and not every file system may be under one.
        (RootWrite::ReadOnly, RootMode::Auto) => {
            let overlays = few(ground, image, workshop, &wanted).or_else(|error| {
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
    if ground.root.file.is_some() && !ground.user {
        // A file is anybody's work, also where it was unpacked. In a user namespace this is so already.
        sys::make_harmless(root.as_fd()).map_err(|e| cannot("take devices away from", at, e))?;
    }
    // Binds of `/dev` or `/tmp` with all below must not bring a copy of the root itself along.
    sys::propagation(at, MsFlags::MS_UNBINDABLE).map_err(|e| cannot("separate", at, e))?;
    Ok(Base { root, mode, done, rooms })
}

/// The image itself, where nothing is missing, or only in few directories.
fn few(
    ground: &Ground,
    image: BorrowedFd<'_>,
    workshop: &OwnedFd,
    wanted: &[room::Wanted<'_>],
) -> Result<(RootMode, Vec<usize>)> {
    let at = &ground.mount_point;
    let Some(directories) = room::directories(wanted) else {
        return Err(Error::new("the image lacks too much"));
    };
    if !directories.is_empty() && ground.engine {
        return Err(Error::new("a restart would see it under one overlay"));
    }
    plain(image, at, true)?;
    if directories.is_empty() {
        return Ok((RootMode::Plain, Vec::new()));
    }
    let root = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    let done = room::over(ground, image, root.as_fd(), workshop.as_fd(), wanted, &directories)?;
    Ok((RootMode::Overlay, done))
}

/// Room in directories where not even an overlay that is kept lets the user make anything.
fn closed_ones(ground: &Ground, wanted: &[room::Wanted<'_>]) -> Result<Vec<OwnedFd>> {
    let at = &ground.mount_point;
    if !ground.user {
        return Ok(Vec::new());
    }
    let root = sys::open_place(at).map_err(|e| cannot("open", at, e))?;
    let missing = room::missing(wanted);
    let closed = closed(ground, root.as_fd(), &missing);
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
fn closed(ground: &Ground, root: BorrowedFd<'_>, missing: &[PathBuf]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    for path in missing {
        let there =
            path.ancestors().skip(1).find_map(|p| Some((p, sys::open_below(root, p, OFlag::O_PATH).ok()?)));
        let Some((parent, fd)) = there else { continue };
        let owner = fstat(fd.as_fd()).map_or(0, |s| s.st_uid);
        if parent != Path::new("/") && owner != ground.uid && !all.iter().any(|p| p == parent) {
            all.push(parent.to_path_buf());
        }
    }
    all
}
