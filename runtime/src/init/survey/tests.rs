use super::*;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::symlink;

#[test]
fn stat_with_a_hostile_name() {
    let rest = "S 7 1 1 0 -1 4194560 2 0 0 0 0 0 0 0 20 0 3 0 100 0 0 0";
    let parsed = parse::stat(&format!("12 (a) R 1 (b\n) {rest}\n")).unwrap();
    assert_eq!(parsed, Stat { name: "a) R 1 (b\n".into(), state: "S".into(), parent: 7, threads: 3 });
    for bad in ["", "12", "12 (a", "12 (a)", "12 (a) S", "12 (a) S x", ")(", "12 (a) S 7 1 1"] {
        assert_eq!(parse::stat(bad), None, "{bad}");
    }
}

#[test]
fn small_texts() {
    assert_eq!(parse::resident_pages("100 42 7 1 0 3 0\n"), Some(42));
    assert_eq!(parse::resident_pages("100"), None);
    assert_eq!(parse::ran("1524187 20417 3\n"), Some(1_524_187));
    assert_eq!(parse::ran(""), None);
    assert_eq!(parse::socket_inode("socket:[42]"), Some(42));
    assert_eq!(parse::socket_inode("pipe:[42]"), None);
    assert_eq!(parse::socket_inode("/tmp/socket:[42]"), None);
}

#[test]
fn mappings() {
    let object = |text: &str| {
        let line = format!("7f0000000000-7f0000001000 rw-s 00000000 00:05 1234                       {text}");
        parse::special_mapping(&line).map(str::to_owned)
    };
    for special in [
        "/memfd:x y (deleted)",
        "/dev/zero (deleted)",
        "/SYSV00000000 (deleted)",
        "anon_inode:[io_uring]",
        "anon_inode:[perf_event]",
        "/dev/dri/card0",
        "/dev/nvidiactl",
        "/drm mm object (deleted)",
        "/[aio] (deleted)",
        "/x (deleted)",
        "/dev/shm/x (deleted)",
    ] {
        assert_eq!(object(special).as_deref(), Some(special));
    }
    for plain in [
        "",
        "[heap]",
        "[stack]",
        "[vdso]",
        "[anon:x]",
        "/usr/lib/libc.so.6",
        "/dev/shm/x",
        "/dev/hugepages/x",
        "/dev/zero",
    ] {
        assert_eq!(object(plain), None, "{plain}");
    }
    assert_eq!(parse::special_mapping("7f00-7f01 rw-p 00000000 00:00 0"), None);
    assert_eq!(parse::special_mapping(""), None);
}

/// A field as the kernel prints an address on this machine.
fn hex(address: &str) -> String {
    let address: std::net::SocketAddr = address.parse().unwrap();
    let octets = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks(4).map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())));
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

fn entry(local: &str, peer: &str, state: u8, inode: u64) -> String {
    let (local, peer) = (hex(local), hex(peer));
    format!(
        "   0: {local} {peer} {state:02X} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0"
    )
}

