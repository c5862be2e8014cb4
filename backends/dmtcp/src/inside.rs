//! What is asked of an image's root filesystem: its libc and the program that is to be started. Paths are resolved
//! inside the root only, whatever links the image holds.

use crate::elf::{self, Elf, ElfError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Where the loader of a distribution keeps its libraries.
const LIBRARY_DIRS: [&str; 8] = [
    "lib64",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib",
    "usr/lib",
];
/// What execvp takes where PATH is not set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The kernel reads no more of a script's first line.
const FIRST_LINE: u64 = 256;
/// As many links as the kernel itself follows.
const MOST_LINKS: usize = 40;
/// A rename elsewhere in the tree makes openat2 give up; it is worth another try.
const TRIES: usize = 8;

/// The program that is to be started, as far as DMTCP cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// Where it was found, as a path inside; as given where it was not found.
    pub path: String,
    /// What it is.
    pub kind: ProgramKind,
    /// It changes the user or group when it is started.
    pub setuid: bool,
}

/// What a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProgramKind {
    /// Started by a loader, so that libraries can be preloaded.
    Dynamic {
        /// The loader.
        interpreter: String,
        /// The loader is musl's.
        musl: bool,
    },
    /// Started without a loader.
    Static,
    /// Begins with `#!`. Ask again for the interpreter, which is what counts.
    Script {
        /// The interpreter, without its argument.
        interpreter: String,
    },
    /// There is no such program, or it is none that can be run.
    NotFound,
    /// Neither ELF nor a script.
    NotElf,
    /// An ELF file that cannot be used here, and why: `a 32-bit file, ...`, `cannot be read: ...`.
    Unusable(String),
}

/// The entry program `path` of the image, sought in `path_env` where it is a name only.
pub(crate) fn program(root: &Path, path: &str, path_env: &str) -> Program {
    let path_env = if path_env.is_empty() { DEFAULT_PATH } else { path_env };
    let candidates: Vec<String> = if path.contains('/') {
        vec![path.to_owned()]
    } else {
        let dirs = path_env.split(':').filter(|dir| dir.starts_with('/'));
        dirs.map(|dir| format!("{}/{path}", dir.trim_end_matches('/'))).collect()
    };
    let mut denied = None;
    for candidate in candidates {
        match open(root, Path::new(&candidate)) {
            Ok(file) => {
                let Ok(meta) = file.metadata() else { continue };
                if meta.is_file() && meta.mode() & 0o111 != 0 {
                    let setuid = meta.mode() & 0o4000 != 0 || meta.mode() & 0o2010 == 0o2010;
                    return Program { kind: kind_of(file), path: candidate, setuid };
                }
            }
            Err(Errno::EACCES) => {
                let kind = ProgramKind::Unusable("cannot be read: you may not read it".to_owned());
                denied.get_or_insert(Program { path: candidate, kind, setuid: false });
            }
            Err(_) => {}
        }
    }
    denied.unwrap_or(Program { path: path.to_owned(), kind: ProgramKind::NotFound, setuid: false })
}

fn kind_of(mut file: File) -> ProgramKind {
    let mut start = Vec::new();
    if let Err(error) = (&mut file).take(FIRST_LINE).read_to_end(&mut start) {
        return ProgramKind::Unusable(format!("cannot be read: {error}"));
    }
    if let Some(rest) = start.strip_prefix(b"#!") {
        let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        return match line.split_ascii_whitespace().next() {
            Some(interpreter) => ProgramKind::Script { interpreter: interpreter.to_owned() },
            None => ProgramKind::NotElf,
        };
    }
    match elf::read(file) {
        Ok(elf) if !elf.is_native() => ProgramKind::Unusable("made for another processor".to_owned()),
        Ok(elf) => match &elf.interpreter {
            Some(interpreter) => {
                ProgramKind::Dynamic { interpreter: interpreter.clone(), musl: elf.is_musl() }
            }
            None => ProgramKind::Static,
        },
        Err(ElfError::NotElf) => ProgramKind::NotElf,
        Err(error) => ProgramKind::Unusable(error.to_string()),
    }
}

/// A library of the image, sought where loaders keep them.
pub(crate) fn library(root: &Path, name: &str) -> Option<Elf> {
    let files = LIBRARY_DIRS.iter().filter_map(|dir| open(root, &Path::new(dir).join(name)).ok());
    let mut found = files.filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()));
    found.find_map(|file| elf::read(file).ok().filter(Elf::is_native))
}

/// Whether there is a file in the image.
pub(crate) fn is_there(root: &Path, path: &str) -> bool {
    open(root, Path::new(path)).is_ok_and(|file| file.metadata().is_ok_and(|meta| meta.is_file()))
}

/// The image's glibc; `Err` says in a sentence that it has none.
pub(crate) fn libc(root: &Path) -> Result<Elf, String> {
    if let Some(libc) = library(root, "libc.so.6") {
        return Ok(libc);
    }
    let musl = ["lib/ld-musl-x86_64.so.1", "lib/ld-musl-aarch64.so.1"];
    Err(if musl.iter().any(|path| open(root, Path::new(path)).is_ok()) {
        "the image uses musl, and DMTCP works with glibc only".to_owned()
    } else {
        format!("the image has no libc.so.6 in {}, and DMTCP works with glibc only", LIBRARY_DIRS.join(", "))
    })
}

