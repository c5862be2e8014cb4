//! Writes a SIF byte by byte as other tools do: the definition file, what `inspect` shows, and the root file
//! system, which mksquashfs puts straight into its place.
//!
//! The file has no name until it is whole: whatever ends this process on the way leaves nothing behind, and an
//! image that is replaced stays as it is until then.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat};

use super::{DESCRIPTOR, HEADER, MAGIC, MAGIC_AT, PRIMARY, SQUASHFS, arch_code};
use crate::error::{Error, Result};
use crate::image::metadata::Attributes;
use crate::image::tools::{self, Watched};
use crate::image::{io_words, squashfs};
use crate::sys::mount::path_of;

const LAUNCH: &[u8; 32] = b"#!/usr/bin/env run-singularity\n\0";
const TABLE_AT: u64 = 4096;
const SLOTS: u64 = 48;
const DATA_AT: u64 = TABLE_AT + SLOTS * DESCRIPTOR as u64;
const DEFAULT_GROUP: u32 = 0xf000_0001;
/// Kernels mount a file system from a multiple of this.
const ALIGNMENT: u64 = 4096;

/// What nearly every start reads before anything else, in the words of mksquashfs: the loader, the C library and the
/// shell. Left as they are they add two megabytes to a file and take a quarter off a start from a fresh mount.
const FIRST_READ: &str = "type(f)&&size(-8M)&&(name(ld-*.so*)||name(ld-musl-*)||name(libc.so.6)||name(libc-2.*.so)\
                          ||name(dash)||name(bash)||name(busybox)||name(libtinfo.so.*))";

/// How the root file system is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zstd at this level.
    Zstd(u32),
    /// What the oldest tools read.
    Gzip,
}

impl Default for Compression {
    /// Fast: a tenth larger than the tightest, thirty times as fast to make.
    fn default() -> Self {
        Self::Zstd(3)
    }
}

/// What becomes a SIF.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The root file system.
    pub root: &'a Path,
    /// What the image says about itself; the definition file is an object of its own too.
    pub attributes: &'a Attributes,
    /// The architecture's name.
    pub arch: &'a str,
    /// How it is compressed.
    pub compression: Compression,
    /// Seconds since 1970 for every time in the file, so that the same content gives the same file.
    pub time: Option<u32>,
}

/// Writes the file; an older one of that name is replaced where `force` says so.
///
/// # Errors
/// What failed. Nothing half made is left, and an older file is untouched.
pub fn write(out: &Path, parts: &Parts<'_>, force: bool, watched: Watched<'_>) -> Result<()> {
    let failed = |doing: &str, e: &io::Error| cannot(out, doing, e);
    if out.symlink_metadata().is_ok() {
        may_replace(out, force)?;
    }
    let unnamed = Unnamed::beside(out)?;
    let json = serde_json::to_vec(&parts.attributes.to_json()).unwrap_or_default();
    let deffile = parts.attributes.deffile.as_bytes();
    let json_at = DATA_AT + deffile.len() as u64;
    let data_end = json_at + json.len() as u64;
    let root_at = data_end.next_multiple_of(ALIGNMENT);
    make_file_system((&unnamed, out), parts, root_at, watched)?;
    let file = &unnamed.file;
    let length = file.metadata().map_err(|e| failed("look at", &e))?.len();
    let size = length.saturating_sub(root_at);
    squashfs::parse(file, root_at, size).map_err(|e| {
        Error::new(format!("cannot write image \"{}\"", out.display()))
            .because("mksquashfs left no file system")
            .because(e)
    })?;
    let now = parts.time.map_or_else(|| jiff::Timestamp::now().as_second(), i64::from);
    let objects = [
        Object {
            kind: 0x4001,
            at: DATA_AT,
            size: deffile.len() as u64,
            after: DATA_AT,
            name: "",
            extra: &[],
        },
        Object {
            kind: 0x4006,
            at: json_at,
            size: json.len() as u64,
            after: json_at,
            name: "inspect-metadata.json",
            extra: &[],
        },
        Object { kind: 0x4004, at: root_at, size, after: data_end, name: "", extra: &partition(parts.arch) },
    ];
    let uuid = uuid(parts, file).map_err(|e| failed("make a number for", &e))?;
    let put = |bytes: &[u8], at: u64| file.write_all_at(bytes, at).map_err(|e| failed("write", &e));
    put(&header(parts.arch, uuid, now, objects.len() as u64, length - DATA_AT), 0)?;
    for (object, id) in objects.iter().zip(1..) {
        put(&object.descriptor(id, now), TABLE_AT + u64::from(id - 1) * DESCRIPTOR as u64)?;
    }
    put(deffile, DATA_AT)?;
    put(&json, json_at)?;
    file.sync_all().map_err(|e| failed("write", &e))?;
    unnamed.name(out, force)
}

