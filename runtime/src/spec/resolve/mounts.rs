//! The order of everything that lies in a container. The kernel's places come first, then home and temporary
//! directories, then what the user asked for, so that the user has the last word but for the small files.

use std::path::{Path, PathBuf};

use super::Wishes;
use crate::spec::Mount;
use crate::spec::binds::UserBind;
use crate::spec::identity::{self, MAX_DATABASE};

/// Working directories that are the system's: the host's would hide the image's.
const SYSTEM: &[&str] =
    &["/", "/bin", "/etc", "/lib", "/lib64", "/mnt", "/opt", "/sbin", "/usr", "/var", "/run"];
/// The kernel's places keep their turn when a user binds over them: other mounts lie on them.
const KERNEL: &[&str] = &["/proc", "/sys", "/dev"];

impl Wishes<'_> {
    pub(super) fn mounts(&self) -> Vec<Mount> {
        let mut mounts = Vec::new();
        self.kernel_places(&mut mounts);
        self.temporary_places(&mut mounts);
        self.home_and_cwd(&mut mounts);
        self.small_files(&mut mounts);
        for path in &self.scratch {
            mounts.push(match &self.workdir {
                Some(dir) => {
                    let below = path.strip_prefix("/").unwrap_or(path);
                    self.kept(dir.join("scratch").join(below), path)
                }
                None => tmpfs(path, 0o700),
            });
        }
        for bind in &self.binds {
            put(&mut mounts, bind);
        }
        mounts
    }

    fn kernel_places(&self, mounts: &mut Vec<Mount>) {
        let own_proc = self.namespaces.pid;
        mounts.push(if own_proc { Mount::Proc } else { host("/proc", true) });
        mounts.push(host("/sys", true));
        mounts.push(if self.contain { Mount::MinimalDev } else { host("/dev", true) });
        if self.contain || self.engine {
            mounts.push(Mount::Devpts);
            mounts.push(tmpfs("/dev/shm", 0o1777));
        }
    }

    fn temporary_places(&self, mounts: &mut Vec<Mount>) {
        for (path, name) in [("/tmp", "tmp"), ("/var/tmp", "var_tmp")] {
            mounts.push(match (self.contain, &self.workdir) {
                (false, _) => host(path, true),
                (true, Some(dir)) => self.kept(dir.join(name), Path::new(path)),
                (true, None) => tmpfs(path, 0o1777),
            });
        }
    }

    fn home_and_cwd(&self, mounts: &mut Vec<Mount>) {
        let home = &self.home;
        let root = Path::new("/");
        // A home of `/` is that of nobody, and a bind of it would hide everything.
        if !self.args.no_home && home.target != root && home.source != root {
            mounts.push(match (self.contain, &self.workdir) {
                // A home that was typed with a place is shown even in a contained one.
                (true, _) if home.given && home.source != home.target => self.home_bind(),
                (true, Some(dir)) => self.kept(dir.join("home"), &home.target),
                (true, None) => tmpfs(&home.target, 0o700),
                (false, _) => self.home_bind(),
            });
        }
        if !self.contain && self.shows_cwd(mounts) {
            mounts.push(Mount::Bind {
                source: self.facts.cwd.clone(),
                target: self.facts.cwd.clone(),
                writable: true,
                optional: true,
                user: false,
            });
        }
    }

    fn home_bind(&self) -> Mount {
        Mount::Bind {
            source: self.home.source.clone(),
            target: self.home.target.clone(),
            writable: true,
            optional: !self.home.given,
            user: self.home.given,
        }
    }

    /// Whether the working directory needs a mount of its own.
    fn shows_cwd(&self, mounts: &[Mount]) -> bool {
        let cwd = &self.facts.cwd;
        let system = SYSTEM.iter().any(|path| cwd == Path::new(path));
        let reserved = cwd.starts_with(stasis_plugin_api::plan::INJECT);
        let shown = |mount: &Mount| cwd.starts_with(target(mount));
        // An own /proc has other processes than the host's, so a directory there is not the same.
        let proc = cwd.starts_with("/proc");
        let users = self.binds.iter().any(|bind| cwd.starts_with(&bind.target));
        !(system || reserved || proc || users || mounts.iter().any(shown))
    }

    fn small_files(&self, mounts: &mut Vec<Mount>) {
        mounts.push(host("/etc/localtime", false));
        let text = |path: &str| {
            self.image
                .read_small(path, MAX_DATABASE)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .unwrap_or_default()
        };
        match &self.hostname {
            Some(name) => {
                mounts.push(file("/etc/hosts", identity::hosts(&self.facts.hosts, name)));
                mounts.push(file("/etc/hostname", format!("{name}\n")));
            }
            None => mounts.push(host("/etc/hosts", false)),
        }
        let passwd = identity::passwd(&text("/etc/passwd"), self.facts, &self.home.target, self.root_inside);
        mounts.push(file("/etc/passwd", passwd));
        mounts.push(file("/etc/group", identity::group(&text("/etc/group"), self.facts, self.root_inside)));
        if let Some(resolv) = &self.facts.resolv_conf {
            mounts.push(file("/etc/resolv.conf", resolv.clone()));
        }
    }

    /// A directory that the caller makes below `--workdir`.
    fn kept(&self, source: PathBuf, target: &Path) -> Mount {
        Mount::Bind { source, target: target.to_owned(), writable: true, optional: false, user: false }
    }
}

/// A user's bind takes the place of a default one.
fn put(mounts: &mut Vec<Mount>, bind: &UserBind) {
    let mount = bind.clone().into_mount();
    let same = |other: &Mount| target(other) == bind.target;
    if KERNEL.iter().any(|path| bind.target == Path::new(path))
        && let Some(slot) = mounts.iter_mut().find(|other| same(other))
    {
        *slot = mount;
        return;
    }
    mounts.retain(|other| !same(other));
    mounts.push(mount);
}

/// Where a mount lies.
pub(crate) fn target(mount: &Mount) -> &Path {
    match mount {
        Mount::Bind { target, .. } | Mount::Tmpfs { target, .. } | Mount::File { target, .. } => target,
        Mount::Proc => Path::new("/proc"),
        Mount::MinimalDev => Path::new("/dev"),
        Mount::Devpts => Path::new("/dev/pts"),
    }
}

fn host(path: &str, writable: bool) -> Mount {
    let path = PathBuf::from(path);
    Mount::Bind { source: path.clone(), target: path, writable, optional: true, user: false }
}

fn tmpfs(target: impl AsRef<Path>, mode: u32) -> Mount {
    Mount::Tmpfs { target: target.as_ref().to_owned(), size: None, mode }
}

fn file(target: &str, content: String) -> Mount {
    Mount::File { target: PathBuf::from(target), content, optional: true }
}
