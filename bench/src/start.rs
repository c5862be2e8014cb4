//! How long it takes to start `true` in a container, beside those who do the same.

use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::place::{Place, is_root, on_path, timed};
use crate::report::Report;

/// In an image that is nothing but files, and in one whose environment scripts a shell has to source before.
pub(crate) fn measure(place: &Place, report: &mut Report) -> Result<()> {
    let peer = on_path("bwrap");
    if !peer {
        report.note("bwrap is not on PATH, so a start has no peer".to_owned());
    }
    let files = place.files_only("small")?;
    let mut all = vec![
        ("stasis", "bwrap", place.command(&["exec", &files, "true"])),
        ("stasis, own pids", "bwrap, own pids", place.command(&["exec", "--pid", &files, "true"])),
    ];
    if peer {
        all.push(("bwrap", "bwrap", bwrap(&files, &[], &["true"])));
        all.push(("bwrap, own pids", "bwrap, own pids", bwrap(&files, &["--unshare-pid"], &["true"])));
    }
    if on_path("apptainer") {
        let mut apptainer = Command::new("apptainer");
        apptainer.args(["exec", &files, "true"]);
        all.push(("apptainer", "bwrap", apptainer));
    }
    together(place, report, "start of true", &mut all)?;
    let image = place.image("small");
    let mut all = vec![("stasis", "bwrap", place.command(&["exec", &image, "true"]))];
    if peer {
        let script = "for f in /.singularity.d/env/*.sh; do . \"$f\"; done; exec true";
        all.push(("bwrap", "bwrap", bwrap(&image, &[], &["/bin/sh", "-c", script])));
    }
    together(place, report, "start of true after env scripts", &mut all)
}

/// Who, beside whom, and the command.
pub(crate) type Starter = (&'static str, &'static str, Command);

/// Each round starts every one of them once, so that what the machine does besides meets all alike.
pub(crate) fn together(place: &Place, report: &mut Report, what: &str, all: &mut [Starter]) -> Result<()> {
    let mut runs = vec![Vec::new(); all.len()];
    // Many, because they are short; the first ones warm the cache.
    for round in 0..place.runs * 5 + 2 {
        for ((_, _, command), runs) in all.iter_mut().zip(&mut runs) {
            let took = timed(command)?;
            if round >= 2 {
                runs.push(took);
            }
        }
    }
    for ((who, ..), runs) in all.iter().zip(&runs) {
        report.add(what, who, None, runs);
    }
    for (who, peer, _) in all.iter() {
        report.beside(what, who, peer);
    }
    Ok(())
}

/// What stasis shares and does not share without an engine: a mount namespace, for an ordinary user also one of users,
/// and the usual places of the host.
fn bwrap(image: &str, more: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new("bwrap");
    if !is_root() {
        command.arg("--unshare-user");
    }
    command.args(["--ro-bind", image, "/", "--proc", "/proc", "--dev-bind", "/dev", "/dev"]);
    command.args(["--ro-bind", "/sys", "/sys", "--bind", "/tmp", "/tmp", "--bind", "/var/tmp", "/var/tmp"]);
    // It makes no place for a mount where the image has none.
    let home = std::env::var("HOME").unwrap_or_default();
    if Path::new(image).join(home.trim_start_matches('/')).is_dir() && home.len() > 1 {
        command.args(["--bind", &home, &home]);
    }
    command.args(more).arg("--").args(program);
    command
}
