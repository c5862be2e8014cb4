//! What an image's `core.json` holds: everything of a tree of processes except its memory, in plain numbers.
//! Memory lies in `pages-<pid>.img`, other contents in `files/<n>`. Nothing here has behaviour; whoever reads an
//! image has to treat every value as hostile.

mod flags;
mod registers;
mod settings;
mod sockets;
mod thread;

pub(crate) use flags::VmFlags;
pub(crate) use registers::Registers;
use serde::{Deserialize, Serialize};
pub(crate) use settings::{Placement, Settings};
pub(crate) use sockets::{Socket, SocketOption, Unix};

pub(crate) use thread::{AltStack, PosixTimer, Rseq, SignalAction, Thread};

/// The newest layout that this version writes and reads: with memory in several files (increments).
pub(crate) const FORMAT: u32 = 2;
/// The oldest that it reads, and what it writes where each process has its memory in one file.
pub(crate) const OLDEST: u32 = 1;

/// A whole tree of processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) format: u32,
    /// The version of the engine that wrote it.
    pub(crate) engine: String,
    pub(crate) machine: Machine,
    /// The pid of the tree's root.
    pub(crate) root: i32,
    /// Parents before their children.
    pub(crate) processes: Vec<Process>,
    /// Open file descriptions, referred to by index.
    pub(crate) objects: Vec<Object>,
    /// Pipes and FIFOs, referred to by index.
    pub(crate) pipes: Vec<Pipe>,
    /// Memory that is shared between processes or has a descriptor, referred to by index.
    pub(crate) memories: Vec<SharedMemory>,
}

/// What the saved machine code relies on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `x86_64`.
    pub(crate) architecture: String,
    pub(crate) kernel: String,
    /// Rows of `[leaf, subleaf, eax, ebx, ecx, edx]` that name instruction set extensions.
    pub(crate) cpuid: Vec<[u32; 6]>,
    /// Bytes of the extended state that the kernel hands out.
    pub(crate) xstate_size: u32,
    /// FNV-1a of the vdso's content; the saved processes may hold addresses in it.
    pub(crate) vdso: u64,
}

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// 1 or another pid outside the tree for the root.
    pub(crate) ppid: i32,
    pub(crate) sid: i32,
    pub(crate) pgid: i32,
    pub(crate) state: State,
    /// The signal that its parent gets when it ends; 17 (SIGCHLD) for a fork.
    pub(crate) exit_signal: i32,
    pub(crate) comm: String,
    pub(crate) exe: FileIdentity,
    pub(crate) cwd: String,
    pub(crate) umask: u32,
    pub(crate) credentials: Credentials,
    /// Soft and hard limit of resource 0 to 15.
    pub(crate) rlimits: Vec<[u64; 2]>,
    pub(crate) oom_score_adj: i32,
    /// 0 or 1.
    pub(crate) dumpable: i32,
    /// The signal for the parent's death; 0 for none.
    pub(crate) pdeathsig: i32,
    /// PR_SET_CHILD_SUBREAPER.
    pub(crate) subreaper: bool,
    /// PR_SET_THP_DISABLE.
    pub(crate) thp_disable: bool,
    pub(crate) personality: u64,
    /// What the process registered for with `membarrier`: bits 2, 4, 6 and 8, which are the registering commands.
    #[serde(default)]
    pub(crate) barriers: u32,
    #[serde(default)]
    pub(crate) settings: Settings,
    /// Index of the pty (see [`Kind::Pty`]) that is its controlling terminal.
    pub(crate) terminal: Option<u32>,
    pub(crate) mm: Layout,
    /// In the order of their addresses.
    pub(crate) areas: Vec<Area>,
    /// The files of `Area::pieces`. One that was written for this image comes last; it is that of `Area::runs` then, which
    /// else is `pages-<pid>.img`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<Layer>,
    /// The leader first.
    pub(crate) threads: Vec<Thread>,
    pub(crate) descriptors: Vec<Descriptor>,
    /// Signals 1 to 64.
    pub(crate) signals: Vec<SignalAction>,
    /// Signals that wait for the whole process: hex of 128 bytes `siginfo_t` each.
    pub(crate) pending: Vec<String>,
    /// Real, virtual, profiling: interval seconds, microseconds, value seconds, microseconds.
    pub(crate) itimers: Vec<[u64; 4]>,
    pub(crate) posix_timers: Vec<PosixTimer>,
}

/// What a process does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub(crate) enum State {
    #[default]
    Running,
    /// Stopped by job control.
    Stopped { signal: i32 },
    /// Ended and not waited for; only the ids, `comm` and `exit_signal` are filled in.
    Zombie {
        /// As `wait` tells it.
        status: i32,
    },
}

