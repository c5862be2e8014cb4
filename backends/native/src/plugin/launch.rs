//! What a container needs so that the engine can run in it: the library itself and the C library that it was built
//! for, shown at a place of ours. The container's own libraries play no part.

use crate::proc::maps::{self, Mapping};
use stasis_plugin_api::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the engine lies inside.
const INSIDE: &str = "/.stasis/native";
/// A small tmpfs of the container's own for what a restart leaves.
const WORK: &str = "/.stasis/native-work";
const WORK_SIZE: u64 = 1 << 20;
/// Libraries that every program of the host gets.
const PRELOADED: &str = "/etc/ld.so.preload";
/// Over which an engine that was started early tells that it is loaded, and is told that the root is there.
const TALK: i32 = 3;
/// The container's root, where the engine was loaded with another one. Far from whatever init has open when it starts it.
const BACK: i32 = 899;
/// The application's pid: far enough from those of init and its helpers.
const FIRST_PID: i32 = 100;
/// The loader's name inside.
const LOADER: &str = "ld.so";
/// The libraries that the engine may be linked with; those that this process has are shown inside.
const LIBRARIES: [&str; 5] = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "libdl.so.2"];

/// Where a restart leaves the root's pid.
pub(super) fn pid_file() -> PathBuf {
    Path::new(WORK).join("root-pid")
}

/// Held by whoever traces the application.
pub(super) fn lock_file() -> PathBuf {
    Path::new(WORK).join("lock")
}

/// The engine's command inside, with these arguments.
pub(super) fn engine(arguments: &[&str]) -> Vec<String> {
    let inside = |name: &str| format!("{INSIDE}/{name}");
    loaded(&inside(LOADER), INSIDE, &inside("engine.so"), arguments)
}

/// `path` is where the loader looks for libraries.
fn loaded(loader: &str, path: &str, engine: &str, arguments: &[&str]) -> Vec<String> {
    let words = [loader, "--library-path", path, engine];
    words.iter().chain(arguments).map(|word| (*word).to_owned()).collect()
}

/// The same where a loader finds nothing of the image's.
pub(super) fn secluded(arguments: &[&str]) -> SecludedCommand {
    let back = BACK.to_string();
    let argv = loaded("/ld.so", "/", "/engine.so", &[&["--root", &back], arguments].concat());
    SecludedCommand { root: INSIDE.into(), argv, back: BACK }
}

/// This process, which has loaded the engine and what that needs.
pub(super) struct Own(Vec<Mapping>);

impl Own {
    /// As it is now.
    pub(super) fn read() -> Result<Self> {
        Ok(Self(maps::parse(&crate::proc::own("maps")?)?))
    }

    /// Mounts, ids, streams. The same at a launch and at a restart.
    pub(super) fn needs(&self, host: &Host<'_>) -> Result<Needs> {
        let libraries = libraries(&self.0)?;
        let mut binds: Vec<Bind> = libraries.iter().map(|(name, path)| bind(path, name)).collect();
        binds.push(bind(&host.context().library, "engine.so"));
        Ok(Needs {
            binds,
            directories: vec![Directory { path: WORK.into(), mode: 0o1777, tmpfs: Some(WORK_SIZE) }],
            id_map: IdMap::Keep,
            first_pid: Some(FIRST_PID),
            // One tree is saved; a daemon would leave it.
            subreaper: true,
            // Every other stream ends outside of what is saved.
            stdio: vec![StdioKind::File],
            ..Needs::default()
        })
    }

    /// The beginning of a restart's command, with the host's names: it can be started before the container's root is there,
    /// and before it is known what is to come back. `None` where the host's loader would bring more along.
    pub(super) fn waiting(&self) -> Option<WaitingCommand> {
        if Path::new(PRELOADED).exists() {
            return None;
        }
        let mut libraries = libraries(&self.0).ok()?;
        let loader = libraries.remove(LOADER)?;
        let found = libraries.values().filter_map(|path| path.parent());
        let mut directories: Vec<&str> = found.map(Path::to_str).collect::<Option<_>>()?;
        directories.dedup();
        // The loader would take these for separators and variables.
        if directories.iter().any(|directory| directory.contains([':', ';', '$'])) {
            return None;
        }
        let (loader, engine) = (loader.to_str()?, file_at(&self.0, (file_at as *const ()).addr() as u64)?);
        let talk = TALK.to_string();
        let argv = loaded(loader, &directories.join(":"), engine, &["restore", "--talk", &talk]);
        Some(WaitingCommand { argv, talk: TALK, env: environment(), identity: Identity::Capable })
    }

    /// The whole of it, for a restart of the image in `directory` with these words.
    pub(super) fn early(&self, words: &[&str], directory: &Path) -> Option<EarlyCommand> {
        let WaitingCommand { mut argv, talk, .. } = self.waiting()?;
        let ahead = ["--ahead", directory.to_str()?];
        argv.extend(words.iter().chain(&ahead).map(|word| (*word).to_owned()));
        Some(EarlyCommand { argv, talk })
    }
}

