//! What `stasis backend check` tells about CRIU on this host: found or not, which version, whether it really works, what
//! it can do.

use crate::discover::{self, Criu, run};
use crate::selftest::{self, SelfTest, Stage};
use stasis_plugin_api::capability;
use stasis_plugin_api::error::Result;
use stasis_plugin_api::host::Host;
use stasis_plugin_api::plan::IdMap;
use stasis_plugin_api::report::{Feature, Probe};
use stasis_plugin_api::request::ProbeRequest;
use std::path::Path;
use std::time::Duration;

/// CRIU looks at the kernel for some 50 ms.
const LIMIT: Duration = Duration::from_secs(5);
/// Whether ordinary users may handle page faults of the kernel.
const USERFAULTFD: &str = "/proc/sys/vm/unprivileged_userfaultfd";

/// Whether CRIU can be used on this host, by this user.
pub(crate) fn probe(host: &mut Host<'_>, request: &ProbeRequest) -> Result<Probe> {
    host.check("looking for CRIU")?;
    let found = discover::search(host);
    let mut probe = Probe { accepts: discover::ACCEPTS.to_owned(), files: found.files, ..Probe::default() };
    let criu = match found.chosen {
        Ok(criu) => criu,
        Err((reason, help)) => {
            probe.reason = Some(reason);
            probe.help = Some(help);
            return Ok(probe);
        }
    };
    probe.engine_version = Some(criu.version.to_string());
    let rootless = host.context().euid != 0;
    // No version number tells what the next kernel changes.
    let known = if request.thorough { None } else { selftest::known(host, &criu, rootless) };
    let outcome = known.unwrap_or_else(|| selftest::run(host, &criu, rootless));
    probe.usable = outcome.passed();
    if let SelfTest::Failed { stage, why } = &outcome {
        probe.reason =
            Some(format!("CRIU {} failed its self-test while {}: {why}", criu.version, stage.doing()));
        probe.help = Some(help(*stage, rootless));
    }
    probe.features.push(tested(&outcome));
    probe.features.push(works_rootless(&criu, rootless, &outcome));
    probe.features.push(keeps_uid(rootless, &request.id_maps));
    if request.thorough {
        let kernel = Kernel { criu: &criu, rootless, scratch: &host.context().scratch };
        probe.features.extend([lazy_restart(&kernel), pre_dump(&kernel)]);
    }
    Ok(probe)
}

fn feature(name: &str, available: bool, reason: impl Into<String>) -> Feature {
    Feature { name: name.to_owned(), available, reason: reason.into() }
}

/// What to do about a self-test that failed.
fn help(stage: Stage, rootless: bool) -> String {
    match stage {
        Stage::Namespaces if rootless => "let the administrator allow user namespaces (sysctl \
             user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns)"
            .to_owned(),
        Stage::Namespaces | Stage::ChoosePid => {
            "root needs CAP_SYS_ADMIN here, and the kernel CONFIG_CHECKPOINT_RESTORE".to_owned()
        }
        _ => format!("take another backend, or a CRIU that is made for this kernel: {}", discover::INSTALL),
    }
}

fn tested(outcome: &SelfTest) -> Feature {
    match outcome {
        SelfTest::Passed { millis } => {
            feature("self-test", true, format!("a process was saved and brought back in {millis} ms"))
        }
        SelfTest::Failed { stage, why } => {
            feature("self-test", false, format!("failed while {}: {why}", stage.doing()))
        }
    }
}

fn works_rootless(criu: &Criu, rootless: bool, outcome: &SelfTest) -> Feature {
    let name = capability::ROOTLESS;
    if (criu.version.major, criu.version.minor) < (3, 18) {
        return feature(name, false, "CRIU 3.18 is the first version for ordinary users");
    }
    match rootless && !outcome.passed() {
        true => feature(name, false, "the self-test failed"),
        false => feature(name, true, "inside the container's own user namespace"),
    }
}

fn keeps_uid(rootless: bool, id_maps: &[IdMap]) -> Feature {
    let name = capability::KEEPS_UID;
    if !rootless {
        return feature(name, true, "root needs no user namespace");
    }
    if id_maps.contains(&IdMap::KeepAndZero) {
        return feature(name, true, "a subordinate id is uid 0 of the container, for CRIU only");
    }
    feature(
        name,
        false,
        "CRIU needs a uid 0 in the container, and without a subordinate id that is your own: the application sees \
         itself as root. Subordinate ids are granted with `usermod --add-subuids 100000-165535 --add-subgids \
         100000-165535 USER`; the package uidmap maps them",
    )
}

pub(crate) fn lazy_restart(kernel: &Kernel<'_>) -> Feature {
    let name = "lazy-restart";
    let allowed = std::fs::read_to_string(USERFAULTFD).is_ok_and(|text| text.trim() == "1");
    if kernel.rootless && !allowed {
        return feature(
            name,
            false,
            "ordinary users may not use userfaultfd (sysctl vm.unprivileged_userfaultfd=1)",
        );
    }
    match kernel.has("uffd") {
        true => feature(name, true, "memory can be brought back on demand (userfaultfd)"),
        false => feature(name, false, "CRIU finds no userfaultfd in this kernel"),
    }
}

fn pre_dump(kernel: &Kernel<'_>) -> Feature {
    match kernel.has("mem_dirty_track") {
        true => feature("pre-dump", true, "the kernel tracks which memory was written"),
        false => feature(
            "pre-dump",
            false,
            "the kernel does not track which memory was written (CONFIG_MEM_SOFT_DIRTY)",
        ),
    }
}

