//! What was typed for a start or a restart, before anything is looked at.

use crate::cli::action_args::ActionArgs;
use crate::cli::compat::CompatArgs;
use crate::error::{Error, Result};
use crate::monitor::findings::accepts;
use crate::name::InstanceName;
use crate::spec::resolve::Action;

/// What is to be started.
pub(super) struct Wanted {
    /// What is done with the image.
    pub(super) action: Action,
    /// The flags.
    pub(super) args: ActionArgs,
    /// Apptainer's own words.
    pub(super) compat: CompatArgs,
    /// As typed.
    pub(super) image: String,
    /// Of an instance.
    pub(super) name: Option<InstanceName>,
}

impl Wanted {
    /// Refuses flags that do not go together.
    ///
    /// # Errors
    /// Which ones, and what to give instead.
    pub(super) fn check(&self) -> Result<()> {
        let args = &self.args;
        if args.backend.is_some() && self.checkpoint().is_none() {
            return Err(Error::usage("--backend says how to save, and nothing says where to").help(
                "add --checkpoint NAME to start so that it can be saved, or --restart NAME to bring it back",
            ));
        }
        let engine = args.wants_engine();
        for (given, flag) in [
            (args.checkpoint_interval.is_some(), "--checkpoint-interval"),
            (!args.checkpoint_on.is_empty(), "--checkpoint-on"),
            (args.keep.is_some(), "--keep"),
            (!args.backend_option.is_empty(), "--backend-option"),
            (args.tcp.is_some(), "--tcp"),
            (!args.accept_loss.is_empty(), "--accept-loss"),
        ] {
            if given && !engine {
                return Err(Error::usage(format!(
                    "{flag} needs --checkpoint NAME, --restart NAME or --resume NAME"
                )));
            }
        }
        if args.verify.is_some() && args.restart.is_none() && args.resume.is_none() {
            return Err(Error::usage("--verify needs --restart NAME or --resume NAME"));
        }
        if engine && args.writable_tmpfs && !accepts(&args.accept_loss, "writable-tmpfs") {
            return Err(Error::usage("--writable-tmpfs keeps files in memory that no engine saves").help(
                "use --overlay DIR, whose files stay; to go on and lose them: --accept-loss=writable-tmpfs",
            ));
        }
        if self.name.is_some() && !args.checkpoint_on.is_empty() {
            return Err(Error::usage(
                "--checkpoint-on is for commands in the foreground; an instance is saved with `stasis checkpoint instance`",
            ));
        }
        if matches!(&self.action, Action::Exec { argv } if argv.is_empty())
            && args.restart.is_none()
            && args.resume.is_none()
        {
            return Err(Error::usage("exec needs a command").help("stasis exec IMAGE COMMAND [ARGUMENT...]"));
        }
        Ok(())
    }

    /// The name of the checkpoint that it saves into.
    pub(super) fn checkpoint(&self) -> Option<String> {
        let args = &self.args;
        let restart = args.restart.as_ref().map(|r| r.name.to_string());
        args.checkpoint.as_ref().or(args.resume.as_ref()).map(ToString::to_string).or(restart)
    }

    /// The container's name.
    pub(super) fn container(&self) -> String {
        let made = || format!("{}-{}", self.action.word(), std::process::id());
        let named = self.name.as_ref().map(ToString::to_string);
        named.or_else(|| self.checkpoint()).unwrap_or_else(made)
    }
}
