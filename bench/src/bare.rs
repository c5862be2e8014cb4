//! CRIU alone, in a container made by hand, with the flags that our backend gives it: what the engine costs without us.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::jobs::{Job, ask, gap, settle};
use crate::place::{Place, find_on_path, is_root, output, timed};
use crate::report::Runs;

/// In the figures.
pub(crate) const WHO: &str = "bare criu";
/// With memory brought back when it is touched (`lazy-pages`), which takes privilege.
pub(crate) const LAZY: &str = "bare criu, lazy";
/// `sh -c SCRIPT NAME IMAGE USR DIRECTORY [PROGRAM...]`, the init of new namespaces.
const SCRIPT: &str = include_str!("bare/container.sh");
/// As our backend has them.
const FLAGS: [&str; 6] =
    ["-v2", "--no-default-config", "--file-locks", "--manage-cgroups=ignore", "--ghost-limit", "64M"];

/// A CRIU with its libraries.
#[derive(Debug)]
pub(crate) struct Bare {
    /// The directory that becomes `/mnt/usr` inside.
    usr: PathBuf,
    /// The loader with its arguments and the program, inside.
    criu: Vec<String>,
}

impl Bare {
    /// The same CRIU as our backend's: of a prefix, or the one on PATH, be it installed or the script of a prefix.
    pub(crate) fn find(prefix: Option<&Path>) -> Result<Self> {
        let usr = match prefix {
            Some(prefix) => prefix.join("usr"),
            None => {
                let found = find_on_path("criu").ok_or("criu is not on PATH")?;
                let real = found.canonicalize().map_err(|why| format!("{}: {why}", found.display()))?;
                let around = real.ancestors().map(|dir| dir.join("usr"));
                around
                    .into_iter()
                    .find(|usr| usr.join("sbin/criu").is_file())
                    .ok_or_else(|| format!("{} is not in a directory usr/sbin", real.display()))?
            }
        };
        let libraries = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
        let there = std::fs::read_dir(usr.join(&libraries)).into_iter().flatten().flatten();
        let mut names = there.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let loader = names
            .find(|name| name.starts_with("ld-linux"))
            .ok_or_else(|| format!("{} has no loader", usr.join(&libraries).display()))?;
        let inside = format!("/mnt/usr/{libraries}");
        let loader = format!("{inside}/{loader}");
        let criu = [&loader, "--argv0", "criu", "--library-path", &inside, "/mnt/usr/sbin/criu"];
        Ok(Self { usr, criu: criu.map(str::to_owned).to_vec() })
    }

    /// Start, dump, end, restore in a new container: once.
    pub(crate) fn run(&self, place: &Place, job: &Job, runs: &mut Runs) -> Result<()> {
        let work = place.path("bare");
        for dir in [&work, &work.join("root"), &work.join("images")] {
            std::fs::create_dir(dir).map_err(|why| format!("{}: {why}", dir.display()))?;
        }
        self.save(place, &work, job, runs)?;
        // What our capture has made durable is at rest at its restart. So is this.
        output(Command::new("sh").arg("-c").arg("sync \"$0\"/*").arg(work.join("images")))?;
        self.bring_back(place, &work, job, runs)?;
        if is_root() {
            self.bring_back_lazily(place, &work, job, runs)?;
        }
        output(Command::new("rm").arg("-rf").arg("--").arg(&work)).map(|_| ())
    }

    fn save(&self, place: &Place, work: &Path, job: &Job, runs: &mut Runs) -> Result<()> {
        let begun = Instant::now();
        let container = Container::new(place, self, work, &job.program())?;
        ask(job.port, "/")?;
        runs.add("start to first answer", WHO, begun.elapsed());
        settle(place, job)?;
        ask(job.port, "/gap")?;
        let dump = ["-t", "100", "-D", "/mnt/scratch/images", "-W", "/mnt/scratch/images", "--display-stats"];
        let dump = [&dump[..], &["--network-lock", "skip", "-R"]].concat();
        runs.add("capture: the engine", WHO, timed(&mut self.inside(&container, "dump", &dump))?);
        runs.add("pause seen by the application", WHO, gap(job.port)?);
        container.end()
    }

