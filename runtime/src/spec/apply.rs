//! A backend's plan put into a spec. A plan comes from somebody else's library, so everything in it is looked at
//! here: places, names, numbers. Nothing is opened.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use stasis_plugin_api::plan::{
    CAPTURE_DIR, DescriptorSource, EarlyCommand, Helper, IMAGE_DIR, INJECT, IdMap, LaunchPlan, Needs,
    Readiness, RestartPlan, RestoredRoot, StdioKind, WaitingCommand,
};

use super::env::is_name;
use super::{ContainerSpec, EngineSpec, RestartStep};

/// The highest signal there is.
const MAX_SIGNAL: i32 = 64;
/// The kernel's own limit for pids.
const MAX_PID: i32 = 4 << 20;
/// Errnos end here.
const MAX_ERRNO: i32 = 4095;

/// Why a plan cannot be carried out. All but the first three are mistakes of the backend's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Keep-and-zero with `--fakeroot`.
    #[error("backend \"{backend}\" needs the user's own ids inside, and --fakeroot makes the user root")]
    IdMap { backend: String },
    /// No kind of streams in common.
    #[error(
        "backend \"{backend}\" cannot save a container whose standard streams are a terminal or log files"
    )]
    Stdio { backend: String },
    /// An instance with nothing in it.
    #[error("container \"{container}\" has no command, so backend \"{backend}\" has nothing to save")]
    NoCommand { backend: String, container: String },
    /// A place outside of what is the engines'.
    #[error("backend \"{backend}\" asks for {what} at \"{}\", which is not a place below {INJECT}", path.display())]
    Outside { backend: String, what: &'static str, path: PathBuf },
    /// A place that the runtime fills.
    #[error("backend \"{backend}\" asks for {what} at \"{}\", which the runtime itself fills", path.display())]
    Occupied { backend: String, what: &'static str, path: PathBuf },
    /// A place asked for twice.
    #[error("backend \"{backend}\" asks for \"{}\" twice", path.display())]
    Twice { backend: String, path: PathBuf },
    /// A host path that is relative.
    #[error("backend \"{backend}\" wants to show \"{}\", which is not an absolute path of the host", path.display())]
    RelativeSource { backend: String, path: PathBuf },
    /// Anything else that cannot be.
    #[error("backend \"{backend}\" asks for {what}, which cannot be: {problem}")]
    Impossible { backend: String, what: String, problem: &'static str },
    /// The runtime's own mistake: said here rather than met as a container that cannot be saved.
    #[error("container \"{container}\" was not made for a backend: {problem}")]
    NotForEngine { container: String, problem: &'static str },
}

impl ApplyError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::IdMap { .. } => "leave out --fakeroot, or choose another backend".to_owned(),
            Self::Stdio { .. } => "choose another backend".to_owned(),
            Self::NoCommand { .. } => "use an image with a start script, or instance run".to_owned(),
            Self::NotForEngine { .. } => "report this: it is a mistake of the runtime".to_owned(),
            Self::Outside { backend, .. }
            | Self::Occupied { backend, .. }
            | Self::Twice { backend, .. }
            | Self::RelativeSource { backend, .. }
            | Self::Impossible { backend, .. } => {
                format!("report this to the author of {backend}, or choose another backend")
            }
        })
    }
}

/// The spec of a container that `backend` can save. `staging` is the directory of the host that is shown for
/// captures, `cover` are places inside that are hidden from the application.
///
/// # Errors
/// The plan contradicts the container or itself.
pub fn launch(
    spec: ContainerSpec,
    plan: &LaunchPlan,
    backend: &str,
    staging: &Path,
    cover: &[PathBuf],
) -> Result<ContainerSpec, ApplyError> {
    let check = Check { backend };
    if spec.process.argv.is_empty() {
        return Err(ApplyError::NoCommand { backend: backend.to_owned(), container: spec.name });
    }
    if let [program, ..] = plan.wrap.as_slice() {
        check.possible(!program.is_empty(), || "an empty wrapper".to_owned(), "a program has a name")?;
    }
    check.no_zero("a wrapper", &plan.wrap)?;
    let engine = EngineSpec {
        backend: backend.to_owned(),
        needs: plan.needs.clone(),
        wrap: plan.wrap.clone(),
        restart: None,
        staging: staging.to_owned(),
        generation: None,
        cover: cover.to_owned(),
        clocks: None,
    };
    merge(spec, engine)
}

