//! The images that tests, demonstration and benchmark run: one root directory with Python made from the packages of
//! this host's own distribution, and variants of it that share its files and differ in `/.singularity.d`.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::shell::{command, make_dir, on_path, output, remove, run, target, workspace, write};

const THIS: &str = include_str!("image.rs");

/// The variants: name, `startscript`, `runscript`, what `env/90-environment.sh` says of itself. The first one owns
/// the files.
const VARIANTS: [(&str, &str, &str, &str); 4] = [
    ("server", "exec python3 /opt/subjects/server.py \"$@\"", "exec \"$@\"", "server"),
    ("other", "exec python3 /opt/subjects/server.py \"$@\"", "exec \"$@\"", "other"),
    ("any", BARE, BARE, "any"),
    (
        "plain",
        "python3 /opt/subjects/server.py \"$@\"\necho the server has ended",
        "\"$@\"\necho after",
        "plain",
    ),
];

/// A start script that only runs what it is told.
pub(crate) const BARE: &str = "exec \"$@\"";

/// Programs of the image without Python, which is a few megabytes.
const SMALL: &str = "dash cat echo env false ln mkdir pwd rm sleep stty touch true tty";

/// After everything is there: what everybody may do.
pub(crate) const FINISH: &str =
    "chmod -R u+rwX,a+rX,go-w .; chmod 1777 tmp var/tmp; mkdir -p .singularity.d/env";

/// Makes the images where they are missing or older than what they are made of; returns their directory.
pub(crate) fn make() -> Result<PathBuf> {
    let kept = target()?.join("stasis-tests");
    fs::create_dir_all(&kept).map_err(|why| format!("cannot make {}: {why}", kept.display()))?;
    let images = kept.join("images");
    let stamp = stamp()?;
    if fs::read_to_string(images.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(images);
    }
    let tar = base(&kept.join("base.tar"), "python3-minimal,libpython3-stdlib")?;
    let partial = kept.join("images.partial");
    remove(&partial)?;
    let server = partial.join("server");
    unpack(&tar, &server)?;
    subjects(&server)?;
    shell_in(&server, FINISH)?;
    for name in ["other", "any", "plain"] {
        shell_in(&partial, &format!("cp -al server {name}; rm -rf {name}/.singularity.d"))?;
    }
    small(&partial)?;
    for (name, start, run, says) in VARIANTS {
        describe(&partial.join(name), start, run, says)?;
    }
    describe(&partial.join("small"), BARE, BARE, "small")?;
    write(&partial.join("stamp"), &stamp, 0o644)?;
    remove(&images)?;
    fs::rename(&partial, &images).map_err(|why| format!("cannot rename {}: {why}", partial.display()))?;
    Ok(images)
}

/// A number for all that the images are made of.
fn stamp() -> Result<String> {
    stamp_with(&format!("{THIS}{}", rust_has_musl()))
}

