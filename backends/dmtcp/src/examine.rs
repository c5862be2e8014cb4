//! What stands against saving with DMTCP: programs that it cannot enter, objects that it loses.

use crate::inject;
use crate::inside::{self, ProgramKind};
use crate::preload::LIB;
use stasis_plugin_api::prelude::*;
use std::path::Path;

/// The image and the program that would be started.
pub(crate) fn image(host: &Host<'_>, image: &ImageView, process: &ProcessView) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if let Err(error) = inject::installation(host, image) {
        let why = error.why.join("; ");
        let why = if why.is_empty() { error.what } else { why };
        findings.push(Finding::fatal(
            "libc",
            format!("the image {}", image.name),
            &why,
            error.help.as_deref().unwrap_or_default(),
        ));
    }
    let Some(name) = process.argv.first() else { return Ok(findings) };
    let path = process.env.get("PATH").map_or("/usr/local/bin:/usr/bin:/bin", String::as_str);
    findings.extend(program(image, name, path, 2));
    Ok(findings)
}

/// A script counts as its interpreter, which counts as its own, and no further.
fn program(image: &ImageView, name: &str, path: &str, depth: usize) -> Vec<Finding> {
    let found = inside::program(&image.root, name, path);
    if found.setuid {
        return vec![Finding::fatal(
            "setuid",
            name,
            "it is setuid or setgid, and the loader then ignores DMTCP's library",
            "take the bit away in the image, or take another backend",
        )];
    }
    match found.kind {
        ProgramKind::Static => vec![Finding::fatal(
            "static",
            name,
            "it is statically linked: DMTCP works by a library that such a program does not load",
            "take a dynamically linked build, or another backend",
        )],
        ProgramKind::Dynamic { musl: true, .. } => vec![Finding::fatal(
            "musl",
            name,
            "it uses musl: DMTCP works with glibc only",
            "take an image with glibc, or another backend",
        )],
        ProgramKind::Script { interpreter } if depth > 0 => program(image, &interpreter, path, depth - 1),
        // The image's environment scripts may change PATH; a name is looked for again when it is started.
        ProgramKind::NotFound if name.contains('/') => {
            vec![Finding::fatal("not-found", name, "there is no such program in the image", "check the name")]
        }
        ProgramKind::Unusable(why) => {
            vec![Finding::fatal("unusable", name, &why, "take a program for this machine")]
        }
        _ => Vec::new(),
    }
}

/// How an object is known, what becomes of it, and what to do.
struct Object {
    kind: &'static str,
    severity: Severity,
    signs: &'static [&'static str],
    why: &'static str,
    help: &'static str,
}

/// Seen as a descriptor, and as memory when that was closed.
const MEMFD: Object = Object {
    kind: "memfd",
    severity: Severity::Loss,
    signs: &["/memfd:"],
    why: "DMTCP does not bring memory of memfd_create back",
    help: "use files in /dev/shm instead",
};

/// As above.
const IO_URING: Object = Object {
    kind: "io_uring",
    severity: Severity::Loss,
    signs: &["anon_inode:[io_uring]"],
    why: "DMTCP does not bring io_uring back",
    help: "switch io_uring off in the application",
};

const DESCRIPTORS: &[Object] = &[
    Object {
        kind: "timerfd",
        severity: Severity::Loss,
        signs: &["anon_inode:[timerfd]"],
        why: "DMTCP brings the descriptor back and the timer never fires again",
        help: "close it before saving",
    },
    IO_URING,
    Object {
        kind: "fanotify",
        severity: Severity::Loss,
        signs: &["anon_inode:[fanotify]"],
        why: "DMTCP does not bring fanotify back",
        help: "close it before saving",
    },
    Object {
        kind: "userfaultfd",
        severity: Severity::Loss,
        signs: &["anon_inode:[userfaultfd]"],
        why: "DMTCP does not bring userfaultfd back",
        help: "close it before saving",
    },
    MEMFD,
    Object {
        kind: "pty",
        severity: Severity::Loss,
        signs: &["/dev/ptmx", "/dev/pts/ptmx"],
        why: "DMTCP does not bring pseudo terminals of the application's own back",
        help: "end what holds the terminal before saving",
    },
    Object {
        kind: "inotify",
        severity: Severity::Fatal,
        signs: &["anon_inode:inotify"],
        why: "DMTCP dies over inotify, and the application with it",
        help: "switch file watching off in the application",
    },
    Object {
        kind: "pidfd",
        severity: Severity::Fatal,
        signs: &["anon_inode:[pidfd]"],
        why: "DMTCP fails over pidfds",
        help: "close it before saving",
    },
    Object {
        kind: "gpu",
        severity: Severity::Fatal,
        signs: &["/dev/nvidia", "/dev/kfd", "/dev/dri/"],
        why: "DMTCP does not save a GPU's state",
        help: "save while the application does not use the GPU",
    },
    Object {
        kind: "rdma",
        severity: Severity::Fatal,
        signs: &["/dev/infiniband/"],
        why: "DMTCP does not save InfiniBand connections",
        help: "save while none is open",
    },
];

