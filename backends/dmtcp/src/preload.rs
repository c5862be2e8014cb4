//! The compiled preload library and the fixed places of everything that goes into the container. What the library
//! does is written in preload/shim.rs; here are only its bytes and the paths both sides agree on.

/// The compiled library; empty where the target is not Linux on x86_64.
pub(crate) const SHIM: &[u8] = include_bytes!(env!("STASIS_SHIM_FILE"));
/// Where the library lies inside; the digest in the name belongs to its source and compiler.
pub(crate) const SHIM_PATH: &str = env!("STASIS_SHIM_PATH");

/// Executables of DMTCP, inside.
pub(crate) const BIN: &str = "/.stasis/dmtcp/bin";
/// Libraries of DMTCP, inside: where its tools look for them, next to `bin`.
pub(crate) const LIB: &str = "/.stasis/dmtcp/lib/dmtcp";
/// Libraries that DMTCP needs and the image lacks, inside.
pub(crate) const DEPS: &str = "/.stasis/dmtcp/deps";
/// The coordinator's listener, inside; compiled into the preload library.
pub(crate) const SOCKET: &str = "/.stasis/coord/sock";
/// The descriptor on which DMTCP's coordinator expects an inherited listener.
pub(crate) const LISTENER_FD: i32 = 821;
/// The address that the preload library turns into [`SOCKET`].
pub(crate) const HOST: &str = "127.83.83.83";
/// Below 1024, so that no other user can sit on it.
pub(crate) const PORT: &str = "83";

