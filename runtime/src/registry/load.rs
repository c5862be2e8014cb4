//! Loads a backend's library into this process: the dynamic loader, the check that both sides mean the same types,
//! and the translation of what goes wrong into one line. Only a worker process comes here, and it keeps the library
//! until it ends.

#![allow(unsafe_code, reason = "a foreign library is loaded and its entry symbol read")]

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstability, AbiInstabilityErrors, ExpectedFound, check_layout_compatibility,
};
use abi_stable::library::{AbiHeader, AbiHeaderRef, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::std_types::{RResult, RStr, RString};
use abi_stable::type_layout::TypeLayout;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use semver::{Version, VersionReq};
use stasis_plugin_api::abi::{Answer, BackendModule_Ref, Call, HostHandle, error_from};
use stasis_plugin_api::descriptor::Descriptor;
use stasis_plugin_api::error::{BackendError, kind};
use stasis_plugin_api::version::{API_VERSION, compatible};

use super::elf::{self, ElfError};
use crate::config::error::in_words;
use crate::name::BackendName;

/// Why a library did not become a backend. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read, or is no library for this program.
    #[error("{path} is {source}", path = path.display())]
    Elf {
        /// The library.
        path: PathBuf,
        /// What it is.
        source: ElfError,
    },
    /// The dynamic loader refused it.
    #[error("cannot load {path}: {why}", path = path.display())]
    Open {
        /// The library.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// A library, but not one of ours.
    #[error("{path} is not a stasis backend: it does not export the entry symbol", path = path.display())]
    NotBackend {
        /// The library.
        path: PathBuf,
    },
    /// Built with another generation of the interface library.
    #[error("{path} was built for the plugin ABI {theirs}, this stasis needs {ours}", path = path.display())]
    Abi {
        /// The library.
        path: PathBuf,
        /// Its ABI.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Built against a version of the contract that does not fit.
    #[error("{path} was {why}", path = path.display())]
    Contract {
        /// The library.
        path: PathBuf,
        /// From the contract's own comparison.
        why: String,
    },
    /// The types differ although the versions fit, or are not described.
    #[error("{path} does not fit this stasis: {why}", path = path.display())]
    Layout {
        /// The library.
        path: PathBuf,
        /// The first difference, with the path to the field.
        why: String,
    },
    /// It does not start up, or does not describe itself.
    #[error("{path} does not say what it is: {why}", path = path.display())]
    Describe {
        /// The library.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The administrator wants another version.
    #[error(
        "{path} is version {found} of the plugin {name}, the configuration wants {wanted}",
        path = path.display()
    )]
    Version {
        /// The library.
        path: PathBuf,
        /// What the plugin calls itself.
        name: String,
        /// Its version.
        found: Version,
        /// The requirement.
        wanted: VersionReq,
    },
}

impl LoadError {
    /// What the administrator can do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Elf { .. } => Some("install a build for this machine".to_owned()),
            Self::Open { .. } => Some("install what is missing, or a build made for this system".to_owned()),
            Self::NotBackend { .. } => Some("correct `library` in plugins.toml".to_owned()),
            Self::Abi { .. } | Self::Layout { .. } => {
                Some(format!("build the plugin against version {API_VERSION} of stasis-plugin-api"))
            }
            // The message says what to do.
            Self::Contract { .. } => None,
            Self::Describe { .. } => Some("tell the author of the plugin".to_owned()),
            Self::Version { .. } => {
                Some("install a version that fits, or change `version` in plugins.toml".to_owned())
            }
        }
    }
}

/// A backend in this process. The library stays loaded until the process ends.
pub struct LoadedBackend {
    pub(crate) module: BackendModule_Ref,
    descriptor: Descriptor,
    version: Version,
    contract: String,
    path: PathBuf,
}

impl fmt::Debug for LoadedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedBackend")
            .field("path", &self.path)
            .field("descriptor", &self.descriptor)
            .field("contract", &self.contract)
            .finish_non_exhaustive()
    }
}

impl LoadedBackend {
    /// What the plugin says about itself.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The version of the contract that it was built against.
    pub fn contract(&self) -> &str {
        &self.contract
    }

