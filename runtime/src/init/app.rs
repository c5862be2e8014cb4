//! The application: started by init, by an interposed supervisor, or in place of an init.

use crate::error::{Error, Result};
use crate::init::children::{self, Becoming, Telling};
use crate::spec::{ContainerSpec, RestartStep, prelude};
use crate::sys::{fd, process, signal};
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use stasis_plugin_api::plan::{StdioKind, Supervisor};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// A started application.
#[derive(Debug)]
pub struct Application {
    /// Its pid.
    pub pid: i32,
    /// The supervisor's pid and the pipe over which it tells the raw wait status.
    pub supervisor: Option<(i32, File)>,
}

/// The application's streams.
#[derive(Debug)]
pub struct Streams(pub Option<[OwnedFd; 3]>);

impl Streams {
    fn borrowed(&self) -> Option<[std::os::fd::BorrowedFd<'_>; 3]> {
        self.0.as_ref().map(|s| [s[0].as_fd(), s[1].as_fd(), s[2].as_fd()])
    }
}

/// What the application's process becomes, with the command that is really started.
fn becoming<'a>(
    spec: &'a ContainerSpec,
    argv: &'a [String],
    env: &'a [(String, String)],
    streams: &'a Streams,
) -> Becoming<'a> {
    let engine = spec.engine.as_ref();
    Becoming {
        argv,
        env,
        cwd: &spec.process.cwd,
        streams: streams.borrowed(),
        session: spec.stdio != StdioKind::Inherit,
        controls_terminal: spec.stdio == StdioKind::Pty,
        ignored: engine.map_or(&[], |e| &e.needs.ignore_signals),
        seccomp: engine.map_or(&spec.process.seccomp, |e| &e.needs.seccomp),
        subreaper: engine.is_some_and(|e| e.needs.subreaper),
        keep_capabilities: keeps_capabilities(spec),
        umask: spec.process.umask,
        ..Becoming::default()
    }
}

/// Root without a user namespace keeps what it has; in a user namespace only a mapped root does.
pub fn keeps_capabilities(spec: &ContainerSpec) -> bool {
    if spec.namespaces.user { spec.ids.uid == 0 } else { spec.ids.host_uid == 0 }
}

fn pairs(spec: &ContainerSpec) -> Vec<(String, String)> {
    prelude::environment(spec).into_iter().collect()
}

fn command(spec: &ContainerSpec) -> Vec<String> {
    match spec.engine.as_ref().and_then(|e| e.restart.as_ref()) {
        Some(RestartStep::Exec { argv }) => argv.clone(),
        _ => prelude::command(spec),
    }
}

/// This process is to end with the one that started it.
///
/// # Errors
/// What the kernel says.
pub fn tied(tie: impl FnOnce() -> Result<(), Errno>) -> Result<()> {
    tie()
        .map_err(|e| Error::new("cannot tie the application to the command that starts it").because(e.desc()))
}

/// Where no init is wanted: this process becomes the application. Returns only the reason why not.
pub fn become_application(spec: &ContainerSpec) -> Error {
    // Also where that was done before: the kernel forgets it where ids change.
    if spec.process.ends_with_parent
        && let Err(error) = tied(process::end_with_parent)
    {
        return error;
    }
    let (argv, env) = (command(spec), pairs(spec));
    children::become_it(&becoming(spec, &argv, &env, &Streams(None)))
}

/// Starts the application as a child of init or of a supervisor.
///
/// # Errors
/// Why it could not be started.
pub fn start(spec: &ContainerSpec, streams: &Streams) -> Result<Application> {
    if command(spec).is_empty() {
        // An image without a start script: the container stands for what is run in it later.
        return Ok(Application { pid: 0, supervisor: None });
    }
    let engine = spec.engine.as_ref();
    let interposed = engine.is_some_and(|e| e.needs.supervisor == Supervisor::Interposed);
    if interposed {
        return supervised(spec, streams);
    }
    if let Some(first) = engine.and_then(|e| e.needs.first_pid) {
        next_pid(first)?;
    }
    let telling = Telling::new()?;
    let Some(pid) =
        process::fork().map_err(|e| Error::new("cannot start the application").because(e.desc()))?
    else {
        run(spec, streams, telling)
    };
    telling.wait()?;
    Ok(Application { pid: pid.as_raw(), supervisor: None })
}