/// The helper that is started before it is planned.
///
/// # Errors
/// It cannot be.
pub fn waiting(command: WaitingCommand, backend: &str) -> Result<Helper, ApplyError> {
    let WaitingCommand { argv, talk, env, identity } = command;
    let early = Some(EarlyCommand { argv: argv.clone(), talk });
    let helper = Helper { name: "waiting".to_owned(), argv, env, identity, early, ..Helper::default() };
    Check { backend }.helper(&helper)?;
    Ok(helper)
}

/// The spec of a container in which `backend` brings `generation`, a directory of the host, back to life.
///
/// # Errors
/// The plan contradicts the container or itself.
pub fn restart(
    spec: ContainerSpec,
    plan: &RestartPlan,
    backend: &str,
    staging: &Path,
    generation: &Path,
    cover: &[PathBuf],
) -> Result<ContainerSpec, ApplyError> {
    let check = Check { backend };
    let step = match plan {
        RestartPlan::Exec { argv, .. } => {
            check.argv("a restart", argv)?;
            RestartStep::Exec { argv: argv.clone() }
        }
        RestartPlan::Rebuild { helper, root, reserve_pids_up_to, .. } => {
            check.helper(helper)?;
            match root {
                // Pid 1 is the container's init.
                RestoredRoot::Pid(pid) => {
                    check.possible(
                        (2..MAX_PID).contains(pid),
                        || format!("root pid {pid}"),
                        "init has pid 1",
                    )?;
                }
                RestoredRoot::PidFile(path) => check.place("a pid file", path, true).map(drop)?,
            }
            check.possible(
                (0..MAX_PID).contains(reserve_pids_up_to),
                || format!("pids up to {reserve_pids_up_to}"),
                "the kernel has no such pids",
            )?;
            RestartStep::Rebuild {
                helper: helper.clone(),
                root: root.clone(),
                reserve_pids_up_to: *reserve_pids_up_to,
            }
        }
    };
    let engine = EngineSpec {
        backend: backend.to_owned(),
        needs: plan.needs().clone(),
        wrap: Vec::new(),
        restart: Some(step),
        staging: staging.to_owned(),
        generation: Some(generation.to_owned()),
        cover: cover.to_owned(),
        clocks: None,
    };
    merge(spec, engine)
}

fn merge(mut spec: ContainerSpec, engine: EngineSpec) -> Result<ContainerSpec, ApplyError> {
    let ns = &spec.namespaces;
    let unfit = |problem| Err(ApplyError::NotForEngine { container: spec.name.clone(), problem });
    if spec.engine.is_some() {
        return unfit("another one is in it already");
    }
    if !(spec.init && ns.pid && ns.ipc && ns.uts) {
        return unfit("it has no init, or no processes, ipc or host name of its own");
    }
    for path in engine.cover.iter().chain([&engine.staging]).chain(&engine.generation) {
        if !path.is_absolute() || path == Path::new("/") || Path::new(INJECT).starts_with(path) {
            return unfit("a directory to show or to cover is not below the root");
        }
    }
    let check = Check { backend: &engine.backend };
    check.needs(&engine.needs)?;
    id_map(&mut spec, &engine)?;
    spec.namespaces.net |= engine.needs.namespaces.net;
    spec.namespaces.time |= engine.needs.namespaces.time;
    spec.stdio = stdio(spec.stdio, &engine.needs.stdio)
        .ok_or_else(|| ApplyError::Stdio { backend: engine.backend.clone() })?;
    spec.engine = Some(engine);
    Ok(spec)
}

