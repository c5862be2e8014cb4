//! From what the user asks for, the image and the facts about the host to the container: no mount, no fork, no
//! file written. The same question always has the same answer, so that a restart can ask again.

use std::path::{Path, PathBuf};

use stasis_plugin_api::plan::{IdMap, StdioKind};

use super::binds::{self, BindError, UserBind};
use super::env::{self, EnvError, Naming};
use super::identity::HostFacts;
use super::{ContainerSpec, IdSpec, NamespaceSpec, ProcessSpec, RootMode, RootSpec, RootWrite, SPEC_FORMAT};
use crate::cli::action_args::ActionArgs;
use crate::image::{Image, apps};

mod describe;
mod mounts;

pub use describe::describe;
#[cfg(test)]
pub(crate) use mounts::target as mount_target;

/// What is done with the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run a command.
    Exec { argv: Vec<String> },
    /// Run the image's runscript.
    Run { args: Vec<String> },
    /// Run a shell.
    Shell,
    /// An instance of the image's startscript.
    Start { args: Vec<String> },
    /// An instance of the image's runscript.
    InstanceRun { args: Vec<String> },
}

impl Action {
    /// As a spec records it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Run { .. } => "run",
            Self::Shell => "shell",
            Self::Start { .. } => "start",
            Self::InstanceRun { .. } => "instance-run",
        }
    }

    /// Whether it becomes an instance.
    #[must_use]
    pub fn is_instance(&self) -> bool {
        matches!(self, Self::Start { .. } | Self::InstanceRun { .. })
    }
}

/// Why there is no container to be made of this.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A bind.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A variable.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// `exec` of nothing.
    #[error("no command was given to run in image \"{image}\"")]
    NoCommand { image: String },
    /// `run` of an image without.
    #[error("image \"{image}\" has no {script} that can be executed")]
    NoScript { image: String, script: String },
    /// `--app`.
    #[error("image \"{image}\" has no application {app:?}")]
    NoApp { image: String, app: String, have: Vec<String> },
    /// `shell` in an image without.
    #[error("image \"{image}\" has no shell: neither /bin/bash nor /bin/sh can be executed")]
    NoShell { image: String },
    /// Two ways to write.
    #[error("{first} and {second} exclude each other")]
    Conflict { first: &'static str, second: &'static str },
    /// `--writable` of a file.
    #[error("--writable cannot be used: image \"{image}\" is a file, which is never written to")]
    WritableFile { image: String },
    /// More than one, or of another kind.
    #[error("--overlay {typed:?} cannot be used: {problem}")]
    Overlay { typed: String, problem: &'static str },
    /// The name.
    #[error("--hostname {typed:?} is not a host name")]
    Hostname { typed: String },
    /// Relative.
    #[error("--cwd {typed:?} does not begin with a slash")]
    Cwd { typed: String },
    /// `--home`.
    #[error("--home {typed:?} cannot be understood: it has more than one colon, or an empty side")]
    Home { typed: String },
}

impl SpecError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Bind(error) => return error.help(),
            Self::Env(error) => return error.help(),
            Self::NoCommand { .. } => "put it behind the image: exec IMAGE COMMAND".to_owned(),
            Self::NoScript { script, .. } => {
                format!("run a command of the image with exec, or put an executable file at {script}")
            }
            Self::NoApp { have, .. } if have.is_empty() => "it has none at all; leave --app out".to_owned(),
            Self::NoApp { have, .. } => format!("it has {}", have.join(", ")),
            Self::NoShell { .. } => "run a program of the image with exec".to_owned(),
            Self::Conflict { .. } => "choose one of them".to_owned(),
            Self::WritableFile { image } => format!(
                "write into a directory with --overlay DIR, or unpack it: stasis build --sandbox DIR {image}"
            ),
            Self::Overlay { .. } => "give one directory that you can write to".to_owned(),
            Self::Hostname { .. } => {
                "1 to 63 letters, digits, dots and hyphens, beginning with a letter or a digit".to_owned()
            }
            Self::Cwd { .. } => "give a directory inside the container, from its root on".to_owned(),
            Self::Home { .. } => "write --home SRC or --home SRC:DST".to_owned(),
        })
    }
}