/// Opens for reading, as if `root` were the root directory. Never waits for the other end of a FIFO.
fn open(root: &Path, path: &Path) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let directory = File::open(root).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    for _ in 0..TRIES {
        match openat2(&directory, path, how) {
            Err(Errno::EAGAIN) => {}
            // A kernel before 5.6, or a filter that does not know the call.
            Err(Errno::ENOSYS | Errno::EPERM) => return open_by_walk(root, path),
            other => return other.map(File::from),
        }
    }
    Err(Errno::EAGAIN)
}

/// The same without openat2, for images that nobody changes meanwhile.
fn open_by_walk(root: &Path, path: &Path) -> Result<File, Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let mut todo: Vec<PathBuf> = path.components().rev().map(|part| part.as_os_str().into()).collect();
    let (mut here, mut links) = (PathBuf::new(), 0);
    while let Some(part) = todo.pop() {
        match part.components().next() {
            Some(Component::RootDir) => here = PathBuf::new(),
            Some(Component::ParentDir) => {
                here.pop();
            }
            Some(Component::Normal(name)) => {
                let next = root.join(&here).join(name);
                if !next.symlink_metadata().map_err(errno)?.is_symlink() {
                    here.push(name);
                    continue;
                }
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::ELOOP);
                }
                let target = next.read_link().map_err(errno)?;
                todo.extend(target.components().rev().map(|part| PathBuf::from(part.as_os_str())));
            }
            _ => {}
        }
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
    let opened = nix::fcntl::open(&root.join(here), flags, nix::sys::stat::Mode::empty());
    opened.map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preload::SHIM;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn put(root: &Path, path: &str, mode: u32, content: &[u8]) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn image() -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        put(top.path(), "secret", 0o755, b"#!/outside\n");
        put(top.path(), "root/bin/script", 0o755, b"#! /usr/bin/env -S python3 -u\nx");
        put(top.path(), "root/bin/plain", 0o644, b"#!/bin/sh\n");
        put(top.path(), "root/usr/bin/plain", 0o755, b"hello");
        put(top.path(), "root/bin/empty", 0o755, b"");
        put(top.path(), "root/bin/static", 0o4755, SHIM);
        put(top.path(), "root/bin/short", 0o755, b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        put(top.path(), "root/bin/dynamic", 0o755, &own);
        let root = top.path().join("root");
        symlink("/bin/script", root.join("bin/absolute")).unwrap();
        symlink("../../../../secret", root.join("bin/out")).unwrap();
        symlink(top.path().join("secret"), root.join("bin/outside")).unwrap();
        symlink("loop", root.join("bin/loop")).unwrap();
        nix::unistd::mkfifo(&root.join("bin/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        top
    }

    #[test]
    fn tells_programs_apart() {
        let top = image();
        let root = top.path().join("root");
        let kind = |path: &str| program(&root, path, "/bin::relative:/usr/bin/").kind;
        let script = ProgramKind::Script { interpreter: "/usr/bin/env".to_owned() };
        assert_eq!(kind("script"), script);
        assert_eq!(kind("/bin/absolute"), script);
        assert!(
            matches!(kind("dynamic"), ProgramKind::Dynamic { interpreter, musl: false } if interpreter.contains("ld-linux"))
        );
        let found = program(&root, "static", "");
        assert_eq!(
            (found.kind, found.setuid, found.path.as_str()),
            (ProgramKind::Static, true, "/bin/static")
        );
        // The first of that name cannot be run, the second is nothing the kernel knows.
        let found = program(&root, "plain", "/bin:/usr/bin/");
        assert_eq!((found.kind, found.path.as_str()), (ProgramKind::NotElf, "/usr/bin/plain"));
        assert_eq!(kind("empty"), ProgramKind::NotElf);
        assert!(matches!(kind("short"), ProgramKind::Unusable(why) if why.contains("32-bit")));
        for path in ["none", "", "/", "/bin", "fifo", "loop", "out", "outside", "../../secret", "a\0b"] {
            assert_eq!(kind(path), ProgramKind::NotFound, "{path:?}");
        }
    }

    #[test]
    fn the_walk_opens_what_the_kernel_opens() {
        let top = image();
        let root = top.path().join("root");
        for path in [
            "bin/script",
            "/bin/absolute",
            "/bin/../bin/./script",
            "../bin/script",
            "bin/out",
            "bin/outside",
            "bin/loop",
            "none",
            "bin/script/x",
        ] {
            let inode = |file: Result<File, Errno>| file.map(|file| file.metadata().unwrap().ino());
            assert_eq!(
                inode(open_by_walk(&root, Path::new(path))),
                inode(open(&root, Path::new(path))),
                "{path}"
            );
        }
    }

    #[test]
    fn finds_the_libc_or_says_why_not() {
        assert!(libc(Path::new("/")).unwrap().versions_defined.contains("GLIBC_2.2.5"));
        let top = tempfile::tempdir().unwrap();
        assert!(libc(top.path()).unwrap_err().starts_with("the image has no libc.so.6"));
        put(top.path(), "lib/libc.so.6", 0o644, b"INPUT(libc.so)");
        put(top.path(), "lib/ld-musl-x86_64.so.1", 0o755, b"");
        insta::assert_snapshot!(libc(top.path()).unwrap_err(), @"the image uses musl, and DMTCP works with glibc only");
    }
}
