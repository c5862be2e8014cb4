//! For engines that can leave the processes stopped after a capture: the content of the container's own memory file
//! systems is then taken at exactly that moment, and everybody runs on afterwards who ran before.

use crate::error::Result;
use crate::host::{Host, TmpfsSaved};
use crate::request::CaptureRequest;
use crate::survey::Survey;
use std::collections::HashMap;

const SIGCONT: i32 = 18;

/// What a capture saved beside the engine's own files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Still<T> {
    /// What the engine's own part returned.
    pub dumped: T,
    /// A look at the processes, as saved.
    pub survey: Survey,
    /// The content of the memory file systems, in the file named.
    pub tmpfs: TmpfsSaved,
}

/// Runs `dump`, with `true` where it has to leave the processes stopped: they are to be ended anyway, or the memory
/// file systems hold something. Then saves those into `file` (in the staging directory), and lets everybody run on
/// unless they are to be ended. `again` empties the staging directory: a first file that was made between the look
/// and the capture makes a second one necessary.
///
/// # Errors
/// Those of `dump`, and those of the services. Whoever was stopped for it runs on.
pub fn capture<T>(
    host: &Host<'_>,
    request: &CaptureRequest,
    file: &str,
    again: impl Fn() -> Result<()>,
    mut dump: impl FnMut(bool) -> Result<T>,
) -> Result<Still<T>> {
    let before = &request.instance.survey;
    if !request.stop_after && before.tmpfs.is_empty() {
        let dumped = dump(false)?;
        let survey = host.survey()?;
        if survey.tmpfs.is_empty() {
            return Ok(Still { dumped, survey, tmpfs: TmpfsSaved::default() });
        }
        again()?;
    }
    let dumped = dump(true)?;
    let saved = host.survey().and_then(|survey| Ok((survey, host.save_tmpfs(file)?)));
    if saved.is_err() || !request.stop_after {
        let now = saved.as_ref().map_or(before, |(survey, _)| survey);
        let run_on = host.signal(&now.stopped_since(before), SIGCONT);
        let (survey, tmpfs) = saved?;
        return run_on.map(|()| Still { dumped, survey, tmpfs });
    }
    saved.map(|(survey, tmpfs)| Still { dumped, survey, tmpfs })
}

impl Survey {
    /// The processes that were not stopped in an earlier look, children before their parents: continued in this
    /// order, no parent sees a stopped child.
    #[must_use]
    pub fn stopped_since(&self, before: &Survey) -> Vec<i32> {
        let was_stopped = |pid: i32| before.processes.iter().any(|p| p.pid == pid && p.state == "T");
        let parents: HashMap<i32, i32> = self.processes.iter().map(|p| (p.pid, p.parent)).collect();
        let depth = |mut pid: i32| {
            let mut depth = 0;
            while let Some(parent) = parents.get(&pid).filter(|_| depth < parents.len()) {
                (pid, depth) = (*parent, depth + 1);
            }
            depth
        };
        let mut pids: Vec<i32> =
            self.processes.iter().map(|p| p.pid).filter(|pid| !was_stopped(*pid)).collect();
        pids.sort_by_key(|pid| std::cmp::Reverse(depth(*pid)));
        pids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{BackendError, kind};
    use crate::host::{CallContext, HostServices};
    use crate::survey::ProcessInfo;
    use serde_json::{Value, json};
    use std::cell::RefCell;
    use std::os::fd::{BorrowedFd, OwnedFd};

    fn process(pid: i32, parent: i32, state: &str) -> ProcessInfo {
        ProcessInfo { pid, parent, state: state.to_owned(), ..ProcessInfo::default() }
    }

    fn survey(tmpfs: &[&str]) -> Survey {
        let processes = vec![process(100, 1, "S"), process(101, 100, "S"), process(102, 101, "T")];
        Survey { processes, tmpfs: tmpfs.iter().map(ToString::to_string).collect(), ..Survey::default() }
    }

    /// A runtime that answers from a table and writes down what it was asked.
    struct Table {
        surveys: RefCell<Vec<Survey>>,
        asked: RefCell<Vec<String>>,
        save_fails: bool,
    }

    impl HostServices for Table {
        fn request(&self, name: &str, payload: &Value) -> Result<Value> {
            self.asked.borrow_mut().push(format!("{name} {payload}"));
            match name {
                "survey" => Ok(json!(self.surveys.borrow_mut().remove(0))),
                "save-tmpfs" if self.save_fails => Err(BackendError::failed("full")),
                "save-tmpfs" => Ok(json!({ "entries": 1, "bytes": 2 })),
                "signal" => Ok(Value::Null),
                _ => Err(BackendError::new(kind::NOT_IMPLEMENTED, name)),
            }
        }
        fn cancelled(&self) -> bool {
            false
        }
        fn keep_fd(&self, name: &str, _: BorrowedFd<'_>) -> Result<()> {
            Err(BackendError::new(kind::NOT_IMPLEMENTED, name))
        }
        fn kept_fd(&self, _: &str) -> Option<OwnedFd> {
            None
        }
    }

    /// How often and how it was dumped, and what was asked.
    fn run(
        before: Survey,
        later: Vec<Survey>,
        stop_after: bool,
        save_fails: bool,
    ) -> (Vec<bool>, String, bool) {
        let table = Table { surveys: RefCell::new(later), asked: RefCell::default(), save_fails };
        let host = Host::new(&table, CallContext::default());
        let mut request = CaptureRequest { stop_after, ..CaptureRequest::default() };
        request.instance.survey = before;
        let mut dumps = Vec::new();
        let done = capture(
            &host,
            &request,
            "f",
            || Ok(()),
            |stopped| {
                dumps.push(stopped);
                Ok(())
            },
        );
        let asked = table.asked.borrow().iter().map(|a| format!("{a}\n")).collect();
        (dumps, asked, done.is_ok())
    }

    #[test]
    fn nobody_is_stopped_without_need() {
        let (dumps, asked, done) = run(survey(&[]), vec![survey(&[])], false, false);
        assert_eq!((dumps, asked.as_str(), done), (vec![false], "survey null\n", true));
    }

    #[test]
    fn who_ran_before_runs_on_and_who_stood_does_not() {
        let (dumps, asked, done) = run(survey(&["/tmp"]), vec![survey(&["/tmp"])], false, false);
        assert_eq!((dumps, done), (vec![true], true));
        assert!(
            asked.ends_with("save-tmpfs {\"file\":\"f\"}\nsignal {\"pids\":[101,100],\"signal\":18}\n"),
            "{asked}"
        );
        let (_, asked, done) = run(survey(&["/tmp"]), vec![survey(&["/tmp"])], true, true);
        assert!(!done && asked.contains("signal"), "{asked}");
    }

    #[test]
    fn a_file_that_came_in_between_means_once_more() {
        let (dumps, _, done) = run(survey(&[]), vec![survey(&["/tmp"]), survey(&["/tmp"])], false, false);
        assert_eq!((dumps, done), (vec![false, true], true));
    }

    #[test]
    fn who_is_to_be_ended_stays_stopped() {
        let (dumps, asked, done) = run(survey(&[]), vec![survey(&[])], true, false);
        assert_eq!((dumps, done), (vec![true], true));
        assert!(!asked.contains("signal"), "{asked}");
    }

    #[test]
    fn no_circle_hangs() {
        let odd = Survey { processes: vec![process(5, 6, "S"), process(6, 5, "S")], ..Survey::default() };
        assert_eq!(odd.stopped_since(&Survey::default()).len(), 2);
    }
}