/// The same with what else there is to them.
pub(crate) fn stamp_with(more: &str) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    hasher.write(more.as_bytes());
    for file in subject_files()? {
        hasher.write(file.as_os_str().as_encoded_bytes());
        hasher.write(&fs::read(&file).map_err(|why| format!("cannot read {}: {why}", file.display()))?);
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn subject_files() -> Result<Vec<PathBuf>> {
    let dir = workspace()?.join("tests/subjects");
    let entries = fs::read_dir(&dir).map_err(|why| format!("cannot read {}: {why}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    Ok(files)
}

/// A root file system with these packages as a tar archive, from the suite and the mirror that this host itself uses.
/// What was made once is kept.
pub(crate) fn base(tar: &Path, packages: &str) -> Result<PathBuf> {
    if tar.is_file() {
        return Ok(tar.to_owned());
    }
    let suite = suite()?;
    let format = "--format=$(REPO_URI)";
    let codename = format!("Codename: {suite}");
    let indexes =
        command(&["apt-get", "indextargets", format, "Created-By: Packages", "Component: main", &codename]);
    let mirrors = output(&mut { indexes }).unwrap_or_default();
    let partial = tar.with_extension("tar.partial");
    let mut make = command(&["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar"]);
    make.args([&format!("--include={packages}"), "--aptopt=Acquire::Languages \"none\""]);
    for place in ["doc", "man", "locale", "i18n", "bash-completion"] {
        make.arg(format!("--dpkgopt=path-exclude=/usr/share/{place}/*"));
    }
    make.arg(suite).arg(&partial);
    // Without one, mmdebstrap takes the distribution's own.
    if let Some(mirror) = mirrors.lines().next() {
        make.arg(mirror);
    }
    run(&mut make)?;
    fs::rename(&partial, tar).map_err(|why| format!("cannot rename {}: {why}", partial.display()))?;
    Ok(tar.to_owned())
}

/// Unpacks one. The image belongs to whoever runs this; device nodes are not needed, and only root could make them.
pub(crate) fn unpack(tar: &Path, root: &Path) -> Result<()> {
    make_dir(root)?;
    run(Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["--no-same-owner", "--exclude=./dev/*", "-xf"])
        .arg(tar))
}

fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").map_err(|why| format!("/etc/os-release: {why}"))?;
    let found = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    found.map(|name| name.trim_matches('"').to_owned()).filter(|name| !name.is_empty()).ok_or_else(|| {
        "/etc/os-release names no VERSION_CODENAME, so there is no suite to install from".to_owned()
    })
}

/// The sources of our programs, some of which are run as they are.
pub(crate) fn copy_subjects(root: &Path) -> Result<()> {
    make_dir(&root.join("opt/subjects/bin"))?;
    for file in subject_files()? {
        output(Command::new("cp").arg(&file).arg(root.join("opt/subjects")))?;
    }
    Ok(())
}

/// What we run in the image: programs of ours, and one of them built in the ways that an engine cannot save.
fn subjects(root: &Path) -> Result<()> {
    let place = root.join("opt/subjects/bin");
    copy_subjects(root)?;
    let sources = workspace()?.join("tests/subjects");
    let build = |compiler: &str, flags: &[&str], source: &str, name: &str| {
        let mut build = Command::new(compiler);
        run(build
            .args(["-O1", "-Wall"])
            .args(flags)
            .arg("-o")
            .arg(place.join(name))
            .arg(sources.join(source)))
    };
    build("gcc", &[], "idle.c", "idle")?;
    build("gcc", &["-static"], "idle.c", "idle-static")?;
    build("gcc", &["-shared", "-fPIC"], "preloaded.c", "preloaded.so")?;
    if on_path("musl-gcc") {
        build("musl-gcc", &[], "idle.c", "idle-musl")?;
        shell_in(root, "for l in /lib/ld-musl-*.so.1; do cp -L \"$l\" usr/lib/; done")?;
    }
    busy(&place)?;
    shell_in(&place, "cp idle idle-setuid")?;
    write(&place.join("no-interpreter"), "#!/no/such/interpreter\n", 0o755)
}

/// A program of Rust, in each way in which it can be linked.
fn busy(place: &Path) -> Result<()> {
    let source = workspace()?.join("tests/subjects/busy.rs");
    let build = |name: &str, how: &[&str]| {
        let mut build = command(&["rustc", "--edition", "2024", "-O", "-C", "strip=symbols"]);
        run(build.args(how).arg("-o").arg(place.join(name)).arg(&source))
    };
    build("busy-rust", &[])?;
    build("busy-rust-static", &["-C", "target-feature=+crt-static"])?;
    if rust_has_musl() { build("busy-rust-musl", &["--target", MUSL]) } else { Ok(()) }
}

/// Not every Rust can build for this C library, which is linked into the program.
const MUSL: &str = "x86_64-unknown-linux-musl";

fn rust_has_musl() -> bool {
    let asked = output(&mut command(&["rustc", "--print", "target-libdir", "--target", MUSL]));
    asked.is_ok_and(|dir| Path::new(&dir).is_dir())
}

/// An image of a few megabytes, cheap to copy and to change: a shell, some tools, the C library with all its parts.
fn small(images: &Path) -> Result<()> {
    let script = format!(
        "mkdir -p small/opt; cd server
         for tool in {SMALL}; do cp -a --parents usr/bin/$tool ../small; done
         cp -a --parents bin sbin lib lib64 usr/bin/sh etc/passwd etc/group ../small
         for file in usr/lib64/ld-* usr/lib/ld-* usr/lib/*/ld-linux-* usr/lib/*/lib{{c,m,dl,rt,pthread}}.so.[0-9]; do
             if [ -e $file ]; then cp -a --parents $file ../small; fi
         done
         cp -a opt/subjects ../small/opt/
         mkdir -p ../small/dev ../small/proc ../small/sys ../small/home ../small/root ../small/var/tmp \
             ../small/usr/sbin ../small/tmp
         chmod 1777 ../small/tmp ../small/var/tmp"
    );
    shell_in(images, &script)
}

/// Writes `/.singularity.d` as Apptainer lays it out, and the modes that copying takes away.
pub(crate) fn describe(root: &Path, start: &str, run: &str, says: &str) -> Result<()> {
    let meta = root.join(".singularity.d");
    make_dir(&meta.join("env"))?;
    write(&meta.join("startscript"), &format!("#!/bin/sh\n\n{start}\n"), 0o755)?;
    write(&meta.join("runscript"), &format!("#!/bin/sh\n\n{run}\n"), 0o755)?;
    let labels = "{\"org.label-schema.schema-version\": \"1.0\"}\n";
    write(&meta.join("labels.json"), labels, 0o644)?;
    let env = format!("export STASIS_TEST_IMAGE={says}\nexport PYTHONDONTWRITEBYTECODE=1\n");
    write(&meta.join("env/90-environment.sh"), &env, 0o755)?;
    shell_in(&root.join("opt/subjects/bin"), "[ ! -e idle-setuid ] || chmod 4755 idle-setuid")
}

pub(crate) fn shell_in(dir: &Path, script: &str) -> Result<()> {
    output(Command::new("bash").args(["-euc", script]).current_dir(dir)).map(|_| ())
}
