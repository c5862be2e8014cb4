//! The main job for a person to watch: start, save, stop, bring back, with the time of each step.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::product::Profile;
use crate::shell::{on_path, output, remove, write};
use crate::{Result, criu, host, image, product};

/// Plays the transcript of the README with a backend.
fn run_steps(stage: &Stage, backend: &str) -> Result<()> {
    let (image, port) = (stage.image.to_string_lossy().into_owned(), stage.port.to_string());
    step("Start a server that holds one character, so that it can be saved into \"example\"");
    stage.stasis(&["checkpoint", "create", "example"])?;
    stage.stasis(&[
        "instance",
        "start",
        "--backend",
        backend,
        "--checkpoint",
        "example",
        &image,
        "server",
        &port,
    ])?;
    stage.ask(None, "0")?;
    step("Set its state");
    stage.ask(Some("1"), "1")?;
    stage.ask(None, "1")?;
    step("Save it while it runs, then kill it");
    stage.stasis(&["checkpoint", "instance", "server"])?;
    stage.stasis(&["instance", "stop", "--signal", "KILL", "server"])?;
    step("Bring it back in another container: the state is there");
    let restart =
        ["instance", "start", "--backend", backend, "--restart", "example", &image, "restarted", &port];
    stage.stasis(&restart)?;
    stage.ask(None, "1")?;
    step("The same again with what was brought back");
    stage.ask(Some("2"), "2")?;
    stage.stasis(&["checkpoint", "instance", "restarted"])?;
    stage.stasis(&["instance", "stop", "restarted"])?;
    stage.stasis(&restart)?;
    stage.ask(None, "2")?;
    step("What there is now, and the end");
    stage.stasis(&["instance", "list"])?;
    stage.stasis(&["checkpoint", "list"])?;
    stage.stasis(&["instance", "stop", "restarted"])?;
    stage.stasis(&["checkpoint", "delete", "example"])
}

/// Says what comes next, for a person who watches.
fn step(what: &str) {
    println!("\n# {what}");
}

/// Builds what is needed, plays, and takes everything away again.
pub(crate) fn run(wanted: Option<&str>) -> Result<()> {
    host::allows_containers()?;
    host::prepare()?;
    let engine = Engine::choose(wanted)?;
    step("Make an image of this machine's own packages");
    let image = timed(image::make)?.join("server");
    step("Build stasis and its backend");
    let built = timed(|| product::build(Profile::Dev, std::slice::from_ref(&engine.backend)))?;
    let stage = Stage::new(image, &built, &engine)?;
    let played = run_steps(&stage, &engine.backend);
    let version = stage.engine_version();
    let stopped = stage.stop_all();
    played.and(stopped).and(remove(&stage.dir))?;
    println!("\nengines exercised: {} {version}", engine.backend);
    Ok(())
}

/// Does something and shows how long that took.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let done = work()?;
    println!("{:>70}", format!("{} ms", begun.elapsed().as_millis()));
    Ok(done)
}

/// What saves and brings back.
#[derive(Debug)]
struct Engine {
    backend: String,
    /// Where it is, if not where the backend looks by itself.
    prefix: Option<PathBuf>,
}

impl Engine {
    /// The one that is named, else the first that can be had here: our own, which needs nothing; on another processor
    /// DMTCP if it is installed, else CRIU, which is fetched.
    fn choose(wanted: Option<&str>) -> Result<Self> {
        let backends = product::backends()?;
        let has = |name: &str| backends.iter().any(|backend| backend == name);
        let backend = match wanted {
            Some(name) if has(name) => name,
            Some(name) => {
                return Err(format!("there is no backend {name} here, but {}", backends.join(" and ")));
            }
            None if has("native") && cfg!(target_arch = "x86_64") => "native",
            None if has("criu") && !on_path("dmtcp_launch") => "criu",
            None => "dmtcp",
        };
        let prefix = match backend {
            "criu" => {
                let found = criu::find_or_fetch().map_err(|why| match wanted {
                    Some(_) => why,
                    None => format!("dmtcp_launch is not on PATH, and {why}"),
                });
                found?.prefix
            }
            "dmtcp" if !on_path("dmtcp_launch") => {
                return Err("dmtcp_launch is not on PATH; install DMTCP as README.md says".to_owned());
            }
            _ => None,
        };
        Ok(Self { backend: backend.to_owned(), prefix })
    }
}

