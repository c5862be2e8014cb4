//! A container that was saved, brought back as it was recorded.

use crate::cli::action_args::ActionArgs;
use crate::cli::wanted::Wanted;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::spec::identity::HostFacts;
use crate::spec::resolve::Action;
use crate::spec::{ContainerSpec, binds};
use stasis_plugin_api::plan::StdioKind;

/// Refuses what would describe another container than the recorded one.
fn as_recorded(typed: &ActionArgs) -> Result<()> {
    if !typed.bind.is_empty() || !typed.mount.is_empty() {
        return Err(Error::usage("a saved application gets the binds that it was started with")
            .help("take one from another place with --bind-remap OLD=NEW"));
    }
    let others = [
        (typed.home.is_some() || typed.no_home, "home directory"),
        (typed.contain || typed.containall, "view of the host"),
        (typed.workdir.is_some() || !typed.scratch.is_empty(), "scratch directories"),
        (!typed.overlay.is_empty() || typed.writable || typed.writable_tmpfs, "way of writing to the image"),
        (typed.cwd.is_some(), "working directory"),
        (typed.app.is_some(), "application"),
        (typed.cleanenv || !typed.env.is_empty() || !typed.env_file.is_empty(), "environment"),
        (typed.fakeroot || typed.userns, "user ids"),
        (typed.hostname.is_some(), "host name"),
        (typed.nv || typed.rocm, "devices"),
        (typed.pid || typed.ipc || typed.uts, "namespaces"),
    ];
    match others.iter().find(|(given, _)| *given) {
        None => Ok(()),
        Some((_, what)) => {
            Err(Error::usage(format!("a saved application keeps the {what} that it was started with"))
                .help("leave the flag out; `stasis checkpoint show --json NAME@GEN` tells what was recorded"))
        }
    }
}

/// The recorded container again, under its new name.
///
/// # Errors
/// What was typed does not go with it.
pub(super) fn again(
    recorded: &ContainerSpec,
    wanted: &Wanted,
    typed: &ActionArgs,
    image: &Image,
    facts: &HostFacts,
    name: &str,
) -> Result<ContainerSpec> {
    let mut spec = recorded.clone();
    let given: &[String] = match &wanted.action {
        Action::Exec { argv } => argv,
        Action::Run { args } | Action::Start { args } | Action::InstanceRun { args } => args,
        Action::Shell => &[],
    };
    let same = spec.process.argv == given || spec.process.argv.get(1..).is_some_and(|a| a == given);
    if !given.is_empty() && !same {
        return Err(Error::new(
            "the arguments differ from those that the saved application was started with",
        )
        .because(format!("it was started with: {}", spec.process.argv.join(" ")))
        .help("give the same arguments, or none"));
    }
    as_recorded(typed)?;
    spec.namespaces.net |= typed.net;
    binds::remap(&mut spec, &wanted.args.bind_remap, facts)?;
    name.clone_into(&mut spec.name);
    spec.root.directory = image.directory().to_path_buf();
    spec.root.file = image.file.as_ref().map(|file| file.spec.clone());
    if wanted.image != "-" {
        wanted.image.clone_into(&mut spec.image);
    }
    let terminal =
        wanted.name.is_none() && facts.stdin_tty && (facts.stdout_tty || wanted.action == Action::Shell);
    spec.stdio = if terminal { StdioKind::Pty } else { StdioKind::File };
    Ok(spec)
}
