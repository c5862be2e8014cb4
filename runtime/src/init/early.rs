//! A helper that rebuilds a generation and gets ready while the container's root is made, and before it is planned.

use crate::error::Error;
use crate::init::children::Telling;
use crate::init::helpers::{Listeners, PATIENCE, Rebuilding};
use crate::sys::apart::Apart;
use stasis_plugin_api::plan::Helper;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

/// A helper that rebuilds a generation and was started before the container's root was there.
#[derive(Debug)]
pub struct Early {
    it: Rebuilding,
    telling: Telling,
    talk: UnixStream,
    apart: Option<Apart>,
}

/// One that needs nothing of the host's root any more, and waits for the container's.
#[derive(Debug)]
pub struct Loaded {
    it: Rebuilding,
    talk: UnixStream,
}

/// A helper that was started before it was planned. It ends when this is dropped: one that is not needed may not go on
/// loading while the root is changed.
#[derive(Debug)]
pub struct Waiting {
    it: Option<Early>,
    helper: Helper,
    keep_capabilities: bool,
}

impl Waiting {
    /// Starts it. Why it is not there does not matter: another one is started when it is its turn.
    pub fn begin(helper: Helper, keep_capabilities: bool) -> Option<Self> {
        let it = Some(Early::begin(&helper, keep_capabilities)?);
        Some(Self { it, helper, keep_capabilities })
    }

    /// Makes it the helper that was planned. `None` where it cannot be that one, or where its pid is one of those `up_to`
    /// which something may come back.
    pub fn planned(mut self, planned: &Helper, keep_capabilities: bool, up_to: i32) -> Option<Early> {
        let (is, early) = (&self.helper, planned.early.as_ref()?);
        let waits = is.early.as_ref().filter(|waits| waits.talk == early.talk)?;
        let words = early.argv.strip_prefix(&waits.argv[..])?;
        let same = is.env == planned.env
            && is.identity == planned.identity
            && is.ignore_signals == planned.ignore_signals
            && is.descriptors == planned.descriptors
            && keep_capabilities == self.keep_capabilities;
        let it = self.it.as_mut().filter(|early| same && early.it.pid.as_raw() > up_to)?;
        // One that has ended meanwhile does not listen.
        it.talk.write_all(&line(words)?).ok()?;
        self.it.take()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(early) = self.it.take() {
            early.it.end();
        }
    }
}

fn line(words: &[String]) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(words).ok()?;
    line.push(b'\n');
    Some(line)
}

impl Early {
    /// Starts it, where its plan has a command for that. Why it is not there is found out when it is its turn.
    pub fn begin(helper: &Helper, keep_capabilities: bool) -> Option<Self> {
        helper.early.as_ref()?;
        let (talk, theirs) = UnixStream::pair().ok()?;
        let begun =
            Rebuilding::spawned(helper, &mut Listeners::new(), keep_capabilities, Some(theirs.as_fd()));
        let (it, telling) = begun.inspect_err(|error| tracing::debug!(%error, "not started early")).ok()?;
        // There is enough to do for both.
        let apart = Apart::keep(it.pid);
        Some(Self { it, telling, talk, apart })
    }

    /// Waits until it needs nothing of the host's root any more. `None` where it has not come so far.
    pub fn loaded(self) -> Option<Loaded> {
        let Self { it, telling, mut talk, apart } = self;
        let heard = || {
            telling.wait()?;
            let mut word = [0];
            let broken =
                |e: std::io::Error| Error::new("a helper that was started early is gone").because(&e);
            talk.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
            talk.read_exact(&mut word).map_err(broken)
        };
        if let Err(error) = heard() {
            tracing::debug!(%error, "not started early");
            // It has said why, and ended; or takes too long.
            it.end();
            return None;
        }
        apart.into_iter().for_each(Apart::end);
        Some(Loaded { it, talk })
    }
}

