//! The values that flags take. Each error is a phrase that reads on after clap's "invalid value X for Y: ".

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

/// A time as `90s`, `30m`, `1h30m`, `2d`; a plain number is seconds.
///
/// # Errors
/// What is wrong, as a phrase.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "write a time as 90s, 30m or 1h30m";
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = text.parse().map_err(|_| "it is too long a time".to_owned())?;
        return positive(seconds);
    }
    let mut total: u64 = 0;
    let mut rest = text;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let mut chars = tail.chars();
        let unit = match chars.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            _ => return Err(HELP.to_owned()),
        };
        // Also refuses a unit that comes twice, and `5m2h`, which is a slip more often than meant.
        if digits == 0 || unit >= last_unit {
            return Err(HELP.to_owned());
        }
        last_unit = unit;
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(unit))
            .and_then(|n| n.checked_add(total))
            .ok_or_else(|| "it is too long a time".to_owned())?;
        rest = chars.as_str();
    }
    if text.is_empty() { Err(HELP.to_owned()) } else { positive(total) }
}

fn positive(seconds: u64) -> Result<Duration, String> {
    const MOST: u64 = 3650 * 86400;
    match seconds {
        0 => Err("it has to be more than nothing".to_owned()),
        1..=MOST => Ok(Duration::from_secs(seconds)),
        _ => Err("it is too long a time".to_owned()),
    }
}

/// A signal that can be waited for: `USR1`, `SIGUSR1` or `10`.
///
/// # Errors
/// What is wrong, as a phrase.
pub fn parse_signal(text: &str) -> Result<i32, String> {
    match signal_number(text)? {
        libc::SIGKILL | libc::SIGSTOP => Err("nobody can wait for this signal".to_owned()),
        libc::SIGCHLD => Err("this signal is needed for the container itself".to_owned()),
        number => Ok(number),
    }
}

/// A signal that is sent: any of them.
///
/// # Errors
/// What is wrong, as a phrase.
pub fn signal_number(text: &str) -> Result<i32, String> {
    let number = match text.parse::<i32>() {
        Ok(number) => number,
        Err(_) => {
            let upper = text.to_ascii_uppercase();
            let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
            name.parse::<Signal>()
                .map(|signal| signal as i32)
                .map_err(|_| "it is not a signal; write it as USR1, SIGUSR1 or 10".to_owned())?
        }
    };
    match number {
        1..=64 if !(32..34).contains(&number) => Ok(number),
        _ => Err("signals have the numbers 1 to 31 and 34 to 64".to_owned()),
    }
}

/// `NAME=VALUE` with a name that is not empty.
pub(super) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// `OLD=NEW`, both absolute.
pub(super) fn parse_path_pair(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (old, new) = parse_pair(text).map_err(|_| "write it as OLD=NEW".to_owned())?;
    let (old, new) = (PathBuf::from(old), PathBuf::from(new));
    if old.is_absolute() && new.is_absolute() {
        Ok((old, new))
    } else {
        Err("both paths have to begin with a slash".to_owned())
    }
}

/// 1 to 254: 0 would say "finished", 255 says "failed before it began".
pub(super) fn parse_exit_code(text: &str) -> Result<u8, String> {
    text.parse::<u8>()
        .ok()
        .filter(|code| (1..=254).contains(code))
        .ok_or_else(|| "it has to be 1 to 254".to_owned())
}