/// Where the demonstration happens: nothing of the user's own is touched.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: PathBuf,
    image: PathBuf,
    stasis: PathBuf,
    port: u16,
}

impl Stage {
    fn new(image: PathBuf, built: &Path, engine: &Engine) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("stasis-demo-{}", std::process::id()));
        output(Command::new("mkdir").args(["-m", "0700", "--"]).arg(&dir))?;
        let backend = &engine.backend;
        let mut config = format!(
            "schema = 1\nsearch = [\"{}\"]\norder = [\"{backend}\"]\n[backends.{backend}]\n",
            built.display()
        );
        if let Some(prefix) = &engine.prefix {
            let prefix = prefix.display();
            config.push_str(&format!("[backends.{backend}.options]\nprefix = \"{prefix}\"\n"));
        }
        write(&dir.join("plugins.toml"), &config, 0o644)?;
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.map_err(|why| format!("no port is free: {why}"))?.port();
        Ok(Self { dir, image, stasis: built.join("stasis"), port })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.stasis);
        command.arg("--config").arg(self.dir.join("plugins.toml")).args(words).stdin(Stdio::null());
        command.env("STASIS_DATA_DIR", self.dir.join("data")).env("STASIS_RUNTIME_DIR", self.dir.join("run"));
        command
    }

    /// One command as a user types it.
    fn stasis(&self, words: &[&str]) -> Result<()> {
        let shown = words.join(" ").replace(&*self.image.to_string_lossy(), "server/");
        println!("$ stasis {shown}");
        let run = || self.command(words).status().map_err(|why| format!("cannot run stasis: {why}"));
        let status = timed(run)?;
        if status.success() { Ok(()) } else { Err(format!("failed ({status}): stasis {shown}")) }
    }

    /// As the backend has found it.
    fn engine_version(&self) -> String {
        let told = output(&mut self.command(&["backend", "list", "--json"])).unwrap_or_default();
        let line = told.lines().find_map(|line| line.trim().strip_prefix("\"engine_version\": \""));
        line.map_or_else(
            || "of an unknown version".to_owned(),
            |rest| rest.trim_end_matches("\",").to_owned(),
        )
    }

    fn stop_all(&self) -> Result<()> {
        let out = self.command(&["instance", "stop", "--all"]).output();
        out.map(|_| ()).map_err(|why| format!("cannot run stasis: {why}"))
    }

    /// Asks the server for its character, or sets it, as curl would.
    fn ask(&self, set: Option<&str>, expected: &str) -> Result<()> {
        let post = set.map(|value| format!("-X POST -d {value} ")).unwrap_or_default();
        println!("$ curl {post}http://127.0.0.1:{}", self.port);
        let begun = Instant::now();
        let answer = self.answer(set).map_err(|why| format!("the server does not answer: {why}"))?;
        println!("{answer:<20}{:>50}", format!("{} ms", begun.elapsed().as_millis()));
        if answer == expected {
            Ok(())
        } else {
            Err(format!("the server answered {answer:?}, not {expected:?}"))
        }
    }

    fn answer(&self, set: Option<&str>) -> std::io::Result<String> {
        let mut stream = self.connect(Instant::now() + Duration::from_secs(20))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let request = match set {
            Some(value) => format!("POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n{value}", value.len()),
            None => "GET / HTTP/1.0\r\n\r\n".to_owned(),
        };
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    fn connect(&self, deadline: Instant) -> std::io::Result<TcpStream> {
        loop {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                other => return other,
            }
        }
    }
}
