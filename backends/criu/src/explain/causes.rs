//! The failures of CRIU that are known, by the text of its messages: line numbers move from version to version.
//! The first entry of the table that fits any line counts, so the special ones stand before the general ones.

use super::log::Log;
use super::objects::Seen;
use super::{During, Outcome, Told, told};

/// One known failure.
struct Cause {
    /// A part of CRIU's message.
    sign: &'static str,
    /// Where it means this; everywhere when absent.
    during: Option<During>,
    /// What it means.
    tell: fn(&Seen<'_>) -> Told,
}

const fn always(sign: &'static str, tell: fn(&Seen<'_>) -> Told) -> Cause {
    Cause { sign, during: None, tell }
}

const fn saving(sign: &'static str, tell: fn(&Seen<'_>) -> Told) -> Cause {
    Cause { sign, during: Some(During::Capture), tell }
}

const fn bringing_back(sign: &'static str, tell: fn(&Seen<'_>) -> Told) -> Cause {
    Cause { sign, during: Some(During::Restart), tell }
}

const CAUSES: &[Cause] = &[
    // Around the application.
    always("No space left on device", told::no_space),
    always("Disk quota exceeded", told::no_space),
    always("File too large", told::file_too_large),
    always("error while loading shared libraries", told::loader),
    always("CRIU needs to have the CAP_SYS_ADMIN", told::no_right),
    always("Can't get rlimit", told::no_rlimit),
    always("Unable to initialize id-s", told::no_uid_zero),
    always("Unable to set socket SO_SNDBUFFORCE", told::no_uid_zero),
    always("Unable to drop capability", told::no_uid_zero),
    always("doesn't have a proper root mount", told::mount),
    // The network.
    saving("Connected TCP socket, consider", told::connected),
    bringing_back("Connected TCP socket in image", told::connected_in_image),
    bringing_back("Need to set the --tcp-close", told::connected_in_image),
    bringing_back("Can't bind inet socket back", told::not_reconnected),
    bringing_back("Can't connect inet socket back", told::not_reconnected),
    always("Can't turn TCP repair mode ON", told::no_repair),
    always("Unable to set TCP_REPAIR", told::no_repair),
    always("Iptables configuration failed", told::no_repair),
    always("Locking network failed", told::no_repair),
    saving("opt: Operation not supported", told::older_than_kernel),
    saving("In-flight connection", told::being_set_up),
    saving("TCP_REPAIR can't be enabled for half-closed", told::half_closed),
    bringing_back("Can't bind inet socket", told::port),
    bringing_back("Can't listen on a socket", told::port),
    saving("Can't dump half of stream unix connection", told::unix_outside),
    saving("External socket is used", told::unix_outside),
    saving("Can't dump name-less external socket", told::unix_outside),
    bringing_back("External socket found in image", told::unix_outside),
    saving("netlink: The socket has data to read", told::netlink_busy),
    // Kinds of objects that cannot be saved.
    saving("suspending seccomp failed", told::seccomp),
    saving("couldn't suspend seccomp", told::seccomp),
    saving("failed to suspend seccomp", told::seccomp),
    saving("Dumping seccomp filters not supported", told::seccomp),
    saving("send_fds failed (-22)", told::io_uring),
    saving("Can't dump nested", told::nested),
    saving("SysVIPC shmem", told::sysv),
    saving("ipc_ns.c", told::sysv),
    always("Can't dump that handle", told::inotify),
    saving("Can't dump ghost file", told::ghost),
    saving("Can't create link remap", told::link_remap),
    saving("Some file locks are hold", told::locks),
    saving("Can't lookup mount=", told::outside),
    saving("of that type [", told::kind_of_descriptor),
    saving("Can't handle non-regular mapping", told::device_mapping),
    saving("Individually stopped threads", told::stopped_thread),
    always("tty: Can't setup uid", told::terminal),
    always("tty inheritance detected", told::terminal),
    always("Don't have tty to inherit session", told::terminal),
    always("Found dangling tty", told::terminal),
    always("without correspond master peer", told::terminal),
    saving("is not a session leader", told::session),
    saving("is outside of its pid namespace", told::session),
    saving("Can't find a session leader", told::session),
    saving("Unable to detach from", told::traced),
    saving("Unseizable non-zombie", told::traced),
    saving("Tracking memory is not available", told::no_tracking),
    // What a restart needs.
    bringing_back("Can't fork for", told::pid_taken),
    bringing_back("has bad size", told::changed),
    bringing_back("bad build-ID", told::changed),
    bringing_back("Can't open file", told::missing),
    bringing_back("CPU capabilities do not match", told::processor),
    bringing_back("CPU instruction capabilities do not match", told::processor),
    bringing_back("required by image is not supported on host", told::processor),
    bringing_back("xsave size mismatch", told::processor),
    bringing_back("xsave max size mismatch", told::processor),
    bringing_back("Not supported images version", told::older_criu),
    bringing_back("(empty-image)", told::incomplete),
    bringing_back("inventory.img", told::incomplete),
    bringing_back("Unexpected EOF", told::damaged),
    bringing_back("agic doesn't match for", told::damaged),
    bringing_back("Can't read mapping page", told::damaged),
    bringing_back("Failed unpacking", told::damaged),
];

/// The known failure that the log tells of.
pub(super) fn find(outcome: &Outcome<'_>, log: &Log<'_>) -> Option<Told> {
    let here = CAUSES.iter().filter(|cause| cause.during.is_none_or(|during| during == outcome.during));
    for cause in here {
        // The last line with it: a retried step tells of its failure more than once.
        if let Some(line) = log.errors().filter(|line| line.whole.contains(cause.sign)).last() {
            return Some((cause.tell)(&Seen::new(outcome, log, line)));
        }
    }
    None
}
