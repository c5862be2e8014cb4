//! How long it takes to start `true` in a container, beside those who do the same.

use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::place::{Place, is_root, on_path, timed};
use crate::report::Report;

/// Each run starts every one of them once, so that what the machine does besides meets all alike.
pub(crate) fn measure(place: &Place, report: &mut Report) -> Result<()> {
    let image = place.image("small");
    let mut all: Vec<(&str, Command)> = vec![
        ("stasis", place.command(&["exec", &image, "true"])),
        ("stasis, own pids", place.command(&["exec", "--pid", &image, "true"])),
    ];
    if on_path("bwrap") {
        all.push(("bwrap, same namespaces", bwrap(&image, &[])));
        all.push(("bwrap, own pids", bwrap(&image, &["--unshare-pid"])));
    } else {
        report.note("bwrap is not on PATH, so a start has no peer".to_owned());
    }
    if on_path("apptainer") {
        let mut apptainer = Command::new("apptainer");
        apptainer.args(["exec", &image, "true"]);
        all.push(("apptainer", apptainer));
    }
    let mut runs = vec![Vec::new(); all.len()];
    // Many, because they are short; the first ones warm the cache.
    for round in 0..place.runs * 5 + 2 {
        for ((_, command), runs) in all.iter_mut().zip(&mut runs) {
            let took = timed(command)?;
            if round >= 2 {
                runs.push(took);
            }
        }
    }
    for ((who, _), runs) in all.iter().zip(&runs) {
        report.add("start of true", who, None, runs);
    }
    Ok(())
}

/// What stasis shares and does not share without an engine: a mount namespace, for an ordinary user also one of users,
/// and the usual places of the host.
fn bwrap(image: &str, more: &[&str]) -> Command {
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
    command.args(more).args(["--", "true"]);
    command
}
