//! Where a backend's library is, and that it is the one the administrator means: found, trusted, for this machine,
//! and of the pinned digest. All of it on one open descriptor, which is what gets loaded. Nothing is loaded here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use semver::VersionReq;
use sha2::{Digest, Sha256};

use super::elf::{self, ElfError};
use super::trust::{self, TrustError};
use crate::config::{Context, Library, Settings, Source};
use crate::name::BackendName;

/// A library that may be loaded.
#[derive(Debug)]
pub struct Located {
    /// Of which backend.
    pub name: BackendName,
    /// Where it was found, for people.
    pub path: PathBuf,
    /// The checked file, open for reading: load this (`/proc/self/fd/N`), not the path.
    pub file: File,
    /// What the plugin's version must satisfy.
    pub version: Option<VersionReq>,
    /// The administrator's options for it.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Who says all this.
    pub source: Source,
}

/// Why a backend has no library that may be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// No file defines the backend.
    #[error("there is no backend {name}")]
    Unknown {
        /// Which.
        name: BackendName,
    },
    /// The library is nowhere.
    #[error("the library {library} of the backend {name} is not found; looked in: {looked}", looked = list(looked))]
    NotFound {
        /// The backend.
        name: BackendName,
        /// As the configuration says.
        library: String,
        /// In this order.
        looked: Vec<PathBuf>,
        /// The file and line that define the backend.
        place: String,
    },
    /// The library may have been replaced by somebody.
    #[error("the library of the backend {name} may not be used: {source}")]
    Untrusted {
        /// The backend.
        name: BackendName,
        /// Why.
        source: TrustError,
    },
    /// The file is no library for this program.
    #[error("cannot load the backend {name}: {path} is {source}", path = path.display())]
    Elf {
        /// The backend.
        name: BackendName,
        /// The library.
        path: PathBuf,
        /// What it is.
        source: ElfError,
    },
    /// It cannot be read to its end.
    #[error("cannot read the library {path} of the backend {name}: {source}", path = path.display())]
    Read {
        /// The backend.
        name: BackendName,
        /// The library.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not the library that the administrator pinned.
    #[error(
        "the library {path} of the backend {name} has the SHA-256 digest {found}, {place} wants {wanted}",
        path = path.display()
    )]
    Pin {
        /// The backend.
        name: BackendName,
        /// The library.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What it should have.
        wanted: String,
        /// The file and line that define the backend.
        place: String,
    },
}

impl LocateError {
    /// What the user or administrator can do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some("`stasis backend list` shows every backend".to_owned()),
            Self::NotFound { place, .. } => {
                Some(format!("install the library there, or correct `library` or `search` ({place})"))
            }
            Self::Untrusted { source, .. } => source.help(),
            Self::Elf { .. } => Some("install a build for this machine".to_owned()),
            Self::Read { .. } => None,
            Self::Pin { .. } => Some("install the pinned build, or change `sha256` after a look".to_owned()),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    if shown.is_empty() { "nowhere, `search` is empty".to_owned() } else { shown.join(", ") }
}

/// Finds and checks the library of a backend, whether it is enabled or not.
pub fn locate(name: &BackendName, settings: &Settings, context: &Context) -> Result<Located, LocateError> {
    let entry = settings.backends.get(name).ok_or_else(|| LocateError::Unknown { name: name.clone() })?;
    let place = format!("{}:{}", entry.source, entry.at.line);
    let (candidates, looked) = candidates(&entry.library, settings, context);
    let mut found = None;
    for path in candidates {
        // The first that exists counts: one that may not be used is an error, never passed over.
        match trust::open_file(&path, context.euid) {
            Ok(file) => {
                found = Some((path, file));
                break;
            }
            Err(TrustError::Missing { .. }) => {}
            Err(source) => return Err(LocateError::Untrusted { name: name.clone(), source }),
        }
    }
    let Some((path, file)) = found else {
        let library = entry.library.to_string();
        return Err(LocateError::NotFound { name: name.clone(), library, looked, place });
    };
    elf::check(&file).map_err(|source| LocateError::Elf {
        name: name.clone(),
        path: path.clone(),
        source,
    })?;
    if let Some(wanted) = &entry.sha256 {
        let found = digest(&file).map_err(|source| LocateError::Read {
            name: name.clone(),
            path: path.clone(),
            source,
        })?;
        if found != *wanted {
            let (name, wanted) = (name.clone(), wanted.clone());
            return Err(LocateError::Pin { name, path, found, wanted, place });
        }
    }
    Ok(Located {
        name: name.clone(),
        path,
        file,
        version: entry.version.clone(),
        options: entry.options.clone(),
        source: entry.source.clone(),
    })
}

