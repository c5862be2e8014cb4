//! An image with large programs of this host's distribution, and with a program of ours that only
//! Go can make. Only tests use it; without it they say so.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::image::{BARE, FINISH, base, copy_subjects, describe, shell_in, stamp_with, unpack};
use crate::shell::{on_path, remove, run, workspace, write};

const THIS: &str = include_str!("programs.rs");
const PACKAGES: &str = "nodejs,redis-server,nginx-light";

/// Makes the image beside the others where it is missing or older than what it is made of.
pub(crate) fn make(images: &Path) -> Result<()> {
    let (image, stamp_file) = (images.join("programs"), images.join("programs.stamp"));
    let kept = images.parent().unwrap_or(images);
    let go = on_path("go");
    let stamp = stamp_with(&format!("{THIS}{go}"))?;
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    let tar = base(&kept.join("programs.tar"), PACKAGES)?;
    remove(&stamp_file)?;
    remove(&image)?;
    unpack(&tar, &image)?;
    copy_subjects(&image)?;
    if go {
        compile_go(&image)?;
    }
    shell_in(&image, FINISH)?;
    describe(&image, BARE, BARE, "programs")?;
    write(&stamp_file, &stamp, 0o644)
}

/// A program of its own, without the host's C library.
fn compile_go(image: &Path) -> Result<()> {
    let source = workspace()?.join("tests/subjects/busy.go");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(image.join("opt/subjects/bin/busy-go")).arg(source);
    run(build.env("CGO_ENABLED", "0").env("GOFLAGS", "-trimpath"))
}
