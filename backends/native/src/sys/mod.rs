//! Everything that the kernel is asked for, one file a noun. Besides machine code (arch), the entry and the skeleton of
//! a restart this is the only unsafe code.
#![allow(unsafe_code, reason = "the kernel's interfaces take addresses")]

pub(crate) mod clone;
pub(crate) mod fd;
pub(crate) mod kcmp;
pub(crate) mod mailbox;
pub(crate) mod netlink;
pub(crate) mod pagemap;
pub(crate) mod pidfd;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod ptrace;
pub(crate) mod socket;
pub(crate) mod task;
pub(crate) mod uffd;
