//! What cannot be saved. What the engine understands is a closed list: everything else is refused by name, before
//! anything is stopped, and once more on what stands still.

use crate::capture::areas::{Class, Part, understand};
use crate::capture::descriptors::Objects;
use crate::capture::inotify::Places;
use crate::model::{Kind, Registers};
use crate::proc::status::Status;
use crate::proc::{link, maps, numbers, read, stat, status};
use stasis_plugin_api::error::{BackendError, Result, kind};
use stasis_plugin_api::report::{Finding, Severity};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

/// Namespaces that a process may not have of its own.
const NAMESPACES: [&str; 10] =
    ["user", "pid", "pid_for_children", "mnt", "ipc", "uts", "net", "cgroup", "time", "time_for_children"];

/// Those that a thread can have of its own. Without another working directory it has no other mounts.
const OF_THREADS: [&str; 4] = ["ipc", "uts", "net", "cgroup"];

/// Flags of mappings (`VmFlags`) that cannot be saved.
/// Not `uw`: the engine's own watching of writes shows so, and an application that does the like holds a userfaultfd.
const FLAGS: [(&str, &str); 9] = [
    ("ht", "it consists of huge pages of hugetlbfs"),
    ("io", "it shows the memory of a device"),
    ("pf", "it shows the memory of a device"),
    ("mm", "it shows the memory of a device"),
    ("ss", "it is a shadow stack"),
    ("sl", "it is sealed (mseal)"),
    ("sf", "it shows persistent memory without a cache between"),
    ("um", "a userfaultfd watches it"),
    (maps::KEYED, "it has a memory protection key"),
];

/// What runs is not read at one moment: a descriptor that is replaced between two questions seems to be none that there
/// is. What stands against a capture shows so many times in a row.
const LOOKS: usize = 5;

/// Everything that stands against saving the tree below `root`, seen without stopping it. `beside` are processes of the
/// namespace that are known not to belong to the application.
/// `places` keeps what was found on the way for the look at what stands still.
pub(crate) fn examine(root: i32, beside: &[i32], places: &mut Places) -> Result<Vec<Finding>> {
    let mut findings = look(root, beside, places)?;
    for _ in 1..LOOKS {
        if !findings.iter().any(|finding| finding.severity == Severity::Fatal) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        let again = look(root, beside, places)?;
        findings.retain(|finding| again.contains(finding));
    }
    Ok(findings)
}

fn look(root: i32, beside: &[i32], places: &mut Places) -> Result<Vec<Finding>> {
    let members = members(root)?;
    let mut findings = Vec::new();
    findings.extend(lasting_strays(root, beside)?);
    findings.extend(system_v());
    let mut objects = Objects::new(std::collections::HashSet::new());
    objects.places = std::mem::take(places);
    for pid in &members {
        // One that ends meanwhile stands against nothing.
        let Ok(found) = process(*pid) else { continue };
        findings.extend(found);
        if let Ok(maps) = read(*pid, "maps").and_then(|text| maps::parse(&text)) {
            findings.extend(mappings(*pid, &understand(maps)));
        }
        if let Ok(smaps) = read(*pid, "smaps") {
            findings.extend(flags(*pid, &maps::flags(&smaps)));
        }
        let refused = objects.examine(*pid, &members).unwrap_or_default();
        findings.extend(refused.iter().map(|error| from_error("descriptor", error)));
    }
    findings.extend(outside(&objects));
    *places = objects.places;
    Ok(findings)
}

