//! A CRIU that is new enough, where the host's own is not: unpacked from the packages of a newer Debian into the
//! user's cache, with its own C library and loader. Nothing is installed, the host's apt and dpkg only lend their
//! programs, and the repository is the one that the host itself uses.
//!
//! The prefix: `usr/sbin/criu`, its libraries in `usr/lib/TRIPLE`, and `bin/criu`, which starts the one with the others
//! and finds them from its own place, so that the whole may be moved, copied or bind-mounted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PassCred};

use crate::Result;
use crate::host::is_root;
use crate::shell::{command, make_dir, on_path, output, remove, write};

/// What we take, and from where.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// What we can work with.
    oldest: (u32, u32),
    /// The Debian that has it.
    suite: &'static str,
}

/// The first series that knows the mappings of kernels since 6.13, from a stable Debian, which does not move under us.
const STABLE: Wanted = Wanted { oldest: (4, 1), suite: "trixie" };
/// Newer kernels (seen on 6.18.44) no longer answer SO_PASSCRED on internet sockets; before 4.2 CRIU then gives every
/// such socket up.
const NEWER: Wanted = Wanted { oldest: (4, 2), suite: "forky" };

/// What this host's kernel asks for.
fn wanted() -> Wanted {
    let answers = std::net::TcpListener::bind("127.0.0.1:0")
        .is_ok_and(|socket| getsockopt(&socket, PassCred) != Err(Errno::EOPNOTSUPP));
    if answers { STABLE } else { NEWER }
}

/// Where Debian's signing keys are, the newer name first.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// What a host sets for its network and its mirror, which has to hold for us too: proxies, retries, a mirror that
/// stands still and whose dates have passed.
const CARRIED: [&str; 6] = [
    "Acquire::http",
    "Acquire::ftp",
    "Acquire::Retries",
    "Acquire::ForceIPv",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
];

/// A CRIU to work with.
#[derive(Debug)]
pub(crate) struct Criu {
    /// As `criu --version` tells it.
    pub(crate) version: String,
    /// Ours; none where the host's own is new enough.
    pub(crate) prefix: Option<PathBuf>,
}

impl Criu {
    /// The prefix at a path that every user may enter; the tests of root play several users, and root's cache is
    /// mostly closed to them.
    pub(crate) fn for_every_user(&self) -> Result<Option<Shared>> {
        let Some(prefix) = self.prefix.clone() else { return Ok(None) };
        let entered = |dir: &Path| fs::metadata(dir).is_ok_and(|found| found.mode() & 0o001 != 0);
        if !is_root() || prefix.ancestors().all(entered) {
            return Ok(Some(Shared { prefix, copied: None }));
        }
        let temporary = std::env::temp_dir();
        remove_abandoned(&temporary, "stasis-criu-");
        let dir = temporary.join(format!("stasis-criu-{}", std::process::id()));
        output(Command::new("mkdir").args(["-m", "0755", "--"]).arg(&dir))?;
        let shared = Shared { prefix: dir.join("criu"), copied: Some(dir) };
        output(Command::new("cp").arg("-a").arg("--").arg(&prefix).arg(&shared.prefix))?;
        Ok(Some(shared))
    }
}

/// A prefix for every user; where it is a copy, it goes away with this.
#[derive(Debug)]
pub(crate) struct Shared {
    prefix: PathBuf,
    copied: Option<PathBuf>,
}

impl Shared {
    pub(crate) fn path(&self) -> &Path {
        &self.prefix
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(Err(why)) = self.copied.as_deref().map(remove) {
            eprintln!("{why}");
        }
    }
}

