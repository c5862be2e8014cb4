//! The backend as the runtime calls it: it only plans, starts the engine inside a container and reads what that says.

mod capture;
mod cgroup;
mod examine;
mod explain;
mod increments;
mod launch;
mod options;
mod probe;
mod restart;
mod squash;

use stasis_plugin_api::capability;
use stasis_plugin_api::outside;
use stasis_plugin_api::prelude::*;

/// The backend.
#[derive(Debug)]
pub struct NativeBackend;

impl CheckpointBackend for NativeBackend {
    fn describe(&self) -> Descriptor {
        let can = [
            capability::LEAVE_RUNNING,
            capability::ROOTLESS,
            capability::KEEPS_UID,
            capability::INCREMENTAL,
            capability::VERIFY_BEHIND,
        ];
        Descriptor {
            name: "native".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: "the native engine".to_owned(),
            summary: "saves programs from outside in milliseconds; nothing to install".to_owned(),
            maturity: Maturity::Experimental,
            capabilities: can.map(str::to_owned).to_vec(),
            options: options::specs(),
            waiting: launch::Own::read().ok().and_then(|own| own.waiting()),
        }
    }

    fn probe(&self, host: &mut Host<'_>, request: &ProbeRequest) -> Result<Probe> {
        probe::probe(host, request)
    }

    fn examine(&self, _: &mut Host<'_>, subject: &Subject) -> Result<Vec<Finding>> {
        match subject {
            // It does not matter what a program is made of.
            Subject::Image { .. } => Ok(Vec::new()),
            Subject::Instance { instance } => Ok(examine::instance(instance)),
            Subject::Generation { generation, .. } => Ok(restart::examine(generation)),
        }
    }

    fn plan_launch(&self, host: &mut Host<'_>, _: &LaunchRequest) -> Result<LaunchPlan> {
        Ok(LaunchPlan { needs: launch::Own::read()?.needs(host)?, wrap: Vec::new(), notes: Vec::new() })
    }

    fn ready(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<ReadyReport> {
        outside::ready(host, instance)
    }

    fn status(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<StatusReport> {
        outside::status(host, instance)
    }

    fn capture(&self, host: &mut Host<'_>, request: &CaptureRequest) -> Result<CaptureReport> {
        capture::capture(host, request)
    }

    fn plan_restart(&self, host: &mut Host<'_>, request: &RestartRequest) -> Result<RestartPlan> {
        restart::plan(host, request)
    }

    fn alive(&self, host: &mut Host<'_>, request: &AliveRequest) -> Result<ReadyReport> {
        restart::alive(host, request)
    }

    fn squash(&self, host: &mut Host<'_>, request: &SquashRequest) -> Result<SquashReport> {
        squash::squash(host, request)
    }

    fn explain(&self, _: &mut Host<'_>, failed: &FailedHelper) -> Result<BackendError> {
        let outcome = explain::Outcome {
            code: failed.code,
            signal: failed.signal,
            timed_out: failed.timed_out,
            said: &failed.output,
        };
        Ok(explain::explain("rebuilding the application", &outcome))
    }
}

stasis_plugin_api::export_backend!(NativeBackend);
