//! A start: namespaces and id maps, for this process itself or for a first process of which the monitor is the
//! parent, and the first words with that one.

use crate::error::{Error, Result};
use crate::launch::hear::told;
use crate::launch::protocol::{Ahead, FromInit, Ground, Order, ToFirst};
use crate::launch::{root, userns};
use crate::spec::{ContainerSpec, IdSpec, RootMode};
use crate::sys::apart::Apart;
use crate::sys::channel::Channel;
use crate::sys::fd;
use crate::sys::process::{self, Forked};
use nix::sched::CloneFlags;
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
    let apart = Apart::keep(Pid::from_raw(pid));
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

    /// Lets something get ready, where the ground is laid. What goes wrong with it is found out when it is its turn.
    ///
    /// # Errors
    /// It is gone. So is the container.
    pub fn ahead(&mut self, ahead: Ahead) -> Result<()> {
        if self.ground.is_none() {
            return Ok(());
        }
        self.free();
        self.tell(&ToFirst::Ahead(ahead.into()))
    }

    /// What it starts runs wherever there is room.
    fn free(&mut self) {
        if let Some(apart) = self.apart.take() {
            apart.end();
        }
    }

    /// Tells the first process what to do on the ground that it has been given.
    ///
    /// # Errors
    /// It is gone. So is the container.
    pub fn order(&mut self, order: Order) -> Result<()> {
        self.free();
        self.tell(&ToFirst::Order(order.into()))
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
        false => match told(channel, |ground, look| root::lay(ground, image, look), order_of) {
            Ok(Some((laid, order))) => match laid.and_then(|laid| laid.complete(&order, || ())) {
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

/// Nothing is started beside an application without an init.
fn order_of(said: ToFirst) -> Option<Box<Order>> {
    match said {
        ToFirst::Ahead(_) => None,
        ToFirst::Order(order) => Some(order),
    }
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
