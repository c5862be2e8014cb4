//! The processes before they have their memory: copies of the engine that take what only a process itself can take
//! (parent, session, group, descriptors, handlers) and then rest until the engine goes on with them from outside.

use super::objects::Made;
use crate::model::{Image, Process, State};
use crate::sys::{clone, fd, task};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stasis_plugin_api::prelude::*;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Making a process takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(30);
const TIOCSCTTY: u64 = 0x540e;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;

/// Makes all processes; they rest afterwards. The root is a child of the engine's parent, which keeps it.
pub(super) fn make(image: &Image, made: &Made) -> Result<()> {
    let failed = |e: Errno| BackendError::failed("cannot make the processes").because(e.desc());
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed)?;
    let ready = fd::lift(write.as_fd(), made.base).map_err(failed)?;
    drop(write);
    let root = image.processes.iter().find(|p| p.pid == image.root).ok_or_else(|| failed(Errno::ESRCH))?;
    let family = Family { image, made, ready };
    match clone::copy_with_pid(root.pid, root.exit_signal, true) {
        Ok(true) => family.born(root, None),
        Ok(false) => {}
        Err(errno) => return Err(taken(root.pid, errno)),
    }
    drop(family);
    wait(image, File::from(read))
}

/// Why a pid could not be had.
fn taken(pid: i32, errno: Errno) -> BackendError {
    let error = BackendError::failed(format!("cannot make a process with pid {pid}"));
    match errno {
        Errno::EEXIST => error
            .because("another process of the container has this pid")
            .help("restart in a new container, without commands beside the application"),
        Errno::EPERM => error
            .because("pids may not be chosen here")
            .help("the engine needs CAP_CHECKPOINT_RESTORE over the container's pid namespace"),
        errno => error.because(errno.desc()),
    }
}

