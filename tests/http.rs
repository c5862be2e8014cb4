//! As much of HTTP as the subjects speak.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long a subject may take to answer, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The body that a GET answers. Waits until the server is there: a start says "started" when the program can be
/// saved, which may be before it listens.
pub(crate) fn get(port: u16, path: &str) -> io::Result<String> {
    ask(port, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

/// The body that a POST answers.
pub(crate) fn post(port: u16, text: &str) -> io::Result<String> {
    ask(port, &format!("POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n{text}", text.len()))
}

/// A port that nothing listens on, and that no other test gets. It lies below those that the kernel gives to clients,
/// so that nobody takes it while a container is stopped.
pub(crate) fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 4000).unwrap_or_default();
    for _ in 0..1000 {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 8000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::other("no port is free"))
}

/// Whether a connection to this port has ended so lately that the kernel still keeps its address.
pub(crate) fn in_time_wait(port: u16) -> io::Result<bool> {
    let local = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    Ok(table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|address| address.ends_with(&local)) && words.nth(1) == Some("06")
    }))
}

fn ask(port: u16, request: &str) -> io::Result<String> {
    let mut stream = connect(port)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::other(format!("not an HTTP answer: {answer:?}")))
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
}
