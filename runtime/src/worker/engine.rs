//! The methods of the contract with their types and their deadlines.

use super::{Services, Worker, WorkerError};
use stasis_plugin_api::error::BackendError;
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::plan::{LaunchPlan, RestartPlan};
use stasis_plugin_api::report::{
    CaptureReport, Finding, Probe, ReadyReport, SquashReport, StatusReport, StopReport,
};
use stasis_plugin_api::request::{
    AliveRequest, CaptureRequest, FailedHelper, InstanceView, LaunchRequest, ProbeRequest, RestartRequest,
    SquashRequest, StopRequest, Subject,
};
use std::time::Duration;

/// Loading the library and asking it what it is.
pub const LOAD: Duration = Duration::from_secs(10);
/// A thorough probe starts the engine.
pub const PROBE: Duration = Duration::from_secs(30);
pub const EXAMINE: Duration = Duration::from_secs(20);
/// `plan_launch` and `plan_restart`.
pub const PLAN: Duration = Duration::from_secs(20);
pub const READY: Duration = Duration::from_secs(15);
pub const STATUS: Duration = Duration::from_secs(10);
/// Bringing back reads the whole generation.
pub const ALIVE: Duration = Duration::from_secs(70);
pub const STOP: Duration = Duration::from_secs(15);

type Result<T> = std::result::Result<T, WorkerError>;

/// Whether the engine can be used here.
pub fn probe(worker: &mut Worker, request: &ProbeRequest, services: &dyn Services) -> Result<Probe> {
    worker.call("probe", request, &mut EngineState::new(), services, PROBE)
}

/// What stands against saving or restarting the subject.
pub fn examine(
    worker: &mut Worker,
    subject: &Subject,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<Vec<Finding>> {
    worker.call("examine", subject, state, services, EXAMINE)
}

/// How the application has to be started.
pub fn plan_launch(
    worker: &mut Worker,
    request: &LaunchRequest,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<LaunchPlan> {
    worker.call("plan_launch", request, state, services, PLAN)
}

/// Waits until the application runs and could be saved.
pub fn ready(
    worker: &mut Worker,
    instance: &InstanceView,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<ReadyReport> {
    worker.call("ready", instance, state, services, READY)
}

/// What the engine says about the running application.
pub fn status(
    worker: &mut Worker,
    instance: &InstanceView,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<StatusReport> {
    worker.call("status", instance, state, services, STATUS)
}

/// Saves the application. How long that may take depends on its size, which the caller knows.
pub fn capture(
    worker: &mut Worker,
    request: &CaptureRequest,
    state: &mut EngineState,
    services: &dyn Services,
    deadline: Duration,
) -> Result<CaptureReport> {
    worker.call("capture", request, state, services, deadline)
}

/// How a generation is brought back.
pub fn plan_restart(
    worker: &mut Worker,
    request: &RestartRequest,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<RestartPlan> {
    worker.call("plan_restart", request, state, services, PLAN)
}

/// Waits until all of the generation runs again.
pub fn alive(
    worker: &mut Worker,
    request: &AliveRequest,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<ReadyReport> {
    worker.call("alive", request, state, services, ALIVE)
}

/// Why a generation could not be rebuilt, in the backend's words.
pub fn explain(
    worker: &mut Worker,
    failed: &FailedHelper,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<BackendError> {
    worker.call("explain", failed, state, services, PLAN)
}

/// Writes a generation anew. How long that may take depends on its size, which the caller knows.
pub fn squash(
    worker: &mut Worker,
    request: &SquashRequest,
    services: &dyn Services,
    deadline: Duration,
) -> Result<SquashReport> {
    worker.call("squash", request, &mut EngineState::new(), services, deadline)
}

/// Lets go of the application.
pub fn stop(
    worker: &mut Worker,
    request: &StopRequest,
    state: &mut EngineState,
    services: &dyn Services,
) -> Result<StopReport> {
    worker.call("stop", request, state, services, STOP)
}
