//! Compiles the preload library (preload/shim.rs) that the crate embeds. Its place inside the container carries a
//! digest, because a saved process comes back only where the very same file lies at the same path.

use std::path::{Path, PathBuf};

include!("preload/compile.rs");

/// FNV-1a: names a build, proves nothing.
fn digest(parts: &[&[u8]]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().flat_map(|part| part.iter()).fold(0xcbf2_9ce4_8422_2325, mix)
}

fn variable(name: &str) -> Result<std::ffi::OsString, String> {
    std::env::var_os(name).ok_or_else(|| format!("{name} is not set: run this through cargo"))
}

fn main() -> Result<(), String> {
    let source = Path::new("preload/shim.rs");
    let output = PathBuf::from(variable("OUT_DIR")?).join("shim.so");
    let rustc = variable("RUSTC")?;
    let text = std::fs::read(source).map_err(|error| format!("{}: {error}", source.display()))?;
    let how = std::fs::read("preload/compile.rs").map_err(|error| format!("preload/compile.rs: {error}"))?;
    let compiler = std::process::Command::new(&rustc)
        .arg("-vV")
        .output()
        .map_err(|error| format!("cannot run {}: {error}", rustc.to_string_lossy()))?;
    let path = format!("/.stasis/dmtcp/shim-{:016x}.so", digest(&[&text, &how, &compiler.stdout]));
    if variable("CARGO_CFG_TARGET_ARCH")? == "x86_64" && variable("CARGO_CFG_TARGET_OS")? == "linux" {
        let paths = ShimPaths {
            socket: "/.stasis/coord/sock",
            own: &path,
            image: "/.stasis/image/",
            capture: "/.stasis/capture/",
        };
        compile_shim(&rustc, source, &output, &paths)
            .map_err(|error| format!("the preload library does not compile:\n{error}"))?;
    } else {
        // The system calls in it are x86_64's; `probe` says so where the library is empty.
        std::fs::write(&output, b"").map_err(|error| format!("{}: {error}", output.display()))?;
    }
    // Cargo reads these lines from our standard output; there is no other way to tell it.
    let lines = format!(
        "cargo::rustc-env=STASIS_SHIM_PATH={path}\ncargo::rustc-env=STASIS_SHIM_FILE={}\n\
         cargo::rerun-if-changed=build.rs\ncargo::rerun-if-changed=preload\n",
        output.display()
    );
    std::io::Write::write_all(&mut std::io::stdout(), lines.as_bytes()).map_err(|error| error.to_string())
}
