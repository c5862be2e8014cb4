//! The process behind a worker: started, watched against a clock, ended, its end put into words.

use super::output::Output;
use super::wire::{CANCEL, CHANNEL, IMAGE, LIBRARY, Order, PARENT, ROLE, Report, WITH_IMAGE};
use super::{Services, WorkerError, child};
use crate::sys::channel::Channel;
use crate::sys::{fd, process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// What a plugin gets to put things right after its deadline.
const GRACE: Duration = Duration::from_secs(1);
/// How often a caller that gives up is noticed.
const SLICE: Duration = Duration::from_millis(100);
/// How long a process that closed its channel may take to end, and a killed one to be gone. One that hangs
/// in the kernel (a dead network file system) is left behind rather than waited for.
const ENDING: Duration = Duration::from_secs(2);

/// The time of one call.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    method: String,
    given: Duration,
    ends: Instant,
    over: bool,
}

impl Clock {
    pub(super) fn new(method: &str, given: Duration) -> Self {
        let now = Instant::now();
        let far = Duration::from_secs(86_400 * 365);
        Self { method: method.to_owned(), given, ends: now + given.min(far), over: false }
    }

    pub(super) fn method(&self) -> &str {
        &self.method
    }

    pub(super) fn given(&self) -> Duration {
        self.given
    }

    /// Until the deadline, or until the end of the grace after it.
    pub(super) fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// The deadline has passed.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

#[derive(Debug)]
pub(super) struct Process {
    plugin: String,
    pid: Pid,
    channel: Channel,
    /// Until the worker is told that its caller has given up.
    cancel: Option<OwnedFd>,
    output: Output,
    /// How it ended, once it was reaped; or that it could not be.
    end: Option<Option<ExitStatus>>,
}

impl Process {
    pub(super) fn start(
        plugin: &str,
        library: BorrowedFd<'_>,
        image: Option<BorrowedFd<'_>>,
    ) -> Result<Self, WorkerError> {
        let failed = |doing: &'static str| {
            move |source: io::Error| WorkerError::Start {
                plugin: plugin.to_owned(),
                doing: String::from(doing),
                source,
            }
        };
        let (channel, theirs) = Channel::pair().map_err(failed("making its channel"))?;
        let (cancelled, cancel) = fd::pipe().map_err(failed("making a pipe"))?;
        let (read, write) = fd::pipe().map_err(failed("making a pipe"))?;
        let output = Output::new(read).map_err(failed("making a pipe"))?;
        let null = std::fs::File::open("/dev/null").map_err(failed("opening /dev/null"))?;
        // A session of its own: Ctrl-C is for us to pass on, and one signal reaches what it started.
        let mut fds = vec![
            (null.as_fd(), 0),
            (write.as_fd(), 1),
            (write.as_fd(), 2),
            (theirs.as_fd(), CHANNEL),
            (library, LIBRARY),
            (cancelled.as_fd(), CANCEL),
        ];
        fds.extend(image.map(|image| (image, IMAGE)));
        let pid = begin(&fds, image.is_some()).map_err(failed("starting our own program again"))?;
        let plugin = plugin.to_owned();
        Ok(Self { plugin, pid, channel, cancel: Some(cancel), output, end: None })
    }

