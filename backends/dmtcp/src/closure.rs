//! The libraries that DMTCP's files ask for and that an image may lack: libatomic, libstdc++, libgcc_s and whatever
//! else. glibc's own are never among them: a process can have one glibc only, the image's.

use crate::discover::Installation;
use crate::elf::{self, Elf, ElfError, Needs, OpenError};
use crate::inside;
use crate::ldcache::LdCache;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

/// Where libraries are that the loader's cache does not know.
const DIRS: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
/// Libraries that come with glibc.
const GLIBC: [&str; 10] = [
    "libc.so.",
    "libm.so.",
    "libmvec.so.",
    "libpthread.so.",
    "libdl.so.",
    "librt.so.",
    "libutil.so.",
    "libresolv.so.",
    "libanl.so.",
    "linux-vdso.so.",
];
/// More than any installation needs.
const MOST: usize = 256;

/// The name by which each library is asked for, and the file of the host that it is.
pub(crate) fn closure(installation: &Installation) -> Result<Vec<(String, PathBuf)>, String> {
    let extra = installation.optional.iter().chain(&installation.plugins);
    let own = installation.required().into_iter().map(|path| (path, true));
    walk(&LdCache::of_host(), own.chain(extra.map(|path| (path.as_path(), false))))
}

/// Those of [`closure`] that have to be delivered into an image, because it has none of that name or one that is too
/// old; and what DMTCP together with them asks of the image. The image's own copy is left in place where it will do:
/// it fits the image's programs, and ours may want a newer glibc.
pub(crate) fn lacking(
    installation: &Installation,
    image_root: &Path,
) -> Result<(Vec<(String, PathBuf)>, Needs), String> {
    let mut own = Needs::default();
    for file in installation.required() {
        match elf::of(file) {
            Ok(elf) => own.add(&elf),
            // A wrapper script in the place of a program.
            Err(OpenError::Elf(ElfError::NotElf)) if file != installation.libdmtcp => {}
            Err(error) => return Err(format!("{}: {error}", file.display())),
        }
    }
    select(own, closure(installation)?, image_root)
}

fn select(
    mut needs: Needs,
    libraries: Vec<(String, PathBuf)>,
    image_root: &Path,
) -> Result<(Vec<(String, PathBuf)>, Needs), String> {
    let mut open: Vec<_> =
        libraries.into_iter().map(|(name, path)| (inside::library(image_root, &name), name, path)).collect();
    let mut delivered = Vec::new();
    // A library that is delivered may ask more of another one than DMTCP itself does.
    while let Some(at) = open.iter().position(|(has, name, _)| !will_do(has.as_ref(), &needs, name)) {
        let (_, name, path) = open.swap_remove(at);
        needs.add(&elf::of(&path).map_err(|error| format!("{}: {error}", path.display()))?);
        delivered.push((name, path));
    }
    // What stays the image's own is not whole without what it asks for in its turn.
    needs
        .libraries
        .extend(open.into_iter().flat_map(|(has, ..)| has.map(|elf| elf.needed).unwrap_or_default()));
    delivered.sort();
    Ok((delivered, needs))
}

fn will_do(has: Option<&Elf>, needs: &Needs, name: &str) -> bool {
    let needed = needs.versions.get(name);
    has.is_some_and(|elf| needed.is_none_or(|needed| needed.is_subset(&elf.versions_defined)))
}