#[test]
fn socket_lines() {
    if cfg!(target_endian = "little") {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 42 1 0";
        let socket = net::socket(line).unwrap();
        assert_eq!(socket.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((socket.state, socket.inode), (10, 42));
        let line = line.replace("0100007F:", "00000000000000000000000001000000:");
        assert_eq!(net::socket(&line).unwrap().local, "[::1]:8080".parse().unwrap());
    }
    assert_eq!(net::socket(&entry("1.2.3.4:5", "[::1]:6", 1, 7)).unwrap().peer, "[::1]:6".parse().unwrap());
    let good = entry("1.2.3.4:5", "6.7.8.9:10", 1, 7);
    for bad in [
        "",
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        &good.replace("0005", "10005"),
        &good.replace(':', " "),
        &good[..good.len() - 20],
        "0: ß00007Fx:1F90 0:0 0A 0 0 0 0 0 1",
        "0: 0100007F00:1F90 00000000:0000 0A 0 0 0 0 0 1",
    ] {
        assert_eq!(net::socket(bad), None, "{bad}");
    }
}

#[test]
fn the_kernel_s_list_says_what_the_tables_say() {
    let four = TcpListener::bind("127.0.0.1:0").unwrap();
    let six = TcpListener::bind("[::]:0").unwrap();
    let client = TcpStream::connect(("127.0.0.1", six.local_addr().unwrap().port())).unwrap();
    let (server, _) = six.accept().unwrap();
    // Other tests run beside this one, and their sockets come and go.
    let inode = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
    let own = [four.as_fd(), six.as_fd(), client.as_fd(), server.as_fd()].map(inode);
    for (family, name) in [(AddressFamily::Inet, "tcp"), (AddressFamily::Inet6, "tcp6")] {
        let text = fs::read_to_string(Path::new("/proc/net").join(name)).unwrap();
        let sorted = |all: Vec<net::Socket>| {
            let mut own: Vec<_> = all.into_iter().filter(|s| own.contains(&s.inode)).collect();
            own.sort_by_key(|s| s.inode);
            own
        };
        let told = sorted(text.lines().filter_map(net::socket).collect());
        assert_eq!(told.len(), 2, "{name}");
        if let Some(listed) = diag::tcp(family) {
            assert_eq!(sorted(listed), told, "{name}");
        } else {
            println!("skipped: this kernel lists no sockets over netlink");
        }
    }
    assert_eq!(diag::parse(&[2; 71]), None);
    assert_eq!(diag::parse(&[99; 72]), None);
}

/// A `/proc` with pid 1, a server, its helper, a client and somebody to skip.
fn container() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let process = |pid: i32, name: &str, parent: i32, fds: &[(i32, &str)]| {
        let at = dir.path().join(pid.to_string());
        fs::create_dir_all(at.join("fd")).unwrap();
        let rest = "1 1 0 -1 4194560 2 0 0 0 0 0 0 0 20 0 2 0 100 0 0";
        fs::write(at.join("stat"), format!("{pid} ({name}) S {parent} {rest}\n")).unwrap();
        fs::write(at.join("statm"), "10 3 1 1 0 1 0\n").unwrap();
        symlink(format!("/bin/{name}"), at.join("exe")).unwrap();
        for (number, target) in fds {
            symlink(target, at.join("fd").join(number.to_string())).unwrap();
        }
    };
    process(1, "init", 0, &[(3, "socket:[99]")]);
    process(10, "server", 1, &[(0, "/dev/null"), (3, "socket:[1]"), (4, "socket:[2]"), (5, "pipe:[7]")]);
    process(9, "helper", 10, &[(3, "socket:[1]"), (7, "socket:[6]")]);
    process(11, "client", 1, &[(3, "socket:[3]"), (4, "socket:[4]"), (5, "socket:[5]"), (6, "socket:[77]")]);
    process(12, "skipped", 1, &[(3, "socket:[98]")]);
    let mapping = "7f00-7f01 rw-s 00000000 00:05 1 /memfd:a (deleted)\n";
    fs::write(dir.path().join("10/maps"), mapping.repeat(3) + "7f00-7f01 rw-p 0 0 0 [heap]\n").unwrap();
    // One that has just gone, and what else lies in /proc.
    fs::create_dir_all(dir.path().join("13")).unwrap();
    fs::create_dir_all(dir.path().join("net")).unwrap();
    fs::create_dir_all(dir.path().join("sys")).unwrap();
    let tcp = [
        "  sl  local_address".to_owned(),
        entry("127.0.0.1:4000", "127.0.0.1:80", 1, 3),
        entry("10.0.0.1:4001", "10.0.0.9:443", 8, 4),
        entry("127.0.0.1:9", "0.0.0.0:0", 10, 99),
        entry("127.0.0.1:8", "0.0.0.0:0", 10, 98),
        entry("127.0.0.1:4000", "127.0.0.1:81", 6, 0),
    ];
    let tcp6 =
        [entry("[::]:80", "[::]:0", 10, 1), entry("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:4000", 1, 2)];
    fs::write(dir.path().join("net/tcp"), tcp.join("\n")).unwrap();
    fs::write(dir.path().join("net/tcp6"), tcp6.join("\n")).unwrap();
    let udp = [entry("0.0.0.0:53", "0.0.0.0:0", 7, 6), entry("10.0.0.1:5353", "10.0.0.9:53", 1, 5)];
    fs::write(dir.path().join("net/udp"), udp.join("\n")).unwrap();
    dir
}

