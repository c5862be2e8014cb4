//! The container in which `%post` and `%test` run: root inside, the image's files writable, processes of its own, the
//! host's network.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat};
use nix::sys::wait::{WaitStatus, waitpid};
use stasis_plugin_api::plan::{IdMap, SeccompRule, StdioKind};

use super::definition::Script;
use super::{Options, ended};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::inside::file_type;
use crate::image::singularity::LATE_ENVIRONMENT;
use crate::image::tree::{Tree, allowed, clear_set_id, failed, list, stat_in};
use crate::launch::protocol::{Ending, Ground, Order};
use crate::launch::{start, userns};
use crate::monitor::{place::mount_point, serve};
use crate::spec::env::DEFAULT_PATH;
use crate::spec::{
    ContainerSpec, IdSpec, Mount, NamespaceSpec, ProcessSpec, RootMode, RootSpec, RootWrite, SPEC_FORMAT,
};

const SINGLE: &str = "no subordinate ids are granted to you, so there is one user inside: giving files to other users and \
becoming another user do nothing there, and are answered as if they had worked. What needs several users fails; \
the administrator grants ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`";
/// Of the caller's environment only what leads out of the site's network.
const PASSED: &[&str] = &["TERM", "http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];
/// Under these names a script and the package manager's note lie in the image while a script runs.
const SCRIPT: &str = "/.singularity.d/.script";
const APT: &str = "/.singularity.d/.apt.conf";

/// Who builds, and what that means inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Facts {
    /// Root of the host.
    Root,
    /// An ordinary user who has other ids to give away.
    Granted,
    /// An ordinary user who has only one id.
    Single,
}

impl Facts {
    pub(super) fn find() -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        match uid {
            0 => Self::Root,
            uid if userns::grants_more(uid) => Self::Granted,
            _ => Self::Single,
        }
    }

    /// What a script cannot do, told before it runs.
    pub(super) fn cannot(self) -> Option<&'static str> {
        (self == Self::Single).then_some(SINGLE)
    }

    /// Makes everything in the image the user's own, readable and removable, where scripts have run: what they gave to
    /// others would be out of reach for whoever uses or removes the image. Root's files are whose they are, but they
    /// lie open on the host, and programs that give rights mean nothing inside.
    pub(super) fn settle(self, tree: &Tree, ran: bool) -> Result<()> {
        let work = || match tree.open_at(Path::new(""), OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(dir) => settle(dir.as_fd(), 0),
            Err(e) => Err(e),
        };
        let cannot = || Error::new(format!("cannot make the files of {} yours", tree.path().display()));
        match self {
            Self::Root => {
                clear_set_id(tree.dir(), 0).map_err(|e| failed("take set-id bits from", tree.path(), &e))
            }
            _ if !ran => Ok(()),
            Self::Single => work().map_err(|e| cannot().because(&e)),
            Self::Granted => match userns::as_granted_root(|| i32::from(work().is_err()))? {
                0 => Ok(()),
                _ => Err(cannot().help("look for files in it that even its root may not change")),
            },
        }
    }
}

fn settle(dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > 200 {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let me = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    for name in list(dir)? {
        let Some(stat) = stat_in(dir, &name)? else { continue };
        let kind = file_type(&stat);
        if (stat.st_uid, stat.st_gid) != me {
            let (uid, gid) = (rustix::fs::Uid::from_raw(me.0), rustix::fs::Gid::from_raw(me.1));
            rustix::fs::chownat(
                dir,
                name.as_os_str(),
                Some(uid),
                Some(gid),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        let wanted = match kind {
            SFlag::S_IFLNK => continue,
            SFlag::S_IFDIR => (stat.st_mode & allowed(true)) | 0o700,
            _ => (stat.st_mode & allowed(false)) | 0o400,
        };
        // A change of the owner takes some bits away. No link: the kind was looked at, and nothing runs any more.
        fchmodat(dir, name.as_os_str(), Mode::from_bits_truncate(wanted), FchmodatFlags::FollowSymlink)?;
        if kind == SFlag::S_IFDIR {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            settle(openat(dir, name.as_os_str(), flags, Mode::empty())?.as_fd(), depth + 1)?;
        }
    }
    Ok(())
}

/// Runs a script in the image.
///
/// # Errors
/// It could not be started, or failed: with its exit code.
pub(super) fn run(
    what: &str,
    script: &Script,
    tree: &Tree,
    write: RootWrite,
    facts: &Facts,
    options: &Options,
) -> Result<()> {
    let shell = script.shell.as_deref().unwrap_or("/bin/sh");
    let image = Image::open(&tree.path().to_string_lossy())?;
    if !image.lookup(shell).is_some_and(|info| info.is_executable()) {
        return Err(Error::new(format!("{what} cannot run: the image has no {shell}"))
            .help("bootstrap from an image with a shell, or leave the section out"));
    }
    tree.write(SCRIPT, 0o755, &script.text)?;
    if *facts == Facts::Single {
        // It would try to become a user of its own, and notice that it has not.
        tree.write(APT, 0o644, "APT::Sandbox::User \"root\";\n")?;
    }
    let argv = [shell, "-e", "-x", SCRIPT].map(str::to_owned).to_vec();
    let spec = spec(argv, &image, write, *facts, options);
    let ground = Ground::of(&spec, false, false, mount_point(&options.runtime_dir)?);
    let code = carry_out(Order { spec, logs: None, fed: false, size: None }, ground);
    let removed = tree.remove(SCRIPT).and_then(|()| tree.remove(APT));
    match code? {
        Ending::Exit(0) => removed,
        Ending::Exit(code) => Err(ended(what, code, tree)),
        Ending::Signal(_) => Err(Error::new(format!("the build was interrupted in {what}"))
            .because("the image was not made")
            .code(130)),
    }
}

/// Waits for its end. When we are interrupted everything in it is killed.
fn carry_out(order: Order, ground: Ground) -> Result<Ending> {
    let before =
        nix::sys::signal::SigSet::thread_get_mask().unwrap_or_else(|_| nix::sys::signal::SigSet::empty());
    let signals = serve::signals(false)?;
    let waited = (|| {
        let mut container = start::start(&order.spec, None, start::Streams::Kept)?;
        container.lay(ground)?;
        container.order(order)?;
        container.replaced(Duration::from_secs(60))?;
        loop {
            let mut watched = [
                PollFd::new(container.pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::new("cannot wait for the container").because(e.desc())),
            }
            if watched[0].any().unwrap_or(false) {
                break;
            }
            if let Ok(Some(signal)) = signals.read_signal()
                && i32::try_from(signal.ssi_signo) != Ok(libc::SIGCHLD)
            {
                container.kill();
                return Ok(Ending::Signal(i32::try_from(signal.ssi_signo).unwrap_or(libc::SIGTERM)));
            }
        }
        match waitpid(nix::unistd::Pid::from_raw(container.pid), None) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Ending::Exit(code)),
            // A shell that is pid 1 is killed only from outside: by us, or for want of memory.
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Ending::Exit(128 + signal as i32)),
            _ => Err(Error::new("the end of the container was missed")),
        }
    })();
    // Signals reach us again as before.
    let _ = before.thread_set_mask();
    waited
}

