//! What a plugin prints: never shown as it comes, its end kept for the case that the worker dies.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How much of the end is kept, in bytes.
const KEPT: usize = 4096;
/// The most that is read in one turn, so that a plugin that prints for ever cannot hold its watcher.
const TURN: usize = 256 << 10;

/// The reading end of the pipe behind the worker's stdout and stderr.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: Option<File>,
    tail: Vec<u8>,
    cut: bool,
}

impl Output {
    pub(crate) fn new(pipe: OwnedFd) -> std::io::Result<Self> {
        crate::sys::fd::set_nonblocking(pipe.as_fd(), true)?;
        Ok(Self { pipe: Some(pipe.into()), tail: Vec::new(), cut: false })
    }

    /// What to wait on; nothing once every writer is gone.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there.
    pub(crate) fn drain(&mut self) {
        let mut buffer = [0; 8192];
        let mut total = 0;
        while let Some(pipe) = self.pipe.as_mut()
            && total < TURN
        {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    total += count;
                    self.push(&buffer[..count]);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > KEPT {
            self.tail.drain(..self.tail.len() - KEPT);
            self.cut = true;
        }
    }

    /// The end of it in whole lines; nothing when nothing was printed. Characters that would do something
    /// to a terminal are replaced.
    pub(crate) fn last_words(&self) -> Option<String> {
        let mut bytes = self.tail.as_slice();
        if self.cut
            && let Some(end) = bytes.iter().position(|b| *b == b'\n')
            && end + 1 < bytes.len()
        {
            bytes = &bytes[end + 1..];
        }
        let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c };
        let text: String = String::from_utf8_lossy(bytes).trim().chars().map(shown).collect();
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn after(text: &[u8]) -> Option<String> {
        let (read, write) = crate::sys::fd::pipe().unwrap();
        let mut output = Output::new(read).unwrap();
        File::from(write).write_all(text).unwrap();
        output.drain();
        output.drain();
        assert!(output.fd().is_none(), "the writer is gone");
        output.last_words()
    }

    #[test]
    fn nothing_but_space_is_nothing() {
        assert_eq!(after(b""), None);
        assert_eq!(after(b" \n\n"), None);
    }

    #[test]
    fn only_whole_lines_of_the_end_are_kept() {
        let many: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let kept = after(many.as_bytes()).unwrap();
        assert!(kept.starts_with("line ") && kept.ends_with("line 999") && kept.len() < KEPT, "{kept}");
        assert!(kept.lines().all(|l| l.starts_with("line ")));
        assert_eq!(after(&[b'x'; 5000]).unwrap().len(), KEPT);
    }

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        assert_eq!(after(b"\x1b[31mred\xff\tend").unwrap(), "\u{fffd}[31mred\u{fffd}\tend");
    }
}
