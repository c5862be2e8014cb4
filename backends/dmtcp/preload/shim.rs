//! The preload library that goes into the container with DMTCP. It owns three libc calls (`bind`, `connect`,
//! `getpeername`) and one constructor, and nothing else: no allocation, no libc but `__errno_location`, so that it
//! loads into any glibc. Not a module of the crate: build.rs compiles this file by itself and the crate embeds it.
#![no_std]
#![allow(unsafe_code, reason = "a library that replaces libc calls consists of raw pointers and system calls")]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr;

const SOCKET_PATH: &[u8] = env!("STASIS_SHIM_SOCKET").as_bytes();
const OWN_PATH: &[u8] = env!("STASIS_SHIM_PATH").as_bytes();
/// Libraries of the engine's own closure. They have to be preloaded by path, because a child that was given an
/// empty environment has lost the search path that leads to them.
const DEPENDENCIES: [&[u8]; 3] = [
    b"/.stasis/dmtcp/deps/libatomic.so.1\0",
    b"/.stasis/dmtcp/deps/libgcc_s.so.1\0",
    b"/.stasis/dmtcp/deps/libstdc++.so.6\0",
];

/// Where a generation is shown at a restart, and where captures are written.
const IMAGE_DIR: &[u8] = env!("STASIS_SHIM_IMAGE_DIR").as_bytes();
const CAPTURE_DIR: &[u8] = env!("STASIS_SHIM_CAPTURE_DIR").as_bytes();

/// The descriptor under which every DMTCP process keeps its connection to the coordinator.
const COORDINATOR_FD: c_int = 821;
/// The address by which the tools know the coordinator: 127.83.83.83 port 83. Nothing listens there.
const FAKE_PORT: u16 = 83u16.to_be();
const FAKE_IP: u32 = u32::from_ne_bytes([127, 83, 83, 83]);

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: c_int = 1;
const CLOEXEC: c_long = 0o2000000;
const SOL_SOCKET: c_long = 1;
const SO_REUSEADDR: c_long = 2;
const SO_TYPE: c_long = 3;
const F_GETFD: c_long = 1;
const FD_CLOEXEC: c_long = 1;
const EINTR: c_long = 4;
const AT_FDCWD: c_long = -100;

const SYS_CLOSE: c_long = 3;
const SYS_SOCKET: c_long = 41;
const SYS_CONNECT: c_long = 42;
const SYS_BIND: c_long = 49;
const SYS_GETPEERNAME: c_long = 52;
const SYS_SETSOCKOPT: c_long = 54;
const SYS_GETSOCKOPT: c_long = 55;
const SYS_FCNTL: c_long = 72;
const SYS_SYMLINKAT: c_long = 266;
const SYS_FACCESSAT: c_long = 269;
const SYS_DUP3: c_long = 292;

#[repr(C)]
#[derive(Clone, Copy)]
struct Inet {
    family: u16,
    port: u16,
    ip: u32,
    zero: [u8; 8],
}

#[repr(C)]
struct Unix {
    family: u16,
    path: [u8; 108],
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// # Safety
/// The arguments must be what system call `number` expects.
unsafe fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long) -> c_long {
    let result;
    // SAFETY: the kernel's calling convention on x86_64; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

fn libc_result(result: c_long) -> c_int {
    if result < 0 {
        // SAFETY: libc gives each thread a valid errno.
        unsafe { *__errno_location() = -result as c_int };
        return -1;
    }
    result as c_int
}

/// # Safety
/// `address` is null or readable for `length` bytes.
unsafe fn family(address: *const c_void, length: u32) -> u16 {
    if address.is_null() || length < 2 {
        return 0;
    }
    // SAFETY: two readable bytes, alignment not assumed.
    unsafe { ptr::read_unaligned(address.cast::<u16>()) }
}

/// A restarted server binds again while its old connections are in TIME_WAIT; DMTCP restores the socket's options
/// only after that. Datagram sockets are left alone: there the option would change who may share a port.
///
/// # Safety
/// As for bind(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, address: *const c_void, length: u32) -> c_int {
    // SAFETY: the caller's promise to bind(2); the locals outlive the calls.
    unsafe {
        if matches!(family(address, length), AF_INET | AF_INET6) {
            let (mut kind, mut size, one): (c_int, u32, c_int) = (0, 4, 1);
            let asked = syscall(
                SYS_GETSOCKOPT,
                fd.into(),
                SOL_SOCKET,
                SO_TYPE,
                &raw mut kind as c_long,
                &raw mut size as c_long,
            );
            if asked == 0 && kind == SOCK_STREAM {
                syscall(SYS_SETSOCKOPT, fd.into(), SOL_SOCKET, SO_REUSEADDR, &raw const one as c_long, 4);
            }
        }
        libc_result(syscall(SYS_BIND, fd.into(), address as c_long, length.into(), 0, 0))
    }
}

