//! The tarball for people without Rust: laid out as below `/usr/local`, usable wherever it is unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::product::{Profile, backends, build, library};
use crate::shell::{command, make_dir, output, remove, run, target, workspace, write};
use crate::{Result, host, image};

/// What people read, besides `docs/`. The links between these pages hold in the tarball too.
const PAGES: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
];

/// Where a shell looks for completions below a prefix.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/stasis"),
    ("zsh", "share/zsh/site-functions/_stasis"),
    ("fish", "share/fish/vendor_completions.d/stasis.fish"),
];

/// `cargo xtask dist`: makes the tarball as users get it, tries it and prints where it is.
pub(crate) fn release() -> Result<()> {
    let tarball = make(Profile::Release, &target()?.join("dist"))?;
    try_out(&tarball, None)?;
    println!("{}", tarball.display());
    Ok(())
}

/// A step of the test run: the same of what the tests have built, tried with an image.
pub(crate) fn check() -> Result<()> {
    let dir = target()?.join("stasis-tests/dist");
    let tarball = make(Profile::Dev, &dir)?;
    let image = match host::allows_containers() {
        Ok(()) => Some(image::make()?.join("small")),
        Err(why) => {
            eprintln!("skipped running an image from the tarball: {why}");
            None
        }
    };
    try_out(&tarball, image.as_deref())?;
    remove(&dir)
}

/// Builds, and packs into this directory, which holds nothing else.
fn make(profile: Profile, dir: &Path) -> Result<PathBuf> {
    let backends = backends()?;
    let built = build(profile, &backends)?;
    let name = format!("stasis-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let root = dir.join(&name);
    remove(dir)?;
    copy(&built.join("stasis"), &root.join("bin"), "0755")?;
    for backend in &backends {
        copy(&built.join(library(backend)), &root.join("lib/stasis/backends"), "0644")?;
    }
    let source = workspace()?;
    copy(&source.join("plugins.toml"), &root.join("etc/stasis"), "0644")?;
    let doc = root.join("share/doc/stasis");
    for page in PAGES {
        copy(&source.join(page), &doc, "0644")?;
    }
    output(Command::new("cp").arg("-r").arg(source.join("docs")).arg(&doc))?;
    generate(&root)?;
    pack(dir, &name)
}

/// Completions and manual pages, which the program itself makes.
fn generate(root: &Path) -> Result<()> {
    let stasis = root.join("bin/stasis");
    for (shell, place) in COMPLETIONS {
        let file = root.join(place);
        make_dir(file.parent().unwrap_or(root))?;
        let script = output(Command::new(&stasis).args(["completion", shell]))?;
        write(&file, &format!("{script}\n"), 0o644)?;
    }
    let man = root.join("share/man/man1");
    make_dir(&man)?;
    output(Command::new(&stasis).arg("__man").arg(&man)).map(drop)
}

/// One file into a directory, which is made.
fn copy(file: &Path, dir: &Path, mode: &str) -> Result<()> {
    output(Command::new("install").args(["-D", "-m", mode, "-t"]).arg(dir).arg(file)).map(drop)
}

/// Packs so that the same content makes the same file: in the order of names, of nobody in particular (root, where
/// root unpacks it), with the time of the last commit.
fn pack(dir: &Path, name: &str) -> Result<PathBuf> {
    let tarball = dir.join(format!("{name}.tar.gz"));
    let mut tar = command(&["tar", "--create", "--gzip", "--sort=name", "--owner=0", "--group=0"]);
    tar.args(["--numeric-owner", "--mode=u+rwX,go+rX,go-w"]);
    let committed = command(&["git", "log", "-1", "--format=%ct"]).current_dir(workspace()?).output();
    if let Ok(out) = committed
        && out.status.success()
    {
        tar.arg(format!("--mtime=@{}", String::from_utf8_lossy(&out.stdout).trim()));
    }
    run(tar.arg("--file").arg(&tarball).arg("--directory").arg(dir).arg(name))?;
    remove(&dir.join(name))?;
    Ok(tarball)
}

/// Unpacks a tarball at a place that nothing knows of and uses what was in it.
fn try_out(tarball: &Path, image: Option<&Path>) -> Result<()> {
    let place = std::env::temp_dir().join(format!("stasis-dist-{}", std::process::id()));
    output(Command::new("mkdir").args(["-m", "0700", "--"]).arg(&place))?;
    let tried = unpacked(tarball, &place)
        .and_then(|root| use_it(&root, &place, image))
        .map_err(|why| format!("{} cannot be used: {why}", tarball.display()));
    tried.and(remove(&place))
}

fn unpacked(tarball: &Path, place: &Path) -> Result<PathBuf> {
    output(command(&["tar", "--extract", "--gzip", "--file"]).arg(tarball).arg("--directory").arg(place))?;
    let name = tarball.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(place.join(name.trim_end_matches(".tar.gz")))
}

fn use_it(root: &Path, place: &Path, image: Option<&Path>) -> Result<()> {
    let stasis = |words: &[&str]| {
        let mut stasis = Command::new(root.join("bin/stasis"));
        stasis.args(words).env_clear().current_dir("/");
        for name in ["HOME", "STASIS_DATA_DIR", "STASIS_RUNTIME_DIR"] {
            stasis.env(name, place);
        }
        output(&mut stasis)
    };
    let version = stasis(&["--version"])?;
    same(&version, &format!("stasis {}", env!("CARGO_PKG_VERSION")))?;
    // The configuration that comes along is read without complaint.
    stasis(&["--config", &root.join("etc/stasis/plugins.toml").to_string_lossy(), "backend", "list"])?;
    // Without `search`, so that a library which is installed on this host does not stand in for ours.
    let backends = backends()?;
    let config = place.join("only-ours.toml");
    let tables: String = backends.iter().map(|name| format!("[backends.{name}]\n")).collect();
    write(&config, &format!("schema = 1\n{tables}"), 0o644)?;
    let config = config.to_string_lossy().into_owned();
    for backend in &backends {
        let told = stasis(&["--config", &config, "backend", "info", backend])?;
        let path = root.join("lib/stasis/backends").join(library(backend));
        if !told.contains(&*path.to_string_lossy()) {
            return Err(format!("the backend {backend} does not come from {}:\n{told}", path.display()));
        }
    }
    output(Command::new("bash").arg("-n").arg(root.join(COMPLETIONS[0].1)))?;
    let page = root.join("share/man/man1/stasis-instance-start.1");
    if !page.is_file() {
        return Err(format!("{} is missing", page.display()));
    }
    if let Some(image) = image {
        same(&stasis(&["exec", &image.to_string_lossy(), "echo", "it runs"])?, "it runs")?;
    }
    Ok(())
}

fn same(found: &str, wanted: &str) -> Result<()> {
    if found == wanted { Ok(()) } else { Err(format!("it said {found:?} in place of {wanted:?}")) }
}