/// What was understood of the flags, before it becomes mounts.
struct Wishes<'a> {
    args: &'a ActionArgs,
    image: &'a Image,
    facts: &'a HostFacts,
    engine: bool,
    namespaces: NamespaceSpec,
    hostname: Option<String>,
    contain: bool,
    /// The user is root inside, and not outside.
    root_inside: bool,
    home: Home,
    binds: Vec<UserBind>,
    scratch: Vec<PathBuf>,
    workdir: Option<PathBuf>,
}

struct Home {
    source: PathBuf,
    target: PathBuf,
    /// Typed by the user, so that its absence is an error.
    given: bool,
}

/// Makes the container's spec. `args` are complete: variables were filled in by [`ActionArgs::fill_from`].
/// `engine` says that it is to be saved or brought back; what the engine asks for comes in by `apply`.
///
/// # Errors
/// The first thing that contradicts itself, the image or the host.
pub fn resolve(
    action: &Action,
    args: &ActionArgs,
    image: &Image,
    facts: &HostFacts,
    name: &str,
    engine: bool,
) -> Result<ContainerSpec, SpecError> {
    if args.writable && image.file.is_some() {
        return Err(SpecError::WritableFile { image: image.given.clone() });
    }
    let argv = argv(action, image, args.app.as_deref(), engine)?;
    let wishes = Wishes::new(action, args, image, facts, engine)?;
    let source_env = (image.has_env_scripts || args.app.is_some()) && image.has_sh && !argv.is_empty();
    let naming = Naming {
        image,
        name,
        command: match action {
            Action::InstanceRun { .. } => "run",
            other => other.word(),
        },
        instance: action.is_instance(),
        home: &wishes.home.target,
        binds: wishes.binds.iter().map(UserBind::to_word).collect(),
        source_env,
        app: args.app.as_deref(),
    };
    let environment = env::environment(args, facts, &naming)?;
    Ok(ContainerSpec {
        format: SPEC_FORMAT,
        name: name.to_owned(),
        action: action.word().to_owned(),
        image: image.given.clone(),
        root: RootSpec {
            directory: image.directory().to_path_buf(),
            file: image.file.as_ref().map(|file| file.spec.clone()),
            mode: RootMode::Auto,
            write: root_write(args, facts)?,
        },
        namespaces: wishes.namespaces,
        ids: ids(&wishes),
        hostname: wishes.hostname.clone(),
        mounts: wishes.mounts(),
        process: ProcessSpec {
            argv,
            source_env,
            env: environment.all,
            env_after: environment.after,
            cwd: wishes.cwd()?,
            umask: facts.umask,
            ends_with_parent: false,
            seccomp: Vec::new(),
        },
        stdio: stdio(action, facts, engine),
        init: engine || action.is_instance() || wishes.namespaces.pid,
        engine: None,
    })
}

/// Directories of the host that the container needs and that the caller makes, with everything above them, before
/// it is started: 0700, below `--workdir` and `--overlay`.
#[must_use]
pub fn directories_to_make(spec: &ContainerSpec, args: &ActionArgs, facts: &HostFacts) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Some(workdir) = args.workdir.as_ref().map(|dir| facts.cwd.join(dir)) {
        for mount in &spec.mounts {
            if let super::Mount::Bind { source, user: false, .. } = mount
                && source.starts_with(&workdir)
                && *source != facts.cwd
                && *source != facts.home
            {
                all.push(source.clone());
            }
        }
    }
    if let RootWrite::Overlay(dir) = &spec.root.write {
        all.extend([dir.join("upper"), dir.join("work")]);
    }
    all
}

