//! Running the engine as a program, as init does inside a container: by the host's loader, in namespaces of its own.
//! Whatever a test does there is a function of the test's own program, started anew inside.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test's own output and its own directory"
)]

pub mod rounds;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Names the directory with the engine, its libraries and the test's program, for what runs inside.
const DIRECTORY: &str = "STASIS_NATIVE_TEST_DIR";
/// Names the test that is run inside.
const TEST: &str = "STASIS_NATIVE_TEST";
/// An ordinary user, whoever that is.
const USER: u32 = 1001;

/// Runs a part of the test of this name inside, as the user who runs the tests and, for root, also as an ordinary one:
/// the test is started anew there and comes to this place again.
pub fn inside(test: &str, part: fn()) {
    if std::env::var_os(DIRECTORY).is_some() {
        loopback();
        // No pid is mistaken for the number of a descriptor.
        fs::write("/proc/sys/kernel/ns_last_pid", "1000").unwrap();
        return part();
    }
    let directory = tempfile::tempdir().unwrap();
    prepare(directory.path());
    run(directory.path(), test, None);
    if nix::unistd::geteuid().is_root() {
        run(directory.path(), test, Some(USER));
    }
}

/// A network of the test's own begins with its loopback down.
fn loopback() {
    let script = "import fcntl, socket, struct\n\
                  fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack('16sH14x', b'lo', 1))";
    assert!(Command::new("python3").args(["-c", script]).status().unwrap().success());
}

fn run(directory: &Path, test: &str, user: Option<u32>) {
    let work = directory.join("work");
    fs::create_dir_all(&work).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--pid",
        "--mount",
        "--ipc",
        "--net",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.arg(directory.join("test")).args(alone(test));
    command.env(DIRECTORY, directory).env(TEST, test).current_dir(&work).stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
        nix::unistd::chown(&work, Some(user.into()), Some(user.into())).unwrap();
    }
    let out = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{test} as {user:?}: {}\n{said}", out.status);
    assert!(said.contains("1 passed"), "{test} did not run inside:\n{said}");
    println!("{said}");
    fs::remove_dir_all(&work).unwrap();
}

/// What the test's program is told to run this test and nothing else.
fn alone(test: &str) -> [&str; 4] {
    ["--exact", test, "--nocapture", "--test-threads=1"]
}

/// The test that runs inside, alone.
pub fn again() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(alone(&std::env::var(TEST).expect("this part of a test runs inside namespaces")));
    command
}

/// Loader, C library and engine side by side, as the backend binds them into a container.
fn prepare(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = |part: &str| {
        let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|p| p.contains(part));
        path.map(PathBuf::from)
    };
    let needed = |part: &str| mapped(part).unwrap_or_else(|| panic!("{part} is not mapped"));
    // Linked in, unless somebody builds with flags of their own.
    let unwinder = mapped("/libgcc_s.so.1").map(|library| (library, "libgcc_s.so.1"));
    let own = std::env::current_exe().unwrap();
    let engine = own.parent().unwrap().join("libstasis_native.so");
    let engine =
        if engine.exists() { engine } else { own.ancestors().nth(2).unwrap().join("libstasis_native.so") };
    let files = [
        (needed("/ld-"), "loader"),
        (needed("/libc.so.6"), "libc.so.6"),
        (engine, "engine.so"),
        (own, "test"),
    ];
    for (from, to) in files.into_iter().chain(unwinder) {
        // Not by ourselves: a file that is open for writing, in a child of another test just then, cannot be executed.
        assert!(Command::new("cp").arg(&from).arg(directory.join(to)).status().unwrap().success());
        fs::set_permissions(directory.join(to), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os(DIRECTORY).expect("this part of a test runs inside namespaces"))
}

/// The engine with these arguments.
pub fn engine<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let directory = directory();
    let mut command = Command::new(directory.join("loader"));
    command.arg("--library-path").arg(&directory).arg(directory.join("engine.so")).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Makes this an empty directory.
pub fn empty(image: &Path) {
    if image.exists() {
        fs::remove_dir_all(image).unwrap();
    }
    fs::create_dir(image).unwrap();
}

/// A capture of the tree below this pid into an empty directory.
pub fn dump(pid: u32, image: &Path, more: &[&str]) -> Output {
    empty(image);
    let pid = pid.to_string();
    let mut arguments = vec!["dump", "--pid", &pid, "--dir", image.to_str().unwrap()];
    arguments.extend(more);
    engine(&arguments).output().unwrap()
}

/// What remembers writes between two captures, kept as the runtime would keep it: in a pair of sockets, which every
/// command started from now on finds at their numbers.
pub struct Mailbox(OwnedFd, OwnedFd);

impl Mailbox {
    pub fn new() -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let ends = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        Self(ends.0, ends.1)
    }

    /// The arguments for a capture from which on writes are remembered.
    pub fn arguments(&self) -> [String; 4] {
        let [from, to] = [&self.0, &self.1].map(|end| end.as_raw_fd().to_string());
        ["--track".to_owned(), "--mailbox".to_owned(), from, to]
    }
}

/// A capture that builds on an image, with nothing of that but its description.
pub fn dump_onto(pid: u32, base: &Path, image: &Path, more: &[&str]) -> Output {
    let about = fs::read(base.join("core.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&fs::read(base.join("told.json")).unwrap()).unwrap();
    let _ = fs::remove_dir_all(image);
    fs::create_dir(image).unwrap();
    fs::write(image.join("base.json"), about).unwrap();
    let pid = pid.to_string();
    let mut arguments = vec!["dump", "--pid", &pid, "--dir", image.to_str().unwrap()];
    let id = told["tracking"].as_str().unwrap_or("none");
    arguments.extend(["--base", id]);
    arguments.extend(more);
    engine(&arguments).output().unwrap()
}

/// What a capture that succeeded reports.
pub fn report(out: &Output) -> serde_json::Value {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// What a failed command says: its error and the reasons.
pub fn refusal(out: &Output) -> String {
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stdout));
    let error: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
    let why: Vec<&str> = error["why"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    format!("{}: {}: {}", error["kind"].as_str().unwrap(), error["what"].as_str().unwrap(), why.join("; "))
}

/// What an image says.
pub fn core(image: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(image.join("core.json")).unwrap()).unwrap()
}

/// Compiles a subject of tests/subjects into the working directory.
pub fn compile(name: &str, more: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/subjects").join(format!("{name}.c"));
    let text = fs::read(&source).unwrap();
    let copy = PathBuf::from(format!("{name}.c"));
    fs::write(&copy, text).unwrap();
    let program = std::env::current_dir().unwrap().join(name);
    let out =
        Command::new("gcc").args(["-O1", "-w", "-o"]).arg(&program).arg(&copy).args(more).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    program
}

/// Starts a subject in a session of its own, without any descriptor of ours; its output goes to a file.
pub fn start(program: &Path, arguments: &[&str], output: &Path) -> Subject {
    let file = fs::File::options().create(true).append(true).open(output).unwrap();
    // Whatever the tests themselves were started with has no business in the subject.
    let close =
        "for n in /proc/self/fd/*; do n=${n##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done; exec \"$@\"";
    let mut command = Command::new("setsid");
    command.args(["bash", "-c", close, "bash"]).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    Subject(command.spawn().unwrap())
}

/// A subject; it is killed when this is dropped.
pub struct Subject(pub Child);

impl Subject {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks again and again until something holds.
pub fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within 30 seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}