/// Whom a process is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// Real, effective, saved, file system.
    pub(crate) uids: [u32; 4],
    pub(crate) gids: [u32; 4],
    pub(crate) groups: Vec<u32>,
    pub(crate) inheritable: u64,
    pub(crate) permitted: u64,
    pub(crate) effective: u64,
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
    pub(crate) securebits: u32,
    pub(crate) no_new_privs: bool,
}

/// A file that must be the same at a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
}

/// The fields of `prctl_mm_map`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub(crate) start_code: u64,
    pub(crate) end_code: u64,
    pub(crate) start_data: u64,
    pub(crate) end_data: u64,
    pub(crate) start_brk: u64,
    pub(crate) brk: u64,
    pub(crate) start_stack: u64,
    pub(crate) arg_start: u64,
    pub(crate) arg_end: u64,
    pub(crate) env_start: u64,
    pub(crate) env_end: u64,
    pub(crate) auxv: Vec<u64>,
}

/// One mapping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub(crate) prot: u32,
    pub(crate) shared: bool,
    pub(crate) backing: Backing,
    /// The kernel's two-letter flags (`VmFlags` of smaps) that matter at a restart:
    /// gd lo hg nh dc wf dd nr um gu and so on, all as found.
    pub(crate) vm_flags: VmFlags,
    /// Where the area's first byte lies in `pages-<pid>.img`: page p of the area lies at base + (p - start).
    pub(crate) base: u64,
    /// Address and length of what is saved, ascending; everything else is zero or comes from the file.
    pub(crate) runs: Vec<[u64; 2]>,
    /// What is saved beside `runs`, ascending and apart from them: address, length, index into the process's `layers`,
    /// offset in that file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pieces: Vec<[u64; 4]>,
    /// Pages that raise SIGSEGV (MADV_GUARD_INSTALL), as address and length.
    pub(crate) guards: Vec<[u64; 2]>,
}

impl Area {
    /// Bytes that are saved of it.
    pub(crate) fn content(&self) -> u64 {
        let runs = self.runs.iter().map(|[_, length]| *length);
        runs.chain(self.pieces.iter().map(|[_, length, ..]| *length)).fold(0, u64::saturating_add)
    }
}

/// A file with memory of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Its name, beside `core.json`.
    pub(crate) file: String,
    /// The memory in it when it was written; some of that may be superseded.
    pub(crate) bytes: u64,
}

/// What a mapping shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", try_from = "Told")]
pub(crate) enum Backing {
    #[default]
    Anonymous,
    /// The program break's area; anonymous.
    Heap,
    /// The main thread's stack; anonymous, grows down.
    Stack,
    /// A file: private (its changed pages are in `runs`) or shared (nothing is saved).
    File {
        file: FileIdentity,
        offset: u64,
    },
    /// Shared memory: `memories[memory]`.
    Memory {
        memory: usize,
        offset: u64,
    },
    Vdso,
    /// `[vvar]`, `[vvar_vclock]`.
    Vvar {
        name: String,
    },
    Vsyscall,
}

/// A [`Backing`] as it is read. There are hundreds of it, and a tagged enum is put aside field by field until its tag is known.
#[derive(Deserialize)]
struct Told {
    kind: Shown,
    file: Option<FileIdentity>,
    memory: Option<usize>,
    offset: Option<u64>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Shown {
    Anonymous,
    Heap,
    Stack,
    File,
    Memory,
    Vdso,
    Vvar,
    Vsyscall,
}

impl TryFrom<Told> for Backing {
    type Error = &'static str;

