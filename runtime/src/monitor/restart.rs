//! A generation opened for a restart: verified, the same image, its ports free, this machine fit for it.

use crate::clocks::Clocks;
use crate::error::{Error, Result};
use crate::init::survey;
use crate::monitor::capture::cpu_features;
use crate::monitor::findings::accepts;
use crate::monitor::order::EngineOrder;
use crate::spec::{ClocksGoOn, ContainerSpec};
use crate::store::{Checkpoint, Generation, Level, Manifest};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use stasis_plugin_api::request::GenerationView;
use stasis_plugin_api::survey::ProcessInfo;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a program that was killed may take to let its ports go.
const DYING: Duration = Duration::from_secs(3);

/// Opens and checks it, its content excepted.
///
/// # Errors
/// What stands against bringing it back.
pub fn open(
    checkpoint: &Checkpoint,
    number: u64,
    wanted: &EngineOrder,
    spec: &ContainerSpec,
) -> Result<Generation> {
    let generation = checkpoint.generation(Some(number))?;
    generation.verify(Level::Metadata, &mut |_, _| {})?;
    let manifest = generation.manifest();
    if manifest.backend.name != wanted.backend {
        return Err(Error::new(format!(
            "generation {number} of \"{}\" was saved by backend \"{}\", not by \"{}\"",
            checkpoint.name(),
            manifest.backend.name,
            wanted.backend
        )));
    }
    same_machine(checkpoint, number, manifest)?;
    if !spec.namespaces.net {
        ports_free(manifest)?;
    }
    Ok(generation)
}

fn same_machine(checkpoint: &Checkpoint, number: u64, manifest: &Manifest) -> Result<()> {
    let what =
        || format!("generation {number} of \"{}\" cannot be brought back on this machine", checkpoint.name());
    let arch =
        nix::sys::utsname::uname().map(|n| n.machine().to_string_lossy().into_owned()).unwrap_or_default();
    if manifest.host.arch != arch {
        return Err(
            Error::new(what()).because(format!("it was saved on {}, this is {arch}", manifest.host.arch))
        );
    }
    let here = cpu_features();
    let have: HashSet<&str> = here.split_whitespace().collect();
    // Words that only tell how the kernel treats the CPU do not concern a program.
    let for_programs = |w: &&String| {
        [
            "avx", "sse", "bmi", "fma", "aes", "sha", "f16c", "movbe", "popcnt", "lzcnt", "abm", "adx",
            "amx", "xsave", "rtm", "gfni", "vaes", "vpclmul", "pclmul", "rdrand", "rdseed", "sve", "lse",
            "atomics",
        ]
        .iter()
        .any(|p| w.starts_with(p))
    };
    let missing: Vec<String> = manifest
        .host
        .cpu_features
        .iter()
        .filter(for_programs)
        .filter(|w| !have.contains(w.as_str()))
        .cloned()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(what())
        .because(format!("this CPU lacks {}", missing.join(", ")))
        .help("restart it on a machine with at least the CPU features of the one where it was saved"))
}

/// Tries every port that the application listened on, as a restart will: with SO_REUSEADDR, so that
/// connections that are only waiting to be forgotten do not count.
fn ports_free(manifest: &Manifest) -> Result<()> {
    let patience = Instant::now() + DYING;
    for port in &manifest.listening {
        let Ok(address) = port.address.parse::<IpAddr>() else { continue };
        let (address, udp) = (SocketAddr::new(address, port.port), port.proto.starts_with("udp"));
        if let Some(holder) = taken(address, udp, patience) {
            let who = match holder {
                Some(process) => format!("where {} (pid {}) listens now", process.name, process.pid),
                None => "which is in use, by whom is not shown to you".to_owned(),
            };
            let what = if udp { "UDP port" } else { "port" };
            return Err(Error::new(format!("{what} {} is taken", port.port))
                .because(format!("the application listened on {address}, {who}"))
                .help("end the program that listens there, or restart with --net"));
        }
    }
    Ok(())
}

/// Who has an address, as far as that can be told; `None` when nobody has. An application that was killed gives its
/// memory back before its sockets: nobody is shown then, and until `patience` is over that is waited for.
fn taken(address: SocketAddr, udp: bool, patience: Instant) -> Option<Option<ProcessInfo>> {
    let in_use = || try_bind(address, udp) == Err(Errno::EADDRINUSE);
    if !in_use() {
        return None;
    }
    let holder = survey::holder(udp, address);
    while holder.is_none() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
        if !in_use() {
            return None;
        }
    }
    Some(holder)
}

/// An address that this machine lacks is the engine's to complain about.
fn try_bind(address: SocketAddr, udp: bool) -> std::result::Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if udp { SockType::Datagram } else { SockType::Stream };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if udp {
        // Where others share it, the application may have done so as well.
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
    match address {
        SocketAddr::V4(v4) => bind(number, &SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => bind(number, &SockaddrIn6::from(v6)),
    }
}

/// How the clocks go on from where they were. Nothing for a generation of a stasis that did not note them.
///
/// # Errors
/// The clocks cannot be read.
pub fn clocks(generation: &Generation, accepted: &[String]) -> Result<Option<ClocksGoOn>> {
    let Some(then) = generation.manifest().clocks else { return Ok(None) };
    let now = Clocks::now().map_err(|e| Error::new("the clocks cannot be read").because(&e))?;
    let may_go_back = accepts(accepted, "clocks");
    Ok(Some(ClocksGoOn { offset: then.ahead_of(now), may_go_back }))
}

/// The generation as a backend sees it.
pub fn view(generation: &Generation) -> GenerationView {
    let manifest = generation.manifest();
    GenerationView {
        number: generation.number(),
        directory: generation.path().to_path_buf(),
        files: manifest.files.iter().map(|f| f.path.clone().into()).collect(),
        size: generation.size(),
        engine_version: manifest.backend.engine_version.clone(),
        processes: manifest.processes.iter().filter_map(|p| i32::try_from(p.pid).ok()).collect(),
        facts: manifest
            .report
            .get("facts")
            .and_then(|f| serde_json::from_value(f.clone()).ok())
            .unwrap_or_default(),
    }
}