/// From files, each with whether it has to work, to the libraries that they ask for.
fn walk<'a>(
    cache: &LdCache,
    files: impl Iterator<Item = (&'a Path, bool)>,
) -> Result<Vec<(String, PathBuf)>, String> {
    let mut todo: VecDeque<(PathBuf, bool)> = files.map(|(path, vital)| (path.to_owned(), vital)).collect();
    let own: Vec<_> = todo.iter().filter_map(|(path, _)| Some(path.file_name()?.to_owned())).collect();
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    while let Some((file, vital)) = todo.pop_front() {
        let needed = match elf::of(&file) {
            Ok(elf) => elf.needed,
            Err(OpenError::Elf(ElfError::NotElf)) => continue,
            Err(_) if !vital => continue,
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        for name in needed {
            if is_glibc(&name) || own.iter().any(|own| *own == *name) || found.contains_key(&name) {
                continue;
            }
            match locate(cache, &name) {
                Some(path) if found.len() < MOST => {
                    todo.push_back((path.clone(), vital));
                    found.insert(name, path);
                }
                None if vital => {
                    let file = file.display();
                    return Err(format!("{name}, which {file} needs, is not found on this host"));
                }
                _ => {}
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether a library comes with glibc.
pub(crate) fn is_glibc(name: &str) -> bool {
    name.starts_with("ld-linux") || GLIBC.iter().any(|prefix| name.starts_with(prefix))
}

/// The real file of a library of this architecture.
fn locate(cache: &LdCache, name: &str) -> Option<PathBuf> {
    if name.is_empty() || name == "." || name == ".." {
        return None;
    }
    // A name with a slash is a path of the machine on which DMTCP was built.
    let paths: Vec<PathBuf> = match name.contains('/') {
        true => Vec::new(),
        false => {
            cache.find(name).iter().cloned().chain(DIRS.iter().map(|dir| Path::new(dir).join(name))).collect()
        }
    };
    let real = paths.into_iter().filter_map(|path| path.canonicalize().ok());
    real.into_iter().find(|path| path.is_file() && elf::of(path).is_ok_and(|elf| elf.is_native()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that asks for one library beside glibc's.
    fn program(directory: &Path) -> PathBuf {
        let (source, made) = (directory.join("program.c"), directory.join("program"));
        let text = "void *_Unwind_FindEnclosingFunction(void *);\n\
                    int main(void) { return _Unwind_FindEnclosingFunction(main) == 0; }\n";
        std::fs::write(&source, text).unwrap();
        let mut cc = std::process::Command::new("cc");
        cc.arg("-o").arg(&made).arg(&source).arg("-lgcc_s");
        assert!(cc.status().unwrap().success());
        made
    }

    #[test]
    fn finds_what_a_program_needs_but_never_glibc() {
        let directory = tempfile::tempdir().unwrap();
        let own = program(directory.path());
        let found = walk(&LdCache::of_host(), [(own.as_path(), true)].into_iter()).unwrap();
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["libgcc_s.so.1"]);
        assert!(found[0].1.is_absolute() && !found[0].1.is_symlink());
        // Without the cache too.
        assert_eq!(walk(&LdCache::default(), [(own.as_path(), true)].into_iter()).unwrap().len(), 1);
    }

    #[test]
    fn a_missing_file_counts_only_where_it_is_vital() {
        let missing = Path::new("/no/such/file");
        let told = walk(&LdCache::default(), [(missing, true)].into_iter()).unwrap_err();
        insta::assert_snapshot!(told, @"/no/such/file: cannot be read: No such file or directory (os error 2)");
        assert_eq!(walk(&LdCache::default(), [(missing, false)].into_iter()), Ok(Vec::new()));
    }

    #[test]
    fn hostile_names_lead_nowhere() {
        for name in ["", ".", "..", "../libc.so.6", "/etc/passwd", "passwd", "a\0b"] {
            assert_eq!(locate(&LdCache::of_host(), name), None, "{name:?}");
        }
    }

    #[test]
    fn an_image_gets_what_it_lacks_only() {
        let directory = tempfile::tempdir().unwrap();
        let own = program(directory.path());
        let host = walk(&LdCache::of_host(), [(own.as_path(), true)].into_iter()).unwrap();
        let mut needs = Needs::default();
        needs.add(&elf::of(&own).unwrap());
        let of = |root: &Path| select(needs.clone(), host.clone(), root).unwrap();
        let image = tempfile::tempdir().unwrap();
        assert_eq!(of(image.path()).0, host);
        std::fs::create_dir_all(image.path().join("usr/lib64")).unwrap();
        let file = image.path().join("usr/lib64/libgcc_s.so.1");
        // One that defines no version at all is too old; what the delivered one asks for counts then.
        std::fs::write(&file, crate::preload::SHIM).unwrap();
        let (delivered, with_host) = of(image.path());
        assert_eq!(delivered, host);
        std::fs::copy(&host[0].1, &file).unwrap();
        let (delivered, without) = of(image.path());
        assert_eq!((delivered, &without), (Vec::new(), &needs));
        let hosts = elf::of(&host[0].1).unwrap();
        assert!(hosts.versions_needed["libc.so.6"].is_subset(&with_host.versions["libc.so.6"]));
    }
}