fn run(spec: &ContainerSpec, streams: &Streams, telling: Telling) -> ! {
    let (argv, env) = (command(spec), pairs(spec));
    let error = children::become_it(&becoming(spec, &argv, &env, streams));
    telling.fail(&error)
}

/// Lets the kernel give this pid to the next process.
///
/// # Errors
/// What the kernel says.
pub fn next_pid(pid: i32) -> Result<()> {
    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
        .map_err(|e| Error::new(format!("cannot give the application the pid {pid}")).because(&e))
}

/// init -> supervisor -> application. The supervisor tells the pid and later the raw wait status over
/// one pipe: an engine whose processes must not have pid 1 as a parent needs somebody in between.
fn supervised(spec: &ContainerSpec, streams: &Streams) -> Result<Application> {
    let cannot = |e: &dyn std::error::Error| Error::new("cannot start the supervisor").because(e);
    let telling = Telling::new()?;
    let (read, write) = fd::pipe().map_err(|e| cannot(&e))?;
    let Some(pid) = process::fork().map_err(|e| cannot(&e))? else {
        drop(read);
        supervise(spec, streams, telling, File::from(write))
    };
    drop(write);
    let mut status = File::from(read);
    let outcome = telling.wait();
    let mut application = [0; 4];
    // Without a pid the supervisor failed, and told why.
    let heard = status.read_exact(&mut application);
    outcome?;
    heard.map_err(|e| cannot(&e))?;
    Ok(Application { pid: i32::from_le_bytes(application), supervisor: Some((pid.as_raw(), status)) })
}

fn supervise(spec: &ContainerSpec, streams: &Streams, telling: Telling, tell: File) -> ! {
    // Signals of the application to "everybody" must not end the one who reports its status.
    for number in (1..32).filter(|n| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD].contains(n)) {
        if let Ok(number) = nix::sys::signal::Signal::try_from(number) {
            signal::ignore(number);
        }
    }
    let first = spec.engine.as_ref().and_then(|e| e.needs.first_pid);
    if let Some(first) = first
        && let Err(error) = next_pid(first)
    {
        telling.fail(&error);
    }
    let child = match process::fork() {
        Err(e) => telling.fail(&Error::new("cannot start the application").because(e.desc())),
        Ok(None) => run(spec, streams, telling),
        Ok(Some(child)) => child,
    };
    drop(telling);
    // Everything else that init had open belongs to others: whoever waits for its end must see it.
    let mut tell = alone_with(tell);
    // Init lives as long as this process; a failed write means that the container ends.
    let _ = tell.write_all(&child.as_raw().to_le_bytes());
    let status = loop {
        match waitpid(child, None) {
            Ok(status) => break raw(status),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break 255 << 8,
        }
    };
    let _ = tell.write_all(&status.to_le_bytes());
    process::end(0)
}

/// Closes every descriptor but the standard streams and this one.
fn alone_with(keep: File) -> File {
    let moved = fd::place(keep.as_fd(), 3);
    match (moved, fd::inherited(3)) {
        (Ok(()), Ok(kept)) => {
            // Not dropped: its number may be the one that was just filled, or is closed right here.
            fd::give_away(keep.into());
            fd::close_from(4);
            File::from(kept)
        }
        _ => keep,
    }
}

fn raw(status: nix::sys::wait::WaitStatus) -> i32 {
    match status {
        nix::sys::wait::WaitStatus::Exited(_, code) => code << 8,
        nix::sys::wait::WaitStatus::Signaled(_, signal, _) => signal as i32,
        _ => 255 << 8,
    }
}
