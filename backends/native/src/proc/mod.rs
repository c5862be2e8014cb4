//! Readers of `/proc`: parsers take text, `read` takes a path.

pub(crate) mod fdinfo;
pub(crate) mod limits;
pub(crate) mod maps;
pub(crate) mod stat;
pub(crate) mod status;
pub(crate) mod timers;

use stasis_plugin_api::error::{BackendError, Result, kind};
use std::fs::File;
use std::io::Read as _;

/// A file below `/proc/PID`.
pub(crate) fn read(pid: i32, name: &str) -> Result<String> {
    text(&format!("/proc/{pid}/{name}"))
}

/// The same of this process.
pub(crate) fn own(name: &str) -> Result<String> {
    text(&format!("/proc/self/{name}"))
}

fn text(path: &str) -> Result<String> {
    let bytes = bytes(path).map_err(|error| unreadable(path, &error))?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// With as few calls as it takes: an application waits meanwhile.
fn bytes(path: &str) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut all = vec![0; 8192];
    let mut filled = 0;
    loop {
        match file.read(all.get_mut(filled..).unwrap_or_default())? {
            0 => break,
            count => filled += count,
        }
        if all.len() - filled < 4096 {
            all.resize(all.len() * 2, 0);
        }
    }
    all.truncate(filled);
    Ok(all)
}

/// What a link below `/proc/PID` shows.
pub(crate) fn link(pid: i32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    let target = std::fs::read_link(&path).map_err(|error| unreadable(&path, &error))?;
    Ok(target.to_string_lossy().into_owned())
}

/// The numbers that name entries of a directory of `/proc`, ascending.
pub(crate) fn numbers(path: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let entry = entry.map_err(|error| unreadable(path, &error))?;
        found.extend(entry.file_name().to_string_lossy().parse::<i32>().ok());
    }
    found.sort_unstable();
    Ok(found)
}

fn unreadable(path: &str, error: &std::io::Error) -> BackendError {
    let gone = [Some(libc::ENOENT), Some(libc::ESRCH)].contains(&error.raw_os_error());
    let kind = if gone { kind::APPLICATION_ENDED } else { kind::FAILED };
    BackendError::new(kind, format!("{path} cannot be read")).because(error)
}

fn malformed(what: &str) -> BackendError {
    BackendError::failed(format!("the kernel's {what} cannot be understood"))
        .help("this kernel is newer or older than what the engine knows; use another backend")
}
