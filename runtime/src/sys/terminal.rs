//! Terminals: a new pair, sizes, raw mode.

use nix::errno::Errno;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A new pseudo terminal from the `/dev/ptmx` that this process sees: (master, slave).
///
/// # Errors
/// What the kernel says.
pub fn open_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags, nix::sys::stat::Mode::empty())?;
    let unlock: libc::c_int = 0;
    // SAFETY: a valid descriptor and a pointer to a live int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) })?;
    let number: libc::c_uint = 0;
    // SAFETY: a valid descriptor and a pointer to a live int that the kernel fills.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw const number) })?;
    // Through the path, so that the slave's name can be found inside.
    let slave = open(format!("/dev/pts/{number}").as_str(), flags, nix::sys::stat::Mode::empty())?;
    Ok((master, slave))
}

/// The size of a terminal.
pub fn size(fd: BorrowedFd<'_>) -> Option<Size> {
    let mut found = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a valid descriptor and a pointer to a live struct that the kernel fills.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut found) };
    (rc == 0).then_some(Size { rows: found.ws_row, columns: found.ws_col })
}

/// Tells a terminal its size; its foreground processes get SIGWINCH.
///
/// # Errors
/// What the kernel says.
pub fn set_size(fd: BorrowedFd<'_>, size: Size) -> Result<(), Errno> {
    let wanted = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a valid descriptor and a pointer to a live struct.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const wanted) }).map(drop)
}

/// Makes `fd` the controlling terminal of this process, which leads a session without one.
///
/// # Errors
/// What the kernel says.
pub fn take_control(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: a valid descriptor; the argument is a plain number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// A terminal in raw mode, put back when dropped.
pub struct Raw {
    fd: OwnedFd,
    before: Termios,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Raw {
    /// Makes the terminal behind `fd` raw.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let before = tcgetattr(fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(fd, SetArg::TCSADRAIN, &raw)?;
        let copy = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))?;
        // SAFETY: fcntl just made it for us.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(copy) }, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no putting back.
        let _ = tcsetattr(self.fd.as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}
