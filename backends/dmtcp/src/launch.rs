//! How the application is started under DMTCP.

use crate::preload::{SHIM_PATH, tool};
use crate::{examine, inject};
use stasis_plugin_api::prelude::*;

/// Whether DMTCP is in the application's first process, where the runtime has looked.
pub(crate) fn entered(instance: &InstanceView) -> Result<()> {
    let first = instance.survey.processes.iter().find(|p| p.pid == instance.application);
    let Some(first) = first else {
        return Err(BackendError::new(kind::APPLICATION_ENDED, "the application ended while it was started"));
    };
    match examine::outside(first) {
        None => Ok(()),
        Some(finding) => {
            Err(BackendError::new(kind::UNSUPPORTED, "the application runs but cannot be saved")
                .because(format!("{}: {}", finding.object, finding.why))
                .help(finding.help))
        }
    }
}

/// The plan.
pub(crate) fn plan(host: &mut Host<'_>, request: &LaunchRequest) -> Result<LaunchPlan> {
    let installation = inject::installation(host, &request.image)?;
    host.remember("engine-version", installation.version.to_string());
    host.remember("shim", SHIM_PATH);
    let needs = inject::needs(&installation, &request.image, &request.process, inject::own_shim())?;
    let mut wrap = vec![tool("dmtcp_launch"), "-q".to_owned(), "--join-coordinator".to_owned()];
    wrap.extend(inject::address());
    wrap.extend(["--ckptdir", CAPTURE_DIR, "--tmpdir", inject::TMP, "--no-gzip"].map(str::to_owned));
    Ok(LaunchPlan { needs, wrap, notes: Vec::new() })
}
