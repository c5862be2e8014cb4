//! Finds the CRIU of this host: a private one (a directory with CRIU, its loader and its libraries) or an installed
//! program. The first one that is complete and of a supported version is taken; nothing is copied or bound here.

pub(crate) mod cache;
mod look;
pub(crate) mod run;

use cache::Cache;
use semver::Version;
use stasis_plugin_api::host::Host;
use stasis_plugin_api::plan::Bind;
use stasis_plugin_api::report::ProbedFile;
use std::path::{Path, PathBuf};

/// Where CRIU appears in a container.
pub(crate) const INSIDE: &str = "/.stasis/criu";
/// What is accepted, for people: `--unprivileged` is that old.
pub(crate) const ACCEPTS: &str = ">=3.18";
/// What to do where there is none.
pub(crate) const INSTALL: &str = "on Debian 13 or newer `apt install criu`; elsewhere unpack a private CRIU (docs/criu.md \
     tells how) and name it in plugins.toml: [backends.criu.options] prefix = \"/opt/criu\"";
/// Places beside the caller's `PATH`: CRIU is a program for administrators as distributions see it.
const USUAL: [&str; 2] = ["/usr/sbin/criu", "/usr/local/sbin/criu"];

/// A CRIU that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Criu {
    /// Its version.
    pub version: Version,
    /// Of what it consists.
    pub kind: Kind,
}

/// Of what a CRIU consists. All paths are absolute ones of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory with everything in it.
    Private {
        /// The directory.
        prefix: PathBuf,
        /// The loader, relative to it, in the directory of the libraries.
        loader: PathBuf,
        /// The program, relative to it.
        program: PathBuf,
    },
    /// An installed program with the host's loader and libraries.
    Host {
        /// The program.
        program: PathBuf,
        /// Its loader; absent when it is linked statically.
        loader: Option<PathBuf>,
        /// Its libraries: the name under which each is sought, and where it lies.
        libraries: Vec<(String, PathBuf)>,
    },
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Everything that was looked for, for a report.
    pub files: Vec<ProbedFile>,
    /// The CRIU to take, or why there is none and what to do.
    pub chosen: Result<Criu, (String, String)>,
}

impl Criu {
    /// The program on the host.
    pub(crate) fn program(&self) -> PathBuf {
        match &self.kind {
            Kind::Private { prefix, program, .. } => prefix.join(program),
            Kind::Host { program, .. } => program.clone(),
        }
    }

    /// What has to be shown inside, below [`INSIDE`].
    pub(crate) fn binds(&self) -> Vec<Bind> {
        let bind = |source: &Path, target: &str| Bind {
            source: source.to_owned(),
            target: Path::new(INSIDE).join(target),
            writable: false,
        };
        match &self.kind {
            Kind::Private { prefix, .. } => vec![bind(&prefix.join("usr"), "usr")],
            Kind::Host { program, loader, libraries } => {
                let mut binds = vec![bind(program, "bin/criu")];
                binds.extend(loader.iter().map(|loader| bind(loader, "ld.so")));
                binds.extend(libraries.iter().map(|(name, path)| bind(path, &format!("lib/{name}"))));
                binds
            }
        }
    }

    /// The command inside a container, without its arguments: the container's own libraries play no part.
    pub(crate) fn command_inside(&self) -> Vec<String> {
        let inside = Path::new(INSIDE);
        match &self.kind {
            Kind::Private { loader, program, .. } => {
                let loader = inside.join(loader);
                by_loader(&loader, loader.parent().unwrap_or(inside), &inside.join(program))
            }
            Kind::Host { loader: None, .. } => vec![text(&inside.join("bin/criu"))],
            Kind::Host { .. } => {
                by_loader(&inside.join("ld.so"), &inside.join("lib"), &inside.join("bin/criu"))
            }
        }
    }

    /// The command here on the host, without its arguments.
    pub(crate) fn command_on_host(&self) -> Vec<String> {
        match &self.kind {
            Kind::Private { prefix, loader, program } => {
                let loader = prefix.join(loader);
                by_loader(&loader, loader.parent().unwrap_or(prefix), &prefix.join(program))
            }
            Kind::Host { program, .. } => vec![text(program)],
        }
    }
}

/// A loader that is run as a program needs nothing else of the file system. Without `--argv0`: loaders before
/// glibc 2.33 do not know it, and CRIU does not look at its name.
fn by_loader(loader: &Path, libraries: &Path, program: &Path) -> Vec<String> {
    vec![text(loader), "--library-path".to_owned(), text(libraries), text(program)]
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Looks in every place until one has a CRIU that can be used.
pub(crate) fn search(host: &Host<'_>) -> Found {
    let context = host.context();
    let option = |name| host.option_str(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let places = look::places(option("prefix"), option("path"), &context.search_path, &USUAL);
    let mut cache = Cache::open(&context.cache, context.euid);
    let found = among(&places, context.euid, &mut cache);
    cache.save();
    found
}

fn among(places: &[look::Place], euid: u32, cache: &mut Cache) -> Found {
    let (mut problems, mut first) = (Vec::new(), None);
    for place in places {
        let mut files = Vec::new();
        match look::at(place, euid, cache, &mut files) {
            Ok(Some(criu)) => return Found { files, chosen: Ok(criu) },
            Ok(None) => {}
            Err(problem) => {
                problems.push(problem);
                first.get_or_insert(files);
            }
        }
    }
    let sought: Vec<String> = places.iter().map(|place| text(place.path())).collect();
    let missing = || {
        let note = Some(format!("sought: {}", sought.join(", ")));
        vec![ProbedFile { name: "criu".to_owned(), required: true, found: None, note }]
    };
    if problems.is_empty() {
        problems.push("CRIU is not installed".to_owned());
    }
    Found { files: first.unwrap_or_else(missing), chosen: Err((problems.join("; "), INSTALL.to_owned())) }
}

#[cfg(test)]
mod tests;
