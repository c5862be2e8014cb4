//! What all tests share: the program, the plugins and the images, where every user can read them.
//!
//! The checkout may lie below a directory that only root may enter. Run by root, the tests therefore put links to the
//! images and copies of what was built into one directory below /tmp, which goes away when the tests have ended.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Paths that are the same for all tests.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// The program under test.
    pub(crate) stasis: PathBuf,
    /// The directory of the plugins.
    pub(crate) backends: PathBuf,
    /// The directory of the images.
    images: PathBuf,
    /// A private CRIU, where the tests were given one.
    pub(crate) criu: Option<PathBuf>,
}

impl Site {
    /// A test image by its name.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.images.join(name)
    }
}

/// Where the images are as `cargo xtask` makes them.
pub(crate) fn images() -> Result<PathBuf, String> {
    let dir = match std::env::var_os("STASIS_TESTS_IMAGES") {
        Some(dir) => PathBuf::from(dir),
        None => built()?.join("../../stasis-tests/images"),
    };
    if dir.join("stamp").is_file() {
        Ok(dir)
    } else {
        Err("there is no test image (cargo xtask images)".to_owned())
    }
}

/// The shared paths; made on the first call.
pub(crate) fn site() -> Result<&'static Site, String> {
    static SITE: OnceLock<Result<Site, String>> = OnceLock::new();
    SITE.get_or_init(|| publish().map_err(|why| format!("cannot prepare the tests: {why}")))
        .as_ref()
        .map_err(Clone::clone)
}

/// Plugins lie beside the test program: `deps/` is what cargo refreshes for a test, unlike the directory above it.
fn built() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|why| why.to_string())?;
    exe.parent().map(Path::to_owned).ok_or_else(|| "the test program has no directory".to_owned())
}

fn publish() -> Result<Site, Box<dyn Error>> {
    let stasis = PathBuf::from(env!("CARGO_BIN_EXE_stasis"));
    if !nix::unistd::geteuid().is_root() {
        let images = images().unwrap_or_default();
        return Ok(Site { stasis, backends: built()?, images, criu: criu_prefix() });
    }
    let dir = PathBuf::from(format!("/tmp/stasis-tests-{}", std::process::id()));
    fs::create_dir(&dir)?;
    remove_after_us(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let site = Site {
        stasis: dir.join("bin/stasis"),
        backends: dir.join("backends"),
        images: dir.join("images"),
        criu: criu_prefix(),
    };
    fs::create_dir(&site.backends)?;
    fs::create_dir(dir.join("bin"))?;
    fs::copy(stasis, &site.stasis)?;
    for plugin in ["libstasis_dmtcp.so", "libstasis_criu.so", "libstasis_native.so", "libstasis_faulty.so"] {
        fs::copy(built()?.join(plugin), site.backends.join(plugin))?;
    }
    for file in [&site.backends, &dir.join("bin"), &site.stasis] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    }
    let Ok(images) = images() else { return Ok(site) };
    // Links cost nothing; on another file system they cannot be made, and a copy has to do.
    if Command::new("cp").arg("-al").arg(&images).arg(&site.images).output()?.status.success() {
        return Ok(site);
    }
    let images = copy(&images, &dir.join("copies"))?;
    Ok(Site { images, ..site })
}

fn copy(from: &Path, to: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let out = Command::new("cp").arg("-a").arg(from).arg(to).output()?;
    if out.status.success() { Ok(to.to_owned()) } else { Err(String::from_utf8_lossy(&out.stderr).into()) }
}

/// The CRIU of its own that `cargo xtask test` has fetched.
pub(crate) fn criu_prefix() -> Option<PathBuf> {
    std::env::var_os("STASIS_TESTS_CRIU").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The test harness has no place for what is to happen at the end, so a process of its own waits for that.
fn remove_after_us(dir: &Path) -> std::io::Result<()> {
    let pid = std::process::id().to_string();
    Command::new("setsid")
        .args(["sh", "-c", "tail --pid=\"$1\" -f /dev/null; rm -rf -- \"$2\"", "remove"])
        .arg(pid)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}