/// The kernel, as CRIU sees it.
pub(crate) struct Kernel<'a> {
    pub(crate) criu: &'a Criu,
    pub(crate) rootless: bool,
    /// CRIU writes down there what it found out, when it can.
    pub(crate) scratch: &'a Path,
}

impl Kernel<'_> {
    fn has(&self, what: &str) -> bool {
        let words = self.criu.command_on_host();
        let mut command = match self.rootless {
            true => selftest::unshare(true, &["--"]),
            false => run::command_of(&words),
        };
        if self.rootless {
            command.args(&words).arg("--unprivileged");
        }
        command.env("XDG_RUNTIME_DIR", self.scratch).args([
            "check",
            "--no-default-config",
            "--feature",
            what,
        ]);
        run::run(&mut command, LIMIT).is_ok_and(|ended| ended.succeeded())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::tests::{NoServices, as_users, context};
    use std::os::unix::fs::PermissionsExt as _;

    fn told(probe: &Probe) -> String {
        let line = |f: &Feature| format!("{} {}: {}\n", f.name, f.available, f.reason);
        let reason = probe.reason.as_deref().unwrap_or_default();
        let help = probe.help.as_deref().unwrap_or_default();
        let features: String = probe.features.iter().map(line).collect();
        format!("usable {}, accepts {}\n{reason}\n{help}\n{features}", probe.usable, probe.accepts)
    }

    /// A private prefix whose "loader" answers with a version and otherwise fails.
    fn install(prefix: &Path, version: &str) {
        let lib = prefix.join("usr/lib/x86_64-linux-gnu");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::create_dir_all(prefix.join("usr/sbin")).unwrap();
        let script =
            format!("#!/bin/sh\ncase $* in *--version) echo Version: {version}; exit;; esac\nexit 1\n");
        for file in [lib.join("ld-linux-x86-64.so.2"), prefix.join("usr/sbin/criu")] {
            std::fs::write(&file, &script).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn asked(scratch: &Path, prefix: &Path, thorough: bool, id_maps: Vec<IdMap>) -> Probe {
        // As an ordinary user: root would not run what lies below /tmp.
        let euid = nix::unistd::geteuid().as_raw().max(1);
        let context =
            stasis_plugin_api::host::CallContext { euid, ..context(scratch, prefix.to_str().unwrap()) };
        probe(&mut Host::new(&NoServices, context), &ProbeRequest { thorough, id_maps }).unwrap()
    }

    #[test]
    fn none_is_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let probe = asked(dir.path(), &dir.path().join("none"), true, vec![]);
        assert!(probe.files.iter().all(|file| file.required && file.found.is_none()));
        insta::assert_snapshot!(told(&probe).replace(dir.path().to_str().unwrap(), "DIR"), @r#"
usable false, accepts >=3.18
DIR/none/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2: not there
on Debian 13 or newer `apt install criu`; elsewhere unpack a private CRIU (docs/criu.md tells how) and name it in plugins.toml: [backends.criu.options] prefix = "/opt/criu"
"#);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn no_version_is_believed_without_the_test() {
        for version in ["4.0", "4.1.1", "9.0"] {
            let dir = tempfile::tempdir().unwrap();
            install(&dir.path().join("p"), version);
            let probe = asked(dir.path(), &dir.path().join("p"), false, vec![]);
            assert!(!probe.usable && dir.path().join("selftest-0").exists());
            let names: Vec<_> = probe.features.iter().map(|f| (f.name.as_str(), f.available)).collect();
            assert_eq!(names, [("self-test", false), ("rootless", false), ("keeps-uid", false)]);
            assert!(probe.reason.unwrap().contains(" failed its self-test while "));
            assert!(probe.help.is_some());
        }
    }

    #[test]
    fn whether_the_user_stays_the_user() {
        let told = |f: Feature| format!("{}: {}", f.available, f.reason);
        insta::assert_snapshot!(told(keeps_uid(true, &[IdMap::Root])), @"false: CRIU needs a uid 0 in the container, and without a subordinate id that is your own: the application sees itself as root. Subordinate ids are granted with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`; the package uidmap maps them");
        insta::assert_snapshot!(told(keeps_uid(true, &[IdMap::Root, IdMap::KeepAndZero])), @"true: a subordinate id is uid 0 of the container, for CRIU only");
        insta::assert_snapshot!(told(keeps_uid(false, &[])), @"true: root needs no user namespace");
    }

    #[test]
    fn a_real_one_is_tried_as_root_and_as_an_ordinary_user() {
        as_users("probe::tests::a_real_one_is_tried_as_root_and_as_an_ordinary_user", tried_here);
    }

    fn tried_here(scratch: &Path, prefix: &str) {
        let mut host = Host::new(&NoServices, context(scratch, prefix));
        let mut ask = |thorough| probe(&mut host, &ProbeRequest { thorough, id_maps: vec![] }).unwrap();
        let names = |probe: &Probe| probe.features.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        let before = ask(false);
        assert!(before.usable);
        assert_eq!(names(&before), ["self-test", "rootless", "keeps-uid"]);
        let thorough = ask(true);
        assert!(thorough.usable, "{}", told(&thorough));
        assert_eq!(names(&thorough), ["self-test", "rootless", "keeps-uid", "lazy-restart", "pre-dump"]);
        let root = nix::unistd::geteuid().is_root();
        assert_eq!(thorough.features[2].available, root, "{}", told(&thorough));
        let after = ask(false);
        assert_eq!(after.features[..], thorough.features[..3]);
    }
}