/// `Keep` is also what a backend says that has no opinion, so it does not contradict a user who wants to be
/// root. Without a user namespace every id is there and nothing is mapped.
fn id_map(spec: &mut ContainerSpec, engine: &EngineSpec) -> Result<(), ApplyError> {
    if !spec.namespaces.user || spec.ids.host_uid == 0 {
        return Ok(());
    }
    match (spec.ids.map, engine.needs.id_map) {
        (IdMap::Root, IdMap::KeepAndZero) => Err(ApplyError::IdMap { backend: engine.backend.clone() }),
        (_, IdMap::Keep) | (IdMap::Root, IdMap::Root) => Ok(()),
        (_, IdMap::KeepAndZero) => {
            spec.ids.map = IdMap::KeepAndZero;
            Ok(())
        }
        (_, IdMap::Root) => {
            spec.ids.map = IdMap::Root;
            (spec.ids.uid, spec.ids.gid) = (0, 0);
            Ok(())
        }
    }
}

/// The kind at hand when the backend takes it, else the best that the backend takes and a container can have.
fn stdio(have: StdioKind, takes: &[StdioKind]) -> Option<StdioKind> {
    if have != StdioKind::Inherit && (takes.is_empty() || takes.contains(&have)) {
        return Some(have);
    }
    if takes.is_empty() {
        return Some(StdioKind::File);
    }
    takes.iter().copied().find(|kind| *kind != StdioKind::Inherit)
}

struct Check<'a> {
    backend: &'a str,
}

