//! What engines that save a tree from outside of it have in common: what they look for in a survey, what they tell of a
//! running application, and what stands before a tree that is made again.

use crate::error::{BackendError, Result, kind};
use crate::host::{ApplicationState, Host};
use crate::report::{Finding, ReadyReport, StatusReport};
use crate::request::{AliveRequest, GenerationView, InstanceView, RestartRequest, time_for};
use crate::survey::{DescriptorInfo, ProcessInfo, SocketInfo, Survey};
use std::collections::{BTreeSet, HashMap};

/// Processes of the runtime's and the engine's own, and what an application starts at once after a restart, get pids
/// from a range of this size.
const ROOM: i32 = 1000;

impl DescriptorInfo {
    /// Whether it is a device with a state of its own: all but memory (1) and terminals (5, 136 to 143).
    #[must_use]
    pub fn is_stateful_device(&self) -> bool {
        let mut parts = self.device.split(':');
        let kind = parts.next().unwrap_or_default();
        let major: u32 = parts.next().and_then(|m| m.parse().ok()).unwrap_or(0);
        match kind {
            "char" => !matches!(major, 1 | 5 | 136..=143),
            "block" => true,
            _ => false,
        }
    }
}

impl SocketInfo {
    /// Whether it is a TCP connection.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        self.protocol.starts_with("tcp") && self.state == "established"
    }

    /// As an object of a finding: with its process and both ends.
    #[must_use]
    pub fn shown(&self, survey: &Survey) -> String {
        let name = survey.processes.iter().find(|p| p.pid == self.pid).map_or("?", |p| p.name.as_str());
        format!(
            "TCP connection of {name} (pid {}) from {}:{} to {}:{}",
            self.pid, self.local, self.local_port, self.peer, self.peer_port
        )
    }
}

impl InstanceView {
    /// The processes that are neither below the application's first one nor below a command beside it.
    #[must_use]
    pub fn strays(&self) -> Vec<&ProcessInfo> {
        let parents: HashMap<i32, i32> = self.survey.processes.iter().map(|p| (p.pid, p.parent)).collect();
        let below = |mut pid: i32| {
            for _ in 0..=parents.len() {
                if pid == self.application || self.survey.beside.contains(&pid) {
                    return true;
                }
                match parents.get(&pid) {
                    Some(parent) => pid = *parent,
                    None => return false,
                }
            }
            false
        };
        self.survey.processes.iter().filter(|p| !below(p.pid)).collect()
    }
}

/// A finding about a process that is not in the tree.
#[must_use]
pub fn detached(process: &ProcessInfo, why: &str, help: &str) -> Finding {
    Finding::fatal("detached", format!("{} (pid {})", process.name, process.pid), why, help)
}

impl GenerationView {
    /// Whether a fact of that name was recorded as true.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.facts.get(name).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }
}

/// How many milliseconds a helper may take that reads a whole generation from a slow disk.
#[must_use]
pub fn rebuild_timeout_ms(generation: &GenerationView) -> u64 {
    u64::try_from(time_for(generation.size).as_millis()).unwrap_or(u64::MAX)
}

/// Root's processes come back for root and an ordinary user's for an ordinary user. Who saved them is the fact
/// `rootless`.
///
/// # Errors
/// Saved by one and to be brought back by the other.
pub fn of_the_same_kind_of_user(request: &RestartRequest) -> Result<()> {
    let generation = &request.generation;
    if generation.flag("rootless") == request.rootless {
        return Ok(());
    }
    let (then, now) =
        if request.rootless { ("root", "an ordinary user") } else { ("an ordinary user", "root") };
    let what = format!("generation {} cannot be rebuilt", generation.number);
    let why =
        format!("it was saved by {then}, and this is {now}: the processes would get ids that are not there");
    Err(BackendError::new(kind::UNSUPPORTED, what).because(why).help(format!("restart it as {then}")))
}

/// The application has been started.
///
/// # Errors
/// It ended meanwhile; what the runtime says.
pub fn ready(host: &Host<'_>, instance: &InstanceView) -> Result<ReadyReport> {
    running(host.application()?, "the application ended while it was started")?;
    Ok(ReadyReport { processes: count(&instance.survey).max(1), notes: Vec::new() })
}

