//! What cannot be saved is refused by name, and the application runs on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
mod engine;

use engine::{dump, engine, inside, refusal, soon, start};
use std::fs;
use std::path::{Path, PathBuf};

/// A python script that ends up waiting, and what is said of it. `P` stands for its pid, `N` for other numbers.
const SCRIPTS: [(&str, &str); 40] = [
    (
        "import socket\n\
         l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); a, _ = l.accept()",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: it is a TCP connection to 127.0.0.1:N; \
         the other side would not know of the restart; \
         descriptor N of process P: socket:[N] cannot be saved either: it is a TCP connection to 127.0.0.1:N; \
         the other side would not know of the restart",
    ),
    (
        "import socket\n\
         l = socket.create_server(('127.0.0.1', 0)); c = socket.socket(); c.setblocking(False)\n\
         try: c.connect(l.getsockname())\n\
         except BlockingIOError: pass\n\
         import os; os.close(c.detach())",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: N connections wait to be accepted",
    ),
    (
        "import socket, array\n\
         a, b = socket.socketpair(); a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0]))])",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         descriptors or credentials that were sent wait in it",
    ),
    (
        "import socket\n\
         to, by = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]\n\
         to.bind('to'); by.bind('by'); by.sendto(b'x', 'to')",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         a message waits in it whose sender's name would be lost",
    ),
    (
        "import socket\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); u.sendto(b'', u.getsockname())",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         a message waits in it that nobody has read",
    ),
    (
        "import socket, struct\n\
         n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); n.bind((0, 0))\n\
         n.send(struct.pack('=IHHIIB15x', 32, 18, 0x301, 1, 0, 0))",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         a message waits in it that nobody has read",
    ),
    (
        "import socket\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0))\n\
         c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.connect(u.getsockname()); u.close(); c.send(b'x')",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         an error waits in it that nobody has been told",
    ),
    (
        "import socket\n\
         l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); a, _ = l.accept()\n\
         a.send(b'last'); a.close(); c.shutdown(socket.SHUT_WR)",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         its connection has ended, and what is left of it would be lost",
    ),
    (
        "import socket\n\
         l = socket.create_server(('127.0.0.1', 0)); at = l.getsockname(); l.close()\n\
         c = socket.socket(); c.setblocking(False); c.connect_ex(at)",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         an error waits in it that nobody has been told",
    ),
    (
        "import socket, struct\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         u.setsockopt(0, 35, struct.pack('4s4si', socket.inet_aton('224.1.2.3'), bytes(4), 1))",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         it is a member of the multicast group 224.1.2.3",
    ),
    (
        "import socket, struct\n\
         u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
         u.setsockopt(41, 20, socket.inet_pton(socket.AF_INET6, 'ff02::77') + struct.pack('i', 1))",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         it is a member of the multicast group ff02::77",
    ),
    (
        "import socket\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         u.setsockopt(0, 32, socket.inet_aton('127.0.0.1'))",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: it is bound to one network interface",
    ),
    (
        "import ctypes, os\n\
         os.mkdir('watched'); c = ctypes.CDLL(None); f = c.inotify_init(); c.inotify_add_watch(f, b'watched', 0x100)\n\
         open('watched/made', 'w').close(); os.unlink('watched/made')",
        "unsupported: descriptor N of process P: anon_inode:inotify cannot be saved: \
         events wait in it that nobody has read",
    ),
    (
        "import ctypes, os\n\
         held = open('held', 'w'); c = ctypes.CDLL(None); f = c.inotify_init(); c.inotify_add_watch(f, b'held', 2)\n\
         os.unlink('held')",
        "unsupported: descriptor N of process P: anon_inode:inotify cannot be saved: \
         no name is found for what its watch N is on, inode N of device N:N",
    ),
    (
        "import ctypes; f = ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(256)); assert f >= 0",
        "unsupported: descriptor N of process P: anon_inode:[io_uring] cannot be saved: \
         the engine does not know descriptors of the kind io_uring",
    ),
    (
        "import ctypes; f = ctypes.CDLL(None).syscall(323, 1); assert f >= 0",
        "unsupported: descriptor N of process P: anon_inode:[userfaultfd] cannot be saved: \
         the engine does not know descriptors of the kind userfaultfd",
    ),
    (
        "import os; f = os.open('first', os.O_RDWR | os.O_CREAT); os.link('first', 'second'); os.unlink('first')",
        "unsupported: descriptor N of process P: HERE/first (deleted) cannot be saved: \
         the name under which it was opened is gone, and it has another one",
    ),
    (
        "import os; f = os.open('.', os.O_TMPFILE | os.O_RDWR); os.link(f'/proc/self/fd/{f}', 'given', src_dir_fd=f)",
        "unsupported: descriptor N of process P: HERE/#N (deleted) cannot be saved: \
         the name under which it was opened is gone, and it has another one",
    ),
    (
        "f = open('/proc/self/stat')",
        "unsupported: descriptor N of process P: /proc/P/stat cannot be saved: files of /proc describe what runs now",
    ),
    (
        "import socket\n\
         l = socket.socket(socket.AF_UNIX); l.bind('unix'); l.listen()\n\
         c = socket.socket(socket.AF_UNIX); c.connect('unix')",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: N connections wait to be accepted",
    ),
    (
        "import os, socket\n\
         l = socket.socket(socket.AF_UNIX); l.bind(os.getcwd() + '/taken'); l.listen(); os.unlink('taken')\n\
         n = socket.socket(socket.AF_UNIX); n.bind(os.getcwd() + '/taken'); n.listen()",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         something else lies under its name HERE/taken now",
    ),
    (
        "import os, socket\n\
         l = socket.socket(socket.AF_UNIX); l.bind('left'); l.listen(); os.chdir('/')",
        "unsupported: descriptor N of process P: socket:[N] cannot be saved: \
         its name left leads to it from no working directory any more",
    ),
    (
        "import ctypes\n\
         c = ctypes.CDLL(None); c.shmat.restype = ctypes.c_void_p\n\
         i = c.shmget(0, 4096, 0o1600); assert c.shmat(i, None, 0) > 0; c.shmctl(i, 0, None)",
        "unsupported: System V shared memory cannot be saved: they belong to no process and would be lost; \
         mapping N of process P: /SYSVN (deleted) cannot be saved either: shared memory of System V",
    ),
    (
        "import os\n\
         r, w = os.pipe()\n\
         if os.fork() == 0:\n\
         \x20   os.setsid()\n\
         \x20   if os.fork() == 0:\n        import time; time.sleep(1000)\n\
         \x20   os._exit(0)\n\
         os.wait()",
        "unsupported: python3 (pid N) cannot be saved: its parent ended, or it was started beside the application: \
         only the application's own tree is saved",
    ),
    (
        "import ctypes, struct\n\
         c = ctypes.CDLL(None); c.prctl(38, 1, 0, 0, 0)\n\
         code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))\n\
         p = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 1, ctypes.addressof(code)))\n\
         assert c.prctl(22, 2, p) == 0",
        "unsupported: python3 (pid P) cannot be saved: \
         it runs under a seccomp filter, which cannot be read and would be lost",
    ),
    (
        "import os, pty\n\
         m, s = pty.openpty(); os.write(s, b'text')",
        "unsupported: descriptor N of process P: /dev/ptmx cannot be saved: \
         text waits in the terminal that nobody has read",
    ),
    (
        "import ctypes, threading, time\n\
         def apart():\n    assert ctypes.CDLL(None).unshare(0x400) == 0; held.release(); time.sleep(1000)\n\
         held = threading.Lock(); held.acquire(); threading.Thread(target=apart, daemon=True).start(); held.acquire()",
        "unsupported: thread N of python3 (pid P) cannot be saved: it has descriptors of its own",
    ),
    (
        "import ctypes, threading, time\n\
         def apart():\n    assert ctypes.CDLL(None).unshare(0x200) == 0; held.release(); time.sleep(1000)\n\
         held = threading.Lock(); held.acquire(); threading.Thread(target=apart, daemon=True).start(); held.acquire()",
        "unsupported: thread N of python3 (pid P) cannot be saved: it has a working directory of its own",
    ),
    (
        "import ctypes, threading, time\n\
         def apart():\n    assert ctypes.CDLL(None).unshare(0x40000000) == 0; held.release(); time.sleep(1000)\n\
         held = threading.Lock(); held.acquire(); threading.Thread(target=apart, daemon=True).start(); held.acquire()",
        "unsupported: thread N of python3 (pid P) cannot be saved: it has a net namespace of its own",
    ),
    (
        // Below 4 GiB: code of 32 bits that waits for a signal for ever, and a far return to it.
        "import ctypes, threading, time\n\
         c = ctypes.CDLL(None); c.mmap.restype = ctypes.c_void_p; a = c.mmap(None, 8192, 7, 0x62, -1, 0)\n\
         ctypes.memmove(a, bytes.fromhex('b81d000000cd80ebf7'), 9)\n\
         ctypes.memmove(a + 4096, bytes.fromhex('6a2368') + a.to_bytes(4, 'little') + bytes.fromhex('48cb'), 9)\n\
         threading.Thread(target=ctypes.CFUNCTYPE(None)(a + 4096), daemon=True).start(); time.sleep(0.2)",
        "unsupported: thread N of process P cannot be saved: it is in code of N bits",
    ),
    (
        "import ctypes\n\
         switch = ctypes.create_string_buffer(1); none = ctypes.c_ulong(0)\n\
         assert ctypes.CDLL(None).prctl(59, 1, none, none, switch) == 0",
        "unsupported: thread P of process P cannot be saved: \
         its system calls are turned into signals (PR_SET_SYSCALL_USER_DISPATCH)",
    ),
    (
        "import ctypes; assert ctypes.CDLL(None).unshare(0x04000000) == 0",
        "unsupported: python3 (pid P) cannot be saved: it has a uts namespace of its own",
    ),
    (
        "import os; os.mkdir('root'); os.chroot('root')",
        "unsupported: python3 (pid P) cannot be saved: its root directory is another one",
    ),
    (
        "import ctypes, os, threading, time\n\
         def child():\n    while ') Z' not in open(f'/proc/{os.getpid()}/stat').read(): time.sleep(0.01)\n    \
             print('ready', flush=True); time.sleep(1000)\n\
         threading.Thread(target=child).start()\n\
         ctypes.CDLL(None).syscall(60, 0)",
        "unsupported: python3 (pid P) cannot be saved: its main thread has ended while others run on",
    ),
    (
        "import os, tempfile; d = tempfile.mkdtemp(dir='.'); os.rename(d, 'was'); os.chdir('was'); os.rmdir('../was')",
        "unsupported: python3 (pid P) cannot be saved: its working directory HERE/was (deleted) is gone or was replaced",
    ),
    (
        "import ctypes; f = ctypes.CDLL(None).mq_open(b'/queue', 0o102, 0o600, None); assert f >= 0",
        "unsupported: descriptor N of process P: /queue cannot be saved: \
         it is a message queue, whose messages would be lost",
    ),
    (
        "import ctypes; i = ctypes.CDLL(None).semget(0, 1, 0o1600); assert i >= 0\n\
         import atexit, signal, sys; atexit.register(lambda: ctypes.CDLL(None).semctl(i, 0, 0)); signal.signal(15, lambda *a: sys.exit())",
        "unsupported: System V semaphores cannot be saved: they belong to no process and would be lost",
    ),
    (
        "import os; f = os.memfd_create('huge', 4)",
        "unsupported: descriptor N of process P: /memfd:huge (deleted) cannot be saved: \
         it consists of huge pages of hugetlbfs",
    ),
    (
        "import os, signal\n\
         a = os.fork()\n\
         if a == 0: signal.pause()\n\
         os.setpgid(a, a); b = os.fork()\n\
         if b == 0: signal.pause()\n\
         os.setpgid(b, a); os.setpgid(a, os.getpgrp())",
        "unsupported: process N cannot be rebuilt: the leader of its process group N has left it",
    ),
    (
        "import os\n\
         p = os.pidfd_open(1)",
        "unsupported: descriptor N of process P: anon_inode:[pidfd] cannot be saved: \
         the process that it stands for has ended or is no part of the application",
    ),
];

