//! Loop devices: a part of a file as a block device, read-only, gone with its last user.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
/// Others take free devices too; after so many lost races something else is wrong.
const TRIES: usize = 64;

#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// Attaches `size` bytes of `file` from `offset` on to a free device. The device is free again when the
/// descriptor and everything that is mounted from it are gone.
///
/// # Errors
/// What the kernel says; `EINVAL` before 5.8.
pub fn attach(file: BorrowedFd<'_>, offset: u64, size: u64) -> Result<(OwnedFd, PathBuf), Errno> {
    let control = open("/dev/loop-control", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut last = Errno::EBUSY;
    for _ in 0..TRIES {
        // SAFETY: a live descriptor; this request takes no argument.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        match configure(&path, file, offset, size) {
            Ok(device) => return Ok((device, path)),
            // Somebody else was faster.
            Err(Errno::EBUSY) => last = Errno::EBUSY,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

fn configure(path: &Path, file: BorrowedFd<'_>, offset: u64, size: u64) -> Result<OwnedFd, Errno> {
    let device = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    // SAFETY: plain data for which all zeroes is "nothing asked for".
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = RawFd::cast_unsigned(file.as_raw_fd());
    config.info.offset = offset;
    config.info.size_limit = size;
    config.info.flags = READ_ONLY | AUTOCLEAR;
    // SAFETY: live descriptors and a pointer to a live struct of the layout that the request demands.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
    Ok(device)
}
