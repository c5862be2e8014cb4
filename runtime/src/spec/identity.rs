//! Who asks for a container, and where: the facts about the caller that a spec is made of, and the user
//! databases shown inside. The facts are read once; everything after that is computed from them.

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

/// A generated user database beyond this size was no user database before.
pub(crate) const MAX_DATABASE: u64 = 4 << 20;

/// What is at a path of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nothing.
    Missing,
    /// A directory, links followed.
    Directory,
    /// Anything else.
    File,
    /// It may be there: the way to it is closed.
    Denied,
}

/// The caller and the host, as far as a container depends on them.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// The effective user.
    pub euid: u32,
    /// The effective group.
    pub egid: u32,
    /// From the host's user database; the number when it does not know the user.
    pub user_name: String,
    /// The user's full name.
    pub gecos: String,
    /// The user's login shell.
    pub shell: String,
    /// All groups with their names, the effective one first.
    pub groups: Vec<(u32, String)>,
    /// The home directory from the host's user database, `/` when there is none.
    pub home: PathBuf,
    /// The working directory, `/` when it is gone.
    pub cwd: PathBuf,
    /// The whole environment, as far as it is UTF-8.
    pub env: BTreeMap<String, String>,
    /// The host's name.
    pub hostname: String,
    /// `/etc/hosts`, empty when it cannot be read.
    pub hosts: String,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<String>,
    /// The file mode mask.
    pub umask: u32,
    /// Standard input is a terminal.
    pub stdin_tty: bool,
    /// Standard output is a terminal.
    pub stdout_tty: bool,
    /// Looks at a path of the host. A function, so that tests have a host of their own.
    pub look: fn(&Path) -> Source,
    /// Reads a small text file of the host, for `--env-file`.
    pub read: fn(&Path) -> std::io::Result<String>,
}

impl HostFacts {
    /// The facts about this process. What cannot be found out gets the value that harms least.
    #[must_use]
    pub fn from_process() -> Self {
        Self::without_names().named()
    }

    /// With what the host's user database knows of the user and the groups.
    #[must_use]
    pub fn named(mut self) -> Self {
        if let Ok(Some(user)) = User::from_uid(Uid::from_raw(self.euid)) {
            self.user_name = user.name;
            self.gecos = user.gecos.to_string_lossy().into_owned();
            self.shell = user.shell.to_string_lossy().into_owned();
            if user.dir.is_absolute() {
                self.home = user.dir;
            }
        }
        for (gid, name) in &mut self.groups {
            if let Ok(Some(group)) = Group::from_gid(Gid::from_raw(*gid)) {
                *name = group.name;
            }
        }
        self
    }

    /// The same for whoever needs nothing of the host's user database, which may be a service that is slow or away: numbers
    /// stand for names.
    #[must_use]
    pub fn without_names() -> Self {
        let (euid, egid) = (Uid::effective(), Gid::effective());
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = env.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        Self {
            euid: euid.as_raw(),
            egid: egid.as_raw(),
            user_name: euid.to_string(),
            gecos: String::new(),
            shell: "/bin/sh".to_owned(),
            groups: groups(egid),
            home: home.unwrap_or_else(|| PathBuf::from("/")),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            hostname: nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_else(|| "localhost".to_owned()),
            hosts: read_small(Path::new("/etc/hosts")).unwrap_or_default(),
            resolv_conf: read_small(Path::new("/etc/resolv.conf")).ok(),
            umask: umask(),
            stdin_tty: std::io::stdin().is_terminal(),
            stdout_tty: std::io::stdout().is_terminal(),
            env,
            look,
            read: read_small,
        }
    }
}

fn groups(egid: Gid) -> Vec<(u32, String)> {
    let others = nix::unistd::getgroups().unwrap_or_default().into_iter().filter(|gid| *gid != egid);
    std::iter::once(egid).chain(others).map(|gid| (gid.as_raw(), gid.to_string())).collect()
}

