//! A backend that misbehaves on request, so that the runtime's promises about bad plugins can be tested.
//!
//! Without a request it is honest and trivial: a capture is the list of the application's pids, a restart starts
//! the recorded command anew. What it shall do wrong is said by the option `misbehave` or, where no option arrives
//! (`load`, `describe`), by the environment variable `STASIS_FAULTY`: a list of `FAULT:METHOD` with commas.
//!
//! | fault | what happens |
//! |---|---|
//! | `error` | an orderly error |
//! | `panic` | a panic |
//! | `hang` | it never returns |
//! | `crash` | SIGABRT |
//! | `still` | an error: the application may stand still (`capture` only) |
//! | `exit` | the process ends with status 0, without an answer |
//! | `lie` | success, and nothing was done (`capture` only) |
//! | `corrupt` | success, and what was written is of no use (`capture` only) |
//!
//! `METHOD` is a method of the contract, or `load` (`hang` and `crash`), which is before any method.

mod faults;
mod odd;

use std::collections::BTreeMap;
use std::path::Path;

use faults::Fault;
use stasis_plugin_api::capability;
use stasis_plugin_api::prelude::*;

/// The file that a capture consists of.
const STATE: &str = "state";

/// The backend. It has nothing to keep.
#[derive(Debug, Default, Clone, Copy)]
pub struct Faulty;

stasis_plugin_api::export_backend!(Faulty);

impl CheckpointBackend for Faulty {
    fn describe(&self) -> Descriptor {
        // There is no way to say that describing failed.
        let _ = faults::commit("describe", None);
        Descriptor {
            name: "faulty".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: "none".to_owned(),
            summary: "Misbehaves on request; for tests only".to_owned(),
            maturity: Maturity::Experimental,
            capabilities: [capability::LEAVE_RUNNING, capability::ROOTLESS, capability::KEEPS_UID]
                .map(str::to_owned)
                .to_vec(),
            options: vec![
                OptionSpec::new(
                    "misbehave",
                    OptionKind::List,
                    "What to do wrong and where: panic:capture,hang:ready",
                ),
                OptionSpec::new("helper", OptionKind::Boolean, "With a helper that fails"),
                OptionSpec::new(
                    "fault",
                    OptionKind::Choice(odd::WORDS.iter().map(|w| (*w).to_owned()).collect()),
                    "How odd to behave in probe",
                )
                .default_value("none"),
            ],
            waiting: None,
        }
    }

    fn probe(&self, host: &mut Host<'_>, _: &ProbeRequest) -> Result<Probe> {
        faults::commit("probe", Some(host))?;
        let fault = host.option_str("fault").unwrap_or("none").to_owned();
        let reason = odd::behave(host, &fault)?;
        Ok(Probe {
            usable: true,
            reason,
            engine_version: Some("1.0.0".to_owned()),
            accepts: "*".to_owned(),
            ..Probe::default()
        })
    }

    fn examine(&self, host: &mut Host<'_>, _: &Subject) -> Result<Vec<Finding>> {
        faults::commit("examine", Some(host))?;
        Ok(Vec::new())
    }

    fn plan_launch(&self, host: &mut Host<'_>, _: &LaunchRequest) -> Result<LaunchPlan> {
        faults::commit("plan_launch", Some(host))?;
        host.remember("planned", "yes");
        let mut plan = LaunchPlan::default();
        if host.option_bool("helper") == Some(true) {
            let words = ["/bin/sh", "-c", "echo oh dear; exit 3"].map(str::to_owned);
            plan.needs.helpers.push(Helper {
                name: "helper".to_owned(),
                argv: words.to_vec(),
                readiness: Readiness::Started,
                ..Helper::default()
            });
        }
        Ok(plan)
    }

    fn ready(&self, host: &mut Host<'_>, _: &InstanceView) -> Result<ReadyReport> {
        faults::commit("ready", Some(host))?;
        tracing::debug!("the faulty backend says ready");
        Ok(ReadyReport { processes: 1, notes: Vec::new() })
    }

    fn status(&self, host: &mut Host<'_>, instance: &InstanceView) -> Result<StatusReport> {
        faults::commit("status", Some(host))?;
        Ok(StatusReport {
            can_capture: true,
            processes: u32::try_from(pids(instance).len()).unwrap_or(u32::MAX),
            summary: "running".to_owned(),
        })
    }

    fn capture(&self, host: &mut Host<'_>, request: &CaptureRequest) -> Result<CaptureReport> {
        let fault = faults::commit("capture", Some(host))?;
        let pids = pids(&request.instance);
        let text = match fault {
            Some(Fault::Corrupt) => "rubbish".to_owned(),
            _ => serde_json::json!(pids).to_string(),
        };
        if fault != Some(Fault::Lie) {
            let file = request.instance.staging.join(STATE);
            std::fs::write(&file, text)
                .map_err(|e| BackendError::failed(format!("writing {}", file.display())).because(e))?;
        }
        host.progress(1, 1, "saving");
        let saved = |pid: &i32| SavedProcess { pid: *pid, name: String::new() };
        Ok(CaptureReport {
            engine_version: "1.0.0".to_owned(),
            files: vec![STATE.to_owned()],
            processes: pids.iter().map(saved).collect(),
            pause_us: Some(0),
            facts: BTreeMap::from([("pids".to_owned(), serde_json::json!(pids))]),
            ..CaptureReport::default()
        })
    }