fn cannot(out: &Path, doing: &str, e: &io::Error) -> Error {
    let error = Error::new(format!("cannot {doing} image \"{}\"", out.display())).because(io_words(e));
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            error.help("make room there, or build it elsewhere")
        }
        _ => error,
    }
}

/// Something else of that name is never replaced.
///
/// # Errors
/// It is there, and may not be replaced.
pub fn may_replace(out: &Path, force: bool) -> Result<()> {
    let kind = out.symlink_metadata().map_err(|e| cannot(out, "look at", &e))?.file_type();
    if !force {
        return Err(Error::new(format!("\"{}\" exists already", out.display()))
            .help("replace it with --force, or choose another name"));
    }
    if !kind.is_file() && !kind.is_symlink() {
        return Err(Error::new(format!("\"{}\" is no file and is not replaced by an image", out.display()))
            .help("choose another name, or move it away"));
    }
    Ok(())
}

/// Whether a file can be made there: asked before the work that leads to it.
///
/// # Errors
/// There is no such directory, or the user may not write in it.
pub fn may_make(out: &Path) -> Result<()> {
    let dir = directory_of(out);
    let there = faccessat(AT_FDCWD, dir, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS);
    there.map_err(|e| match e {
        Errno::ENOENT => Error::new(format!("cannot make image \"{}\"", out.display()))
            .because(format!("there is no directory {}", dir.display()))
            .help("make it first, or choose another name"),
        _ => cannot(out, "make", &e.into()).help("choose another place"),
    })
}

fn header(arch: &str, uuid: [u8; 16], now: i64, used: u64, data: u64) -> [u8; HEADER] {
    let mut head = [0; HEADER];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = head.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, LAUNCH);
    put(MAGIC_AT, MAGIC);
    put(42, b"01\0");
    put(45, arch_code(arch).as_bytes());
    put(48, &uuid);
    let table = SLOTS * DESCRIPTOR as u64;
    for (at, number) in
        [(80, SLOTS - used), (88, SLOTS), (96, TABLE_AT), (104, table), (112, DATA_AT), (120, data)]
    {
        put(at, &number.to_le_bytes());
    }
    put(64, &now.to_le_bytes());
    put(72, &now.to_le_bytes());
    head
}

fn partition(arch: &str) -> [u8; 11] {
    let mut extra = [0; 11];
    extra[..4].copy_from_slice(&SQUASHFS.to_le_bytes());
    extra[4..8].copy_from_slice(&PRIMARY.to_le_bytes());
    extra[8..10].copy_from_slice(&arch_code(arch).as_bytes()[..2]);
    extra
}

struct Object<'a> {
    kind: i32,
    at: u64,
    size: u64,
    /// Where the object before it ended: the gap counts as stored.
    after: u64,
    name: &'a str,
    extra: &'a [u8],
}

impl Object<'_> {
    fn descriptor(&self, id: u32, now: i64) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(0, &self.kind.to_le_bytes());
        put(4, &[1]);
        put(5, &id.to_le_bytes());
        put(9, &DEFAULT_GROUP.to_le_bytes());
        put(17, &self.at.to_le_bytes());
        put(25, &self.size.to_le_bytes());
        put(33, &(self.size + self.at - self.after).to_le_bytes());
        put(41, &now.to_le_bytes());
        put(49, &now.to_le_bytes());
        put(73, self.name.as_bytes());
        put(201, self.extra);
        bytes
    }
}

/// Random, of version 4; where times are given, made of the content, so that the same gives the same.
fn uuid(parts: &Parts<'_>, file: &File) -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    if parts.time.is_some() {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(path_reader(file)?)?;
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    } else {
        io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut id)?;
    }
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    Ok(id)
}

/// Another open file of the same, which begins at its beginning.
fn path_reader(file: &File) -> io::Result<File> {
    File::open(path_of(file.as_fd()))
}