fn argv(action: &Action, image: &Image, app: Option<&str>, engine: bool) -> Result<Vec<String>, SpecError> {
    let given = || image.given.clone();
    let of_app = app.map(|app| in_app(image, app)).transpose()?;
    let there = |script: &str, known: bool| match &of_app {
        Some(place) => image.lookup(format!("{place}/{script}")).is_some_and(|file| file.is_executable()),
        None => known,
    };
    let script = |known: bool, name: &str, args: &[String]| {
        let script = format!("{}/{name}", of_app.as_deref().unwrap_or("/.singularity.d"));
        if there(name, known) {
            Ok(std::iter::once(script).chain(args.iter().cloned()).collect())
        } else {
            Err(SpecError::NoScript { image: given(), script })
        }
    };
    match action {
        Action::Exec { argv } => match argv.first() {
            Some(program) if !program.is_empty() => Ok(argv.clone()),
            _ => Err(SpecError::NoCommand { image: given() }),
        },
        Action::Run { args } | Action::InstanceRun { args } if image.oci.is_some() && app.is_none() => {
            without_shell(image, args)
        }
        Action::Run { args } | Action::InstanceRun { args } => script(image.has_runscript, "runscript", args),
        // An instance is also of use with nothing in it: commands are run in it later. There is nothing to
        // save in such a one.
        Action::Start { .. } if !there("startscript", image.has_startscript) && !engine => Ok(Vec::new()),
        Action::Start { args } => script(image.has_startscript, "startscript", args),
        Action::Shell if image.has_bash => Ok(vec!["/bin/bash".to_owned(), "--norc".to_owned()]),
        Action::Shell if image.has_sh => Ok(vec!["/bin/sh".to_owned()]),
        Action::Shell => Err(SpecError::NoShell { image: given() }),
    }
}

/// Where an application of the image's has its scripts.
fn in_app(image: &Image, app: &str) -> Result<String, SpecError> {
    let have = apps::names(image);
    match have.iter().any(|name| name == app) {
        true => Ok(apps::place(app)),
        false => Err(SpecError::NoApp { image: image.given.clone(), app: app.to_owned(), have }),
    }
}

/// What the runscript of an image from a registry would do, had the image a shell to run it.
fn without_shell(image: &Image, args: &[String]) -> Result<Vec<String>, SpecError> {
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let config = image.oci.as_ref();
    let mut argv = list(config.and_then(|config| config.entrypoint.as_ref()));
    argv.extend(if args.is_empty() {
        list(config.and_then(|config| config.cmd.as_ref()))
    } else {
        args.to_vec()
    });
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(argv),
        _ => Err(SpecError::NoCommand { image: image.given.clone() }),
    }
}

fn root_write(args: &ActionArgs, facts: &HostFacts) -> Result<RootWrite, SpecError> {
    let overlay: Vec<&str> =
        args.overlay.iter().flat_map(|o| o.split(',')).filter(|o| !o.is_empty()).collect();
    match (args.writable, args.writable_tmpfs, overlay.as_slice()) {
        (true, true, _) => Err(SpecError::Conflict { first: "--writable", second: "--writable-tmpfs" }),
        (true, _, [_, ..]) => Err(SpecError::Conflict { first: "--writable", second: "--overlay" }),
        (_, true, [_, ..]) => Err(SpecError::Conflict { first: "--writable-tmpfs", second: "--overlay" }),
        (true, false, []) => Ok(RootWrite::Image),
        (false, true, []) => Ok(RootWrite::Tmpfs),
        (false, false, []) => Ok(RootWrite::ReadOnly),
        (false, false, [typed]) => {
            let wrong = |problem| SpecError::Overlay { typed: (*typed).to_owned(), problem };
            if typed.ends_with(":ro") {
                return Err(wrong("an overlay that is only read is not supported"));
            }
            let dir = typed.strip_suffix(":rw").unwrap_or(typed);
            binds::source_directory("--overlay", dir, facts).map(RootWrite::Overlay).map_err(|e| match e {
                BindError::NotADirectory { .. } => {
                    wrong("it is a file, and only a directory can be written to")
                }
                other => other.into(),
            })
        }
        (false, false, [typed, ..]) => {
            Err(SpecError::Overlay { typed: (*typed).to_owned(), problem: "there can be only one" })
        }
    }
}

fn ids(wishes: &Wishes<'_>) -> IdSpec {
    let facts = wishes.facts;
    let (map, uid, gid) =
        if wishes.root_inside { (IdMap::Root, 0, 0) } else { (IdMap::Keep, facts.euid, facts.egid) };
    IdSpec { map, granted: false, host_uid: facts.euid, host_gid: facts.egid, uid, gid }
}

fn stdio(action: &Action, facts: &HostFacts, engine: bool) -> StdioKind {
    match (action.is_instance(), engine) {
        (true, _) => StdioKind::File,
        (false, false) => StdioKind::Inherit,
        (false, true) if facts.stdin_tty && facts.stdout_tty => StdioKind::Pty,
        // A shell without a terminal reads its commands from somewhere, and a file kind has no input.
        (false, true) if *action == Action::Shell && facts.stdin_tty => StdioKind::Pty,
        (false, true) => StdioKind::File,
    }
}

