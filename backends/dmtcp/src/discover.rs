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
    let (mut usable, mut first, mut problems) = (Vec::new(), None, Vec::new());
    let mut seen = BTreeSet::new();
    for place in places(search, conf.as_ref()) {
        let files = looker.look(&place);
        let launch = path_of(&files, LAUNCH).and_then(|path| path.canonicalize().ok());
        if launch.is_some_and(|launch| !seen.insert(launch)) {
            continue;
        }
        match installation(&place, &files) {
            Ok(installation) => usable.push((installation, files.clone())),
            Err(problem) => problems.push(problem),
        }
        first.get_or_insert(files);
    }
    usable.sort_by(|(a, _), (b, _)| b.version.cmp(&a.version));
    let files = usable.first().map(|(_, files)| files.clone()).or(first).unwrap_or_default();
    let installations = usable.into_iter().map(|(installation, _)| installation).collect();
    Ok(Found { installations, files, problems })
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

/// A place where an installation may be.
#[derive(Debug, Default)]
struct Place {
    /// For messages.
    label: String,
    /// Where programs are sought.
    bins: Vec<PathBuf>,
    /// Where programs that the list of files names are sought as well.
    also: Vec<PathBuf>,
    /// Where libraries are sought.
    libs: Vec<PathBuf>,
    /// The absolute paths of the list of files count here.
    listed: bool,
    /// Libraries may be where the loader finds them.
    cache: bool,
}

impl Place {
    fn prefix(prefix: &Path) -> Self {
        Self {
            label: prefix.display().to_string(),
            bins: vec![prefix.join("bin")],
            libs: LIB_DIRS.iter().map(|dir| prefix.join(dir)).collect(),
            ..Self::default()
        }
    }

    /// Around a directory that holds dmtcp_launch, possibly a link to the real one.
    fn around(launch: &Path) -> Self {
        let real = launch.canonicalize().unwrap_or_else(|_| launch.to_owned());
        let mut place = Self { cache: true, ..Self::default() };
        for bin in [launch.parent(), real.parent()].into_iter().flatten() {
            if !place.bins.iter().any(|known| known == bin) {
                let prefix = bin.parent().unwrap_or(bin);
                place.bins.push(bin.to_owned());
                place.libs.extend(LIB_DIRS.iter().map(|dir| prefix.join(dir)));
            }
        }
        let bin = place.bins.first().map(PathBuf::as_path).unwrap_or(launch);
        let prefix = bin.parent().filter(|_| bin.ends_with("bin")).unwrap_or(bin);
        place.label = prefix.display().to_string();
        place
    }
}

/// The places in the order in which they count: the list of files, the prefixes, `PATH`.
fn places(search: &Search, conf: Option<&Conf>) -> Vec<Place> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    // A relative directory in PATH would mean whatever directory the caller is in.
    for dir in std::env::split_paths(&search.path).filter(|dir| dir.is_absolute()) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    let also = if conf.is_some() { dirs.clone() } else { Vec::new() };
    let mut places = Vec::new();
    if let Some(conf) = conf.filter(|conf| conf.has_places()) {
        let told = conf.entry(LAUNCH).and_then(|entry| entry.path.clone());
        let launch = told.or_else(|| dirs.iter().map(|dir| dir.join(LAUNCH)).find(|path| path.is_file()));
        let place = launch.map_or_else(Place::default, |launch| Place::around(&launch));
        let label = conf.path.display().to_string();
        let label = if place.label.is_empty() { label } else { place.label };
        places.push(Place { label, listed: true, cache: true, also: dirs.clone(), ..place });
    }
    places.extend(search.prefixes.iter().filter(|prefix| prefix.is_absolute()).map(|prefix| Place::prefix(prefix)));
    let on_path = dirs.iter().map(|dir| dir.join(LAUNCH)).filter(|path| path.is_file());
    places.extend(on_path.map(|launch| Place { also: also.clone(), ..Place::around(&launch) }));
    if places.is_empty() {
        let libs = dirs.iter().filter(|dir| dir.ends_with("bin")).filter_map(|dir| dir.parent());
        let libs = libs.map(|prefix| prefix.join(LIB_DIRS[0])).collect();
        places.push(Place { label: "PATH".to_owned(), bins: dirs, libs, cache: true, ..Place::default() });
    }
    places
}

