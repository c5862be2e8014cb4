//! An image opened as what it may be: hostile. Every number is checked here, once, so that the rest can rely on it.

use crate::model::{Area, Backing, FORMAT, Image, Kind, Layer, Lock, OLDEST, Process, State};
use nix::fcntl::OFlag;
use stasis_plugin_api::prelude::*;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The end of the addresses that a process can have without asking for more.
pub(super) const USER_END: u64 = 0x7fff_ffff_f000;
const PAGE: u64 = 4096;
/// Far more than any tree has; a bound for the parser.
const MOST_BYTES: u64 = 1 << 30;
const MOST_PROCESSES: usize = 32768;
/// Of one process; a capture writes far fewer.
const MOST_LAYERS: usize = 64;
const MOST_WATCHES: i32 = crate::capture::inotify::MOST;
/// The extended state of any processor of today, in hex.
const MOST_XSTATE: usize = 32768;

/// Opens a file of the image: by a name of ours, never through a link.
pub(crate) fn open(dir: &Path, name: &str) -> Result<File> {
    let path: PathBuf = dir.join(name);
    let mut options = File::options();
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits());
    let failed = |why: String| damaged(format!("the image's {name} cannot be opened")).because(why);
    let file = options.open(&path).map_err(|e| failed(e.to_string()))?;
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        Ok(_) => Err(failed("it is no plain file".to_owned())),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// The name of the file that was written for a process's memory.
pub(crate) fn pages(process: &Process) -> String {
    process.layers.last().map_or_else(|| format!("pages-{}.img", process.pid), |layer| layer.file.clone())
}

/// The name of a content.
pub(super) fn content(number: u32) -> String {
    format!("files/{number}")
}

fn damaged(what: impl Into<String>) -> BackendError {
    BackendError::new(kind::DAMAGED, what).help("take another generation")
}

/// Reads an image and checks every number in it.
pub(crate) fn load(dir: &Path) -> Result<Image> {
    parse(&text(dir)?)
}

/// Its description, as it was written.
pub(super) fn text(dir: &Path) -> Result<Vec<u8>> {
    let file = open(dir, "core.json")?;
    // All at once, and the end of it.
    let expected = file.metadata().map_or(0, |meta| meta.len()).min(MOST_BYTES) + 1;
    let mut text = Vec::new();
    // Where there is no room for it, reading says so.
    let _ = text.try_reserve_exact(usize::try_from(expected).unwrap_or(0));
    let read = file.take(MOST_BYTES).read_to_end(&mut text);
    read.map_err(|e| damaged("the image's core.json cannot be read").because(e))?;
    Ok(text)
}

/// An image from its description.
pub(crate) fn parse(text: &[u8]) -> Result<Image> {
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
    }
    let unclear = |e: serde_json::Error| damaged("the image's core.json cannot be understood").because(e);
    // Looked through for what is no text once, not word by word.
    let text = std::str::from_utf8(text).map_err(|e| unclear(serde::de::Error::custom(e)))?;
    let read = serde_json::from_str::<Image>(text);
    // What is of another format need not look like an image.
    let format = match &read {
        Ok(image) => image.format,
        Err(_) => serde_json::from_str::<Head>(text).map_err(unclear)?.format,
    };
    if !(OLDEST..=FORMAT).contains(&format) {
        return Err(BackendError::new(kind::UNSUPPORTED, "the image cannot be understood")
            .because(format!("it has format {format}, and this engine reads up to {FORMAT}"))
            .help("take the version of stasis that saved it"));
    }
    let image = read.map_err(unclear)?;
    match wrong(&image) {
        None => Ok(image),
        Some(why) => Err(damaged("the image's core.json is damaged").because(why)),
    }
}

/// Whether what is being saved would be taken back.
pub(crate) fn sound(image: &Image) -> Result<()> {
    let refused = |why: String| {
        BackendError::new(kind::UNSUPPORTED, "the application cannot be saved")
            .because(format!("it could not be brought back: {why}"))
    };
    wrong(image).map_or(Ok(()), |why| Err(refused(why)))
}

/// Whether this very process stands where one of the image has to be.
pub(super) fn not_of(image: &Image) -> Result<()> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let tids = |process: &Process| process.threads.iter().any(|thread| thread.tid == own);
    if image.processes.iter().any(|process| process.pid == own || tids(process)) {
        return Err(
            damaged("the application cannot get its pids").because(format!("{own} is the engine's own"))
        );
    }
    Ok(())
}

/// The first thing that is not as it has to be.
fn wrong(image: &Image) -> Option<String> {
    family(image)
        .or_else(|| {
            image.processes.iter().find_map(|p| process(image, p).map(|w| format!("process {}: {w}", p.pid)))
        })
        .or_else(|| objects(image))
}

