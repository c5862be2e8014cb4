//! Processes: cloning with namespaces, forking, exec, waiting, the attributes that a child gets.

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A thread that has done its work is gone within this time, if it is one that goes.
const LEAVING: Duration = Duration::from_millis(20);

/// Where a program of the host is: on PATH, else in one of these directories.
#[must_use]
pub fn find_program(name: &str, beyond: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(beyond.iter().map(PathBuf::from));
    places.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's pid and a descriptor of it.
    Parent(Pid, OwnedFd),
}

/// Forks with new namespaces. The caller has one thread: in the child everything of the standard
/// library works then.
///
/// # Errors
/// What the kernel says.
pub fn clone_into(namespaces: CloneFlags) -> Result<Forked, Errno> {
    wait_until_alone();
    let mut pidfd: RawFd = -1;
    let flags = namespaces.bits() as u64 | libc::CLONE_PIDFD as u64;
    // SAFETY: clone_args is plain data for which all zeroes is "nothing asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: no stack is passed, so the child runs on a copy of this one, as after fork; the caller
    // promises a single thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 if Errno::last() == Errno::ENOSYS => clone_before_clone3(namespaces),
        -1 => Err(Errno::last()),
        0 => Ok(Forked::Child),
        pid => parent(pid as i32, pidfd),
    }
}

/// Kernels before 5.2 ignore the wish for a descriptor; without one a process cannot be ended for sure.
fn parent(pid: i32, pidfd: RawFd) -> Result<Forked, Errno> {
    let pid = Pid::from_raw(pid);
    if pidfd < 0 {
        // Our own child, which nobody has waited for: the number is still its.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
        return Err(Errno::ENOSYS);
    }
    // SAFETY: the kernel stored a fresh descriptor.
    Ok(Forked::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Kernels before 5.3, and sandboxes that answer ENOSYS, have no clone3.
fn clone_before_clone3(namespaces: CloneFlags) -> Result<Forked, Errno> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces.bits() as libc::c_ulong | (libc::CLONE_PIDFD | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: as in `clone_into`; the third argument receives the descriptor (5.2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, &raw mut pidfd, 0usize, 0usize) };
    match pid {
        -1 => Err(Errno::last()),
        0 => Ok(Forked::Child),
        pid => parent(pid as i32, pidfd),
    }
}

/// Forks. The caller has one thread.
///
/// # Errors
/// What the kernel says.
pub fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: the callers (commands, init and the supervisor) have one thread.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(None),
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Whether this process has one thread, so that a fork of it can go on with everything that is in its memory.
pub fn alone() -> bool {
    // One for each thread, and two as for every directory.
    std::fs::metadata("/proc/self/task").is_ok_and(|tasks| tasks.nlink() == 3)
}

/// For a process that has one thread: those that have done their work may still be on their way out, and hold a lock of
/// the memory's, which nobody would open in a fork.
fn wait_until_alone() {
    let until = Instant::now() + LEAVING;
    while !alone() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Forks a process in a session of its own, with descriptors at given numbers, that does `main` and nothing else: no
/// owner of anything runs in it afterwards. The caller has one thread. Answers with its pid.
///
/// # Errors
/// What the kernel says.
pub fn fork_with(fds: &[(BorrowedFd<'_>, RawFd)], main: impl FnOnce() -> i32) -> io::Result<Pid> {
    wait_until_alone();
    let pairs = lifted(fds)?;
    if let Some(pid) = fork()? {
        return Ok(pid);
    }
    let placed = pairs.iter().try_for_each(|(fd, at)| super::fd::place(fd.as_fd(), *at));
    let code = match placed.and_then(|()| nix::unistd::setsid()) {
        // A panic must not find its way out through what the parent was doing.
        Ok(_) => catch_unwind(AssertUnwindSafe(main)).unwrap_or(101),
        Err(_) => 255,
    };
    end(code)
}

/// Copies out of the way of the numbers that they get.
fn lifted(fds: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<Vec<(OwnedFd, RawFd)>> {
    fds.iter().map(|(fd, at)| Ok((super::fd::lift(*fd)?, *at))).collect()
}

/// Waits for the end of a child.
///
/// # Errors
/// What the kernel says.
pub fn reap(pid: Pid) -> Result<ExitStatus, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: a pointer to a live int.
        match Errno::result(unsafe { libc::waitpid(pid.as_raw(), &raw mut status, 0) }) {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ExitStatus::from_raw(status)),
        }
    }
}

/// Ends this process without running anything else of it. For forked children.
pub fn end(code: i32) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Starts our own program again with a role, with descriptors at given numbers. Works from a process
/// with threads.
///
/// # Errors
/// What the kernel says.
pub fn spawn_self(role: &[&OsStr], fds: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("stasis").args(role);
    let pairs = lifted(fds)?;
    // SAFETY: between fork and exec only dup2, fcntl and setsid run, all async-signal-safe; the
    // descriptors were lifted above every target number, so no target overwrites a source.
    unsafe {
        command.pre_exec(move || {
            for (fd, at) in &pairs {
                super::fd::place(fd.as_fd(), *at)?;
            }
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    command.spawn()
}

/// Lets a program that is started by `command` be killed when the calling thread ends.
pub fn bound(command: &mut Command) -> &mut Command {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only prctl and getppid run, both async-signal-safe.
    unsafe { command.pre_exec(move || Ok(end_with(parent)?)) }
}

/// Lets a program that is started by `command` be asked to end when the calling thread ends: one that cleans up.
pub fn asked_to_end(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only prctl runs, which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong)?)) }
}

/// Lets a program that is started by `command` mount what it wants without the host seeing it, where that may be done:
/// however it ends, nothing of it stays mounted.
pub fn with_mounts_of_its_own(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only unshare and mount run, both async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok() {
                let own = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SLAVE;
                super::mount::propagation(std::path::Path::new("/"), own)?;
            }
            Ok(())
        })
    }
}