/// Until every process has said that it rests, or one why it cannot.
fn wait(image: &Image, mut pipe: File) -> Result<()> {
    let alive = image.processes.iter().filter(|p| !ended(p)).count();
    let until = Instant::now() + PATIENCE;
    let (mut said, mut part) = (Vec::new(), [0; 4096]);
    let failed = |why: &str| Err(BackendError::failed("cannot make the processes").because(why));
    loop {
        let lines: Vec<&[u8]> = said.split(|b: &u8| *b == b'\n').filter(|l: &&[u8]| !l.is_empty()).collect();
        if let Some(line) = lines.iter().find(|l| l.first() == Some(&b'{')) {
            let error = serde_json::from_slice(line);
            return Err(
                error.unwrap_or_else(|e| BackendError::failed("cannot make the processes").because(e))
            );
        }
        if said.iter().filter(|b| **b == b'\n').count() >= alive {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        if left == 0 {
            return failed("they took too long");
        }
        let mut watched = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        // An interrupted wait is tried again.
        let _ = poll(&mut watched, PollTimeout::try_from(left.min(1000)).unwrap_or(PollTimeout::ZERO));
        if watched[0].any() != Some(true) {
            continue;
        }
        match pipe.read(&mut part) {
            Ok(0) => return failed("one of them ended"),
            Ok(n) => said.extend_from_slice(part.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return failed(&e.to_string()),
        }
    }
}

fn ended(process: &Process) -> bool {
    matches!(process.state, State::Zombie { .. })
}

struct Family<'a> {
    image: &'a Image,
    made: &'a Made,
    ready: OwnedFd,
}

type Tried = Result<()>;

impl Family<'_> {
    /// In the new process, whose parent's session was left by then or not. Does not return.
    fn born(&self, process: &Process, parent: Option<&Process>) -> ! {
        if let State::Zombie { status } = process.state {
            self.end(process, status);
        }
        let line = match self.live(process, parent) {
            Ok(()) => "r\n".to_owned(),
            Err(error) => format!("{}\n", serde_json::to_string(&error).unwrap_or_else(|_| "{}".to_owned())),
        };
        let mut ready = File::from(match self.ready.try_clone() {
            Ok(ready) => ready,
            Err(_) => task::end(1),
        });
        // One write: lines of several processes do not mix.
        let told = ready.write_all(line.as_bytes());
        drop(ready);
        if told.is_err() || line.starts_with('{') {
            task::end(1);
        }
        task::rest()
    }

    /// A process that has ended already.
    fn end(&self, process: &Process, status: i32) -> ! {
        if process.sid == process.pid {
            let _ = nix::unistd::setsid();
        } else if process.pgid == process.pid {
            let _ = nix::unistd::setpgid(nix::unistd::Pid::this(), nix::unistd::Pid::this());
        }
        let name = std::ffi::CString::new(process.comm.as_str()).unwrap_or_default();
        let _ = nix::sys::prctl::set_name(&name);
        let signal = status & 0x7f;
        if signal != 0 {
            // Without a core file: the one of its first death is what counts.
            let _ = task::set_limit(0, libc::RLIMIT_CORE, [0, 0]);
            let default = crate::model::SignalAction::default();
            let _ = task::set_action(signal, &default);
            let _ = task::set_mask(0);
            let _ = crate::sys::process::kill(process.pid, signal);
        }
        task::end(status >> 8 & 0xff)
    }

    fn live(&self, process: &Process, parent: Option<&Process>) -> Tried {
        let told = |what: &'static str| {
            move |e: Errno| {
                BackendError::failed(format!("cannot rebuild process {}", process.pid))
                    .because(format!("{what}: {}", e.desc()))
            }
        };
        if parent.is_some_and(|parent| self.lost(process, parent)) {
            // Whoever leads its session for now is about to end.
            while nix::unistd::getppid().as_raw() == process.sid {
                std::thread::sleep(Duration::from_micros(100));
            }
            if nix::unistd::getppid().as_raw() != process.ppid {
                return Err(told("its parent")(Errno::ESRCH));
            }
        }
        task::prctl(libc::PR_SET_PDEATHSIG, SIGKILL as u64).map_err(told("its parent's death"))?;
        let leads = process.sid == process.pid;
        if leads {
            // Those that stayed in the session that this process left.
            let stayed = |child: &Process| child.sid != process.pid && child.sid != child.pid;
            self.children(process, |child| stayed(child) && !self.lost(child, process))?;
            nix::unistd::setsid().map(drop).map_err(told("its session"))?;
            self.terminal(process).map_err(told("its terminal"))?;
        } else if process.pgid == process.pid {
            let me = nix::unistd::Pid::this();
            nix::unistd::setpgid(me, me).map_err(told("its process group"))?;
        }
        if process.subreaper {
            task::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map_err(told("its orphans"))?;
        }
        let stays = |child: &Process| {
            !self.lost(child, process) && (!leads || child.sid == process.pid || child.sid == child.pid)
        };
        self.children(process, stays)?;
        self.foundlings(process)?;
        self.found_group(process)?;
        for child in self.image.processes.iter().filter(|c| c.ppid == process.pid && ended(c)) {
            task::wait_ended(child.pid).map_err(told("a child that has ended"))?;
        }
        self.settle(process)
    }

    /// Whether a child is in a session whose leader has ended, and was adopted.
    fn lost(&self, child: &Process, parent: &Process) -> bool {
        adopted(self.image, child, parent)
    }

    /// Children in sessions whose leaders have ended: a leader is made, makes them and ends, and they are adopted.
    fn foundlings(&self, process: &Process) -> Tried {
        let mine = |child: &&Process| child.ppid == process.pid && self.lost(child, process);
        let mut sessions: Vec<i32> =
            self.image.processes.iter().filter(mine).map(|child| child.sid).collect();
        sessions.sort_unstable();
        sessions.dedup();
        for session in sessions {
            match clone::copy_with_pid(session, libc::SIGCHLD, false) {
                Ok(true) => self.lead(session, process),
                Ok(false) => {}
                Err(errno) => return Err(taken(session, errno)),
            }
            let leader = nix::unistd::Pid::from_raw(session);
            let ended = nix::sys::wait::waitpid(leader, None);
            if ended != Ok(nix::sys::wait::WaitStatus::Exited(leader, 0)) {
                return Err(BackendError::failed(format!("cannot rebuild process {}", process.pid))
                    .because(format!("the leader of session {session} did not end as it should")));
            }
        }
        Ok(())
    }

    /// A process group whose leader has ended needs one for a moment: it is there as long as somebody is in it.
    fn found_group(&self, process: &Process) -> Tried {
        if founder(self.image, process.pgid) != Some(process.pid) {
            return Ok(());
        }
        match clone::copy_with_pid(process.pgid, libc::SIGCHLD, false) {
            Ok(true) => {
                // Should this process end before it can end its child.
                let _ = task::prctl(libc::PR_SET_PDEATHSIG, SIGKILL as u64);
                task::rest()
            }
            Ok(false) => {}
            Err(errno) => return Err(taken(process.pgid, errno)),
        }
        let leader = nix::unistd::Pid::from_raw(process.pgid);
        let this = nix::unistd::Pid::this();
        let joined = nix::unistd::setpgid(leader, leader).and_then(|()| nix::unistd::setpgid(this, leader));
        let ended = nix::sys::signal::kill(leader, nix::sys::signal::Signal::SIGKILL)
            .and_then(|()| nix::sys::wait::waitpid(leader, None));
        joined.and(ended.map(drop)).map_err(|errno| {
            BackendError::failed(format!("cannot rebuild process {}", process.pid)).because(format!(
                "its process group {}: {}",
                process.pgid,
                errno.desc()
            ))
        })
    }

    /// In the process that leads a session for a moment.
    fn lead(&self, session: i32, parent: &Process) -> ! {
        let made = nix::unistd::setsid().map_err(|errno| taken(session, errno));
        let which = |child: &Process| child.sid == session && self.lost(child, parent);
        let made = made.and_then(|_| self.children(parent, which));
        task::end(i32::from(made.is_err()))
    }

    fn children(&self, process: &Process, which: impl Fn(&Process) -> bool) -> Tried {
        let children = self.image.processes.iter().filter(|c| c.ppid == process.pid && c.pid != process.pid);
        for child in children.filter(|c| which(c)) {
            match clone::copy_with_pid(child.pid, child.exit_signal, false) {
                Ok(true) => self.born(child, Some(process)),
                Ok(false) => {}
                Err(errno) => return Err(taken(child.pid, errno)),
            }
        }
        Ok(())
    }

    fn terminal(&self, process: &Process) -> std::result::Result<(), Errno> {
        let Some(index) = process.terminal else { return Ok(()) };
        let follower = self.made.terminals.follower(index).ok_or(Errno::ENXIO)?;
        fd::ioctl_number(follower.as_fd(), TIOCSCTTY, 0).map(drop)
    }

    /// What a process has of its own besides memory, threads and identity.
    fn settle(&self, process: &Process) -> Tried {
        let told = |what: &'static str| {
            move |e: Errno| {
                BackendError::failed(format!("cannot rebuild process {}", process.pid))
                    .because(format!("{what}: {}", e.desc()))
            }
        };
        // From here on nothing is delivered: the handlers' code is not there yet.
        task::set_mask(u64::MAX).map_err(told("its signals"))?;
        for (signal, action) in (1..).zip(&process.signals) {
            if signal != SIGKILL && signal != SIGSTOP {
                task::set_action(signal, action).map_err(told("its signal handlers"))?;
            }
        }
        let mode = nix::sys::stat::Mode::from_bits_truncate(process.umask);
        nix::sys::stat::umask(mode);
        nix::unistd::chdir(process.cwd.as_str()).map_err(|e| {
            BackendError::failed(format!("cannot rebuild process {}", process.pid))
                .because(format!("its working directory {}: {}", process.cwd, e.desc()))
                .help("put the directory back, or take another generation")
        })?;
        if process.thp_disable {
            task::disable_huge_pages(process.settings.huge_when_advised).map_err(told("huge pages"))?;
        }
        if let Some(filter) = process.settings.core_filter {
            // Nobody has to have one.
            let _ = std::fs::write("/proc/self/coredump_filter", format!("{filter:#x}"));
        }
        // Lower values than the engine's are for privilege; the kernel then kills it a little earlier.
        let _ = std::fs::write("/proc/self/oom_score_adj", process.oom_score_adj.to_string());
        self.descriptors(process).map_err(told("its descriptors"))
    }

    fn descriptors(&self, process: &Process) -> std::result::Result<(), Errno> {
        let mut placed: Vec<i32> = Vec::new();
        for descriptor in &process.descriptors {
            if let Some(Some(parked)) = self.made.objects.get(descriptor.object) {
                fd::place(parked.as_fd(), descriptor.fd, descriptor.cloexec)?;
                placed.push(descriptor.fd);
            }
        }
        placed.sort_unstable();
        // Everything between them is the engine's.
        let mut from = 0;
        for number in placed.into_iter().chain([self.made.base]) {
            if from < number {
                fd::close_range(from, (number - 1).cast_unsigned())?;
            }
            from = number + 1;
        }
        Ok(())
    }
}