/// Pids, parents, sessions and groups.
fn family(image: &Image) -> Option<String> {
    if image.processes.is_empty() || image.processes.len() > MOST_PROCESSES {
        return Some(format!("{} processes", image.processes.len()));
    }
    let mut seen = HashSet::new();
    for process in &image.processes {
        for tid in process.threads.iter().map(|t| t.tid).skip(1).chain([process.pid]) {
            if !(2..1 << 22).contains(&tid) {
                return Some(format!("pid {tid} cannot be given"));
            }
            if !seen.insert(tid) {
                return Some(format!("pid {tid} is there twice"));
            }
        }
    }
    let mut before: HashMap<i32, &Process> = HashMap::new();
    for process in &image.processes {
        let parent = before.get(&process.ppid);
        match parent {
            None if process.pid != image.root => {
                return Some(format!("process {} comes before its parent {}", process.pid, process.ppid));
            }
            Some(parent) if matches!(parent.state, State::Zombie { .. }) => {
                return Some(format!("the parent of process {} has ended", process.pid));
            }
            _ => {}
        }
        before.insert(process.pid, process);
    }
    None
}

fn process(image: &Image, process: &Process) -> Option<String> {
    if let State::Zombie { status } = process.state {
        let fine = (0..=64).contains(&(status & 0x7f)) && status & !0xffff == 0;
        return (!fine).then(|| format!("ended with status {status}"));
    }
    if process.threads.first().map(|t| t.tid) != Some(process.pid) {
        return Some("its first thread is not its leader".to_owned());
    }
    if process.signals.len() != 64 || process.rlimits.len() > 16 || process.itimers.len() > 3 {
        return Some("signals, limits or timers are missing or too many".to_owned());
    }
    if !(0..=64).contains(&process.exit_signal) || !(0..=64).contains(&process.pdeathsig) {
        return Some("a signal that does not exist".to_owned());
    }
    if process.layers.len() > MOST_LAYERS || !process.layers.iter().all(layer) {
        return Some("the files of its memory".to_owned());
    }
    if process.mm.brk >= USER_END {
        return Some("its heap ends behind all addresses".to_owned());
    }
    if process.mm.auxv.len() > 128 {
        return Some(format!("an auxiliary vector of {} words", process.mm.auxv.len()));
    }
    threads(process).or_else(|| areas(image, process)).or_else(|| descriptors(image, process))
}

fn threads(process: &Process) -> Option<String> {
    for thread in &process.threads {
        let siginfo = |text: &String| text.len() == 256 && is_hex(text);
        let queued = thread.pending.iter().chain(&process.pending);
        if thread.xstate.len() > MOST_XSTATE || !is_hex(&thread.xstate) {
            return Some(format!("thread {}: extended state", thread.tid));
        }
        if !queued.into_iter().all(siginfo) || thread.affinity.len() > 1024 {
            return Some(format!("thread {}: waiting signals or processors", thread.tid));
        }
        if thread.registers.rip >= USER_END || thread.registers.cs & 3 != 3 || thread.registers.ss & 3 != 3 {
            return Some(format!("thread {}: registers of the kernel", thread.tid));
        }
    }
    None
}

fn areas(image: &Image, process: &Process) -> Option<String> {
    let mut end = 0;
    for area in &process.areas {
        let told = |what: &str| Some(format!("mapping {:x}-{:x}: {what}", area.start, area.end));
        if area.backing == Backing::Vsyscall {
            if !area.runs.is_empty() || !area.pieces.is_empty() || !area.guards.is_empty() {
                return told("pages of the kernel's");
            }
            continue;
        }
        let aligned = area.start.is_multiple_of(PAGE) && area.end.is_multiple_of(PAGE);
        if !aligned || area.start < end || area.start >= area.end || area.end > USER_END || area.start == 0 {
            return told("its place");
        }
        end = area.end;
        if area.prot > 7 || !area.base.is_multiple_of(PAGE) || area.base >= 1 << 52 {
            return told("protection or place in the file");
        }
        let runs: Vec<[u64; 2]> = area.pieces.iter().map(|[start, length, ..]| [*start, *length]).collect();
        if !within(area, &area.runs) || !within(area, &area.guards) || !within(area, &runs) {
            return told("pages outside of it");
        }
        if !area.pieces.iter().all(|piece| of_layer(process, piece)) {
            return told("pages of no file");
        }
        let fine = match &area.backing {
            Backing::File { offset, file } => offset.is_multiple_of(PAGE) && path(&file.path),
            Backing::Memory { memory, offset } => {
                image.memories.get(*memory).is_some() && offset.is_multiple_of(PAGE)
            }
            _ => true,
        };
        if !fine {
            return told("what it shows");
        }
    }
    None
}

