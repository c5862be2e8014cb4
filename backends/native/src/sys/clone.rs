//! New processes with chosen pids.

use nix::errno::Errno;

/// A thread of the process that makes it.
pub(crate) const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// `struct clone_args`, as far as `set_tid_size` (version 1).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct CloneArguments {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
}

impl CloneArguments {
    /// As the kernel reads them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let fields = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
        ];
        fields.iter().flat_map(|f| f.to_ne_bytes()).collect()
    }
}

/// A copy of this process under a chosen pid: `true` in the copy. `sibling` makes it a child of this process's parent.
///
/// This program has one thread, so the copy may do everything that a process may do.
pub(crate) fn copy_with_pid(pid: i32, exit_signal: i32, sibling: bool) -> Result<bool, Errno> {
    let arguments = CloneArguments {
        flags: if sibling { libc::CLONE_PARENT as u64 } else { 0 },
        exit_signal: if sibling { 0 } else { u64::try_from(exit_signal).map_err(|_| Errno::EINVAL)? },
        set_tid: &raw const pid as u64,
        set_tid_size: 1,
        ..CloneArguments::default()
    };
    // SAFETY: the arguments live during the call and share nothing with the copy: no CLONE_VM, no stack of its own.
    let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    Errno::result(rc).map(|pid| pid == 0)
}
