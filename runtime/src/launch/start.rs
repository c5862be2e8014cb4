//! A start: namespaces and id maps, for this process itself or for a first process of which the monitor is the
//! parent, and the first words with that one.

use crate::error::{Error, Result};
use crate::launch::protocol::{FromInit, Ground, Order};
use crate::launch::{root, userns};
use crate::spec::{ContainerSpec, IdSpec, RootMode};
use crate::sys::channel::Channel;
use crate::sys::fd;
use crate::sys::process::{self, Forked};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use stasis_plugin_api::request::FailedHelper;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// The descriptor at which init finds its channel, over which ground and order come. The mount follows, where the image is
/// one.
pub const INIT_CHANNEL: i32 = 3;

/// A container whose first process was made. It waits for its ground and its order.
#[derive(Debug)]
pub struct Container {
    /// The first process, as seen here.
    pub pid: i32,
    /// A descriptor of it: signals and its end, whatever becomes of the number.
    pub pidfd: OwnedFd,
    /// To init.
    pub channel: Channel,
    made_as: Shape,
    ground: Option<Ground>,
    apart: Option<Apart>,
}

/// A first process that gets ready on another processor than its maker's: left alone, it is woken on that one by every word it
/// is sent, and both take turns where they could work beside each other.
#[derive(Debug)]
struct Apart {
    usual: CpuSet,
}

impl Apart {
    /// Moves it. `None` where there is no other processor.
    fn keep(pid: i32) -> Option<Self> {
        let usual = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let mut others = usual;
        others.unset(sched_getcpu().ok()?).ok()?;
        sched_setaffinity(Pid::from_raw(pid), &others).ok()?;
        Some(Self { usual })
    }

    /// Lets it run wherever its maker may: by asking for all processors, where that comes to the same. From Linux 6.2 on
    /// the kernel remembers what was asked for, also for what is started from there, and whoever has asked for some
    /// gets none of those that a control group is given later.
    fn end(&self, pid: i32) {
        let pid = Pid::from_raw(pid);
        let mut all = CpuSet::new();
        for number in 0..CpuSet::count() {
            let _ = all.set(number);
        }
        // The processors may have changed meanwhile; then the kernel has moved it already.
        let _ = sched_setaffinity(pid, &all);
        if sched_getaffinity(pid) != Ok(self.usual) {
            let _ = sched_setaffinity(pid, &self.usual);
        }
    }
}

/// What of a spec counts when a first process is made.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    namespaces: CloneFlags,
    ids: IdSpec,
    init: bool,
    mounted: bool,
}

impl Shape {
    fn of(spec: &ContainerSpec) -> Self {
        let (ids, init, mounted) = (spec.ids.clone(), spec.init, spec.root.is_mounted());
        Self { namespaces: flags(spec), ids, init, mounted }
    }
}

/// Why it does not stand.
#[derive(Debug)]
pub enum NotStood {
    /// The runtime's own failure, or the application's.
    Failed(Error),
    /// The engine's helper failed; the backend can tell why.
    NotRebuilt(Box<FailedHelper>),
}

impl From<NotStood> for Error {
    fn from(why: NotStood) -> Self {
        match why {
            NotStood::Failed(error) => error,
            NotStood::NotRebuilt(failed) => {
                Self::new(format!("the engine's {} failed", failed.name)).detail(failed.output)
            }
        }
    }
}

/// What was told on the way to the start.
#[derive(Debug)]
pub struct Stood {
    /// How the root was made.
    pub mode: RootMode,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// The application's pid inside.
    pub application: i32,
    /// The working directory that it got.
    pub cwd: PathBuf,
    /// Why the application's clocks do not go on from where they were, where that was ordered.
    pub clocks: Option<String>,
    /// The master side of the application's terminal, or the pipe to its standard input.
    pub terminal: Option<OwnedFd>,
}

