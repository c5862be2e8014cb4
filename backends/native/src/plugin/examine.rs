//! What stands against saving a running application, seen without touching it. The engine looks again, closer, before
//! it stops anything: only the container's inside shows what a mapping or a socket really is.

use stasis_plugin_api::outside;
use stasis_plugin_api::prelude::*;

/// A descriptor that is refused: how it shows, why, what to do.
const DESCRIPTORS: [(&str, &str, &str); 6] = [
    ("anon_inode:[io_uring]", "io_uring", "switch io_uring off in the application"),
    ("anon_inode:[userfaultfd]", "userfaultfd", "close it before saving"),
    ("anon_inode:[fanotify]", "fanotify", "close it before saving"),
    ("anon_inode:bpf", "bpf", "close it before saving"),
    ("anon_inode:[perf_event]", "perf", "end the profiler, and save again"),
    ("/dev/mqueue/", "mqueue", "use a socket or a pipe instead"),
];

/// A running instance.
pub(super) fn instance(instance: &InstanceView) -> Vec<Finding> {
    let survey = &instance.survey;
    let mut findings: Vec<Finding> = Vec::new();
    for process in &survey.processes {
        let who = format!("{} (pid {})", process.name, process.pid);
        findings.extend(process.descriptors.iter().filter_map(|d| descriptor(d, &who)));
        findings.extend(process.special_mappings.iter().filter_map(|m| mapping(m, &who)));
    }
    let why = "its parent ended, or it was started beside the application: the application's own tree is saved only";
    let help = "keep it in the foreground of whoever starts it; wait until an `exec` is over";
    findings.extend(instance.strays().into_iter().map(|p| outside::detached(p, why, help)));
    findings.extend(survey.sockets.iter().filter(|s| s.is_connection()).map(|s| connection(s, survey)));
    findings
}

fn descriptor(descriptor: &DescriptorInfo, who: &str) -> Option<Finding> {
    let object = || format!("descriptor {} of {who}: {}", descriptor.number, descriptor.target);
    if let Some((_, kind, help)) = DESCRIPTORS.iter().find(|(sign, ..)| descriptor.target.starts_with(sign)) {
        return Some(Finding::fatal(
            kind,
            object(),
            "the native engine does not save this kind of object",
            help,
        ));
    }
    descriptor.is_stateful_device().then(|| {
        let why = "the native engine does not know what state is in this device";
        Finding::fatal("device", object(), why, "let the application close it before saving")
    })
}

fn mapping(object: &str, who: &str) -> Option<Finding> {
    object.starts_with("/SYSV").then(|| {
        Finding::fatal(
            "sysv-shm",
            format!("memory of {who}: {object}"),
            "the native engine does not save System V shared memory",
            "use files in /dev/shm or shared anonymous memory instead",
        )
    })
}

fn connection(socket: &SocketInfo, survey: &Survey) -> Finding {
    Finding::fatal(
        "tcp",
        socket.shown(survey),
        "the state of an open connection is not saved",
        "wait until it is closed, or take another backend: criu can close or keep it",
    )
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
    fn what_cannot_be_saved_is_told_with_its_object() {
        let descriptors = [
            ("anon_inode:[io_uring]", ""),
            ("anon_inode:[eventpoll]", ""),
            ("/dev/null", "char:1:3"),
            ("/dev/nvidia0", "char:195:0"),
        ];
        let view = with(|process, survey| {
            let info = |(number, (target, device)): (i32, (&str, &str))| DescriptorInfo {
                number,
                target: target.into(),
                device: device.into(),
            };
            process.descriptors = (3..).zip(descriptors).map(info).collect();
            process.special_mappings = vec!["/SYSV00000000 (deleted)".into(), "/memfd:m (deleted)".into()];
            let child =
                ProcessInfo { pid: 101, parent: 100, name: "worker".into(), ..ProcessInfo::default() };
            let stray = ProcessInfo { pid: 103, parent: 1, name: "daemon".into(), ..ProcessInfo::default() };
            let beside = ProcessInfo { pid: 105, parent: 104, name: "ls".into(), ..ProcessInfo::default() };
            survey.beside = vec![104];
            survey.processes.extend([child, stray, beside]);
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
            survey.sockets = vec![socket("listen", 0), socket("established", 5432)];
        });
        insta::assert_snapshot!(told(&instance(&view)), @"
        io_uring descriptor 3 of python3 (pid 100): anon_inode:[io_uring]: the native engine does not save this kind of object
        device descriptor 6 of python3 (pid 100): /dev/nvidia0: the native engine does not know what state is in this device
        sysv-shm memory of python3 (pid 100): /SYSV00000000 (deleted): the native engine does not save System V shared memory
        detached daemon (pid 103): its parent ended, or it was started beside the application: the application's own tree is saved only
        tcp TCP connection of python3 (pid 100) from 10.0.0.2:40000 to 10.0.0.9:5432: the state of an open connection is not saved
        ");
    }
}