/// Starts a program of the host in a session of its own, with no signal blocked or ignored. With `bound` it
/// is killed when the calling thread ends.
///
/// # Errors
/// What the kernel says.
pub fn spawn_tool(command: &mut Command, fds: &[(BorrowedFd<'_>, RawFd)], bound: bool) -> io::Result<Child> {
    let pairs = lifted(fds)?;
    // SAFETY: between fork and exec only dup2, fcntl, setsid, prctl, signal and sigprocmask run, all
    // async-signal-safe; the descriptors were lifted above every target number.
    unsafe {
        command.pre_exec(move || {
            for (fd, at) in &pairs {
                super::fd::place(fd.as_fd(), *at)?;
            }
            nix::unistd::setsid()?;
            super::signal::reset(&[]);
            if bound {
                end_with_parent()?;
            }
            super::fd::close_on_exec_from(3 + pairs.len() as RawFd);
            Ok(())
        });
    }
    command.spawn()
}

/// Replaces this process. Returns only with an error.
pub fn exec(program: &OsStr, argv: &[String], env: &[(String, String)]) -> Errno {
    let texts = |items: Vec<String>| -> Result<Vec<CString>, Errno> {
        items.into_iter().map(|s| CString::new(s).map_err(|_| Errno::EINVAL)).collect()
    };
    let prepared = (|| {
        let program = CString::new(program.as_bytes()).map_err(|_| Errno::EINVAL)?;
        let argv = texts(argv.to_vec())?;
        let env = texts(env.iter().map(|(k, v)| format!("{k}={v}")).collect())?;
        Ok::<_, Errno>((program, argv, env))
    })();
    match prepared {
        Err(errno) => errno,
        Ok((program, argv, env)) => match nix::unistd::execve(&program, &argv, &env) {
            Err(errno) => errno,
            Ok(never) => match never {},
        },
    }
}

/// Reaps one ended child, if there is one: its pid, with the raw status stored.
pub fn wait_any(status: &mut i32) -> Option<i32> {
    // SAFETY: a pointer to a live int.
    let pid = unsafe { libc::waitpid(-1, status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some(pid)
}

/// Sends a signal to the process behind a descriptor.
///
/// # Errors
/// `ESRCH` when it ended.
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers and a null info.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, 0usize, 0u32) };
    Errno::result(rc).map(drop)
}

/// A descriptor of a running process.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn descriptor_of(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0u32) })?;
    // SAFETY: the kernel made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn prctl(option: i32, argument: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: every option used in this file takes plain numbers.
    Errno::result(unsafe { libc::prctl(option, argument, 0usize, 0usize, 0usize) }).map(drop)
}