    fn plan_restart(&self, host: &mut Host<'_>, request: &RestartRequest) -> Result<RestartPlan> {
        faults::commit("plan_restart", Some(host))?;
        read_state(&request.generation.directory)?;
        Ok(RestartPlan::Exec { needs: Needs::default(), argv: request.process.argv.clone() })
    }

    fn alive(&self, host: &mut Host<'_>, _: &AliveRequest) -> Result<ReadyReport> {
        faults::commit("alive", Some(host))?;
        Ok(ReadyReport { processes: 1, notes: Vec::new() })
    }

    fn stop(&self, host: &mut Host<'_>, _: &StopRequest) -> Result<StopReport> {
        faults::commit("stop", Some(host))?;
        Ok(StopReport::default())
    }
}

/// The application's processes; where the runtime did not look, its first one.
fn pids(instance: &InstanceView) -> Vec<i32> {
    let seen: Vec<i32> = instance.survey.processes.iter().map(|process| process.pid).collect();
    if seen.is_empty() { vec![instance.application] } else { seen }
}

fn read_state(generation: &Path) -> Result<Vec<i32>> {
    let file = generation.join(STATE);
    let damaged = || BackendError::new(kind::DAMAGED, format!("{} is of no use", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|e| damaged().because(e))?;
    serde_json::from_str(&text).map_err(|e| damaged().because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::os::fd::{BorrowedFd, OwnedFd};

    struct NoServices;

    impl HostServices for NoServices {
        fn request(&self, name: &str, _: &Value) -> Result<Value> {
            Err(BackendError::new(kind::NOT_IMPLEMENTED, name))
        }
        fn cancelled(&self) -> bool {
            false
        }
        fn keep_fd(&self, _: &str, _: BorrowedFd<'_>) -> Result<()> {
            Ok(())
        }
        fn kept_fd(&self, _: &str) -> Option<OwnedFd> {
            None
        }
    }

    fn host(misbehave: &[&str]) -> Host<'static> {
        let options = BTreeMap::from([("misbehave".to_owned(), serde_json::json!(misbehave))]);
        Host::new(&NoServices, CallContext { options, ..CallContext::default() })
    }

    /// A capture into a fresh directory, then the plan of a restart from it.
    fn round_trip(misbehave: &[&str]) -> (bool, Result<RestartPlan>) {
        let dir = tempfile::tempdir().unwrap();
        let instance = InstanceView { application: 7, staging: dir.path().to_owned(), ..Default::default() };
        let request = CaptureRequest { instance, ..Default::default() };
        let report = Faulty.capture(&mut host(misbehave), &request).unwrap();
        assert_eq!(report.processes[0].pid, 7);
        let there = report.files.iter().all(|file| dir.path().join(file).exists());
        let process = ProcessView { argv: vec!["/bin/app".to_owned()], ..Default::default() };
        let generation = GenerationView { directory: dir.path().to_owned(), ..Default::default() };
        let request = RestartRequest { generation, process, ..Default::default() };
        (there, Faulty.plan_restart(&mut host(&[]), &request))
    }

    #[test]
    fn honest_without_a_request() {
        let (there, plan) = round_trip(&["error:probe"]);
        assert!(there);
        let RestartPlan::Exec { argv, .. } = plan.unwrap() else { panic!("another shape") };
        assert_eq!(argv, ["/bin/app"]);
    }

    #[test]
    fn a_lie_leaves_nothing_and_corruption_leaves_rubbish() {
        let (there, plan) = round_trip(&["lie:capture"]);
        assert_eq!((there, plan.unwrap_err().kind.as_str()), (false, kind::DAMAGED));
        let (there, plan) = round_trip(&["corrupt:capture"]);
        assert_eq!((there, plan.unwrap_err().kind.as_str()), (true, kind::DAMAGED));
    }

    #[test]
    fn errors_and_panics_come_where_they_are_asked_for() {
        let error = Faulty.probe(&mut host(&["error:probe"]), &ProbeRequest::default()).unwrap_err();
        assert_eq!(error.to_string(), "asked to fail in probe: the test wants it");
        assert!(Faulty.probe(&mut host(&["error:ready"]), &ProbeRequest::default()).unwrap().usable);
        let panicked = std::panic::catch_unwind(|| {
            Faulty.ready(&mut host(&["lie:capture", "panic:ready"]), &InstanceView::default())
        });
        assert!(panicked.is_err());
        let typo = Faulty.ready(&mut host(&["explode:ready"]), &InstanceView::default()).unwrap_err();
        assert!(typo.to_string().contains("explode"), "{typo}");
    }
}
