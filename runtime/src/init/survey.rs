//! A look at everything that runs in the container, by pid 1 in its own `/proc`. Nothing is stopped for it, so
//! whatever vanishes meanwhile is left out. Reads; changes and judges nothing.

mod diag;
mod net;
mod parse;
#[cfg(test)]
mod tests;

use nix::sys::socket::AddressFamily;
use parse::Stat;
use stasis_plugin_api::survey::{DescriptorInfo, ProcessInfo, SocketInfo, Survey};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The most descriptors told of one process: what a hostile application can make us hold.
const MAX_DESCRIPTORS: usize = 4096;
/// The most special mappings told of one process.
const MAX_MAPPINGS: usize = 256;
/// The longest of the small files that is read.
const MAX_SMALL: u64 = 64 << 10;

/// Everything that `proc` shows but pid 1, the processes in `skip`, and those in `beside` with all that they started.
#[must_use]
pub fn survey(proc: &Path, skip: &[i32], beside: &[i32]) -> Survey {
    let mut pids: Vec<i32> = match fs::read_dir(proc) {
        Ok(entries) => entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect(),
        Err(_) => Vec::new(),
    };
    pids.retain(|pid| *pid > 1 && !skip.contains(pid));
    pids.sort_unstable();
    let mut processes: Vec<ProcessInfo> = pids.into_iter().filter_map(|pid| process(proc, pid)).collect();
    leave_out(&mut processes, beside);
    let sockets = sockets(proc, &processes);
    let beside_busy = skip.iter().any(|pid| busy(proc, *pid));
    Survey { processes, sockets, tmpfs: Vec::new(), beside: skip.to_vec(), beside_busy }
}

fn busy(proc: &Path, pid: i32) -> bool {
    let stat = small(&proc.join(pid.to_string()).join("stat")).and_then(|text| parse::stat(&text));
    stat.is_some_and(|stat| is_busy(&stat.state))
}

/// Whether a process of this state runs, or waits for a processor or a disk.
#[must_use]
pub fn is_busy(state: &str) -> bool {
    matches!(state, "R" | "D")
}

/// Commands of the user's beside the application are no part of it, and neither is what they start.
fn leave_out(processes: &mut Vec<ProcessInfo>, beside: &[i32]) {
    let mut out: Vec<i32> = beside.to_vec();
    let mut known = 0;
    while known < out.len() {
        known = out.len();
        for process in processes.iter().filter(|p| !out.contains(&p.pid)).collect::<Vec<_>>() {
            if out.contains(&process.parent) {
                out.push(process.pid);
            }
        }
    }
    processes.retain(|p| !out.contains(&p.pid));
}

