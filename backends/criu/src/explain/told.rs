//! What is said about each known failure: why, on which object, and what can be done.

use super::Told;
use super::log::{between, number_after};
use super::objects::{Seen, absolute, descriptor_and_path, file_and_words};
use stasis_plugin_api::error::kind;

const ANOTHER: &str = "let the application do without it, or take another backend";
const EARLIER: &str = "bring an earlier generation back";
const MEBIBYTE: u64 = 1 << 20;

/// What is told of a kind that only needs words.
fn unsupported(why: impl Into<String>, help: impl Into<String>) -> Told {
    Told::new(kind::UNSUPPORTED, why, help)
}

fn failed(why: impl Into<String>, help: impl Into<String>) -> Told {
    Told::new(kind::FAILED, why, help)
}

pub(super) fn no_space(seen: &Seen<'_>) -> Told {
    if seen.at_restart() {
        let why = "a file system that the restart writes to is full, or its quota is used up";
        return Told::new(
            kind::NO_SPACE,
            why,
            "make room where stasis keeps its logs and in the application's own directories",
        );
    }
    Told::new(
        kind::NO_SPACE,
        "the file system of the checkpoints is full, or its quota is used up; the application runs on",
        "remove old checkpoints (`stasis checkpoint prune`), or keep them on a larger file system",
    )
}

pub(super) fn file_too_large(_: &Seen<'_>) -> Told {
    Told::new(
        kind::NO_SPACE,
        "a file would become larger than the limit for files (RLIMIT_FSIZE) or the file system allows",
        "raise the limit (`ulimit -f`) in the shell that starts stasis",
    )
}

pub(super) fn loader(seen: &Seen<'_>) -> Told {
    let library = between(seen.text, "shared libraries: ", ":").unwrap_or("one of its libraries");
    Told::new(
        kind::UNUSABLE,
        format!("CRIU cannot be loaded: {library} is missing"),
        "install the package of that library, or name a private CRIU with `prefix` in plugins.toml",
    )
}

pub(super) fn no_right(_: &Seen<'_>) -> Told {
    Told::new(
        kind::UNUSABLE,
        "CRIU does not have the rights that it needs: it has to run with every capability of the container's user \
         namespace",
        "`stasis backend check criu` tells what this host allows",
    )
}

pub(super) fn no_rlimit(seen: &Seen<'_>) -> Told {
    unsupported(
        format!("{} belongs to another user, and root lacks CAP_SYS_RESOURCE on this host", seen.whose()),
        "start the instance as that user, or give CAP_SYS_RESOURCE to the machine or container that stasis runs in",
    )
}

pub(super) fn no_uid_zero(_: &Seen<'_>) -> Told {
    Told::new(
        kind::UNUSABLE,
        "CRIU has to run as uid 0 of the container with every capability there, and it does not",
        "let the administrator grant subordinate ids (`usermod --add-subuids`, `--add-subgids`, package uidmap); \
         `stasis backend check criu` tells more",
    )
}

pub(super) fn mount(seen: &Seen<'_>) -> Told {
    // `mnt: 184:./a/path doesn't ...`: the number is CRIU's own.
    let place = seen.text.split_once(" doesn't have").and_then(|(before, _)| before.rsplit_once(':'));
    let place = place.map_or("", |(_, path)| path);
    failed(
        format!("the mount at {} cannot be traced back to the container's root", absolute(place)),
        "do without that bind mount, or take another backend",
    )
}

pub(super) fn connected(seen: &Seen<'_>) -> Told {
    let why = match seen.connections() {
        Some(connections) => format!("TCP connections are open: {connections}"),
        None => format!("{} has open TCP connections", seen.whose()),
    };
    unsupported(
        why,
        "save while none is open, or with `--tcp close` (the application finds them closed after a restart), or in \
         a network of its own (`--net`) with `--tcp keep`",
    )
}

pub(super) fn connected_in_image(_: &Seen<'_>) -> Told {
    unsupported(
        "the saved state holds open TCP connections",
        "restart with `--tcp close` (the application finds them closed), or in the same way as it was saved",
    )
}

