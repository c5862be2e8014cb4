//! Which other engine can save a program, where the one that was taken cannot: said before anything runs.

use crate::cli::backend;
use crate::cli::{Session, images};
use crate::error::{Error, Kind};
use crate::image::Image;
use crate::monitor::ask;
use crate::monitor::findings::judge;
use crate::monitor::live::process_view;
use crate::monitor::order::MonitorOrder;
use crate::worker::{NoServices, Worker, engine as calls};
use stasis_plugin_api::host::EngineState;
use stasis_plugin_api::request::{ImageView, ProbeRequest, Subject};
use std::path::Path;

/// Adds their names to the refusal. Other errors are left as they are.
pub fn named(session: &Session, order: &MonitorOrder, error: Error) -> Error {
    if error.kind != Some(Kind::CannotSave) {
        return error;
    }
    // The refusal stands whether or not somebody else can be asked.
    let names = able(session, order).unwrap_or_default();
    let flags: Vec<String> = names.iter().map(|name| format!("--backend {name}")).collect();
    if flags.is_empty() {
        return error;
    }
    let help = format!("what can save it here: {}", flags.join(", "));
    let help = error.help.as_ref().map_or_else(|| help.clone(), |first| format!("{first}; {help}"));
    error.help(help)
}

/// Whether a program that is named by its path is there, with what starts it: else no engine is of any help.
fn can_start(image: &Image, program: &str) -> bool {
    let there = |path: &Path| image.lookup(path).is_some();
    !program.contains('/')
        || there(Path::new(program)) && image.interpreter_of(program).is_none_or(|needed| there(&needed))
}

/// Those that are usable here and find nothing that would be lost. The one that has refused is among those asked, and
/// refuses again.
fn able(session: &Session, order: &MonitorOrder) -> crate::error::Result<Vec<String>> {
    let spec = &order.spec;
    let image = images::open_again(session, &spec.image, false)?;
    if !can_start(&image, spec.process.argv.first().map_or("", String::as_str)) {
        return Ok(Vec::new());
    }
    let root = match image.mount() {
        Some(_) => Worker::mounted_image(),
        None => image.directory().to_path_buf(),
    };
    let view = ImageView { name: spec.image.clone(), root };
    let subject = Subject::Image { image: view, process: process_view(spec) };
    let request = ProbeRequest { thorough: false, id_maps: ask::id_maps(spec) };
    let accepted = order.engine.as_ref().map(|engine| engine.accept_loss.as_slice()).unwrap_or_default();
    let can = |name: &str| {
        let Ok(mut asked) = backend::ask(session, name, image.mount()) else { return false };
        let usable = calls::probe(&mut asked.worker, &request, &NoServices).is_ok_and(|probe| probe.usable);
        let mut findings =
            || calls::examine(&mut asked.worker, &subject, &mut EngineState::new(), &NoServices);
        usable && findings().is_ok_and(|findings| judge("save it", name, findings, accepted).is_ok())
    };
    let settings = session.settings()?;
    Ok(settings.enabled().map(ToString::to_string).filter(|name| can(name)).collect())
}
