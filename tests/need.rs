//! What a test needs of this machine. Each probe answers with a reason where it is missing; the test then says so in
//! one line and does nothing. `STASIS_TESTS_REQUIRE=dmtcp,root,...` turns that line into a failure.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::{group, site};

pub(crate) type Probe = Result<(), String>;

/// Ends the test function, with one line, where something that it needs is missing.
macro_rules! need {
    ($($what:ident),+ $(,)?) => {
        $(
            if !$crate::need::met(stringify!($what), $crate::need::$what()).unwrap() {
                return;
            }
        )+
    };
}
pub(crate) use need;

/// False where the test is to be skipped; the line goes past the test harness, which hides what a passing test says.
pub(crate) fn met(what: &str, probe: Probe) -> Result<bool, String> {
    let Err(reason) = probe else { return Ok(true) };
    let required = std::env::var("STASIS_TESTS_REQUIRE").unwrap_or_default();
    if required.split(',').any(|name| name.trim() == what) {
        return Err(format!("{what} is required by STASIS_TESTS_REQUIRE, but {reason}"));
    }
    let thread = std::thread::current();
    let line = format!("skipped {}: {reason}\n", thread.name().unwrap_or("a test"));
    let _ = std::io::stderr().write_all(line.as_bytes());
    Ok(false)
}

/// The test images.
pub(crate) fn image() -> Probe {
    site::images().map(|_| ())
}

/// There are two processors to choose from.
pub(crate) fn processors() -> Probe {
    match std::thread::available_parallelism() {
        Ok(number) if number.get() > 1 => Ok(()),
        _ => Err("there is one processor only".to_owned()),
    }
}

/// The test images have a program that was built with musl.
pub(crate) fn musl() -> Probe {
    let program = site::images()?.join("any/opt/subjects/bin/idle-musl");
    if program.exists() { Ok(()) } else { Err("the test images were made without musl-gcc".to_owned()) }
}

/// The test image with large programs of the distribution.
pub(crate) fn programs() -> Probe {
    if site::images()?.join("programs.stamp").is_file() {
        Ok(())
    } else {
        Err("there is no test image with Node, Redis and nginx (cargo xtask programs)".to_owned())
    }
}

/// The same has a program that was built by Go.
pub(crate) fn go() -> Probe {
    programs()?;
    let program = site::images()?.join("programs/opt/subjects/bin/busy-go");
    if program.exists() { Ok(()) } else { Err("the test images were made without Go".to_owned()) }
}

/// The test images have a program that was built by Rust for musl.
pub(crate) fn rust_musl() -> Probe {
    let program = site::images()?.join("any/opt/subjects/bin/busy-rust-musl");
    let why = "the test images were made by a Rust that cannot build for musl";
    if program.exists() { Ok(()) } else { Err(why.to_owned()) }
}

/// Rights of root: other users can be played, and nothing is hidden.
pub(crate) fn root() -> Probe {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("this is not run by root".to_owned()) }
}

/// An ordinary user may make a user namespace here.
pub(crate) fn userns() -> Probe {
    static FOUND: OnceLock<Probe> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let mut probe = Command::new("unshare");
            probe.args(["--user", "--map-current-user", "--mount", "true"]);
            crate::env::as_user(&mut probe, crate::env::USER);
            let out =
                probe.stdin(Stdio::null()).output().map_err(|why| format!("unshare(1) is missing: {why}"))?;
            let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            if out.status.success() {
                Ok(())
            } else {
                Err(format!("user namespaces are not to be had: {why}"))
            }
        })
        .clone()
}

/// A kernel that tells the native engine what was written since the generation before.
pub(crate) fn increments() -> Probe {
    let names = nix::sys::utsname::uname().map_err(|why| why.to_string())?;
    let release = names.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(6), Some(7)) {
        Ok(())
    } else {
        Err(format!("Linux {release} does not tell what was written to; 6.7 does"))
    }
}

/// A host without NVIDIA's driver.
pub(crate) fn no_gpu() -> Probe {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        Err("this host has a driver".to_owned())
    } else {
        Ok(())
    }
}

/// A real DMTCP.
pub(crate) fn dmtcp() -> Probe {
    dmtcp_version().map(|_| ())
}

/// Its version, as in the first line of `dmtcp_launch --version`.
pub(crate) fn dmtcp_version() -> Result<String, String> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let out = Command::new("dmtcp_launch").arg("--version").stdin(Stdio::null()).output();
            let out = out.map_err(|_| "dmtcp_launch not found".to_owned())?;
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let version = text.lines().next().and_then(|line| line.rsplit(' ').next());
            version.map(str::to_owned).ok_or_else(|| format!("dmtcp_launch tells no version: {text:?}"))
        })
        .clone()
}

/// A CRIU that can save without privilege.
pub(crate) fn criu() -> Probe {
    criu_version().map(|_| ())
}

