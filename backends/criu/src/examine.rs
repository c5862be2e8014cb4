//! What stands against saving a running application with CRIU, seen without touching it.

use crate::options::Tcp;
use stasis_plugin_api::prelude::*;
use std::collections::HashMap;

/// Something that CRIU refuses, or loses.
struct Object {
    kind: &'static str,
    severity: Severity,
    sign: &'static str,
    /// Only where the container has a user namespace.
    rootless: bool,
    why: &'static str,
    help: &'static str,
}

const DESCRIPTORS: &[Object] = &[
    Object {
        kind: "io_uring",
        severity: Severity::Fatal,
        sign: "anon_inode:[io_uring]",
        rootless: false,
        why: "CRIU cannot save io_uring",
        help: "switch io_uring off in the application",
    },
    Object {
        kind: "userfaultfd",
        severity: Severity::Fatal,
        sign: "anon_inode:[userfaultfd]",
        rootless: false,
        why: "CRIU cannot save userfaultfd",
        help: "close it before saving",
    },
    Object {
        kind: "inotify",
        severity: Severity::Fatal,
        sign: "anon_inode:inotify",
        rootless: true,
        why: "CRIU cannot save inotify without privilege: it may not look up a watched file by its handle",
        help: "let the application poll instead, or save as root",
    },
    Object {
        kind: "fanotify",
        severity: Severity::Fatal,
        sign: "anon_inode:[fanotify]",
        rootless: true,
        why: "CRIU cannot save fanotify without privilege",
        help: "close it before saving",
    },
    Object {
        kind: "mqueue",
        severity: Severity::Fatal,
        sign: "/dev/mqueue/",
        rootless: false,
        why: "CRIU cannot save POSIX message queues",
        help: "use a socket or a pipe instead",
    },
];

/// A running instance.
pub(crate) fn instance(tcp: Tcp, instance: &InstanceView) -> Vec<Finding> {
    let survey = &instance.survey;
    let mut findings: Vec<Finding> = Vec::new();
    for process in &survey.processes {
        let who = format!("{} (pid {})", process.name, process.pid);
        findings.extend(process.descriptors.iter().filter_map(|d| descriptor(d, &who, instance.rootless)));
        findings.extend(process.special_mappings.iter().filter_map(|m| mapping(m, &who, instance)));
    }
    findings.extend(strays(instance));
    if tcp == Tcp::Refuse {
        findings.extend(survey.sockets.iter().filter(|s| connected(s)).map(|s| connection(s, survey)));
    }
    findings
}

fn descriptor(descriptor: &DescriptorInfo, who: &str, rootless: bool) -> Option<Finding> {
    let known =
        DESCRIPTORS.iter().find(|o| descriptor.target.starts_with(o.sign) && (rootless || !o.rootless));
    let object = || format!("descriptor {} of {who}: {}", descriptor.number, descriptor.target);
    if let Some(o) = known {
        let finding = Finding::fatal(o.kind, object(), o.why, o.help);
        return Some(Finding { severity: o.severity, ..finding });
    }
    device(&descriptor.device).then(|| {
        Finding::fatal(
            "device",
            object(),
            "CRIU does not know what state is in this device",
            "let the application close it before saving",
        )
    })
}

/// Memory that CRIU cannot save, or not as one with what else shows it.
fn mapping(object: &str, who: &str, instance: &InstanceView) -> Option<Finding> {
    let name = format!("memory of {who}: {object}");
    if object.starts_with("/SYSV") {
        return Some(Finding::fatal(
            "sysv-shm",
            name,
            "CRIU cannot save System V shared memory inside a container",
            "use files in /dev/shm or shared anonymous memory instead",
        ));
    }
    // Without privilege a mapping can only be opened by the path of its file.
    if !instance.rootless {
        return None;
    }
    if object.starts_with("/memfd:") {
        let also_open = |p: &ProcessInfo| p.descriptors.iter().any(|d| d.target == object);
        return instance.survey.processes.iter().any(also_open).then(|| {
            Finding::loss(
                "memfd",
                name,
                "after a restart this memory and the descriptor of it are no longer the same",
                "close the descriptor once it is mapped, or save as root",
            )
        });
    }
    let is_file = object.ends_with(" (deleted)") && !object.starts_with("/dev/zero");
    is_file.then(|| {
        Finding::fatal(
            "deleted-mapping",
            name,
            "the file was deleted, and without privilege CRIU cannot reach it any more",
            "let the file stay while it is mapped, or save as root",
        )
    })
}

/// Whether it is a device with a state that CRIU does not know: all but memory (1), terminals (5, 136 to 143).
fn device(text: &str) -> bool {
    let mut parts = text.split(':');
    let kind = parts.next().unwrap_or_default();
    let major: u32 = parts.next().and_then(|m| m.parse().ok()).unwrap_or(0);
    match kind {
        "char" => !matches!(major, 1 | 5 | 136..=143),
        "block" => true,
        _ => false,
    }
}

fn connected(socket: &SocketInfo) -> bool {
    socket.protocol.starts_with("tcp") && socket.state == "established"
}

