//! The DMTCP backend of stasis: finds an installation, injects it, wraps the application's start, controls
//! the coordinator, saves and brings back.

mod asserts;
mod capture;
mod closure;
mod conf;
mod coordinator;
mod discover;
mod elf;
mod examine;
mod fit;
mod images;
mod inject;
mod inside;
mod launch;
mod ldcache;
mod look;
mod memory_files;
mod preload;
mod probe;
mod restart;
mod version;

use stasis_plugin_api::capability;
use stasis_plugin_api::prelude::*;

/// The backend.
#[derive(Debug)]
pub struct Dmtcp;

impl CheckpointBackend for Dmtcp {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "dmtcp".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: "DMTCP".to_owned(),
            summary:
                "saves dynamically linked glibc programs by a library inside them; needs DMTCP on the host"
                    .to_owned(),
            maturity: Maturity::Beta,
            capabilities: [
                capability::LEAVE_RUNNING,
                capability::ROOTLESS,
                capability::KEEPS_UID,
                capability::TERMINAL,
            ]
            .map(str::to_owned)
            .to_vec(),
            options: vec![
                OptionSpec::new(
                    "config",
                    OptionKind::String,
                    "the file that lists DMTCP's programs and libraries, in Apptainer's format",
                ),
                OptionSpec::new(
                    "prefixes",
                    OptionKind::List,
                    "directories in which DMTCP is installed; the newest that fits the image is taken",
                ),
            ],
            waiting: None,
        }
    }

    fn probe(&self, host: &mut Host<'_>, _: &ProbeRequest) -> Result<Probe> {
        probe::probe(host)
    }

    fn examine(&self, host: &mut Host<'_>, subject: &Subject) -> Result<Vec<Finding>> {
        match subject {
            Subject::Image { image, process } => examine::image(host, image, process),
            Subject::Instance { instance } => Ok(examine::instance(instance)),
            Subject::Generation { generation, image } => restart::examine(host, generation, image),
        }
    }

    fn plan_launch(&self, host: &mut Host<'_>, request: &LaunchRequest) -> Result<LaunchPlan> {
        launch::plan(host, request)
    }

    fn ready(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<ReadyReport> {
        if !instance.survey.processes.is_empty() {
            // The second question, after the first was answered: what joined then has to be there still.
            launch::entered(instance)?;
            let processes = u32::try_from(instance.survey.processes.len()).unwrap_or(u32::MAX);
            return Ok(ReadyReport { processes, notes: Vec::new() });
        }
        let processes = coordinator::wait(host, &instance.logs, 1, coordinator::START)?;
        Ok(ReadyReport { processes, notes: Vec::new() })
    }

    fn status(&self, host: &mut Host<'_>, _: &InstanceView) -> Result<StatusReport> {
        let status = coordinator::status(host)?;
        let summary = match (status.running, status.peers) {
            (true, 1) => "1 process under DMTCP, can be saved".to_owned(),
            (true, n) => format!("{n} processes under DMTCP, can be saved"),
            (false, n) => format!("{n} processes under DMTCP, not ready to be saved"),
        };
        Ok(StatusReport { can_capture: status.running, processes: status.peers, summary })
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

    fn stop(&self, host: &mut Host<'_>, _: &StopRequest) -> Result<StopReport> {
        // The peers die with the answer; its exit code says nothing (99 when the coordinator is gone first).
        coordinator::command(host, &["-q"], std::time::Duration::from_secs(5))?;
        Ok(StopReport::default())
    }
}

stasis_plugin_api::export_backend!(Dmtcp);
