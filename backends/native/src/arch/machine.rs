//! The machine that saved code relies on, as this engine sees it now; saved and compared at a restart.

use super::cpuid;
use crate::model::Machine;
use crate::proc::{maps, own};
use stasis_plugin_api::error::{BackendError, Result};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

pub(crate) fn machine() -> Result<Machine> {
    let cpuid = cpuid::leaves();
    // Leaf 0xd, subleaf 0: ebx is the size of what is enabled.
    let state = cpuid.iter().find(|row| row[0] == 0xd && row[1] == 0).map_or(0, |row| row[3]);
    let kernel = nix::sys::utsname::uname().map_err(|error| {
        BackendError::failed("the kernel does not tell its version").because(error.desc())
    })?;
    Ok(Machine {
        architecture: std::env::consts::ARCH.to_owned(),
        kernel: kernel.release().to_string_lossy().into_owned(),
        cpuid,
        xstate_size: state,
        vdso: vdso()?,
    })
}

/// FNV-1a of our own vdso, which is that of every process under this kernel.
pub(crate) fn vdso() -> Result<u64> {
    let maps = maps::parse(&own("maps")?)?;
    let unreadable = || BackendError::failed("the kernel's vdso cannot be read");
    let map = maps.iter().find(|map| map.name == "[vdso]").ok_or_else(unreadable)?;
    let memory = File::open("/proc/self/mem").map_err(|error| unreadable().because(error))?;
    let mut bytes = vec![0; usize::try_from(map.length()).unwrap_or(0)];
    memory.read_exact_at(&mut bytes, map.start).map_err(|error| unreadable().because(error))?;
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    Ok(bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix))
}