/// Lets others go before this thread, and before threads that it starts: by so many steps of `nice(1)`.
pub fn nice(steps: i32) {
    // SAFETY: a plain number; with Linux it is the calling thread's.
    unsafe { libc::nice(steps) };
}

/// The first pid that the kernel never gives, `kernel.pid_max`; where that cannot be read, its smallest default.
pub fn pid_max() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768)
}

/// Nothing started from here gains privileges by an exec.
///
/// # Errors
/// What the kernel says.
pub fn no_new_privileges() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Whether other processes of the user may look into this one.
///
/// # Errors
/// What the kernel says.
pub fn set_dumpable(yes: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(yes))
}

/// This process is killed when its parent ends.
///
/// # Errors
/// What the kernel says.
pub fn end_with_parent() -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
}

/// The same for a child that knows its parent: one that ended before this is told of as `ESRCH`.
///
/// # Errors
/// What the kernel says.
pub fn end_with(parent: Pid) -> Result<(), Errno> {
    end_with_parent()?;
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

/// It lives on when its parent ends.
///
/// # Errors
/// What the kernel says.
pub fn outlive_parent() -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, 0)
}

/// An exec gives uid 0 nothing that others would not get.
const SECBIT_NOROOT: i32 = 1;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn set_capabilities(data: [CapabilityData; 2]) -> Result<(), Errno> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    // SAFETY: both pointers are to live values of the layout that version 3 demands.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Keeps all capabilities of this process over an exec, where uid 0 is not mapped.
///
/// # Errors
/// What the kernel says.
pub fn keep_capabilities_over_exec() -> Result<(), Errno> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: both pointers are to live values of the layout that version 3 demands.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    for half in &mut data {
        half.inheritable = half.permitted;
    }
    set_capabilities(data)?;
    // SAFETY: a plain number; answers with bits, or with -1, which has all of them.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    if nix::unistd::geteuid().is_root() && bits & SECBIT_NOROOT == 0 {
        // An exec gives uid 0 what it may have; to raise one after the other takes longer than the exec.
        return Ok(());
    }
    for number in 0..64u32 {
        let half = data[(number / 32) as usize];
        if half.permitted & (1 << (number % 32)) != 0 {
            // SAFETY: plain numbers. PR_CAP_AMBIENT_RAISE is 2.
            let rc = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, 2usize, number as usize, 0usize, 0usize) };
            Errno::result(rc)?;
        }
    }
    Ok(())
}

/// Gives up every capability for good: ambient, inheritable, permitted, effective.
///
/// # Errors
/// What the kernel says.
pub fn drop_capabilities() -> Result<(), Errno> {
    // SAFETY: plain numbers. PR_CAP_AMBIENT_CLEAR_ALL is 4.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, 4usize, 0usize, 0usize, 0usize) })?;
    set_capabilities([CapabilityData::default(); 2])
}

/// Brings `lo` of this network namespace up.
///
/// # Errors
/// What the kernel says.
pub fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    // SAFETY: a valid socket and a pointer to a live ifreq that names an interface.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: the kernel just filled this member.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as for the first call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_alone_and_does_one_thing() {
        std::thread::scope(|scope| {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert!(!alone());
            let forked = |main: fn() -> i32| reap(fork_with(&[], main).unwrap()).unwrap().code();
            assert_eq!(forked(|| i32::from(alone())), Some(1));
            assert_eq!(forked(|| std::panic::resume_unwind(Box::new(()))), Some(101));
            drop(go);
        });
    }

    #[test]
    fn a_parent_that_is_gone_is_told_of() {
        assert_eq!(end_with(nix::unistd::getppid()), Ok(()));
        assert_eq!(end_with(nix::unistd::getpid()), Err(Errno::ESRCH));
    }
}
