//! The kernel, wrapped: the only module of the runtime, beside the plugin loader, with `unsafe`.
//! It decides nothing; errors are `io::Error` or `nix::Errno` and are translated by the callers.

#![allow(unsafe_code, reason = "system calls that nix has no safe wrapper for")]

pub mod apart;
pub mod channel;
pub mod fd;
pub mod loop_device;
pub mod mount;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod terminal;
