//! Init's loop: one thread, one `poll` over the monitor's channel, ended children and pipes.

use crate::error::{Error, Result};
use crate::init::app::{self, Application, Streams};
use crate::init::early::Loaded;
use crate::init::helpers::{Rebuilding, Rebuilt};
use crate::init::jobs::{Beside, Job};
use crate::init::{children, helpers, survey, tmpfs};
use crate::launch::protocol::{Ending, FromInit, Order, Target, ToInit};
use crate::launch::root::Made;
use crate::spec::{ContainerSpec, RestartStep};
use crate::sys::channel::Channel;
use crate::sys::{fd, signal, terminal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use stasis_plugin_api::plan::{RestoredRoot, StdioKind};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

struct HelperProcess {
    name: String,
    essential: bool,
}

/// Pid 1.
pub struct Init<'a> {
    channel: &'a Channel,
    spec: ContainerSpec,
    children: SignalFd,
    keep_capabilities: bool,
    /// Where the container has memory file systems of its own.
    tmpfs: Vec<PathBuf>,
    application: i32,
    supervisor: Option<(i32, File)>,
    helpers: HashMap<i32, HelperProcess>,
    jobs: Vec<Job>,
    besides: HashMap<i32, u64>,
}

impl std::fmt::Debug for Init<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Init").field("application", &self.application).finish_non_exhaustive()
    }
}

/// Sends a message with a terminal's master side, which is the receiver's alone afterwards.
fn send_with(channel: &Channel, message: &FromInit, master: Option<OwnedFd>) -> Result<()> {
    let handed: Vec<_> = master.iter().map(AsFd::as_fd).collect();
    channel.send_with(message, &handed).map_err(|e| gone(&e))
}

fn gone(e: &std::io::Error) -> Error {
    Error::new("the monitor is gone").because(e)
}

impl<'a> Init<'a> {
    /// Starts helpers and application, or lets the helper go on that was loaded early; `clocks` is why those do
    /// not go on, and only told. `None` when a generation could not be rebuilt, which was told.
    ///
    /// # Errors
    /// What could not be started.
    pub fn new(
        channel: &'a Channel,
        order: Order,
        made: Made,
        (clocks, loaded): (Option<String>, Option<Loaded>),
    ) -> Result<Option<Self>> {
        let children = signal::descriptor(&[Signal::SIGCHLD])
            .map_err(|e| Error::new("init cannot watch its children").because(e.desc()))?;
        let spec = order.spec;
        let (streams, master) = streams(&spec, order.size, order.fed)?;
        let mounted = FromInit::Mounted { mode: made.mode, notes: made.notes };
        send_with(channel, &mounted, master)?;
        let keep_capabilities = app::keeps_capabilities(&spec);
        let mut init = Self {
            channel,
            spec,
            children,
            keep_capabilities,
            tmpfs: made.tmpfs,
            application: 0,
            supervisor: None,
            helpers: HashMap::new(),
            jobs: Vec::new(),
            besides: HashMap::new(),
        };
        let rebuilt = init.begin(made.listeners, &streams, loaded)?;
        if let Some(failed) = rebuilt.as_ref().and_then(Rebuilt::failed) {
            rebuilt.iter().for_each(Rebuilt::log);
            channel.send(&FromInit::NotRebuilt(failed)).map_err(|e| gone(&e))?;
            return Ok(None);
        }
        let cwd = init.spec.process.cwd.iter().find(|d| d.is_dir()).cloned();
        let cwd = cwd.unwrap_or_else(|| "/".into());
        channel.send(&FromInit::Started { pid: init.application, cwd, clocks }).map_err(|e| gone(&e))?;
        rebuilt.iter().for_each(Rebuilt::log);
        Ok(Some(init))
    }

    fn begin(
        &mut self,
        mut listeners: std::collections::BTreeMap<std::path::PathBuf, std::os::unix::net::UnixListener>,
        streams: &Streams,
        loaded: Option<Loaded>,
    ) -> Result<Option<Rebuilt>> {
        let engine = self.spec.engine.clone();
        if let Some(content) = engine.as_ref().and_then(|e| e.needs.tmpfs_content.as_ref()) {
            tmpfs::restore(content, &self.tmpfs)?;
        }
        for helper in engine.iter().flat_map(|e| &e.needs.helpers) {
            let seccomp = engine.as_ref().map_or(&[][..], |e| &e.needs.seccomp);
            let pid = helpers::start(helper, &mut listeners, seccomp, self.keep_capabilities)?;
            self.helpers
                .insert(pid, HelperProcess { name: helper.name.clone(), essential: helper.essential });
        }
        if let Some(RestartStep::Rebuild { helper, root, reserve_pids_up_to }) =
            engine.as_ref().and_then(|e| e.restart.as_ref())
        {
            let rebuilding = match loaded.map(Loaded::go) {
                Some(rebuilding) => rebuilding,
                None => {
                    app::next_pid(reserve_pids_up_to + 1)?;
                    Rebuilding::begin(helper, &mut listeners, self.keep_capabilities)?
                }
            };
            let rebuilt = rebuilding.follow(helper)?;
            if rebuilt.failed().is_none() {
                self.application = restored(root).inspect_err(|_| rebuilt.log())?;
            }
            return Ok(Some(rebuilt));
        }
        let Application { pid, supervisor } = app::start(&self.spec, streams)?;
        self.application = pid;
        self.supervisor = supervisor;
        Ok(None)
    }

