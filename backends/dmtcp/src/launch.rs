//! How the application is started under DMTCP.

use crate::inject;
use crate::preload::{SHIM_PATH, tool};
use stasis_plugin_api::prelude::*;

/// The plan.
pub(crate) fn plan(host: &mut Host<'_>, request: &LaunchRequest) -> Result<LaunchPlan> {
    let installation = inject::installation(host, &request.image)?;
    host.remember("engine-version", installation.version.to_string());
    host.remember("shim", SHIM_PATH);
    let needs = inject::needs(&installation, &request.image, &request.process, inject::own_shim())?;
    let mut wrap = vec![tool("dmtcp_launch"), "-q".to_owned(), "--join-coordinator".to_owned()];
    wrap.extend(inject::address());
    wrap.extend(["--ckptdir", CAPTURE_DIR, "--tmpdir", inject::TMP, "--no-gzip"].map(str::to_owned));
    Ok(LaunchPlan { needs, wrap })
}
