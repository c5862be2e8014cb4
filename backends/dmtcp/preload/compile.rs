// How the preload library is made from shim.rs; shared by build.rs and by the test that runs it.

/// The paths that are compiled into the library.
struct ShimPaths<'a> {
    /// The coordinator's socket.
    socket: &'a str,
    /// Where the library itself will lie.
    own: &'a str,
    /// Where a generation is shown at a restart, with a slash at the end.
    image: &'a str,
    /// Where captures are written, with a slash at the end.
    capture: &'a str,
}

/// Runs `rustc` on `source`.
fn compile_shim(
    rustc: &std::ffi::OsStr,
    source: &std::path::Path,
    output: &std::path::Path,
    paths: &ShimPaths<'_>,
) -> Result<(), String> {
    // panic=abort cannot be asked for one package in a manifest, and without it a no_std library does not link.
    // Link-time optimisation drops what `core` would bring along, so that nothing but a few symbols that every glibc
    // has is left undefined.
    let result = std::process::Command::new(rustc)
        .args(["--crate-name", "stasis_shim", "--crate-type", "cdylib", "--edition", "2024"])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols"])
        .args(["-C", "lto=fat", "-C", "codegen-units=1"])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args(["-C", "link-arg=-Wl,--gc-sections", "-C", "link-arg=-Wl,--hash-style=both"])
        .arg("-o")
        .arg(output)
        .arg(source)
        .env("STASIS_SHIM_SOCKET", paths.socket)
        .env("STASIS_SHIM_PATH", paths.own)
        .env("STASIS_SHIM_IMAGE_DIR", paths.image)
        .env("STASIS_SHIM_CAPTURE_DIR", paths.capture)
        .output()
        .map_err(|error| format!("cannot run rustc: {error}"))?;
    if !result.status.success() {
        return Err(String::from_utf8_lossy(&result.stderr).into_owned());
    }
    Ok(())
}
