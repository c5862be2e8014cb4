//! `/proc/PID/stat`.

use super::malformed;
use stasis_plugin_api::error::Result;

/// The fields that are used, under the names of proc_pid_stat(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) comm: String,
    pub(crate) state: char,
    pub(crate) ppid: i32,
    pub(crate) pgrp: i32,
    pub(crate) session: i32,
    pub(crate) tty_nr: i32,
    pub(crate) nice: i32,
    pub(crate) start_code: u64,
    pub(crate) end_code: u64,
    pub(crate) start_stack: u64,
    pub(crate) exit_signal: i32,
    pub(crate) start_data: u64,
    pub(crate) end_data: u64,
    pub(crate) start_brk: u64,
    pub(crate) arg_start: u64,
    pub(crate) arg_end: u64,
    pub(crate) env_start: u64,
    pub(crate) env_end: u64,
    pub(crate) exit_code: i32,
}

pub(crate) fn parse(text: &str) -> Result<Stat> {
    fields(text).ok_or_else(|| malformed("stat of a process"))
}

fn fields(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    let words: Vec<&str> = tail.split_whitespace().collect();
    // The manual counts from 1; what follows the name is field 3.
    let word = |field: usize| words.get(field - 3).copied();
    let int = |field: usize| word(field)?.parse::<i32>().ok();
    let address = |field: usize| word(field)?.parse::<u64>().ok();
    Some(Stat {
        comm: comm.to_owned(),
        state: word(3)?.chars().next()?,
        ppid: int(4)?,
        pgrp: int(5)?,
        session: int(6)?,
        tty_nr: int(7)?,
        nice: int(19)?,
        start_code: address(26)?,
        end_code: address(27)?,
        start_stack: address(28)?,
        exit_signal: int(38)?,
        start_data: address(45)?,
        end_data: address(46)?,
        start_brk: address(47)?,
        arg_start: address(48)?,
        arg_end: address(49)?,
        env_start: address(50)?,
        env_end: address(51)?,
        exit_code: int(52)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let fields: Vec<String> = (4..=52).map(|n: i32| n.to_string()).collect();
        let stat = parse(&format!("12 (a) b (c) R {}", fields.join(" "))).unwrap();
        assert_eq!(stat.comm, "a) b (c");
        assert_eq!((stat.state, stat.ppid, stat.nice, stat.exit_signal), ('R', 4, 19, 38));
        assert_eq!((stat.start_code, stat.env_end, stat.exit_code), (26, 51, 52));
    }

    #[test]
    fn too_little_is_refused() {
        assert!(parse("1 (a) R 1 2").is_err());
        assert!(parse("").is_err());
    }
}
