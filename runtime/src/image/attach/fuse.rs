//! A mount that a process of the user's serves: `squashfuse_ll`, which is given the open `/dev/fuse` of a mount
//! made here. An ordinary user may make it in a user namespace of its own; who is let in is decided by the ids
//! of the caller, not by that namespace, so that the mount can be looked into from outside and attached in the
//! container.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use stasis_plugin_api::plan::IdMap;

use super::{Held, Wanted};
use crate::error::{Error, Result};
use crate::image::tools;
use crate::launch::userns;
use crate::spec::IdSpec;
use crate::sys::channel::Channel;
use crate::sys::mount::detached;
use crate::sys::process::{self, Forked};

const PROGRAM: &str = "squashfuse_ll";
/// A mount whose last holder is gone is served no longer than this; processes that the application left
/// behind without an init may hold it on, and it goes with them.
const ENDING: Duration = Duration::from_millis(300);

/// The process that serves a mount. It ends by itself with the mount.
#[derive(Debug)]
pub struct Server {
    pidfd: OwnedFd,
}

impl Server {
    /// Of the process.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits a little for its end, and reaps it where it is a child of this process.
    pub(super) fn wait(self) {
        let until = Instant::now() + ENDING;
        loop {
            let left =
                u16::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(0);
            let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ended, PollTimeout::from(left)) {
                Err(Errno::EINTR) => {}
                _ => break,
            }
        }
        self.reap();
    }

    fn reap(&self) {
        // Somebody else's child, or still running: then there is nothing to reap.
        let _ = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }

    fn kill(&self) {
        // It may have ended already.
        let _ = process::signal(self.pidfd.as_fd(), libc::SIGKILL);
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ended, PollTimeout::from(2000_u16));
        self.reap();
    }
}

pub(super) fn mount(wanted: &Wanted<'_>) -> Result<Held> {
    let program = tools::program(PROGRAM, "squashfuse")?;
    let (device, mount) = match nix::unistd::geteuid().is_root() {
        true => make()?,
        false => make_in_namespace()?,
    };
    let mut words = memfd_create(c"squashfuse", MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .map_err(|e| Error::new("no memory for its messages").because(e.desc()))?;
    let server = serve(program, wanted, &device, &words)?;
    // The connection breaks when the server ends: nobody else may hold its device.
    drop(device);
    match openat(&mount, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(Held::new(mount, Some(server))),
        Err(e) => {
            server.kill();
            let mut said = String::new();
            // Without its words the errno has to do.
            let _ = words.rewind().and_then(|()| words.read_to_string(&mut said));
            Err(Error::new(format!("{PROGRAM} does not serve it")).because(e.desc()).detail(said))
        }
    }
}

fn serve(
    mut command: std::process::Command,
    wanted: &Wanted<'_>,
    device: &OwnedFd,
    words: &File,
) -> Result<Server> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("{PROGRAM} cannot be started")).because(e);
    let copy = words.try_clone().map_err(|e| failed(&e))?;
    command.args(["-f", "-o", &format!("offset={}", wanted.spec.offset), "/proc/self/fd/4", "/dev/fd/3"]);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(copy));
    let fds = [(device.as_fd(), 3), (wanted.file.as_fd(), 4)];
    let child = process::spawn_tool(&mut command, &fds, false).map_err(|e| failed(&e))?;
    let pidfd = process::descriptor_of(child.id().cast_signed()).map_err(|e| failed(&e.desc()))?;
    Ok(Server { pidfd })
}

/// The open device and the mount that is served through it.
fn make() -> Result<(OwnedFd, OwnedFd)> {
    let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| {
        Error::new("/dev/fuse cannot be opened")
            .because(e.desc())
            .help("the administrator opens it: chmod 666 /dev/fuse")
    })?;
    let text = |number: u32| CString::new(number.to_string()).unwrap_or_default();
    let (uid, gid) = (text(nix::unistd::geteuid().as_raw()), text(nix::unistd::getegid().as_raw()));
    let number = text(device.as_raw_fd().unsigned_abs());
    let mut options = vec![
        (c"source", Some(c"stasis")),
        (c"subtype", Some(c"squashfuse")),
        (c"fd", Some(number.as_c_str())),
        (c"rootmode", Some(c"40000")),
        (c"user_id", Some(uid.as_c_str())),
        (c"group_id", Some(gid.as_c_str())),
    ];
    if nix::unistd::geteuid().is_root() {
        // Programs that change their user are still bound by the modes of the image's files.
        options.extend([(c"allow_other", None), (c"default_permissions", None)]);
    }
    let mount = detached(c"fuse", &options).map_err(|(errno, said)| {
        let error = Error::new("the kernel makes no FUSE mount").because(errno.desc());
        if said.is_empty() { error } else { error.because(said) }
    })?;
    Ok((device, mount))
}

/// The same by a process in a user namespace of its own, which is gone afterwards.
fn make_in_namespace() -> Result<(OwnedFd, OwnedFd)> {
    let broken = |e: &dyn std::fmt::Display| Error::new("the process that makes the mount failed").because(e);
    let (ours, theirs) = Channel::pair().map_err(|e| broken(&e))?;
    let forked = process::clone_into(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|e| userns::clone_error(e, true))?;
    let (pid, pidfd) = match forked {
        Forked::Child => {
            drop(ours);
            // The word comes when the ids are mapped.
            let told = match theirs.recv::<()>() {
                Ok(Some(_)) => make(),
                _ => process::end(1),
            };
            let _ = match told {
                Ok((device, mount)) => {
                    theirs.send_with(&Ok::<(), Error>(()), &[device.as_fd(), mount.as_fd()])
                }
                Err(error) => theirs.send(&Err::<(), Error>(error)),
            };
            process::end(0)
        }
        Forked::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(theirs);
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let ids = IdSpec { map: IdMap::Keep, granted: false, host_uid: uid, host_gid: gid, uid, gid };
    let outcome = userns::map(pid.as_raw().cast_unsigned(), &ids)
        .and_then(|()| ours.send(&()).map_err(|e| broken(&e)))
        .and_then(|()| ours.recv::<std::result::Result<(), Error>>().map_err(|e| broken(&e)));
    // Either it has said all it has to say, or it is of no use.
    let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = nix::sys::wait::waitpid(pid, None);
    let Some((answer, fds)) = outcome? else { return Err(broken(&"it said nothing")) };
    answer?;
    match <[OwnedFd; 2]>::try_from(fds) {
        Ok([device, mount]) => Ok((device, mount)),
        Err(_) => Err(broken(&"it handed nothing over")),
    }
}
