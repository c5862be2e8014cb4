//! One place after the other: what is there, whether it is complete, and of which version it is.

use super::cache::{Cache, Known, Stamp};
use super::{Criu, Kind, run};
use nix::unistd::{AccessFlags, access};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Endianness, ReadCache, elf};
use semver::Version;
use stasis_plugin_api::report::ProbedFile;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A program that only prints its version, or a loader that only lists libraries, is never slower.
const LIMIT: Duration = Duration::from_secs(2);
/// Where the loader keeps what it knows of the host's libraries.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
/// The program in a private prefix.
const PROGRAMS: [&str; 2] = ["usr/sbin/criu", "usr/bin/criu"];
/// The loader in a private prefix, beside its libraries.
#[cfg(target_arch = "aarch64")]
const LOADERS: [&str; 2] =
    ["usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1", "usr/lib64/ld-linux-aarch64.so.1"];
#[cfg(not(target_arch = "aarch64"))]
const LOADERS: [&str; 2] =
    ["usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"];

/// A place where a CRIU may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    path: PathBuf,
    /// A private prefix, not a program.
    prefix: bool,
    /// Somebody asked for it: that nothing is there is a problem.
    named: bool,
}

impl Place {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The places in the order in which they count. What was named excludes what was not.
pub(super) fn places(
    prefix: Option<PathBuf>,
    program: Option<PathBuf>,
    search_path: &str,
    usual: &[&str],
) -> Vec<Place> {
    let named = |path: Option<PathBuf>, prefix| path.map(|path| Place { path, prefix, named: true });
    let places: Vec<Place> = named(prefix, true).into_iter().chain(named(program, false)).collect();
    if !places.is_empty() {
        return places;
    }
    // A relative directory in PATH would mean whatever directory the caller is in.
    let on_path = std::env::split_paths(search_path).filter(|dir| dir.is_absolute());
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in on_path.map(|dir| dir.join("criu")).chain(usual.iter().map(PathBuf::from)) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths.into_iter().map(|path| Place { path, prefix: false, named: false }).collect()
}

/// The CRIU at a place. `Ok(None)` when nothing is there and nobody said that something is; `Err` tells why what is
/// there does not count.
pub(super) fn at(
    place: &Place,
    euid: u32,
    cache: &mut Cache,
    files: &mut Vec<ProbedFile>,
) -> Result<Option<Criu>, String> {
    let path = &place.path;
    if !path.is_absolute() {
        return Err(format!("{} is no absolute path", path.display()));
    }
    if !place.named && path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let root = euid == 0;
    let prefix = if place.prefix { Some(path.clone()) } else { around(path) };
    let criu = match prefix {
        Some(prefix) => private(&prefix, root, cache, files)?,
        None => installed(path, root, cache, files)?,
    };
    if !root && (criu.version.major, criu.version.minor) < (3, 18) {
        return Err(format!(
            "CRIU {} at {} works for root only: 3.18 is the first version for ordinary users",
            criu.version,
            path.display()
        ));
    }
    Ok(Some(criu))
}

/// The prefix around `PREFIX/bin/criu`, the script with which a private CRIU is started by hand.
fn around(program: &Path) -> Option<PathBuf> {
    let real = program.canonicalize().ok()?;
    let prefix = real.parent()?.parent()?;
    let private = prefix != Path::new("/") && LOADERS.iter().any(|loader| prefix.join(loader).is_file());
    (private && interpreter(&real).is_err()).then(|| prefix.to_owned())
}

/// Adds a file to the report; `Err` when it is not there or must not be used.
fn check(
    name: &str,
    path: &Path,
    mode: AccessFlags,
    root: bool,
    files: &mut Vec<ProbedFile>,
) -> Result<(), String> {
    let problem = match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("not there".to_owned()),
        Err(error) => Some(error.to_string()),
        Ok(meta) if !meta.is_file() => Some("not a regular file".to_owned()),
        Ok(_) if root => trusted(path).err().map(|why| format!("root does not run it: {why}")),
        Ok(_) => access(path, mode).err().map(|_| "you may not read and run it".to_owned()),
    };
    let found = problem.is_none().then(|| path.display().to_string());
    let note = problem.as_ref().map(|why| format!("{}: {why}", path.display()));
    files.push(ProbedFile { name: name.to_owned(), required: true, found, note });
    problem.map_or(Ok(()), |why| Err(format!("{}: {why}", path.display())))
}