    /// Whether the plugin's own version is one that the configuration wants.
    pub fn check_version(&self, wanted: Option<&VersionReq>) -> Result<(), LoadError> {
        match wanted {
            Some(wanted) if !wanted.matches(&self.version) => Err(LoadError::Version {
                path: self.path.clone(),
                name: self.descriptor.name.clone(),
                found: self.version.clone(),
                wanted: wanted.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Calls a method. A panic of the plugin's comes back as an error; a crash takes the process with it.
    pub fn invoke(&self, host: HostHandle, method: &str, call: &Call) -> Result<Answer, BackendError> {
        let unclear = |what: &str, error: serde_json::Error| {
            BackendError::new(kind::PROTOCOL, format!("the {what} of {method} cannot be understood"))
                .because(error)
        };
        let call = serde_json::to_string(call).map_err(|error| unclear("call", error))?;
        match self.module.invoke()(host, RStr::from(method), RStr::from(call.as_str())) {
            RResult::ROk(text) => serde_json::from_str(&text).map_err(|error| unclear("answer", error)),
            RResult::RErr(text) => Err(error_from(&text)),
        }
    }
}

/// Loads the library `file`, usually `/proc/self/fd/N` of a descriptor that was checked, and asks what it is.
/// `shown` is its name in messages.
pub fn load(file: &Path, shown: &Path) -> Result<LoadedBackend, LoadError> {
    let path = || shown.to_owned();
    let opened = File::open(file)
        .map_err(|error| LoadError::Elf { path: path(), source: ElfError::Read(in_words(&error)) })?;
    elf::check(&opened).map_err(|source| LoadError::Elf { path: path(), source })?;
    drop(opened);
    let library = open(file, shown)?;
    let header = entry(&library, shown)?;
    // What the library hands out refers into it without end, so it is never unloaded.
    std::mem::forget(library);
    if !header.is_valid() {
        let (theirs, ours) = (abi_version(&header), abi_version(&AbiHeader::VALUE));
        return Err(LoadError::Abi { path: path(), theirs, ours });
    }
    let header = header.upgrade().map_err(|error| LoadError::Layout {
        path: path(),
        why: format!("its C calling convention differs ({})", first_line(&error.to_string())),
    })?;
    let contract = header.version_strings().version.to_string();
    compatible(API_VERSION, &contract).map_err(|why| LoadError::Contract { path: path(), why })?;
    check_layout(header, &contract, shown)?;
    // SAFETY: check_layout found that the module type of the library and ours are compatible.
    let module = unsafe { header.init_root_module_with_unchecked_layout::<BackendModule_Ref>() }
        .map_err(|error| LoadError::Describe { path: path(), why: first_line(&error.to_string()) })?;
    let (descriptor, version) =
        describe(module.describe()()).map_err(|why| LoadError::Describe { path: path(), why })?;
    Ok(LoadedBackend { module, descriptor, version, contract, path: path() })
}

fn open(file: &Path, shown: &Path) -> Result<Library, LoadError> {
    // SAFETY: the library's initialisers run here. Whoever may write the file is trusted to that extent: the
    // registry checked owner and mode, and this process is a worker that has nothing else to lose.
    unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
        // libloading's own Display leaves out what the loader said.
        let said = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        let said = said.replace(&file.display().to_string(), &shown.display().to_string());
        LoadError::Open { path: shown.to_owned(), why: loader_words(&said) }
    })
}

fn entry(library: &Library, shown: &Path) -> Result<AbiHeaderRef, LoadError> {
    // SAFETY: the symbol's name is mangled with the interface library's own prefix, so that whatever exports it
    // exports the header of that library; the header starts with a magic text, which is checked before the rest.
    let symbol = unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|_| LoadError::NotBackend { path: shown.to_owned() })
}

/// Compares the types of both sides. Prefix types may have more fields on the side that is newer, whichever that
/// is; the stock check would refuse an older plugin.
fn check_layout(header: &LibHeader, contract: &str, shown: &Path) -> Result<(), LoadError> {
    let refuse = |why: String| LoadError::Layout { path: shown.to_owned(), why };
    let theirs =
        header.layout().ok_or_else(|| refuse("it carries no description of its types".to_owned()))?;
    compare(<BackendModule_Ref as StableAbi>::LAYOUT, theirs, older(contract, API_VERSION)).map_err(refuse)
}

fn compare(
    ours: &'static TypeLayout,
    theirs: &'static TypeLayout,
    theirs_is_older: bool,
) -> Result<(), String> {
    let checked = if theirs_is_older {
        check_layout_compatibility(theirs, ours)
    } else {
        check_layout_compatibility(ours, theirs)
    };
    checked.map_err(|errors| {
        tracing::debug!("{errors}");
        difference(&errors)
    })
}

/// Whether version `a` is older than `b`; texts that are no versions do not get this far.
fn older(a: &str, b: &str) -> bool {
    match (Version::parse(a), Version::parse(b)) {
        (Ok(a), Ok(b)) => a < b,
        _ => false,
    }
}

fn describe(answer: RResult<RString, RString>) -> Result<(Descriptor, Version), String> {
    let text = match answer {
        RResult::ROk(text) => text,
        RResult::RErr(text) => return Err(error_from(&text).to_string()),
    };
    let descriptor: Descriptor =
        serde_json::from_str(&text).map_err(|error| format!("its description is malformed: {error}"))?;
    BackendName::new(&descriptor.name).map_err(|error| error.to_string())?;
    let version = Version::parse(&descriptor.version)
        .map_err(|error| format!("its version {:?} is no version: {error}", descriptor.version))?;
    Ok((descriptor, version))
}

fn abi_version(header: &AbiHeader) -> String {
    format!("{}.{}", header.abi_major, header.abi_minor)
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given").to_owned()
}

/// What the dynamic loader means.
fn loader_words(said: &str) -> String {
    if let Some((_, rest)) = said.split_once("version `")
        && let Some((needed, _)) = rest.split_once("' not found")
    {
        return format!("it was built for a newer system, {needed} is missing here");
    }
    if let Some((library, rest)) = said.split_once(": cannot open shared object file") {
        let library = library.rsplit(": ").next().unwrap_or(library);
        return if rest.contains("No such file") {
            format!("it needs {library}, which is not installed")
        } else {
            format!("{library} cannot be opened{rest}")
        };
    }
    if let Some((_, symbol)) = said.split_once("undefined symbol: ") {
        return format!("it needs the symbol {symbol}, which nothing provides");
    }
    if said.contains("failed to map segment") {
        return "it may not be mapped as code: its file system is mounted noexec, or memory is short"
            .to_owned();
    }
    first_line(said)
}

/// The first difference between two layouts in one line: where and what.
fn difference(errors: &AbiInstabilityErrors) -> String {
    let Some(first) = errors.errors.iter().find(|error| !error.errs.is_empty()) else {
        return "its types differ".to_owned();
    };
    let name = |step: &ExpectedFound<_>| {
        let shown = format!("{}", step.found);
        shown.split([':', '(']).next().unwrap_or(&shown).trim().to_owned()
    };
    // abi_stable's name for what stands behind a reference to a prefix type; it tells nobody anything.
    let place: Vec<String> = first.stack_trace.iter().map(name).filter(|step| step != "field_name").collect();
    let what = first.errs.first().map_or_else(|| "it differs".to_owned(), instability);
    if place.is_empty() { what } else { format!("{what} at {}", place.join(".")) }
}

fn instability(error: &AbiInstability) -> String {
    fn pair<T: fmt::Display>(what: &str, sides: &ExpectedFound<T>) -> String {
        format!("{what} {} instead of {}", sides.found, sides.expected)
    }
    match error {
        AbiInstability::FieldCountMismatch(sides) => pair("number of fields", sides),
        AbiInstability::Size(sides) => pair("size", sides),
        AbiInstability::Alignment(sides) => pair("alignment", sides),
        AbiInstability::Name(sides) => pair("type", sides),
        AbiInstability::Package(sides) => pair("package", sides),
        AbiInstability::PackageVersion(sides) => pair("package version", sides),
        AbiInstability::UnexpectedField(sides) => {
            format!("field {} instead of {}", sides.found.name(), sides.expected.name())
        }
        AbiInstability::MismatchedPrefixSize(sides) => pair("number of first fields", sides),
        _ => "a type differs".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_plugin_api::abi::HostTable_Ref;
    use std::fs;

    fn fails(dir: &Path, file: &Path) -> String {
        load(file, file).unwrap_err().to_string().replace(dir.to_str().unwrap(), "DIR")
    }

    /// The C library that this test runs with: a good library that is none of ours.
    fn c_library() -> PathBuf {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let found = maps.split_whitespace().find(|word| word.starts_with('/') && word.contains("/libc.so"));
        PathBuf::from(found.unwrap())
    }

    #[test]
    fn what_is_no_backend_is_told_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.so");
        insta::assert_snapshot!(fails(dir.path(), &file), @"DIR/x.so is not readable: it does not exist");
        fs::write(&file, "echo hello\n").unwrap();
        insta::assert_snapshot!(fails(dir.path(), &file), @"DIR/x.so is not an ELF shared library");
        let whole = fs::read(c_library()).unwrap();
        fs::write(&file, &whole[..4096]).unwrap();
        let text = fails(dir.path(), &file);
        assert!(text.starts_with("DIR/x.so is cut short: 4096 bytes of at least "), "{text}");
        let error = load(&c_library(), Path::new("/opt/x.so")).unwrap_err();
        insta::assert_snapshot!(error, @"/opt/x.so is not a stasis backend: it does not export the entry symbol");
        assert!(error.help().unwrap().contains("plugins.toml"));
    }

    #[test]
    fn a_backend_is_loaded_from_a_descriptor_and_its_version_checked() {
        use std::os::fd::AsRawFd;
        // Built with these tests, beside their executable.
        let exe = std::env::current_exe().unwrap();
        let file = File::open(exe.with_file_name("libstasis_faulty.so")).unwrap();
        let through = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let shown = Path::new("/opt/libstasis_faulty.so");
        let backend = load(&through, shown).unwrap();
        assert_eq!((backend.descriptor().name.as_str(), backend.contract()), ("faulty", API_VERSION));
        let ours = VersionReq::parse(&format!("={}", backend.descriptor().version)).unwrap();
        assert!(backend.check_version(Some(&ours)).is_ok() && backend.check_version(None).is_ok());
        let error = backend.check_version(Some(&VersionReq::parse(">=7").unwrap())).unwrap_err().to_string();
        assert!(error.starts_with("/opt/libstasis_faulty.so is version "), "{error}");
        assert!(error.ends_with(" of the plugin faulty, the configuration wants >=7"), "{error}");
    }

    #[test]
    fn the_loaders_words_are_translated() {
        for (said, meant) in [
            (
                "/lib/libc.so.6: version `GLIBC_2.99' not found (required by /opt/x.so)",
                "it was built for a newer system, GLIBC_2.99 is missing here",
            ),
            (
                "libfoo.so.3: cannot open shared object file: No such file or directory",
                "it needs libfoo.so.3, which is not installed",
            ),
            (
                "/opt/x.so: undefined symbol: engine_start",
                "it needs the symbol engine_start, which nothing provides",
            ),
            (
                "/opt/x.so: failed to map segment from shared object: Operation not permitted",
                "it may not be mapped as code: its file system is mounted noexec, or memory is short",
            ),
            ("something new\nand more", "something new"),
        ] {
            assert_eq!(loader_words(said), meant);
        }
    }

    #[test]
    fn the_older_side_is_the_one_that_may_lack_fields() {
        for (theirs, ours, expected) in [
            ("1.0.0", "1.1.0", true),
            ("1.1.0", "1.0.0", false),
            ("1.0.0", "1.0.0", false),
            ("1.0.0-dev", "1.0.0", true),
            ("1.9.0", "1.10.0", true),
            ("nonsense", "1.0.0", false),
        ] {
            assert_eq!(older(theirs, ours), expected, "{theirs} {ours}");
        }
    }

    #[test]
    fn a_difference_of_types_is_one_line() {
        let module = <BackendModule_Ref as StableAbi>::LAYOUT;
        let other = <HostTable_Ref as StableAbi>::LAYOUT;
        assert_eq!(compare(module, module, false), Ok(()));
        assert_eq!(compare(module, module, true), Ok(()));
        let (one, two) =
            (compare(module, other, false).unwrap_err(), compare(module, other, true).unwrap_err());
        insta::assert_snapshot!(format!("{one}\n{two}"), @r#"
        type HostTable instead of BackendModule
        type BackendModule instead of HostTable
        "#);
    }

    #[test]
    fn a_malformed_description_is_refused() {
        let answer = |text: &str| describe(RResult::ROk(RString::from(text))).unwrap_err();
        assert!(answer("{").starts_with("its description is malformed: "));
        let bad_name = r#"{"name":"../x","version":"1.0.0","engine":"e","summary":"s"}"#;
        assert!(answer(bad_name).contains("../x"), "{}", answer(bad_name));
        let bad_version = r#"{"name":"x","version":"new","engine":"e","summary":"s"}"#;
        assert!(answer(bad_version).starts_with("its version \"new\" is no version: "));
        let error = serde_json::to_string(&BackendError::failed("the backend panicked in describe")).unwrap();
        assert_eq!(
            describe(RResult::RErr(error.as_str().into())).unwrap_err(),
            "the backend panicked in describe"
        );
    }
}
