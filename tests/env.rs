//! A place of its own for each test: home, data, runtime directory and configuration, an empty environment, one user.
//! At its end nothing may be left running.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::running::{Outcome, Run, Running};
use crate::site::{Site, site};

/// An ordinary user without an entry in the password database, and another one.
pub(crate) const USER: u32 = 5831;
pub(crate) const STRANGER: u32 = 5832;

/// Who types the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever runs the tests; of interest where that is root.
    Myself,
    /// [`USER`] where root runs the tests, else whoever runs them.
    User,
    /// The same, with subordinate ids; only where root runs the tests.
    Granted,
}

/// A hermetic place for one test.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) site: &'static Site,
    dir: TempDir,
    uid: u32,
    /// Ordinary users find an open `/dev/fuse`, whatever the host says.
    open_fuse: bool,
    /// Commands run where the clocks that count from the machine's start are so far ahead; root has to run the tests.
    pub(crate) days_ahead: Option<u16>,
    /// A file of subordinate ids that the user's commands see in place of the host's.
    granted: Option<PathBuf>,
    vars: BTreeMap<String, String>,
    /// What `--config` says.
    config: PathBuf,
}

impl Env {
    /// A fresh place, with the real backend and the faulty one configured.
    pub(crate) fn new(who: Who) -> Outcome<Self> {
        let uid = match who {
            Who::User | Who::Granted if is_root() => USER,
            _ => nix::unistd::geteuid().as_raw(),
        };
        let dir = tempfile::Builder::new().prefix("stasis-t-").tempdir_in("/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
        let config = dir.path().join("plugins.toml");
        let mut env = Self {
            site: site()?,
            config,
            dir,
            uid,
            open_fuse: false,
            days_ahead: None,
            granted: None,
            vars: BTreeMap::new(),
        };
        for (name, value) in [("LC_ALL", "C.UTF-8"), ("TERM", "dumb"), ("TZ", "UTC"), ("COLUMNS", "100")] {
            env.set(name, value);
        }
        env.set("PATH", &std::env::var("PATH").unwrap_or_default());
        let places = [
            ("HOME", "home"),
            ("STASIS_DATA_DIR", "data"),
            ("STASIS_RUNTIME_DIR", "run"),
            ("XDG_DATA_HOME", "share"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_RUNTIME_DIR", "xdg-run"),
        ];
        for (name, place) in places {
            let path = env.make_dir(place)?;
            env.set(name, &path.to_string_lossy());
        }
        env.configure(&format!(
            "order = [\"dmtcp\"]\n[backends.dmtcp]\n[backends.native]\n[backends.faulty]\n{}",
            env.criu()
        ))?;
        own(env.dir.path(), uid)?;
        if who == Who::Granted {
            // The tools that map want to know the user's name.
            env.write(
                "subordinate-ids.passwd",
                &format!("root:x:0:0::/root:/bin/sh\nplayed:x:{USER}:{USER}::/nowhere:/bin/sh\n"),
            )?;
            env.granted = Some(env.write("subordinate-ids", "played:200000:65536\n")?);
        }
        Ok(env)
    }

    /// The directory of this test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The uid of whoever types.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// A directory in it that belongs to the user, 0700.
    pub(crate) fn make_dir(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        own(&path, self.uid)?;
        Ok(path)
    }

    /// A file in it that belongs to the user, 0644.
    pub(crate) fn write(&self, name: &str, text: &str) -> Outcome<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        own(&path, self.uid)?;
        Ok(path)
    }

    /// A variable of the environment in which commands run.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.vars.insert(name.to_owned(), value.to_owned());
    }

    /// Writes `plugins.toml` anew; format version and search path are put before `text`.
    pub(crate) fn configure(&self, text: &str) -> Outcome<()> {
        let search = self.site.backends.display();
        self.write("plugins.toml", &format!("schema = 1\nsearch = [\"{search}\"]\n{text}")).map(|_| ())
    }

    /// The backend CRIU with the installation that the tests use.
    pub(crate) fn criu(&self) -> String {
        let options =
            self.site.criu.as_ref().map(|prefix| format!("options.prefix = \"{}\"\n", prefix.display()));
        format!("[backends.criu]\n{}", options.unwrap_or_default())
    }