/// The host's CRIU or, where that will not do, ours, which is made where it is missing or does not work.
pub(crate) fn find_or_fetch() -> Result<Criu> {
    let wanted = wanted();
    if on_path("criu")
        && let Some(version) = version(Path::new("criu"), wanted)
    {
        return Ok(Criu { version, prefix: None });
    }
    let cache = cache()?;
    let name = format!("criu-{}", wanted.suite);
    let prefix = cache.join(&name);
    if let Some(version) = version(&prefix.join("bin/criu"), wanted) {
        return Ok(Criu { version, prefix: Some(prefix) });
    }
    remove_abandoned(&cache, &format!("{name}.partial-"));
    let partial = prefix.with_extension(format!("partial-{}", std::process::id()));
    let made = fetch(&partial, wanted).and_then(|version| {
        put(&partial, &prefix, wanted)?;
        Ok(Criu { version, prefix: Some(prefix) })
    });
    remove(&partial)?;
    made
}

/// Prints where it is.
pub(crate) fn show() -> Result<()> {
    let criu = find_or_fetch()?;
    match criu.prefix {
        Some(prefix) => println!("{}", prefix.display()),
        None => eprintln!("none is needed: the criu on PATH is {}", criu.version),
    }
    Ok(())
}

/// The version of a CRIU that runs and is new enough.
fn version(program: &Path, wanted: Wanted) -> Option<String> {
    usable(&output(Command::new(program).arg("--version")).ok()?, wanted)
}

/// The version in what `criu --version` prints, if we can work with it.
fn usable(told: &str, wanted: Wanted) -> Option<String> {
    let version = told.lines().find_map(|line| line.strip_prefix("Version: "))?.trim().to_owned();
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let found = (numbers.next()?, numbers.next().unwrap_or(0));
    (found >= wanted.oldest).then_some(version)
}

/// Removes what runs that were killed have left: directories of ours that are named after a process which is gone.
fn remove_abandoned(dir: &Path, prefix: &str) {
    let me = fs::metadata("/proc/self").map(|found| found.uid()).ok();
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(std::result::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(prefix).map(|rest| rest.trim_end_matches("-old"));
        let gone = pid
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if gone && entry.metadata().is_ok_and(|found| found.is_dir() && Some(found.uid()) == me) {
            // What cannot be removed is in nobody's way.
            let _ = remove(&entry.path());
        }
    }
}

/// Where the user's programs keep what can be made again.
fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.ok_or("neither XDG_CACHE_HOME nor HOME says where CRIU can be kept")?;
    Ok(cache.join("stasis"))
}

/// Makes the prefix at a place that is free, and tries it.
fn fetch(place: &Path, wanted: Wanted) -> Result<String> {
    let Wanted { suite, oldest } = wanted;
    let arch = Arch::of_this_host()?;
    let uri = repository()?;
    eprintln!("fetching CRIU (9 MB) from Debian {suite} of {uri} into {}", place.display());
    let work = place.join("work");
    for dir in ["state/lists/partial", "cache/archives/partial"] {
        make_dir(&work.join(dir))?;
    }
    let apt = configure(&work, &uri, suite, arch)?;
    let get = |words: &[&str]| {
        let mut get = command(&["apt-get", "--quiet=2", "--yes"]);
        get.args(words).env("APT_CONFIG", &apt).env("LC_ALL", "C.UTF-8");
        get.env("DEBIAN_FRONTEND", "noninteractive");
        output(&mut get).map(drop).map_err(|why| refused(suite, &uri, &why))
    };
    get(&["update"])?;
    get(&["install", "--download-only", "criu"])?;
    unpack(&work.join("cache/archives"), place)?;
    prune(place, arch)?;
    remove(&work)?;
    write(&place.join("bin/criu"), &wrapper(arch), 0o755)?;
    // Whoever runs this may have a strict umask, and tests let other users run it.
    output(Command::new("chmod").args(["-R", "u+rwX,a+rX,go-w", "--"]).arg(place))?;
    version(&place.join("bin/criu"), wanted).ok_or_else(|| {
        format!("Debian {suite} of {uri} has no CRIU {}.{} that runs here", oldest.0, oldest.1)
    })
}

/// Names in which an architecture differs.
#[derive(Debug, Clone, Copy)]
struct Arch {
    debian: &'static str,
    triple: &'static str,
    loader: &'static str,
}