fn spec(
    argv: Vec<String>,
    image: &Image,
    write: RootWrite,
    facts: Facts,
    options: &Options,
) -> ContainerSpec {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let user = facts != Facts::Root;
    let env = environment(image, facts, options);
    ContainerSpec {
        format: SPEC_FORMAT,
        name: format!("build-{}", std::process::id()),
        action: "build".to_owned(),
        image: image.given.clone(),
        root: RootSpec { directory: image.root.clone(), file: None, mode: RootMode::Auto, write },
        namespaces: NamespaceSpec { user, pid: true, ..NamespaceSpec::default() },
        ids: IdSpec {
            map: IdMap::Root,
            granted: facts == Facts::Granted,
            host_uid: uid,
            host_gid: gid,
            uid: 0,
            gid: 0,
        },
        hostname: None,
        mounts: mounts(options),
        process: ProcessSpec {
            argv,
            source_env: image.has_env_scripts && image.has_sh,
            env_after: BTreeMap::from([("HOME".to_owned(), "/root".to_owned())]),
            env,
            cwd: vec![PathBuf::from("/")],
            umask: 0o022,
            ends_with_parent: true,
            seccomp: if facts == Facts::Single { answered() } else { Vec::new() },
        },
        stdio: StdioKind::Inherit,
        init: false,
        engine: None,
    }
}

fn mounts(options: &Options) -> Vec<Mount> {
    let host = |path: &str, writable: bool| Mount::Bind {
        source: PathBuf::from(path),
        target: PathBuf::from(path),
        writable,
        optional: true,
        user: false,
    };
    let mut all = vec![
        Mount::Proc,
        host("/sys", false),
        host("/dev", true),
        host("/tmp", true),
        host("/var/tmp", true),
        host("/etc/hosts", false),
        host("/etc/resolv.conf", false),
    ];
    all.extend(options.binds.iter().map(|(source, target, writable)| Mount::Bind {
        source: source.clone(),
        target: target.clone(),
        writable: *writable,
        optional: false,
        user: true,
    }));
    all
}

fn environment(image: &Image, facts: Facts, options: &Options) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = options
        .fetch
        .places
        .env
        .iter()
        .filter(|(name, _)| PASSED.iter().any(|passed| name.eq_ignore_ascii_case(passed)))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut set = |name: &str, value: &str| env.insert(name.to_owned(), value.to_owned());
    set("PATH", DEFAULT_PATH);
    set("HOME", "/root");
    set("LANG", "C");
    for prefix in ["STASIS", "APPTAINER", "SINGULARITY"] {
        set(&format!("{prefix}_ENVIRONMENT"), LATE_ENVIRONMENT);
        set(&format!("{prefix}_ROOTFS"), "/");
        set(&format!("{prefix}_CONTAINER"), &image.root.to_string_lossy());
    }
    if facts == Facts::Single {
        set("APT_CONFIG", APT);
    }
    env
}

/// With one user inside, the calls that need another one do nothing and say that they have worked.
fn answered() -> Vec<SeccompRule> {
    let mut calls = vec![
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_setgroups,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setuid,
        libc::SYS_setgid,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_chown, libc::SYS_lchown]);
    calls
        .into_iter()
        .map(|syscall| SeccompRule { syscall, argument: None, except: false, errno: 0 })
        .collect()
}
