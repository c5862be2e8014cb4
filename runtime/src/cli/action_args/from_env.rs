//! The variables that stand for flags.

use std::collections::BTreeMap;

use super::ActionArgs;

/// In order of precedence.
const PREFIXES: [&str; 3] = ["STASIS_", "APPTAINER_", "SINGULARITY_"];

/// A variable that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("variable {name} is {value:?}, and it means yes or no")]
pub struct ArgsError {
    /// The variable.
    pub name: String,
    /// What it holds.
    pub value: String,
}

impl ArgsError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(format!("set {} to 1 or 0, or unset it", self.name))
    }
}

struct Variables<'a> {
    /// Those that may concern us and are not empty: the place of their prefix, the rest of their names, their values.
    set: Vec<(usize, &'a str, &'a str)>,
    notes: Vec<String>,
}

impl<'a> Variables<'a> {
    fn of(env: &'a BTreeMap<String, String>) -> Self {
        let with = |(place, prefix): (usize, &'static str)| {
            let from = env.range(prefix.to_owned()..);
            from.map_while(move |(name, value)| Some((place, name.strip_prefix(prefix)?, value.as_str())))
        };
        let set = PREFIXES.into_iter().enumerate().flat_map(with).filter(|(.., value)| !value.is_empty());
        Self { set: set.collect(), notes: Vec::new() }
    }

    /// The first of these that is set and not empty. A second prefix with another value is noted.
    fn find(&mut self, keys: &[&str]) -> Option<(String, &'a str)> {
        let named = |place: usize, key: &str| format!("{}{key}", PREFIXES.get(place).unwrap_or(&""));
        let mut found: Option<(String, &'a str)> = None;
        for place in 0..PREFIXES.len() {
            for key in keys {
                let Some((.., value)) = self.set.iter().find(|(at, rest, _)| (at, rest) == (&place, key))
                else {
                    continue;
                };
                match &found {
                    None => found = Some((named(place, key), value)),
                    Some((winner, first)) if first != value => {
                        let name = named(place, key);
                        self.notes.push(format!("{winner} and {name} differ: {winner} counts"));
                    }
                    Some(_) => {}
                }
            }
        }
        found
    }

    fn flag(&mut self, flag: &mut bool, keys: &[&str]) -> Result<(), ArgsError> {
        if *flag {
            return Ok(());
        }
        if let Some((name, value)) = self.find(keys) {
            *flag = match value {
                "1" | "t" | "T" | "true" | "TRUE" | "True" | "yes" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" | "no" => false,
                _ => return Err(ArgsError { name, value: value.to_owned() }),
            };
        }
        Ok(())
    }

    fn text(&mut self, slot: &mut Option<String>, keys: &[&str]) {
        if slot.is_none() {
            *slot = self.find(keys).map(|(_, value)| value.to_owned());
        }
    }

    /// Before those of the flags.
    fn before(&mut self, list: &mut Vec<String>, keys: &[&str], separator: Option<char>) {
        let Some((_, value)) = self.find(keys) else { return };
        let items: Vec<String> = match separator {
            Some(c) => value.split(c).filter(|item| !item.trim().is_empty()).map(str::to_owned).collect(),
            None => vec![value.to_owned()],
        };
        list.splice(0..0, items);
    }

    /// Only when no flag gave any.
    fn instead(&mut self, list: &mut Vec<String>, keys: &[&str]) {
        if list.is_empty() {
            self.before(list, keys, None);
        }
    }
}

pub(super) fn fill(args: &mut ActionArgs, env: &BTreeMap<String, String>) -> Result<Vec<String>, ArgsError> {
    let mut vars = Variables::of(env);
    // A list of binds keeps its commas: they are taken apart together with the flags'.
    vars.before(&mut args.bind, &["BIND", "BINDPATH"], None);
    vars.before(&mut args.mount, &["MOUNT"], Some('\n'));
    vars.instead(&mut args.scratch, &["SCRATCH", "SCRATCHDIR"]);
    vars.instead(&mut args.overlay, &["OVERLAY", "OVERLAYIMAGE"]);
    vars.instead(&mut args.env_file, &["ENV_FILE"]);
    vars.text(&mut args.home, &["HOME"]);
    vars.text(&mut args.workdir, &["WORKDIR"]);
    vars.text(&mut args.app, &["APP"]);
    vars.text(&mut args.cwd, &["CWD", "PWD", "TARGET_PWD"]);
    vars.text(&mut args.hostname, &["HOSTNAME"]);
    vars.flag(&mut args.no_home, &["NO_HOME"])?;
    vars.flag(&mut args.contain, &["CONTAIN"])?;
    vars.flag(&mut args.containall, &["CONTAINALL"])?;
    vars.flag(&mut args.cleanenv, &["CLEANENV"])?;
    // A flag for one way of writing is an answer to the variables for the others.
    if !args.writable && !args.writable_tmpfs && args.overlay.is_empty() {
        vars.flag(&mut args.writable, &["WRITABLE"])?;
    }
    if !args.writable {
        vars.flag(&mut args.writable_tmpfs, &["WRITABLE_TMPFS"])?;
    }
    vars.flag(&mut args.nv, &["NV"])?;
    vars.flag(&mut args.rocm, &["ROCM"])?;
    vars.flag(&mut args.unsquash, &["UNSQUASH"])?;
    vars.flag(&mut args.fakeroot, &["FAKEROOT"])?;
    vars.flag(&mut args.net, &["NET", "UNSHARE_NET"])?;
    vars.flag(&mut args.pid, &["PID", "UNSHARE_PID"])?;
    vars.flag(&mut args.ipc, &["IPC", "UNSHARE_IPC"])?;
    vars.flag(&mut args.uts, &["UTS", "UNSHARE_UTS"])?;
    vars.flag(&mut args.userns, &["USERNS", "UNSHARE_USERNS"])?;
    Ok(vars.notes)
}