/// Numbers that differ from run to run become N.
fn plain(text: &str, pid: u32) -> String {
    let here = std::env::current_dir().unwrap();
    let text = text.replace(here.to_str().unwrap(), "HERE").replace("127.0.0.1", "LOOPBACK");
    let text = text
        .replace("/SYSV00000000", "/SYSVN")
        .replace("224.1.2.3", "GROUPFOUR")
        .replace("ff02::77", "GROUPSIX");
    let mut plain = String::new();
    let mut word = String::new();
    for letter in text.chars().chain(['\n']) {
        if letter.is_ascii_alphanumeric() {
            word.push(letter);
            continue;
        }
        let number = word.bytes().next().is_some_and(|b| b.is_ascii_digit()) || word.len() == 12;
        let hex = number && word.bytes().all(|b| b.is_ascii_hexdigit());
        match word.as_str() {
            own if own == pid.to_string() => plain.push('P'),
            _ if hex => plain.push('N'),
            other => plain.push_str(other),
        }
        word.clear();
        plain.push(letter);
    }
    let plain = plain.trim_end().replace("LOOPBACK", "127.0.0.1");
    plain.replace("GROUPFOUR", "224.1.2.3").replace("GROUPSIX", "ff02::77")
}

fn here(name: &str) -> PathBuf {
    std::env::current_dir().unwrap().join(name)
}