/// Looks for files.
struct Looker<'a> {
    conf: Option<&'a Conf>,
    cache: LdCache,
    /// Only what root alone can change counts.
    root: bool,
}

impl Looker<'_> {
    /// A report for each file that is required, listed, or there.
    fn look(&self, place: &Place) -> Vec<ProbedFile> {
        let mut files: Vec<ProbedFile> =
            REQUIRED.iter().map(|name| self.file(place, name, true, false)).collect();
        files.push(self.file(place, LIBRARY, true, true));
        let listed = |library| {
            let entries = self.conf.map(|conf| if library { &conf.libs } else { &conf.bins });
            entries.into_iter().flatten().map(move |entry| (entry.name.clone(), library))
        };
        for (name, library) in listed(false).chain(listed(true)) {
            if !files.iter().any(|file| file.name == name) {
                files.push(self.file(place, &name, false, library));
            }
        }
        let plugins = path_of(&files, LIBRARY).and_then(Path::parent).map(plugins_in).unwrap_or_default();
        let programs = OPTIONAL.iter().map(|name| ((*name).to_owned(), false));
        for (name, library) in programs.chain(plugins.into_iter().map(|name| (name, true))) {
            if !files.iter().any(|file| file.name == name) {
                let file = self.file(place, &name, false, library);
                files.extend(Some(file).filter(|file| file.found.is_some()));
            }
        }
        files
    }

    fn file(&self, place: &Place, name: &str, required: bool, library: bool) -> ProbedFile {
        let entry = self.conf.and_then(|conf| conf.entry(name));
        let mut sought = Vec::new();
        let mut unfit = None;
        for (path, told) in self.candidates(place, name, entry, library) {
            match self.check(&path, library) {
                Ok(true) => {
                    let found = Some(path.display().to_string());
                    return ProbedFile { name: name.to_owned(), required, found, note: None };
                }
                Ok(false) => {}
                Err(why) => {
                    unfit.get_or_insert(format!("{}: {why}", path.display()));
                }
            }
            sought.push(told);
        }
        sought.dedup();
        let cache = if library && place.cache { Some("the loader's cache".to_owned()) } else { None };
        sought.extend(cache);
        let nowhere = || match sought.is_empty() {
            true => "PATH names no directory".to_owned(),
            false => format!("sought in {}", sought.join(", ")),
        };
        ProbedFile { name: name.to_owned(), required, found: None, note: Some(unfit.unwrap_or_else(nowhere)) }
    }

    /// The paths at which a file may be, each with the place that is told when it is not.
    fn candidates(
        &self,
        place: &Place,
        name: &str,
        entry: Option<&Entry>,
        library: bool,
    ) -> Vec<(PathBuf, String)> {
        if let Some(path) = entry.and_then(|entry| entry.path.as_ref()).filter(|_| place.listed) {
            return vec![(path.clone(), path.display().to_string())];
        }
        let below = |dir: &PathBuf| (dir.join(name), dir.display().to_string());
        if !library {
            let also = place.also.iter().filter(|_| entry.is_some() || place.listed);
            let also = also.filter(|dir| !place.bins.contains(dir));
            return place.bins.iter().chain(also).map(below).collect();
        }
        let mut paths: Vec<_> = place.libs.iter().map(below).collect();
        if place.cache {
            let cached = self.cache.find(name).iter();
            paths.extend(cached.map(|path| (path.clone(), path.display().to_string())));
        }
        paths
    }

    /// Whether the file is there; `Err` when it is and cannot be used.
    fn check(&self, path: &Path, library: bool) -> Result<bool, String> {
        match path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err("you may not look there".to_owned());
            }
            Err(_) => return Ok(false),
            Ok(meta) if !meta.is_file() => return Err("not a regular file".to_owned()),
            Ok(_) => {}
        }
        if self.root {
            trusted(path).map_err(|why| format!("root does not run it: {why}"))?;
        }
        if library {
            let elf = elf::of(path).map_err(|error| error.to_string())?;
            return if elf.is_native() { Ok(true) } else { Err("made for another processor".to_owned()) };
        }
        let allowed = access(path, AccessFlags::X_OK | AccessFlags::R_OK);
        allowed.map(|()| true).map_err(|_| "you may not read and run it".to_owned())
    }
}