fn make_file_system(
    (out, place): (&Unnamed, &Path),
    parts: &Parts<'_>,
    at: u64,
    watched: Watched<'_>,
) -> Result<()> {
    let mut command = tools::program("mksquashfs", "squashfs-tools")?;
    // The file has no name.
    command.arg(parts.root).arg("/proc/self/fd/3");
    command.args(["-noappend", "-no-progress", "-quiet", "-no-recovery", "-exit-on-error"]);
    command.args(["-offset", &at.to_string(), "-action", &format!("uncompressed@{FIRST_READ}")]);
    if !nix::unistd::geteuid().is_root() {
        // All of it is the builder's own; to others it could not have given anything.
        command.arg("-all-root");
    }
    match parts.compression {
        Compression::Zstd(level) => {
            command.args(["-comp", "zstd", "-Xcompression-level", &level.to_string()])
        }
        Compression::Gzip => command.args(["-comp", "gzip"]),
    };
    if let Some(time) = parts.time {
        command.args(["-mkfs-time", &time.to_string(), "-all-time", &time.to_string()]);
    }
    for entry in missing(parts.root) {
        command.args(["-p", &entry]);
    }
    let what = format!("cannot make a file system of \"{}\"", parts.root.display());
    let grown = || out.file.metadata().map_or(0, |m| m.len().saturating_sub(at));
    tools::run(command, &[out.file.as_fd()], (&what, place), &[], &mut |_| watched(grown(), 0))
}

/// Where containers mount something: made in the image where they are missing, as Apptainer does, because room for
/// them has to be made at every start otherwise. In the words of mksquashfs.
fn missing(root: &Path) -> Vec<String> {
    let places = [
        ("dev", "d 755 0 0"),
        ("etc", "d 755 0 0"),
        ("etc/hosts", "f 644 0 0 true"),
        ("etc/resolv.conf", "f 644 0 0 true"),
        ("home", "d 755 0 0"),
        ("proc", "d 755 0 0"),
        ("root", "d 700 0 0"),
        ("sys", "d 755 0 0"),
        ("tmp", "d 1777 0 0"),
        ("var", "d 755 0 0"),
        ("var/tmp", "d 1777 0 0"),
    ];
    // A link in the way is the image's own affair.
    let free = |path: &str| {
        let parent = root.join(path).parent().is_some_and(|dir| dir.is_symlink());
        !parent && root.join(path).symlink_metadata().is_err()
    };
    places.into_iter().filter(|(path, _)| free(path)).map(|(path, how)| format!("{path} {how}")).collect()
}

/// A new file without a name, or where the file system has no such thing, with one that nobody takes for an image.
struct Unnamed {
    file: File,
    named: Option<tempfile::TempPath>,
}

impl Unnamed {
    fn beside(out: &Path) -> Result<Self> {
        let dir = directory_of(out);
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o777);
        match nix::fcntl::open(dir, flags, mode) {
            Ok(fd) => Ok(Self { file: fd.into(), named: None }),
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) if dir.is_dir() => {
                let made = tempfile::Builder::new()
                    .prefix(".stasis-build-")
                    .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
                    .tempfile_in(dir);
                let (file, path) = made.map_err(|e| cannot(out, "make", &e))?.into_parts();
                Ok(Self { file, named: Some(path) })
            }
            Err(e) => Err(cannot(out, "make", &e.into())),
        }
    }

    /// Gives it its name.
    fn name(self, out: &Path, force: bool) -> Result<()> {
        let failed = |e: &io::Error| cannot(out, "make", e);
        let dir = directory_of(out);
        let path = match self.named {
            Some(path) => path,
            None => {
                // A link cannot take the place of a file, a rename can.
                let free = tempfile::Builder::new().prefix(".stasis-build-").make_in(dir, |path| {
                    nix::unistd::linkat(
                        AT_FDCWD,
                        &path_of(self.file.as_fd()),
                        AT_FDCWD,
                        path,
                        AtFlags::AT_SYMLINK_FOLLOW,
                    )
                    .map_err(io::Error::from)
                });
                free.map_err(|e| failed(&e))?.into_temp_path()
            }
        };
        let named = if force { path.persist(out) } else { path.persist_noclobber(out) };
        named.map_err(|e| failed(&e.error))?;
        // The content is safe; that the name is too is worth the try.
        let _ = File::open(dir).and_then(|dir| dir.sync_all());
        Ok(())
    }
}

fn directory_of(out: &Path) -> &Path {
    out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