/// What a private prefix holds.
fn private(
    prefix: &Path,
    root: bool,
    cache: &mut Cache,
    files: &mut Vec<ProbedFile>,
) -> Result<Criu, String> {
    let first = |names: [&'static str; 2]| {
        let there = names.into_iter().find(|name| prefix.join(name).exists());
        PathBuf::from(there.unwrap_or(names[0]))
    };
    let (program, loader) = (first(PROGRAMS), first(LOADERS));
    let run_and_read = AccessFlags::X_OK | AccessFlags::R_OK;
    let checked = check("criu", &prefix.join(&program), run_and_read, root, files);
    let loader_name = loader.file_name().unwrap_or_default().to_string_lossy().into_owned();
    check(&loader_name, &prefix.join(&loader), run_and_read, root, files).and(checked)?;
    if let (true, Some(libraries)) = (root, prefix.join(&loader).parent()) {
        all_trusted(libraries).map_err(|why| format!("root does not run {}: {why}", prefix.display()))?;
    }
    let (program_path, loader_path) = (prefix.join(&program), prefix.join(&loader));
    let kind = Kind::Private { prefix: prefix.to_owned(), loader, program };
    if let Some(known) = cache.program(&program_path) {
        return Ok(Criu { version: known.version.clone(), kind });
    }
    let stamps = (Stamp::of(&program_path), Stamp::of(&loader_path));
    let criu = Criu { version: Version::new(0, 0, 0), kind };
    let criu = Criu { version: version(&criu.command_on_host())?, ..criu };
    if let (Some(program), Some(loader)) = stamps {
        let version = criu.version.clone();
        cache.remember(Known { program, others: vec![(loader_name, loader)], version });
    }
    Ok(criu)
}

/// An installed program with what its loader finds for it.
fn installed(
    path: &Path,
    root: bool,
    cache: &mut Cache,
    files: &mut Vec<ProbedFile>,
) -> Result<Criu, String> {
    check("criu", path, AccessFlags::X_OK | AccessFlags::R_OK, root, files)?;
    let program = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    let loader = interpreter(&program).map_err(|why| {
        format!(
            "{}: {why}; name the program itself, or the directory of a private CRIU as `prefix`",
            path.display()
        )
    })?;
    let fresh = cache.program(&program).cloned();
    let libraries = match (&fresh, &loader) {
        (_, None) => Vec::new(),
        // The loader's own cache stands first among what the answer depends on.
        (Some(known), _) => {
            known.others.iter().skip(2).map(|(name, stamp)| (name.clone(), stamp.path.clone())).collect()
        }
        (None, Some(loader)) => libraries(loader, &program, files)?,
    };
    for (name, library) in loader.iter().map(|loader| ("ld.so", loader)).chain(pairs(&libraries)) {
        check(name, library, AccessFlags::R_OK, root, files)?;
    }
    if let Some(known) = fresh {
        return Ok(Criu { version: known.version, kind: Kind::Host { program, loader, libraries } });
    }
    let dependencies = loader.iter().map(|loader| ("ld.so", loader.as_path()));
    let dependencies = dependencies.chain([("ld.so.cache", Path::new(LOADER_CACHE))]);
    let others = dependencies.chain(pairs(&libraries).map(|(name, path)| (name, path.as_path())));
    let others: Option<Vec<_>> =
        others.map(|(name, path)| Some((name.to_owned(), Stamp::of(path)?))).collect();
    let stamp = Stamp::of(&program);
    let version = version(&[program.to_string_lossy().into_owned()])?;
    if let (Some(program), Some(others), true) = (stamp, others, loader.is_some()) {
        cache.remember(Known { program, others, version: version.clone() });
    }
    Ok(Criu { version, kind: Kind::Host { program, loader, libraries } })
}