pub(super) fn not_reconnected(seen: &Seen<'_>) -> Told {
    let why = match seen.connections() {
        Some(connections) => format!("TCP connections that were kept cannot be taken up: {connections}"),
        None => "a TCP connection that was kept cannot be taken up".to_owned(),
    };
    failed(
        format!("{why} (the address is not this host's, or is taken)"),
        "restart with `--tcp close`: the application finds them closed",
    )
}

pub(super) fn no_repair(_: &Seen<'_>) -> Told {
    unsupported(
        "keeping TCP connections needs CAP_NET_ADMIN over the network, which a container on the host's network does \
         not have",
        "start the instance with `--net` (a network of its own), or use `--tcp close`",
    )
}

pub(super) fn being_set_up(seen: &Seen<'_>) -> Told {
    failed(
        format!("{} was just accepting a TCP connection", seen.whose()),
        "save again in a moment, or with `--tcp close`",
    )
}

pub(super) fn half_closed(seen: &Seen<'_>) -> Told {
    failed(
        format!("{} has a TCP connection that is half closed", seen.whose()),
        "save again when it has ended, or with `--tcp close`",
    )
}

pub(super) fn port(seen: &Seen<'_>) -> Told {
    let what = seen.ports().unwrap_or_else(|| "a port that the application listened on".to_owned());
    if seen.text.contains("Cannot assign requested address") {
        return failed(
            format!("{what} was bound to an address that this host does not have"),
            "restart on the host of that address, or let the application listen on every address",
        );
    }
    if seen.text.contains("Permission denied") {
        return failed(
            format!("{what} may not be bound by this user"),
            "restart with `--net` (a network of its own)",
        );
    }
    failed(
        format!("{what} is taken by another program"),
        "end the program that listens there (`ss -tulpn` names it; it may be another copy of this application), or \
         restart with `--net` (a network of its own)",
    )
}

pub(super) fn unix_outside(seen: &Seen<'_>) -> Told {
    let peer = between(seen.text, "peer name: ", "").filter(|name| !name.is_empty() && *name != "(null)");
    let whom = peer.map_or_else(|| "a program".to_owned(), |name| format!("the program behind {name}"));
    unsupported(
        format!(
            "{} is connected to {whom} outside of the container, by a unix socket that CRIU cannot save",
            seen.whose()
        ),
        "save while it is not connected (to a message bus, a database, a display), or do not bind that socket into \
         the container",
    )
}

pub(super) fn netlink_busy(seen: &Seen<'_>) -> Told {
    failed(
        format!("{} has not yet read what the kernel told it on a netlink socket", seen.whose()),
        "save again in a moment",
    )
}

pub(super) fn seccomp(seen: &Seen<'_>) -> Told {
    unsupported(
        format!("{} has a seccomp filter, which CRIU cannot suspend without privilege", seen.whose()),
        "switch the sandbox off in the application, or take another backend",
    )
}

pub(super) fn io_uring(seen: &Seen<'_>) -> Told {
    unsupported(format!("{} uses io_uring, which CRIU cannot save", seen.having("io_uring")), ANOTHER)
}

pub(super) fn nested(seen: &Seen<'_>) -> Told {
    let which = between(seen.text, "nested ", " namespace").unwrap_or("user");
    let pid = number_after(seen.text, " for ");
    let whose = pid.map_or_else(|| seen.whose(), |pid| seen.process(pid));
    unsupported(
        format!("{whose} is in a {which} namespace of its own inside the container, which CRIU cannot save"),
        "switch the sandbox off in the application (browsers, build tools), or take another backend",
    )
}

pub(super) fn sysv(seen: &Seen<'_>) -> Told {
    let pid = number_after(seen.text, "Task ");
    let whose = pid.map_or_else(|| seen.having("/SYSV"), |pid| seen.process(pid));
    unsupported(
        format!(
            "{whose} uses System V shared memory or message queues, which CRIU cannot save without privilege"
        ),
        ANOTHER,
    )
}