impl<'a> Wishes<'a> {
    fn new(
        action: &Action,
        args: &'a ActionArgs,
        image: &'a Image,
        facts: &'a HostFacts,
        engine: bool,
    ) -> Result<Self, SpecError> {
        let contain = args.contain || args.containall;
        let hostname = match &args.hostname {
            Some(name) if is_hostname(name) => Some(name.clone()),
            Some(name) => return Err(SpecError::Hostname { typed: name.clone() }),
            // Fixed, so that the application meets its name again on another host.
            None if engine || args.uts => Some(facts.hostname.clone()),
            None => None,
        };
        let mut scratch = Vec::new();
        for typed in args.scratch.iter().flat_map(|s| s.split(',')).filter(|s| !s.is_empty()) {
            // As in Apptainer, `-S scratch` is `/scratch`.
            scratch.push(binds::checked("--scratch", typed, Path::new("/").join(typed))?);
        }
        let workdir = match &args.workdir {
            // Without something to keep it is of no use, and not wrong: sites set the variable for everybody.
            Some(typed) if contain || !scratch.is_empty() => {
                Some(binds::source_directory("--workdir", typed, facts)?)
            }
            _ => None,
        };
        let root_inside = args.fakeroot && facts.euid != 0;
        Ok(Self {
            args,
            image,
            facts,
            engine,
            namespaces: NamespaceSpec {
                user: facts.euid != 0 || args.userns,
                pid: engine || action.is_instance() || args.pid || args.containall,
                ipc: engine || args.ipc || args.containall,
                uts: hostname.is_some(),
                net: args.net,
                time: false,
            },
            hostname,
            contain,
            root_inside,
            home: home(args, facts, root_inside)?,
            binds: binds::user_binds(&args.bind, &args.mount, facts)?,
            scratch,
            workdir,
        })
    }

    /// The first of these that exists inside is the working directory. One that was typed has no second.
    fn cwd(&self) -> Result<Vec<PathBuf>, SpecError> {
        if let Some(typed) = &self.args.cwd {
            let path = Path::new(typed);
            if !path.is_absolute() {
                return Err(SpecError::Cwd { typed: typed.clone() });
            }
            return Ok(vec![binds::clean(path)]);
        }
        let mut all = Vec::new();
        if !self.contain {
            all.push(self.facts.cwd.clone());
            // The home may have another place inside, and the working directory with it.
            if let Ok(below) = self.facts.cwd.strip_prefix(&self.home.source)
                && self.home.target != self.home.source
            {
                all.insert(0, self.home.target.join(below).components().collect());
            }
        }
        all.extend([self.home.target.clone(), PathBuf::from("/")]);
        all.dedup();
        Ok(all)
    }
}

fn home(args: &ActionArgs, facts: &HostFacts, root_inside: bool) -> Result<Home, SpecError> {
    let Some(typed) = &args.home else {
        let target = if root_inside { PathBuf::from("/root") } else { binds::clean(&facts.home) };
        return Ok(Home { source: facts.home.clone(), target, given: false });
    };
    let (source, target) = match typed.split(':').collect::<Vec<_>>().as_slice() {
        [path] if !path.is_empty() => (*path, None),
        [source, target] if !source.is_empty() && !target.is_empty() => (*source, Some(*target)),
        _ => return Err(SpecError::Home { typed: typed.clone() }),
    };
    // Of a contained home only the place counts: nothing of the host is shown there.
    let contain = args.contain || args.containall;
    let source_path = if contain && target.is_none() {
        facts.cwd.join(source)
    } else {
        binds::source_directory("--home", source, facts).map_err(|error| match error {
            BindError::Missing { path, .. } => {
                BindError::Missing { flag: "--home", typed: typed.clone(), path }
            }
            other => other,
        })?
    };
    let target = match target {
        Some(target) => binds::checked("--home", typed, target)?,
        None => binds::checked("--home", typed, binds::clean(&source_path))?,
    };
    Ok(Home { source: source_path, target, given: true })
}

fn is_hostname(name: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    (1..64).contains(&name.len())
        && name.bytes().all(inside)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
pub(crate) mod tests;
