//! The trait that an author implements.

use crate::descriptor::Descriptor;
use crate::error::{BackendError, Result, kind};
use crate::host::Host;
use crate::plan::{LaunchPlan, RestartPlan};
use crate::report::{CaptureReport, Finding, Probe, ReadyReport, SquashReport, StatusReport, StopReport};
use crate::request::{
    AliveRequest, CaptureRequest, FailedHelper, InstanceView, LaunchRequest, ProbeRequest, RestartRequest,
    SquashRequest, StopRequest, Subject,
};
use serde_json::Value;

/// A checkpoint engine.
///
/// Every method but [`describe`](Self::describe) runs in a process of its own, the *worker*, which
/// serves one call on one instance and then ends. Nothing kept in memory survives: what has to be
/// remembered goes through [`Host::remember`], descriptors through [`Host::keep_fd`]. The runtime
/// kills the worker when its deadline has passed. A panic becomes an error of the call.
///
/// A backend does not print, does not read the environment or `HOME`, does not end its process and
/// does not change what is outside the directories that it is handed.
pub trait CheckpointBackend: Send + Sync + 'static {
    /// What this backend is.
    ///
    /// *When*: at any time, also where the engine is not installed. *Where*: any worker.
    /// *Owner*: the answer is the caller's. *Failure*: none; it has no side effects.
    fn describe(&self) -> Descriptor;

    /// Whether the engine can be used here, and everything that was looked for.
    ///
    /// *When*: before a launch and for `stasis backend check`. *Where*: on the host, as the caller.
    /// *Owner*: nothing is left behind. *Failure*: only when looking itself failed; an engine that
    /// is not there is an answer, not an error.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn probe(&self, host: &mut Host<'_>, request: &ProbeRequest) -> Result<Probe>;

    /// What stands against saving or restarting the subject.
    ///
    /// *When*: before every launch, capture and restart, and for `backend check`. *Where*: on the
    /// host; an instance is described by its survey and must not be touched. *Owner*: nothing is
    /// left behind. *Failure*: only when looking itself failed.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn examine(&self, host: &mut Host<'_>, subject: &Subject) -> Result<Vec<Finding>>;

    /// How the application has to be started so that it can be saved.
    ///
    /// *When*: after `examine` of the image. *Where*: on the host, before anything is made.
    /// *Owner*: paths in the plan have to live as long as the instance. *Failure*: nothing was
    /// started.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn plan_launch(&self, host: &mut Host<'_>, request: &LaunchRequest) -> Result<LaunchPlan>;

    /// Waits until the application runs under the engine and could be saved.
    ///
    /// *When*: right after the start. *Where*: on the host, the container stands. *Owner*: nothing
    /// is left behind. *Failure*: the runtime ends the container and tells the user this error.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn ready(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<ReadyReport>;

    /// What the engine says about the running application.
    ///
    /// *When*: at any time between `ready` and `stop`. *Where*: on the host, the container stands.
    /// *Owner*: nothing is left behind. *Failure*: the application is untouched.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn status(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<StatusReport>;

    /// Saves the application into the staging directory, which is empty, and returns when every
    /// file is complete and was checked. The runtime hashes, syncs and commits.
    ///
    /// *When*: one at a time, after `examine` of the instance. *Where*: on the host, the container
    /// stands; [`Host::run_inside`] reaches into it. *Owner*: the files are the runtime's after the
    /// return. *Failure*: the application runs on as before, or the kind is `application-ended`.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn capture(&self, host: &mut Host<'_>, request: &CaptureRequest) -> Result<CaptureReport>;

    /// How a generation is brought back.
    ///
    /// *When*: after the generation was verified and `examine` found nothing. *Where*: on the host,
    /// before anything is made. *Owner*: the generation is shown at
    /// [`IMAGE_DIR`](crate::plan::IMAGE_DIR), read-only. *Failure*: nothing was started.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn plan_restart(&self, host: &mut Host<'_>, request: &RestartRequest) -> Result<RestartPlan>;

    /// Waits until all of the generation runs again and could be saved again.
    ///
    /// *When*: right after the start of a restart. *Where*: on the host, the container stands.
    /// *Owner*: nothing is left behind. *Failure*: the runtime ends the container and tells this
    /// error; the generation stays.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn alive(&self, host: &mut Host<'_>, request: &AliveRequest) -> Result<ReadyReport>;

    /// Why a generation could not be rebuilt, in words for the user.
    ///
    /// *When*: after the helper of a [`RestartPlan::Rebuild`] failed. *Where*: on the host; the container
    /// is gone or about to go. *Owner*: nothing is left behind. *Failure*: the runtime tells what the
    /// helper printed. The default does the same.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn explain(&self, host: &mut Host<'_>, failed: &FailedHelper) -> Result<BackendError> {
        let _ = host;
        let mut error = BackendError::failed(format!("the engine's {} failed", failed.name));
        error.engine_output = Some(failed.output.clone());
        Ok(error)
    }

    /// Writes a generation that shares files with others anew, so that it shares none and nothing in it is superseded.
    ///
    /// *When*: at the user's wish, while no instance holds the checkpoint. *Where*: on the host. *Owner*: the files are
    /// the runtime's after the return. *Failure*: the generation stays as it is. The default says that there is nothing
    /// to be done.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn squash(&self, host: &mut Host<'_>, request: &SquashRequest) -> Result<SquashReport> {
        let _ = host;
        Err(BackendError::new(
            kind::NOT_IMPLEMENTED,
            format!("generation {} cannot be written anew", request.generation.number),
        )
        .because("this backend keeps every generation by itself"))
    }

    /// Lets go of the application; afterwards the runtime kills what is left.
    ///
    /// *When*: at a stop, when the application did not end by itself. *Where*: on the host, the
    /// container stands. *Owner*: nothing is left behind. *Failure*: noted; the container ends anyway.
    ///
    /// # Errors
    /// As said under *Failure*.
    fn stop(&self, host: &mut Host<'_>, request: &StopRequest) -> Result<StopReport> {
        let _ = (host, request);
        Ok(StopReport::default())
    }

    /// A service by id that this version of the contract does not name. Ids are
    /// `reverse.domain/REVISION`, those of the project `stasis.NAME/REVISION`, drafts `x-...`.
    ///
    /// # Errors
    /// Kind `not-implemented` for every id that the backend does not have.
    fn extension(&self, host: &mut Host<'_>, id: &str, payload: &Value) -> Result<Value> {
        let _ = (host, payload);
        Err(BackendError::new(kind::NOT_IMPLEMENTED, format!("extension {id}")))
    }
}