#[test]
fn a_whole_container() {
    let proc = container();
    let seen = survey(proc.path(), &[12], &[]);
    let processes: Vec<(i32, i32, &str, &str)> =
        seen.processes.iter().map(|p| (p.pid, p.parent, p.name.as_str(), p.exe.as_str())).collect();
    assert_eq!(
        processes,
        [
            (9, 10, "helper", "/bin/helper"),
            (10, 1, "server", "/bin/server"),
            (11, 1, "client", "/bin/client"),
        ]
    );
    let server = &seen.processes[1];
    assert_eq!((server.threads, server.state.as_str()), (2, "S"));
    assert_eq!(server.resident, 3 * page_size());
    assert_eq!(server.special_mappings, ["/memfd:a (deleted)"]);
    assert_eq!(server.descriptors[0].device, "char:1:3");
    let targets: Vec<&str> = server.descriptors.iter().map(|d| d.target.as_str()).collect();
    assert_eq!(targets, ["/dev/null", "socket:[1]", "socket:[2]", "pipe:[7]"]);

    let sockets: Vec<String> = seen
        .sockets
        .iter()
        .map(|s| {
            let inside = if s.peer_inside { " inside" } else { "" };
            format!(
                "{} {}:{} {}:{} {} by {}{inside}",
                s.protocol, s.local, s.local_port, s.peer, s.peer_port, s.state, s.pid
            )
        })
        .collect();
    insta::assert_snapshot!(sockets.join("\n"), @"
    tcp 127.0.0.1:4000 127.0.0.1:80 established by 11 inside
    tcp 10.0.0.1:4001 10.0.0.9:443 8 by 11
    tcp6 :::80 :::0 listen by 9
    tcp6 ::ffff:127.0.0.1:80 ::ffff:127.0.0.1:4000 established by 10 inside
    udp 0.0.0.0:53 0.0.0.0:0 7 by 9
    udp 10.0.0.1:5353 10.0.0.9:53 established by 11
    ");
    let port = |protocol: &str, address: &str, port| (protocol.to_owned(), address.to_owned(), port);
    assert_eq!(listening(&seen), [port("tcp6", "::", 80), port("udp", "0.0.0.0", 53)]);
    assert_eq!(survey(&proc.path().join("nothing"), &[], &[]), Survey::default());
}

#[test]
fn bounded() {
    let proc = tempfile::tempdir().unwrap();
    let fd = proc.path().join("5/fd");
    fs::create_dir_all(&fd).unwrap();
    fs::write(proc.path().join("5/stat"), format!("5 (x) S 1 {}", "1 ".repeat(40))).unwrap();
    for number in 0..10 {
        symlink("pipe:[1]", fd.join(number.to_string())).unwrap();
    }
    let maps: String =
        (0..MAX_MAPPINGS + 10).map(|n| format!("7f00-7f01 rw-s 0 00:05 1 /memfd:{n} (deleted)\n")).collect();
    fs::write(proc.path().join("5/maps"), maps).unwrap();
    let seen = survey(proc.path(), &[], &[]);
    assert_eq!(seen.processes[0].descriptors.len(), 10);
    assert_eq!(descriptors(&fd, 7).len(), 7);
    assert_eq!(seen.processes[0].special_mappings.len(), MAX_MAPPINGS);
}

#[test]
fn this_very_process() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (server, _) = listener.accept().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let null = File::open("/dev/null").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();

    let me = std::process::id() as i32;
    let seen = survey(Path::new("/proc"), &[], &[]);
    let process = seen.processes.iter().find(|p| p.pid == me).unwrap();
    assert_eq!(process.parent, nix::unistd::getppid().as_raw());
    assert_eq!(Path::new(&process.exe), std::env::current_exe().unwrap());
    assert!(process.resident > 0 && process.threads >= 1);
    assert!(process.ran > 0, "this kernel does not tell how long a process ran");
    let descriptor = |fd: RawFd| process.descriptors.iter().find(|d| d.number == fd).unwrap();
    assert_eq!(descriptor(null.as_raw_fd()).device, "char:1:3");
    let plain = descriptor(file.as_file().as_raw_fd());
    assert_eq!((Path::new(&plain.target), plain.device.as_str()), (file.path(), ""));

    let mine = |local: u16, peer: u16| {
        let found = |s: &&SocketInfo| s.pid == me && s.local_port == local && s.peer_port == peer;
        seen.sockets.iter().find(found).unwrap()
    };
    let client_port = client.local_addr().unwrap().port();
    assert_eq!(mine(port, 0).state, "listen");
    let end = mine(client_port, port);
    assert_eq!((end.state.as_str(), end.peer_inside, end.local.as_str()), ("established", true, "127.0.0.1"));
    assert!(mine(port, client_port).peer_inside);
    let open = listening(&seen);
    assert!(open.contains(&("tcp".into(), "127.0.0.1".into(), port)));
    assert!(open.contains(&("udp".into(), "127.0.0.1".into(), udp.local_addr().unwrap().port())));
    assert!(!open.iter().any(|(protocol, _, p)| protocol == "tcp" && *p == client_port));

    drop(server);
    assert!(!survey(Path::new("/proc"), &[me], &[]).processes.iter().any(|p| p.pid == me));
}

#[test]
fn commands_beside_the_application_are_left_out_with_all_that_they_started() {
    let process = |pid, parent| ProcessInfo { pid, parent, ..ProcessInfo::default() };
    // 20 came from outside and has a grandchild with a lower number; 100 is the application.
    let mut all = vec![process(19, 21), process(20, 1), process(21, 20), process(100, 1), process(101, 100)];
    leave_out(&mut all, &[20]);
    assert_eq!(all.iter().map(|p| p.pid).collect::<Vec<_>>(), [100, 101]);
    leave_out(&mut all, &[]);
    assert_eq!(all.len(), 2);
}