    fn bring_back(&self, place: &Place, work: &Path, job: &Job, runs: &mut Runs) -> Result<()> {
        let begun = Instant::now();
        let container = Container::new(place, self, work, &[])?;
        let made = begun.elapsed();
        let restore = ["-d", "-D", "/mnt/scratch/images", "-W", "/mnt", "--pidfile", "root-pid"];
        let engine = timed(&mut self.inside(&container, "restore", &restore))?;
        ask(job.port, "/")?;
        runs.add("restart to first answer", WHO, begun.elapsed());
        runs.add("restart: the container", WHO, made);
        runs.add("restart: the engine", WHO, engine);
        if ask(job.port, "/check")? != "good" {
            return Err("it brought back something else than it saved".to_owned());
        }
        container.end()
    }

    fn bring_back_lazily(&self, place: &Place, work: &Path, job: &Job, runs: &mut Runs) -> Result<()> {
        let failed = |why: std::io::Error| format!("lazy-pages: {why}");
        let begun = Instant::now();
        let container = Container::new(place, self, work, &[])?;
        let images = ["-D", "/mnt/scratch/images", "-W", "/mnt"];
        let socket = PathBuf::from(format!("/proc/{}/root/mnt/lazy-pages.socket", container.init));
        let mut pages = self.inside(&container, "lazy-pages", &images).spawn().map_err(failed)?;
        while !socket.exists() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let restore = [&["-d", "--lazy-pages"][..], &images, &["--pidfile", "root-pid"]].concat();
        let done = timed(&mut self.inside(&container, "restore", &restore)).and_then(|_| {
            ask(job.port, "/")?;
            runs.add("restart to first answer", LAZY, begun.elapsed());
            ask(job.port, "/check")
        });
        let ended = container.end();
        let _ = pages.kill();
        pages.wait().map_err(failed)?;
        ended?;
        if done? == "good" { Ok(()) } else { Err("lazily it brought back something else".to_owned()) }
    }

    fn inside(&self, container: &Container, word: &str, more: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &container.init, "-m", "-p", "-i", "-u"]);
        command.args(["-U", "--preserve-credentials"].iter().filter(|_| !is_root()));
        command.arg("--").args(&self.criu).arg(word).args(FLAGS);
        command.args(["--unprivileged"].iter().filter(|_| !is_root())).args(more);
        command.env("XDG_RUNTIME_DIR", "/mnt").stdin(Stdio::null());
        command
    }
}

/// A container that stands. It goes with its init.
struct Container {
    unshare: Child,
    /// Its pid as seen from here.
    init: String,
}

impl Container {
    fn new(place: &Place, bare: &Bare, work: &Path, program: &[&str]) -> Result<Self> {
        let failed = |why: std::io::Error| format!("cannot make a container by hand: {why}");
        let log = work.join("container.log");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"].iter().filter(|_| !is_root()));
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
        command.args(["--ipc", "--uts", "sh", "-c", SCRIPT, "container", &place.image("any")]);
        command.arg(&bare.usr).arg(work).args(program).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(File::create(&log).map_err(failed)?);
        let mut unshare = command.spawn().map_err(failed)?;
        let mut init = String::new();
        if let Some(stdout) = unshare.stdout.take() {
            BufReader::new(stdout).read_line(&mut init).map_err(failed)?;
        }
        let container = Self { unshare, init: init.trim().to_owned() };
        if container.init.is_empty() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("cannot make a container by hand: {}", said.trim()));
        }
        Ok(container)
    }

    /// Returns when nothing of it is left.
    fn end(mut self) -> Result<()> {
        output(Command::new("kill").args(["-KILL", &self.init]))?;
        self.unshare.wait().map(|_| ()).map_err(|why| why.to_string())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The flag --kill-child takes the rest along; one that was ended properly is no more.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