/// Whether a piece lies in a file of the process.
fn of_layer(process: &Process, [_, length, layer, offset]: &[u64; 4]) -> bool {
    let known = usize::try_from(*layer).is_ok_and(|layer| layer < process.layers.len());
    known && offset.is_multiple_of(PAGE) && offset.checked_add(*length).is_some_and(|end| end < 1 << 52)
}

/// Whether a layer's file has a name of ours.
fn layer(layer: &Layer) -> bool {
    let numbers = layer.file.strip_prefix("pages-").and_then(|rest| rest.strip_suffix(".img"));
    let digits = |part: &str| !part.is_empty() && part.len() < 20 && part.bytes().all(|c| c.is_ascii_digit());
    numbers.is_some_and(|numbers| numbers.split('-').count() <= 2 && numbers.split('-').all(digits))
}

/// Whether runs of pages ascend inside an area.
fn within(area: &Area, runs: &[[u64; 2]]) -> bool {
    let mut from = area.start;
    runs.iter().all(|[start, length]| {
        let end = start.checked_add(*length);
        let fine = start.is_multiple_of(PAGE)
            && length.is_multiple_of(PAGE)
            && *length > 0
            && *start >= from
            && end.is_some_and(|end| end <= area.end);
        from = end.unwrap_or(u64::MAX);
        fine
    })
}

fn descriptors(image: &Image, process: &Process) -> Option<String> {
    let mut seen = HashSet::new();
    for descriptor in &process.descriptors {
        if descriptor.fd < 0 || descriptor.object >= image.objects.len() || !seen.insert(descriptor.fd) {
            return Some(format!("descriptor {}", descriptor.fd));
        }
        // Behind its last byte there is room for one more number: the lock's length is one.
        let fine = |lock: &Lock| (lock.start..1 << 63).contains(&lock.end.unwrap_or(lock.start));
        if !descriptor.locks.iter().all(fine) {
            return Some(format!("a lock on descriptor {}", descriptor.fd));
        }
    }
    (!path(&process.cwd) || !path(&process.exe.path)).then(|| "a path that is none".to_owned())
}

fn objects(image: &Image) -> Option<String> {
    let pids: HashSet<i32> = image.processes.iter().map(|p| p.pid).collect();
    for (index, object) in image.objects.iter().enumerate() {
        let fine = match &object.kind {
            Kind::None => false,
            Kind::File { file, .. } => path(&file.path),
            Kind::Directory { path: name } | Kind::Device { path: name, .. } => path(name),
            Kind::Pipe { pipe } => *pipe < image.pipes.len(),
            Kind::Memory { memory } => *memory < image.memories.len(),
            Kind::Epoll { targets } => targets.iter().all(|t| t.fd >= 0 && pids.contains(&t.pid)),
            Kind::Pid { pid } => pids.contains(pid),
            Kind::Inotify { watches } => {
                let numbers: Vec<i32> = watches.iter().map(|watch| watch.wd).collect();
                numbers.iter().all(|wd| (1..=MOST_WATCHES).contains(wd))
                    && numbers.is_sorted_by(|one, next| one < next)
                    && watches.iter().all(|watch| path(&watch.path))
            }
            Kind::Unix(unix) => {
                unix.peer.is_none_or(|peer| peer < image.objects.len())
                    && unix.directory.as_deref().is_none_or(path)
                    && unix.moved.as_deref().is_none_or(path)
            }
            Kind::Pty(pty) => pty.index < 1 << 20,
            _ => true,
        };
        if !fine {
            return Some(format!("object {index}"));
        }
    }
    let fifos = image.pipes.iter().filter_map(|p| p.fifo.as_deref());
    fifos.into_iter().find(|p| !path(p)).map(|p| format!("FIFO {p:?}"))
}

/// Absolute, and a string for the kernel.
fn path(text: &str) -> bool {
    text.starts_with('/') && text.len() < 4096 && !text.contains('\0')
}

/// Bytes from hex.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !is_hex(text) {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16);
    let byte = |two: &[u8]| Some((digit(*two.first()?)? * 16 + digit(*two.get(1)?)?) as u8);
    digits.chunks(2).map(byte).collect()
}

