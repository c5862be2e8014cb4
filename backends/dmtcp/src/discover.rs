//! Finds the installations of DMTCP on the host and chooses the one that fits an image. Only complete ones of a
//! supported version count; everything else is told as a problem. Nothing is copied or bound here.

use crate::conf::{self, ConfError};
use crate::ldcache::LdCache;
use crate::look::{LAUNCH, LIBRARY, Looker, Place, REQUIRED, path_of, places, trusted};
use crate::{closure, fit, version};
use semver::Version;
use stasis_plugin_api::host::Host;
use stasis_plugin_api::report::ProbedFile;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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

/// Why no installation fits an image, one reason for each, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfit {
    pub why: Vec<String>,
    pub help: &'static str,
}

/// The newest installation that the image's glibc can load.
pub(crate) fn choose<'a>(found: &'a Found, image_root: &Path) -> Result<&'a Installation, Unfit> {
    if found.installations.is_empty() {
        let help = "let the administrator install DMTCP, and name it in `prefixes` where it is not on PATH";
        return Err(Unfit { why: found.problems.clone(), help });
    }
    let libc = crate::inside::libc(image_root)
        .map_err(|why| Unfit { why: vec![why], help: "take an image with glibc, or another backend" })?;
    let mut unfit = Unfit { why: Vec::new(), help: "" };
    for installation in &found.installations {
        let Installation { version_text, prefix_label, .. } = installation;
        let needs = closure::lacking(installation, image_root);
        let (why, help) = match needs.map(|(_, needs)| fit::unmet(image_root, &libc, &needs)) {
            Ok(None) => return Ok(installation),
            Ok(Some(unmet)) => unmet,
            Err(why) => (format!("cannot be used: {why}"), "let the administrator install what it needs"),
        };
        unfit.why.push(format!("DMTCP {version_text} at {prefix_label} {why}"));
        // The oldest asks for the least.
        unfit.help = help;
    }
    Err(unfit)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preload::SHIM;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn put(file: &Path, content: &[u8]) {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A prefix with everything, whose dmtcp_launch says that version.
    fn install(prefix: &Path, version: &str) {
        let script = format!("#!/bin/sh\necho 'dmtcp_launch (DMTCP) {version}'\n");
        for name in REQUIRED {
            put(&prefix.join("bin").join(name), script.as_bytes());
        }
        put(&prefix.join("lib/dmtcp/libdmtcp.so"), SHIM);
    }

    /// What is found in these prefixes, and on this PATH, below a directory.
    struct Tried {
        dir: tempfile::TempDir,
    }

    impl Tried {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn search(&self, prefixes: &[&str], path: &[&str], conf: &str) -> Found {
            // Always with a list of files of its own: the host may have one.
            fs::write(self.at("conf.yaml"), conf.replace("DIR", self.dir.path().to_str().unwrap())).unwrap();
            let path = std::env::join_paths(path.iter().map(|dir| self.at(dir))).unwrap();
            let search = Search {
                config: Some(self.at("conf.yaml")),
                prefixes: prefixes.iter().map(|prefix| self.at(prefix)).collect(),
                path: path.into_string().unwrap(),
                euid: 1000,
            };
            super::search(&search).unwrap()
        }

        fn told(&self, texts: &[String]) -> String {
            texts.join("\n").replace(self.dir.path().to_str().unwrap(), "DIR")
        }
    }

    fn versions(found: &Found) -> Vec<&str> {
        found.installations.iter().map(|one| one.version_text.as_str()).collect()
    }

    #[test]
    fn several_installations_come_newest_first() {
        let tried = Tried::new();
        for (prefix, version) in
            [("a", "4.2.0"), ("b", "5.0"), ("c", "3.0.0"), ("old", "2.6.0"), ("new", "6.0")]
        {
            install(&tried.at(prefix), version);
        }
        put(&tried.at("b/bin/dmtcp_ssh"), b"#!/bin/sh\n");
        put(&tried.at("b/lib/dmtcp/libdmtcp_modify-env.so"), SHIM);
        // The same one again, by another way.
        symlink(tried.at("b"), tried.at("link")).unwrap();
        let found = tried.search(&["a", "b", "old", "new"], &["c/bin", "link/bin"], "");
        assert_eq!(versions(&found), ["5.0", "4.2.0", "3.0.0"]);
        let newest = &found.installations[0];
        assert_eq!(newest.prefix_label, tried.at("b").display().to_string());
        assert_eq!(newest.optional, [tried.at("b/bin/dmtcp_ssh")]);
        assert_eq!(newest.plugins, [tried.at("b/lib/dmtcp/libdmtcp_modify-env.so")]);
        assert_eq!(newest.mtcp_restart, tried.at("b/bin/mtcp_restart"));
        insta::assert_snapshot!(tried.told(&found.problems), @"
DMTCP 2.6.0 at DIR/old is not supported (>=3.0, <6)
DMTCP 6.0 at DIR/new is not supported (>=3.0, <6)
");
        let names: Vec<_> = found.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names[5..], ["libdmtcp.so", "dmtcp_ssh", "libdmtcp_modify-env.so"]);
        assert!(found.files.iter().all(|file| file.found.as_ref().unwrap().contains("/b/")));
    }

    #[test]
    fn half_an_installation_names_what_is_missing() {
        let tried = Tried::new();
        install(&tried.at("p"), "5.0");
        fs::remove_file(tried.at("p/bin/dmtcp_coordinator")).unwrap();
        fs::remove_file(tried.at("p/bin/mtcp_restart")).unwrap();
        fs::set_permissions(tried.at("p/bin/dmtcp_command"), fs::Permissions::from_mode(0o000)).unwrap();
        put(&tried.at("p/lib/dmtcp/libdmtcp.so"), b"#!/bin/sh\n");
        let found = tried.search(&["p", "nothing"], &[], "");
        assert!(found.installations.is_empty());
        insta::assert_snapshot!(tried.told(&found.problems), @"
DMTCP not installed or incomplete: dmtcp_coordinator, mtcp_restart (sought in DIR/p/bin); dmtcp_command (DIR/p/bin/dmtcp_command: you may not read and run it); libdmtcp.so (DIR/p/lib/dmtcp/libdmtcp.so: not an ELF file)
DMTCP not installed or incomplete: dmtcp_launch, dmtcp_restart, dmtcp_coordinator, dmtcp_command, mtcp_restart (sought in DIR/nothing/bin); libdmtcp.so (sought in DIR/nothing/lib/dmtcp, DIR/nothing/lib64/dmtcp, DIR/nothing/lib/x86_64-linux-gnu/dmtcp)
");
        assert_eq!(choose(&found, Path::new("/")).unwrap_err().why, found.problems);
        assert_eq!(found.files[0].found, Some(tried.at("p/bin/dmtcp_launch").display().to_string()));
    }

    #[test]
    fn nothing_anywhere() {
        let tried = Tried::new();
        let found = tried.search(&[], &["x/bin", "y"], "");
        insta::assert_snapshot!(tried.told(&found.problems), @"DMTCP not installed or incomplete: dmtcp_launch, dmtcp_restart, dmtcp_coordinator, dmtcp_command, mtcp_restart (sought in DIR/x/bin, DIR/y); libdmtcp.so (sought in DIR/x/lib/dmtcp, the loader's cache)");
        assert!(found.files.iter().all(|file| file.required && file.found.is_none()));
        let found = tried.search(&[], &[], "");
        insta::assert_snapshot!(tried.told(&found.problems), @"DMTCP not installed or incomplete: dmtcp_launch, dmtcp_restart, dmtcp_coordinator, dmtcp_command, mtcp_restart (PATH names no directory); libdmtcp.so (sought in the loader's cache)");
    }

    #[test]
    fn versions_that_cannot_be_told() {
        let tried = Tried::new();
        install(&tried.at("p"), "nonsense");
        let found = tried.search(&["p"], &[], "");
        insta::assert_snapshot!(tried.told(&found.problems), @r#"DIR/p/bin/dmtcp_launch printed no version: "dmtcp_launch (DMTCP) nonsense""#);
    }

    #[test]
    fn absolute_paths_of_the_list_are_taken_as_they_are() {
        let tried = Tried::new();
        install(&tried.at("p"), "5.0");
        fs::create_dir_all(tried.at("libs")).unwrap();
        fs::rename(tried.at("p/lib/dmtcp/libdmtcp.so"), tried.at("libs/libdmtcp.so")).unwrap();
        fs::create_dir_all(tried.at("other")).unwrap();
        fs::rename(tried.at("p/bin/dmtcp_command"), tried.at("other/dmtcp_command")).unwrap();
        let conf = "bins: [DIR/p/bin/dmtcp_launch, dmtcp_command, dmtcp_discover_rm, DIR/p/bin/dmtcp_ssh]\n\
                    libs: [DIR/libs/libdmtcp.so, libdmtcp_alloc.so]\n";
        let found = tried.search(&[], &["other"], conf);
        assert_eq!(versions(&found), ["5.0"]);
        let one = &found.installations[0];
        assert_eq!(one.libdmtcp, tried.at("libs/libdmtcp.so"));
        assert_eq!(one.command, tried.at("other/dmtcp_command"));
        assert_eq!(one.restart, tried.at("p/bin/dmtcp_restart"));
        let missing = found.files.iter().filter(|file| file.found.is_none());
        let missing: Vec<_> = missing
            .map(|file| format!("{} {}: {}", file.name, file.required, file.note.as_ref().unwrap()))
            .collect();
        insta::assert_snapshot!(tried.told(&missing), @"
dmtcp_discover_rm false: sought in DIR/p/bin, DIR/other
dmtcp_ssh false: sought in DIR/p/bin/dmtcp_ssh
libdmtcp_alloc.so false: sought in DIR/p/lib/dmtcp, DIR/p/lib64/dmtcp, DIR/p/lib/x86_64-linux-gnu/dmtcp, the loader's cache
");
        // One that is required and not there.
        let conf = conf.replace("DIR/libs/libdmtcp.so", "DIR/none/libdmtcp.so");
        let found = tried.search(&[], &["other"], &conf);
        insta::assert_snapshot!(tried.told(&found.problems), @"DMTCP not installed or incomplete: libdmtcp.so (sought in DIR/none/libdmtcp.so, the loader's cache)");
    }

    #[test]
    fn names_of_the_list_are_sought_on_path() {
        let tried = Tried::new();
        install(&tried.at("p"), "4.2.0");
        let found = tried.search(
            &[],
            &["p/bin"],
            "bins: [dmtcp_launch, dmtcp_sshd]\nlibs: [libdmtcp.so, libdmtcp_pid.so]\n",
        );
        assert_eq!(versions(&found), ["4.2.0"]);
        let missing: Vec<_> =
            found.files.iter().filter(|file| file.found.is_none()).map(|file| file.name.as_str()).collect();
        assert_eq!(missing, ["dmtcp_sshd", "libdmtcp_pid.so"]);
    }

    #[test]
    fn a_link_on_path_leads_to_the_prefix() {
        let tried = Tried::new();
        install(&tried.at("opt/dmtcp"), "5.0");
        fs::create_dir_all(tried.at("usr/bin")).unwrap();
        symlink(tried.at("opt/dmtcp/bin/dmtcp_launch"), tried.at("usr/bin/dmtcp_launch")).unwrap();
        let found = tried.search(&[], &["usr/bin"], "");
        assert_eq!(found.installations[0].libdmtcp, tried.at("opt/dmtcp/lib/dmtcp/libdmtcp.so"));
    }

    #[test]
    fn root_believes_only_root() {
        let tried = Tried::new();
        install(&tried.at("p"), "5.0");
        put(&tried.at("conf.yaml"), b"");
        // The temporary directory is writable by all, whoever runs this test.
        let mut search = Search { config: Some(tried.at("conf.yaml")), euid: 0, ..Search::default() };
        assert!(matches!(super::search(&search), Err(DiscoverError::Untrusted { .. })));
        search.config = None;
        search.prefixes = vec![tried.at("p")];
        let found = super::search(&search).unwrap();
        assert!(found.installations.is_empty());
        assert!(found.problems[0].contains("root does not run it"), "{:?}", found.problems);
        assert!(trusted(Path::new("/etc/passwd")).is_ok());
    }

    #[test]
    fn the_newest_that_the_image_can_load_is_chosen() {
        let tried = Tried::new();
        install(&tried.at("new"), "5.0");
        install(&tried.at("old"), "4.2.0");
        // A library that needs a newer glibc than the image has: this test's own program stands for it.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        put(&tried.at("new/lib/dmtcp/libdmtcp.so"), &own);
        let found = tried.search(&["new", "old"], &[], "");
        assert_eq!(choose(&found, Path::new("/")).unwrap().version_text, "5.0");
        // libm defines fewer versions than libc, and stands for an old one.
        let libm = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6"];
        let libm = fs::read(libm.iter().find(|path| Path::new(path).exists()).unwrap()).unwrap();
        put(&tried.at("image/usr/lib/libc.so.6"), &libm);
        assert_eq!(choose(&found, &tried.at("image")).unwrap().version_text, "4.2.0");
        let only_new = tried.search(&["new"], &[], "");
        let reasons = choose(&only_new, &tried.at("image")).unwrap_err().why;
        assert!(reasons[0].contains("DMTCP 5.0 at") && reasons[0].contains("glibc"), "{reasons:?}");
        assert!(choose(&found, &tried.at("nowhere")).unwrap_err().why[0].contains("no libc.so.6"));
    }
}