#[test]
fn everything_else_is_refused_by_name() {
    inside("everything_else_is_refused_by_name", refusals_inside);
}

/// Whether the kernel is one of 6.4 or later.
fn redirection_is_told() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 4)
}

fn refusals_inside() {
    for (number, (script, expected)) in SCRIPTS.iter().enumerate() {
        if script.contains("prctl(59") && !redirection_is_told() {
            println!("skipped: before Linux 6.4 nothing tells of system calls that become signals");
            continue;
        }
        let (path, output) = (here(&format!("{number}.py")), here(&format!("{number}.out")));
        fs::write(
            &path,
            format!("{script}\nprint('ready', flush=True)\nimport time\nwhile True: time.sleep(0.01)\n"),
        )
        .unwrap();
        let mut subject = start(Path::new("/usr/bin/python3"), &[path.to_str().unwrap()], &output);
        soon("the script is ready", || {
            let said = fs::read_to_string(&output).unwrap();
            assert!(subject.running(), "{script}\n{said}");
            said.contains("ready")
        });
        for mode in ["--fork", "--plain"] {
            let out = dump(subject.pid(), &here("image"), &[mode]);
            assert!(!out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stdout));
            assert_eq!(plain(&refusal(&out), subject.pid()), *expected, "{script}");
            assert!(!here("image/core.json").exists());
        }
        assert!(subject.running());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(subject.pid()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        subject.0.wait().unwrap();
        end_children();
    }
}

/// What the scripts started and left is ended; we are their init.
fn end_children() {
    let own = std::process::id();
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter(|pid| *pid > 1 && u32::try_from(*pid).unwrap() != own) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

#[test]
fn a_pipe_to_the_outside_is_told_before_anything_is_stopped() {
    inside("a_pipe_to_the_outside_is_told_before_anything_is_stopped", pipe_inside);
}

fn pipe_inside() {
    let mut child =
        std::process::Command::new("sleep").arg("1000").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    let out = engine(&["examine", "--pid", &pid]).output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let pipe = findings.as_array().unwrap().iter().find(|finding| finding["kind"] == "pipe").unwrap();
    assert_eq!(pipe["why"], "the other end of the pipe is held outside of the application");
    assert_eq!(pipe["severity"], "fatal");
    child.kill().unwrap();
    child.wait().unwrap();
}
