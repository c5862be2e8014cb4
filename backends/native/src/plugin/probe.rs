//! What `stasis backend check` tells about the engine on this host: which kernel interfaces are there.

use super::launch;
use crate::sys::probe as interface;
use stasis_plugin_api::capability;
use stasis_plugin_api::prelude::*;

/// Whether the engine can be used on this host, by this user.
pub(super) fn probe(host: &mut Host<'_>, _: &ProbeRequest) -> Result<Probe> {
    host.check("looking at the kernel")?;
    let rootless = host.context().euid != 0;
    let mut probe = Probe {
        usable: true,
        engine_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        accepts: "*".to_owned(),
        ..Probe::default()
    };
    if let Err(error) = launch::Own::read().and_then(|own| own.needs(host)) {
        refuse(&mut probe, &error.to_string(), error.help.as_deref().unwrap_or_default());
    }
    if std::env::consts::ARCH != "x86_64" {
        let why = format!("this is {}, and the engine knows x86_64 only", std::env::consts::ARCH);
        refuse(&mut probe, &why, "take another backend");
    }
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    let kernel = kernel.unwrap_or_default();
    let old = "take a kernel from 5.13 on, or another backend";
    if !at_least(&kernel, (5, 13)) {
        refuse(&mut probe, &format!("Linux {kernel} is too old: 5.13 is the first that tells enough"), old);
    }
    for (name, tried) in [("pidfd_getfd", interface::pidfd_getfd()), ("kcmp", interface::kcmp())] {
        probe.features.push(feature(name, &tried));
        if let Err(why) = tried {
            let what = "a kernel with CONFIG_KCMP or CONFIG_CHECKPOINT_RESTORE, without a filter in the way";
            refuse(&mut probe, &format!("{name} does not work: {why}"), what);
        }
    }
    probe.features.push(feature("pagemap-scan", &interface::pagemap_scan()));
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if scope.trim() == "3" {
        let what = "the administrator lowers it with `sysctl kernel.yama.ptrace_scope=1`, after a reboot";
        refuse(&mut probe, "nobody may trace processes here (kernel.yama.ptrace_scope is 3)", what);
    }
    let how = if rootless { "inside the container's own user namespace" } else { "root needs none" };
    for name in [capability::ROOTLESS, capability::KEEPS_UID] {
        probe.features.push(Feature { name: name.to_owned(), available: true, reason: how.to_owned() });
    }
    Ok(probe)
}

/// The first reason stays.
fn refuse(probe: &mut Probe, why: &str, help: &str) {
    probe.usable = false;
    if probe.reason.is_none() {
        probe.reason = Some(why.to_owned());
        probe.help = Some(help.to_owned());
    }
}

fn feature(name: &str, tried: &std::result::Result<(), nix::errno::Errno>) -> Feature {
    let reason = match tried {
        Ok(()) => "tried".to_owned(),
        Err(errno) => errno.desc().to_owned(),
    };
    Feature { name: name.to_owned(), available: tried.is_ok(), reason }
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        for (release, fine) in [("6.18.44-x", true), ("5.13.0", true), ("5.4.0-150", false), ("", false)] {
            assert_eq!(at_least(release, (5, 13)), fine, "{release}");
        }
    }

    #[test]
    fn the_first_reason_stays() {
        let mut probe = Probe { usable: true, ..Probe::default() };
        refuse(&mut probe, "one", "do this");
        refuse(&mut probe, "two", "do that");
        assert_eq!(
            (probe.usable, probe.reason.as_deref(), probe.help.as_deref()),
            (false, Some("one"), Some("do this"))
        );
    }
}