/// The pids of the tree, as it is now: parents before their children.
pub(crate) fn members(root: i32) -> Result<Vec<i32>> {
    read(root, "stat")?;
    let mut all = Vec::new();
    let mut waiting = vec![root];
    while let Some(pid) = waiting.pop() {
        let Ok(tids) = numbers(&format!("/proc/{pid}/task")) else { continue };
        all.push(pid);
        for tid in tids {
            let children = read(pid, &format!("task/{tid}/children")).unwrap_or_default();
            waiting.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    Ok(all)
}

/// Processes of the namespace that are neither of the tree nor of the engine.
pub(crate) fn strays(members: &[i32], beside: &[i32]) -> Result<Vec<Finding>> {
    let mut of_engine = vec![1];
    let mut pid = own();
    while pid > 1 {
        of_engine.push(pid);
        pid = parent(pid).map_or(0, |stat| stat.ppid);
    }
    let mut found = Vec::new();
    for pid in numbers("/proc")? {
        let known = |pid: i32| of_engine.contains(&pid) || members.contains(&pid) || beside.contains(&pid);
        let Some(stat) = parent(pid).filter(|_| !known(pid)) else { continue };
        // What has ended is init's to reap; a child of ours, of theirs, or of a member was made just now.
        let mut above = stat.ppid;
        while above > 1 && !known(above) {
            above = parent(above).map_or(0, |stat| stat.ppid);
        }
        if matches!(stat.state, 'Z' | 'X') || above > 1 {
            continue;
        }
        found.push(Finding::fatal(
            "detached",
            format!("{} (pid {pid})", stat.comm),
            "its parent ended, or it was started beside the application: only the application's own tree is saved",
            "keep it in the foreground of whoever starts it; wait until an `exec` is over",
        ));
    }
    Ok(found)
}

/// Those of them that stay: the copy of an engine that was killed is gone a moment later.
fn lasting_strays(root: i32, beside: &[i32]) -> Result<Vec<Finding>> {
    let mut found = strays(&members(root)?, beside)?;
    for _ in 0..10 {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        found = strays(&members(root)?, beside)?;
    }
    Ok(found)
}

/// Processes of the tree that stand still and are not below its root any more: whoever was between has been killed.
pub(crate) fn adopted(root: i32, members: &[i32]) -> Vec<Finding> {
    let lost = |pid: &i32| {
        let stat = parent(*pid).filter(|stat| *pid != root && !members.contains(&stat.ppid))?;
        let object = format!("{} (pid {pid})", stat.comm);
        Some(Finding::fatal("detached", object, "its parent was killed during the capture", "try again"))
    };
    members.iter().filter_map(lost).collect()
}

fn parent(pid: i32) -> Option<stat::Stat> {
    read(pid, "stat").ok().and_then(|text| stat::parse(&text).ok())
}

/// One process, without its mappings and descriptors.
pub(crate) fn process(pid: i32) -> Result<Vec<Finding>> {
    let stat = stat::parse(&read(pid, "stat")?)?;
    let who = format!("{} (pid {pid})", stat.comm);
    if matches!(stat.state, 'Z' | 'X') {
        let threads = numbers(&format!("/proc/{pid}/task")).map_or(0, |tids| tids.len());
        let why = "its main thread has ended while others run on";
        let headless = || Finding::fatal("main-thread", who, why, "let the main thread wait for the others");
        return Ok((threads > 1).then(headless).into_iter().collect());
    }
    let status: Status = status::parse(&read(pid, "status")?)?;
    let mut found = Vec::new();
    let mut fatal =
        |kind: &str, why: &str, help: &str| found.push(Finding::fatal(kind, who.clone(), why, help));
    if status.seccomp != 0 {
        fatal(
            "seccomp",
            "it runs under a seccomp filter, which cannot be read and would be lost",
            "start it without",
        );
    }
    if status.tracer != 0 && status.tracer != i32::try_from(std::process::id()).unwrap_or(0) {
        fatal("traced", "a debugger or tracer is attached to it", "detach that first");
    }
    if status.shadow_stack {
        fatal("shadow-stack", "it runs with a shadow stack", "switch it off by GLIBC_TUNABLES");
    }
    if status.tagged {
        fatal(
            "tagged",
            "it keeps words of its own in addresses (linear address masking)",
            "start it without ARCH_ENABLE_TAGGED_ADDR",
        );
    }
    if link(pid, "root")? != "/" {
        fatal("chroot", "its root directory is another one", "start it without chroot");
    }
    for namespace in NAMESPACES {
        // What its children would be in counts as well.
        let theirs = format!("ns/{namespace}");
        let name = format!("ns/{}", namespace.trim_end_matches("_for_children"));
        if link(pid, &theirs)? != link(own(), &name)? {
            let namespace = namespace.trim_end_matches("_for_children");
            let why = format!("it has a {namespace} namespace of its own");
            fatal("namespace", &why, "let the application make none");
        }
    }
    for (name, what) in [("cwd", "working directory"), ("exe", "program")] {
        if let Some(why) = lost(pid, name) {
            fatal("files", &format!("its {what} {why}"), "restart the application where its files are");
        }
    }
    if narrow(pid) {
        fatal("32-bit", "it is a 32-bit program", "use a 64-bit build");
    }
    found.extend(threads(pid, &who, &status)?);
    Ok(found)
}

/// Mappings that are not understood.
pub(crate) fn mappings(pid: i32, parts: &[Part]) -> Vec<Finding> {
    let refused = parts.iter().filter_map(|part| match part.class {
        Class::Refused(why) => Some((&part.map, why)),
        _ => None,
    });
    let finding = |(map, why): (&maps::Mapping, &str)| {
        let object = format!("mapping {:x} of process {pid}: {}", map.start, map.name);
        Finding::fatal("mapping", object, why, "let the application release it before saving")
    };
    refused.map(finding).collect()
}

/// Processes that share what only threads share.
pub(crate) fn shared(pids: &[i32]) -> Option<Finding> {
    let (what, one, other) = crate::sys::kcmp::shared(pids)?;
    let why = format!("they share {what}, as threads do");
    let object = format!("processes {one} and {other}");
    Some(Finding::fatal(
        "shared",
        object,
        &why,
        "try again: a process that is just starting another one does so",
    ))
}

fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

/// Why what a link of a process shows cannot be found again under its name.
fn lost(pid: i32, name: &str) -> Option<String> {
    let path = link(pid, name).ok()?;
    let used = std::fs::metadata(format!("/proc/{pid}/{name}")).ok()?;
    match std::fs::metadata(&path) {
        Ok(named) if (named.dev(), named.ino()) == (used.dev(), used.ino()) => None,
        _ => Some(format!("{path} is gone or was replaced")),
    }
}

/// Objects of System V belong to no process, and would be lost.
fn system_v() -> Vec<Finding> {
    let kinds = [("shm", "shared memory"), ("sem", "semaphores"), ("msg", "message queues")];
    let present = |name: &str| {
        let table = std::fs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap_or_default();
        table.lines().count() > 1
    };
    let finding = |(_, what): (&str, &str)| {
        let why = "they belong to no process and would be lost";
        Finding::fatal(
            "system-v",
            format!("System V {what}"),
            why,
            "use POSIX shared memory and semaphores, or remove them (ipcrm)",
        )
    };
    kinds.into_iter().filter(|(name, _)| present(name)).map(finding).collect()
}

/// Whether the program is one of 32 bits.
fn narrow(pid: i32) -> bool {
    let mut head = [0; 5];
    let read =
        std::fs::File::open(format!("/proc/{pid}/exe")).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head.get(4) == Some(&1)
}

/// Threads have the same rights as their process, and nothing else of their own.
fn threads(pid: i32, who: &str, of_process: &Status) -> Result<Option<Finding>> {
    let namespaces = OF_THREADS.map(|name| (name, link(pid, &format!("ns/{name}")).ok()));
    for tid in numbers(&format!("/proc/{pid}/task"))?.into_iter().filter(|tid| *tid != pid) {
        let Ok(text) = read(pid, &format!("task/{tid}/status")) else { continue };
        let status = status::parse(&text)?;
        if status.credentials != of_process.credentials || status.seccomp != of_process.seccomp {
            let object = format!("thread {tid} of {who}");
            let why = "its rights differ from those of its process";
            return Ok(Some(Finding::fatal(
                "thread-rights",
                object,
                why,
                "change them for the whole process",
            )));
        }
        let other = namespaces.iter().find(|(name, of_process)| {
            // A thread that ends has none.
            let own = link(pid, &format!("task/{tid}/ns/{name}"));
            own.is_ok_and(|own| of_process.as_ref().is_some_and(|of_process| *of_process != own))
        });
        let what = match other {
            Some((name, _)) => Some(format!("a {name} namespace")),
            None => crate::sys::kcmp::apart(pid, tid).map(str::to_owned),
        };
        if let Some(what) = what {
            let object = format!("thread {tid} of {who}");
            let why = format!("it has {what} of its own");
            let help = "let it share what the other threads have";
            return Ok(Some(Finding::fatal("thread-apart", object, &why, help)));
        }
    }
    Ok(None)
}

/// A thread whose system calls are turned into signals: nothing could be asked of it, and another one would not do so.
pub(crate) fn redirected(pid: i32, mut tids: impl Iterator<Item = i32>) -> Option<Finding> {
    let tid = tids.find(|tid| crate::sys::ptrace::redirects(*tid))?;
    let why = "its system calls are turned into signals (PR_SET_SYSCALL_USER_DISPATCH)";
    let help = "run the program without what emulates another system for it";
    Some(Finding::fatal("dispatch", format!("thread {tid} of process {pid}"), why, help))
}

/// A thread in code of 32 bits, or with segments that its process has made itself (modify_ldt, set_thread_area).
pub(crate) fn segments(pid: i32, tid: i32, registers: &Registers) -> Option<Finding> {
    const CODE: u64 = 0x33;
    let r = registers;
    let own = |selector: u64| selector & 4 != 0 || (12..=14).contains(&(selector >> 3));
    let why = if r.cs != CODE {
        "it is in code of 32 bits"
    } else if [r.ss, r.ds, r.es, r.fs, r.gs].into_iter().any(own) {
        "it uses a segment that its process has made"
    } else {
        return None;
    };
    let help = "run the program without what emulates another system for it";
    Some(Finding::fatal("segments", format!("thread {tid} of process {pid}"), why, help))
}

/// Mappings whose flags say that they cannot be saved.
pub(crate) fn flags(pid: i32, flags: &maps::Flags) -> Vec<Finding> {
    let mut found = Vec::new();
    for (end, flags) in flags {
        let known = FLAGS.iter().find(|(flag, _)| flags.has(flag));
        // The kernel's own areas (vvar) show its memory; they have the flag that keeps them out of core files.
        let Some((flag, why)) = known else { continue };
        if ["io", "pf", "mm"].contains(flag) && flags.has("de") {
            continue;
        }
        let object = format!("mapping of process {pid} that ends at {end:x}");
        found.push(Finding::fatal("mapping", object, why, "let the application release it before saving"));
    }
    found
}

/// Objects whose other side is no part of the tree. Only known once every descriptor was seen.
pub(crate) fn outside(objects: &Objects) -> Vec<Finding> {
    let leading_out = objects.pipes.leading_out();
    let mut found: Vec<Finding> = leading_out
        .into_iter()
        .map(|name| {
            let why = "the other end of the pipe is held outside of the application";
            Finding::fatal("pipe", name, why, "send the stream to a file")
        })
        .collect();
    let ptys = || {
        objects.all.iter().filter_map(|object| match &object.kind {
            Kind::Pty(pty) => Some(pty),
            _ => None,
        })
    };
    for pty in ptys().filter(|pty| !pty.master) {
        if !ptys().any(|other| other.master && other.index == pty.index) {
            let object = format!("the terminal /dev/pts/{}", pty.index);
            let why = "its other side is held outside of the application";
            found.push(Finding::fatal("terminal", object, why, "start the application without a terminal"));
            break;
        }
    }
    found
}

fn from_error(kind: &str, error: &BackendError) -> Finding {
    let object = error.what.strip_suffix(" cannot be saved").unwrap_or(&error.what);
    let help = error.help.as_deref().unwrap_or("let the application close it before saving");
    Finding::fatal(kind, object, &error.why.join(": "), help)
}

/// The first of the fatal findings as an error that names all.
pub(crate) fn error(findings: &[Finding]) -> Option<BackendError> {
    let mut fatal = findings.iter().filter(|finding| finding.severity == Severity::Fatal);
    let first = fatal.next()?;
    let error = BackendError::new(kind::UNSUPPORTED, format!("{} cannot be saved", first.object))
        .because(&first.why)
        .help(first.help.clone());
    Some(fatal.fold(error, |error, finding| {
        error.because(format_args!("{} cannot be saved either: {}", finding.object, finding.why))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmFlags;
    use std::collections::HashMap;

    #[test]
    fn all_refusals_are_told_at_once() {
        let findings = [
            Finding::fatal("a", "one", "because", "do this"),
            Finding::loss("b", "two", "it is lost", "nothing"),
            Finding::fatal("c", "three", "so it is", "do that"),
        ];
        let error = error(&findings).unwrap();
        assert_eq!(error.what, "one cannot be saved");
        assert_eq!(error.why, ["because", "three cannot be saved either: so it is"]);
        assert_eq!(error.help.as_deref(), Some("do this"));
        assert!(super::error(&findings[1..2]).is_none());
    }

    #[test]
    fn the_kernels_own_areas_are_no_devices() {
        let vvar = HashMap::from([(1, VmFlags::of("pf io de"))]);
        assert!(flags(1, &vvar).is_empty());
        for refused in ["io", maps::KEYED] {
            let device = HashMap::from([(1, VmFlags::of("rd").and(refused))]);
            assert_eq!(flags(1, &device).len(), 1);
        }
    }

    #[test]
    fn threads_of_other_segments_are_told() {
        let usual = Registers { cs: 0x33, ss: 0x2b, ..Registers::default() };
        assert_eq!(segments(1, 1, &usual), None);
        for odd in
            [Registers { cs: 0x23, ..usual }, Registers { fs: 0x63, ..usual }, Registers { ds: 7, ..usual }]
        {
            assert_eq!(segments(1, 1, &odd).map(|finding| finding.kind), Some("segments".to_owned()));
        }
    }

    #[test]
    fn a_process_without_its_parent_is_told() {
        assert_eq!(adopted(own(), &[own()]), []);
        let told = adopted(1, &[1, own()]);
        assert_eq!(told.first().map(|finding| finding.kind.as_str()), Some("detached"));
    }

    #[test]
    fn this_very_process_is_understood() {
        let findings = process(own()).unwrap();
        let kinds: Vec<&str> = findings.iter().map(|finding| finding.kind.as_str()).collect();
        // A test may be run in a container of its own.
        assert!(
            kinds.iter().all(|kind| ["seccomp", "traced", "chroot", "namespace"].contains(kind)),
            "{findings:?}"
        );
    }
}
