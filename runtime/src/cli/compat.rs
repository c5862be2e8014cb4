//! Apptainer's own words for checkpointing. The one file of the runtime that names an engine.

use crate::cli::action_args::ActionArgs;
use crate::error::{Error, Result};
use crate::name::{BackendName, CheckpointName, CheckpointRef};
use clap::Args;
use std::collections::BTreeMap;

const BACKEND: &str = "dmtcp";

/// Flags that a page of Apptainer's manual names.
#[derive(Debug, Clone, Default, Args)]
pub struct CompatArgs {
    /// The same as --backend dmtcp --checkpoint NAME
    #[arg(long, value_name = "NAME", help_heading = "Checkpoints")]
    dmtcp_launch: Option<String>,
    /// The same as --backend dmtcp --restart NAME
    #[arg(long, value_name = "NAME", help_heading = "Checkpoints")]
    dmtcp_restart: Option<String>,
}

impl CompatArgs {
    /// Says the same in our words.
    ///
    /// # Errors
    /// Contradicting flags, or a name that is none.
    pub fn translate(self, args: &mut ActionArgs, env: &BTreeMap<String, String>) -> Result<()> {
        let from_env = |key: &str| {
            ["STASIS_", "APPTAINER_", "SINGULARITY_"]
                .iter()
                .find_map(|p| env.get(&format!("{p}{key}")).cloned())
        };
        let typed = self.dmtcp_launch.is_some() || self.dmtcp_restart.is_some();
        let neutral = args.checkpoint.is_some() || args.restart.is_some() || args.resume.is_some();
        let (launch, restart) = match typed || neutral {
            true => (self.dmtcp_launch, self.dmtcp_restart),
            false => (from_env("DMTCP_LAUNCH"), from_env("DMTCP_RESTART")),
        };
        let (word, name) = match (launch, restart) {
            (None, None) => return Ok(()),
            (Some(_), Some(_)) => {
                return Err(Error::usage("--dmtcp-launch and --dmtcp-restart contradict each other")
                    .help("start with the one, or bring back with the other"));
            }
            (Some(name), None) => ("--dmtcp-launch", name),
            (None, Some(name)) => ("--dmtcp-restart", name),
        };
        if neutral {
            return Err(Error::usage(format!(
                "{word} says the same as --checkpoint, --restart or --resume: give one of them"
            )));
        }
        match &args.backend {
            Some(other) if other.as_str() != BACKEND => {
                return Err(Error::usage(format!(
                    "{word} means --backend {BACKEND}, and --backend says {other}"
                )));
            }
            _ => args.backend = Some(BackendName::new(BACKEND)?),
        }
        match word {
            "--dmtcp-launch" => args.checkpoint = Some(CheckpointName::new(&name)?),
            _ => args.restart = Some(name.parse::<CheckpointRef>()?),
        }
        Ok(())
    }
}