/// The libraries of DMTCP beside its main one.
fn plugins_in(dir: &Path) -> Vec<String> {
    let names = dir.read_dir().into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with("libdmtcp_") && name.ends_with(".so")).collect();
    names.sort();
    names
}

fn path_of<'a>(files: &'a [ProbedFile], name: &str) -> Option<&'a Path> {
    files.iter().find(|file| file.name == name)?.found.as_deref().map(Path::new)
}

/// What was found in a place, as an installation.
fn installation(place: &Place, files: &[ProbedFile]) -> Result<Installation, String> {
    let of = |name| path_of(files, name).map(Path::to_owned).ok_or_else(|| incomplete(files));
    let (launch, libdmtcp) = (of(LAUNCH)?, of(LIBRARY)?);
    let (restart, coordinator) = (of(REQUIRED[1])?, of(REQUIRED[2])?);
    let (command, mtcp_restart) = (of(REQUIRED[3])?, of(REQUIRED[4])?);
    let label = &place.label;
    let asked = version::ask(&launch).map_err(|error| format!("{} {error}", launch.display()));
    let (version, version_text) = asked?;
    if !version::is_supported(&version) {
        return Err(format!("DMTCP {version_text} at {label} is not supported ({})", version::ACCEPTS));
    }
    let extras = |library: bool| {
        let found = files.iter().filter(move |file| !file.required && file.name.contains(".so") == library);
        found.filter_map(|file| file.found.as_ref().map(PathBuf::from)).collect::<Vec<_>>()
    };
    let (optional, plugins) = (extras(false), extras(true));
    let prefix_label = label.clone();
    Ok(Installation {
        prefix_label,
        version,
        version_text,
        launch,
        restart,
        coordinator,
        command,
        mtcp_restart,
        libdmtcp,
        optional,
        plugins,
    })
}

/// Names what is missing, together with the place where it is missing.
fn incomplete(files: &[ProbedFile]) -> String {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for file in files.iter().filter(|file| file.required && file.found.is_none()) {
        let note = file.note.as_deref().unwrap_or_default();
        match groups.iter_mut().find(|(known, _)| *known == note) {
            Some((_, names)) => names.push(&file.name),
            None => groups.push((note, vec![&file.name])),
        }
    }
    let told: Vec<String> =
        groups.iter().map(|(note, names)| format!("{} ({note})", names.join(", "))).collect();
    format!("DMTCP not installed or incomplete: {}", told.join("; "))
}

/// Whether nobody but root can change the file, where links lead included. `Err` tells who can.
fn trusted(path: &Path) -> Result<(), String> {
    let real = path.canonicalize().map_err(|error| error.to_string())?;
    for step in path.ancestors().chain(real.ancestors()).filter(|step| !step.as_os_str().is_empty()) {
        let meta = step.symlink_metadata().map_err(|error| format!("{}: {error}", step.display()))?;
        if meta.uid() != 0 {
            return Err(format!("{} belongs to uid {}", step.display(), meta.uid()));
        }
        if !meta.is_symlink() && meta.mode() & 0o022 != 0 {
            return Err(format!("others than root may write to {}", step.display()));
        }
    }
    Ok(())
}