const MAPPINGS: &[Object] = &[MEMFD, IO_URING];

/// A running instance, by its survey alone.
pub(crate) fn instance(instance: &InstanceView) -> Vec<Finding> {
    let mut findings = Vec::new();
    for process in &instance.survey.processes {
        for descriptor in &process.descriptors {
            let object = || {
                format!(
                    "descriptor {} of {} (pid {}), {}",
                    descriptor.number, process.name, process.pid, descriptor.target
                )
            };
            findings
                .extend(DESCRIPTORS.iter().filter(|o| o.is(&descriptor.target)).map(|o| o.found(object())));
        }
        for mapping in &process.special_mappings {
            let object = || format!("memory of {} (pid {}), {mapping}", process.name, process.pid);
            findings.extend(MAPPINGS.iter().filter(|o| o.is(mapping)).map(|o| o.found(object())));
        }
    }
    findings.extend(instance.survey.processes.iter().filter_map(outside));
    findings.extend(instance.survey.processes.iter().filter_map(|p| elsewhere(p, &instance.cwd)));
    for socket in instance.survey.sockets.iter().filter(|s| s.is_connection() && !s.peer_inside) {
        findings.push(Finding::fatal(
            "tcp-connection",
            format!("the connection of pid {} to {}:{}", socket.pid, socket.peer, socket.peer_port),
            "its other end is outside of the container: a restart would fail as a whole",
            "save while no such connection is open",
        ));
    }
    findings
}

/// A process without DMTCP's library: started by an exec of a static, musl or setuid program. The coordinator
/// still counts it, because its descriptor outlives the exec; saving would wait for it for ever.
pub(crate) fn outside(process: &ProcessInfo) -> Option<Finding> {
    let library = format!("{LIB}/libdmtcp.so");
    let told = !process.mapped.is_empty() && !process.mapped.contains(&library);
    told.then(|| {
        Finding::fatal(
            "outside",
            format!("{} (pid {}), {}", process.name, process.pid, process.exe),
            "it does not run under DMTCP: it is statically linked, uses musl, or is setuid",
            "take a dynamically linked glibc build of it, or another backend",
        )
    })
}

/// DMTCP (5.0) brings a working directory back only where it is the first one or lies below that.
fn elsewhere(process: &ProcessInfo, first: &Path) -> Option<Finding> {
    let cwd = Path::new(&process.cwd);
    let kept = process.cwd.is_empty() || cwd == first || (first != Path::new("/") && cwd.starts_with(first));
    (!kept).then(|| Finding {
        severity: Severity::Loss,
        kind: "cwd".to_owned(),
        object: format!("the working directory of {} (pid {}), {}", process.name, process.pid, process.cwd),
        why: format!("DMTCP brings the process back in {}", first.display()),
        help: format!("start it there: --cwd {}", process.cwd),
    })
}

impl Object {
    fn is(&self, target: &str) -> bool {
        self.signs.iter().any(|sign| target.starts_with(sign))
    }

    fn found(&self, object: String) -> Finding {
        Finding {
            severity: self.severity,
            kind: self.kind.to_owned(),
            object,
            why: self.why.to_owned(),
            help: self.help.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(targets: &[&str]) -> InstanceView {
        let descriptors = targets
            .iter()
            .zip(3..)
            .map(|(t, number)| DescriptorInfo { number, target: (*t).to_owned(), ..Default::default() })
            .collect();
        let process = ProcessInfo { pid: 12, name: "app".to_owned(), descriptors, ..Default::default() };
        InstanceView {
            survey: Survey { processes: vec![process], ..Survey::default() },
            ..Default::default()
        }
    }

    #[test]
    fn lost_objects_are_findings_and_others_are_not() {
        let view = holding(&[
            "anon_inode:[timerfd]",
            "/memfd:x (deleted)",
            "anon_inode:[eventpoll]",
            "/log",
            "socket:[4]",
            "anon_inode:inotify",
        ]);
        let found: Vec<String> =
            instance(&view).iter().map(|f| format!("{:?} {} {}", f.severity, f.kind, f.object)).collect();
        insta::assert_snapshot!(found.join("\n"), @r"
        Loss timerfd descriptor 3 of app (pid 12), anon_inode:[timerfd]
        Loss memfd descriptor 4 of app (pid 12), /memfd:x (deleted)
        Fatal inotify descriptor 8 of app (pid 12), anon_inode:inotify
        ");
    }

    #[test]
    fn connections_to_the_outside_stand_against_it() {
        let mut view = holding(&[]);
        let socket = |peer_inside| SocketInfo {
            protocol: "tcp".into(),
            peer: "10.0.0.9".into(),
            peer_port: 443,
            state: "established".into(),
            pid: 12,
            peer_inside,
            ..Default::default()
        };
        view.survey.sockets = vec![socket(true)];
        assert!(instance(&view).is_empty());
        view.survey.sockets = vec![socket(false)];
        assert_eq!(instance(&view)[0].object, "the connection of pid 12 to 10.0.0.9:443");
    }
}
