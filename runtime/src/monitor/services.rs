//! What a plugin's worker may ask of the monitor while a container stands.

use crate::error::Error;
use crate::launch::protocol::{FromInit, ToInit};
use crate::monitor::Teller;
use crate::monitor::live::{Live, Phase, lock};
use crate::worker::Services;
use serde_json::Value;
use stasis_plugin_api::error::{BackendError, kind};
use stasis_plugin_api::host::{ApplicationState, RunInside, RunOutput};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The services around one container.
pub struct Around<'a> {
    /// The container.
    pub live: &'a Live,
    /// Told of progress.
    pub teller: &'a dyn Teller,
    /// In the words of the user: "saving".
    pub doing: &'a str,
}

fn answer<T: serde::Serialize>(value: &T) -> Result<Value, BackendError> {
    serde_json::to_value(value)
        .map_err(|e| BackendError::new(kind::PROTOCOL, "the runtime's answer").because(e))
}

fn refused(error: &Error) -> BackendError {
    let mut refused = BackendError::failed(error.what.clone());
    refused.why.clone_from(&error.why);
    refused.help.clone_from(&error.help);
    refused
}

impl Around<'_> {
    fn run_inside(&self, payload: Value) -> Result<Value, BackendError> {
        let mut command: RunInside = serde_json::from_value(payload)
            .map_err(|e| BackendError::new(kind::PROTOCOL, "run-inside").because(e))?;
        if command.timeout_ms == 0 {
            command.timeout_ms = 60_000;
        }
        let patience = Duration::from_millis(command.timeout_ms) + Duration::from_secs(2);
        let (id, answers) = self.live.expect();
        let mut kept = Vec::new();
        for name in command.kept.values() {
            let missing = || BackendError::failed(format!("nothing is kept under the name \"{name}\""));
            kept.push(Services::kept_fd(self, name).ok_or_else(missing)?);
        }
        let kept: Vec<_> = kept.iter().map(AsFd::as_fd).collect();
        self.live.tell_init(&ToInit::Run { id, command }, &kept).map_err(|e| refused(&e))?;
        let outcome = answers.recv_timeout(patience);
        self.live.forget(id);
        match outcome {
            Ok((FromInit::Ran { output: Ok(output), .. }, _)) => answer::<RunOutput>(&output),
            Ok((FromInit::Ran { output: Err(error), .. }, _)) => Err(refused(&error)),
            _ => Err(BackendError::new(kind::APPLICATION_ENDED, "the container ended")),
        }
    }

    fn survey(&self) -> Result<Value, BackendError> {
        answer(&self.live.survey().map_err(|e| refused(&e))?)
    }

    fn signal(&self, payload: &Value) -> Result<Value, BackendError> {
        let unclear = |e| BackendError::new(kind::PROTOCOL, "signal").because(e);
        let of = |key: &str| payload.get(key).cloned().unwrap_or_default();
        let pids = serde_json::from_value(of("pids")).map_err(unclear)?;
        let signal = serde_json::from_value(of("signal")).map_err(unclear)?;
        self.live.tell_init(&ToInit::SignalPids { pids, signal }, &[]).map_err(|e| refused(&e))?;
        Ok(Value::Null)
    }

    fn save_tmpfs(&self, payload: &Value) -> Result<Value, BackendError> {
        let file = payload.get("file").and_then(Value::as_str).unwrap_or_default();
        let plain = !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\0']);
        if !plain {
            return Err(BackendError::new(kind::PROTOCOL, format!("save-tmpfs: {file:?} is no file name")));
        }
        let (id, answers) = self.live.expect();
        let order = ToInit::SaveTmpfs { id, file: file.to_owned() };
        self.live.tell_init(&order, &[]).map_err(|e| refused(&e))?;
        let outcome = answers.recv();
        self.live.forget(id);
        match outcome {
            Ok((FromInit::TmpfsSaved { saved: Ok(saved), .. }, _)) => answer(&saved),
            Ok((FromInit::TmpfsSaved { saved: Err(error), .. }, _)) => Err(refused(&error)),
            _ => Err(BackendError::new(kind::APPLICATION_ENDED, "the container ended")),
        }
    }

    /// What stands of the application now.
    pub(super) fn application(&self) -> ApplicationState {
        let state = self.live.state();
        let ended = state.ending.map(|e| e.to_string()).or_else(|| state.reason.clone());
        ApplicationState { running: state.phase < Phase::Ending, ended }
    }
}

impl Services for Around<'_> {
    fn request(&self, name: &str, payload: Value) -> Result<Value, BackendError> {
        match name {
            "run-inside" => self.run_inside(payload),
            "application" => answer(&self.application()),
            "survey" => self.survey(),
            "signal" => self.signal(&payload),
            "save-tmpfs" => self.save_tmpfs(&payload),
            "stderr-tail" => answer(&self.live.stderr_tail()),
            "progress" => {
                let number = |key: &str| payload.get(key).and_then(Value::as_u64).unwrap_or(0);
                let doing = payload.get("doing").and_then(Value::as_str).unwrap_or(self.doing);
                self.teller.progress(number("done"), number("total"), doing);
                Ok(Value::Null)
            }
            _ => Err(BackendError::new(
                kind::NOT_IMPLEMENTED,
                format!("the runtime has no service \"{name}\""),
            )),
        }
    }

    fn keep_fd(&self, name: &str, fd: OwnedFd) -> Result<(), BackendError> {
        let Some(engine) = &self.live.engine else {
            return Err(BackendError::failed("no engine"));
        };
        lock(&engine.kept).insert(name.to_owned(), fd);
        Ok(())
    }

    fn kept_fd(&self, name: &str) -> Option<OwnedFd> {
        let engine = self.live.engine.as_ref()?;
        lock(&engine.kept).get(name)?.try_clone().ok()
    }
}
