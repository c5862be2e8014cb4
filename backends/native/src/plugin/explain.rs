//! What the engine says when it fails, read.

use stasis_plugin_api::prelude::*;

const SIGKILL: i32 = 9;

/// How the engine ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome<'a> {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) timed_out: bool,
    /// Its standard error.
    pub(super) said: &'a str,
}

/// The error that it left as its last line, or what can be said without one.
pub(super) fn explain(doing: &str, outcome: &Outcome<'_>) -> BackendError {
    if outcome.timed_out {
        return BackendError::new(kind::TIMED_OUT, format!("the engine did not finish {doing} in time"))
            .help("give it more time, or see whether the disk is slow")
            .engine_output(outcome.said);
    }
    let last = outcome.said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if let Ok(error) = serde_json::from_str::<BackendError>(last) {
        return error;
    }
    let how = match (outcome.code, outcome.signal) {
        (_, Some(SIGKILL)) => "it was killed: memory may have run out (see dmesg)".to_owned(),
        (_, Some(signal)) => format!("it died of signal {signal}"),
        (Some(code), _) => format!("it ended with status {code}"),
        _ => "nothing tells how it ended".to_owned(),
    };
    BackendError::failed(format!("the engine failed while {doing}")).because(how).engine_output(outcome.said)
}

/// The error of a capture, which writes into the staging directory of the checkpoints and nowhere else.
pub(super) fn full(error: BackendError) -> BackendError {
    let says =
        |why: &String| ["No space left on device", "Disk quota exceeded"].iter().any(|w| why.contains(w));
    if error.help.is_some() || !error.why.iter().any(says) {
        return error;
    }
    error
        .because("the file system of the checkpoints is full, or its quota is used up")
        .help("remove old checkpoints (`stasis checkpoint prune`), or keep them on a larger file system")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_words_come_first() {
        let error = BackendError::new(kind::UNSUPPORTED, "no").because("x").help("y");
        let said = format!("noise\n{}\n", serde_json::to_string(&error).unwrap());
        let outcome = Outcome { code: Some(1), signal: None, timed_out: false, said: &said };
        assert_eq!(explain("saving", &outcome), error);
        let killed = Outcome { code: None, signal: Some(9), timed_out: false, said: "" };
        insta::assert_snapshot!(explain("saving", &killed), @"the engine failed while saving: it was killed: memory may have run out (see dmesg)");
        let error = |why: &str| BackendError::failed("x cannot be written").because(why);
        assert!(full(error("No space left on device (os error 28)")).help.is_some());
        assert_eq!(full(error("it is gone")), error("it is gone"));
        let late = Outcome { timed_out: true, ..killed };
        assert_eq!(explain("saving", &late).kind, kind::TIMED_OUT);
        let odd = Outcome { code: Some(127), signal: None, timed_out: false, said: "ld.so: cannot open" };
        insta::assert_snapshot!(explain("saving", &odd), @"the engine failed while saving: it ended with status 127");
        assert_eq!(explain("saving", &odd).engine_output.as_deref(), Some("ld.so: cannot open"));
    }
}
