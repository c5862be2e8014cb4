//! An image with large programs of this host's distribution, and with programs of ours that only compilers of other
//! languages can make. Only tests use it; without it they say so.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::image::{BARE, FINISH, base, copy_subjects, describe, shell_in, stamp_with, unpack};
use crate::shell::{on_path, output, remove, run, workspace, write};

const THIS: &str = include_str!("programs.rs");
const PACKAGES: &str = "nodejs,redis-server,nginx-light";
/// Of another C library, which is linked into the program; not every Rust can build for it.
const MUSL: &str = "x86_64-unknown-linux-musl";

/// Makes the image beside the others where it is missing or older than what it is made of.
pub(crate) fn make(images: &Path) -> Result<()> {
    let (image, stamp_file) = (images.join("programs"), images.join("programs.stamp"));
    let kept = images.parent().unwrap_or(images);
    let with = [on_path("go"), has_musl()];
    let stamp = stamp_with(&format!("{THIS}{with:?}"))?;
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    let tar = base(&kept.join("programs.tar"), PACKAGES)?;
    remove(&stamp_file)?;
    remove(&image)?;
    unpack(&tar, &image)?;
    copy_subjects(&image)?;
    compile(&image.join("opt/subjects/bin"), with)?;
    shell_in(&image, FINISH)?;
    describe(&image, BARE, BARE, "programs")?;
    write(&stamp_file, &stamp, 0o644)
}

/// The same program of Rust is made in each way in which it can be linked.
fn compile(place: &Path, [go, musl]: [bool; 2]) -> Result<()> {
    let subjects = workspace()?.join("tests/subjects");
    if go {
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(place.join("busy-go")).arg(subjects.join("busy.go"));
        // A program of its own, without the host's C library.
        run(build.env("CGO_ENABLED", "0").env("GOFLAGS", "-trimpath"))?;
    }
    let rust = |name: &str, how: &[&str]| {
        let mut build = Command::new("rustc");
        build.args(["--edition", "2024", "-O", "-C", "strip=symbols"]).args(how).arg("-o");
        run(build.arg(place.join(name)).arg(subjects.join("busy.rs")))
    };
    rust("busy-rust", &[])?;
    rust("busy-rust-static", &["-C", "target-feature=+crt-static"])?;
    if musl { rust("busy-rust-musl", &["--target", MUSL]) } else { Ok(()) }
}

fn has_musl() -> bool {
    let asked = output(Command::new("rustc").args(["--print", "target-libdir", "--target", MUSL]));
    asked.is_ok_and(|dir| Path::new(&dir).is_dir())
}
