//! Saving a tree of processes: look, stop, look again, ask, copy, let go, write.
//!
//! Until the first question nothing is changed in the application; from then on it can be left alone at any step
//! (inject.rs). Every way out lets it run on.

pub(crate) mod areas;
pub(crate) mod building;
pub(crate) mod contents;
pub(crate) mod descriptors;
pub(crate) mod detach;
pub(crate) mod frozen;
pub(crate) mod increments;
pub(crate) mod inject;
pub(crate) mod inotify;
pub(crate) mod memories;
pub(crate) mod mode;
pub(crate) mod multicast;
pub(crate) mod pages;
pub(crate) mod pipes;
pub(crate) mod process;
pub(crate) mod ptys;
pub(crate) mod queries;
pub(crate) mod seize;
pub(crate) mod snapshot;
pub(crate) mod sockets;
pub(crate) mod tracking;
pub(crate) mod unix;

use crate::lock::{self, Lock};
use crate::model::{Area, FORMAT, Image, Kind, Machine, OLDEST, Process};
use crate::proc::{self, maps};
use crate::refuse;
use crate::restore::{check, skeleton};
use areas::{Class, Part};
use building::{Building, Flags};
use contents::Contents;
use descriptors::Objects;
use frozen::{Frozen, freeze};
use increments::Known;
use inotify::Places;
use seize::{HeldThread, Tree};
use snapshot::Snapshot;
use stasis_plugin_api::error::{BackendError, Result};
use stasis_plugin_api::report::Finding;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is to be saved, and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// The root of the tree.
    pub(crate) pid: i32,
    /// An existing directory for the image.
    pub(crate) directory: PathBuf,
    /// Leave the tree stopped (SIGSTOP) once it is saved.
    pub(crate) stop: bool,
    /// Save the processes themselves while they stand still.
    pub(crate) plain: bool,
    /// Save copies, also where there may be no room for them: a copy that does not fit is killed.
    pub(crate) fork: bool,
    /// Bytes of memory that the job has left, where the caller knows.
    pub(crate) room: Option<u64>,
    /// Processes of the namespace that are no part of the application.
    pub(crate) beside: Vec<i32>,
    /// Where the watching of writes is kept between captures.
    pub(crate) mailbox: Option<tracking::Mailbox>,
    /// The name of what the generation before saved, which lies described in the directory.
    pub(crate) base: Option<String>,
    /// From now on writes are to be remembered: another capture may follow.
    pub(crate) track: bool,
    /// Held by what works behind a restart.
    pub(crate) lock: Option<PathBuf>,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) pause: Duration,
    pub(crate) total: Duration,
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
    pub(crate) processes: Vec<i32>,
    pub(crate) copied: bool,
    pub(crate) why_plain: Option<String>,
    /// Only what was changed since the generation before was written, at least of some processes.
    pub(crate) increment: bool,
    /// The name by which the next capture can build on this one.
    pub(crate) tracking: Option<String>,
    /// Why the next one cannot.
    pub(crate) why_untracked: Option<String>,
}

/// Saves the tree.
pub(crate) fn dump(request: &Request) -> Result<Report> {
    let _lock = request.lock.as_deref().map(|path| Lock::take(path, lock::PATIENCE)).transpose()?;
    let started = Instant::now();
    let mut building = Building::begin(request);
    let mut places = Places::default();
    let findings = refuse::examine(request.pid, &request.beside, &mut places)?;
    if let Some(error) = refuse::error(&findings) {
        return Err(error);
    }
    let watched = building.watch(request);
    let mut why_plain = match (request.plain, request.stop) {
        (true, _) => Some("it was asked for".to_owned()),
        (_, true) => Some("the application is not to run on".to_owned()),
        _ => {
            let room = request.room.filter(|_| !request.fork);
            mode::against_copies(&refuse::members(request.pid)?, room)
        }
    };
    let mut report = loop {
        building.flags_before(request)?;
        match attempt(request, &places, &mut building, why_plain.is_none()) {
            Ok(report) => break report,
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::NoCopy(why)) if why_plain.is_none() => why_plain = Some(why),
            Err(Failure::NoCopy(why)) => {
                return Err(BackendError::failed("the application cannot be saved").because(why));
            }
            Err(Failure::FlagsChanged) => building.patient = true,
        }
    };
    let (pause, why_untracked) = watched;
    report.pause += pause;
    report.why_untracked = why_untracked;
    report.why_plain = why_plain.filter(|_| !report.increment);
    report.tracking = building.end(request);
    report.total = started.elapsed();
    Ok(report)
}