/// The paths to try, and the directories to name when none is there.
fn candidates(library: &Library, settings: &Settings, context: &Context) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let name = match library {
        Library::At(path) => return (vec![path.clone()], vec![path.clone()]),
        Library::Named(name) => name,
    };
    let mut dirs: Vec<PathBuf> = settings.search.iter().map(|dir| dir.value.clone()).collect();
    if let Some(beside) = context.exe.parent() {
        if !context.is_root() {
            // A build tree. What cargo built last is in deps; the copy above it can be older.
            dirs.push(beside.join("deps"));
            dirs.push(beside.to_owned());
        }
        dirs.push(beside.parent().unwrap_or(Path::new("/")).join("lib/stasis/backends"));
    }
    let mut seen: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        if !seen.contains(&dir) {
            seen.push(dir);
        }
    }
    (seen.iter().map(|dir| dir.join(name)).collect(), seen)
}

fn digest(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut text = String::with_capacity(64);
    for byte in hasher.finalize() {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    struct Place {
        dir: tempfile::TempDir,
        context: Context,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for sub in ["lib", "bin/deps", "pre/lib/stasis/backends"] {
                fs::create_dir_all(dir.path().join(sub)).unwrap();
            }
            let euid = nix::unistd::geteuid().as_raw();
            let context = Context {
                euid: if euid == 0 { 4242 } else { euid },
                uid: euid,
                home: None.into(),
                env: BTreeMap::new(),
                exe: dir.path().join("bin/stasis"),
                system_dir: dir.path().join("etc"),
            };
            Self { dir, context }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        /// A real library: the test program is a position independent executable, which is of the same ELF type.
        fn library(&self, path: &str) -> PathBuf {
            let path = self.path(path);
            fs::copy("/proc/self/exe", &path).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            path
        }

        fn locate(&self, backend: &str) -> Result<Located, String> {
            let file = self.path("p.toml");
            let text = format!("schema = 1\nsearch = [\"lib\"]\n[backends.toy]\n{backend}\n");
            fs::write(&file, text).unwrap();
            let settings = Settings::load(&self.context, Some(&file)).unwrap();
            locate(&"toy".parse().unwrap(), &settings, &self.context)
                .map_err(|e| e.to_string().replace(self.dir.path().to_str().unwrap(), "DIR"))
        }
    }

    #[test]
    fn search_directories_come_first_then_the_build_tree_then_the_prefix() {
        let mut place = Place::new();
        insta::assert_snapshot!(place.locate("").unwrap_err(), @"the library libstasis_toy.so of the backend toy is not found; looked in: DIR/lib, DIR/bin/deps, DIR/bin, DIR/lib/stasis/backends");
        let paths = ["bin/libstasis_toy.so", "bin/deps/libstasis_toy.so", "lib/libstasis_toy.so"];
        for path in paths {
            let made = place.library(path);
            assert_eq!(place.locate("").unwrap().path, made);
        }
        fs::remove_file(place.path("lib/libstasis_toy.so")).unwrap();
        if nix::unistd::geteuid().is_root() {
            place.context.euid = 0;
            insta::assert_snapshot!(place.locate("").unwrap_err(), @"the library libstasis_toy.so of the backend toy is not found; looked in: DIR/lib, DIR/lib/stasis/backends");
        }
    }

    #[test]
    fn the_located_file_carries_what_the_configuration_says() {
        let place = Place::new();
        let made = place.library("lib/other.so");
        let located = place
            .locate("library = \"lib/other.so\"\nversion = \"1\"\n[backends.toy.options]\nk = 2")
            .unwrap();
        assert_eq!((located.path, located.options["k"].as_i64()), (made.clone(), Some(2)));
        let printed = std::process::Command::new("sha256sum").arg(&made).output().unwrap().stdout;
        let printed = String::from_utf8(printed[..64].to_vec()).unwrap().to_uppercase();
        assert!(place.locate(&format!("library = \"other.so\"\nsha256 = \"{printed}\"")).is_ok());
    }

    #[test]
    fn a_library_that_may_not_be_loaded_is_never_passed_over() {
        let place = Place::new();
        place.library("bin/libstasis_toy.so");
        let first = place.path("lib/libstasis_toy.so");
        fs::write(&first, "#!/bin/sh\n").unwrap();
        insta::assert_snapshot!(place.locate("").unwrap_err(), @"cannot load the backend toy: DIR/lib/libstasis_toy.so is not an ELF shared library");
        fs::set_permissions(&first, PermissionsExt::from_mode(0o666)).unwrap();
        insta::assert_snapshot!(place.locate("").unwrap_err(), @"the library of the backend toy may not be used: DIR/lib/libstasis_toy.so has mode 0666: every user may write to it");
        fs::remove_file(&first).unwrap();
        let pin = format!("sha256 = \"{}\"", "0".repeat(64));
        let error = place.locate(&pin).unwrap_err();
        assert!(
            error.starts_with(
                "the library DIR/bin/libstasis_toy.so of the backend toy has the SHA-256 digest "
            )
        );
        assert!(error.ends_with(&format!(", DIR/p.toml:3 wants {}", "0".repeat(64))), "{error}");
    }
}
