//! The mappings of the saved process with their content.

use super::check::USER_END;
use super::objects::Made;
use super::remote::Remote;
use super::table::Table;
use crate::model::{Area, Backing, Process};
use stasis_plugin_api::prelude::*;
use std::os::fd::AsRawFd;

/// How content comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Page by page from the image when it is touched.
    Map,
    /// All of it now.
    Copy,
}

const PROT_WRITE: u32 = 2;
/// The kernel copies at most 2 GiB a call.
const MOST: u64 = 1 << 30;
/// `vm.max_map_count` is 65530: file mappings do not merge as anonymous ones do.
const MOST_MAPPED: usize = 20_000;
const MADV_HUGEPAGE: u64 = 14;
const MADV_GUARD_INSTALL: u64 = 102;
/// What `VmFlags` say about an area and the advice that makes it so.
const ADVICE: [(&str, u64); 7] =
    [("rr", 1), ("sr", 2), ("dc", 10), ("mg", 12), ("nh", 15), ("dd", 16), ("wf", 18)];

/// Maps everything. The scratch area stays.
pub(super) fn fill(remote: &Remote, process: &Process, made: &Made, how: How) -> Result<()> {
    let image = made.pages.get(&process.pid);
    let size = image.and_then(|file| file.metadata().ok()).map_or(0, |m| m.len());
    let filling = Filling {
        made,
        image: image.map_or(-1, AsRawFd::as_raw_fd),
        size,
        how: if process.areas.len() > MOST_MAPPED { How::Copy } else { how },
    };
    let mut table = remote.table();
    for area in &process.areas {
        filling.area(remote, &mut table, area)?;
        remote.make_room(remote.pid, &mut table)?;
    }
    layout(process, made, &mut table)?;
    remote.run(remote.pid, &mut table)
}

struct Filling<'a> {
    made: &'a Made,
    image: i32,
    size: u64,
    how: How,
}

fn told(area: &Area, what: &str) -> String {
    format!("{what} {:x}-{:x}", area.start, area.end)
}

fn number(fd: i32) -> u64 {
    i64::from(fd).cast_unsigned()
}

impl Filling<'_> {
    fn area(&self, remote: &Remote, table: &mut Table, area: &Area) -> Result<()> {
        let Some((fd, offset, kind)) = self.source(area)? else { return Ok(()) };
        let has = |flag: &str| area.vm_flags.iter().any(|f| f == flag);
        let length = area.end - area.start;
        let mut flags = kind | libc::MAP_FIXED;
        if has("nr") {
            flags |= libc::MAP_NORESERVE;
        }
        if has("gd") || area.backing == Backing::Stack {
            flags |= libc::MAP_GROWSDOWN;
        }
        let plain = kind & libc::MAP_ANONYMOUS != 0;
        if plain && area.backing != Backing::Stack && self.maps(area) {
            // Its holes in the image are zeros.
            let flags = (flags & !(libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN)) as u64;
            let arguments =
                [area.start, length, area.prot.into(), flags, number(self.image), area.base];
            table.call(told(area, "mapping the image at"), libc::SYS_mmap, &arguments);
        } else {
            let fill = if area.runs.is_empty() { 0 } else { PROT_WRITE };
            let prot = area.prot | fill;
            let arguments = [area.start, length, prot.into(), flags as u64, number(fd), offset];
            table.call(told(area, "mapping"), libc::SYS_mmap, &arguments);
            if has("hg") {
                // Before the content: huge pages are made when they are touched first.
                table.try_call("huge pages", libc::SYS_madvise, &[area.start, length, MADV_HUGEPAGE]);
            }
            self.copy(remote, table, area)?;
            if prot != area.prot {
                let arguments = [area.start, length, area.prot.into()];
                table.call(told(area, "protecting"), libc::SYS_mprotect, &arguments);
            }
        }
        advise(remote, table, area)
    }

    /// Descriptor, offset and flags that say what the area shows; `None` for the kernel's own.
    fn source(&self, area: &Area) -> Result<Option<(i32, u64, i32)>> {
        let sharing = if area.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let missing = || BackendError::failed(told(area, "cannot map")).because("its file was not opened");
        Ok(Some(match &area.backing {
            Backing::Vdso | Backing::Vvar { .. } | Backing::Vsyscall => return Ok(None),
            Backing::Anonymous | Backing::Heap | Backing::Stack => {
                (-1, 0, sharing | libc::MAP_ANONYMOUS)
            }
            Backing::File { file, offset } => {
                let key = (file.path.clone(), area.shared && area.prot & PROT_WRITE != 0);
                let fd = self.made.mapped.get(&key).ok_or_else(missing)?;
                (fd.as_raw_fd(), *offset, sharing)
            }
            Backing::Memory { memory, offset } => {
                let fd = self.made.memories.get(*memory).ok_or_else(missing)?;
                (fd.as_raw_fd(), *offset, sharing)
            }
        }))
    }

    fn maps(&self, area: &Area) -> bool {
        let whole = area.base.checked_add(area.end - area.start).is_some_and(|end| end <= self.size);
        self.how == How::Map && !area.runs.is_empty() && !area.shared && whole
    }

    fn copy(&self, remote: &Remote, table: &mut Table, area: &Area) -> Result<()> {
        for [start, length] in &area.runs {
            let mut at = *start;
            while at < start + length {
                let part = MOST.min(start + length - at);
                let offset = area.base + (at - area.start);
                let arguments = [number(self.image), at, part, offset];
                table.call(told(area, "reading the image into"), libc::SYS_pread64, &arguments);
                at += part;
                remote.make_room(remote.pid, table)?;
            }
        }
        Ok(())
    }
}

fn advise(remote: &Remote, table: &mut Table, area: &Area) -> Result<()> {
    let has = |flag: &str| area.vm_flags.iter().any(|f| f == flag);
    let length = area.end - area.start;
    for (_, advice) in ADVICE.iter().filter(|(flag, _)| has(flag)) {
        table.call(told(area, "advice about"), libc::SYS_madvise, &[area.start, length, *advice]);
    }
    for [start, length] in &area.guards {
        let arguments = [*start, *length, MADV_GUARD_INSTALL];
        table.call(told(area, "guard pages in"), libc::SYS_madvise, &arguments);
        remote.make_room(remote.pid, table)?;
    }
    if has("lo") {
        table.call(told(area, "locking"), libc::SYS_mlock, &[area.start, length]);
    }
    Ok(())
}

/// Where program, heap, arguments and so on lie, and which file is the program.
fn layout(process: &Process, made: &Made, table: &mut Table) -> Result<()> {
    let mm = &process.mm;
    let program = made.programs.get(&process.exe.path).ok_or_else(|| {
        BackendError::failed(format!("cannot rebuild process {}", process.pid))
            .because("its program was not opened")
    })?;
    let auxv: Vec<u8> = mm.auxv.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let vector = table.put(&auxv);
    let fields = [
        mm.start_code,
        mm.end_code,
        mm.start_data,
        mm.end_data,
        mm.start_brk,
        mm.brk,
        mm.start_stack,
        mm.arg_start,
        mm.arg_end,
        mm.env_start,
        mm.env_end,
        vector,
        auxv.len() as u64 | u64::from(program.as_raw_fd().cast_unsigned()) << 32,
    ];
    let bytes: Vec<u8> = fields.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let (option, map) = (libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64);
    let at = table.put(&bytes);
    table.call("the places of its parts", libc::SYS_prctl, &[option, map, at, bytes.len() as u64, 0]);
    debug_assert!(mm.brk < USER_END);
    Ok(())
}
