//! A program of many threads that check each other while they are saved and brought back.
//!
//! Argument: the port. GET /check answers "good", or what went wrong first; GET /rounds answers how often each
//! of them went round; any other GET answers a sum, POST n adds n to it.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

static ROUNDS: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
static WRONG: Mutex<Option<String>> = Mutex::new(None);
static SUM: AtomicI64 = AtomicI64::new(0);

thread_local! {
    /// Each thread's own: a restart that confuses their places is noticed.
    static MINE: Cell<u64> = const { Cell::new(0) };
}

fn expect(holds: bool, what: impl FnOnce() -> String) {
    if !holds {
        WRONG.lock().unwrap().get_or_insert_with(what);
    }
}

fn done(kind: usize) {
    ROUNDS[kind].fetch_add(1, SeqCst);
    let known = MINE.get();
    expect(known == 0 || known == kind as u64 + 1, || format!("thread {kind} has what belongs to {known}"));
    MINE.set(kind as u64 + 1);
}

/// Numbers through two channels, with and without room.
fn channels() {
    let (first, middle) = sync_channel::<u64>(0);
    let (second, last) = sync_channel::<u64>(8);
    thread::spawn(move || (0..).try_for_each(|n| first.send(n)));
    thread::spawn(move || middle.iter().try_for_each(|n| second.send(n)));
    for n in 0.. {
        let got = last.recv();
        expect(got == Ok(n), || format!("the channel gave {got:?} instead of {n}"));
        done(0);
        thread::sleep(Duration::from_millis(1));
    }
}

/// A map that grows and shrinks, beside one of the same in a row.
fn maps() {
    const SIZE: u64 = 20;
    let shared = Arc::new(RwLock::new(HashMap::new()));
    for n in 0_u64.. {
        {
            let mut map = shared.write().unwrap();
            (0..SIZE).for_each(|k| drop(map.insert(n * SIZE + k, format!("{}", n + k))));
            map.retain(|key, _| key / SIZE + 20 > n);
        }
        let map = shared.read().unwrap();
        let fine = map.iter().all(|(key, text)| *text == format!("{}", key / SIZE + key % SIZE));
        expect(fine && map.len() as u64 == SIZE * (n + 1).min(20), || format!("the map of round {n}"));
        done(1);
        thread::sleep(Duration::from_millis(2));
    }
}

/// Time never goes backwards, and waiting for it ends.
fn times() {
    let pair = (Mutex::new(()), Condvar::new());
    let mut last = Instant::now();
    loop {
        let guard = pair.0.lock().unwrap();
        let (_guard, waited) = pair.1.wait_timeout(guard, Duration::from_millis(2)).unwrap();
        let now = Instant::now();
        expect(now >= last && waited.timed_out(), || format!("the time went from {last:?} to {now:?}"));
        last = now;
        done(2);
    }
}

/// Lines through a pair of sockets.
fn sockets() {
    let (mut out, lines) = UnixStream::pair().unwrap();
    thread::spawn(move || (0..).try_for_each(|n: u64| writeln!(out, "{n}")));
    for (n, line) in BufReader::new(lines).lines().enumerate() {
        let fine = line.as_ref().is_ok_and(|line| *line == n.to_string());
        expect(fine, || format!("the sockets gave {line:?} instead of {n}"));
        done(3);
        if n % 10 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    expect(false, || "the sockets ended".to_owned());
}

/// A file without a name, of which a part is written and read again, where the last one ended.
fn file() {
    const SIZE: u64 = 100;
    let name = std::env::temp_dir().join(format!("busy-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&name).unwrap();
    std::fs::remove_file(&name).unwrap();
    for n in 0_u64.. {
        let text = format!("{n:>20}");
        let at = file.stream_position().unwrap();
        expect(at == n % SIZE * 20, || format!("the file stands at {at} in round {n}"));
        file.write_all(text.as_bytes()).unwrap();
        let oldest = (n + 1).saturating_sub(SIZE);
        let mut found = [0; 20];
        let read = file.read_exact_at(&mut found, oldest % SIZE * 20);
        let fine = read.is_ok() && found == *format!("{oldest:>20}").as_bytes();
        expect(fine, || format!("the file has lost {oldest} in round {n}"));
        if (n + 1) % SIZE == 0 {
            file.rewind().unwrap();
        }
        done(5);
        thread::sleep(Duration::from_millis(1));
    }
}

/// Threads that come and go.
fn children() {
    loop {
        let all: Vec<_> = (0..4_u64).map(|n| thread::spawn(move || (1..=1000 + n).sum::<u64>())).collect();
        for (n, child) in (0_u64..).zip(all) {
            let sum = child.join().unwrap_or(0);
            expect(sum == (1000 + n) * (1001 + n) / 2, || format!("thread {n} summed up to {sum}"));
        }
        done(4);
        thread::sleep(Duration::from_millis(5));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let (mut request, mut length) = (String::new(), 0);
    lines.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body)?;
    let added = String::from_utf8_lossy(&body).parse().unwrap_or(0);
    let text = match request.split(' ').nth(1) {
        Some("/check") => WRONG.lock().unwrap().clone().unwrap_or_else(|| "good".to_owned()),
        Some("/rounds") => ROUNDS.each_ref().map(|n| n.load(SeqCst).to_string()).join(" "),
        _ => (SUM.fetch_add(added, SeqCst) + added).to_string(),
    };
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

fn main() {
    for work in [channels, maps, times, sockets, children, file] {
        thread::spawn(work);
    }
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    for stream in listener.incoming().flatten() {
        // A client that has gone is no concern of ours.
        let _ = answer(stream);
    }
}