/// # Safety
/// `address` is null or readable for `length` bytes.
unsafe fn is_coordinator(address: *const c_void, length: u32) -> bool {
    if address.is_null() || (length as usize) < size_of::<Inet>() {
        return false;
    }
    // SAFETY: long enough, alignment not assumed.
    let inet = unsafe { ptr::read_unaligned(address.cast::<Inet>()) };
    inet.family == AF_INET && inet.port == FAKE_PORT && inet.ip == FAKE_IP
}

fn connect_coordinator(fd: c_int) -> c_long {
    let mut name = Unix { family: AF_UNIX, path: [0; 108] };
    for (to, from) in name.path.iter_mut().zip(SOCKET_PATH) {
        *to = *from;
    }
    // SAFETY: plain system calls on descriptors and on a local that outlives them.
    unsafe {
        let flags = syscall(SYS_FCNTL, fd.into(), F_GETFD, 0, 0, 0);
        if flags < 0 {
            return flags;
        }
        let socket = syscall(SYS_SOCKET, AF_UNIX.into(), c_long::from(SOCK_STREAM) | CLOEXEC, 0, 0, 0);
        if socket < 0 {
            return socket;
        }
        let length = (2 + SOCKET_PATH.len() + 1) as c_long;
        let mut result = -EINTR;
        while result == -EINTR {
            result = syscall(SYS_CONNECT, socket, &raw const name as c_long, length, 0, 0);
        }
        if result == 0 {
            let keep = if flags & FD_CLOEXEC != 0 { CLOEXEC } else { 0 };
            result = syscall(SYS_DUP3, socket, fd.into(), keep, 0, 0).min(0);
        }
        syscall(SYS_CLOSE, socket, 0, 0, 0, 0);
        result
    }
}

/// Turns a connection to the coordinator's made-up address into one to its unix socket, under the same descriptor.
///
/// # Safety
/// As for connect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, address: *const c_void, length: u32) -> c_int {
    // SAFETY: the caller's promise to connect(2).
    unsafe {
        if is_coordinator(address, length) {
            return libc_result(connect_coordinator(fd));
        }
        libc_result(syscall(SYS_CONNECT, fd.into(), address as c_long, length.into(), 0, 0))
    }
}

/// DMTCP remembers the peer of descriptor 821 as the coordinator's address and connects to it before each fork; a
/// unix peer has no address that it could use, so it gets the made-up one.
///
/// # Safety
/// As for getpeername(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpeername(fd: c_int, address: *mut c_void, length: *mut u32) -> c_int {
    // SAFETY: the caller's promise to getpeername(2); the local is as large as any socket address.
    unsafe {
        if fd == COORDINATOR_FD && !address.is_null() && !length.is_null() {
            let mut real = [0u8; 128];
            let mut size = 128u32;
            let found =
                syscall(SYS_GETPEERNAME, fd.into(), real.as_mut_ptr() as c_long, &raw mut size as c_long, 0, 0);
            if found < 0 {
                return libc_result(found);
            }
            if family(real.as_ptr().cast(), size) == AF_UNIX {
                let fake = Inet { family: AF_INET, port: FAKE_PORT, ip: FAKE_IP, zero: [0; 8] };
                let room = (*length as usize).min(size_of::<Inet>());
                ptr::copy_nonoverlapping((&raw const fake).cast::<u8>(), address.cast::<u8>(), room);
                *length = size_of::<Inet>() as u32;
                return 0;
            }
        }
        libc_result(syscall(SYS_GETPEERNAME, fd.into(), address as c_long, length as c_long, 0, 0))
    }
}

struct HijackList(UnsafeCell<[u8; 8192]>);
// SAFETY: written by the constructor alone, which the loader runs once and before any other thread exists.
unsafe impl Sync for HijackList {}
static HIJACK: HijackList = HijackList(UnsafeCell::new([0; 8192]));

/// # Safety
/// `text` is a NUL-terminated string.
unsafe fn bytes<'a>(text: *const c_char) -> &'a [u8] {
    let mut length = 0;
    // SAFETY: stops at the terminator.
    unsafe {
        while *text.add(length) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(text.cast(), length)
    }
}

fn lists(list: &[u8], path: &[u8]) -> bool {
    list.split(|byte| *byte == b':').any(|entry| entry == path)
}