    /// A copy of a small test image that this test may change; it belongs to the user.
    pub(crate) fn copy_image(&self, from: &str, name: &str) -> Outcome<PathBuf> {
        let to = self.path(name);
        let out = Command::new("cp").arg("-a").arg(self.site.image(from)).arg(&to).output()?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into());
        }
        let out =
            Command::new("chown").args(["-R", "-h", &format!("{0}:{0}", self.uid)]).arg(&to).output()?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into());
        }
        // Giving a file away takes this bit from it, and with it the copy would be another image.
        fs::set_permissions(to.join("opt/subjects/bin/idle-setuid"), fs::Permissions::from_mode(0o4755))?;
        Ok(to)
    }

    /// Opens `/dev/fuse` to this test's commands, for which root has to run the tests.
    pub(crate) fn open_fuse(&mut self) -> Outcome<()> {
        fs::create_dir(self.path("fuse"))?;
        self.open_fuse = true;
        Ok(())
    }

    /// Any program in the surroundings of this test.
    pub(crate) fn program(&self, program: &str) -> Command {
        let mut command = match &self.granted {
            None if !self.own_view() => Command::new(program),
            _ => self.in_its_own_view(program),
        };
        command.env_clear().envs(&self.vars).current_dir(self.path("home"));
        if !self.own_view() {
            as_user(&mut command, self.uid);
        }
        command
    }

    fn own_view(&self) -> bool {
        self.granted.is_some() || self.open_fuse || self.days_ahead.is_some()
    }

    /// A program that finds other subordinate ids than the host grants, an open `/dev/fuse` or other clocks, run as the
    /// user.
    fn in_its_own_view(&self, program: &str) -> Command {
        let ids = "mount --bind \"$1\" /etc/subuid; mount --bind \"$1\" /etc/subgid; mount --bind \"$2\" /etc/passwd;";
        let fuse = "mount -t tmpfs stasis \"$3\"; mknod -m 666 \"$3/fuse\" c 10 229
            mount --bind \"$3/fuse\" /dev/fuse; umount -l \"$3\";";
        let run = "uid=$4; shift 4; exec setpriv --reuid \"$uid\" --regid \"$uid\" --clear-groups -- \"$@\"";
        let part = |wanted: bool, text: &'static str| if wanted { text } else { "" };
        let script = [part(self.granted.is_some(), ids), part(self.open_fuse, fuse), run].join("\n");
        let file = self.granted.clone().unwrap_or_default();
        let mut command = Command::new("unshare");
        if let Some(days) = self.days_ahead {
            let ahead = (u32::from(days) * 86400).to_string();
            // Whoever makes such a namespace is not in it itself.
            command.args(["--time", "--monotonic", &ahead, "--boottime", &ahead, "--fork"]);
        }
        command
            .args(["--mount", "--", "sh", "-ec", &script, "view"])
            .arg(&file)
            .arg(file.with_extension("passwd"))
            .arg(self.path("fuse"))
            .arg(self.uid.to_string())
            .arg(program);
        command
    }

    /// A SIF file made of a test image, by the user.
    pub(crate) fn sif(&self, from: &str, name: &str) -> Outcome<PathBuf> {
        let (to, image) = (self.path(name), self.site.image(from));
        self.ok(&["build", &to.to_string_lossy(), &image.to_string_lossy()])?;
        Ok(to)
    }

    /// A command line of ours.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.program(&self.site.stasis.to_string_lossy());
        command.arg("--config").arg(&self.config).args(words);
        command
    }

    /// What a command of ours does.
    pub(crate) fn stasis(&self, words: &[&str]) -> Outcome<Run> {
        Running::start(self.command(words), false)?.wait()
    }

    /// The same by an ordinary user where no namespace of that kind may be made, for which root has to run the tests.
    pub(crate) fn limited(&self, kind: &str, words: &[&str]) -> Outcome<Run> {
        let typed = self.command(words);
        let mut command = Command::new("python3");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(typed.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/subjects/limit.py");
        command.args([script, kind]).arg(self.uid().to_string());
        command.arg(typed.get_program()).args(typed.get_args());
        Running::start(command, false)?.wait()
    }

    /// Starts one in the background.
    pub(crate) fn spawn(&self, words: &[&str]) -> Outcome<Running> {
        Running::start(self.command(words), true)
    }

    /// One that has to succeed.
    pub(crate) fn ok(&self, words: &[&str]) -> Outcome<Run> {
        let run = self.stasis(words)?;
        if run.code == 0 {
            Ok(run)
        } else {
            Err(format!("stasis {} ended with {}:\n{}{}", words.join(" "), run.code, run.out, run.err).into())
        }
    }

    /// One that has to fail: its exit code and all it said, with placeholders, for a snapshot.
    pub(crate) fn fails(&self, words: &[&str]) -> Outcome<String> {
        let run = self.stasis(words)?;
        if run.code == 0 {
            return Err(format!("stasis {} told success:\n{}{}", words.join(" "), run.out, run.err).into());
        }
        Ok(self.told(&run))
    }

    /// The manifest of the newest generation of a checkpoint.
    pub(crate) fn newest(&self, checkpoint: &str) -> Outcome<serde_json::Value> {
        let shown = self.ok(&["checkpoint", "show", checkpoint, "--json"])?.out;
        let mut shown: serde_json::Value = serde_json::from_str(&shown)?;
        let generations = shown["generations"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let newest = generations.into_iter().max_by_key(|generation| generation["generation"].as_u64());
        newest.ok_or_else(|| format!("{checkpoint} has no generation").into())
    }

    /// Exit code and all that was said, with placeholders, for a snapshot.
    pub(crate) fn told(&self, run: &Run) -> String {
        self.plain(&format!("exit {}\n{}{}", run.code, run.out, run.err))
    }

    /// Text with placeholders for what differs from run to run.
    pub(crate) fn plain(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let images = self.site.image("");
        let places = [
            (self.dir.path(), "$DIR"),
            (images.as_path(), "$IMAGES/"),
            (self.site.backends.as_path(), "$BACKENDS"),
        ];
        for (path, name) in places {
            text = text.replace(&*path.to_string_lossy(), name);
        }
        if let Some(dir) = self.site.stasis.parent() {
            text = text.replace(&*dir.to_string_lossy(), "$BIN");
        }
        if let Ok(host) = nix::unistd::gethostname() {
            text = text.replace(&format!("/instances/{}/", host.to_string_lossy()), "/instances/HOST/");
        }
        for before in [
            "pid ",
            "PID=",
            "process ",
            "descriptor ",
            "uid ",
            "port ",
            "127.0.0.1:",
            "it has ",
            " of ",
            "faults.rs:",
        ] {
            text = number_after(&text, before);
        }
        time_after(&text, "since ")
    }

    /// The end of a test: stops every instance and sees to it that nothing runs on and nothing half made lies around.
    pub(crate) fn finish(self) -> Outcome<()> {
        self.stasis(&["instance", "stop", "--all"])?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.survivors();
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("left running: {left:#?}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let half = self.half_made();
        if half.is_empty() { Ok(()) } else { Err(format!("left behind: {half:?}").into()) }
    }

    /// Processes that belong to this test: what it started, which has its runtime directory in the environment, and
    /// what runs in its containers, whose mounts come out of its directory.
    ///
    /// They are killed when a test has failed, so nothing that anybody else started may be among them: names in
    /// arguments do not count, and of mounts only those do that are not also everybody's.
    pub(crate) fn survivors(&self) -> Vec<(Pid, String)> {
        let ours = format!("STASIS_RUNTIME_DIR={}", self.path("run").display());
        let dir = format!("{}/", self.dir.path().display());
        let host = fs::read_link("/proc/thread-self/ns/mnt").ok();
        let root = fs::read_link("/proc/self/ns/mnt").ok();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let started = |pid: i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes())
        };
        let contained = |pid: i32| {
            let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            let apart = namespace.is_some() && namespace != host && namespace != root;
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            // The fourth field: what is mounted, as a path in its file system.
            apart
                && mounts
                    .lines()
                    .any(|line| line.split(' ').nth(3).is_some_and(|what| what.starts_with(&dir)))
        };
        pids.filter(|pid| *pid > 1 && (started(*pid) || contained(*pid)))
            .filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
            .map(|pid| {
                let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                (Pid::from_raw(pid), String::from_utf8_lossy(&text).replace('\0', " "))
            })
            .collect()
    }

    /// What a capture may not leave in the store.
    fn half_made(&self) -> Vec<PathBuf> {
        let Ok(checkpoints) = fs::read_dir(self.path("data/checkpoints")) else { return Vec::new() };
        let generations =
            checkpoints.filter_map(|entry| fs::read_dir(entry.ok()?.path().join("generations")).ok());
        let entries = generations.flatten().filter_map(|entry| Some(entry.ok()?.path()));
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "partial")).collect()
    }
}

impl Drop for Env {
    /// A test that failed leaves things running; they are ended one by one.
    fn drop(&mut self) {
        for (pid, _) in self.survivors() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // Where a test has mounted a file system of its own, the directory could not be removed.
        let _ = umount2(&self.path("data"), MntFlags::MNT_DETACH);
    }
}

/// Makes a command run as `uid`, without groups and capabilities, where root runs the tests.
pub(crate) fn as_user(command: &mut Command, uid: u32) {
    if is_root() && uid != 0 {
        command.uid(uid).gid(uid);
    }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Gives a file to `uid` where that is not us.
pub(crate) fn own(path: &Path, uid: u32) -> std::io::Result<()> {
    if is_root() && uid != 0 { chown(path, Some(uid), Some(uid)) } else { Ok(()) }
}

/// Puts TIME where a time, as 2026-01-02T03:04:05Z, follows `before`.
fn time_after(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || "-:TZ".contains(c));
        out.push_str(before);
        out.push_str(if rest.len() < part.len() { "TIME" } else { "" });
        out.push_str(rest);
    }
    out
}

/// Puts N where a number follows `before`.
fn number_after(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str(before);
        out.push_str(if rest.len() < part.len() { "N" } else { "" });
        out.push_str(rest);
    }
    out
}