/// The ports on which others can reach the container: protocol, address, port, each once. Of UDP, where nothing
/// listens, the sockets without a peer.
#[must_use]
pub fn listening(survey: &Survey) -> Vec<(String, String, u16)> {
    let mut ports: Vec<_> = survey
        .sockets
        .iter()
        .filter(|socket| open(socket))
        .map(|socket| (socket.protocol.clone(), socket.local.clone(), socket.local_port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn open(socket: &SocketInfo) -> bool {
    match socket.protocol.as_str() {
        "tcp" | "tcp6" => socket.state == "listen",
        _ => socket.local_port != 0 && socket.peer_port == 0,
    }
}

/// Who of those that may be seen is in the way of an address of this network. Not one that is ending: it has no program
/// any more.
#[must_use]
pub fn holder(udp: bool, address: SocketAddr) -> Option<ProcessInfo> {
    let all = survey(Path::new("/proc"), &[], &[]);
    let anywhere = |text: &str| text.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let same = |text: &str| {
        anywhere(text) || address.ip().is_unspecified() || text.parse::<IpAddr>() == Ok(address.ip())
    };
    let has = |s: &&SocketInfo| {
        open(s) && s.protocol.starts_with("udp") == udp && s.local_port == address.port() && same(&s.local)
    };
    let pid = all.sockets.iter().find(has)?.pid;
    all.processes.into_iter().find(|process| process.pid == pid && !process.exe.is_empty())
}

/// `None` when it is gone.
fn process(proc: &Path, pid: i32) -> Option<ProcessInfo> {
    let dir = proc.join(pid.to_string());
    let Stat { name, state, parent, threads } = parse::stat(&small(&dir.join("stat"))?)?;
    let pages = small(&dir.join("statm")).and_then(|text| parse::resident_pages(&text)).unwrap_or(0);
    Some(ProcessInfo {
        pid,
        parent,
        name,
        state,
        exe: link(&dir.join("exe")),
        cwd: link(&dir.join("cwd")),
        threads,
        ran: small(&dir.join("schedstat")).and_then(|text| parse::ran(&text)).unwrap_or(0),
        resident: pages.saturating_mul(page_size()),
        descriptors: descriptors(&dir.join("fd"), MAX_DESCRIPTORS),
        mapped: mapped(&dir.join("maps")),
        special_mappings: special_mappings(&dir.join("maps")),
    })
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

fn descriptors(dir: &Path, most: usize) -> Vec<DescriptorInfo> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let mut found: Vec<DescriptorInfo> = numbers
        .take(most)
        .filter_map(|number| {
            let path = dir.join(number.to_string());
            let target = fs::read_link(&path).ok()?.to_string_lossy().into_owned();
            // Sockets, pipes and the like are no paths and no devices.
            let device = if target.starts_with('/') { device(&path) } else { String::new() };
            Some(DescriptorInfo { number, target, device })
        })
        .collect();
    found.sort_unstable_by_key(|descriptor| descriptor.number);
    found
}

/// Through the link, so that it is the open file also where another one has its name now.
fn device(path: &Path) -> String {
    let Ok(data) = fs::metadata(path) else { return String::new() };
    let kind = match data.file_type() {
        kind if kind.is_char_device() => "char",
        kind if kind.is_block_device() => "block",
        _ => return String::new(),
    };
    let number = data.rdev();
    format!("{kind}:{}:{}", libc::major(number), libc::minor(number))
}

/// More libraries than this are not told.
const MAX_MAPPED: usize = 1024;

fn mapped(maps: &Path) -> Vec<String> {
    let text = fs::read_to_string(maps).unwrap_or_default();
    let mut found: Vec<String> = Vec::new();
    for line in text.lines() {
        // address permissions offset device inode path: only the last holds a slash.
        let executable = line.split(' ').nth(1).is_some_and(|p| p.contains('x'));
        let path = line.find('/').and_then(|at| line.get(at..)).unwrap_or_default();
        if executable
            && !path.is_empty()
            && found.last().is_none_or(|l| l != path)
            && found.len() < MAX_MAPPED
        {
            found.push(path.to_owned());
        }
    }
    found
}

fn special_mappings(maps: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(file) = File::open(maps) else { return found };
    for line in BufReader::new(file).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line);
        if let Some(object) = parse::special_mapping(&line)
            && !found.iter().any(|known| known == object)
        {
            found.push(object.to_owned());
            if found.len() == MAX_MAPPINGS {
                break;
            }
        }
    }
    found
}

fn sockets(proc: &Path, processes: &[ProcessInfo]) -> Vec<SocketInfo> {
    // A socket that several share belongs to the first: the parent, as a rule.
    let mut holders: HashMap<u64, i32> = HashMap::new();
    for process in processes {
        for inode in process.descriptors.iter().filter_map(|d| parse::socket_inode(&d.target)) {
            holders.entry(inode).or_insert(process.pid);
        }
    }
    if holders.is_empty() {
        // With the host's network these files can be long.
        return Vec::new();
    }
    let mut found = Vec::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        let all = table(proc, protocol).into_iter();
        let held = all.filter_map(|socket| Some((socket, *holders.get(&socket.inode)?)));
        found.extend(held.map(|(socket, pid)| (protocol, socket, pid)));
    }
    net::join(&found)
}

fn table(proc: &Path, protocol: &str) -> Vec<net::Socket> {
    let family = match protocol {
        "tcp" => Some(AddressFamily::Inet),
        "tcp6" => Some(AddressFamily::Inet6),
        _ => None,
    };
    let own = family.filter(|_| proc == Path::new("/proc"));
    own.and_then(diag::tcp).unwrap_or_else(|| {
        let Ok(file) = File::open(proc.join("net").join(protocol)) else { return Vec::new() };
        BufReader::new(file).lines().map_while(Result::ok).filter_map(|line| net::socket(&line)).collect()
    })
}

fn link(path: &Path) -> String {
    fs::read_link(path).map(|target| target.to_string_lossy().into_owned()).unwrap_or_default()
}

fn small(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_SMALL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
