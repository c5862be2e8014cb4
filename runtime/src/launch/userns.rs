//! User namespaces: writing the id maps, and telling why a host does not allow them.

use crate::error::{Error, Result};
use crate::spec::IdSpec;
use crate::sys::process::{self, Forked};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use stasis_plugin_api::plan::IdMap;
use std::cell::LazyCell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

/// Maps the ids of the process `pid` (as seen here), which waits in a new user namespace or is this one.
///
/// # Errors
/// What is not allowed, with the remedy.
pub fn map(pid: u32, ids: &IdSpec) -> Result<()> {
    let base = format!("/proc/{pid}");
    let write = |file: &str, text: String| {
        fs::write(Path::new(&base).join(file), text).map_err(|e| {
            Error::new(format!("cannot map the user's ids into the container (writing {file})"))
                .because(&e)
                .help(forbidden_help(e.raw_os_error().map(Errno::from_raw)))
        })
    };
    match ids.map {
        IdMap::KeepAndZero => {
            let range = |file| subordinate(file, ids.host_uid);
            let (Some(uid), Some(gid)) = (range("/etc/subuid"), range("/etc/subgid")) else {
                return Err(Error::new("cannot map uid 0 into the container: no subordinate ids are granted")
                    .help("the administrator grants them with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`"));
            };
            run_mapper("newuidmap", pid, [0, uid.0, 1, ids.uid, ids.host_uid, 1])?;
            run_mapper("newgidmap", pid, [0, gid.0, 1, ids.gid, ids.host_gid, 1])
        }
        IdMap::Root if ids.granted => map_granted(pid, ids.host_uid, ids.host_gid),
        IdMap::Keep | IdMap::Root => {
            write("setgroups", "deny".to_owned())?;
            write("uid_map", format!("{} {} 1\n", ids.uid, ids.host_uid))?;
            write("gid_map", format!("{} {} 1\n", ids.gid, ids.host_gid))
        }
    }
}

/// Root and behind it all the ids that are granted.
fn map_granted(pid: u32, host_uid: u32, host_gid: u32) -> Result<()> {
    let range = |file| subordinate(file, host_uid);
    let (Some(uids), Some(gids)) = (range("/etc/subuid"), range("/etc/subgid")) else {
        return Err(Error::new("no subordinate ids are granted"));
    };
    run_mapper("newuidmap", pid, [0, host_uid, 1, 1, uids.0, uids.1])?;
    run_mapper("newgidmap", pid, [0, host_gid, 1, 1, gids.0, gids.1])
}

/// Whether root inside can have other ids beside it.
pub fn grants_more(uid: u32) -> bool {
    uid != 0 && possible_maps(uid).contains(&IdMap::KeepAndZero)
}

/// Does `work` as root of a user namespace with all the ids that are granted to the user: what is in files of
/// theirs can only be reached so. The caller has one thread.
///
/// # Errors
/// Why there is no such namespace.
pub fn as_granted_root(work: impl FnOnce() -> i32) -> Result<i32> {
    let cannot = |e: Errno| clone_error(e, true);
    let (wait, go) = crate::sys::fd::pipe().map_err(|e| Error::new("cannot make a pipe").because(&e))?;
    match process::clone_into(CloneFlags::CLONE_NEWUSER).map_err(cannot)? {
        Forked::Child => {
            drop(go);
            let mut said = [0];
            let code = match fs::File::from(wait).read(&mut said) {
                Ok(1) => work(),
                _ => 255,
            };
            process::end(code)
        }
        Forked::Parent(pid, _) => {
            drop(wait);
            let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            let mapped = map_granted(pid.as_raw().unsigned_abs(), uid, gid);
            if mapped.is_ok() {
                // A child that is gone is seen below.
                let _ = fs::File::from(go).write_all(b"x");
            } else {
                drop(go);
            }
            let status = nix::sys::wait::waitpid(pid, None);
            mapped?;
            match status {
                Ok(nix::sys::wait::WaitStatus::Exited(_, code)) => Ok(code),
                _ => Err(Error::new("a process in a user namespace was lost")),
            }
        }
    }
}