fn connection(socket: &SocketInfo, survey: &Survey) -> Finding {
    let name = survey.processes.iter().find(|p| p.pid == socket.pid).map_or("?", |p| p.name.as_str());
    let object = format!(
        "TCP connection of {name} (pid {}) from {}:{} to {}:{}",
        socket.pid, socket.local, socket.local_port, socket.peer, socket.peer_port
    );
    Finding::fatal(
        "tcp",
        object,
        "an open connection has its other half elsewhere",
        "wait until it is closed, or start with `--tcp close` (the application finds it closed after a restart) or `--tcp keep`",
    )
}

/// Processes that are not below the application's first one: CRIU saves one tree.
fn strays(instance: &InstanceView) -> Vec<Finding> {
    let parents: HashMap<i32, i32> = instance.survey.processes.iter().map(|p| (p.pid, p.parent)).collect();
    let below = |mut pid: i32| {
        for _ in 0..=parents.len() {
            if pid == instance.application {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    let stray = instance.survey.processes.iter().filter(|p| !below(p.pid));
    stray
        .map(|p| {
            Finding::fatal(
                "detached",
                format!("{} (pid {})", p.name, p.pid),
                "it was started beside the application, whose own processes are all that CRIU saves",
                "wait until the `exec` is over, or end it",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut ProcessInfo, &mut Survey)) -> InstanceView {
        let mut survey = Survey::default();
        let mut process =
            ProcessInfo { pid: 100, parent: 1, name: "python3".into(), ..ProcessInfo::default() };
        change(&mut process, &mut survey);
        survey.processes.push(process);
        InstanceView { application: 100, rootless: true, survey, ..InstanceView::default() }
    }

    fn told(findings: &[Finding]) -> String {
        let line = |f: &Finding| format!("{} {}: {}\n", f.kind, f.object, f.why);
        findings.iter().map(line).collect()
    }

    #[test]
    fn what_criu_cannot_save_is_told_with_its_object() {
        let descriptors = [
            ("anon_inode:[io_uring]", ""),
            ("anon_inode:inotify", ""),
            ("anon_inode:[eventpoll]", ""),
            ("/dev/mqueue/q", ""),
            ("/dev/null", "char:1:3"),
            ("/dev/pts/0", "char:136:0"),
            ("/dev/nvidia0", "char:195:0"),
            ("/memfd:m (deleted)", ""),
        ];
        let mut view = with(|process, _| {
            process.descriptors = (3..)
                .zip(descriptors)
                .map(|(number, (target, device))| DescriptorInfo {
                    number,
                    target: target.into(),
                    device: device.into(),
                })
                .collect();
            process.special_mappings = [
                "/SYSV00000000 (deleted)",
                "/memfd:m (deleted)",
                "/dev/shm/x (deleted)",
                "/dev/zero (deleted)",
            ]
            .map(str::to_owned)
            .to_vec();
        });
        insta::assert_snapshot!(told(&instance(Tcp::Refuse, &view)), @"
        io_uring descriptor 3 of python3 (pid 100): anon_inode:[io_uring]: CRIU cannot save io_uring
        inotify descriptor 4 of python3 (pid 100): anon_inode:inotify: CRIU cannot save inotify without privilege: it may not look up a watched file by its handle
        mqueue descriptor 6 of python3 (pid 100): /dev/mqueue/q: CRIU cannot save POSIX message queues
        device descriptor 9 of python3 (pid 100): /dev/nvidia0: CRIU does not know what state is in this device
        sysv-shm memory of python3 (pid 100): /SYSV00000000 (deleted): CRIU cannot save System V shared memory inside a container
        memfd memory of python3 (pid 100): /memfd:m (deleted): after a restart this memory and the descriptor of it are no longer the same
        deleted-mapping memory of python3 (pid 100): /dev/shm/x (deleted): the file was deleted, and without privilege CRIU cannot reach it any more
        ");
        view.rootless = false;
        assert!(!instance(Tcp::Refuse, &view).iter().any(|f| f.kind == "inotify"));
    }

    #[test]
    fn connections_are_refused_with_their_peer_unless_asked_for() {
        let socket = |state: &str, peer_port| SocketInfo {
            protocol: "tcp".into(),
            local: "10.0.0.2".into(),
            local_port: 40000,
            peer: "10.0.0.9".into(),
            peer_port,
            state: state.into(),
            pid: 100,
            peer_inside: false,
        };
        let view = with(|_, survey| survey.sockets = vec![socket("listen", 0), socket("established", 5432)]);
        insta::assert_snapshot!(told(&instance(Tcp::Refuse, &view)), @"tcp TCP connection of python3 (pid 100) from 10.0.0.2:40000 to 10.0.0.9:5432: an open connection has its other half elsewhere");
        assert!(instance(Tcp::Close, &view).is_empty());
        assert!(instance(Tcp::Keep, &view).is_empty());
    }

    #[test]
    fn a_process_outside_of_the_tree_is_told() {
        let mut view = with(|_, _| {});
        let child = |pid, parent, name: &str| ProcessInfo {
            pid,
            parent,
            name: name.into(),
            ..ProcessInfo::default()
        };
        view.survey.processes.extend([
            child(101, 100, "worker"),
            child(102, 101, "deep"),
            child(103, 1, "daemon"),
        ]);
        insta::assert_snapshot!(told(&instance(Tcp::Refuse, &view)), @"detached daemon (pid 103): it was started beside the application, whose own processes are all that CRIU saves");
    }
}
