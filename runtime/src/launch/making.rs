//! A root file system in the making: what is mounted in it, where, and what must be made for that.
//! Every target is opened below the new root, links resolved there, and mounted by descriptor.

use crate::error::{Error, Result};
use crate::spec::Mount;
use crate::sys::mount as sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A root in the making.
pub(crate) struct Making {
    pub(crate) root: OwnedFd,
    /// As the kernel tells it.
    path_of_root: Option<PathBuf>,
    pub(crate) workshop: OwnedFd,
    pub(crate) notes: Vec<String>,
    pub(crate) rooms: Vec<OwnedFd>,
    files: u32,
    /// What was mounted, in the order in which it was.
    made: Vec<Mounted>,
    /// Where a memory file system of the container's own was mounted, and its device.
    tmpfs: Vec<(PathBuf, libc::dev_t)>,
}

/// Something that was mounted.
struct Mounted {
    target: PathBuf,
    /// Where that is in the root, links resolved.
    place: Option<PathBuf>,
    /// Which directory of the host it is.
    source: Option<PathBuf>,
}

impl Making {
    /// Only the image so far. What is made for it lies in `workshop`; `rooms` are closed at the end.
    pub(crate) fn new(root: OwnedFd, workshop: OwnedFd, rooms: Vec<OwnedFd>) -> Self {
        let path_of_root = sys::real_path(root.as_fd());
        let (notes, made, tmpfs) = (Vec::new(), Vec::new(), Vec::new());
        Self { root, path_of_root, workshop, notes, rooms, files: 0, made, tmpfs }
    }

    /// Those that no later mount hides: a bind of `/var` shows the host's `/var/tmp`.
    pub(crate) fn visible_tmpfs(&self) -> Vec<PathBuf> {
        let visible = |(path, device): &&(PathBuf, libc::dev_t)| {
            self.open(path).and_then(|top| device_of(&top, path)).is_ok_and(|d| d == *device)
        };
        self.tmpfs.iter().filter(visible).map(|(path, _)| path.clone()).collect()
    }

    pub(crate) fn mount(&mut self, mount: &Mount) -> Result<()> {
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
        let to = self.bind_open(from.as_fd(), target, writable)?;
        self.note(target, &to, Some(source));
        Ok(())
    }

    fn note(&mut self, target: &Path, to: &OwnedFd, source: Option<&Path>) {
        let (place, source) = (self.place_of(to.as_fd()), source.map(Path::to_owned));
        self.made.push(Mounted { target: target.to_owned(), place, source });
    }

    /// Where something opened in the root lies there, links resolved.
    fn place_of(&self, there: BorrowedFd<'_>) -> Option<PathBuf> {
        sys::real_path_below(self.path_of_root.as_ref()?, there)
    }

    /// Answers with what was mounted upon.
    fn bind_open(&mut self, from: BorrowedFd<'_>, target: &Path, writable: bool) -> Result<OwnedFd> {
        let to = self.place(target, is_directory(from))?;
        sys::bind(from, to.as_fd()).map_err(|e| cannot("mount something at", target, e))?;
        if !writable {
            let top = self.open(target)?;
            sys::make_read_only(top.as_fd()).map_err(|e| cannot("make read-only", target, e))?;
        }
        Ok(to)
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
        self.note(target, &to, None);
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
        drop(self.bind_open(made.as_fd(), target, false)?);
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
        self.note(target, &to, None);
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
            drop(self.bind_open(ours.as_fd(), node, true)?);
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
        let Some(here) = self.place_of(within) else { return Ok(()) };
        let places = self.made.iter().filter_map(|mounted| Some((mounted.place.as_ref()?, mounted)));
        // Of two at one place the later one is what is seen.
        let above =
            places.filter(|(place, _)| here.starts_with(place)).max_by_key(|(place, _)| place.iter().count());
        let Some((place, Mounted { target, source: Some(source), .. })) = above else { return Ok(()) };
        let below = here.strip_prefix(place).unwrap_or(&here);
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

fn device_of(top: &OwnedFd, path: &Path) -> Result<libc::dev_t> {
    Ok(fstat(top).map_err(|e| cannot("look at", path, e))?.st_dev)
}

pub(crate) fn cannot(doing: &str, object: &Path, e: Errno) -> Error {
    let error = Error::new(format!("cannot {doing} {}", object.display())).because(e.desc());
    match e {
        Errno::EPERM | Errno::EACCES => error.help(crate::launch::userns::forbidden_help(Some(e))),
        _ => error,
    }
}
