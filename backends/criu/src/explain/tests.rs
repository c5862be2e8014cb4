use super::*;
use stasis_plugin_api::survey::DescriptorInfo;

/// What stands in every log, before and after what matters.
const BEFORE: &str = "Error (criu/net.c:1253): net: Unexpected error: -1(Operation not permitted)\n\
    Warn  (criu/kerndat.c:1285): Can't keep kdat cache on non-tempfs\n\
    Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n";
const AFTER_DUMP: &str = "Error (criu/cr-dump.c:1681): Dump files (pid: 100) failed with -1\n\
    Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
const AFTER_RESTORE: &str = "Error (criu/cr-restore.c:1505): 100 exited, status=1\n\
    Error (criu/cr-restore.c:2447): Restoring FAILED.\n";

fn processes() -> Vec<ProcessInfo> {
    let descriptor = |number, target: &str| DescriptorInfo {
        number,
        target: target.to_owned(),
        ..DescriptorInfo::default()
    };
    vec![
        ProcessInfo {
            pid: 100,
            name: "python3".to_owned(),
            descriptors: vec![descriptor(3, "/data/in"), descriptor(4, "anon_inode:[userfaultfd]")],
            ..ProcessInfo::default()
        },
        ProcessInfo {
            pid: 101,
            name: "worker".to_owned(),
            descriptors: vec![descriptor(5, "/data/out"), descriptor(6, "anon_inode:inotify")],
            special_mappings: vec!["/SYSV00000000 (deleted)".to_owned(), "anon_inode:[io_uring]".to_owned()],
            ..ProcessInfo::default()
        },
    ]
}

fn sockets() -> Vec<SocketInfo> {
    let socket = |state: &str, local_port, peer_port, pid| SocketInfo {
        protocol: "tcp".to_owned(),
        local: "10.0.0.1".to_owned(),
        local_port,
        peer: if peer_port == 0 { "0.0.0.0".to_owned() } else { "10.0.0.2".to_owned() },
        peer_port,
        state: state.to_owned(),
        pid,
        peer_inside: false,
    };
    let inside = SocketInfo { peer_inside: true, ..socket("established", 7, 8, 100) };
    vec![socket("listen", 8000, 0, 100), socket("established", 41000, 443, 101), inside]
}

fn outcome(during: During, log: &str) -> Outcome<'_> {
    let (processes, sockets) = (&[], &[]);
    Outcome { during, code: Some(1), signal: None, timed_out: false, log, processes, sockets }
}

/// The kind, the error and the remedy of a line that stands within everything that always stands there.
fn told(during: During, line: &str) -> String {
    let after = if during == During::Capture { AFTER_DUMP } else { AFTER_RESTORE };
    let log = format!("{BEFORE}{line}\n{after}");
    let (processes, sockets) = (processes(), sockets());
    let outcome = Outcome { processes: &processes, sockets: &sockets, ..outcome(during, &log) };
    let error = explain(&outcome);
    let all = format!("{}: {error}\n  help: {}", error.kind, error.help.as_deref().unwrap_or_default());
    for flag in ["--file-locks", "--shell-job", "--ext-unix-sk", "--tcp-", "--track-mem", "--link-remap"] {
        assert!(!all.contains(flag), "{flag} in {all}");
    }
    // CRIU's own lines say nothing to whom ours are said.
    assert_eq!(error.engine_output, None);
    all
}