/// Whether a process is in a session whose leader has ended, and its parent is one that adopts orphans.
pub(crate) fn adopted(image: &Image, child: &Process, parent: &Process) -> bool {
    let led = image.processes.iter().any(|process| process.pid == child.sid);
    parent.subreaper && !led && child.sid > 0 && child.sid != parent.sid
}

/// Who makes a process group whose leader has ended: the first of its members, unless it is the one that the
/// application was started in, or that of a session whose leader has ended, which both are inherited.
pub(super) fn founder(image: &Image, pgid: i32) -> Option<i32> {
    let inherited =
        image.processes.iter().find(|p| p.pid == image.root).is_some_and(|root| root.pgid == pgid);
    if pgid <= 0 || inherited || image.processes.iter().any(|p| p.pid == pgid) {
        return None;
    }
    let first = image.processes.iter().find(|p| p.pgid == pgid && !ended(p))?;
    (first.sid != pgid).then_some(first.pid)
}

/// Sessions and groups that can be made: those whose leader is there, or was there alone, or that are inherited.
pub(crate) fn kinship(image: &Image) -> Result<()> {
    let find = |pid: i32| image.processes.iter().find(|p| p.pid == pid);
    for process in &image.processes {
        let Some(parent) = find(process.ppid).filter(|_| process.pid != image.root) else { continue };
        let lost = |what: &str, id: i32| {
            let left = if find(id).is_some() { "left it" } else { "ended" };
            BackendError::new(kind::UNSUPPORTED, format!("process {} cannot be rebuilt", process.pid))
                .because(format!("the leader of its {what} {id} has {left}"))
                .help("start the processes of a group by something that waits for them")
        };
        let birth = find(parent.ppid).filter(|_| parent.pid != image.root).map_or(parent.sid, |p| p.sid);
        let inherited = process.sid == parent.sid || (parent.sid == parent.pid && process.sid == birth);
        let adopted = adopted(image, process, parent);
        if process.sid != process.pid && !inherited && !adopted {
            return Err(lost("session", process.sid));
        }
        let leader = find(process.pgid).is_some_and(|l| l.pgid == l.pid && l.sid == process.sid);
        let from = if adopted { process.sid } else { parent.pgid };
        let founded = founder(image, process.pgid).is_some();
        if process.pgid != process.pid && !leader && !founded && process.pgid != from {
            return Err(lost("process group", process.pgid));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, ppid: i32, sid: i32, pgid: i32) -> Process {
        Process { pid, ppid, sid, pgid, ..Process::default() }
    }

    #[test]
    fn leaders_that_ended_are_told() {
        let told = |more: &[Process]| {
            let mut processes = vec![process(100, 1, 100, 100), process(101, 100, 100, 101)];
            processes.extend_from_slice(more);
            match kinship(&Image { root: 100, processes, ..Image::default() }) {
                Ok(()) => "fine".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(told(&[process(102, 101, 100, 101), process(103, 100, 103, 103)]), "fine");
        assert_eq!(told(&[process(103, 101, 103, 103), process(104, 103, 100, 100)]), "fine");
        let orphans = [process(102, 101, 7, 7), process(103, 102, 7, 7), process(104, 101, 7, 104)];
        let adopting = |mut image: Image| {
            image.processes[1].subreaper = true;
            image.processes.extend(orphans.clone());
            kinship(&image).is_ok()
        };
        let processes = vec![process(100, 1, 100, 100), process(101, 100, 100, 101)];
        assert!(adopting(Image { root: 100, processes, ..Image::default() }));
        insta::assert_snapshot!(told(&[process(102, 100, 7, 102)]), @"process 102 cannot be rebuilt: the leader of its session 7 has ended");
        assert_eq!(told(&[process(102, 100, 100, 7), process(103, 101, 100, 7)]), "fine");
        let left = [process(102, 100, 100, 101), process(103, 102, 100, 102)];
        insta::assert_snapshot!(told(&left), @"process 103 cannot be rebuilt: the leader of its process group 102 has left it");
    }
}