/// `name` below the directory of executables.
pub(crate) fn tool(name: &str) -> String {
    format!("{BIN}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::process::Command;

    include!("../preload/compile.rs");

    #[test]
    fn library_needs_no_other_library_and_few_symbols() {
        use object::{Object, ObjectSymbol};
        let file = object::File::parse(SHIM).unwrap();
        let undefined: Vec<_> = file
            .dynamic_symbols()
            .filter(|symbol| symbol.is_undefined())
            .map(|s| s.name().unwrap())
            .collect();
        for name in &undefined {
            assert!(
                ["__errno_location", "memcpy", "memmove", "memset", "bcmp", "strlen", ""].contains(name),
                "{name}"
            );
        }
        assert!(undefined.contains(&"__errno_location"));
        assert!(crate::elf::parse(SHIM).unwrap().needed.is_empty());
        assert!(SHIM.len() < 16 * 1024, "{} bytes", SHIM.len());
    }

    /// Runs a part of the test of this name in a process that has the library preloaded: the test is started anew and
    /// comes to this place again.
    fn preloaded(test: &str, own_path: &str, vars: &[(&str, &str)], part: fn(&Path)) {
        if let Some(dir) = std::env::var_os("TEST_DIR") {
            return part(Path::new(&dir));
        }
        let test = format!("preload::tests::{test}");
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("shim.so");
        let socket = dir.path().join("sock");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("preload/shim.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsStr::new("rustc").to_owned());
        for side in ["image", "capture"] {
            std::fs::create_dir(dir.path().join(side)).unwrap();
        }
        let (image, capture) =
            (format!("{}/image/", dir.path().display()), format!("{}/capture/", dir.path().display()));
        let paths =
            ShimPaths { socket: socket.to_str().unwrap(), own: own_path, image: &image, capture: &capture };
        compile_shim(&rustc, &source, &library, &paths).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // A child that never connects is represented by the wake-up call below, which does not listen.
            let _ = stream.write_all(b"coordinator");
        });
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env("LD_PRELOAD", &library)
            .env("TEST_DIR", dir.path())
            .envs(vars.iter().copied())
            .output()
            .unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        // Children that never connect leave the server waiting: wake it.
        drop(std::os::unix::net::UnixStream::connect(&socket));
        server.join().unwrap();
    }

    #[test]
    fn preloaded_process_reaches_the_unix_socket() {
        preloaded("preloaded_process_reaches_the_unix_socket", "/none", &[], in_child_connect);
    }

    fn in_child_connect(_: &Path) {
        let mut stream = TcpStream::connect((HOST, PORT.parse().unwrap())).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert_eq!(said, "coordinator");
        assert!(
            stream.peer_addr().is_err(),
            "a unix peer has no internet address under any other descriptor"
        );
        // Nothing else is open that high, so the copy gets exactly this number.
        let copy = nix::fcntl::fcntl(&stream, nix::fcntl::FcntlArg::F_DUPFD(LISTENER_FD)).unwrap();
        assert_eq!(copy, LISTENER_FD);
        assert_eq!(peer(LISTENER_FD), Some(([127, 83, 83, 83], 83)));
        assert_eq!(peer(stream.as_raw_fd()), None);
        // Other addresses go where they always went.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(other.peer_addr().unwrap(), listener.local_addr().unwrap());
        assert!(TcpStream::connect("127.83.83.83:84").is_err());
    }

    fn peer(fd: i32) -> Option<([u8; 4], u16)> {
        let found = nix::sys::socket::getpeername::<nix::sys::socket::SockaddrIn>(fd).ok()?;
        Some((found.ip().octets(), found.port()))
    }

    #[test]
    fn preloaded_process_binds_streams_with_reuseaddr() {
        preloaded("preloaded_process_binds_streams_with_reuseaddr", "/none", &[], in_child_bind);
    }

    fn in_child_bind(_: &Path) {
        use nix::sys::socket::*;
        let reuse = |family, kind, address: &dyn SockaddrLike| {
            let socket = socket(family, kind, SockFlag::empty(), None).unwrap();
            bind(socket.as_raw_fd(), address).unwrap();
            getsockopt(&socket, sockopt::ReuseAddr).unwrap()
        };
        let four: SockaddrIn = "127.0.0.1:0".parse().unwrap();
        assert!(reuse(AddressFamily::Inet, SockType::Stream, &four));
        assert!(!reuse(AddressFamily::Inet, SockType::Datagram, &four));
        if TcpListener::bind("[::1]:0").is_ok() {
            let six: SockaddrIn6 = "[::1]:0".parse().unwrap();
            assert!(reuse(AddressFamily::Inet6, SockType::Stream, &six));
        }
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        let bad: SockaddrIn = "192.0.2.1:0".parse().unwrap();
        assert_eq!(bind(socket.as_raw_fd(), &bad), Err(nix::errno::Errno::EADDRNOTAVAIL));
    }

    #[test]
    fn constructor_edits_the_engine_environment() {
        let vars = [("DMTCP_HIJACK_LIBS", "/a/libdmtcp.so:"), ("DMTCP_ORIG_LD_PRELOAD", "/x/shim.so:/u.so")];
        preloaded("constructor_edits_the_engine_environment", "/x/shim.so", &vars, in_child_environment);
    }

    fn in_child_environment(_: &Path) {
        assert_eq!(std::env::var("DMTCP_HIJACK_LIBS").unwrap(), "/a/libdmtcp.so:/x/shim.so");
        assert_eq!(std::env::var("DMTCP_ORIG_LD_PRELOAD").unwrap(), "/u.so");
    }

    #[test]
    fn constructor_leaves_what_it_does_not_own() {
        let long = "/l".repeat(5000);
        let vars = [("DMTCP_HIJACK_LIBS", long.as_str()), ("DMTCP_ORIG_LD_PRELOAD", "/x/shim.so.2")];
        preloaded("constructor_leaves_what_it_does_not_own", "/x/shim.so", &vars, in_child_untouched);
    }

    fn in_child_untouched(_: &Path) {
        assert_eq!(std::env::var("DMTCP_HIJACK_LIBS").unwrap(), "/l".repeat(5000));
        assert_eq!(std::env::var("DMTCP_ORIG_LD_PRELOAD").unwrap(), "/x/shim.so.2");
    }

    #[test]
    fn constructor_links_the_saved_files_of_a_generation() {
        let vars = [("STASIS_DMTCP_LINKS", "ckpt_a_files:../evil::ckpt_b_files")];
        preloaded("constructor_links_the_saved_files_of_a_generation", "/none", &vars, in_child_links);
    }

    fn in_child_links(dir: &Path) {
        let mut names: Vec<_> = dir
            .join("capture")
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["ckpt_a_files", "ckpt_b_files"]);
        assert_eq!(dir.join("capture/ckpt_b_files").read_link().unwrap(), dir.join("image/ckpt_b_files"));
    }
}