/// The application has been brought back, by an engine that succeeds only as a whole.
///
/// # Errors
/// It ended meanwhile; what the runtime says.
pub fn alive(host: &Host<'_>, request: &AliveRequest) -> Result<ReadyReport> {
    let state = request.application.clone().map_or_else(|| host.application(), Ok)?;
    running(state, "the application ended right after it was brought back")?;
    // All of them came back, or none would be there. Looking at them takes longer than making them.
    let processes = u32::try_from(request.generation.processes.len()).unwrap_or(u32::MAX);
    Ok(ReadyReport { processes, notes: Vec::new() })
}

/// What is told of a running application.
///
/// # Errors
/// What the runtime says.
pub fn status(host: &Host<'_>, instance: &InstanceView) -> Result<StatusReport> {
    let (processes, can_capture) = (count(&instance.survey), host.application()?.running);
    let summary = match (can_capture, processes) {
        (false, _) => "the application has ended".to_owned(),
        (true, 1) => "1 process, can be saved".to_owned(),
        (true, n) => format!("{n} processes, can be saved"),
    };
    Ok(StatusReport { can_capture, processes, summary })
}

fn running(state: ApplicationState, otherwise: &str) -> Result<()> {
    if state.running {
        return Ok(());
    }
    let how = state.ended.unwrap_or_else(|| "nothing tells how".to_owned());
    Err(BackendError::new(kind::APPLICATION_ENDED, otherwise).because(how))
}

fn count(survey: &Survey) -> u32 {
    u32::try_from(survey.processes.len()).unwrap_or(u32::MAX)
}

/// A pid above which there is room for others than those that are taken: above all of a generation's, or in a gap
/// between them when those reach the end of the range. `max` is [`RestartRequest::pid_max`].
#[must_use]
pub fn free_above(taken: &BTreeSet<i32>, max: i32) -> i32 {
    let highest = taken.last().copied().unwrap_or(0);
    if highest < max - ROOM {
        // The engine's own processes of this restart must not meet those of the next generation.
        return highest + 1;
    }
    // The kernel starts over at 300.
    let mut from = 300;
    for pid in taken.range(300..) {
        if pid - from > ROOM {
            break;
        }
        from = *pid + 1;
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_get_pids_that_are_not_taken() {
        let set = |pids: &[i32]| pids.iter().copied().collect::<BTreeSet<i32>>();
        assert_eq!(free_above(&set(&[100, 120]), 32768), 121);
        assert_eq!(free_above(&set(&[]), 32768), 1);
        assert_eq!(free_above(&set(&[100, 310, 500, 32700]), 32768), 501);
        assert_eq!(free_above(&set(&[32700]), 32768), 300);
    }

    #[test]
    fn root_and_users_do_not_bring_back_each_others() {
        let request = |saved: bool, rootless| {
            let facts = [("rootless".to_owned(), saved.into())].into();
            let generation = GenerationView { number: 3, facts, ..GenerationView::default() };
            RestartRequest { generation, rootless, ..RestartRequest::default() }
        };
        let told =
            |saved, rootless| of_the_same_kind_of_user(&request(saved, rootless)).map_err(|e| e.to_string());
        assert_eq!((told(true, true), told(false, false)), (Ok(()), Ok(())));
        let why = |error: String| assert!(error.starts_with("generation 3 cannot be rebuilt"), "{error}");
        why(told(true, false).unwrap_err());
        why(told(false, true).unwrap_err());
    }

    #[test]
    fn devices_with_a_state() {
        let stateful = |device: &str| {
            DescriptorInfo { device: device.to_owned(), ..DescriptorInfo::default() }.is_stateful_device()
        };
        for (device, state) in [
            ("", false),
            ("char:1:3", false),
            ("char:5:2", false),
            ("char:136:0", false),
            ("char:195:0", true),
            ("char:10:229", true),
            ("block:8:0", true),
            ("nonsense", false),
        ] {
            assert_eq!(stateful(device), state, "{device}");
        }
    }

    #[test]
    fn who_is_outside_of_the_tree() {
        let process = |pid, parent| ProcessInfo { pid, parent, ..ProcessInfo::default() };
        let processes = vec![
            process(100, 1),
            process(101, 100),
            process(102, 101),
            process(103, 1),
            process(104, 9),
            process(105, 105),
        ];
        let survey = Survey { processes, beside: vec![9], ..Survey::default() };
        let view = InstanceView { application: 100, survey, ..InstanceView::default() };
        assert_eq!(view.strays().iter().map(|p| p.pid).collect::<Vec<_>>(), [103, 105]);
    }
}