fn pairs(libraries: &[(String, PathBuf)]) -> impl Iterator<Item = (&str, &PathBuf)> {
    libraries.iter().map(|(name, path)| (name.as_str(), path))
}

/// The loader of a program for this machine; `None` when it is linked statically.
pub(super) fn interpreter(program: &Path) -> Result<Option<PathBuf>, String> {
    let damaged = |_| "damaged ELF file".to_owned();
    let data = ReadCache::new(File::open(program).map_err(|error| error.to_string())?);
    let header =
        elf::FileHeader64::<Endianness>::parse(&data).map_err(|_| "not an ELF program".to_owned())?;
    let endian = header.endian().map_err(damaged)?;
    let machine = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64 } else { elf::EM_X86_64 };
    if header.e_machine(endian) != machine {
        return Err("made for another processor".to_owned());
    }
    for segment in header.program_headers(endian, &data).map_err(damaged)? {
        if segment.p_type(endian) == elf::PT_INTERP {
            let bytes = segment.data(endian, &data).map_err(|()| "damaged ELF file".to_owned())?;
            let path = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            let path = Path::new(std::str::from_utf8(path).map_err(|_| "damaged ELF file".to_owned())?);
            return Ok(Some(path.to_owned()).filter(|path| path.is_absolute()));
        }
    }
    Ok(None)
}

/// What the loader finds for a program.
fn libraries(
    loader: &Path,
    program: &Path,
    files: &mut Vec<ProbedFile>,
) -> Result<Vec<(String, PathBuf)>, String> {
    let told = run::run(run::command(loader).env("LD_TRACE_LOADED_OBJECTS", "1").arg(program), LIMIT)
        .map_err(|error| format!("{}: {error}", loader.display()))?;
    let (found, missing) = listed(&told.output);
    for name in &missing {
        let note = Some("the loader does not find it".to_owned());
        files.push(ProbedFile { name: name.clone(), required: true, found: None, note });
    }
    if !missing.is_empty() {
        return Err(format!("{} lacks {}", program.display(), missing.join(", ")));
    }
    if !told.succeeded() || found.is_empty() {
        let said: String = told.output.lines().last().unwrap_or("nothing").chars().take(300).collect();
        return Err(format!("{}: its loader cannot load it: {said}", program.display()));
    }
    Ok(found)
}

/// The libraries in a loader's list that were found, and the names of those that were not.
fn listed(output: &str) -> (Vec<(String, PathBuf)>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for line in output.lines() {
        // The loader itself and the kernel's own library have no arrow.
        let Some((name, place)) = line.trim().split_once(" => ") else { continue };
        let path = place.rsplit_once(" (0x").map_or(place, |(path, _)| path);
        match (path.starts_with('/'), name.contains('/')) {
            (true, false) => found.push((name.to_owned(), PathBuf::from(path))),
            // The loader under the name that the program has for it.
            (true, true) => {}
            (false, _) => missing.push(name.to_owned()),
        }
    }
    (found, missing)
}

/// Runs it to learn its version.
fn version(command: &[String]) -> Result<Version, String> {
    let program = command.last().map_or("criu", String::as_str);
    let told = run::run(run::command_of(command).arg("--version"), LIMIT)
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    if let Some(version) = told.output.lines().find_map(parse) {
        return Ok(version);
    }
    if told.status.is_none() {
        return Err(format!("{program} printed no version within {} s", LIMIT.as_secs()));
    }
    let said = told.output.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing at all");
    Err(format!("{program} printed no version: {}", said.chars().take(300).collect::<String>()))
}

/// `Version: 4.1.1`; missing numbers count as 0, what is added to them does not count.
fn parse(line: &str) -> Option<Version> {
    let text = line.strip_prefix("Version:")?.split_whitespace().next()?;
    let numbers = text.split(['-', '+']).next()?;
    let mut numbers = numbers.split('.').map(|number| number.parse::<u64>().ok());
    Some(Version::new(
        numbers.next()??,
        numbers.next().unwrap_or(Some(0))?,
        numbers.next().unwrap_or(Some(0))?,
    ))
}

