//! A capture that builds on the generation before: what the engine is given for it, and which of its files the new
//! generation shares.

use super::capture::CORE;
use super::options;
use crate::capture::increments::BASE;
use crate::model::Image;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use stasis_plugin_api::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

/// The ends of the mailbox in which the engine leaves what it watches with, as the runtime keeps them: to read from, and
/// to write to.
const MAILBOX: [&str; 2] = ["mailbox-out", "mailbox-in"];
/// The numbers at which the engine finds them.
const NUMBERS: [i32; 2] = [3, 4];
/// The fact that names what a generation saved.
pub(super) const FACT: &str = "tracking";

/// What the engine is told and given.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) arguments: Vec<String>,
    pub(super) kept: BTreeMap<i32, String>,
}

/// The generation on which a capture may build, by the name of what it saved.
pub(super) fn base<'a>(
    host: &Host<'_>,
    request: &'a CaptureRequest,
) -> Option<(&'a GenerationView, &'a str)> {
    let previous = request.previous.as_ref().filter(|_| options::increments(host))?;
    let name = previous.facts.get(FACT)?.as_str()?;
    (previous.engine_version == env!("CARGO_PKG_VERSION")).then_some((previous, name))
}

/// Prepares a capture. What cannot be prepared makes it one of everything.
pub(super) fn prepare(host: &Host<'_>, request: &CaptureRequest) -> Given {
    if !options::increments(host) || mailbox(host).is_err() {
        return Given::default();
    }
    let mut arguments = vec!["--mailbox".to_owned()];
    arguments.extend(NUMBERS.map(|number| number.to_string()));
    if !request.stop_after {
        arguments.push("--track".to_owned());
    }
    if let Some((previous, name)) = base(host, request)
        && fs::copy(previous.directory.join(CORE), request.instance.staging.join(BASE)).is_ok()
    {
        arguments.extend(["--base".to_owned(), name.to_owned()]);
    }
    let kept = NUMBERS.into_iter().zip(MAILBOX.map(str::to_owned)).collect();
    Given { arguments, kept }
}

/// The description of the generation before is none of this one's files.
pub(super) fn tidy(staging: &Path) {
    // Mostly there is none.
    let _ = fs::remove_file(staging.join(BASE));
}

fn mailbox(host: &Host<'_>) -> Result<()> {
    if MAILBOX.iter().all(|name| host.kept_fd(name).is_some()) {
        return Ok(());
    }
    let ends = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| BackendError::failed("no pair of sockets").because(e.desc()))?;
    host.keep_fd(MAILBOX[0], ends.0.as_fd())?;
    host.keep_fd(MAILBOX[1], ends.1.as_fd())
}

/// The files of the generation before that belong to this one as well.
pub(super) fn inherited(image: &Image, files: &[String]) -> Vec<String> {
    let layers = image.processes.iter().flat_map(|process| &process.layers);
    let shared: BTreeSet<&String> = layers.map(|layer| &layer.file).filter(|f| !files.contains(f)).collect();
    shared.into_iter().cloned().collect()
}
