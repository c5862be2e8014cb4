//! The words with an engine right after a start: nothing is told as started before they are through.

use crate::error::{Error, Result};
use crate::init::survey;
use crate::launch::protocol::Ending;
use crate::monitor::Teller;
use crate::monitor::live::{Live, Phase, lock};
use crate::monitor::restart;
use crate::monitor::services::Around;
use crate::spec::RestartStep;
use crate::store::Generation;
use crate::worker::{Worker, WorkerError, engine};
use stasis_plugin_api::error::kind;
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::report::ReadyReport;
use stasis_plugin_api::request::AliveRequest;
use stasis_plugin_api::survey::Survey;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// An application that ends within this time of its own after its start never was one.
const SETTLE: Duration = Duration::from_millis(200);
/// But nobody waits longer for it.
const LONGEST: Duration = Duration::from_secs(2);

/// An application's own time: it goes on while it runs, or waits for something that it wants to wait for, and stands still
/// while it waits for a processor or a disk, or the engine's helpers do. On a machine that does nothing else it is the time of
/// everybody.
#[derive(Debug, Default)]
struct OwnTime {
    passed: Duration,
    ran: HashMap<i32, u64>,
}

impl OwnTime {
    /// What was seen after `elapsed` more.
    fn look(&mut self, elapsed: Duration, survey: &Survey) {
        let mut ran = Duration::ZERO;
        for process in &survey.processes {
            let before = self.ran.insert(process.pid, process.ran).unwrap_or(0);
            ran += Duration::from_nanos(process.ran.saturating_sub(before));
        }
        let busy = survey.beside_busy || survey.processes.iter().any(|p| survey::is_busy(&p.state));
        let told = survey.processes.iter().any(|p| p.ran > 0);
        self.passed += if busy && told { ran.min(elapsed) } else { elapsed };
    }
}

/// Asks once more, with a look at what runs now. A process in the middle of an exec gets a second look.
fn again(
    live: &Live,
    worker: &mut Worker,
    memory: &mut EngineState,
    mut seen: Option<Survey>,
    around: &Around<'_>,
) -> std::result::Result<ReadyReport, WorkerError> {
    let mut tries = 3;
    loop {
        tries -= 1;
        let survey = seen.take().or_else(|| live.survey().ok()).unwrap_or_default();
        match engine::ready(worker, &live.view(survey), memory, around) {
            Err(WorkerError::Backend { error, .. }) if tries > 0 && error.kind == kind::UNSUPPORTED => {
                live.wait(Some(Instant::now() + Duration::from_millis(30)), |s| s.phase >= Phase::Ending);
            }
            other => return other,
        }
    }
}

/// Waits a moment for an application that ends at once. One that listens is there: a service need not wait.
pub(super) fn settled(live: &Live) -> Option<Survey> {
    let begun = Instant::now();
    let (mut last, mut own) = (begun, OwnTime::default());
    loop {
        let next = Instant::now() + Duration::from_millis(3);
        let over = own.passed >= SETTLE || begun.elapsed() >= LONGEST;
        if live.wait(Some(next), |s| s.phase >= Phase::Ending) || over {
            return None;
        }
        let Ok(survey) = live.survey() else { continue };
        let now = Instant::now();
        own.look(now - last, &survey);
        last = now;
        if survey.sockets.iter().any(|s| s.state == "listen") {
            return Some(survey);
        }
    }
}

/// The engine saw that it is gone; how it ended is known here, or will be at once.
fn ending(live: &Live) -> Option<Ending> {
    live.wait(Some(Instant::now() + Duration::from_millis(300)), |s| s.ending.is_some());
    live.state().ending
}

/// Whether a command in the foreground that has ended so soon is one that was done so soon: its output and its code tell
/// then. What was brought back may have ended because it was not brought back well; but where the processes were made
/// one by one, only themselves could give such a code.
fn was_done(live: &Live, restarted: bool, ending: Option<Ending>) -> bool {
    let rebuilt = || {
        let restart = live.spec.engine.as_ref().and_then(|engine| engine.restart.as_ref());
        matches!(restart, Some(RestartStep::Rebuild { .. }))
    };
    match ending {
        _ if !restarted => true,
        Some(Ending::Exit(code)) => code == 0 || rebuilt(),
        _ => false,
    }
}