/// Why an attempt came to nothing.
enum Failure {
    Error(BackendError),
    /// Another attempt without copies may succeed.
    NoCopy(String),
    /// Another attempt that reads the flags of mappings while everybody stands still will succeed.
    FlagsChanged,
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Error(error)
    }
}

fn attempt(
    request: &Request,
    places: &Places,
    building: &mut Building,
    copy: bool,
) -> std::result::Result<Report, Failure> {
    let mut contents = Contents::new(&request.directory)?;
    let machine = crate::arch::machine::machine()?;
    let started = Instant::now();
    let frozen = freeze(request)?;
    let (mut image, whole) = look(request, &frozen, &mut contents, machine, places)?;
    asked(&frozen, &mut image)?;
    let known = match &building.base {
        Some(base) => increments::known(&frozen, &mut building.tracking, base)?,
        None => HashMap::new(),
    };
    let how = Writing { whole: &whole, known: &known };
    let copy = copy && (known.is_empty() || increments::worth_a_copy(&frozen, &known));
    let snapshots = if copy { Some(copies(&frozen, &image.processes)?) } else { None };
    for (held, site) in frozen.tree.processes.iter().zip(&frozen.sites) {
        site.wipe(&held.memory)?;
    }
    let mut pause = started.elapsed();
    match snapshots {
        Some(snapshots) => {
            frozen.tree.held_to_the_end()?;
            frozen.tree.release();
            pause = started.elapsed();
            for (copy, site) in snapshots.iter().zip(&frozen.sites) {
                copy.close_descriptors(site)?;
            }
            write_copies(&mut contents, &mut image, snapshots, &frozen.parts, how)?;
        }
        None => {
            let written = write_held(&mut contents, &mut image, &frozen.tree, how, &building.flags);
            frozen.tree.held_to_the_end()?;
            written?;
            if request.stop {
                // Nothing can fail any more once everybody is left stopped.
                describe(&contents, &mut image)?;
                frozen.tree.leave_stopped()?;
            } else {
                frozen.tree.release();
                pause = started.elapsed();
                if !building.flags_hold(&image) {
                    return Err(Failure::FlagsChanged);
                }
            }
        }
    }
    if !request.stop {
        describe(&contents, &mut image)?;
    }
    let own = |process: &Process| match process.layers.last() {
        Some(layer) => layer.bytes,
        None => process.areas.iter().flat_map(|area| &area.runs).map(|run| run[1]).sum(),
    };
    Ok(Report {
        pause,
        pages: image.processes.iter().map(own).sum::<u64>() / 4096,
        bytes: contents.written,
        processes: image.processes.iter().map(|process| process.pid).collect(),
        copied: copy,
        increment: !known.is_empty(),
        ..Report::default()
    })
}

/// Writes the description, last of all.
fn describe(contents: &Contents, image: &mut Image) -> Result<()> {
    if image.processes.iter().all(|process| process.layers.is_empty()) {
        image.format = OLDEST;
    }
    check::sound(image)?;
    contents.describe(image)
}

/// How memory is written.
#[derive(Debug, Clone, Copy)]
struct Writing<'a> {
    /// The areas, by process and start, of which everything is saved.
    whole: &'a HashSet<(i32, u64)>,
    /// What need not be written, by process.
    known: &'a HashMap<i32, Known>,
}

