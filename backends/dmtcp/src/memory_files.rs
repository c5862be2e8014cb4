//! The content of the container's own memory file systems. DMTCP saves what is open or mapped and nothing else of
//! them, and holds nobody still for us: so the content is taken before and after, and has to be the same.

use stasis_plugin_api::prelude::*;
use std::path::Path;

/// In a generation.
pub(crate) const FILE: &str = "tmpfs.tar";
/// The second look.
const AFTER: &str = "tmpfs-after.tar";

/// What was there before a capture.
#[derive(Debug)]
pub(crate) struct Before(TmpfsSaved);

/// Takes it.
pub(crate) fn before(host: &Host<'_>, survey: &Survey) -> Result<Before> {
    match survey.tmpfs.is_empty() {
        true => Ok(Before(TmpfsSaved::default())),
        false => host.save_tmpfs(FILE).map(Before),
    }
}

/// Whether a generation has any, and remarks, such as when they are newer than the rest.
pub(crate) fn after(host: &Host<'_>, before: &Before, staging: &Path) -> Result<(bool, Vec<String>)> {
    let after = host.save_tmpfs(AFTER)?;
    let (first, second) = (staging.join(FILE), staging.join(AFTER));
    let failed = |e: std::io::Error| BackendError::failed("cannot keep the memory file systems").because(e);
    let mut notes: Vec<String> = after.note().into_iter().collect();
    if after == before.0 {
        if after.entries > 0 {
            std::fs::remove_file(&second).map_err(failed)?;
        }
        return Ok((after.entries > 0, notes));
    }
    if after.entries > 0 {
        std::fs::rename(&second, &first).map_err(failed)?;
    } else {
        std::fs::remove_file(&first).map_err(failed)?;
    }
    let note = "files in the container's own /dev/shm or /tmp changed while the state was saved: they are as they were \
                right after it";
    notes.push(note.to_owned());
    Ok((after.entries > 0, notes))
}