    /// Serves until the monitor ends it or is gone; then kills everything.
    ///
    /// # Errors
    /// When even waiting fails.
    pub fn run(&mut self) -> Result<()> {
        while self.step()? {}
        // SIGKILL to everybody but ourselves: this is pid 1 of the namespace.
        let _ = nix::sys::signal::kill(Pid::from_raw(-1), Signal::SIGKILL);
        Ok(())
    }

    fn step(&mut self) -> Result<bool> {
        let now = Instant::now();
        for job in &mut self.jobs {
            job.enforce(now);
        }
        let (heard, child, status) = self.wait(now)?;
        if status {
            // A helper that died first is why the application ended, and is told first.
            self.reap()?;
            self.hear_supervisor()?;
        }
        for job in &mut self.jobs {
            job.drain();
        }
        if child {
            // Read away what is known already; the waiting below finds everybody.
            while let Ok(Some(_)) = self.children.read_signal() {}
            self.reap()?;
        }
        if !heard {
            return Ok(true);
        }
        match self.channel.recv::<ToInit>() {
            Ok(Some((ToInit::End, _)) | None) => Ok(false),
            Ok(Some((message, fds))) => self.serve(message, fds).map(|()| true),
            // A monitor that speaks nonsense is as good as gone.
            Err(_) => Ok(false),
        }
    }

