//! Where the measuring happens: options, program, images, and a directory that goes away afterwards.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::report::Report;
use crate::size::Size;

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) runs: usize,
    pub(crate) sizes: Vec<Size>,
    pub(crate) json: PathBuf,
    /// The prefix of a private CRIU.
    pub(crate) criu: Option<PathBuf>,
    /// Nothing is saved.
    pub(crate) only_images: bool,
    /// Only the usage is asked for.
    pub(crate) help: bool,
    engines: Option<Vec<String>>,
    images: PathBuf,
    stasis: PathBuf,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."));
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let mut options = Self {
            runs: 7,
            sizes: [0, 64, 1024].map(Size::of).to_vec(),
            json: target.join("bench.json"),
            criu: None,
            only_images: false,
            help: false,
            engines: None,
            images: target.join("stasis-tests/images"),
            stasis: target.join("release/stasis"),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if ["--help", "-h"].contains(&word.as_str()) {
                options.help = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--runs" => options.runs = number(value)?,
                "--sizes" => options.sizes = value.split(',').map(str::parse).collect::<Result<_>>()?,
                "--json" => options.json = PathBuf::from(value),
                // What `cargo xtask criu` prints where none is needed.
                "--criu" if value.is_empty() => {}
                "--criu" => options.criu = Some(absolute(value)?),
                "--engines" => options.engines = Some(value.split(',').map(str::to_owned).collect()),
                "--only" if value == "starts" => options.only_images = true,
                "--images" => options.images = PathBuf::from(value),
                "--stasis" => options.stasis = PathBuf::from(value),
                _ => return Err(format!("{word} is not known")),
            }
        }
        if options.runs == 0 { Err("--runs has to be 1 at least".to_owned()) } else { Ok(options) }
    }
}

fn number<T: std::str::FromStr>(text: impl AsRef<str>) -> Result<T> {
    text.as_ref().parse().map_err(|_| format!("{:?} is not a number", text.as_ref()))
}

fn absolute(path: impl AsRef<Path>) -> Result<PathBuf> {
    std::path::absolute(&path).map_err(|why| format!("{}: {why}", path.as_ref().display()))
}

/// Program, images and a directory of our own.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    /// In memory, as it is where nobody says otherwise.
    runtime: PathBuf,
    images: PathBuf,
    stasis: PathBuf,
    pub(crate) runs: usize,
}

impl Place {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        for file in [&options.images.join("stamp"), &options.stasis] {
            if !file.exists() {
                return Err(format!("{} is missing", file.display()));
            }
        }
        let dir = std::env::temp_dir().join(format!("stasis-bench-{}", std::process::id()));
        output(Command::new("mkdir").args(["-m", "0700", "--"]).arg(&dir))?;
        let shared = Path::new("/dev/shm");
        let runtime = match shared.is_dir() {
            true => shared.join(format!("stasis-bench-{}", std::process::id())),
            false => dir.join("run"),
        };
        let place = Self {
            dir,
            runtime,
            images: options.images.clone(),
            stasis: absolute(&options.stasis)?,
            runs: options.runs,
        };
        let built = place.stasis.parent().unwrap_or(&place.stasis).display().to_string();
        let criu = options.criu.as_ref();
        let criu = criu.map(|prefix| format!("options.prefix = {prefix:?}\n")).unwrap_or_default();
        let config = format!(
            "schema = 1\nsearch = [{built:?}]\norder = []\n[backends.dmtcp]\n[backends.native]\n[backends.criu]\n{criu}"
        );
        std::fs::write(place.dir.join("plugins.toml"), config)
            .map_err(|why| format!("plugins.toml: {why}"))?;
        Ok(place)
    }

    /// The directory of an image.
    pub(crate) fn image(&self, name: &str) -> String {
        self.images.join(name).to_string_lossy().into_owned()
    }

    /// A copy of an image without anything that says how it is to be run.
    pub(crate) fn files_only(&self, name: &str) -> Result<String> {
        let copy = self.path("files-only").to_string_lossy().into_owned();
        if Path::new(&copy).exists() {
            return Ok(copy);
        }
        output(Command::new("cp").args(["-a", "--", &self.image(name), &copy]))?;
        output(Command::new("rm").args(["-rf", "--", &format!("{copy}/.singularity.d")]))?;
        Ok(copy)
    }

    /// A path of our own.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Engines whose plugin says that it can be used here, or why one that was asked for cannot.
    pub(crate) fn engines(&self, options: &Options, report: &mut Report) -> Vec<String> {
        let known = || ["dmtcp", "criu", "native"].map(str::to_owned).to_vec();
        let mut usable = Vec::new();
        for name in options.engines.clone().unwrap_or_else(known) {
            match output(&mut self.command(&["backend", "check", &name])) {
                Ok(_) => usable.push(name),
                Err(why) if options.engines.is_some() => report.note(why),
                Err(_) => {}
            }
        }
        usable
    }

    /// A command line of ours.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.stasis);
        command.arg("--config").arg(self.dir.join("plugins.toml")).args(words).stdin(Stdio::null());
        command.env("STASIS_DATA_DIR", self.dir.join("data")).env("STASIS_RUNTIME_DIR", &self.runtime);
        command.env_remove("STASIS_IMAGE_MOUNT");
        command
    }

    /// Runs one and tells how long it took.
    pub(crate) fn stasis(&self, words: &[&str]) -> Result<Duration> {
        timed(&mut self.command(words))
    }

    /// The same, with what it told.
    pub(crate) fn told(&self, words: &[&str]) -> Result<(Duration, String)> {
        let begun = Instant::now();
        let told = output(&mut self.command(words))?;
        Ok((begun.elapsed(), told))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.command(&["instance", "stop", "--all"]).output();
        let _ = output(Command::new("rm").arg("-rf").arg("--").args([&self.dir, &self.runtime]));
    }
}

/// How long a command takes that has to succeed.
pub(crate) fn timed(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    output(command)?;
    Ok(begun.elapsed())
}

/// What a command tells that has to succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let shown = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let out = command.output().map_err(|why| format!("cannot run {shown}: {why}"))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!("failed ({}): {shown}\n{}", out.status, String::from_utf8_lossy(&out.stderr)))
    }
}

/// Whether a program is on PATH.
pub(crate) fn on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

/// Where a program is that is on PATH.
pub(crate) fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Whether this is root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}