fn flags(spec: &ContainerSpec) -> CloneFlags {
    let wanted = spec.namespaces;
    let mut flags = CloneFlags::CLONE_NEWNS;
    for (on, flag) in [
        (wanted.user, CloneFlags::CLONE_NEWUSER),
        (wanted.pid, CloneFlags::CLONE_NEWPID),
        (wanted.ipc, CloneFlags::CLONE_NEWIPC),
        (wanted.uts, CloneFlags::CLONE_NEWUTS),
        (wanted.net, CloneFlags::CLONE_NEWNET),
    ] {
        flags.set(flag, on);
    }
    flags
}

/// Standard input, output and error of a first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// Those of its maker.
    Kept,
    /// None: they belong to a command that ends before.
    Left,
}

/// Makes the container's first process, which is an init or, where none is wanted, the application itself. The caller
/// has one thread, and holds the image's mount where it is one. What the process is to do is told later, by
/// [`Container::lay`] and [`Container::order`].
///
/// # Errors
/// What the host refuses, with the remedy.
pub fn start(spec: &ContainerSpec, image: Option<BorrowedFd<'_>>, streams: Streams) -> Result<Container> {
    if !spec.namespaces.pid {
        return Err(Error::new(format!(
            "the container {} asks for a first process and for no pid namespace",
            spec.name
        )));
    }
    let broken = |e: std::io::Error| Error::new("cannot talk to the container's first process").because(&e);
    let (ours, theirs) = Channel::pair().map_err(broken)?;
    let forked =
        process::clone_into(flags(spec)).map_err(|e| userns::clone_error(e, spec.namespaces.user))?;
    let (pid, pidfd) = match forked {
        Forked::Child => {
            drop(ours);
            if streams == Streams::Left {
                fd::leave_streams();
            }
            process::end(first_process(spec, &theirs, image))
        }
        Forked::Parent(pid, pidfd) => (pid.as_raw(), pidfd),
    };
    drop(theirs);
    let apart = Apart::keep(pid);
    let container = Container { pid, pidfd, channel: ours, made_as: Shape::of(spec), ground: None, apart };
    let ready = match spec.namespaces.user {
        true => userns::map(pid.unsigned_abs(), &spec.ids),
        false => Ok(()),
    };
    if let Err(error) = ready {
        container.kill();
        return Err(error);
    }
    // It waits for the maps.
    match container.channel.send(&()) {
        Ok(()) => Ok(container),
        Err(error) => {
            container.kill();
            Err(broken(error))
        }
    }
}

/// Turns this process into the application of a container without an init. The caller has one thread. Returns only
/// the reason why not.
pub fn become_application(order: &Order, ground: &Ground, image: Option<BorrowedFd<'_>>) -> Error {
    let spec = &order.spec;
    if spec.namespaces.pid {
        return Error::new(format!("the container {} asks for a pid namespace and for no init", spec.name));
    }
    if let Err(e) = nix::sched::unshare(flags(spec)) {
        return userns::clone_error(e, spec.namespaces.user);
    }
    let mapped = match spec.namespaces.user {
        true => userns::map(std::process::id(), &spec.ids),
        false => Ok(()),
    };
    match mapped.and_then(|()| root::lay(ground, image, &mut || ())?.complete(order, || ())) {
        Ok(_) => crate::init::app::become_application(spec),
        Err(error) => error,
    }
}

impl Container {
    /// Whether it was made as this spec wants it, and stands on no other ground than this.
    #[must_use]
    pub fn fits(&self, spec: &ContainerSpec, ground: &Ground) -> bool {
        self.made_as == Shape::of(spec) && self.ground.as_ref().is_none_or(|has| has == ground)
    }

    /// Lets the first process begin with the root, once. What goes wrong there it tells when it has its order.
    ///
    /// # Errors
    /// It is gone. So is the container.
    pub fn lay(&mut self, ground: Ground) -> Result<()> {
        if self.ground.is_none() {
            self.tell(&ground)?;
            self.ground = Some(ground);
        }
        Ok(())
    }

    /// Tells the first process what to do on the ground that it has been given.
    ///
    /// # Errors
    /// It is gone. So is the container.
    pub fn order(&self, order: &Order) -> Result<()> {
        self.apart.iter().for_each(|apart| apart.end(self.pid));
        self.tell(order)
    }