/// The file that is mapped where this address is. `None` where it has no name any more.
fn file_at(mappings: &[Mapping], address: u64) -> Option<&str> {
    let there = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&address))?;
    Some(there.name.as_str()).filter(|name| name.starts_with('/') && !there.deleted())
}

/// The engine as a helper of init's.
pub(super) fn helper(name: &str, arguments: &[&str]) -> Helper {
    Helper {
        name: name.to_owned(),
        argv: engine(arguments),
        secluded: Some(secluded(arguments)),
        env: environment(),
        identity: Identity::Capable,
        ..Helper::default()
    }
}

/// Nothing of the caller's environment reaches the engine.
pub(super) fn environment() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn bind(source: &Path, name: &str) -> Bind {
    Bind { source: source.to_owned(), target: Path::new(INSIDE).join(name), writable: false }
}

/// The loader and the libraries with which this very process runs, by the names under which they are shown inside.
fn libraries(mappings: &[Mapping]) -> Result<BTreeMap<&'static str, &Path>> {
    let mut found = BTreeMap::new();
    for path in mappings.iter().map(|mapping| Path::new(&mapping.name)).filter(|path| path.is_absolute()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with("ld-linux") || (name.starts_with("ld-2.") && name.ends_with(".so")) {
            found.insert(LOADER, path);
        } else if let Some(name) = LIBRARIES.iter().find(|l| **l == name || old_name(name, l)) {
            found.insert(name, path);
        }
    }
    for needed in [LOADER, "libc.so.6"] {
        if !found.contains_key(needed) {
            return Err(BackendError::new(kind::UNUSABLE, "the native engine cannot be shown inside")
                .because(format!("this process has no {needed} of the GNU C library"))
                .help("take a stasis that was built for the GNU C library, or another backend"));
        }
    }
    Ok(found)
}

/// Before glibc 2.34 the files had their version in the name: `libc-2.31.so` is libc.so.6.
fn old_name(file: &str, library: &str) -> bool {
    let stem = library.split(".so").next().unwrap_or(library);
    file.strip_prefix(stem).is_some_and(|rest| rest.starts_with("-2.") && rest.ends_with(".so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0-55d1 r--p 00000000 fe:00 11 /usr/bin/stasis
7f00-7f01 r-xp 00000000 fe:00 12 /lib/x86_64-linux-gnu/libc.so.6
7f02-7f03 r-xp 00000000 fe:00 13 /lib/x86_64-linux-gnu/libgcc_s.so.1
7f04-7f05 r-xp 00000000 fe:00 14 /lib64/ld-linux-x86-64.so.2
7f06-7f07 rw-p 00000000 00:00 0
7f08-7f09 r-xp 00000000 00:00 0 [vdso]
";

    fn told(maps: &str) -> String {
        match libraries(&maps::parse(maps).unwrap()) {
            Ok(found) => found.iter().map(|(name, path)| format!("{name}: {}\n", path.display())).collect(),
            Err(error) => format!("{error}"),
        }
    }

    #[test]
    fn the_libraries_of_this_process_are_shown_inside() {
        insta::assert_snapshot!(told(MAPS), @"
        ld.so: /lib64/ld-linux-x86-64.so.2
        libc.so.6: /lib/x86_64-linux-gnu/libc.so.6
        libgcc_s.so.1: /lib/x86_64-linux-gnu/libgcc_s.so.1
        ");
        insta::assert_snapshot!(told(&MAPS.replace("libc.so.6", "libc-2.31.so")), @"
        ld.so: /lib64/ld-linux-x86-64.so.2
        libc.so.6: /lib/x86_64-linux-gnu/libc-2.31.so
        libgcc_s.so.1: /lib/x86_64-linux-gnu/libgcc_s.so.1
        ");
        insta::assert_snapshot!(told(""), @"the native engine cannot be shown inside: this process has no ld.so of the GNU C library");
    }

    #[test]
    fn this_process_has_them() {
        let own = Own::read().unwrap();
        for path in libraries(&own.0).unwrap().values() {
            assert!(path.is_file(), "{}", path.display());
        }
    }

    #[test]
    fn a_restart_begins_as_what_waits_for_it() {
        let own = Own::read().unwrap();
        let waiting = own.waiting().unwrap();
        let program = std::env::current_exe().unwrap();
        assert_eq!(waiting.argv.get(3).map(String::as_str), program.to_str());
        let early = own.early(&["--dir", "/d"], Path::new("/g")).unwrap();
        let rest = early.argv.strip_prefix(&waiting.argv[..]).unwrap();
        assert_eq!((rest.join(" ").as_str(), early.talk), ("--dir /d --ahead /g", waiting.talk));
    }

    #[test]
    fn a_file_is_found_by_what_is_mapped_of_it() {
        let mappings = maps::parse(&MAPS.replace("libgcc_s.so.1", "libgcc_s.so.1 (deleted)")).unwrap();
        let at = |address| file_at(&mappings, address);
        assert_eq!(at(0x7f00), Some("/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!([at(0x7f01), at(0x7f02), at(0x7f06), at(0x7f08)], [None; 4]);
    }
}
