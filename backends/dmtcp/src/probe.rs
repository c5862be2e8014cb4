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
        format!("DMTCP {version_text} at {prefix_label} serves images that cannot load the newer one, and what it saved itself")
    }));
    if SHIM.is_empty() {
        probe.reason = Some(
            "this build of the backend lacks its preload library, which exists for x86_64 only".to_owned(),
        );
        probe.help = Some("use another backend on this machine".to_owned());
    } else if let Err(why) = closure::closure(installation) {
        probe.reason = Some(format!("DMTCP {} cannot be used: {why}", installation.version_text));
        probe.help =
            Some("install the package of that library (libatomic1, libstdc++6, libgcc-s1)".to_owned());
    } else {
        probe.usable = true;
    }
    probe
}

fn features(installation: &Installation) -> Vec<Feature> {
    let shim = !SHIM.is_empty();
    let new = installation.version.major >= 5;
    let text = &installation.version_text;
    let feature =
        |name: &str, available, reason: String| Feature { name: name.to_owned(), available, reason };
    vec![
        feature(
            "private coordinator",
            shim,
            match shim {
                true => format!("a unix socket as descriptor {LISTENER_FD}: no other user reaches it"),
                false => "the preload library exists for x86_64 only".to_owned(),
            },
        ),
        feature(
            "blocking checkpoint",
            new,
            match new {
                true => "dmtcp_command --bcheckpoint".to_owned(),
                false => format!("DMTCP {text} answers before the images are written; they are waited for"),
            },
        ),
        feature(
            "status as JSON",
            new,
            match new {
                true => "dmtcp_command --json".to_owned(),
                false => format!("DMTCP {text} tells it as text; 5.0 has --json"),
            },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    fn install(prefix: &Path, version: &str) {
        for dir in ["bin", "lib/dmtcp"] {
            std::fs::create_dir_all(prefix.join(dir)).unwrap();
        }
        for name in ["dmtcp_launch", "dmtcp_restart", "dmtcp_coordinator", "dmtcp_command", "mtcp_restart"] {
            let file = prefix.join("bin").join(name);
            std::fs::write(&file, format!("#!/bin/sh\necho 'x (DMTCP) {version}'\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(prefix.join("lib/dmtcp/libdmtcp.so"), SHIM).unwrap();
    }

    fn search(dir: &Path, conf: &str) -> Search {
        std::fs::write(dir.join("conf.yaml"), conf).unwrap();
        let prefixes = vec![dir.join("a"), dir.join("b")];
        Search { config: Some(dir.join("conf.yaml")), prefixes, path: String::new(), euid: 1000 }
    }

    #[test]
    fn tells_versions_and_features() {
        let dir = tempfile::tempdir().unwrap();
        install(&dir.path().join("a"), "5.1");
        install(&dir.path().join("b"), "4.2.0");
        let probe = of(&search(dir.path(), ""));
        assert!(probe.usable && probe.reason.is_none());
        assert_eq!(probe.engine_version.as_deref(), Some("5.1.0"));
        let features = probe.features.iter().map(|f| format!("{} {}: {}", f.name, f.available, f.reason));
        insta::assert_snapshot!(features.collect::<Vec<_>>().join("\n"), @"
private coordinator true: a unix socket as descriptor 821: no other user reaches it
blocking checkpoint true: dmtcp_command --bcheckpoint
status as JSON true: dmtcp_command --json
");
        let warnings = probe.warnings.join("\n").replace(dir.path().to_str().unwrap(), "DIR");
        insta::assert_snapshot!(warnings, @"
DMTCP 5.1 was not tried with this backend; 4.2 to 5.0 were
DMTCP 4.2.0 at DIR/b serves images that cannot load the newer one, and what it saved itself
");
    }

    #[test]
    fn an_older_version_tells_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        install(&dir.path().join("a"), "4.2.0");
        let probe = of(&search(dir.path(), ""));
        assert!(probe.usable && probe.warnings.len() == 1, "{:?}", probe.warnings);
        let lacks = probe.features.iter().filter(|f| !f.available).map(|f| f.reason.as_str());
        insta::assert_snapshot!(lacks.collect::<Vec<_>>().join("\n"), @"
DMTCP 4.2.0 answers before the images are written; they are waited for
DMTCP 4.2.0 tells it as text; 5.0 has --json
");
    }

    #[test]
    fn an_unusable_host_tells_why_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        install(&dir.path().join("b"), "2.6.0");
        let probe = of(&search(dir.path(), ""));
        assert!(!probe.usable && probe.engine_version.is_none());
        let reason = probe.reason.unwrap().replace(dir.path().to_str().unwrap(), "DIR");
        insta::assert_snapshot!(format!("{reason}\n{}", probe.help.unwrap()), @r#"
DMTCP not installed or incomplete: dmtcp_launch, dmtcp_restart, dmtcp_coordinator, dmtcp_command, mtcp_restart (sought in DIR/a/bin); libdmtcp.so (sought in DIR/a/lib/dmtcp, DIR/a/lib64/dmtcp, DIR/a/lib/x86_64-linux-gnu/dmtcp); DMTCP 2.6.0 at DIR/b is not supported (>=3.0, <6)
install DMTCP 4.2 or later, or name its prefix in plugins.toml: [backends.dmtcp.options] prefixes = ["/opt/dmtcp"]
"#);
        let probe = of(&search(dir.path(), "bins: 7"));
        assert!(!probe.usable && probe.files.is_empty());
        let told = format!("{}\n{}", probe.reason.unwrap(), probe.help.unwrap());
        insta::assert_snapshot!(told.replace(dir.path().to_str().unwrap(), "DIR"), @"
DIR/conf.yaml:1:7: bins: invalid type: integer `7`, expected a sequence; allowed are two lists of names or absolute paths, `bins` and `libs`
correct DIR/conf.yaml, for example: bins: [dmtcp_launch], libs: [libdmtcp.so]; DMTCP is found without the file too
");
    }
}