fn run_mapper(tool: &str, pid: u32, numbers: [u32; 6]) -> Result<()> {
    let numbers = numbers.map(|n| n.to_string());
    let output = Command::new(tool).arg(pid.to_string()).args(&numbers).output().map_err(|e| {
        Error::new(format!("cannot start {tool}")).because(&e).help("install the package `uidmap`")
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(format!("{tool} refused the id map"))
        .because(String::from_utf8_lossy(&output.stderr).trim()))
}

/// The range granted to a user in `/etc/subuid` or `/etc/subgid`: its first id and their number. The user's name is asked
/// for where somebody is granted one by name.
fn subordinate(file: &str, uid: u32) -> Option<(u32, u32)> {
    let name = LazyCell::new(|| nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|u| u.name));
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut parts = line.split(':');
        let who = parts.next()?;
        let is_number = who.bytes().all(|byte| byte.is_ascii_digit());
        let mine = if is_number { who == uid.to_string() } else { name.as_deref() == Some(who) };
        let first = parts.next()?.trim().parse().ok()?;
        let count = parts.next()?.trim().parse().ok()?;
        mine.then_some((first, count))
    })
}

/// The id maps that a user's containers can have; root needs no user namespace and has every id.
pub fn possible_maps(uid: u32) -> Vec<IdMap> {
    let found = |tool: &str| process::find_program(tool, &[]).is_some();
    let mut maps = vec![IdMap::Keep, IdMap::Root];
    if uid == 0 || (found("newuidmap") && found("newgidmap") && has_subordinate_ids(uid)) {
        maps.push(IdMap::KeepAndZero);
    }
    maps
}

/// Whether the user has subordinate ids.
pub fn has_subordinate_ids(uid: u32) -> bool {
    ["/etc/subuid", "/etc/subgid"].iter().all(|f| subordinate(f, uid).is_some())
}

fn sysctl(name: &str) -> Option<i64> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

/// What the administrator can do where user namespaces are closed.
pub fn forbidden_help(errno: Option<Errno>) -> String {
    if sysctl("user/max_user_namespaces") == Some(0) {
        return "user namespaces are switched off here; the administrator allows them with `sysctl user.max_user_namespaces=15000`".to_owned();
    }
    if sysctl("kernel/unprivileged_userns_clone") == Some(0) {
        return "user namespaces are closed to ordinary users here; the administrator opens them with `sysctl kernel.unprivileged_userns_clone=1`".to_owned();
    }
    if sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return "AppArmor restricts user namespaces here; the administrator adds a profile for stasis with the rule `userns,`, or sets `sysctl kernel.apparmor_restrict_unprivileged_userns=0`".to_owned();
    }
    match errno {
        Some(Errno::ENOSPC | Errno::EUSERS) => {
            "the limit on namespaces is reached; end other containers or raise `sysctl user.max_user_namespaces`".to_owned()
        }
        Some(Errno::EINVAL) => {
            "this kernel has no user namespaces (CONFIG_USER_NS)".to_owned()
        }
        _ => "user namespaces are refused here, perhaps by the sandbox or container that stasis runs in".to_owned(),
    }
}

/// The error of a clone with new namespaces.
pub fn clone_error(errno: Errno, user: bool) -> Error {
    let error = Error::new("cannot make the container's namespaces").because(errno.desc());
    match errno {
        Errno::ENOSYS => error
            .help("stasis needs Linux 5.2 or later, and a sandbox that lets it make processes with clone"),
        Errno::EAGAIN => error.help("the limit on processes is reached (`ulimit -u`)"),
        Errno::ENOMEM => error.help("memory is exhausted on this machine"),
        _ if user => error.help(forbidden_help(Some(errno))),
        Errno::EPERM => error.help("this root may not make namespaces: CAP_SYS_ADMIN is missing"),
        _ => error,
    }
}