    fn tell(&self, message: &impl serde::Serialize) -> Result<()> {
        self.channel.send(message).map_err(|error| {
            let lost = self.lost(Some(&error));
            self.kill();
            lost
        })
    }

    /// Waits until the application's program runs.
    ///
    /// # Errors
    /// What init says, or that it died. The container is gone then.
    pub fn stand(&self, within: Duration) -> std::result::Result<Stood, NotStood> {
        let lost = |e: Option<&std::io::Error>| NotStood::Failed(self.lost(e));
        self.channel.set_timeout(Some(within)).map_err(|e| lost(Some(&e)))?;
        let mut stood = Stood {
            mode: RootMode::Auto,
            notes: Vec::new(),
            application: 0,
            cwd: PathBuf::new(),
            clocks: None,
            terminal: None,
        };
        let outcome = loop {
            match self.channel.recv::<FromInit>() {
                Ok(Some((FromInit::Mounted { mode, notes }, mut fds))) => {
                    stood.mode = mode;
                    stood.notes = notes;
                    stood.terminal = fds.pop();
                }
                Ok(Some((FromInit::Started { pid, cwd, clocks }, _))) => {
                    stood.application = pid;
                    stood.cwd = cwd;
                    stood.clocks = clocks;
                    break Ok(stood);
                }
                Ok(Some((FromInit::Failed(error), _))) => break Err(NotStood::Failed(error)),
                Ok(Some((FromInit::NotRebuilt(failed), _))) => {
                    break Err(NotStood::NotRebuilt(Box::new(failed)));
                }
                Ok(Some(_)) => {}
                Ok(None) => break Err(lost(None)),
                Err(e) => break Err(lost(Some(&e))),
            }
        };
        if outcome.is_err() {
            self.kill();
        }
        self.channel.set_timeout(None).map_err(|e| lost(Some(&e)))?;
        outcome
    }

    /// Without an init: waits until the application's program runs, which closes the channel.
    ///
    /// # Errors
    /// What the first process says. The container is gone then.
    pub fn replaced(&self, within: Duration) -> Result<()> {
        let set = self.channel.set_timeout(Some(within)).map_err(|e| self.lost(Some(&e)));
        let outcome = set.and_then(|()| match self.channel.recv::<FromInit>() {
            Ok(None) => Ok(()),
            Ok(Some((FromInit::Failed(error), _))) => Err(error),
            Ok(Some(_)) => Err(self.lost(None)),
            Err(e) => Err(self.lost(Some(&e))),
        });
        if outcome.is_err() {
            self.kill();
        }
        outcome
    }

    fn lost(&self, e: Option<&std::io::Error>) -> Error {
        let error = Error::new("the container's first process ended before the application was started");
        match e {
            Some(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Error::new("the container was not made in the time given")
            }
            Some(e) => error.because(e),
            None => error,
        }
    }

    /// Kills the first process, and with it everything in its pid namespace, and waits for that.
    pub fn kill(&self) {
        // It may have ended already.
        let _ = process::signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid), None);
    }
}

/// In the new process: waits for the id maps, then becomes init or the application. Returns an exit code; what went
/// wrong was told over the channel.
fn first_process(spec: &ContainerSpec, channel: &Channel, image: Option<BorrowedFd<'_>>) -> i32 {
    let Ok(Some(((), _))) = channel.recv() else {
        // The monitor died or gave up.
        return 255;
    };
    let failed = match spec.init {
        true => become_init(channel, spec, image),
        false => match told(channel, |ground, look| root::lay(ground, image, look), |_| ()) {
            Ok(Some((laid, order, ()))) => match laid.and_then(|laid| laid.complete(&order, || ())) {
                Ok(_) => crate::init::app::become_application(&order.spec),
                Err(error) => error,
            },
            _ => return 255,
        },
    };
    // If nobody listens any more there is nobody to tell.
    let _ = channel.send(&FromInit::Failed(failed));
    255
}