/// Everything that can be seen from outside, and the refusals once more. The second part of the answer are the areas,
/// by process and start, of which everything is saved.
fn look(
    request: &Request,
    frozen: &Frozen,
    contents: &mut Contents,
    machine: Machine,
    places: &Places,
) -> Result<(Image, HashSet<(i32, u64)>)> {
    let tree = &frozen.tree;
    let members = tree.members();
    if let Some(error) = refuse::error(&refused(request, frozen)?) {
        return Err(error);
    }
    let shared = frozen.parts.iter().flatten().filter(|part| part.class == Class::Memory);
    let mapped = shared.map(|part| (part.map.device.clone(), part.map.inode));
    let mut objects = Objects::new(mapped.collect());
    objects.places = places.clone();
    let mut image = Image {
        format: FORMAT,
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        machine,
        root: request.pid,
        ..Image::default()
    };
    for held in &tree.processes {
        let mut process = process::gather(held)?;
        process.descriptors = objects.gather(contents, held.pid, &members)?;
        image.processes.push(process);
    }
    if let Some(error) = refuse::error(&refuse::outside(&objects)) {
        return Err(error);
    }
    let all = frozen.parts.iter().map(Vec::as_slice);
    objects.memories.save_mapped(contents, &tree.processes.iter().zip(all).collect::<Vec<_>>())?;
    let mut whole = HashSet::new();
    for (process, parts) in image.processes.iter_mut().zip(&frozen.parts) {
        process.areas = areas::describe(process.pid, parts, &objects.memories)?;
        let all = parts.iter().filter(|part| part.class == Class::Whole);
        whole.extend(all.map(|part| (process.pid, part.map.start)));
        process.terminal = terminal(process.pid, &objects)?;
    }
    for (pid, _) in &tree.zombies {
        image.processes.push(process::zombie(*pid)?);
    }
    objects.sockets.connect(&mut objects.all)?;
    image.objects = objects.all;
    image.pipes = objects.pipes.all;
    image.memories = objects.memories.saved;
    Ok((image, whole))
}

/// What stands against saving the tree as it stands still, descriptors apart.
fn refused(request: &Request, frozen: &Frozen) -> Result<Vec<Finding>> {
    let tree = &frozen.tree;
    let members = tree.members();
    let mut findings = refuse::strays(&members, &request.beside)?;
    findings.extend(refuse::adopted(request.pid, &members));
    findings.extend(untouchable(frozen)?);
    for (held, parts) in tree.processes.iter().zip(&frozen.parts) {
        findings.extend(refuse::mappings(held.pid, parts));
    }
    for (pid, _) in &tree.zombies {
        findings.extend(refuse::process(*pid)?);
    }
    let living: Vec<i32> = tree.processes.iter().map(|held| held.pid).collect();
    findings.extend(refuse::shared(&living));
    Ok(findings)
}

/// What stands against asking anything of a process.
fn untouchable(frozen: &Frozen) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for held in &frozen.tree.processes {
        findings.extend(refuse::process(held.pid)?);
        let segments = |thread: &HeldThread| refuse::segments(held.pid, thread.tid, &thread.registers);
        findings.extend(held.threads.iter().find_map(segments));
        findings.extend(refuse::redirected(held.pid, held.threads.iter().map(|thread| thread.tid)));
    }
    Ok(findings)
}

/// What the processes have told, and whether all of them can be made again.
fn asked(frozen: &Frozen, image: &mut Image) -> Result<()> {
    ask(frozen, &mut image.processes)?;
    for process in &image.processes {
        let parent = image.processes.iter().find(|parent| parent.pid == process.ppid);
        let led = || std::path::Path::new(&format!("/proc/{}", process.sid)).exists();
        if parent.is_some_and(|parent| skeleton::adopted(image, process, parent)) && led() {
            let what = format!("process {} cannot be saved", process.pid);
            return Err(BackendError::new(stasis_plugin_api::error::kind::UNSUPPORTED, what)
                .because("its session is led from outside of the application")
                .help("start it in a session of its own (setsid)"));
        }
    }
    skeleton::kinship(image)
}

/// The pty that is a process's controlling terminal.
fn terminal(pid: i32, objects: &Objects) -> Result<Option<u32>> {
    let number = proc::stat::parse(&proc::read(pid, "stat")?)?.tty_nr;
    if number == 0 {
        return Ok(None);
    }
    let number = u64::from(number.cast_unsigned());
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00));
    let index = ptys::slave_index(major, minor);
    let known = objects.all.iter().any(|object| match &object.kind {
        Kind::Pty(pty) => pty.master && Some(pty.index) == index,
        _ => false,
    });
    if known {
        return Ok(index);
    }
    Err(BackendError::new(
        stasis_plugin_api::error::kind::UNSUPPORTED,
        format!("process {pid} cannot be saved"),
    )
    .because("its controlling terminal is held outside of the application")
    .help("start it in a session of its own (setsid), without a terminal"))
}

/// What only the processes themselves can tell.
fn ask(frozen: &Frozen, processes: &mut [Process]) -> Result<()> {
    for ((held, site), process) in frozen.tree.processes.iter().zip(&frozen.sites).zip(processes) {
        process::ask(site, held, process)?;
    }
    Ok(())
}