    fn try_from(told: Told) -> Result<Self, Self::Error> {
        let offset = told.offset.ok_or("a mapping without its offset");
        Ok(match told.kind {
            Shown::Anonymous => Self::Anonymous,
            Shown::Heap => Self::Heap,
            Shown::Stack => Self::Stack,
            Shown::File => {
                Self::File { file: told.file.ok_or("a mapping without its file")?, offset: offset? }
            }
            Shown::Memory => {
                Self::Memory { memory: told.memory.ok_or("a mapping without its memory")?, offset: offset? }
            }
            Shown::Vdso => Self::Vdso,
            Shown::Vvar => Self::Vvar { name: told.name.ok_or("a mapping without its name")? },
            Shown::Vsyscall => Self::Vsyscall,
        })
    }
}

/// A descriptor of a process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) fd: i32,
    pub(crate) cloexec: bool,
    pub(crate) object: usize,
    /// POSIX record locks that this process holds on the file.
    pub(crate) locks: Vec<Lock>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lock {
    pub(crate) write: bool,
    pub(crate) start: u64,
    /// The last byte; `None` for the end of the file.
    pub(crate) end: Option<u64>,
}

/// An open file description.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Object {
    /// O_ACCMODE and the status flags, without those that only act at the opening (O_CREAT, O_EXCL, O_TRUNC).
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    /// F_SETOWN and F_SETSIG: kind of owner (0 thread, 1 process, 2 group), id, signal; absent when unset.
    pub(crate) owner: Option<[i32; 3]>,
    /// An flock lock: whether it is exclusive.
    pub(crate) flock: Option<bool>,
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

/// What an open file description is of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum Kind {
    #[default]
    None,
    File {
        file: FileIdentity,
        mode: u32,
        /// `files/<n>` with its content, where the file has no name any more.
        deleted: Option<u32>,
        /// Its uid and gid then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        whose: Option<[u32; 2]>,
    },
    Directory {
        path: String,
    },
    /// A harmless character device.
    Device {
        path: String,
        major: u32,
        minor: u32,
    },
    /// One end of `pipes[pipe]`, told by `flags`.
    Pipe {
        pipe: usize,
    },
    /// A descriptor of `memories[memory]`.
    Memory {
        memory: usize,
    },
    Event {
        count: u64,
        semaphore: bool,
    },
    Epoll {
        targets: Vec<EpollTarget>,
    },
    Timer {
        clock: i32,
        /// TFD_TIMER_ABSTIME and so on, as given to the last `timerfd_settime`.
        settime: u32,
        /// Expirations that were not read.
        ticks: u64,
        /// Nanoseconds until it fires; 0 with an interval means that it fires at once.
        value: u64,
        interval: u64,
        /// Nanoseconds since the epoch, where it waits for a moment of the wall clock: that goes on while nobody runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<u64>,
    },
    Signal {
        mask: u64,
    },
    Inotify {
        /// By their numbers.
        watches: Vec<Watched>,
    },
    /// A pidfd of a process of the tree.
    Pid {
        pid: i32,
    },
    /// An internet or netlink socket that is not connected.
    Socket(Socket),
    Unix(Unix),
    Pty(Pty),
}

/// One watch of an inotify instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watched {
    pub(crate) wd: i32,
    pub(crate) path: String,
    /// As it was given, without what only acts when the watch is made.
    pub(crate) mask: u32,
}

/// Whom an epoll instance watches, as its descriptor in the process that holds the instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpollTarget {
    /// The process in whose table `fd` is meant.
    pub(crate) pid: i32,
    pub(crate) fd: i32,
    pub(crate) events: u32,
    pub(crate) data: u64,
}

/// One side of a pseudo terminal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pty {
    /// N of /dev/pts/N.
    pub(crate) index: u32,
    pub(crate) master: bool,
    /// `struct termios2` in hex, of the slave side.
    pub(crate) termios: String,
    /// Rows, columns, x and y pixels.
    pub(crate) size: [u16; 4],
    /// The foreground process group; 0 when none.
    pub(crate) foreground: i32,
    /// The session that it controls; 0 when none.
    pub(crate) session: i32,
    pub(crate) locked: bool,
    pub(crate) packet: bool,
    pub(crate) exclusive: bool,
    /// Permission bits, uid and gid of /dev/pts/N.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A pipe or a FIFO.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pipe {
    /// F_GETPIPE_SZ.
    pub(crate) capacity: u32,
    /// `files/<n>` with what was written and not read; absent when empty.
    pub(crate) content: Option<u32>,
    /// A FIFO's path.
    pub(crate) fifo: Option<String>,
    /// No write end is open in the tree: readers see the end once the content is read.
    pub(crate) closed: bool,
}

/// Memory that outlives a mapping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SharedMemory {
    pub(crate) size: u64,
    /// `files/<n>`, sparse; absent when all zero.
    pub(crate) content: Option<u32>,
    pub(crate) source: MemorySource,
}

/// How shared memory came to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum MemorySource {
    /// mmap(MAP_SHARED | MAP_ANONYMOUS), or a deleted file of a tmpfs.
    #[default]
    Anonymous,
    /// memfd_create.
    Memfd {
        name: String,
        /// F_GET_SEALS.
        seals: u32,
        /// Permission bits; 0 where no descriptor told them.
        #[serde(default)]
        mode: u32,
        /// Uid and gid, where a descriptor told them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        whose: Option<[u32; 2]>,
    },
    /// A file of a tmpfs that still has its name.
    Path { path: String, mode: u32 },
}