    fn wait(&self, now: Instant) -> Result<(bool, bool, bool)> {
        let mut watched = vec![
            PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
        ];
        let supervised = self.supervisor.is_some();
        watched.extend(self.supervisor.iter().map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        for job in &self.jobs {
            watched.extend(job.pipes().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        }
        let next = self.jobs.iter().filter(|j| !j.timed_out).filter_map(|j| j.deadline).min();
        let timeout = next.map_or(PollTimeout::NONE, |d| {
            let left = d.saturating_duration_since(now).as_millis() + 1;
            PollTimeout::try_from(left.min(60_000)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut watched, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::new("init cannot wait").because(e.desc())),
        }
        let ready = |n: usize| watched.get(n).and_then(PollFd::any).unwrap_or(false);
        Ok((ready(0), ready(1), supervised && ready(2)))
    }

    fn hear_supervisor(&mut self) -> Result<()> {
        let Some((_, pipe)) = &mut self.supervisor else { return Ok(()) };
        let mut status = [0; 4];
        let ending = match pipe.read_exact(&mut status) {
            Ok(()) => Ending::from_raw(i32::from_le_bytes(status)),
            // The supervisor was killed; the application is an orphan of ours now.
            Err(_) => Ending::Signal(libc::SIGKILL),
        };
        self.supervisor = None;
        self.tell(&FromInit::Ended(ending))
    }

    fn tell(&self, message: &FromInit) -> Result<()> {
        self.channel.send(message).map_err(|e| gone(&e))
    }

    fn reap(&mut self) -> Result<()> {
        loop {
            let mut status = 0;
            let pid = crate::sys::process::wait_any(&mut status);
            let Some(pid) = pid else { return Ok(()) };
            if let Some(helper) = self.helpers.remove(&pid) {
                let ending = Ending::from_raw(status);
                self.tell(&FromInit::HelperEnded { name: helper.name, ending, essential: helper.essential })?;
            } else if let Some(id) = self.besides.remove(&pid) {
                self.tell(&FromInit::ExecEnded { id, ending: Ok(Ending::from_raw(status)) })?;
            } else if let Some(at) = self.jobs.iter().position(|j| j.pid == pid) {
                let job = self.jobs.swap_remove(at);
                self.tell(&job.finish(status))?;
            } else if pid == self.application && self.supervisor.is_none() {
                self.tell(&FromInit::Ended(Ending::from_raw(status)))?;
            }
        }
    }

    fn serve(&mut self, message: ToInit, fds: Vec<OwnedFd>) -> Result<()> {
        match message {
            ToInit::Run { id, command } => match Job::start(id, &command, &fds, self.keep_capabilities) {
                Ok(job) => {
                    self.jobs.push(job);
                    Ok(())
                }
                Err(error) => self.tell(&FromInit::Ran { id, output: Err(error) }),
            },
            ToInit::Exec { id, argv, env, cwd, size } => {
                let beside = Beside { argv, env, cwd, size, streams: fds };
                match beside.start(self.keep_capabilities) {
                    Ok((pid, master)) => {
                        self.besides.insert(pid, id);
                        send_with(self.channel, &FromInit::ExecStarted { id }, master)
                    }
                    Err(error) => self.tell(&FromInit::ExecEnded { id, ending: Err(error) }),
                }
            }
            ToInit::Signal { to, signal } => {
                self.signal(to, signal);
                Ok(())
            }
            ToInit::SignalPids { pids, signal } => {
                if let Ok(signal) = Signal::try_from(signal) {
                    for pid in pids.into_iter().filter(|pid| *pid > 1) {
                        // It may have ended meanwhile.
                        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
                    }
                }
                Ok(())
            }
            ToInit::SaveTmpfs { id, file } => match Job::save_tmpfs(id, &self.tmpfs, &file) {
                Ok(job) => {
                    self.jobs.push(job);
                    Ok(())
                }
                Err(error) => self.tell(&FromInit::TmpfsSaved { id, saved: Err(error) }),
            },
            ToInit::Survey { id } => {
                let mut survey = survey::survey(
                    Path::new("/proc"),
                    &self.own(),
                    &self.besides.keys().copied().collect::<Vec<_>>(),
                );
                survey.tmpfs = tmpfs::occupied(&self.tmpfs);
                self.tell(&FromInit::Surveyed { id, survey })
            }
            ToInit::End => Ok(()),
        }
    }

    /// Pids that are ours or the engine's, not the application's.
    fn own(&self) -> Vec<i32> {
        let mut own: Vec<i32> = self.helpers.keys().copied().collect();
        own.extend(self.supervisor.iter().map(|(pid, _)| *pid));
        own.extend(self.jobs.iter().map(|j| j.pid));
        own.extend(self.besides.keys());
        own
    }

    fn signal(&self, to: Target, signal: i32) {
        let Ok(signal) = Signal::try_from(signal) else { return };
        let one = |pid: i32| {
            if pid > 1 {
                // It may have ended meanwhile.
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
            }
        };
        match to {
            Target::Application => one(self.application),
            Target::Exec(id) => self.besides.iter().filter(|(_, i)| **i == id).for_each(|(pid, _)| one(*pid)),
            Target::Everybody => {
                let own = self.own();
                let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
                all.filter_map(|e| e.file_name().to_str()?.parse().ok())
                    .filter(|pid| !own.contains(pid))
                    .for_each(one);
            }
        }
    }
}

fn restored(root: &RestoredRoot) -> Result<i32> {
    match root {
        RestoredRoot::Pid(pid) => Ok(*pid),
        RestoredRoot::PidFile(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                Error::new(format!("the engine left no pid in {}", path.display())).because(&e)
            })?;
            text.trim()
                .parse()
                .map_err(|_| Error::new(format!("the engine left no pid in {}", path.display())))
        }
    }
}

fn streams(
    spec: &ContainerSpec,
    size: Option<terminal::Size>,
    fed: bool,
) -> Result<(Streams, Option<OwnedFd>)> {
    match spec.stdio {
        StdioKind::Inherit => Ok((Streams(None), None)),
        StdioKind::File => {
            let (stdin, feeder) = match fed {
                true => {
                    let cannot = |e: std::io::Error| Error::new("cannot make a pipe").because(&e);
                    fd::pipe().map(|(read, write)| (read, Some(write))).map_err(cannot)?
                }
                false => (children::null()?, None),
            };
            Ok((Streams(Some([stdin, children::log("out.log")?, children::log("err.log")?])), feeder))
        }
        StdioKind::Pty => {
            let failed = |e: nix::errno::Errno| {
                Error::new("cannot make a terminal in the container").because(e.desc())
            };
            let (master, slave) = terminal::open_pair().map_err(failed)?;
            if let Some(size) = size {
                terminal::set_size(master.as_fd(), size).map_err(failed)?;
            }
            let copy = || {
                slave
                    .try_clone()
                    .map_err(|e| Error::new("cannot make a terminal in the container").because(&e))
            };
            let streams = [copy()?, copy()?, copy()?];
            Ok((Streams(Some(streams)), Some(master)))
        }
    }
}
