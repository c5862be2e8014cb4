//! The CRIU backend of stasis: CRIU runs inside the container's own namespaces, so that it needs no privilege
//! outside of them. Nothing of it runs between captures.

mod capture;
mod command;
mod discover;
mod examine;
mod explain;
mod launch;
mod mend;
mod options;
mod probe;
mod protobuf;
mod restart;
mod selftest;
mod stats;

use discover::Criu;
use stasis_plugin_api::capability;
use stasis_plugin_api::outside;
use stasis_plugin_api::prelude::*;

/// The backend.
#[derive(Debug)]
pub struct CriuBackend;

fn criu(host: &Host<'_>) -> Result<Criu> {
    discover::search(host).chosen.map_err(|(reason, help)| {
        BackendError::new(kind::UNUSABLE, "CRIU cannot be used here").because(reason).help(help)
    })
}

impl CheckpointBackend for CriuBackend {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "criu".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: "CRIU".to_owned(),
            summary: "saves every kind of program from outside of it; needs CRIU on the host".to_owned(),
            maturity: Maturity::Beta,
            capabilities: [capability::LEAVE_RUNNING, capability::ROOTLESS].map(str::to_owned).to_vec(),
            options: options::specs(),
            waiting: None,
        }
    }

    fn probe(&self, host: &mut Host<'_>, request: &ProbeRequest) -> Result<Probe> {
        probe::probe(host, request)
    }

    fn examine(&self, host: &mut Host<'_>, subject: &Subject) -> Result<Vec<Finding>> {
        match subject {
            // CRIU does not care what a program is made of.
            Subject::Image { .. } => Ok(Vec::new()),
            Subject::Instance { instance } => Ok(examine::instance(options::tcp(host), instance)),
            Subject::Generation { generation, .. } => Ok(restart::examine(&criu(host)?, generation)),
        }
    }

    fn plan_launch(&self, host: &mut Host<'_>, request: &LaunchRequest) -> Result<LaunchPlan> {
        let criu = criu(host)?;
        launch::plan(host, &criu, request)
    }

    fn ready(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<ReadyReport> {
        outside::ready(host, instance)
    }

    fn status(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<StatusReport> {
        outside::status(host, instance)
    }

    fn capture(&self, host: &mut Host<'_>, request: &CaptureRequest) -> Result<CaptureReport> {
        let criu = criu(host)?;
        capture::capture(host, &criu, request)
    }

    fn plan_restart(&self, host: &mut Host<'_>, request: &RestartRequest) -> Result<RestartPlan> {
        let criu = criu(host)?;
        restart::plan(host, &criu, request)
    }

    fn alive(&self, host: &mut Host<'_>, request: &AliveRequest) -> Result<ReadyReport> {
        outside::alive(host, request)
    }

    fn explain(&self, _: &mut Host<'_>, failed: &FailedHelper) -> Result<BackendError> {
        Ok(restart::failed(failed))
    }
}

stasis_plugin_api::export_backend!(CriuBackend);
