//! What `stasis backend check` tells about DMTCP on this host: found or not, which version, what it can do.

use crate::discover::{self, Found, Installation, Search};
use crate::preload::{LISTENER_FD, SHIM};
use crate::{closure, version};
use stasis_plugin_api::error::Result;
use stasis_plugin_api::host::Host;
use stasis_plugin_api::report::{Feature, Probe};

const INSTALL: &str = "install DMTCP 4.2 or later, or name its prefix in plugins.toml: \
                       [backends.dmtcp.options] prefixes = [\"/opt/dmtcp\"]";

/// Whether DMTCP can be used on this host, by this user.
pub(crate) fn probe(host: &Host<'_>) -> Result<Probe> {
    host.check("looking for DMTCP")?;
    Ok(of(&Search::from_host(host)))
}

/// The answer for one way of looking.
fn of(search: &Search) -> Probe {
    let mut probe = Probe { accepts: version::ACCEPTS.to_owned(), ..Probe::default() };
    let found = match discover::search(search) {
        Ok(found) => found,
        Err(error) => {
            probe.reason = Some(error.to_string());
            probe.help = Some(error.help());
            return probe;
        }
    };
    let Found { installations, files, problems } = found;
    probe.files = files;
    let Some(installation) = installations.first() else {
        // Several places may each have their reason; all of them count.
        probe.reason = Some(problems.join("; "));
        probe.help = Some(INSTALL.to_owned());
        return probe;
    };
    probe.engine_version = Some(installation.version.to_string());
    probe.features = features(installation);
    probe.warnings = problems;
    probe.warnings.extend(version::remark(&installation.version, &installation.version_text));
    let others = installations.iter().skip(1);
    probe.warnings.extend(others.map(|other| {
        let Installation { version_text, prefix_label, .. } = other;
        format!("DMTCP {version_text} at {prefix_label} serves images that cannot load the newer one")
    }));
    if SHIM.is_empty() {
        probe.reason = Some("this build of the backend lacks its preload library, which exists for x86_64 only".to_owned());
        probe.help = Some("use another backend on this machine".to_owned());
    } else if let Err(why) = closure::closure(installation) {
        probe.reason = Some(format!("DMTCP {} cannot be used: {why}", installation.version_text));
        probe.help = Some("install the package of that library (libatomic1, libstdc++6, libgcc-s1)".to_owned());
    } else {
        probe.usable = true;
    }
    probe
}

fn features(installation: &Installation) -> Vec<Feature> {
    let shim = !SHIM.is_empty();
    let json = installation.version.major >= 5;
    let text = &installation.version_text;
    let feature = |name: &str, available, reason: String| Feature { name: name.to_owned(), available, reason };
    vec![
        feature(
            "private coordinator",
            shim,
            match shim {
                true => format!("a unix socket as descriptor {LISTENER_FD}: no other user reaches it"),
                false => "the preload library exists for x86_64 only".to_owned(),
            },
        ),
        feature("blocking checkpoint", true, "dmtcp_command --bcheckpoint".to_owned()),
        feature(
            "status as JSON",
            json,
            match json {
                true => "dmtcp_command --json".to_owned(),
                false => format!("DMTCP {text} tells it as text; 5.0 has --json"),
            },
        ),
    ]
}