/// In the new process: waits for ground and order, and uses the time between them. An order that comes while the ground is
/// laid is found where that looks for it, and begun with at once. `None` where whoever made this process has changed its
/// mind.
///
/// # Errors
/// What was sent cannot be read.
pub(crate) fn told<T, B>(
    channel: &Channel,
    lay: impl FnOnce(&Ground, &mut dyn FnMut()) -> Result<T>,
    begin: impl Fn(&Order) -> B,
) -> std::io::Result<Option<(Result<T>, Order, B)>> {
    let Some((ground, _)) = channel.recv::<Ground>()? else { return Ok(None) };
    let take = || -> std::io::Result<_> {
        Ok(channel.recv::<Order>()?.map(|(order, _)| {
            let begun = begin(&order);
            (order, begun)
        }))
    };
    let mut taken = None;
    let laid = lay(&ground, &mut || {
        if taken.is_none() && channel.has_something() {
            taken = Some(take());
        }
    });
    Ok(taken.unwrap_or_else(take)?.map(|(order, begun)| (laid, order, begun)))
}

/// Starts our own binary again, before the root is left: a process that never did an exec in its user
/// namespace could not be looked into by its owner.
fn become_init(channel: &Channel, spec: &ContainerSpec, image: Option<BorrowedFd<'_>>) -> Error {
    let cannot = |what: &str, e: nix::errno::Errno| {
        Error::new(format!("cannot start the container's init ({what})")).because(e.desc())
    };
    if spec.namespaces.user
        && spec.ids.uid != 0
        && let Err(e) = process::keep_capabilities_over_exec()
    {
        return cannot("capabilities", e).help(userns::forbidden_help(Some(e)));
    }
    let handed = [Some(channel.as_fd()), image];
    // Out of the way of the numbers that they get.
    let lifted: std::io::Result<Vec<_>> = handed.into_iter().flatten().map(fd::lift).collect();
    let Ok(lifted) = lifted else {
        return Error::new("cannot start the container's init (descriptors)");
    };
    for (fd, number) in lifted.iter().zip(INIT_CHANNEL..) {
        if let Err(e) = fd::place(fd.as_fd(), number) {
            return cannot("descriptors", e);
        }
    }
    let argv = ["stasis", crate::init::ROLE].map(str::to_owned);
    let e = process::exec("/proc/self/exe".as_ref(), &argv, &[]);
    cannot("exec", e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::resolve::tests::spec;

    fn ground() -> Ground {
        Ground::of(&spec(), false, false, PathBuf::from("/mnt"))
    }

    fn order() -> Order {
        Order { spec: spec(), logs: None, fed: false, size: None }
    }

    #[test]
    fn an_order_is_begun_with_as_soon_as_somebody_looks() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        let begun = std::cell::Cell::new(0);
        let lay = |_: &Ground, look: &mut dyn FnMut()| {
            look();
            let before = begun.get();
            ours.send(&order()).unwrap();
            (0..3).for_each(|_| look());
            Ok((before, begun.get()))
        };
        let (laid, order, number) = told(&theirs, lay, |_| begun.replace(begun.get() + 1)).unwrap().unwrap();
        assert_eq!((laid.unwrap(), order.spec.name.as_str(), number, begun.get()), ((0, 1), "job", 0, 1));
    }

    #[test]
    fn an_order_that_comes_later_is_waited_for() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        ours.send(&order()).unwrap();
        let lay = |_: &Ground, _: &mut dyn FnMut()| Err::<(), _>(Error::new("no root"));
        let (laid, _, begun) = told(&theirs, lay, |order| order.spec.name.clone()).unwrap().unwrap();
        assert_eq!((laid.unwrap_err().what.as_str(), begun.as_str()), ("no root", "job"));
    }

    #[test]
    fn no_order_is_no_error_and_nonsense_is() {
        let begin = |_: &Order| ();
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        let mut ours = Some(ours);
        let lay = |_: &Ground, look: &mut dyn FnMut()| {
            ours.take();
            look();
            Ok(())
        };
        assert!(told(&theirs, lay, begin).unwrap().is_none());
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ground()).unwrap();
        ours.send(&7).unwrap();
        let lay = |_: &Ground, look: &mut dyn FnMut()| {
            look();
            Ok(())
        };
        assert!(told(&theirs, lay, begin).is_err());
    }
}
