//! `--nv` and `--rocm`: looks for the driver's files on the host.

use crate::cli::action_args::ActionArgs;
use crate::cli::report;
use crate::spec::Mount;
use crate::spec::gpu::{self, Found, Vendor};
use crate::sys::process;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where an administrator's list may lie, the first counts. The later ones are Apptainer's own.
const DIRECTORIES: [&str; 4] =
    ["/etc/stasis", "/etc/apptainer", "/usr/local/etc/apptainer", "/usr/local/etc/singularity"];
/// Where programs are looked for after `PATH`.
const PROGRAMS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/opt/rocm/bin"];

/// The mounts for the processors that were asked for. What is missing is a warning, as in Apptainer.
pub fn mounts(args: &ActionArgs) -> Vec<Mount> {
    let wanted = [(args.nv, Vendor::Nvidia), (args.rocm, Vendor::Amd)];
    let mut all = Vec::new();
    for vendor in wanted.into_iter().filter_map(|(asked, vendor)| asked.then_some(vendor)) {
        let found = find(vendor);
        report::verbose(format!("{}: {} libraries", vendor.word(), found.libraries.len()));
        let (mounts, warnings) = gpu::mounts(vendor, &found, args.contain || args.containall, args.writable);
        warnings.iter().for_each(report::warning);
        all.extend(mounts);
    }
    all
}

fn find(vendor: Vendor) -> Found {
    let name = format!("{}liblist.conf", vendor.word());
    let list = DIRECTORIES.iter().find_map(|dir| std::fs::read_to_string(Path::new(dir).join(&name)).ok());
    let list = list.as_deref().unwrap_or(vendor.list());
    let (libraries, programs) = gpu::entries(list);
    Found {
        libraries: gpu::libraries(&libraries, &loader()),
        programs: programs.iter().filter_map(|name| process::find_program(name, &PROGRAMS)).collect(),
        sockets: vendor.sockets().iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
        devices: devices(vendor),
    }
}

/// What the loader knows. Ordinary users have no `/sbin` in their `PATH`.
fn loader() -> String {
    let run = |program: &str| {
        let out = Command::new(program).arg("-p").env("LC_ALL", "C").stdin(Stdio::null()).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    };
    ["/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"].iter().find_map(|p| run(p)).unwrap_or_default()
}

fn devices(vendor: Vendor) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let ours = |name: &str| vendor.devices().iter().any(|beginning| name.starts_with(beginning));
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(ours)).map(|e| e.path()).collect();
    found.sort_unstable();
    found
}
