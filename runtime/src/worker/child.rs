//! The worker itself: the process in which a plugin is loaded and called. It has nothing of its own to
//! lose: whoever started it may kill it at any moment, and it ends with it.
//!
//! The plugin may use the host from any of its threads.

use super::wire::{CANCEL, CHANNEL, IMAGE, LIBRARY, Order, PARENT, Report, WITH_IMAGE};
use crate::registry::load;
use crate::sys::channel::Channel;
use crate::sys::{fd, process, signal};
use nix::unistd::Pid;
use stasis_plugin_api::abi::abi_stable::prefix_type::PrefixTypeTrait as _;
use stasis_plugin_api::abi::abi_stable::std_types::{RResult, RStr, RString};
use stasis_plugin_api::abi::{BackendModule_Ref, HostHandle, HostPointer, HostTable, error_from};
use stasis_plugin_api::error::{BackendError, kind};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The way to whoever started us. A static, so that the functions handed to the plugin need no pointer.
static HOST: OnceLock<Link> = OnceLock::new();

struct Link {
    channel: Channel,
    cancel: OwnedFd,
    /// Held while one message is written.
    sending: Mutex<()>,
    /// Held during a question and its answer; true while a call is under way. Outside of one, only
    /// the main loop reads.
    in_call: Mutex<bool>,
}

/// A panic in one thread of the plugin says nothing about these locks' content.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    fn send(&self, report: &Report, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _alone = locked(&self.sending);
        self.channel.send_with(report, fds)
    }

    fn ask(&self, report: &Report, fds: &[BorrowedFd<'_>]) -> io::Result<(Order, Vec<OwnedFd>)> {
        let in_call = locked(&self.in_call);
        if !*in_call {
            return Err(io::Error::other("the host was asked outside of a call"));
        }
        self.send(report, fds)?;
        self.channel.recv()?.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

/// The role of our program started again as a worker. Called by `main` before anything else is set up (no subscriber of
/// `tracing`, no threads); returns the exit code.
pub fn started() -> i32 {
    let parent = std::env::args().nth(2).and_then(|text| text.strip_prefix(PARENT)?.parse().ok());
    let image = std::env::args().nth(3).is_some_and(|word| word == WITH_IMAGE);
    // Of nobody, where it is missing.
    main(Pid::from_raw(parent.unwrap_or(-1)), image)
}

/// The whole worker, in a process of its own that has one thread and what the order is about at its numbers; returns the
/// exit code.
pub(super) fn main(parent: Pid, with_image: bool) -> i32 {
    match serve(parent, with_image) {
        Ok(()) => 0,
        Err(error) => {
            // Goes to the pipe of last words.
            let _ = writeln!(io::stderr(), "worker: {error}");
            1
        }
    }
}

fn serve(parent: Pid, with_image: bool) -> io::Result<()> {
    signal::reset(&[libc::SIGPIPE]);
    if process::end_with(parent).is_err() {
        return Err(io::Error::other("whoever started this worker is gone"));
    }
    // What the user's shell or whoever started this has open is no business of a plugin.
    fd::close_from(if with_image { IMAGE + 1 } else { CANCEL + 1 });
    // Nor is the image any of a program that it starts.
    fd::close_on_exec_from(IMAGE);
    let library = fd::inherited(LIBRARY)?;
    let link = HOST.get_or_init({
        let (channel, cancel) = (Channel::from(fd::inherited(CHANNEL)?), fd::inherited(CANCEL)?);
        || Link { channel, cancel, sending: Mutex::new(()), in_call: Mutex::new(false) }
    });
    let Some((Order::Load { shown }, _)) = link.channel.recv()? else { return Ok(()) };
    let module = match open(&library, Path::new(&shown)) {
        Ok((module, descriptor)) => {
            link.send(&Report::Loaded { descriptor }, &[])?;
            module
        }
        Err((problem, help)) => return link.send(&Report::NotLoaded { problem, help }, &[]),
    };
    drop(library);
    let table = HostTable { log, request, cancelled, keep_fd, kept_fd }.leak_into_prefix();
    let handle = HostHandle { pointer: HostPointer(std::ptr::null()), table };
    while let Some((order, _)) = link.channel.recv()? {
        let Order::Call { method, call } = order else { continue };
        *locked(&link.in_call) = true;
        let answer = module.invoke()(handle, RStr::from(method.as_str()), RStr::from(call.as_str()));
        // Waits for a question that another thread of the plugin still has open.
        *locked(&link.in_call) = false;
        let report = match answer {
            RResult::ROk(answer) => Report::Answer { answer: answer.into() },
            RResult::RErr(text) => Report::Error(error_from(&text)),
        };
        link.send(&report, &[])?;
    }
    Ok(())
}

type NotLoaded = (String, Option<String>);

/// Loads the checked file by its descriptor, whatever lies at its path by now.
fn open(library: &OwnedFd, shown: &Path) -> Result<(BackendModule_Ref, String), NotLoaded> {
    let path = format!("/proc/self/fd/{}", library.as_raw_fd());
    let loaded = load::load(Path::new(&path), shown).map_err(|e| (e.to_string(), e.help()))?;
    let descriptor = serde_json::to_string(loaded.descriptor()).map_err(|e| (e.to_string(), None))?;
    Ok((loaded.module, descriptor))
}

// What follows is called by the plugin. A panic in it would end the process, so there is none to be had.

extern "C" fn log(_: HostPointer, level: u8, target: RStr<'_>, message: RStr<'_>) {
    let Some(link) = HOST.get() else { return };
    let report = Report::Log { level, target: target.into(), message: message.into() };
    // Whoever started us is gone; then nobody reads events either.
    let _ = link.send(&report, &[]);
}

extern "C" fn request(_: HostPointer, name: RStr<'_>, payload: RStr<'_>) -> RResult<RString, RString> {
    let question = Report::Request { name: name.into(), payload: payload.into() };
    let answer = match HOST.get().map(|link| link.ask(&question, &[])) {
        Some(Ok((Order::Reply(answer), _))) => answer,
        Some(Err(error)) => Err(refused(name.as_str()).because(error)),
        _ => Err(refused(name.as_str())),
    };
    match answer {
        Ok(text) => RResult::ROk(text.into()),
        Err(error) => RResult::RErr(serde_json::to_string(&error).unwrap_or(error.what).into()),
    }
}

fn refused(name: &str) -> BackendError {
    BackendError::new(kind::PROTOCOL, format!("the request \"{name}\" to the runtime was not answered"))
}

extern "C" fn cancelled(_: HostPointer) -> bool {
    let Some(link) = HOST.get() else { return false };
    fd::is_readable(link.cancel.as_fd())
}

extern "C" fn keep_fd(_: HostPointer, name: RStr<'_>, number: i32) -> i32 {
    match keep(name.as_str(), number) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn keep(name: &str, number: RawFd) -> io::Result<()> {
    let link = HOST.get().ok_or(io::ErrorKind::NotConnected)?;
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let copy = fd::duplicate(number)?;
    match link.ask(&Report::KeepFd { name: name.to_owned() }, &[copy.as_fd()])? {
        (Order::Kept(Ok(())), _) => Ok(()),
        (Order::Kept(Err(error)), _) if error.kind == kind::NOT_IMPLEMENTED => {
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

extern "C" fn kept_fd(_: HostPointer, name: RStr<'_>) -> i32 {
    let question = Report::KeptFd { name: name.into() };
    match HOST.get().map(|link| link.ask(&question, &[])) {
        Some(Ok((Order::Fd, mut fds))) if fds.len() == 1 => fds.pop().map_or(-1, fd::give_away),
        _ => -1,
    }
}
