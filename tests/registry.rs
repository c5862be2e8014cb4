//! Images as registries have them, made out of a test image, and places to have them from: Debian's docker-registry, and
//! a server of our own that does what a registry should not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::env::{Env, own};
use crate::http::free_port;
use crate::running::Outcome;

/// A blob and what is said of it.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: String,
    pub(crate) media: &'static str,
}

impl Blob {
    pub(crate) fn new(media: &'static str, bytes: Vec<u8>) -> Self {
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        Self { bytes, digest, media }
    }

    fn json(media: &'static str, value: &Value) -> Self {
        Self::new(media, value.to_string().into_bytes())
    }

    /// As a manifest names it.
    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media, "digest": self.digest, "size": self.bytes.len()})
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A whole image.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
    pub(crate) manifest: Blob,
}

/// The files of a test image as one layer, packed with gzip. What it says of itself is left out.
pub(crate) fn layer_of(root: &Path) -> Outcome<(Vec<u8>, String)> {
    let out = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["--exclude=./.singularity.d", "--owner=0", "--group=0", "--sort=name", "-cf", "-", "."])
        .output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into());
    }
    Ok((gzip(&out.stdout)?, plain_digest(&out.stdout)))
}

/// Of an archive that is not packed.
pub(crate) fn plain_digest(archive: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(archive)))
}

pub(crate) fn gzip(bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes)?;
    Ok(packed.finish()?)
}

/// An image of these layers, packed and not, for this machine or another one.
pub(crate) fn image(layers: &[(Vec<u8>, String)], architecture: &str, run: &Value) -> Made {
    let plain: Vec<&String> = layers.iter().map(|(_, plain)| plain).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": plain},
    });
    let config = Blob::json(CONFIG, &config);
    let layers: Vec<Blob> = layers.iter().map(|(packed, _)| Blob::new(LAYER, packed.clone())).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
    });
    Made { config, layers, manifest: Blob::json(MANIFEST, &manifest) }
}

/// This machine, as images name it.
pub(crate) fn here() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The small test image, as docker would have it.
pub(crate) fn small(env: &Env) -> Outcome<Made> {
    let run = json!({
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=hello 'world'"],
        "Entrypoint": ["/bin/echo", "it says"],
        "Cmd": ["nothing"],
        "Labels": {"maintainer": "nobody"},
    });
    Ok(image(&[layer_of(&env.site.image("small"))?], here(), &run))
}

impl Made {
    /// Writes it as an image layout with the tag `v1`.
    pub(crate) fn layout(&self, env: &Env, name: &str) -> Outcome<PathBuf> {
        let dir = env.path(name);
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            fs::write(blobs.join(blob.digest.trim_start_matches("sha256:")), &blob.bytes)?;
        }
        let mut top = self.manifest.descriptor();
        top["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [top]}).to_string())?;
        fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
        let out = Command::new("chown").arg("-R").arg(format!("{0}:{0}", env.uid())).arg(&dir).output()?;
        if out.status.success() { Ok(dir) } else { Err(String::from_utf8_lossy(&out.stderr).into()) }
    }
}

/// skopeo, with nothing of the host's own settings.
pub(crate) fn skopeo(env: &Env, words: &[&str]) -> Outcome<()> {
    let mut command = env.program("skopeo");
    command.arg("--insecure-policy").args(words).env("REGISTRY_AUTH_FILE", env.path("skopeo-auth.json"));
    let out = command.stdin(Stdio::null()).output()?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into()) }
}

/// Debian's docker-registry on a port of its own.
#[derive(Debug)]
pub(crate) struct Registry {
    child: Child,
    host: &'static str,
    pub(crate) port: u16,
}

/// What a registry wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    Nothing,
    /// `tester` and `a password`.
    Password,
    /// TLS, with a certificate signed by `authority.pem` in the directory of the test. Its address is one that leads
    /// here and does not look like it.
    Tls,
}