impl Arch {
    fn of_this_host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => {
                Ok(Self { debian: "amd64", triple: "x86_64-linux-gnu", loader: "ld-linux-x86-64.so.2" })
            }
            "aarch64" => {
                Ok(Self { debian: "arm64", triple: "aarch64-linux-gnu", loader: "ld-linux-aarch64.so.1" })
            }
            other => Err(format!("CRIU is fetched for x86_64 and aarch64 only, and this is {other}")),
        }
    }

    fn libraries(self) -> String {
        format!("usr/lib/{}", self.triple)
    }
}

/// The Debian repository that this host uses.
fn repository() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.lines().any(|line| line == "ID=debian") || !on_path("apt-get") || !on_path("dpkg-deb") {
        return Err(
            "CRIU is fetched on Debian only; install CRIU 4.1 or newer so that it is on PATH".to_owned()
        );
    }
    let mut indexes = command(&["apt-get", "indextargets", "--format=$(CODENAME) $(REPO_URI)"]);
    indexes.args(["Created-By: Packages", "Component: main", "Origin: Debian"]);
    let indexes = output(&mut indexes)?;
    repository_in(&indexes).ok_or_else(|| {
        "apt has never fetched the lists of a Debian repository, so there is no place to fetch CRIU from; run once \
         as root: apt-get update"
            .to_owned()
    })
}

/// The first repository of a release as such; updates and security live elsewhere.
fn repository_in(indexes: &str) -> Option<String> {
    let mut releases = indexes.lines().filter_map(|line| line.split_once(' '));
    releases.find(|(codename, uri)| !codename.contains('-') && !uri.is_empty()).map(|(_, uri)| uri.to_owned())
}

/// Writes a configuration of apt in which nothing is installed: the set of packages is then complete, and nothing of
/// the host's state is read or written. The host's hooks stay out too; those of container images often delete what
/// was fetched.
fn configure(work: &Path, uri: &str, suite: &str, arch: Arch) -> Result<PathBuf> {
    let keyring = KEYRINGS.iter().find(|path| Path::new(path).is_file());
    let keyring = keyring.ok_or("the package debian-archive-keyring is missing, which has Debian's keys")?;
    let source = format!("deb [arch={} signed-by={keyring}] {uri} {suite} main\n", arch.debian);
    write(&work.join("sources.list"), &source, 0o644)?;
    write(&work.join("status"), "", 0o644)?;
    let host = output(&mut command(&["apt-config", "dump"]))?;
    let carried = host.lines().filter(|line| CARRIED.iter().any(|name| line.starts_with(name)));
    let mut text: String = carried.map(|line| format!("{line}\n")).collect();
    for (name, path) in [
        ("Dir::Etc::sourcelist", "sources.list"),
        ("Dir::State", "state"),
        ("Dir::State::status", "status"),
        ("Dir::Cache", "cache"),
        ("Dir::Log", "log"),
    ] {
        text.push_str(&format!("{name} \"{}\";\n", work.join(path).display()));
    }
    text.push_str(
        "Dir::Etc::main \"/dev/null\";\nDir::Etc::parts \"/dev/null\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Acquire::Languages \"none\";\nAPT::Install-Recommends \"false\";\nAPT::Sandbox::User \"\";\n\
         APT::Update::Error-Mode \"any\";\nDebug::NoLocking \"true\";\n",
    );
    let file = work.join("apt.conf");
    write(&file, &text, 0o644)?;
    Ok(file)
}

/// What apt said, in one line.
fn refused(suite: &str, uri: &str, why: &str) -> String {
    let line = why.lines().find(|line| line.starts_with("E: ") || line.starts_with("W: "));
    let said = line.map_or_else(|| why.replace('\n', " "), |line| line[3..].to_owned());
    let hint = if ["resolv", "connect", "unreachable", "timed out"].iter().any(|word| why.contains(word)) {
        " (is there a network?)"
    } else if why.contains("NO_PUBKEY") || why.contains("not signed") {
        " (is the package debian-archive-keyring up to date?)"
    } else {
        ""
    };
    format!("CRIU cannot be fetched from Debian {suite} of {uri}: {said}{hint}")
}

