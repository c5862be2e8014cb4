//! What a container needs so that the engine can run in it: the library itself and the C library that it was built
//! for, shown at a place of ours. The container's own libraries play no part.

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
    loaded(&inside("ld.so"), INSIDE, &inside("engine.so"), arguments)
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
pub(super) struct Own {
    maps: String,
}

impl Own {
    /// As it is now.
    pub(super) fn read() -> Result<Self> {
        Ok(Self { maps: crate::proc::own("maps")? })
    }

    /// Mounts, ids, streams. The same at a launch and at a restart.
    pub(super) fn needs(&self, host: &Host<'_>) -> Result<Needs> {
        let mut binds = libraries(&self.maps)?;
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
        let binds = libraries(&self.maps).ok()?;
        let source = |name: &str| {
            let shown = binds.iter().find(|bind| bind.target == Path::new(INSIDE).join(name))?;
            Some(shown.source.as_path())
        };
        let libraries = LIBRARIES.iter().filter_map(|name| source(name)?.parent());
        let mut directories: Vec<&str> = libraries.map(Path::to_str).collect::<Option<_>>()?;
        directories.dedup();
        // The loader would take these for separators and variables.
        if directories.iter().any(|directory| directory.contains([':', ';', '$'])) {
            return None;
        }
        let (loader, engine) =
            (source("ld.so")?.to_str()?, holder(&self.maps, (holder as *const ()).addr())?);
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
fn holder(maps: &str, address: usize) -> Option<&str> {
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let line = maps.lines().find(|line| {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let range = range.and_then(|(from, to)| Some(hex(from)?..hex(to)?));
        range.is_some_and(|range| range.contains(&address))
    })?;
    let path = line.get(line.find('/')?..)?;
    Path::new(path).exists().then_some(path)
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

/// The loader and the libraries with which this very process runs.
fn libraries(maps: &str) -> Result<Vec<Bind>> {
    let mut found: BTreeMap<&str, &Path> = BTreeMap::new();
    for line in maps.lines() {
        let Some(path) = line.find('/').and_then(|at| line.get(at..)) else { continue };
        let Some(name) = Path::new(path).file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with("ld-linux") || (name.starts_with("ld-2.") && name.ends_with(".so")) {
            found.insert("ld.so", Path::new(path));
        } else if let Some(name) = LIBRARIES.iter().find(|l| **l == name || old_name(name, l)) {
            found.insert(name, Path::new(path));
        }
    }
    for needed in ["ld.so", "libc.so.6"] {
        if !found.contains_key(needed) {
            return Err(BackendError::new(kind::UNUSABLE, "the native engine cannot be shown inside")
                .because(format!("this process has no {needed} of the GNU C library"))
                .help("take a stasis that was built for the GNU C library, or another backend"));
        }
    }
    Ok(found.iter().map(|(name, path)| bind(path, name)).collect())
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
        match libraries(maps) {
            Ok(binds) => {
                binds.iter().map(|b| format!("{} at {}\n", b.source.display(), b.target.display())).collect()
            }
            Err(error) => format!("{error}"),
        }
    }

    #[test]
    fn the_libraries_of_this_process_are_shown_inside() {
        insta::assert_snapshot!(told(MAPS), @"
        /lib64/ld-linux-x86-64.so.2 at /.stasis/native/ld.so
        /lib/x86_64-linux-gnu/libc.so.6 at /.stasis/native/libc.so.6
        /lib/x86_64-linux-gnu/libgcc_s.so.1 at /.stasis/native/libgcc_s.so.1
        ");
        insta::assert_snapshot!(told(&MAPS.replace("libc.so.6", "libc-2.31.so")), @"
        /lib64/ld-linux-x86-64.so.2 at /.stasis/native/ld.so
        /lib/x86_64-linux-gnu/libc-2.31.so at /.stasis/native/libc.so.6
        /lib/x86_64-linux-gnu/libgcc_s.so.1 at /.stasis/native/libgcc_s.so.1
        ");
        insta::assert_snapshot!(told(""), @"the native engine cannot be shown inside: this process has no ld.so of the GNU C library");
    }

    #[test]
    fn this_process_has_them() {
        let own = Own::read().unwrap();
        for bind in libraries(&own.maps).unwrap() {
            assert!(bind.source.is_file(), "{}", bind.source.display());
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
        assert_eq!(
            holder(MAPS, 0x7f00),
            Some("/lib/x86_64-linux-gnu/libc.so.6").filter(|p| Path::new(p).exists())
        );
        assert_eq!((holder(MAPS, 0x7f06), holder(MAPS, 0x7f08), holder(MAPS, 1)), (None, None, None));
    }
}