/// A copy of every process. Whoever adopts orphans stops doing so before the first one is made, and begins again when
/// those below it are copied: children come first.
fn copies(frozen: &Frozen, processes: &[Process]) -> std::result::Result<Vec<Snapshot>, Failure> {
    let failed = |error: BackendError| match error.kind.as_str() {
        stasis_plugin_api::error::kind::FAILED => Failure::NoCopy(error.to_string()),
        _ => Failure::Error(error),
    };
    if let Some(why) = frozen.tree.processes.iter().find_map(|held| mode::locked(held.pid)) {
        return Err(Failure::NoCopy(why));
    }
    let mut helpers = HashMap::new();
    let copies = copies_by(frozen, processes, &mut helpers);
    if copies.is_err() {
        helpers.into_values().for_each(snapshot::let_go);
    }
    copies.map_err(failed)
}

/// `helpers`: of those that have stopped to adopt, by pid.
fn copies_by(
    frozen: &Frozen,
    processes: &[Process],
    helpers: &mut HashMap<i32, i32>,
) -> Result<Vec<Snapshot>> {
    let all = || frozen.tree.processes.iter().zip(&frozen.sites).zip(processes);
    for ((held, site), process) in all().filter(|(_, process)| process.subreaper) {
        helpers.insert(process.pid, snapshot::adopt_no_more(site, held)?);
    }
    let mut copies = Vec::new();
    for ((held, site), process) in all().rev() {
        copies.push(match helpers.get(&process.pid) {
            Some(helper) => snapshot::take_by(site, held, *helper)?,
            None => snapshot::take(site, held)?,
        });
    }
    copies.reverse();
    Ok(copies)
}

/// The memory of the copies; each ends when it is written.
fn write_copies(
    contents: &mut Contents,
    image: &mut Image,
    snapshots: Vec<Snapshot>,
    parts: &[Vec<Part>],
    how: Writing<'_>,
) -> std::result::Result<(), Failure> {
    for ((process, copy), parts) in image.processes.iter_mut().zip(snapshots).zip(parts) {
        // Empty when it was killed already.
        let smaps = proc::read(copy.pid, "smaps").unwrap_or_default();
        let flags = maps::flags(&smaps);
        let left_out =
            parts.iter().any(|part| part.class != Class::Vsyscall && !flags.contains_key(&part.map.end));
        if left_out || mode::not_copied(copy.pid, &smaps).is_some() {
            return Err(Failure::NoCopy(format!(
                "process {} has memory that a fork does not keep",
                process.pid
            )));
        }
        let source = pages::Source { pid: copy.pid, memory: &copy.memory };
        let written = write_pages(contents, process, &source, &flags, how);
        // Also where all went well: what was killed may read as if it never had any pages.
        if !copy.alive() {
            // By whom nobody tells.
            let why = format!("the copy of process {} was killed, as when memory runs out", process.pid);
            return Err(Failure::NoCopy(why));
        }
        written?;
    }
    Ok(())
}

/// The memory of the processes themselves.
fn write_held(
    contents: &mut Contents,
    image: &mut Image,
    tree: &Tree,
    how: Writing<'_>,
    before: &Flags,
) -> Result<()> {
    for (process, held) in image.processes.iter_mut().zip(&tree.processes) {
        let flags = match before.get(&held.pid) {
            Some(flags) => flags.clone(),
            None => maps::flags(&proc::read(held.pid, "smaps")?),
        };
        let source = pages::Source { pid: held.pid, memory: &held.memory };
        write_pages(contents, process, &source, &flags, how)?;
    }
    Ok(())
}

fn write_pages(
    contents: &mut Contents,
    process: &mut Process,
    source: &pages::Source<'_>,
    flags: &maps::Flags,
    how: Writing<'_>,
) -> Result<()> {
    if let Some(error) = refuse::error(&refuse::flags(process.pid, flags)) {
        return Err(error);
    }
    for area in &mut process.areas {
        area.vm_flags = flags.get(&area.end).cloned().unwrap_or_default();
    }
    let pid = process.pid;
    let whole = |area: &Area| how.whole.contains(&(pid, area.start));
    pages::save(contents, process, source, &whole, how.known.get(&pid))
}