/// Unpacks every package but those that only bring what `prune` takes away.
fn unpack(archives: &Path, place: &Path) -> Result<()> {
    let entries =
        fs::read_dir(archives).map_err(|why| format!("cannot read {}: {why}", archives.display()))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".deb") && !name.starts_with("libc-gconv-") {
            output(Command::new("dpkg-deb").arg("--extract").arg(entry.path()).arg(place))?;
        }
    }
    Ok(())
}

fn prune(place: &Path, arch: Arch) -> Result<()> {
    let gconv = format!("{}/gconv", arch.libraries());
    for dir in ["usr/share", "usr/lib/locale", "etc", "var", &gconv] {
        remove(&place.join(dir))?;
    }
    make_dir(&place.join("bin"))
}

/// Starts the prefix's criu with the prefix's own loader and libraries.
fn wrapper(arch: Arch) -> String {
    format!(
        "#!/bin/sh\n\
         # CRIU with the loader and the libraries that lie beside it.\n\
         here=$(dirname \"$(readlink -f \"$0\")\")/..\n\
         lib=$here/{}\n\
         exec \"$lib/{}\" --argv0 criu --library-path \"$lib\" \"$here/usr/sbin/criu\" \"$@\"\n",
        arch.libraries(),
        arch.loader
    )
}

/// Puts the finished prefix in its place. What is there and does not work goes away; what another run has put there
/// meanwhile is as good as ours.
fn put(partial: &Path, prefix: &Path, wanted: Wanted) -> Result<()> {
    if prefix.exists() {
        let mut old: OsString = partial.as_os_str().to_owned();
        old.push("-old");
        let old = PathBuf::from(old);
        // Renamed first, so that nobody meets one that is half removed.
        if fs::rename(prefix, &old).is_ok() {
            remove(&old)?;
        }
    }
    match fs::rename(partial, prefix) {
        Ok(()) => Ok(()),
        Err(_) if version(&prefix.join("bin/criu"), wanted).is_some() => Ok(()),
        Err(why) => Err(format!("cannot put CRIU at {}: {why}", prefix.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_criu_that_is_new_enough_will_do() {
        assert_eq!(usable("Version: 4.1.1\n", STABLE).as_deref(), Some("4.1.1"));
        assert_eq!(usable("Version: 4.1\nGitID: v4.1\n", STABLE).as_deref(), Some("4.1"));
        assert_eq!(usable("Version: 10.0", STABLE).as_deref(), Some("10.0"));
        assert_eq!(usable("Version: 4.1.1", NEWER), None);
        for told in ["Version: 3.17.1", "Version: 4.0", "Version: 4", "Version: next", "4.1.1", ""] {
            assert_eq!(usable(told, STABLE), None, "{told}");
        }
    }

    #[test]
    fn packages_come_from_the_release_and_not_from_its_updates() {
        let told =
            "bookworm-security http://one/security/\nbookworm-updates http://one/\nbookworm http://two/\n";
        assert_eq!(repository_in(told).as_deref(), Some("http://two/"));
        assert_eq!(repository_in("bookworm-security http://one/security/\n"), None);
        assert_eq!(repository_in(""), None);
    }

    #[test]
    fn what_apt_says_is_told_in_one_line_with_a_hint() {
        let offline = "failed (exit status: 100): apt-get update\nE: Failed to fetch http://one/InRelease  \
                       Temporary failure resolving 'one'\nE: Some index files failed to download.";
        assert_eq!(
            refused("trixie", "http://one/", offline),
            "CRIU cannot be fetched from Debian trixie of http://one/: Failed to fetch http://one/InRelease  \
             Temporary failure resolving 'one' (is there a network?)"
        );
        let unsigned = "W: GPG error: http://one trixie InRelease: NO_PUBKEY 6ED0E7B82643E131";
        assert!(
            refused("trixie", "http://one/", unsigned)
                .ends_with("(is the package debian-archive-keyring up to date?)")
        );
        assert!(!refused("trixie", "http://one/", "two\nlines").contains('\n'));
    }
}
