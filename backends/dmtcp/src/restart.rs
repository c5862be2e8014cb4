//! A generation brought back: by the explicit list of its images, never by DMTCP's own script.

use crate::capture::SHIM_FILE;
use crate::discover::{self, Installation};
use crate::preload::{SHIM_PATH, tool};
use crate::{asserts, coordinator, images, inject, memory_files};
use stasis_plugin_api::prelude::*;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// Reading the images takes as long as the disk wants.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets every `brk` but the question where it stands fail (x86_64: call 12). A restored process has the
/// break of `mtcp_restart`, which the kernel puts anywhere within 1 GiB (seen on 6.18): where that lies
/// above the restored heap, glibc takes the kernel's answer to a growing heap for a success and the
/// process dies of the memory that is not there. DMTCP 5.0 and before do not notice. With a failing
/// `brk` glibc takes memory from `mmap`.
const NO_BREAK: SeccompRule = SeccompRule { syscall: 12, argument: Some((0, 0)), except: true, errno: 0 };

/// The installation that made the generation; an error calls that `subject`.
fn same_version(host: &Host<'_>, generation: &GenerationView, subject: &str) -> Result<Installation> {
    let found = discover::search(&discover::Search::from_host(host))
        .map_err(|e| BackendError::new(kind::UNUSABLE, e.to_string()))?;
    let wanted = &generation.engine_version;
    if let Some(same) = found.installations.iter().find(|i| i.version.to_string() == *wanted) {
        return Ok(same.clone());
    }
    let have: Vec<String> = found.installations.iter().map(|i| i.version.to_string()).collect();
    let have = if have.is_empty() {
        "none is installed".to_owned()
    } else {
        format!("installed is {}", have.join(", "))
    };
    Err(BackendError::new(kind::UNUSABLE, format!("{subject} was saved by DMTCP {wanted}"))
        .because(have)
        .help("images belong to one version: let the administrator install that one beside the others and name it in `prefixes`"))
}

/// What stands against it.
pub(crate) fn examine(host: &Host<'_>, generation: &GenerationView, _: &ImageView) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let object = format!("generation {}", generation.number);
    if let Err(error) = same_version(host, generation, "it") {
        findings.push(Finding {
            severity: Severity::Fatal,
            kind: "engine-version".to_owned(),
            object: object.clone(),
            why: error.to_string(),
            help: error.help.unwrap_or_default(),
        });
    }
    for name in listed(generation, "images") {
        if let Err(error) = images::check(&generation.directory.join(name)) {
            findings.push(Finding {
                severity: Severity::Fatal,
                kind: "damaged".to_owned(),
                object: object.clone(),
                why: error.to_string(),
                help: "bring an earlier generation back".to_owned(),
            });
        }
    }
    Ok(findings)
}

/// Names from the facts; only plain file names are believed.
fn listed(generation: &GenerationView, fact: &str) -> Vec<String> {
    let names = generation.facts.get(fact).and_then(serde_json::Value::as_array);
    let plain = |n: &String| !n.contains('/') && !n.contains(':') && !n.starts_with('.');
    names.into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)).filter(plain).collect()
}

/// The plan.
pub(crate) fn plan(host: &mut Host<'_>, request: &RestartRequest) -> Result<RestartPlan> {
    let generation = &request.generation;
    let installation = same_version(host, generation, &format!("generation {}", generation.number))?;
    let shim_path = generation.facts.get("shim").and_then(|s| s.as_str()).unwrap_or(SHIM_PATH).to_owned();
    let library = generation.directory.join(SHIM_FILE);
    let missing = |e: std::io::Error| {
        BackendError::new(kind::DAMAGED, format!("cannot read {}", library.display())).because(e)
    };
    let shim = std::fs::read(&library).map_err(missing)?;
    let mut needs = inject::needs(&installation, &request.image, &request.process, (&shim_path, &shim))?;
    needs.seccomp.push(NO_BREAK);
    if generation.facts.get("tmpfs").and_then(serde_json::Value::as_bool) == Some(true) {
        needs.tmpfs_content = Some(Path::new(IMAGE_DIR).join(memory_files::FILE));
    }
    let open_files = listed(generation, "open-files");
    if !open_files.is_empty() {
        needs.env.insert("STASIS_DMTCP_LINKS".to_owned(), open_files.join(":"));
    }
    let images = listed(generation, "images");
    if images.is_empty() {
        return Err(BackendError::new(
            kind::DAMAGED,
            format!("generation {} names no images", generation.number),
        ));
    }
    host.remember("engine-version", installation.version.to_string());
    host.remember("shim", shim_path);
    // Quiet: its own warnings (of root, of a session that it leads already) are of no use to anybody.
    let mut argv = ["-q", "-q", "--join-coordinator"].map(str::to_owned).to_vec();
    argv.insert(0, tool("dmtcp_restart"));
    argv.extend(inject::address());
    argv.extend(["--ckptdir", CAPTURE_DIR, "--tmpdir", inject::TMP].map(str::to_owned));
    argv.extend(images.iter().map(|i| Path::new(IMAGE_DIR).join(i).to_string_lossy().into_owned()));
    Ok(RestartPlan::Exec { needs, argv })
}

/// Waits until all processes run again; what DMTCP only warned about counts as failure.
pub(crate) fn alive(host: &mut Host<'_>, request: &AliveRequest) -> Result<ReadyReport> {
    let expected = u32::try_from(request.generation.processes.len()).unwrap_or(1).max(1);
    let library = request.generation.directory.join(SHIM_FILE);
    if let Ok(file) = std::fs::File::open(&library) {
        host.keep_fd("shim", file.as_fd())?;
    }
    let processes =
        coordinator::wait(host, &request.instance.logs, expected, PATIENCE).map_err(|mut error| {
            error.what =
                format!("generation {} could not be brought back: {}", request.generation.number, error.what);
            error
        })?;
    let said = coordinator::said(host, &request.instance.logs);
    if asserts::is_bad(&said) {
        let error =
            BackendError::failed(format!("generation {} came back incomplete", request.generation.number));
        return Err(asserts::explain(error, &said));
    }
    Ok(ReadyReport { processes, notes: Vec::new() })
}
