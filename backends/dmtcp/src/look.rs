//! Looks for the files of DMTCP in one place after the other and reports each of them. What makes an installation of
//! them, and which one is taken, is not decided here.

use crate::conf::{Conf, Entry};
use crate::discover::Search;
use crate::elf;
use crate::ldcache::LdCache;
use nix::unistd::{AccessFlags, access};
use stasis_plugin_api::report::ProbedFile;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The program that wraps an application, and that tells the version.
pub(crate) const LAUNCH: &str = "dmtcp_launch";
/// The library that is loaded into applications.
pub(crate) const LIBRARY: &str = "libdmtcp.so";
/// Without one of these nothing works.
pub(crate) const REQUIRED: [&str; 5] =
    [LAUNCH, "dmtcp_restart", "dmtcp_coordinator", "dmtcp_command", "mtcp_restart"];
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

/// A place where an installation may be.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// For messages.
    pub label: String,
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
pub(crate) fn places(search: &Search, conf: Option<&Conf>) -> Vec<Place> {
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
    places.extend(
        search.prefixes.iter().filter(|prefix| prefix.is_absolute()).map(|prefix| Place::prefix(prefix)),
    );
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
pub(crate) struct Looker<'a> {
    /// The list of files, where there is one.
    pub conf: Option<&'a Conf>,
    /// The loader's.
    pub cache: LdCache,
    /// Only what root alone can change counts.
    pub root: bool,
}

impl Looker<'_> {
    /// A report for each file that is required, listed, or there.
    pub(crate) fn look(&self, place: &Place) -> Vec<ProbedFile> {
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

/// Where a file of that name was found.
pub(crate) fn path_of<'a>(files: &'a [ProbedFile], name: &str) -> Option<&'a Path> {
    files.iter().find(|file| file.name == name)?.found.as_deref().map(Path::new)
}

/// Whether nobody but root can change the file, where links lead included. `Err` tells who can.
pub(crate) fn trusted(path: &Path) -> Result<(), String> {
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
