//! Which machine this is, in the two ways that records need: a name for a directory in a home that many
//! hosts share, and the kernel's run, which tells a reboot.

use super::Result;
use super::error::InstanceError;
use std::fmt::Write as _;
use std::path::Path;

/// This machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, safe as the name of a directory.
    pub name: String,
    /// From `/proc/sys/kernel/random/boot_id`; empty when the kernel does not tell.
    pub boot_id: String,
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Host {
    /// From texts that the caller knows.
    #[must_use]
    pub fn new(name: &str, boot_id: &str) -> Self {
        Self { name: file_name(name), boot_id: boot_id.trim().to_owned() }
    }

    /// As the kernel tells it.
    ///
    /// # Errors
    /// When the kernel does not say its name. A sandbox without the boot id is no error.
    pub fn from_kernel() -> Result<Self> {
        let name = nix::unistd::gethostname()
            .map_err(|e| InstanceError::io("ask the kernel for", Path::new("the host name"), e))?;
        let boot_id = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        Ok(Self::new(&name.to_string_lossy(), &boot_id))
    }

    /// Whether the kernel's run of that id is the one that runs here now. Without an id nobody knows.
    pub(super) fn runs_as(&self, boot_id: &str) -> bool {
        !self.boot_id.is_empty() && self.boot_id == boot_id
    }
}

/// The kernel takes any bytes for a host name.
fn file_name(host: &str) -> String {
    let mut out = String::new();
    for (index, byte) in host.bytes().enumerate() {
        match byte {
            b'.' if index == 0 => out.push_str("%2E"),
            b if b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-') => out.push(char::from(b)),
            b => drop(write!(out, "%{b:02X}")),
        }
    }
    if out.is_empty() { "%".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_one_directory() {
        assert_eq!(Host::new("node-17.example.org", "b\n").name, "node-17.example.org");
        assert_eq!(Host::new("../../x", "").name, "%2E.%2F..%2Fx");
        assert_eq!(Host::new("..", "").name, "%2E.");
        assert_eq!(Host::new("", "").name, "%");
        assert_eq!(Host::new("a\0ü", " b\n"), Host { name: "a%00%C3%BC".into(), boot_id: "b".into() });
    }

    #[test]
    fn the_kernel_answers() {
        let host = Host::from_kernel().unwrap();
        assert!(!host.name.is_empty() && !host.name.contains('/'), "{host:?}");
        assert_eq!(host, Host::from_kernel().unwrap());
    }
}
