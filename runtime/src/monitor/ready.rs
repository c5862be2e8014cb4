//! The words with an engine right after a start: nothing is told as started before they are through.

use crate::error::{Error, Result};
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
use std::time::{Duration, Instant};

/// An application that ends within this time after its start never was one.
const SETTLE: Duration = Duration::from_millis(200);
/// And so often it was looked at: where so many looks take longer the machine is busy, and a start takes its time, too.
const LOOKS: u32 = 30;
/// But never longer than this.
const LONGEST: Duration = Duration::from_secs(2);

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
    let mut looks = 0;
    loop {
        let next = Instant::now() + Duration::from_millis(3);
        let over = begun.elapsed() >= if looks < LOOKS { LONGEST } else { SETTLE };
        if live.wait(Some(next), |s| s.phase >= Phase::Ending) || over {
            return None;
        }
        let listens = |survey: &Survey| survey.sockets.iter().any(|s| s.state == "listen");
        if let Some(survey) = live.survey().ok().filter(listens) {
            return Some(survey);
        }
        looks += 1;
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
            let request = AliveRequest { instance: view, generation: restart::view(g) };
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
