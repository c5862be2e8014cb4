//! The application's objects by the names under which the user knows them.

use super::log::{Line, Log, between, number_after};
use super::{During, Outcome};
use stasis_plugin_api::survey::SocketInfo;

/// How many objects of a kind are named.
const NAMED: usize = 3;

/// A line that told a cause, together with what is known of the application.
pub(super) struct Seen<'a> {
    outcome: &'a Outcome<'a>,
    /// What the line says.
    pub text: &'a str,
    /// The process that it is about.
    pub pid: Option<i32>,
}

impl<'a> Seen<'a> {
    pub(super) fn new(outcome: &'a Outcome<'a>, log: &Log<'_>, line: &Line<'a>) -> Self {
        Self { outcome, text: line.text, pid: log.pid_after(line) }
    }

    pub(super) fn at_restart(&self) -> bool {
        self.outcome.during == During::Restart
    }

    /// `python3 (pid 100)`.
    pub(super) fn process(&self, pid: i32) -> String {
        match self.outcome.processes.iter().find(|process| process.pid == pid) {
            Some(process) if !process.name.is_empty() => format!("{} (pid {pid})", process.name),
            _ => format!("process {pid}"),
        }
    }

    /// The process that the line is about, or the application.
    pub(super) fn whose(&self) -> String {
        self.pid.map_or_else(|| "the application".to_owned(), |pid| self.process(pid))
    }

    /// Who holds this descriptor.
    pub(super) fn holder(&self, number: i32, target: &str) -> String {
        let holds = |pid: i32| {
            let process = self.outcome.processes.iter().find(|process| process.pid == pid);
            process.is_some_and(|p| p.descriptors.iter().any(|d| d.number == number && d.target == target))
        };
        let found = self.outcome.processes.iter().map(|process| process.pid).find(|pid| holds(*pid));
        found.or(self.pid).map_or_else(|| "the application".to_owned(), |pid| self.process(pid))
    }

    /// The processes with a descriptor or a mapping of that kind: `python3 (pid 100), x (pid 101)`.
    pub(super) fn having(&self, words: &str) -> String {
        let has = self.outcome.processes.iter().filter(|process| {
            process.descriptors.iter().any(|descriptor| descriptor.target.contains(words))
                || process.special_mappings.iter().any(|mapping| mapping.contains(words))
        });
        let names: Vec<String> = has.map(|process| self.process(process.pid)).collect();
        if names.is_empty() { self.whose() } else { some_of(&names) }
    }

    /// What a descriptor is, as the survey saw it.
    pub(super) fn target(&self, number: i32) -> Option<&'a str> {
        let process = self.outcome.processes.iter().find(|process| Some(process.pid) == self.pid)?;
        let descriptor = process.descriptors.iter().find(|descriptor| descriptor.number == number)?;
        Some(&descriptor.target)
    }

    /// The connections that leave the container, each with its process.
    pub(super) fn connections(&self) -> Option<String> {
        let open = |socket: &&SocketInfo| {
            socket.protocol.starts_with("tcp") && socket.state != "listen" && socket.peer_port != 0
        };
        let told = |socket: &SocketInfo| {
            let local = address(&socket.local, socket.local_port);
            let peer = address(&socket.peer, socket.peer_port);
            format!("{}: {local} to {peer}", self.process(socket.pid))
        };
        let all: Vec<&SocketInfo> = self.outcome.sockets.iter().filter(open).collect();
        let outside: Vec<String> = all.iter().filter(|s| !s.peer_inside).map(|s| told(s)).collect();
        let inside: Vec<String> = all.iter().map(|s| told(s)).collect();
        let told = if outside.is_empty() { inside } else { outside };
        if told.is_empty() { None } else { Some(some_of(&told)) }
    }

    /// The ports that are listened on, or that a UDP socket is bound to.
    pub(super) fn ports(&self) -> Option<String> {
        let bound = self.outcome.sockets.iter().filter(|socket| {
            socket.local_port != 0 && (socket.state == "listen" || socket.protocol.starts_with("udp"))
        });
        let mut ports: Vec<String> = bound
            .map(|socket| {
                let protocol = socket.protocol.trim_end_matches('6').to_uppercase();
                format!("{protocol} port {} of {}", socket.local_port, self.process(socket.pid))
            })
            .collect();
        ports.sort();
        ports.dedup();
        match ports.len() {
            0 => None,
            1 => ports.pop(),
            _ => Some(format!("one of {}", some_of(&ports))),
        }
    }
}

/// `10.0.0.1:80`, `[::1]:80`.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// CRIU tells paths below the root directory without the first slash.
pub(super) fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{}", path.trim_start_matches("./")) }
}

/// A descriptor and its path: `Can't lookup mount=24 for fd=10 path=/x`.
pub(super) fn descriptor_and_path(text: &str) -> (Option<i32>, &str) {
    (number_after(text, "fd="), between(text, "path=", "").unwrap_or_default())
}

/// `File usr/bin/x has bad size 1 (expect 2)`: the path and what is said of it.
pub(super) fn file_and_words(text: &str) -> Option<(String, &str)> {
    let (path, words) = between(text, "File ", "")?.split_once(" has bad ")?;
    Some((absolute(path), words))
}
