//! Finds the installations of DMTCP on the host and chooses the one that fits an image. Only complete ones of a
//! supported version count; everything else is told as a problem. Nothing is copied or bound here.

use crate::conf::{self, Conf, ConfError, Entry};
use crate::elf::{self, ElfError, Needs};
use crate::ldcache::LdCache;
use crate::{closure, version};
use nix::unistd::{AccessFlags, access};
use semver::Version;
use stasis_plugin_api::host::Host;
use stasis_plugin_api::report::ProbedFile;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const LAUNCH: &str = "dmtcp_launch";
const LIBRARY: &str = "libdmtcp.so";
/// Without one of these nothing works.
const REQUIRED: [&str; 5] = [LAUNCH, "dmtcp_restart", "dmtcp_coordinator", "dmtcp_command", "mtcp_restart"];
/// What some version or other installs beside them.
const OPTIONAL: [&str; 7] = [
    "dmtcp_discover_rm",
    "dmtcp_get_libc_offset",
    "dmtcp_nocheckpoint",
    "dmtcp_rm_loclaunch",
    "dmtcp_srun_helper",
    "dmtcp_ssh",
    "dmtcp_sshd",
];
/// Where the libraries lie, relative to the prefix.
const LIB_DIRS: [&str; 3] = ["lib/dmtcp", "lib64/dmtcp", "lib/x86_64-linux-gnu/dmtcp"];

/// Where to look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Search {
    /// The list of files to use instead of the default ones.
    pub config: Option<PathBuf>,
    /// Prefixes that the administrator named.
    pub prefixes: Vec<PathBuf>,
    /// The caller's `PATH`.
    pub path: String,
    /// The caller's effective uid: root believes root only.
    pub euid: u32,
}

impl Search {
    /// As the options and the caller of a call say.
    pub(crate) fn from_host(host: &Host<'_>) -> Self {
        Self {
            config: host.option_str("config").filter(|path| !path.is_empty()).map(PathBuf::from),
            prefixes: host.option_list("prefixes").into_iter().map(PathBuf::from).collect(),
            path: host.context().search_path.clone(),
            euid: host.context().euid,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Complete ones of a supported version, the newest first.
    pub installations: Vec<Installation>,
    /// Every file of the first installation, or of the first place that was looked at.
    pub files: Vec<ProbedFile>,
    /// Why other places do not count, one line each.
    pub problems: Vec<String>,
}

/// The search itself could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoverError {
    /// The list of files cannot be used.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// Root would follow what others may write.
    #[error("root does not believe {}: {why}", path.display())]
    Untrusted { path: PathBuf, why: String },
}

impl DiscoverError {
    /// What to do about it.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::Conf(error) => error.help(),
            Self::Untrusted { .. } => {
                "give the file and the directories above it to root, writable by root only".to_owned()
            }
        }
    }
}

/// A complete installation. All paths are absolute ones of the host; several may be links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installation {
    /// The prefix, for messages.
    pub prefix_label: String,
    /// Its version, padded to three numbers.
    pub version: Version,
    /// Its version as it says it.
    pub version_text: String,
    /// `dmtcp_launch`.
    pub launch: PathBuf,
    /// `dmtcp_restart`.
    pub restart: PathBuf,
    /// `dmtcp_coordinator`.
    pub coordinator: PathBuf,
    /// `dmtcp_command`.
    pub command: PathBuf,
    /// `mtcp_restart`.
    pub mtcp_restart: PathBuf,
    /// `libdmtcp.so`.
    pub libdmtcp: PathBuf,
    /// Its other programs.
    pub optional: Vec<PathBuf>,
    /// `libdmtcp_*.so`.
    pub plugins: Vec<PathBuf>,
}

impl Installation {
    /// What cannot be done without.
    pub(crate) fn required(&self) -> [&Path; 6] {
        [&self.launch, &self.restart, &self.coordinator, &self.command, &self.mtcp_restart, &self.libdmtcp]
            .map(PathBuf::as_path)
    }

    /// The versions of symbols that its files and the libraries delivered with them ask for.
    pub(crate) fn needs(&self) -> Result<Needs, String> {
        let mut needs = Needs::default();
        let libraries = closure::closure(self)?;
        let files = self.required().into_iter().chain(libraries.iter().map(|(_, path)| path.as_path()));
        for file in files {
            match elf::of(file) {
                Ok(elf) => needs.add(&elf),
                // A wrapper script in the place of a program.
                Err(elf::OpenError::Elf(ElfError::NotElf)) if file != self.libdmtcp => {}
                Err(error) => return Err(format!("{}: {error}", file.display())),
            }
        }
        Ok(needs)
    }
}

/// Looks everywhere.
pub(crate) fn search(search: &Search) -> Result<Found, DiscoverError> {
    let conf = conf::load(search.config.as_deref())?;
    if let (Some(conf), 0) = (&conf, search.euid) {
        let untrusted = |why| DiscoverError::Untrusted { path: conf.path.clone(), why };
        trusted(&conf.path).map_err(untrusted)?;
    }
    let looker = Looker { conf: conf.as_ref(), cache: LdCache::of_host(), root: search.euid == 0 };
    let mut found = Found::default();
    let mut first = None;
    let mut seen = BTreeSet::new();
    for place in places(search, conf.as_ref()) {
        let files = looker.look(&place);
        let launch = at(&files, LAUNCH).and_then(|path| path.canonicalize().ok());
        if launch.is_some_and(|launch| !seen.insert(launch)) {
            continue;
        }
        match installation(&place, &files) {
            Ok(installation) => found.installations.push((installation, files.clone())),
            Err(problem) => found.problems.push(problem),
        }
        first.get_or_insert(files);
    }
    found.finish(first)
}

/// The newest installation that the image's libc can load. `Err` tells for each why not.
pub(crate) fn choose<'a>(found: &'a Found, image_root: &Path) -> Result<&'a Installation, Vec<String>> {
    if found.installations.is_empty() {
        return Err(found.problems.clone());
    }
    let libc = crate::inside::libc(image_root).map_err(|why| vec![why])?;
    let mut reasons = Vec::new();
    for installation in &found.installations {
        let Installation { version_text, prefix_label, .. } = installation;
        match installation.needs().map(|needs| needs.unmet_by(&libc)) {
            Ok(None) => return Ok(installation),
            Ok(Some(why)) => reasons.push(format!("DMTCP {version_text} at {prefix_label} {why}")),
            Err(why) => reasons.push(format!("DMTCP {version_text} at {prefix_label} cannot be used: {why}")),
        }
    }
    Err(reasons)
}