fn all(during: During, lines: &str) -> String {
    lines.lines().map(|line| told(during, line.trim())).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_stands_in_the_way_around_the_application() {
    let lines = "Error (criu/image.c:1): Can't write img file: No space left on device
        Error (criu/image.c:1): Can't write img file: Disk quota exceeded
        Error (criu/image.c:1): Can't write img file: File too large
        criu: error while loading shared libraries: libnet.so.1: cannot open shared object file: No such file
        CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability: setcap
        Error (criu/cr-dump.c:1): Can't get rlimit 0: Operation not permitted
        Error (criu/mount.c:753): mnt: 184:./.stasis/log doesn't have a proper root mount
        Error (criu/mem.c:1): Tracking memory is not available. Consider omitting --track-mem option.";
    insta::assert_snapshot!(all(During::Capture, lines), @"
no-space: the application could not be saved: the file system of the checkpoints is full, or its quota is used up; the application runs on
  help: remove old checkpoints (`stasis checkpoint prune`), or keep them on a larger file system
no-space: the application could not be saved: the file system of the checkpoints is full, or its quota is used up; the application runs on
  help: remove old checkpoints (`stasis checkpoint prune`), or keep them on a larger file system
no-space: the application could not be saved: a file would become larger than the limit for files (RLIMIT_FSIZE) or the file system allows
  help: raise the limit (`ulimit -f`) in the shell that starts stasis
unusable: the application could not be saved: CRIU cannot be loaded: libnet.so.1 is missing
  help: install the package of that library, or name a private CRIU with `prefix` in plugins.toml
unusable: the application could not be saved: CRIU does not have the rights that it needs: it has to run with every capability of the container's user namespace
  help: `stasis backend check criu` tells what this host allows
unsupported: the application could not be saved: python3 (pid 100) belongs to another user, and root lacks CAP_SYS_RESOURCE on this host
  help: start the instance as that user, or give CAP_SYS_RESOURCE to the machine or container that stasis runs in
failed: the application could not be saved: the mount at /.stasis/log cannot be traced back to the container's root
  help: do without that bind mount, or take another backend
unsupported: the application could not be saved: this kernel does not track which memory was written, which saving in steps needs
  help: save without steps, or take a kernel with CONFIG_MEM_SOFT_DIRTY
");
    let lines = "Error (criu/namespaces.c:1625): Unable to initialize id-s: Invalid argument
        Error (criu/sockets.c:495): sockets: Unable to set socket SO_SNDBUFFORCE/SO_RCVBUFFORCE: Operation not permitted
        Error (pie/restorer.c:317): Unable to drop capability 24: -1
        Error (criu/log.c:1): Can't write: No space left on device";
    insta::assert_snapshot!(all(During::Restart, lines), @"
unusable: the saved state could not be brought back: CRIU has to run as uid 0 of the container with every capability there, and it does not
  help: let the administrator grant subordinate ids (`usermod --add-subuids`, `--add-subgids`, package uidmap); `stasis backend check criu` tells more
unusable: the saved state could not be brought back: CRIU has to run as uid 0 of the container with every capability there, and it does not
  help: let the administrator grant subordinate ids (`usermod --add-subuids`, `--add-subgids`, package uidmap); `stasis backend check criu` tells more
unusable: the saved state could not be brought back: CRIU has to run as uid 0 of the container with every capability there, and it does not
  help: let the administrator grant subordinate ids (`usermod --add-subuids`, `--add-subgids`, package uidmap); `stasis backend check criu` tells more
no-space: the saved state could not be brought back: a file system that the restart writes to is full, or its quota is used up
  help: make room where stasis keeps its logs and in the application's own directories
");
}

#[test]
fn the_network_while_saving() {
    let lines = "Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.
        Error (criu/sockets.c:628): sockets: Can't get 1:16 opt: Operation not supported
        Error (soccr/soccr.c:94): Can't turn TCP repair mode ON: Operation not permitted
        Error (criu/netfilter.c:105): Iptables configuration failed
        Error (criu/sk-inet.c:1): inet: In-flight connection (l) for 1f
        Error (soccr/soccr.c:1): TCP_REPAIR can't be enabled for half-closed sockets
        Error (criu/sk-unix.c:1): unix: Can't dump half of stream unix connection. name: (null); peer name: /run/db
        Error (criu/sk-unix.c:1): unix: External socket is used. Consider using --ext-unix-sk option.
        Error (criu/sk-netlink.c:1): netlink: The socket has data to read";
    insta::assert_snapshot!(all(During::Capture, lines), @"
    unsupported: the application could not be saved: TCP connections are open: worker (pid 101): 10.0.0.1:41000 to 10.0.0.2:443
      help: save while none is open, or with `--tcp close` (the application finds them closed after a restart), or in a network of its own (`--net`) with `--tcp keep`
    unsupported: the application could not be saved: this CRIU is older than the kernel: it asks for something of a socket that the kernel does not answer any more
      help: take CRIU 4.2 or later (docs/criu.md), or another backend
    unsupported: the application could not be saved: keeping TCP connections needs CAP_NET_ADMIN over the network, which a container on the host's network does not have
      help: start the instance with `--net` (a network of its own), or use `--tcp close`
    unsupported: the application could not be saved: keeping TCP connections needs CAP_NET_ADMIN over the network, which a container on the host's network does not have
      help: start the instance with `--net` (a network of its own), or use `--tcp close`
    failed: the application could not be saved: python3 (pid 100) was just accepting a TCP connection
      help: save again in a moment, or with `--tcp close`
    failed: the application could not be saved: python3 (pid 100) has a TCP connection that is half closed
      help: save again when it has ended, or with `--tcp close`
    unsupported: the application could not be saved: python3 (pid 100) is connected to the program behind /run/db outside of the container, by a unix socket that CRIU cannot save
      help: save while it is not connected (to a message bus, a database, a display), or do not bind that socket into the container
    unsupported: the application could not be saved: python3 (pid 100) is connected to a program outside of the container, by a unix socket that CRIU cannot save
      help: save while it is not connected (to a message bus, a database, a display), or do not bind that socket into the container
    failed: the application could not be saved: python3 (pid 100) has not yet read what the kernel told it on a netlink socket
      help: save again in a moment
    ");
}

#[test]
fn the_network_at_a_restart() {
    let lines = "100: Error (criu/sk-inet.c:1): inet: Connected TCP socket in image
        100: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 20): Address already in use
        100: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 20): Cannot assign requested address
        100: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 20): Permission denied
        100: Error (soccr/soccr.c:1): Can't bind inet socket back: Cannot assign requested address
        100: Error (criu/sk-unix.c:1): unix: External socket found in image. Consider using the --ext-unix-sk option";
    insta::assert_snapshot!(all(During::Restart, lines), @"
unsupported: the saved state could not be brought back: the saved state holds open TCP connections
  help: restart with `--tcp close` (the application finds them closed), or in the same way as it was saved
failed: the saved state could not be brought back: TCP port 8000 of python3 (pid 100) is taken by another program
  help: end the program that listens there (`ss -tulpn` names it; it may be another copy of this application), or restart with `--net` (a network of its own)
failed: the saved state could not be brought back: TCP port 8000 of python3 (pid 100) was bound to an address that this host does not have
  help: restart on the host of that address, or let the application listen on every address
failed: the saved state could not be brought back: TCP port 8000 of python3 (pid 100) may not be bound by this user
  help: restart with `--net` (a network of its own)
failed: the saved state could not be brought back: TCP connections that were kept cannot be taken up: worker (pid 101): 10.0.0.1:41000 to 10.0.0.2:443 (the address is not this host's, or is taken)
  help: restart with `--tcp close`: the application finds them closed
unsupported: the saved state could not be brought back: python3 (pid 100) is connected to a program outside of the container, by a unix socket that CRIU cannot save
  help: save while it is not connected (to a message bus, a database, a display), or do not bind that socket into the container
");
}

#[test]
fn what_cannot_be_saved() {
    let lines = "Error (compel/ptrace.c:27): suspending seccomp failed: Operation not permitted
        Error (compel/src/lib/infect-rpc.c:1): send_fds failed (-22)
        Error (criu/namespaces.c:460): Can't dump nested user namespace for 101
        Error (criu/cr-dump.c:1): Task 100 with SysVIPC shmem map @7f doesn't live in IPC ns
        Error (criu/ipc_ns.c:384): Can't stat map_files: Operation not permitted
        Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle
        Error (criu/files-reg.c:1): Can't dump ghost file /data/tmp of 3000000 size, increase limit
        Error (criu/files-reg.c:1): Can't create link remap for /data/log. Use link-remap option.
        Error (criu/file-lock.c:1): Some file locks are hold by dumping tasks! You can try --file-locks to dump them.
        Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=5 path=/data/out
        Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=10 path=/queue
        Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=-3 path=/usr/bin/python3
        Error (criu/files-ext.c:98): Can't dump file 4 of that type [600] (anon anon_inode:[userfaultfd])
        Error (criu/files-ext.c:98): Can't dump file 9 of that type [20666] (chr 195:255)
        Error (criu/proc_parse.c:1): Can't handle non-regular mapping on 101's map 7f00
        Error (criu/seize.c:1): Individually stopped threads not supported";
    insta::assert_snapshot!(all(During::Capture, lines), @"
unsupported: the application could not be saved: python3 (pid 100) has a seccomp filter, which CRIU cannot suspend without privilege
  help: switch the sandbox off in the application, or take another backend
unsupported: the application could not be saved: worker (pid 101) uses io_uring, which CRIU cannot save
  help: let the application do without it, or take another backend
unsupported: the application could not be saved: worker (pid 101) is in a user namespace of its own inside the container, which CRIU cannot save
  help: switch the sandbox off in the application (browsers, build tools), or take another backend
unsupported: the application could not be saved: python3 (pid 100) uses System V shared memory or message queues, which CRIU cannot save without privilege
  help: let the application do without it, or take another backend
unsupported: the application could not be saved: worker (pid 101) uses System V shared memory or message queues, which CRIU cannot save without privilege
  help: let the application do without it, or take another backend
unsupported: the application could not be saved: worker (pid 101) watches files (inotify or fanotify), which CRIU cannot save without privilege
  help: let the application do without it, or take another backend
unsupported: the application could not be saved: /data/tmp of 3000000 bytes was deleted and is still open; it is larger than what is saved of such files
  help: save with `--backend-option ghost-limit=4M`
unsupported: the application could not be saved: /data/log was deleted under that name and is still open, and it lives on under another name
  help: let the application reopen it (often a log that was rotated)
unsupported: the application could not be saved: python3 (pid 100) holds a file lock that CRIU did not save
  help: let the application do without it, or take another backend
unsupported: the application could not be saved: worker (pid 101) holds descriptor 5 (/data/out), which lies outside of the container
  help: close it in the application, or start the instance anew without handing it down
unsupported: the application could not be saved: python3 (pid 100) holds descriptor 10 (/queue), which lies outside of the container (or is a POSIX message queue)
  help: close it in the application, or start the instance anew without handing it down
unsupported: the application could not be saved: python3 (pid 100) holds /usr/bin/python3, which lies outside of the container
  help: close it in the application, or start the instance anew without handing it down
unsupported: the application could not be saved: python3 (pid 100) holds descriptor 4 (anon_inode:[userfaultfd]), of a kind that CRIU cannot save
  help: close it in the application before saving; let the application do without it, or take another backend
unsupported: the application could not be saved: python3 (pid 100) holds descriptor 9 (chr 195:255), of a kind that CRIU cannot save
  help: close it in the application before saving; let the application do without it, or take another backend
unsupported: the application could not be saved: worker (pid 101) maps the memory of a device (a GPU, a network card), which CRIU cannot save
  help: save before the device is opened or after it was let go of, or take another backend
failed: the application could not be saved: single threads of python3 (pid 100) are stopped
  help: let the process go on (SIGCONT) or detach the debugger, and save again
");
}

#[test]
fn terminals_sessions_and_tracers() {
    let lines = "Error (criu/tty.c:890): tty: Can't setup uid 65534 gid 5 on 0x3: Invalid argument
        Error (criu/tty.c:1): tty: Found dangling tty with sid 7 pgid 7 (pts) on peer fd 0.
        Error (criu/cr-dump.c:1): The root process 100 is not a session leader. Consider using --shell-job option
        Error (criu/pstree.c:1): A session leader of 101(1) is outside of its pid namespace
        Error (criu/seize.c:1): Unable to detach from 101: No such process";
    insta::assert_snapshot!(all(During::Capture, lines), @"
unsupported: the application could not be saved: python3 (pid 100) uses a terminal of outside the container, which CRIU cannot save
  help: start the instance without a terminal: its standard streams are files then
unsupported: the application could not be saved: python3 (pid 100) uses a terminal of outside the container, which CRIU cannot save
  help: start the instance without a terminal: its standard streams are files then
failed: the application could not be saved: python3 (pid 100) belongs to a session whose leader is not among the application's processes
  help: let the application's first process wait for its children, or start what leaves it with `setsid`
failed: the application could not be saved: worker (pid 101) belongs to a session whose leader is not among the application's processes
  help: let the application's first process wait for its children, or start what leaves it with `setsid`
failed: the application could not be saved: worker (pid 101) is being traced (gdb, strace)
  help: end the tracer, and save again
");
}

#[test]
fn what_a_restart_misses() {
    let lines = "Error (criu/cr-restore.c:1): Can't fork for 100: File exists
        Error (criu/cr-restore.c:1): Can't fork for 100: Operation not permitted
        100: Error (criu/files-reg.c:2187): File usr/bin/python3 has bad size 12 (expect 34)
        100: Error (criu/files-reg.c:2187): File /lib/x.so has bad build-ID
        100: Error (criu/files-reg.c:2187): Can't open file dev/shm/x on restore: No such file or directory
        100: Error (criu/files-reg.c:2187): Can't open file data/x on restore: Permission denied
        Error (criu/cpu.c:1): cpu: CPU capabilities do not match run time
        Error (criu/image.c:1): Not supported images version 3
        Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)
        Error (criu/protobuf.c:72): Unexpected EOF on core-100.img
        Error (criu/image.c:1): Magic doesn't match for mm-100.img";
    insta::assert_snapshot!(all(During::Restart, lines), @"
failed: the saved state could not be brought back: pid 100 is taken already in the container (is another copy alive?)
  help: restart again; when it happens each time, take an earlier generation
failed: the saved state could not be brought back: pid 100 cannot be chosen: the container has no pid namespace that CRIU may use
  help: `stasis backend check criu` tells whether CRIU works here
failed: the saved state could not be brought back: /usr/bin/python3 has changed since the state was saved: it has 12 bytes instead of 34
  help: put the file back as it was when the state was saved: the same image, the same binds
failed: the saved state could not be brought back: /lib/x.so has changed since the state was saved: it is another build
  help: put the file back as it was when the state was saved: the same image, the same binds
failed: the saved state could not be brought back: /dev/shm/x, which was open when the state was saved, is not there any more
  help: put the file back to its place (an empty one may do for a log), or bind the directory that holds it
failed: the saved state could not be brought back: /data/x, which was open when the state was saved, may not be opened
  help: put the file back to its place (an empty one may do for a log), or bind the directory that holds it
unsupported: the saved state could not be brought back: the processor of this host lacks instructions that the application used where it was saved
  help: restart on a host with the same or a newer processor
unsupported: the saved state could not be brought back: the state was saved by a version of CRIU that this one does not understand
  help: restart with the version that saved it, or a newer one (`prefix` in plugins.toml)
damaged: the saved state could not be brought back: the saved state is incomplete: files of it are missing
  help: bring an earlier generation back
damaged: the saved state could not be brought back: a file of the saved state is damaged or cut short (core-100.img)
  help: bring an earlier generation back
damaged: the saved state could not be brought back: a file of the saved state is damaged or cut short (mm-100.img)
  help: bring an earlier generation back
");
}

#[test]
fn ends_of_criu_itself() {
    let bug = format!("{BEFORE}Error (criu/mem.c:46): BUG at criu/mem.c:46\n");
    let ends = [
        Outcome { code: None, signal: Some(6), ..outcome(During::Capture, &bug) },
        outcome(During::Capture, &bug),
        Outcome { code: None, signal: Some(11), ..outcome(During::Restart, "") },
        Outcome { code: None, signal: Some(9), ..outcome(During::Capture, BEFORE) },
        Outcome { code: None, signal: Some(9), ..outcome(During::Restart, BEFORE) },
        Outcome { code: None, signal: Some(9), timed_out: true, ..outcome(During::Capture, BEFORE) },
        Outcome { code: None, signal: Some(9), timed_out: true, ..outcome(During::Restart, BEFORE) },
        Outcome { code: None, signal: Some(15), ..outcome(During::Restart, BEFORE) },
        outcome(During::Capture, BEFORE),
        Outcome { code: None, ..outcome(During::Capture, "") },
    ];
    let ends = ends.iter().map(|outcome| {
        let error = explain(outcome);
        format!("{}: {error}\n  help: {}", error.kind, error.help.as_deref().unwrap_or_default())
    });
    insta::assert_snapshot!(ends.collect::<Vec<_>>().join("\n"), @"
failed: the application could not be saved: CRIU crashed (signal 6, BUG at criu/mem.c:46)
  help: this is an error of CRIU itself: try a newer version, or take another backend; its log lies with the other logs of this start
failed: the application could not be saved: CRIU crashed (BUG at criu/mem.c:46)
  help: this is an error of CRIU itself: try a newer version, or take another backend; its log lies with the other logs of this start
failed: the saved state could not be brought back: CRIU crashed (signal 11)
  help: this is an error of CRIU itself: try a newer version, or take another backend; its log lies with the other logs of this start
application-ended: the application could not be saved: the container ended while it was being saved, and CRIU with it
  help: look at the application's output for why it ended; an earlier generation can be brought back
failed: the saved state could not be brought back: CRIU was killed, or the container ended meanwhile
  help: see whether the host ran out of memory (`dmesg`), and try again
timed-out: the application could not be saved: CRIU did not finish within the time that it was given
  help: save again when the host and the file system of the checkpoints are less busy; a process that hangs in the kernel (state D, a dead network file system) cannot be saved
timed-out: the saved state could not be brought back: CRIU did not finish within the time that it was given
  help: bring an earlier generation back: with damaged files CRIU may go on for ever; otherwise try again when the host is less busy
failed: the saved state could not be brought back: CRIU was ended by signal 15 and gave no reason
  help: `stasis backend check criu` tells whether CRIU works here; an earlier generation may come back
failed: the application could not be saved: CRIU ended with status 1 and gave no reason
  help: `stasis backend check criu` tells whether CRIU works here; another backend may be able to save this application
failed: the application could not be saved: CRIU gave no reason
  help: `stasis backend check criu` tells whether CRIU works here; another backend may be able to save this application
");
}

#[test]
fn what_is_not_known_is_told_in_criu_s_words() {
    let log = format!(
        "{BEFORE}Error (criu/one.c:1): first\nError (criu/two.c:2): second. Consider using --this option.\n{AFTER_DUMP}"
    );
    let processes = processes();
    let error = explain(&Outcome { processes: &processes, ..outcome(During::Capture, &log) });
    insta::assert_snapshot!(error, @"the application could not be saved: CRIU: second (at python3 (pid 100))");
    insta::assert_snapshot!(error.engine_output.unwrap(), @"
Error (criu/one.c:1): first
Error (criu/two.c:2): second
Error (criu/cr-dump.c:1681): Dump files (pid: 100) failed with -1
Error (criu/cr-dump.c:2111): Dumping FAILED.
");
    // Only consequences: better than nothing.
    let error = explain(&outcome(During::Restart, AFTER_RESTORE));
    insta::assert_snapshot!(error, @"the saved state could not be brought back: CRIU: 100 exited, status=1");
}

#[test]
fn nothing_is_named_that_is_not_known() {
    let tell = |during, line: &str| explain(&outcome(during, line)).to_string();
    let lines = [
        tell(During::Capture, "Error (a.c:1): inet: Connected TCP socket, consider"),
        tell(During::Capture, "Error (a.c:1): Can't lookup mount=24 for fd="),
        tell(During::Capture, "Error (a.c:1): Can't dump ghost file"),
        tell(During::Capture, "Error (a.c:1): Can't dump ghost file x of 99999999999999999999 size"),
        tell(During::Capture, "Error (a.c:1): x of that type ["),
        tell(During::Restart, "Error (a.c:1): Can't bind inet socket"),
        tell(During::Restart, "Error (a.c:1): File  has bad size"),
        tell(During::Restart, "Error (a.c:1): Can't open file"),
    ];
    insta::assert_snapshot!(lines.join("\n"), @"
the application could not be saved: the application has open TCP connections
the application could not be saved: the application holds a file, which lies outside of the container
the application could not be saved: a file was deleted and is still open; it is larger than what is saved of such files
the application could not be saved: /x was deleted and is still open; it is larger than what is saved of such files
the application could not be saved: the application holds a descriptor (unknown), of a kind that CRIU cannot save
the saved state could not be brought back: a port that the application listened on is taken by another program
the saved state could not be brought back: / has changed since the state was saved: it is another build
the saved state could not be brought back: a file, which was open when the state was saved, is not there any more
");
}