    /// What this side has open.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let cancel = self.cancel.as_ref().map(AsFd::as_fd);
        [Some(self.channel.as_fd()), cancel, self.output.fd()].into_iter().flatten().collect()
    }

    /// Sends within the time left.
    pub(super) fn send(
        &mut self,
        clock: &Clock,
        order: &Order,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), WorkerError> {
        let left = i64::try_from(clock.left().as_millis()).unwrap_or(i64::MAX).clamp(1, 1 << 40);
        let sent = setsockopt(&self.channel, sockopt::SendTimeout, &TimeVal::milliseconds(left))
            .map_err(io::Error::from)
            .and_then(|()| self.channel.send_with(order, fd.as_slice()));
        sent.map_err(|error| self.failed(clock, &error))
    }

    /// The next report, within the time left and the grace after it.
    pub(super) fn next(
        &mut self,
        clock: &mut Clock,
        services: &dyn Services,
    ) -> Result<(Report, Vec<OwnedFd>), WorkerError> {
        loop {
            if services.cancelled() {
                self.give_up();
            }
            if clock.left().is_zero() {
                if clock.over {
                    return Err(self.timed_out(clock));
                }
                self.give_up();
                clock.over = true;
                clock.ends = Instant::now() + GRACE;
            }
            if !self.readable(clock.left().min(SLICE)) {
                // Something that the plugin started may hold its end of the channel open.
                if self.has_ended() && !self.readable(Duration::ZERO) {
                    return Err(self.died(clock));
                }
                continue;
            }
            // A report that begins has to arrive whole in that time as well.
            let left = clock.left().max(Duration::from_millis(1));
            let got = self.channel.set_timeout(Some(left)).and_then(|()| self.channel.recv());
            return match got {
                Ok(Some(report)) => Ok(report),
                Ok(None) => Err(self.died(clock)),
                Err(error) => Err(self.failed(clock, &error)),
            };
        }
    }

    /// Tells the worker that its caller has given up; the plugin sees it when it asks.
    fn give_up(&mut self) {
        if let Some(pipe) = self.cancel.take() {
            // A worker that is gone need not be told. The byte counts, not the close: a process that was
            // forked from here may hold a copy of this end.
            let _ = nix::unistd::write(pipe, b"x");
        }
    }

    /// Waits, keeping the output flowing; true when the channel has something or ended.
    fn readable(&mut self, wait: Duration) -> bool {
        let ready = {
            let mut all = vec![PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
            all.extend(self.output.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            // Up to a whole millisecond, so that the last one is not spent spinning.
            let wait = wait.as_micros().div_ceil(1000).min(1000) as u16;
            let got = poll(&mut all, PollTimeout::from(wait));
            got.is_ok_and(|n| n > 0) && all[0].any().unwrap_or(false)
        };
        self.output.drain();
        ready
    }

    /// Whether it ended. It stays unreaped, so that its session can still be named.
    fn has_ended(&self) -> bool {
        !matches!(self.peek(), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }

    fn peek(&self) -> Result<WaitStatus, Errno> {
        waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)
    }

    fn wait_for_end(&self, at_most: Duration) -> bool {
        let (begin, mut pause) = (Instant::now(), Duration::from_micros(100));
        while !self.has_ended() {
            if begin.elapsed() >= at_most {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        true
    }

    /// Kills what is left, the plugin's own children too, and reaps. Answers how it ended by itself.
    pub(super) fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        if let Some(status) = self.end {
            return status;
        }
        if self.peek() == Err(Errno::ECHILD) {
            // Reaped by somebody else, or this is a fork of whoever started it: not ours to kill.
            self.end = Some(None);
            return None;
        }
        let by_itself = self.wait_for_end(patience);
        // Both may be gone already. It is not reaped, so nobody else can have its number.
        let _ = killpg(self.pid, Signal::SIGKILL);
        // One that was just forked leads no group yet.
        let _ = kill(self.pid, Signal::SIGKILL);
        let status = if by_itself || self.wait_for_end(ENDING) { process::reap(self.pid).ok() } else { None };
        self.output.drain();
        self.end = Some(status.filter(|_| by_itself));
        self.end.flatten()
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Ends it; what it printed last.
    #[cfg(test)]
    pub(super) fn end_and_read(&mut self) -> Option<String> {
        self.end(Duration::ZERO);
        self.output.last_words()
    }

    fn timed_out(&mut self, clock: &Clock) -> WorkerError {
        self.end(Duration::ZERO);
        let (plugin, method) = (self.plugin.clone(), clock.method.clone());
        WorkerError::TimedOut { plugin, method, after: clock.given, last_words: self.output.last_words() }
    }

    fn died(&mut self, clock: &Clock) -> WorkerError {
        let how = match self.end(ENDING) {
            Some(status) => in_words(status),
            None => "stopped talking to stasis and was ended".to_owned(),
        };
        let (plugin, method) = (self.plugin.clone(), clock.method.clone());
        WorkerError::Died { plugin, method, how, last_words: self.output.last_words() }
    }

    /// An answer that makes no sense: the process is not trusted any further.
    pub(super) fn unclear(&mut self, method: &str, problem: &dyn std::fmt::Display) -> WorkerError {
        self.end(Duration::ZERO);
        let (plugin, method, problem) = (self.plugin.clone(), method.to_owned(), problem.to_string());
        WorkerError::Unclear { plugin, method, problem }
    }

    fn failed(&mut self, clock: &Clock, error: &io::Error) -> WorkerError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.timed_out(clock),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                self.died(clock)
            }
            _ => self.unclear(&clock.method, error),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// Where this process has one thread a fork of it becomes the worker, which is there at once; else our program is
/// started again.
fn begin(fds: &[(BorrowedFd<'_>, RawFd)], with_image: bool) -> io::Result<Pid> {
    let parent = nix::unistd::getpid();
    if process::alone() {
        return process::fork_with(fds, || child::main(parent, with_image));
    }
    let me = format!("{PARENT}{parent}");
    let mut role = vec![OsStr::new(ROLE), OsStr::new(&me)];
    role.extend(with_image.then(|| OsStr::new(WITH_IMAGE)));
    let started = process::spawn_self(&role, fds)?;
    Ok(Pid::from_raw(started.id().cast_signed()))
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(number)) => {
            let name = Signal::try_from(number).map_or("no standard signal", Signal::as_str);
            format!("was killed by signal {number} ({name})")
        }
        (None, None) => status.to_string(),
    }
}