/// Whole bytes.
fn is_hex(text: &str) -> bool {
    text.len().is_multiple_of(2) && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Descriptor, Object, Thread, Watched};

    fn sound() -> Image {
        let thread = |tid| {
            let mut thread = Thread { tid, ..Thread::default() };
            (thread.registers.cs, thread.registers.ss) = (0x33, 0x2b);
            thread
        };
        let area = Area { start: 0x1000, end: 0x4000, runs: vec![[0x2000, 0x1000]], ..Area::default() };
        let process = |pid, ppid| {
            let mut process = Process { pid, ppid, exit_signal: 17, cwd: "/".into(), ..Process::default() };
            process.exe.path = "/bin/x".into();
            process.signals = vec![Default::default(); 64];
            process.threads = vec![thread(pid)];
            process.areas = vec![area.clone()];
            process.descriptors = vec![Descriptor { fd: 1, object: 0, ..Descriptor::default() }];
            process
        };
        let object = Object { kind: Kind::Directory { path: "/".into() }, ..Object::default() };
        let processes = vec![process(1_000_000, 1), process(1_000_001, 1_000_000)];
        Image { format: FORMAT, root: 1_000_000, processes, objects: vec![object], ..Image::default() }
    }

    fn told(change: impl FnOnce(&mut Image)) -> String {
        let mut image = sound();
        change(&mut image);
        match parse(&serde_json::to_vec(&image).unwrap()) {
            Ok(_) => "sound".to_owned(),
            Err(error) => format!("{}: {error}", error.kind),
        }
    }

    #[test]
    fn what_is_sound_passes() {
        assert_eq!(told(|_| {}), "sound");
    }

    #[test]
    fn what_would_not_be_taken_back_is_not_saved() {
        let mut image = sound();
        super::sound(&image).unwrap();
        image.processes[1].areas[0].start = 0;
        insta::assert_snapshot!(super::sound(&image).unwrap_err(), @"the application cannot be saved: it could not be brought back: process 1000001: mapping 0-4000: its place");
    }

    #[test]
    fn every_lie_is_found() {
        let first = |change: fn(&mut Process)| told(move |i| change(&mut i.processes[0]));
        insta::assert_snapshot!(told(|i| i.format = 9), @"unsupported: the image cannot be understood: it has format 9, and this engine reads up to 2");
        let lies = [
            told(|i| i.processes.clear()),
            told(|i| i.processes[1].pid = 1_000_000),
            told(|i| i.processes[1].ppid = 7),
            told(|i| i.processes[0].pid = 1),
            told(|i| i.objects[0].kind = Kind::None),
            told(|i| i.objects[0].kind = Kind::Pid { pid: 1 }),
            told(|i| i.objects[0].kind = Kind::Pipe { pipe: 0 }),
            told(|i| i.objects[0].kind = Kind::Inotify { watches: vec![Watched::default()] }),
            told(|i| i.objects[0].kind = Kind::Directory { path: "../x".into() }),
            first(|p| p.threads[0].tid = 5),
            first(|p| p.threads[0].xstate = "f".into()),
            first(|p| p.threads[0].registers.rip = u64::MAX),
            first(|p| p.threads[0].registers.cs = 0x10),
            first(|p| p.pending = vec!["00".into()]),
            first(|p| p.signals.truncate(3)),
            first(|p| p.areas[0].start = 0),
            first(|p| p.areas[0].end = 1 << 60),
            first(|p| p.areas[0].base = 1),
            first(|p| p.areas[0].runs = vec![[0x2000, u64::MAX - 0xfff]]),
            first(|p| p.areas[0].runs = vec![[0x8000, 0x1000]]),
            first(|p| p.areas[0].pieces = vec![[0x2000, 0x1000, 0, 0]]),
            first(|p| {
                p.layers = vec![Layer { file: "pages-1-2.img".into(), bytes: 0 }];
                p.areas[0].pieces = vec![[0x8000, 0x1000, 0, 0]];
            }),
            first(|p| p.layers = vec![Layer { file: "../pages-1.img".into(), bytes: 0 }]),
            first(|p| p.layers = vec![Layer { file: "pages-1-2-3.img".into(), bytes: 0 }]),
            first(|p| p.areas[0].backing = Backing::Memory { memory: 0, offset: 0 }),
            first(|p| p.areas.push(p.areas[0].clone())),
            first(|p| p.areas[0].backing = Backing::Vsyscall),
            first(|p| p.mm.brk = u64::MAX),
            first(|p| p.descriptors[0].object = 1),
            first(|p| p.descriptors[0].fd = -1),
            first(|p| p.descriptors[0].locks = vec![Lock { start: 2, end: Some(1), ..Lock::default() }]),
            first(|p| p.descriptors[0].locks = vec![Lock { end: Some(u64::MAX), ..Lock::default() }]),
            first(|p| p.cwd = "x".into()),
            first(|p| p.exe.path = "/a\0b".into()),
            first(|p| p.state = State::Zombie { status: 0x8_0000 }),
            first(|p| p.mm.auxv = vec![0; 4096]),
        ];
        for (number, lie) in lies.iter().enumerate() {
            assert!(lie.starts_with("damaged: the image's core.json is damaged: "), "{number}: {lie}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "{}", "[]", "{\"format\":1}", "\u{0}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn hex_is_read() {
        assert_eq!(unhex("00fF10"), Some(vec![0, 255, 16]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("0g"), None);
    }
}
