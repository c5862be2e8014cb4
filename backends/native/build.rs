//! Gives the shared library an ELF entry, so that the dynamic loader can run it as a program (see src/entry.rs).

fn main() -> Result<(), std::io::Error> {
    let lines = "cargo::rustc-cdylib-link-arg=-Wl,-e,stasis_native_entry\ncargo::rerun-if-changed=build.rs\n";
    std::io::Write::write_all(&mut std::io::stdout(), lines.as_bytes())
}