/// Its version.
pub(crate) fn criu_version() -> Result<String, String> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let program = site::criu_prefix().map_or_else(|| "criu".into(), |prefix| prefix.join("bin/criu"));
            let out = Command::new(program).arg("--version").stdin(Stdio::null()).output();
            let out = out.map_err(|_| "criu not found".to_owned())?;
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let version = text.lines().find_map(|line| line.strip_prefix("Version:")).map(str::trim);
            let version = version.ok_or_else(|| format!("criu tells no version: {text:?}"))?.to_owned();
            let number = |n: usize| version.split('.').nth(n).and_then(|part| part.parse::<u32>().ok());
            if (number(0), number(1)) < (Some(4), Some(1)) {
                return Err(format!("criu {version} is older than 4.1"));
            }
            Ok(version)
        })
        .clone()
}

/// Subordinate ids can be played: the tools that map them, and the files that grant them.
pub(crate) fn uidmap() -> Probe {
    root()?;
    on_path(&["newuidmap", "newgidmap"])?;
    for file in ["/etc/subuid", "/etc/subgid"] {
        if !std::path::Path::new(file).is_file() {
            return Err(format!("there is no {file}"));
        }
    }
    Ok(())
}

/// A registry to have images from, and what fills it.
pub(crate) fn registry() -> Probe {
    on_path(&["docker-registry", "skopeo", "htpasswd"])
}

/// What makes certificates.
pub(crate) fn openssl() -> Probe {
    on_path(&["openssl"])
}

/// What makes a Debian out of nothing, and a place to have its packages from.
pub(crate) fn mmdebstrap() -> Probe {
    on_path(&["mmdebstrap", "apt-get", "fakechroot", "fakeroot"])?;
    static FOUND: OnceLock<Probe> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let out = Command::new("apt-get").args(["download", "--print-uris", "hostname"]).output();
            let text = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
            match text.split('\'').nth(1) {
                Some(_) => Ok(()),
                None => Err("this host has no mirror to have packages from".to_owned()),
            }
        })
        .clone()
}

/// Control groups that limit memory can be made.
pub(crate) fn memory_groups() -> Probe {
    static FOUND: OnceLock<Probe> = OnceLock::new();
    root()?;
    FOUND.get_or_init(group::probe).clone()
}

/// Control groups that give processors can be made.
pub(crate) fn processor_groups() -> Probe {
    static FOUND: OnceLock<Probe> = OnceLock::new();
    root()?;
    FOUND.get_or_init(group::probe_processors).clone()
}

/// The tools that make and unpack squashfs.
pub(crate) fn squashfs() -> Probe {
    on_path(&["mksquashfs", "unsquashfs"])
}

/// Files may have attributes of their user's own where the tests work.
pub(crate) fn attributes() -> Probe {
    let probed = tempfile::NamedTempFile::new_in("/tmp").map_err(|why| why.to_string())?;
    let set = rustix::fs::fsetxattr(probed.as_file(), "user.note", b"x", rustix::fs::XattrFlags::empty());
    set.map_err(|why| format!("the file system of /tmp keeps no attributes of users: {why}"))
}

/// A mount through FUSE is possible; users get an open `/dev/fuse` of their own, which only root can give them.
pub(crate) fn fuse() -> Probe {
    root()?;
    on_path(&["squashfuse_ll"])?;
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|why| format!("/dev/fuse cannot be opened: {why}"))
}

/// The kernel mounts files for root.
pub(crate) fn loop_devices() -> Probe {
    root()?;
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control");
    opened.map(drop).map_err(|why| format!("there are no loop devices: {why}"))?;
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.contains("squashfs") { Ok(()) } else { Err("this kernel knows no squashfs".to_owned()) }
}

/// Somebody's Apptainer or SingularityCE.
pub(crate) fn apptainer() -> Probe {
    if apptainers().is_empty() {
        Err("neither apptainer nor singularity is installed here".to_owned())
    } else {
        Ok(())
    }
}

/// By what names; one is often a link to the other.
pub(crate) fn apptainers() -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let place =
        |name: &str| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    let real = |name: &str| place(name).and_then(|file| file.canonicalize().ok());
    let mut found: Vec<&str> =
        ["apptainer", "singularity"].into_iter().filter(|name| real(name).is_some()).collect();
    found.dedup_by_key(|name| real(name));
    found
}

fn on_path(programs: &[&str]) -> Probe {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = |name: &&&str| !std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    match programs.iter().find(missing) {
        Some(name) => Err(format!("{name} is not installed here")),
        None => Ok(()),
    }
}

/// Notes for the end of the test run that an engine has really saved something and brought it back.
pub(crate) fn exercised(engine: &str, version: &str) -> std::io::Result<()> {
    let Some(record) = std::env::var_os("STASIS_TESTS_RECORD") else { return Ok(()) };
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(record)?;
    writeln!(file, "{engine} {version}")
}