/// Whether nobody but root can change a file, where links lead included. `Err` tells who can.
fn trusted(path: &Path) -> Result<(), String> {
    let real = path.canonicalize().map_err(|error| error.to_string())?;
    path.ancestors()
        .chain(real.ancestors())
        .filter(|step| !step.as_os_str().is_empty())
        .try_for_each(owned_by_root)
}

fn owned_by_root(path: &Path) -> Result<(), String> {
    let meta = path.symlink_metadata().map_err(|error| format!("{}: {error}", path.display()))?;
    if meta.uid() != 0 {
        return Err(format!("{} belongs to uid {}", path.display(), meta.uid()));
    }
    // In a sticky directory nobody can replace an entry of root's.
    let sticky = meta.is_dir() && meta.mode() & 0o1000 != 0;
    if !meta.is_symlink() && !sticky && meta.mode() & 0o022 != 0 {
        return Err(format!("others than root may write to {}", path.display()));
    }
    Ok(())
}

/// The same for everything below a directory; links there have to stay in it.
fn all_trusted(directory: &Path) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{}: {error}", directory.display());
    trusted(directory)?;
    let top = directory.canonicalize().map_err(told)?;
    let mut waiting = vec![top.clone()];
    while let Some(directory) = waiting.pop() {
        for entry in directory.read_dir().map_err(told)? {
            let entry = entry.map_err(told)?;
            owned_by_root(&entry.path())?;
            let kind = entry.file_type().map_err(told)?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_symlink() && !entry.path().canonicalize().is_ok_and(|to| to.starts_with(&top)) {
                return Err(format!("{} leads elsewhere", entry.path().display()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (line, version) in [
            ("Version: 4.1.1", "4.1.1"),
            ("Version: 3.18", "3.18.0"),
            ("Version: 4.0-rc1", "4.0.0"),
            ("Version: 4.2.1.7 x", "4.2.1"),
        ] {
            assert_eq!(parse(line), Some(version.parse().unwrap()), "{line}");
        }
        for line in ["", "Version:", "Version: x", "Version: 4.", "version: 4.1", "GitID: 4.1"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_loader_s_list_is_read() {
        let (found, missing) = listed(
            "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibnl-3.so.200 => /lib/a b/libnl-3.so.200 (0x00007f1e)\n\
             \tlibnet.so.1 => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f1f)\n\
             \t/lib64/ld-linux.so.2 => /x/ld.so (0x1)\n",
        );
        assert_eq!(found, [("libnl-3.so.200".to_owned(), PathBuf::from("/lib/a b/libnl-3.so.200"))]);
        assert_eq!(missing, ["libnet.so.1"]);
        assert_eq!(listed("statically linked"), (Vec::new(), Vec::new()));
    }

    #[test]
    fn programs_of_this_host_have_a_loader_and_libraries() {
        let program = Path::new("/usr/bin/env").canonicalize().unwrap();
        let loader = interpreter(&program).unwrap().unwrap();
        let mut files = Vec::new();
        let found = libraries(&loader, &program, &mut files).unwrap();
        assert!(found.iter().any(|(name, path)| name.starts_with("libc.") && path.is_file()), "{found:?}");
        assert!(files.is_empty());
        assert_eq!(interpreter(Path::new("/etc/passwd")).unwrap_err(), "not an ELF program");
        assert!(libraries(&loader, Path::new("/etc/passwd"), &mut files).is_err());
    }

    #[test]
    fn links_out_of_a_private_prefix_are_not_followed_by_root() {
        let dir = tempfile::tempdir().unwrap();
        let libraries = dir.path().join("lib");
        std::fs::create_dir(&libraries).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", libraries.join("libc.so.6")).unwrap();
        // Below /tmp nothing is trusted, whoever made it.
        assert!(all_trusted(&libraries).is_err());
        assert!(trusted(Path::new("/usr/bin/env")).is_ok());
    }
}