pub(super) fn inotify(seen: &Seen<'_>) -> Told {
    unsupported(
        format!(
            "{} watches files (inotify or fanotify), which CRIU cannot save without privilege",
            seen.having("notify")
        ),
        ANOTHER,
    )
}

pub(super) fn ghost(seen: &Seen<'_>) -> Told {
    let file = between(seen.text, "ghost file ", " of ").map_or_else(|| "a file".to_owned(), absolute);
    let size: Option<u64> = between(seen.text, " of ", " size").and_then(|size| size.parse().ok());
    let (bytes, limit) = match size {
        Some(size) => {
            let limit = size.div_ceil(MEBIBYTE).checked_next_power_of_two().unwrap_or(u64::MAX);
            (format!("of {size} bytes "), format!("{limit}M"))
        }
        None => (String::new(), "256M".to_owned()),
    };
    unsupported(
        format!("{file} {bytes}was deleted and is still open; it is larger than what is saved of such files"),
        format!("save with `--backend-option ghost-limit={limit}`"),
    )
}

pub(super) fn link_remap(seen: &Seen<'_>) -> Told {
    let file = between(seen.text, "remap for ", ". Use").map_or_else(|| "a file".to_owned(), absolute);
    unsupported(
        format!("{file} was deleted under that name and is still open, and it lives on under another name"),
        "let the application reopen it (often a log that was rotated)",
    )
}

pub(super) fn locks(seen: &Seen<'_>) -> Told {
    unsupported(format!("{} holds a file lock that CRIU did not save", seen.whose()), ANOTHER)
}

pub(super) fn outside(seen: &Seen<'_>) -> Told {
    let (number, path) = descriptor_and_path(seen.text);
    let (whose, what) = match number {
        Some(number) if number >= 0 => (seen.holder(number, path), format!("descriptor {number} ({path})")),
        // The executable, the working directory or the root.
        _ if path.is_empty() => (seen.whose(), "a file".to_owned()),
        _ => (seen.whose(), path.to_owned()),
    };
    // A POSIX message queue is a file at the root of a file system of its own.
    let queue = if path.matches('/').count() == 1 { " (or is a POSIX message queue)" } else { "" };
    unsupported(
        format!("{whose} holds {what}, which lies outside of the container{queue}"),
        "close it in the application, or start the instance anew without handing it down",
    )
}

pub(super) fn kind_of_descriptor(seen: &Seen<'_>) -> Told {
    let number: Option<i32> = number_after(seen.text, "dump file ");
    let whose = seen.whose();
    let number_told =
        number.map_or_else(|| "a descriptor".to_owned(), |number| format!("descriptor {number}"));
    let inner = between(seen.text, "] (", "").map(|inner| inner.trim_end_matches(')').trim());
    let object = number.and_then(|number| seen.target(number)).or(inner).unwrap_or("unknown");
    unsupported(
        format!("{whose} holds {number_told} ({object}), of a kind that CRIU cannot save"),
        format!("close it in the application before saving; {ANOTHER}"),
    )
}

pub(super) fn device_mapping(seen: &Seen<'_>) -> Told {
    let pid = number_after(seen.text, "mapping on ");
    let whose = pid.map_or_else(|| seen.whose(), |pid| seen.process(pid));
    unsupported(
        format!("{whose} maps the memory of a device (a GPU, a network card), which CRIU cannot save"),
        "save before the device is opened or after it was let go of, or take another backend",
    )
}

pub(super) fn stopped_thread(seen: &Seen<'_>) -> Told {
    failed(
        format!("single threads of {} are stopped", seen.whose()),
        "let the process go on (SIGCONT) or detach the debugger, and save again",
    )
}

pub(super) fn terminal(seen: &Seen<'_>) -> Told {
    unsupported(
        format!("{} uses a terminal of outside the container, which CRIU cannot save", seen.whose()),
        "start the instance without a terminal: its standard streams are files then",
    )
}

