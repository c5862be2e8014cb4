//! `/proc/PID/timers`: what `timer_create` was given, without the times.

use super::malformed;
use crate::model::PosixTimer;
use stasis_plugin_api::error::Result;

pub(crate) fn parse(text: &str) -> Result<Vec<PosixTimer>> {
    let mut all: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(&format!("timer line `{line}`")))?;
        let value = value.trim();
        let known = match (name, all.last_mut()) {
            ("ID", _) => value.parse().ok().map(|id| all.push(PosixTimer { id, ..PosixTimer::default() })),
            ("signal", Some(timer)) => signal(timer, value),
            ("notify", Some(timer)) => notify(timer, value),
            ("ClockID", Some(timer)) => value.parse().ok().map(|clock| timer.clock = clock),
            _ => Some(()),
        };
        known.ok_or_else(|| malformed(&format!("timer line `{line}`")))?;
    }
    Ok(all)
}

/// `14/0000000000000000`, with or without 0x.
fn signal(timer: &mut PosixTimer, text: &str) -> Option<()> {
    let (signal, value) = text.split_once('/')?;
    timer.signal = signal.parse().ok()?;
    timer.sigval = u64::from_str_radix(value.trim_start_matches("0x"), 16).ok()?;
    Some(())
}

/// `signal/pid.12`, `none/tid.13`, `thread/pid.1`.
fn notify(timer: &mut PosixTimer, text: &str) -> Option<()> {
    let (how, whom) = text.split_once('/')?;
    timer.notify = match how {
        "signal" => 0,
        "none" => 1,
        "thread" => 2,
        _ => return None,
    };
    let (class, number) = whom.split_once('.')?;
    if class == "tid" {
        timer.notify |= 4;
        timer.tid = number.parse().ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_timers() {
        let text = "ID: 0\nsignal: 14/00007f00\nnotify: signal/pid.12\nClockID: 1\n\
                    ID: 3\nsignal: 40/0\nnotify: signal/tid.13\nClockID: 0\n";
        let timers = parse(text).unwrap();
        assert_eq!((timers[0].signal, timers[0].sigval, timers[0].clock), (14, 0x7f00, 1));
        assert_eq!((timers[1].id, timers[1].notify, timers[1].tid), (3, 4, 13));
        assert!(parse("signal\n").is_err());
        assert!(parse("ID: 0\nnotify: else/pid.1\n").is_err());
    }
}
