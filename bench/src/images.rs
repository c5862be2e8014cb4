//! Images in files: how long a start from one takes, a build, and a pull, beside what has to be done in any case.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::place::{Place, on_path, output, timed};
use crate::report::{Report, Runs};
use crate::start::together;

/// Of programs and libraries, as images have them, before they are packed.
const MEBIBYTES: u64 = 200;

/// Each figure for which there is everything; what cannot be had is a note, no failure.
pub(crate) fn measure(place: &Place, report: &mut Report) -> Result<()> {
    if !on_path("mksquashfs") {
        report.note("mksquashfs is not on PATH, so there are no figures of image files".to_owned());
        return Ok(());
    }
    starts(place, report)?;
    let content = match content(place) {
        Ok(content) => content,
        Err(why) => {
            report.note(format!("no figures of builds and pulls: {why}"));
            return Ok(());
        }
    };
    builds(place, &content, report)?;
    pulls(place, &content, report)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn starts(place: &Place, report: &mut Report) -> Result<()> {
    let (directory, file) = (place.files_only("small")?, text(&place.path("small.sif")));
    place.stasis(&["build", &file, &directory])?;
    let mut all = vec![("stasis, a directory", "", place.command(&["exec", &directory, "true"]))];
    for (way, who) in [
        ("kernel", "stasis, by the kernel"),
        ("fuse", "stasis, through FUSE"),
        ("unpack", "stasis, unpacked"),
    ] {
        let mut command = place.command(&["exec", &file, "true"]);
        command.env("STASIS_IMAGE_MOUNT", way);
        match output(&mut command) {
            Ok(_) => all.push((who, "", command)),
            Err(why) => report.note(format!("{who}: {}", why.lines().take(3).collect::<Vec<_>>().join(" "))),
        }
    }
    if on_path("apptainer") {
        let mut apptainer = Command::new("apptainer");
        apptainer.args(["exec", &file, "true"]);
        all.push(("apptainer", "", apptainer));
    }
    together(place, report, "start of true from image.sif", &mut all)
}

/// Files of this host, in the order of their names, and what makes a directory an image.
fn content(place: &Place) -> Result<PathBuf> {
    let to = place.path("content");
    let (mut todo, mut copied) = (vec![PathBuf::from("/usr/bin"), PathBuf::from("/usr/lib")], 0);
    todo.reverse();
    while let Some(from) = todo.pop() {
        let failed = |why: std::io::Error| format!("{}: {why}", from.display());
        let meta = from.symlink_metadata().map_err(failed)?;
        if meta.is_dir() {
            let Ok(entries) = fs::read_dir(&from) else { continue };
            let mut inside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            inside.sort_by(|a, b| b.cmp(a));
            todo.extend(inside);
        } else if meta.is_file() && meta.permissions().mode() & 0o004 != 0 {
            let target = to.join(from.strip_prefix("/").unwrap_or(&from));
            target.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
            copied += fs::copy(&from, &target).map_err(failed)?;
            if copied >= MEBIBYTES << 20 {
                return Ok(to);
            }
        }
    }
    Err(format!("/usr/bin and /usr/lib have less than {MEBIBYTES} MiB to read"))
}

/// In turn with mksquashfs alone at the same compression.
fn builds(place: &Place, content: &Path, report: &mut Report) -> Result<()> {
    let (what, peer) = (format!("build of a file of {MEBIBYTES} MiB"), "mksquashfs");
    let (file, bare) = (text(&place.path("content.sif")), text(&place.path("content.squashfs")));
    let mut runs = Runs::default();
    for _ in 0..place.runs {
        runs.add(&what, "stasis", place.stasis(&["build", "--force", &file, &text(content)])?);
        let mut command = Command::new("mksquashfs");
        command.arg(content).args([&bare, "-noappend", "-quiet", "-no-progress", "-all-root"]);
        command.args(["-comp", "zstd", "-Xcompression-level", "3"]).stdin(Stdio::null());
        runs.add(&what, peer, timed(&mut command)?);
    }
    runs.tell(None, report);
    report.ratio(&what, "stasis", peer, [runs.of(&what, "stasis"), runs.of(&what, peer)], None);
    for (who, file) in [("stasis", file), (peer, bare)] {
        let size = fs::metadata(&file).map_or(0, |meta| meta.len());
        report.note(format!("{what}, {who}: {:.1} MiB", mebibytes(size)));
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// From a registry on this machine into a directory, in turn with tar alone.
fn pulls(place: &Place, content: &Path, report: &mut Report) -> Result<()> {
    let (what, peer) = (format!("pull of {MEBIBYTES} MiB"), "tar");
    let layer = place.path("layer.tar.gz");
    let pack = "tar -C \"$1\" -cf - . | tee \"$2.plain\" | gzip -1 > \"$2\"";
    output(Command::new("sh").args(["-ec", pack, "sh"]).arg(content).arg(&layer))?;
    let port = serve(&layer)?;
    let (name, out) = (format!("docker://127.0.0.1:{port}/content:v1"), text(&place.path("pulled")));
    let mut runs = Runs::default();
    let mut most = 0;
    for _ in 0..place.runs {
        place.stasis(&["cache", "clean", "--all"])?;
        let (took, memory) = watched(&mut place.command(&["pull", "--sandbox", "--force", &out, &name]))?;
        runs.add(&what, "stasis", took);
        most = most.max(memory);
        output(Command::new("rm").args(["-rf", "--", &out]))?;
        let unpack = "mkdir \"$2\"; tar -C \"$2\" -xzf \"$1\"; sync -f \"$2\"";
        runs.add(&what, peer, timed(Command::new("sh").args(["-ec", unpack, "sh"]).arg(&layer).arg(&out))?);
        output(Command::new("rm").args(["-rf", "--", &out]))?;
    }
    runs.tell(None, report);
    report.ratio(&what, "stasis", peer, [runs.of(&what, "stasis"), runs.of(&what, peer)], None);
    report.note(format!("{what}, stasis: {:.1} MiB of memory at most", most as f64 / 1024.0));
    Ok(())
}

/// How long a command takes, and the most memory that it had in KiB.
fn watched(command: &mut Command) -> Result<(Duration, u64)> {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn().map_err(|why| why.to_string())?;
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let told = fs::read_to_string(&status).unwrap_or_default();
        let high = told
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        most = most.max(high.unwrap_or(0));
        match child.try_wait().map_err(|why| why.to_string())? {
            Some(status) if status.success() => return Ok((begun.elapsed(), most)),
            Some(status) => return Err(format!("the pull failed ({status})")),
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// What a registry answers, by the end of the path.
type Blobs = Vec<(String, &'static str, Blob)>;

enum Blob {
    Text(String),
    File(PathBuf),
}

/// A registry with one image of one layer. It ends with this program.
fn serve(layer: &Path) -> Result<u16> {
    let sum = |file: &Path| -> Result<String> {
        let told = output(Command::new("sha256sum").arg(file))?;
        Ok(format!("sha256:{}", told.split(' ').next().unwrap_or_default()))
    };
    let sum_of = |text: &str| -> Result<String> {
        let file = layer.with_extension("json");
        fs::write(&file, text).map_err(|why| why.to_string())?;
        sum(&file)
    };
    let plain = PathBuf::from(format!("{}.plain", layer.display()));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sum(&plain)?]}})
    .to_string();
    let kind = |what: &str| format!("application/vnd.oci.image.{what}");
    let of = |media: String, digest: &str, size: u64| -> Value {
        json!({"mediaType": media, "digest": digest, "size": size})
    };
    let (config_sum, layer_sum) = (sum_of(&config)?, sum(layer)?);
    let size = fs::metadata(layer).map_err(|why| why.to_string())?.len();
    let manifest = json!({"schemaVersion": 2, "mediaType": kind("manifest.v1+json"),
        "config": of(kind("config.v1+json"), &config_sum, config.len() as u64),
        "layers": [of(kind("layer.v1.tar+gzip"), &layer_sum, size)]})
    .to_string();
    let all: Blobs = vec![
        (config_sum, "application/octet-stream", Blob::Text(config)),
        (layer_sum, "application/octet-stream", Blob::File(layer.to_owned())),
        ("v1".to_owned(), "application/vnd.oci.image.manifest.v1+json", Blob::Text(manifest)),
    ];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|why| why.to_string())?;
    let port = listener.local_addr().map_err(|why| why.to_string())?.port();
    let all = Arc::new(all);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let all = Arc::clone(&all);
            // Whoever goes away in the middle is told of by the command that was measured.
            std::thread::spawn(move || drop(answer(&stream, &all)));
        }
    });
    Ok(port)
}

fn answer(mut stream: &TcpStream, all: &Blobs) -> std::io::Result<()> {
    let (mut reader, mut line, mut path) = (BufReader::new(stream), String::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        if path.is_empty() {
            path.clone_from(&line);
        }
        line.clear();
    }
    let last = path.split(' ').nth(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    let Some((_, media, blob)) = all.iter().find(|(name, ..)| name == last) else {
        return stream.write_all(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let length = match blob {
        Blob::Text(text) => text.len() as u64,
        Blob::File(file) => fs::metadata(file)?.len(),
    };
    write!(
        stream,
        "HTTP/1.1 200 Here\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    match blob {
        _ if path.starts_with("HEAD") => Ok(()),
        Blob::Text(text) => stream.write_all(text.as_bytes()),
        Blob::File(file) => std::io::copy(&mut fs::File::open(file)?, &mut stream).map(drop),
    }
}