pub(super) fn session(seen: &Seen<'_>) -> Told {
    let pid = number_after(seen.text, "root process ").or_else(|| number_after(seen.text, "leader of "));
    let whose = pid.map_or_else(|| seen.whose(), |pid| seen.process(pid));
    failed(
        format!("{whose} belongs to a session whose leader is not among the application's processes"),
        "let the application's first process wait for its children, or start what leaves it with `setsid`",
    )
}

pub(super) fn traced(seen: &Seen<'_>) -> Told {
    let pid = number_after(seen.text, "detach from ").or_else(|| number_after(seen.text, "non-zombie "));
    let whose = pid.map_or_else(|| seen.whose(), |pid| seen.process(pid));
    failed(format!("{whose} is being traced (gdb, strace)"), "end the tracer, and save again")
}

pub(super) fn no_tracking(_: &Seen<'_>) -> Told {
    unsupported(
        "this kernel does not track which memory was written, which saving in steps needs",
        "save without steps, or take a kernel with CONFIG_MEM_SOFT_DIRTY",
    )
}

pub(super) fn pid_taken(seen: &Seen<'_>) -> Told {
    let pid: Option<i32> = number_after(seen.text, "fork for ");
    let which = pid.map_or_else(|| "a pid of the saved state".to_owned(), |pid| format!("pid {pid}"));
    if seen.text.contains("not permitted") {
        return failed(
            format!("{which} cannot be chosen: the container has no pid namespace that CRIU may use"),
            "`stasis backend check criu` tells whether CRIU works here",
        );
    }
    failed(
        format!("{which} is taken already in the container (is another copy alive?)"),
        "restart again; when it happens each time, take an earlier generation",
    )
}

pub(super) fn changed(seen: &Seen<'_>) -> Told {
    let put = "put the file back as it was when the state was saved: the same image, the same binds";
    let Some((file, words)) = file_and_words(seen.text) else {
        return failed("a file that was in use has changed since the state was saved", put);
    };
    let size = number_after::<u64>(words, "size ").zip(number_after::<u64>(words, "expect "));
    failed(
        match size {
            Some((now, then)) if words.starts_with("size") => {
                format!("{file} has changed since the state was saved: it has {now} bytes instead of {then}")
            }
            _ => format!("{file} has changed since the state was saved: it is another build"),
        },
        put,
    )
}

pub(super) fn missing(seen: &Seen<'_>) -> Told {
    let path = between(seen.text, "Can't open file ", " on restore")
        .or_else(|| between(seen.text, "Can't open file ", ": "))
        .map_or_else(|| "a file".to_owned(), absolute);
    let why = if seen.text.contains("Permission denied") {
        format!("{path}, which was open when the state was saved, may not be opened")
    } else {
        format!("{path}, which was open when the state was saved, is not there any more")
    };
    failed(
        why,
        "put the file back to its place (an empty one may do for a log), or bind the directory that holds it",
    )
}

pub(super) fn processor(_: &Seen<'_>) -> Told {
    unsupported(
        "the processor of this host lacks instructions that the application used where it was saved",
        "restart on a host with the same or a newer processor",
    )
}

pub(super) fn older_criu(_: &Seen<'_>) -> Told {
    unsupported(
        "the state was saved by a version of CRIU that this one does not understand",
        "restart with the version that saved it, or a newer one (`prefix` in plugins.toml)",
    )
}

pub(super) fn incomplete(_: &Seen<'_>) -> Told {
    Told::new(kind::DAMAGED, "the saved state is incomplete: files of it are missing", EARLIER)
}

pub(super) fn damaged(seen: &Seen<'_>) -> Told {
    let file = between(seen.text, "EOF on ", "").or_else(|| between(seen.text, "match for ", ""));
    let which = file.map_or_else(String::new, |file| format!(" ({file})"));
    Told::new(kind::DAMAGED, format!("a file of the saved state is damaged or cut short{which}"), EARLIER)
}

pub(super) fn older_than_kernel(_: &Seen<'_>) -> Told {
    unsupported(
        "this CRIU is older than the kernel: it asks for something of a socket that the kernel does not answer any more",
        "take CRIU 4.2 or later (docs/criu.md), or another backend",
    )
}