/// Waits until the engine says that the application can be saved.
pub(super) fn handshake(
    live: &Live,
    worker: &mut Worker,
    generation: Option<&Generation>,
    foreground: bool,
    teller: &dyn Teller,
) -> Result<()> {
    let Some(engine_live) = &live.engine else { return Ok(()) };
    let around = Around { live, teller, doing: "starting" };
    let mut memory = lock(&engine_live.memory).clone();
    let view = live.view(Survey::default());
    let outcome = match generation {
        None => engine::ready(worker, &view, &mut memory, &around),
        Some(g) => {
            let (generation, application) = (restart::view(g), Some(around.application()));
            let request = AliveRequest { instance: view, generation, application };
            engine::alive(worker, &request, &mut memory, &around)
        }
    };
    let outcome = match outcome {
        Ok(_) if !foreground && generation.is_none() => {
            // A script may still be on its way to a program that is not there, or that the engine cannot
            // enter: only what is ready after a moment is.
            let seen = settled(live);
            again(live, worker, &mut memory, seen, &around)
        }
        other => other,
    };
    *lock(&engine_live.memory) = memory;
    let outcome = match outcome {
        Err(WorkerError::Backend { error, .. }) if error.kind == kind::APPLICATION_ENDED => {
            let ending = ending(live);
            if foreground && was_done(live, generation.is_some(), ending) {
                return Ok(());
            }
            let unexplained = ending.filter(|_| error.why.is_empty());
            let error = Error::from(*error);
            return Err(unexplained.into_iter().fold(error, Error::because));
        }
        other => other?,
    };
    for note in outcome.notes {
        teller.note(&note);
    }
    let ended = live.state().ending;
    match ended {
        None => Ok(()),
        Some(_) if foreground && was_done(live, generation.is_some(), ended) => Ok(()),
        Some(ending) => Err(Error::new("the application ended while it was started").because(ending)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_plugin_api::survey::ProcessInfo;

    #[test]
    fn time_in_which_an_application_could_not_run_is_not_its_own() {
        let ms = Duration::from_millis;
        let process = |pid, state: &str, ran: u64| ProcessInfo {
            pid,
            state: state.to_owned(),
            ran: ran * 1_000_000,
            ..ProcessInfo::default()
        };
        let seen = |processes: &[ProcessInfo]| Survey { processes: processes.to_vec(), ..Survey::default() };
        let mut own = OwnTime::default();
        let mut after = |elapsed, survey: &Survey| {
            own.look(ms(elapsed), survey);
            own.passed
        };
        assert_eq!(after(3, &seen(&[process(2, "R", 3)])), ms(3));
        // It has no processor, or not all the time.
        assert_eq!(after(50, &seen(&[process(2, "R", 3)])), ms(3));
        assert_eq!(after(50, &seen(&[process(2, "R", 7), process(3, "R", 1)])), ms(8));
        assert_eq!(after(50, &seen(&[process(2, "S", 7), process(3, "D", 1)])), ms(8));
        // It sleeps.
        let asleep = seen(&[process(2, "S", 8), process(3, "S", 1)]);
        assert_eq!(after(50, &asleep), ms(58));
        // For a helper that has no processor.
        assert_eq!(after(50, &Survey { beside_busy: true, ..asleep }), ms(58));
        // For a process that it has just started, and which has had none yet.
        assert_eq!(after(50, &seen(&[process(2, "S", 8), process(5, "R", 0)])), ms(58));
        // Two that run do not make more time of it.
        assert_eq!(after(10, &seen(&[process(2, "R", 18), process(3, "R", 11)])), ms(68));
        // A kernel that does not tell who ran: all time counts.
        assert_eq!(after(10, &seen(&[process(4, "R", 0)])), ms(78));
    }
}
