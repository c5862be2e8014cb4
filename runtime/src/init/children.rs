//! The last steps of every process that init starts: session, streams, limits of privilege, exec.
//! What goes wrong before the exec is told over a pipe that the exec closes.

use crate::error::{Error, Result};
use crate::sys::{fd, process, seccomp, signal, terminal};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, umask};
use stasis_plugin_api::plan::{Identity, SeccompRule, SecludedCommand};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a child becomes.
#[derive(Debug, Default)]
pub struct Becoming<'a> {
    /// The command.
    pub argv: &'a [String],
    /// Its whole environment.
    pub env: &'a [(String, String)],
    /// The first of these that exists; else `/`.
    pub cwd: &'a [PathBuf],
    /// stdin, stdout, stderr; left as they are when absent.
    pub streams: Option<[BorrowedFd<'a>; 3]>,
    /// Further descriptors at given numbers.
    pub descriptors: Vec<(BorrowedFd<'a>, i32)>,
    /// Leads a session of its own.
    pub session: bool,
    /// stdin is a terminal that controls the new session.
    pub controls_terminal: bool,
    /// Signals ignored.
    pub ignored: &'a [i32],
    /// System calls answered with an errno.
    pub seccomp: &'a [SeccompRule],
    /// Keeps its capabilities (root without a user namespace, as in Apptainer).
    pub keep_capabilities: bool,
    /// As whom it runs.
    pub identity: Identity,
    /// Adopts what its descendants leave behind.
    pub subreaper: bool,
    /// The file mode mask.
    pub umask: u32,
    /// The command instead of `argv`, and where it is loaded.
    pub secluded: Option<&'a SecludedCommand>,
}

/// Turns this (forked) process into it. Returns only the reason why it could not.
pub fn become_it(it: &Becoming<'_>) -> Error {
    match prepare(it) {
        Err((doing, e)) => {
            Error::new(format!("cannot start {}", shown(it))).because(format!("{doing}: {}", e.desc()))
        }
        Ok(()) => exec(it),
    }
}

fn shown(it: &Becoming<'_>) -> String {
    it.argv.first().map_or_else(|| "an empty command".to_owned(), |name| format!("\"{name}\""))
}

fn prepare(it: &Becoming<'_>) -> std::result::Result<(), (&'static str, Errno)> {
    let step = |doing: &'static str| move |e: Errno| (doing, e);
    fd::close_on_exec_from(3);
    if it.session {
        nix::unistd::setsid().map_err(step("new session"))?;
    }
    let mut lifted: Vec<(OwnedFd, i32)> = Vec::new();
    let streams = it.streams.iter().flatten().copied().zip(0..);
    for (source, number) in streams.chain(it.descriptors.iter().copied()) {
        let high = fd::lift(source).map_err(|_| ("descriptors", Errno::EMFILE))?;
        lifted.push((high, number));
    }
    for (high, number) in &lifted {
        fd::place(high.as_fd(), *number).map_err(step("descriptors"))?;
    }
    if it.controls_terminal {
        terminal::take_control(std::io::stdin().as_fd()).map_err(step("controlling terminal"))?;
    }
    umask(Mode::from_bits_truncate(it.umask));
    if !it.cwd.iter().any(|dir| nix::unistd::chdir(dir).is_ok()) {
        nix::unistd::chdir("/").map_err(step("working directory"))?;
    }
    if let Some(secluded) = it.secluded {
        seclude(secluded).map_err(step("a root of its own"))?;
    }
    identity(it)?;
    if it.subreaper {
        nix::sys::prctl::set_child_subreaper(true).map_err(step("adopting orphans"))?;
    }
    process::no_new_privileges().map_err(step("no_new_privs"))?;
    signal::reset(it.ignored);
    seccomp::install(it.seccomp).map_err(step("seccomp filter"))
}

/// Another root, with a descriptor of the one that was there.
fn seclude(it: &SecludedCommand) -> std::result::Result<(), Errno> {
    let place =
        |path: &Path| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let back = place(Path::new("/"))?;
    fd::place(back.as_fd(), it.back)?;
    nix::unistd::chroot(&it.root)?;
    nix::unistd::chdir("/")
}

fn identity(it: &Becoming<'_>) -> std::result::Result<(), (&'static str, Errno)> {
    let step = |doing: &'static str| move |e: Errno| (doing, e);
    match it.identity {
        Identity::Application if it.keep_capabilities => Ok(()),
        Identity::Application => process::drop_capabilities().map_err(step("capabilities")),
        Identity::Capable => process::keep_capabilities_over_exec().map_err(step("capabilities")),
        Identity::Root => {
            // The supplementary groups stay: an engine that puts them back finds them as they were.
            let zero = (nix::unistd::Gid::from_raw(0), nix::unistd::Uid::from_raw(0));
            nix::unistd::setresgid(zero.0, zero.0, zero.0)
                .and_then(|()| nix::unistd::setresuid(zero.1, zero.1, zero.1))
                .map_err(step("becoming uid 0, which has to be mapped in the container"))
        }
    }
}

fn exec(it: &Becoming<'_>) -> Error {
    let argv = it.secluded.map_or(it.argv, |secluded| &secluded.argv);
    let Some(name) = argv.first() else {
        return Error::new("cannot start an empty command");
    };
    let Some(program) = find(name, it.env) else {
        return Error::new(format!("\"{name}\": executable file not found in $PATH"));
    };
    let errno = process::exec(&program, argv, it.env);
    not_started(name, Path::new(&program), errno)
}

/// As a shell looks for it: a name with a slash is a path, others are sought in `PATH`.
fn find(name: &str, env: &[(String, String)]) -> Option<OsString> {
    if name.contains('/') {
        return Some(name.into());
    }
    let path = env.iter().find(|(k, _)| k == "PATH").map_or("/usr/local/bin:/usr/bin:/bin", |(_, v)| v);
    let executable =
        |p: &PathBuf| std::fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    path.split(':')
        .filter(|d| !d.is_empty())
        .map(|d| Path::new(d).join(name))
        .find(executable)
        .map(PathBuf::into_os_string)
}

/// What the kernel means with the errno of an exec.
fn not_started(name: &str, program: &Path, errno: Errno) -> Error {
    let error = Error::new(format!("cannot start \"{name}\""));
    match errno {
        Errno::ENOENT if program.exists() => match interpreter(program) {
            Some(interpreter) => error
                .because(format!("its interpreter {interpreter} is not in the image"))
                .help("take an image that holds the interpreter, or correct the program's first line"),
            None => error.because("a part of it is not in the image"),
        },
        Errno::ENOENT => error.because("there is no such file in the image"),
        Errno::EACCES if program.is_dir() => error.because("it is a directory"),
        Errno::EACCES => error.because("it may not be executed").help("`chmod +x` it in the image"),
        Errno::ENOEXEC => {
            error.because("it is neither a program for this machine nor a script with a first line `#!`")
        }
        other => error.because(other.desc()),
    }
}

fn interpreter(program: &Path) -> Option<String> {
    let mut head = Vec::new();
    std::fs::File::open(program).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let text = String::from_utf8_lossy(line);
    text.split_whitespace().next().map(str::to_owned)
}

/// A pipe over which a child tells why its exec failed. The parent's end reads nothing when it worked.
#[derive(Debug)]
pub struct Telling {
    read: OwnedFd,
    write: OwnedFd,
}

impl Telling {
    /// A new one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> Result<Self> {
        let (read, write) = fd::pipe().map_err(|e| Error::new("cannot make a pipe").because(&e))?;
        Ok(Self { read, write })
    }

    /// In the child: tells and ends the process.
    pub fn fail(self, error: &Error) -> ! {
        let text = serde_json::to_vec(error).unwrap_or_default();
        // The parent may be gone.
        let _ = std::fs::File::from(self.write).write_all(&text);
        process::end(127)
    }

    /// In the parent: waits for the exec.
    ///
    /// # Errors
    /// What the child told.
    pub fn wait(self) -> Result<()> {
        drop(self.write);
        let mut text = Vec::new();
        std::fs::File::from(self.read)
            .read_to_end(&mut text)
            .map_err(|e| Error::new("cannot hear from a new process").because(&e))?;
        if text.is_empty() {
            return Ok(());
        }
        Err(serde_json::from_slice(&text)
            .unwrap_or_else(|_| Error::new("a new process failed without saying why")))
    }
}

/// Opens `/dev/null` for both directions.
///
/// # Errors
/// When the container has none.
pub fn null() -> Result<OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|e| Error::new("cannot open /dev/null in the container").because(&e))
}

/// Opens a log file of this start for appending.
///
/// # Errors
/// What the kernel says.
pub fn log(name: &str) -> Result<OwnedFd> {
    let path = Path::new(stasis_plugin_api::plan::LOG_DIR).join(OsStr::new(name));
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    file.map(OwnedFd::from)
        .map_err(|e| Error::new(format!("cannot open the log {}", path.display())).because(&e))
}