/// Asking the kernel by umask(2) would change it for a moment. The line is among the first ones.
fn umask() -> u32 {
    use std::io::Read as _;
    let mut head = [0; 256];
    fs::File::open("/proc/self/status")
        .and_then(|mut file| file.read(&mut head))
        .ok()
        .and_then(|length| {
            let status = String::from_utf8_lossy(head.get(..length)?);
            let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?.trim().to_owned();
            u32::from_str_radix(&line, 8).ok()
        })
        .unwrap_or(0o022)
}

fn look(path: &Path) -> Source {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Source::Directory,
        Ok(_) => Source::File,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Source::Denied,
        Err(_) => Source::Missing,
    }
}

fn read_small(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_DATABASE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_DATABASE {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// The image's `/etc/passwd` with the user in it. A line of the image's for the same number under another
/// name stays, behind the user's: the first one is what a number is translated to.
#[must_use]
pub fn passwd(image: &str, facts: &HostFacts, home: &Path, root: bool) -> String {
    let known = |uid: u32, name: &str| {
        image.lines().any(|line| {
            let mut fields = line.split(':');
            fields.next() == Some(name) && fields.nth(1) == Some(uid.to_string().as_str())
        })
    };
    let mut text = String::new();
    if !root && facts.euid != 0 && !known(facts.euid, &facts.user_name) {
        text.push_str(&format!(
            "{}:x:{}:{}:{}:{}:{}\n",
            field(&facts.user_name),
            facts.euid,
            facts.egid,
            field(&facts.gecos),
            field(&home.to_string_lossy()),
            field(&facts.shell)
        ));
    }
    append(&mut text, image);
    if !image.lines().any(|line| line.split(':').nth(2) == Some("0")) {
        text.push_str("root:x:0:0:root:/root:/bin/sh\n");
    }
    text
}

/// The image's `/etc/group` with the groups that the user has and the image does not know.
#[must_use]
pub fn group(image: &str, facts: &HostFacts, root: bool) -> String {
    let known = |gid: u32| image.lines().any(|line| line.split(':').nth(2) == Some(gid.to_string().as_str()));
    let mut text = String::new();
    append(&mut text, image);
    if !known(0) {
        text.push_str("root:x:0:\n");
    }
    for (gid, name) in facts.groups.iter().filter(|(gid, _)| *gid != 0 && !root && !known(*gid)) {
        text.push_str(&format!("{}:x:{gid}:{}\n", field(name), field(&facts.user_name)));
    }
    text
}

fn append(text: &mut String, image: &str) {
    text.push_str(image);
    if !image.is_empty() && !image.ends_with('\n') {
        text.push('\n');
    }
}

/// One field cannot become two, nor a line of its own.
fn field(text: &str) -> String {
    text.chars().map(|c| if c == ':' || c.is_control() { '_' } else { c }).collect()
}

/// The host's `/etc/hosts`, with `hostname` in it.
#[must_use]
pub fn hosts(host: &str, hostname: &str) -> String {
    let known = host.lines().any(|line| {
        let entry = line.split('#').next().unwrap_or_default();
        entry.split_whitespace().skip(1).any(|name| name == hostname)
    });
    let mut text = String::new();
    append(&mut text, host);
    if host.is_empty() {
        text.push_str("127.0.0.1 localhost\n::1 localhost\n");
    }
    if !known && hostname != "localhost" {
        text.push_str(&format!("127.0.1.1 {hostname}\n"));
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A user on a host with a few paths.
    pub(crate) fn alice() -> HostFacts {
        fn look(path: &Path) -> Source {
            match path.to_str().unwrap() {
                "/data" | "/home/alice" | "/srv/x" | "/srv/y" | "/a,b" | "/c:d" => Source::Directory,
                "/dev" | "/proc" | "/sys" | "/tmp" | "/var/tmp" | "/home/alice/project" => Source::Directory,
                "/etc/localtime" | "/etc/hosts" | "/data/file" => Source::File,
                "/closed/x" => Source::Denied,
                _ => Source::Missing,
            }
        }
        fn read(path: &Path) -> std::io::Result<String> {
            match path.to_str().unwrap() {
                "/home/alice/project/env" => Ok("# settings\nA=file\nB='two words'\n".to_owned()),
                "/home/alice/project/bad" => Ok("A=1\n\nnot a line\n".to_owned()),
                _ => Err(std::io::ErrorKind::NotFound.into()),
            }
        }
        let env =
            [("PATH", "/host/bin"), ("HOME", "/home/alice"), ("LANG", "en_GB.UTF-8"), ("TERM", "xterm")];
        HostFacts {
            euid: 1000,
            egid: 1000,
            user_name: "alice".to_owned(),
            gecos: "Alice".to_owned(),
            shell: "/bin/bash".to_owned(),
            groups: vec![(1000, "alice".to_owned()), (2000, "lab".to_owned())],
            home: PathBuf::from("/home/alice"),
            cwd: PathBuf::from("/home/alice/project"),
            env: env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            hostname: "node7".to_owned(),
            hosts: "127.0.0.1 localhost\n".to_owned(),
            resolv_conf: Some("nameserver 192.0.2.1\n".to_owned()),
            umask: 0o022,
            stdin_tty: false,
            stdout_tty: false,
            look,
            read,
        }
    }

    #[test]
    fn the_user_is_added_and_comes_first_for_its_number() {
        let facts = alice();
        let home = Path::new("/home/alice");
        let image = "root:x:0:0:root:/root:/bin/sh\nubuntu:x:1000:1000::/home/ubuntu:/bin/sh";
        insta::assert_snapshot!(passwd(image, &facts, home, false), @"
        alice:x:1000:1000:Alice:/home/alice:/bin/bash
        root:x:0:0:root:/root:/bin/sh
        ubuntu:x:1000:1000::/home/ubuntu:/bin/sh
        ");
        let ours = passwd("alice:x:1000:1000::/x:/bin/zsh\nroot:x:0:0::/:\n", &facts, home, false);
        assert_eq!(ours, "alice:x:1000:1000::/x:/bin/zsh\nroot:x:0:0::/:\n");
        assert_eq!(passwd("", &facts, home, true), "root:x:0:0:root:/root:/bin/sh\n");
        insta::assert_snapshot!(group("root:x:0:\nusers:x:2000:\n", &facts, false), @"
        root:x:0:
        users:x:2000:
        alice:x:1000:alice
        ");
        assert_eq!(group("", &facts, true), "root:x:0:\n");
    }

    #[test]
    fn no_field_becomes_a_line() {
        let facts = HostFacts { gecos: "a:b\nroot2:x:0:0".to_owned(), ..alice() };
        let text = passwd("root:x:0:0:::\n", &facts, Path::new("/home/alice"), false);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with("alice:x:1000:1000:a_b_root2_x_0_0:"), "{text}");
    }

    #[test]
    fn the_host_name_resolves() {
        assert_eq!(hosts("127.0.0.1 localhost\n", "node7"), "127.0.0.1 localhost\n127.0.1.1 node7\n");
        assert_eq!(hosts("192.0.2.7 n7 node7 # x\n", "node7"), "192.0.2.7 n7 node7 # x\n");
        assert!(hosts("192.0.2.7 other # node7\n", "node7").ends_with("127.0.1.1 node7\n"));
        assert_eq!(hosts("", "localhost"), "127.0.0.1 localhost\n::1 localhost\n");
    }

    #[test]
    fn the_facts_about_this_process_are_there() {
        let facts = HostFacts::from_process();
        assert_eq!(facts.euid, Uid::effective().as_raw());
        assert_eq!(facts.groups[0].0, facts.egid);
        assert!(facts.home.is_absolute() && facts.cwd.is_absolute() && !facts.hostname.is_empty());
        assert_eq!((facts.look)(Path::new("/proc")), Source::Directory);
        assert_eq!((facts.look)(Path::new("/no/such")), Source::Missing);
        let unnamed = HostFacts::without_names();
        assert_eq!(unnamed.user_name, facts.euid.to_string());
        assert_eq!(unnamed.groups[0], (facts.egid, facts.egid.to_string()));
        assert_eq!((&unnamed.env, &unnamed.cwd, unnamed.umask), (&facts.env, &facts.cwd, facts.umask));
        let named = unnamed.named();
        assert_eq!((named.user_name, named.home, named.groups), (facts.user_name, facts.home, facts.groups));
    }
}
