//! CRIU's command lines.

use crate::discover::Criu;
use crate::options::Tcp;
use stasis_plugin_api::prelude::*;
use std::collections::BTreeMap;

/// A tmpfs of the container's own: CRIU's working files, and what it found out about the kernel, which makes
/// the next run faster. Its size is the most that CRIU can fill it with.
pub(crate) const WORK: &str = "/.stasis/criu-work";
/// The images lie in a directory of their own, which is CRIU's working directory at a capture as well.
pub(crate) const IMAGES: &str = "images";
/// Below the images: an earlier pass over the memory. CRIU makes a link of this name to wherever that lies; a
/// directory keeps the generation whole.
pub(crate) const PARENT: &str = "parent";
/// Where a restored root process's pid is found.
pub(crate) const PID_FILE: &str = "root-pid";

/// What all commands of one container share.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// Whether the container has a user namespace.
    pub(crate) rootless: bool,
    /// What becomes of connections.
    pub(crate) tcp: Tcp,
    /// Deleted files up to this size are saved.
    pub(crate) ghost_limit: String,
}

/// CRIU's whole environment.
pub(crate) fn environment() -> BTreeMap<String, String> {
    [("XDG_RUNTIME_DIR".to_owned(), WORK.to_owned())].into()
}

fn common(criu: &Criu, word: &str, setting: &Setting) -> Vec<String> {
    let mut argv = criu.command_inside();
    argv.push(word.to_owned());
    argv.extend(
        ["-v2", "--no-default-config", "--file-locks", "--manage-cgroups=ignore", "--ghost-limit"]
            .map(str::to_owned),
    );
    argv.push(setting.ghost_limit.clone());
    if setting.rootless {
        argv.push("--unprivileged".to_owned());
    }
    match setting.tcp {
        Tcp::Refuse => {}
        Tcp::Close => argv.push("--tcp-close".to_owned()),
        Tcp::Keep => argv.push("--tcp-established".to_owned()),
    }
    argv
}

/// What a dump is to do.
#[derive(Debug, Clone)]
pub(crate) struct Dump {
    /// The root of the tree, inside.
    pub(crate) pid: i32,
    /// Leave the processes stopped, to look at what they hold; else they run on.
    pub(crate) stopped: bool,
    /// There is an earlier pass over the memory in [`PARENT`].
    pub(crate) before: bool,
}

/// Saves the tree into the images directory. Never lets CRIU end the tree: init would end with it, and CRIU
/// with init, in the middle of its work.
pub(crate) fn dump(criu: &Criu, setting: &Setting, dump: &Dump) -> Vec<String> {
    let mut argv = common(criu, "dump", setting);
    let images = format!("{CAPTURE_DIR}/{IMAGES}");
    argv.extend([
        "-t".to_owned(),
        dump.pid.to_string(),
        "-D".to_owned(),
        images.clone(),
        "-W".to_owned(),
        images,
    ]);
    argv.extend(["--display-stats", "--network-lock", "skip"].map(str::to_owned));
    argv.push(if dump.stopped { "-s" } else { "-R" }.to_owned());
    if dump.before {
        argv.extend(["--track-mem", "--prev-images-dir", PARENT].map(str::to_owned));
    }
    argv
}

/// Saves the memory once while the tree runs.
pub(crate) fn pre_dump(criu: &Criu, setting: &Setting, pid: i32) -> Vec<String> {
    let mut argv = common(criu, "pre-dump", setting);
    let images = format!("{CAPTURE_DIR}/{IMAGES}/{PARENT}");
    argv.extend(["-t".to_owned(), pid.to_string(), "-D".to_owned(), images.clone(), "-W".to_owned(), images]);
    argv.push("--track-mem".to_owned());
    argv
}

/// Makes the tree again and leaves it to init.
pub(crate) fn restore(criu: &Criu, setting: &Setting, lazy: bool) -> Vec<String> {
    let mut argv = common(criu, "restore", setting);
    let images = format!("{IMAGE_DIR}/{IMAGES}");
    argv.extend(["-d", "-D", &images, "-W", WORK, "--pidfile", PID_FILE].map(str::to_owned));
    if lazy {
        argv.push("--lazy-pages".to_owned());
    }
    argv
}

/// Serves the memory of a lazy restart until all of it is there.
pub(crate) fn lazy_pages(criu: &Criu) -> Vec<String> {
    let mut argv = criu.command_inside();
    let images = format!("{IMAGE_DIR}/{IMAGES}");
    argv.extend(["lazy-pages", "-v2", "--no-default-config", "-D", &images, "-W", WORK].map(str::to_owned));
    argv
}