/// `DMTCP_HIJACK_LIBS` is what DMTCP preloads into every child. This library and the closure's libraries belong there,
/// so that a child whose program dropped the environment can still fork and load.
///
/// # Safety
/// `entry` points to the element of `environ` that holds `old`.
unsafe fn extend_hijack(entry: *mut *mut c_char, old: &[u8]) {
    // SAFETY: see `HijackList`.
    let buffer = unsafe { &mut *HIJACK.0.get() };
    let mut used = 0;
    let mut push = |piece: &[u8], buffer: &mut [u8; 8192]| {
        // One byte is kept for the terminator.
        if used + piece.len() + 1 >= buffer.len() {
            return false;
        }
        for byte in piece {
            buffer[used] = *byte;
            used += 1;
        }
        true
    };
    let name = b"DMTCP_HIJACK_LIBS=".len();
    let trimmed = old.strip_suffix(b":").unwrap_or(old);
    let mut fits = push(trimmed, buffer);
    let mut add = |path: &[u8], fits: bool| {
        fits && (lists(&old[name..], path) || (push(b":", buffer) && push(path, buffer)))
    };
    fits = add(OWN_PATH, fits);
    for library in DEPENDENCIES {
        // SAFETY: a NUL-terminated constant.
        let present = unsafe { syscall(SYS_FACCESSAT, AT_FDCWD, library.as_ptr() as c_long, 4, 0, 0) } == 0;
        if present {
            fits = add(&library[..library.len() - 1], fits);
        }
    }
    if fits {
        // SAFETY: the caller's promise; the buffer is static and was zero behind what was written.
        unsafe { *entry = buffer.as_mut_ptr().cast() };
    }
}

/// `DMTCP_ORIG_LD_PRELOAD` is what the application will find in LD_PRELOAD: whatever its own user set, without us.
///
/// # Safety
/// `value` is a writable NUL-terminated string.
unsafe fn drop_from_preload(value: *mut c_char) {
    // SAFETY: only ever moves bytes towards the front, terminator included.
    unsafe {
        let list = bytes(value);
        let Some(rest) = list.strip_prefix(OWN_PATH) else { return };
        let rest = match rest {
            [] => rest,
            [b':', tail @ ..] => tail,
            _ => return,
        };
        let skip = list.len() - rest.len();
        let keep = rest.len();
        for index in 0..=keep {
            *value.add(index) = *value.add(index + skip);
        }
    }
}

/// Appends `piece` and a terminator to `buffer` at `used`; the length without it, or `None` where it does not fit.
fn append(buffer: &mut [u8; 512], used: usize, piece: &[u8]) -> Option<usize> {
    let end = used.checked_add(piece.len())?;
    if end >= buffer.len() {
        return None;
    }
    for (to, from) in buffer[used..end].iter_mut().zip(piece) {
        *to = *from;
    }
    buffer[end] = 0;
    Some(end)
}

/// A restored process looks for its copies of deleted and shared files where they were written, in the capture
/// directory. They are now in the directory of the generation; a link leads there until the backend removes it.
fn link_saved_files(names: &[u8]) {
    let (mut from, mut to) = ([0u8; 512], [0u8; 512]);
    for name in names.split(|byte| *byte == b':') {
        if name.is_empty() || name.contains(&b'/') {
            continue;
        }
        let source = append(&mut from, 0, IMAGE_DIR).and_then(|used| append(&mut from, used, name));
        let target = append(&mut to, 0, CAPTURE_DIR).and_then(|used| append(&mut to, used, name));
        if source.is_some() && target.is_some() {
            // SAFETY: two terminated strings. One that exists already was made by this process before an exec.
            unsafe { syscall(SYS_SYMLINKAT, from.as_ptr() as c_long, AT_FDCWD, to.as_ptr() as c_long, 0, 0) };
        }
    }
}

extern "C" fn prepare(_argc: c_int, _argv: *mut *mut c_char, environ: *mut *mut c_char) {
    if environ.is_null() {
        return;
    }
    // SAFETY: glibc hands the process environment, a null-terminated array of strings, to constructors.
    unsafe {
        let mut entry = environ;
        while !(*entry).is_null() {
            let text = bytes(*entry);
            if text.starts_with(b"DMTCP_HIJACK_LIBS=") {
                extend_hijack(entry, text);
            } else if text.starts_with(b"DMTCP_ORIG_LD_PRELOAD=") {
                drop_from_preload((*entry).add(b"DMTCP_ORIG_LD_PRELOAD=".len()));
            } else if let Some(names) = text.strip_prefix(b"STASIS_DMTCP_LINKS=") {
                link_saved_files(names);
            }
            entry = entry.add(1);
        }
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static PREPARE: extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) = prepare;
