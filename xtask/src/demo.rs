//! The main job for a person to watch: start, save, stop, bring back, with the time of each step.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::shell::{command, remove, target};
use crate::{Result, host, image};

/// Plays the transcript of the README with a backend.
fn run_steps(stage: &Stage, backend: &str) -> Result<()> {
    let (image, port) = (stage.image.to_string_lossy().into_owned(), stage.port.to_string());
    stage.stasis(&["checkpoint", "create", "example"])?;
    let start =
        ["instance", "start", "--backend", backend, "--checkpoint", "example", &image, "server", &port];
    stage.stasis(&start)?;
    stage.ask(None, "0")?;
    stage.ask(Some("1"), "1")?;
    stage.ask(None, "1")?;
    stage.stasis(&["checkpoint", "instance", "server"])?;
    stage.stasis(&["instance", "stop", "server"])?;
    let restart =
        ["instance", "start", "--backend", backend, "--restart", "example", &image, "restarted", &port];
    stage.stasis(&restart)?;
    stage.ask(None, "1")?;
    stage.ask(Some("2"), "2")?;
    stage.stasis(&["checkpoint", "instance", "restarted"])?;
    stage.stasis(&["instance", "stop", "restarted"])?;
    stage.stasis(&restart)?;
    stage.ask(None, "2")?;
    stage.stasis(&["instance", "list"])?;
    stage.stasis(&["checkpoint", "list"])?;
    stage.stasis(&["instance", "stop", "restarted"])?;
    stage.stasis(&["checkpoint", "delete", "example"])
}

/// Builds what is needed, plays, and takes everything away again.
pub(crate) fn run(backend: &str) -> Result<()> {
    host::prepare()?;
    let image = image::make()?.join("server");
    let plugin = format!("stasis-{backend}");
    crate::shell::run(&mut command(&[
        "cargo",
        "build",
        "--quiet",
        "--package",
        "stasis",
        "--package",
        &plugin,
    ]))?;
    let stage = Stage::new(image, backend)?;
    println!();
    let played = run_steps(&stage, backend);
    let stopped = stage.stop_all();
    played.and(stopped).and(remove(&stage.dir))
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
    fn new(image: PathBuf, backend: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("stasis-demo-{}", std::process::id()));
        crate::shell::output(Command::new("mkdir").args(["-m", "0700", "--"]).arg(&dir))?;
        let built = target()?.join("debug");
        let config = format!(
            "schema = 1\nsearch = [\"{}\"]\norder = [\"{backend}\"]\n[backends.{backend}]\n",
            built.display()
        );
        std::fs::write(dir.join("plugins.toml"), config)
            .map_err(|why| format!("cannot write plugins.toml: {why}"))?;
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
        let begun = Instant::now();
        let status = self.command(words).status().map_err(|why| format!("cannot run stasis: {why}"))?;
        println!("{:>70}", format!("{} ms", begun.elapsed().as_millis()));
        if status.success() { Ok(()) } else { Err(format!("failed ({status}): stasis {shown}")) }
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