impl Loaded {
    /// The container's root is there, and nothing of the host's.
    pub fn go(mut self) -> Rebuilding {
        // One that has ended meanwhile is found ended.
        let _ = self.talk.write_all(b"g");
        self.it
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;
    use nix::errno::Errno;
    use nix::sys::wait::waitpid;
    use stasis_plugin_api::plan::{EarlyCommand, Identity};
    use std::time::Duration;

    const SAYS: &str = "echo l >&5; read word <&5; echo \"$0 $word\"";

    fn helper(early: &str, says: &str) -> Helper {
        let command = |program: &str| [program, "-c", says, program].map(str::to_owned).to_vec();
        let early = Some(EarlyCommand { argv: command(early), talk: 5 });
        Helper { name: "h".to_owned(), argv: command("/bin/sh"), early, ..Helper::default() }
    }

    /// In a fork: what starts a helper has one thread.
    fn alone(check: impl FnOnce() -> bool) -> bool {
        let ended = process::fork_with(&[], || i32::from(!check())).map(process::reap);
        ended.is_ok_and(|ended| ended.is_ok_and(|status| status.success()))
    }

    #[test]
    fn one_that_was_started_early_waits_for_its_word() {
        assert!(alone(|| {
            let helper = helper("/bin/sh", SAYS);
            let early = Early::begin(&helper, true).and_then(Early::loaded).unwrap();
            let mut output = early.it.output.try_clone().unwrap();
            std::thread::sleep(Duration::from_millis(100));
            let silent = output.read(&mut [0]).unwrap_err();
            assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
            early.go().follow(&helper).is_ok_and(|rebuilt| rebuilt.said == b"/bin/sh g\n")
        }));
    }

    #[test]
    fn one_that_is_not_there_early_is_started_in_time() {
        assert!(alone(|| {
            let wrong = [("/nowhere/sh", SAYS), ("/bin/sh", "exit 127"), ("/bin/sh", "exec 5>&-; sleep 60")];
            wrong.iter().all(|(program, says)| {
                Early::begin(&helper(program, says), true).is_some_and(|early| early.loaded().is_none())
            })
        }));
        assert!(alone(|| Early::begin(&Helper { early: None, ..helper("/bin/sh", SAYS) }, true).is_none()));
    }

    /// Says with which words it was started and told, and goes on as others that are started early.
    const WAITS: &str = r#"read -r line <&5; echo l >&5; read -r word <&5; echo "$0 $line $word""#;

    #[test]
    fn one_that_waits_for_its_plan_becomes_what_is_planned() {
        let planned = |words: &[&str]| {
            let mut helper = helper("/bin/sh", WAITS);
            let early = helper.early.as_mut().unwrap();
            early.argv.extend(words.iter().map(|word| (*word).to_owned()));
            helper
        };
        let waiting = || Waiting::begin(planned(&[]), true).unwrap();
        assert!(alone(|| {
            let helper = planned(&["--dir", "a \"b\""]);
            let early = waiting().planned(&helper, true, 1).and_then(Early::loaded).unwrap();
            let said = early.go().follow(&helper).unwrap().said;
            said == b"/bin/sh [\"--dir\",\"a \\\"b\\\"\"] g\n"
        }));
        let ended = |waiting: Waiting, helper: &Helper, keep: bool, up_to: i32| {
            let pid = waiting.it.as_ref().unwrap().it.pid;
            waiting.planned(helper, keep, up_to).is_none() && waitpid(pid, None) == Err(Errno::ECHILD)
        };
        assert!(alone(|| {
            let right = planned(&[]);
            let env = [("A".to_owned(), "b".to_owned())].into();
            let other_talk = right.early.clone().map(|early| EarlyCommand { talk: 6, ..early });
            let others = [
                Helper { early: other_talk, ..right.clone() },
                Helper { early: None, ..right.clone() },
                helper("/bin/dash", WAITS),
                Helper { env, ..right.clone() },
                Helper { identity: Identity::Capable, ..right.clone() },
                Helper { ignore_signals: vec![1], ..right.clone() },
            ];
            others.iter().all(|other| ended(waiting(), other, true, 1))
                && ended(waiting(), &right, false, 1)
                && ended(waiting(), &right, true, i32::MAX)
        }));
        assert!(alone(|| {
            let gone = helper("/nowhere/sh", WAITS);
            let early =
                Waiting::begin(gone.clone(), true).and_then(|waiting| waiting.planned(&gone, true, 1));
            early.and_then(Early::loaded).is_none()
        }));
    }

    #[test]
    fn one_whose_root_never_comes_sees_that() {
        assert!(alone(|| {
            let helper = helper("/bin/sh", SAYS);
            let Some(Loaded { it, talk }) = Early::begin(&helper, true).and_then(Early::loaded) else {
                return false;
            };
            drop(talk);
            it.follow(&helper).is_ok_and(|rebuilt| rebuilt.said == b"/bin/sh \n")
        }));
    }
}
