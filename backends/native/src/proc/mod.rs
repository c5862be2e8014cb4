//! Readers of `/proc`: parsers take text, `read` takes a path.

pub(crate) mod fdinfo;
pub(crate) mod maps;
pub(crate) mod stat;
pub(crate) mod status;
pub(crate) mod timers;

use stasis_plugin_api::error::{BackendError, Result, kind};

/// A file below `/proc/PID`.
pub(crate) fn read(pid: i32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    let bytes = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
