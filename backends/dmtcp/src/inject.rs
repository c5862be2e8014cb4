//! What goes into the container, always at the same places: an image remembers the paths.

use crate::discover::Installation;
use crate::preload::{BIN, DEPS, HOST, LIB, LISTENER_FD, PORT, SHIM, SHIM_PATH, SOCKET, tool};
use crate::{closure, discover};
use nix::errno::Errno;
use stasis_plugin_api::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// DMTCP's own files while it runs: a shared area of 2.3 MB that must never meet a full file system.
pub(crate) const TMP: &str = "/.stasis/tmp";
/// What DMTCP says inside the application goes there instead of into the application's own stderr.
pub(crate) const ENGINE_LOG_NAME: &str = "engine.log";
/// Bytes of that file system.
const TMP_SIZE: u64 = 64 << 20;
/// The listener's directory.
const COORD: &str = "/.stasis/coord";
/// `madvise` on x86_64, and the advice that makes guard pages inside a mapping. glibc from 2.42 on uses it
/// for thread stacks, and DMTCP (5.0) then dies over the page that it cannot read.
const MADVISE: i64 = 28;
const MADV_GUARD_INSTALL: u64 = 102;

/// Everything but the wrapping: `shim` is the preload library's bytes and its path.
pub(crate) fn needs(
    installation: &Installation,
    image: &ImageView,
    process: &ProcessView,
    shim: (&str, &[u8]),
) -> Result<Needs> {
    let mut binds = Vec::new();
    let tools = [
        &installation.launch,
        &installation.restart,
        &installation.coordinator,
        &installation.command,
        &installation.mtcp_restart,
    ];
    for source in tools.into_iter().chain(&installation.optional) {
        binds.extend(bind(source, BIN));
    }
    for source in std::iter::once(&installation.libdmtcp).chain(&installation.plugins) {
        binds.extend(bind(source, LIB));
    }
    let (lacking, _) = closure::lacking(installation, &image.root).map_err(|why| {
        BackendError::new(kind::UNUSABLE, "DMTCP cannot be brought into the container").because(why)
    })?;
    // The image's own copies fit the image's programs better than ours.
    binds.extend(lacking.into_iter().map(|(soname, source)| Bind {
        source,
        target: Path::new(DEPS).join(soname),
        writable: false,
    }));
    let (path, bytes) = shim;
    let mut env = environment(path, process.env.get("LD_LIBRARY_PATH").map(String::as_str));
    env.insert("JALIB_STDERR_PATH".to_owned(), format!("{LOG_DIR}/{ENGINE_LOG_NAME}"));
    Ok(Needs {
        binds,
        files: vec![FileToWrite::new(path, 0o755, bytes)],
        directories: vec![
            Directory { path: TMP.into(), mode: 0o700, tmpfs: Some(TMP_SIZE) },
            Directory { path: COORD.into(), mode: 0o700, tmpfs: None },
            Directory { path: DEPS.into(), mode: 0o755, tmpfs: None },
        ],
        seccomp: vec![SeccompRule {
            syscall: MADVISE,
            argument: Some((2, MADV_GUARD_INSTALL)),
            except: false,
            errno: Errno::EINVAL as i32,
        }],
        supervisor: Supervisor::Interposed,
        stdio: vec![StdioKind::File, StdioKind::Pty],
        helpers: vec![coordinator(path)],
        env,
        env_remove: ["DMTCP_*", "MTCP_*", "JALIB_*", "LD_PRELOAD"].map(str::to_owned).to_vec(),
        ..Needs::default()
    })
}

fn bind(source: &Path, directory: &str) -> Option<Bind> {
    Some(Bind {
        source: source.to_path_buf(),
        target: Path::new(directory).join(source.file_name()?),
        writable: false,
    })
}

/// What DMTCP's programs need to reach the coordinator.
pub(crate) fn environment(shim: &str, library_path: Option<&str>) -> BTreeMap<String, String> {
    let libraries = match library_path {
        Some(own) if !own.is_empty() => format!("{DEPS}:{own}"),
        _ => DEPS.to_owned(),
    };
    [("LD_PRELOAD", shim), ("LD_LIBRARY_PATH", &libraries), ("DMTCP_TMPDIR", TMP)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

fn coordinator(shim: &str) -> Helper {
    let mut env = environment(shim, None);
    // It connects to nobody; a preloaded library would only stand in its own address space.
    env.remove("LD_PRELOAD");
    let arguments = [
        "-q",
        "-q",
        "--exit-on-last",
        "--coord-port",
        PORT,
        "--ckptdir",
        CAPTURE_DIR,
        "--tmpdir",
        TMP,
        "--stale-timeout",
        "-1",
    ];
    Helper {
        name: "coordinator".to_owned(),
        argv: std::iter::once(tool("dmtcp_coordinator")).chain(arguments.map(str::to_owned)).collect(),
        env,
        descriptors: vec![HelperDescriptor {
            number: LISTENER_FD,
            source: DescriptorSource::UnixListener(SOCKET.into()),
        }],
        // A batch system sends TERM to every process; without the coordinator the application would die of it. DMTCP 5.0
        // does not think of PIPE, which comes when it writes to a process that has just ended.
        ignore_signals: vec![15, 2, 1, 13],
        readiness: Readiness::Started,
        essential: true,
        identity: Identity::Application,
        ..Helper::default()
    }
}

/// The flags by which launch, restart and command find the coordinator.
pub(crate) fn address() -> [String; 4] {
    ["--coord-host", HOST, "--coord-port", PORT].map(str::to_owned)
}

/// The installation for an image: the newest that its libc can load.
pub(crate) fn installation(host: &Host<'_>, image: &ImageView) -> Result<Installation> {
    let found = discover::search(&discover::Search::from_host(host))
        .map_err(|e| BackendError::new(kind::UNUSABLE, e.to_string()))?;
    match discover::choose(&found, &image.root) {
        Ok(installation) => Ok(installation.clone()),
        Err(unfit) => {
            let mut error = BackendError::new(
                kind::UNSUPPORTED,
                format!("no installed DMTCP fits the image {}", image.name),
            );
            error.why = unfit.why;
            Err(error.help(unfit.help))
        }
    }
}

/// The library of this build.
pub(crate) fn own_shim() -> (&'static str, &'static [u8]) {
    (SHIM_PATH, SHIM)
}