impl Check<'_> {
    fn backend(&self) -> String {
        self.backend.to_owned()
    }

    fn possible(
        &self,
        fine: bool,
        what: impl FnOnce() -> String,
        problem: &'static str,
    ) -> Result<(), ApplyError> {
        if fine {
            Ok(())
        } else {
            Err(ApplyError::Impossible { backend: self.backend(), what: what(), problem })
        }
    }

    fn no_zero(&self, what: &str, list: &[String]) -> Result<(), ApplyError> {
        let fine = !list.iter().any(|item| item.contains('\0'));
        self.possible(fine, || what.to_owned(), "there is a zero byte in it")
    }

    fn argv(&self, what: &str, argv: &[String]) -> Result<(), ApplyError> {
        let fine = argv.first().is_some_and(|program| !program.is_empty());
        self.possible(fine, || format!("{what} without a command"), "there is nothing to execute")?;
        self.no_zero(what, argv)
    }

    /// A place below the injected tree. `anywhere` allows also what the runtime puts there.
    fn place(&self, what: &'static str, path: &Path, anywhere: bool) -> Result<PathBuf, ApplyError> {
        let (backend, path) = (self.backend(), path.to_owned());
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let zero = path.to_string_lossy().contains('\0');
        if !plain || zero || !path.starts_with(INJECT) || path == Path::new(INJECT) {
            return Err(ApplyError::Outside { backend, what, path });
        }
        if !anywhere && [CAPTURE_DIR, IMAGE_DIR].iter().any(|own| path.starts_with(own)) {
            return Err(ApplyError::Occupied { backend, what, path });
        }
        Ok(path.components().collect())
    }

    fn needs(&self, needs: &Needs) -> Result<(), ApplyError> {
        let mut taken = BTreeSet::new();
        let mut take = |path: PathBuf| {
            let twice = ApplyError::Twice { backend: self.backend(), path: path.clone() };
            if taken.insert(path) { Ok(()) } else { Err(twice) }
        };
        for bind in &needs.binds {
            if !bind.source.is_absolute() {
                return Err(ApplyError::RelativeSource {
                    backend: self.backend(),
                    path: bind.source.clone(),
                });
            }
            take(self.place("a bind", &bind.target, false)?)?;
        }
        for dir in &needs.directories {
            take(self.place("a directory", &dir.path, false)?)?;
            self.mode(dir.mode, &dir.path)?;
        }
        for file in &needs.files {
            take(self.place("a file", &file.path, false)?)?;
            self.mode(file.mode, &file.path)?;
            let fine = file.bytes().is_ok();
            self.possible(fine, || format!("file \"{}\"", file.path.display()), "its content is not base64")?;
        }
        self.variables(needs)?;
        for rule in &needs.seccomp {
            let what = || format!("a rule for system call {}", rule.syscall);
            self.possible((0..=MAX_ERRNO).contains(&rule.errno), what, "there is no such errno")?;
            self.possible(rule.argument.is_none_or(|(i, _)| i < 6), what, "there are six arguments")?;
            self.possible(u32::try_from(rule.syscall).is_ok(), what, "there is no such system call")?;
        }
        if let Some(pid) = needs.first_pid {
            self.possible((2..MAX_PID).contains(&pid), || format!("first pid {pid}"), "init has pid 1")?;
        }
        if let Some(path) = &needs.tmpfs_content {
            let fine = path.starts_with(IMAGE_DIR) && path.components().all(|c| c != Component::ParentDir);
            self.possible(
                fine,
                || format!("tmpfs content from {}", path.display()),
                "it is not in the generation",
            )?;
        }
        self.signals(&needs.ignore_signals)?;
        needs.helpers.iter().try_for_each(|helper| self.helper(helper))
    }

    fn variables(&self, needs: &Needs) -> Result<(), ApplyError> {
        for (name, value) in &needs.env {
            let fine = is_name(name) && !value.contains('\0');
            self.possible(fine, || format!("variable {name:?}"), "no shell can set it")?;
        }
        for pattern in &needs.env_remove {
            let fine = is_name(pattern.strip_suffix('*').unwrap_or(pattern));
            self.possible(
                fine,
                || format!("removal of {pattern:?}"),
                "it is neither a name nor a prefix and *",
            )?;
        }
        Ok(())
    }

    fn mode(&self, mode: u32, path: &Path) -> Result<(), ApplyError> {
        let what = || format!("\"{}\" with mode {mode:o}", path.display());
        self.possible(mode <= 0o1777, what, "only permission bits are set")
    }

    fn signals(&self, signals: &[i32]) -> Result<(), ApplyError> {
        for signal in signals {
            let fine = (1..=MAX_SIGNAL).contains(signal) && ![libc::SIGKILL, libc::SIGSTOP].contains(signal);
            self.possible(fine, || format!("signal {signal} ignored"), "this signal cannot be ignored")?;
        }
        Ok(())
    }

    fn helper(&self, helper: &Helper) -> Result<(), ApplyError> {
        let what = format!("helper {:?}", helper.name);
        self.argv(&what, &helper.argv)?;
        let absolute = helper.argv.first().is_some_and(|program| program.starts_with('/'));
        self.possible(absolute, || what.clone(), "its program is not an absolute path")?;
        for (name, value) in &helper.env {
            let fine = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            self.possible(fine, || format!("{what} with variable {name:?}"), "it cannot be set")?;
        }
        let mut numbers = BTreeSet::new();
        let mut descriptor_of = |what: &str, number: i32| {
            let fine = (3..1024).contains(&number) && numbers.insert(number);
            self.possible(
                fine,
                || format!("{what} with descriptor {number}"),
                "it is taken, or not 3 to 1023",
            )
        };
        for descriptor in &helper.descriptors {
            descriptor_of(&what, descriptor.number)?;
            if let DescriptorSource::UnixListener(path) = &descriptor.source {
                self.place("a socket", path, true)?;
            }
        }
        if let Some(early) = &helper.early {
            let what = format!("{what} started early");
            self.argv(&what, &early.argv)?;
            let absolute = early.argv.first().is_some_and(|program| program.starts_with('/'));
            self.possible(absolute, || what.clone(), "its program is not an absolute path")?;
            descriptor_of(&what, early.talk)?;
        }
        if let Some(secluded) = &helper.secluded {
            let what = format!("{what} secluded");
            self.argv(&what, &secluded.argv)?;
            self.place("a root", &secluded.root, true)?;
            descriptor_of(&what, secluded.back)?;
        }
        if let Readiness::PathExists(path) = &helper.readiness {
            self.possible(path.is_absolute(), || what.clone(), "the path to wait for is not absolute")?;
        }
        self.signals(&helper.ignore_signals)
    }
}

#[cfg(test)]
mod tests;