impl Registry {
    pub(crate) fn start(env: &Env, wants: Wants) -> Outcome<Self> {
        let port = free_port()?;
        let dir = env.path(&format!("registry-{port}"));
        fs::create_dir(&dir)?;
        let mut host = "127.0.0.1";
        let mut tls = String::new();
        if wants == Wants::Tls {
            host = "0.0.0.0";
            certificates(env.dir(), &dir)?;
            tls = format!(", tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}", dir.display());
        }
        let auth = if wants == Wants::Password {
            let out = Command::new("htpasswd").args(["-Bbn", "tester", "a password"]).output()?;
            fs::write(dir.join("users"), out.stdout)?;
            format!("auth: {{htpasswd: {{realm: test, path: {}/users}}}}\n", dir.display())
        } else {
            String::new()
        };
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"{tls}}}\n{auth}",
            dir.join("data").display()
        );
        fs::write(dir.join("config.yml"), text)?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { child, host, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if Instant::now() > deadline {
                return Err("docker-registry does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("docker://{}:{}/{rest}", self.host, self.port)
    }

    /// Copies a layout into it.
    pub(crate) fn fill(&self, env: &Env, layout: &Path, name: &str, flags: &[&str]) -> Outcome<()> {
        let from = format!("oci:{}:v1", layout.display());
        let to = self.name(name);
        let words = [&["copy", "--dest-tls-verify=false"], flags, &[from.as_str(), to.as_str()]].concat();
        skopeo(env, &words)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority, and a certificate of it for a registry.
fn certificates(top: &Path, dir: &Path) -> Outcome<()> {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout \"$2/ca.key\" -out \"$1/authority.pem\" \
          -days 2 -subj '/CN=authority of a test'
        openssl req -newkey rsa:2048 -nodes -keyout \"$2/key.pem\" -out \"$2/cert.csr\" -subj /CN=registry
        printf 'subjectAltName=IP:0.0.0.0\\nbasicConstraints=CA:FALSE\\n' > \"$2/extensions\"
        openssl x509 -req -in \"$2/cert.csr\" -CA \"$1/authority.pem\" -CAkey \"$2/ca.key\" -CAcreateserial \
          -days 2 -extfile \"$2/extensions\" -out \"$2/cert.pem\"";
    let out =
        Command::new("sh").args(["-ec", script, "sh"]).arg(top).arg(dir).stdin(Stdio::null()).output()?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into()) }
}

/// One answer of [`Odd`].
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// `Range` is honoured.
    pub(crate) ranges: bool,
    /// The body comes in ten pieces with this between them.
    pub(crate) pause: Duration,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
            ranges: true,
            pause: Duration::ZERO,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What is asked: path, with `HEAD` before it where only the headers are wanted, and headers in lower case.
pub(crate) type Asked = (String, BTreeMap<String, String>);

/// A registry that answers as a test says.
pub(crate) struct Odd {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Odd {
    /// `answer` gets what was asked and how many questions for this path there were before.
    pub(crate) fn start(answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        // It ends with the test program.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    // One request for each connection; who goes away while it is answered is no matter.
                    let _ = serve(&stream, &log, &*answer);
                });
            }
        });
        Ok(Self { port, asked })
    }

    /// One that has this image, under any name, and answers otherwise where `odd` says so.
    pub(crate) fn with(
        made: &Made,
        odd: impl Fn(&Asked, usize) -> Option<Answer> + Send + Sync + 'static,
    ) -> Outcome<Self> {
        let mut has: BTreeMap<String, Blob> = BTreeMap::new();
        for blob in made.layers.iter().chain([&made.config, &made.manifest]) {
            has.insert(blob.digest.clone(), blob.clone());
        }
        has.insert("v1".to_owned(), made.manifest.clone());
        Self::start(move |asked, before| {
            odd(asked, before).unwrap_or_else(|| {
                let last = asked.0.rsplit('/').next().unwrap_or_default();
                match has.get(last) {
                    Some(blob) => Answer::new(200, blob.bytes.clone())
                        .header("Content-Type", blob.media)
                        .header("Docker-Content-Digest", &blob.digest),
                    None => Answer::new(404, "{\"errors\":[{\"code\":\"X\",\"message\":\"no such thing\"}]}"),
                }
            })
        })
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("docker://127.0.0.1:{}/{rest}", self.port)
    }

    /// Everything that was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    stream: &TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &dyn Fn(&Asked, usize) -> Answer,
) -> Outcome<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default();
    let path = if line.starts_with("HEAD") { format!("HEAD {path}") } else { path.to_owned() };
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut form = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut form)?;
    headers.insert("form".to_owned(), String::from_utf8_lossy(&form).into_owned());
    let asked = (path, headers);
    let before = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push(asked.clone());
        log.iter().filter(|(path, _)| *path == asked.0).count() - 1
    };
    send(stream, &asked, &answer(&asked, before))
}

fn send(mut stream: &TcpStream, asked: &Asked, answer: &Answer) -> Outcome<()> {
    let from = asked.1.get("range").filter(|_| answer.ranges && answer.status == 200);
    let from = from.and_then(|text| text.strip_prefix("bytes=")?.trim_end_matches('-').parse::<usize>().ok());
    let (status, body) = match from {
        Some(from) => (206, answer.body.get(from..).unwrap_or_default()),
        None => (answer.status, answer.body.as_slice()),
    };
    let mut head =
        format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    if let Some(from) = from {
        let all = answer.body.len();
        head += &format!("Content-Range: bytes {from}-{}/{all}\r\n", all - 1);
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if asked.0.starts_with("HEAD") {
        return Ok(stream.flush()?);
    }
    let body = &body[..answer.cut.unwrap_or(body.len()).min(body.len())];
    for piece in body.chunks(body.len() / 10 + 1) {
        std::thread::sleep(answer.pause);
        stream.write_all(piece)?;
        stream.flush()?;
    }
    Ok(())
}

/// Logins as `docker login` writes them, in the user's home.
pub(crate) fn log_in(env: &Env, host: &str, user: &str, password: &str) -> Outcome<()> {
    use base64::Engine as _;
    let dir = env.make_dir("home/.docker")?;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut auths = serde_json::Map::new();
    auths.insert(host.to_owned(), json!({"auth": auth}));
    fs::write(dir.join("config.json"), json!({"auths": auths}).to_string())?;
    Ok(own(&dir.join("config.json"), env.uid())?)
}
