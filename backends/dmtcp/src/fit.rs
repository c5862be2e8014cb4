//! Whether an image has all of glibc that DMTCP asks of it. glibc is the one thing that is never delivered: a process
//! has one only, the image's.

use crate::closure::is_glibc;
use crate::elf::{Elf, Needs};
use crate::inside;
use std::path::Path;

/// What is missing in the image, as the rest of a sentence about the one that needs it, and what to do.
pub(crate) fn unmet(root: &Path, libc: &Elf, needs: &Needs) -> Option<(String, &'static str)> {
    if let Some(why) = needs.unmet_by(libc) {
        return Some((
            why,
            "let the administrator install a DMTCP built against an older glibc, and name it in `prefixes`",
        ));
    }
    let mut missing: Vec<&str> =
        needs.interpreters.iter().map(String::as_str).filter(|path| !inside::is_there(root, path)).collect();
    for name in needs.libraries.iter().filter(|name| is_glibc(name)) {
        let Some(part) = inside::library(root, name) else {
            // The loader is both.
            if !missing.iter().any(|path| path.ends_with(&format!("/{name}"))) {
                missing.push(name);
            }
            continue;
        };
        let mut wanted = needs.versions.get(name).into_iter().flatten();
        if let Some(version) = wanted.find(|version| !part.versions_defined.contains(*version)) {
            return Some((format!("needs {version}, which the image's {name} lacks"), NEWER));
        }
    }
    let all = missing.join(", ");
    (!missing.is_empty()).then(|| (format!("needs {all} of glibc, which the image does not have"), WHOLE))
}

const NEWER: &str = "take an image whose parts of glibc are of one version, or another backend";
const WHOLE: &str = "put the whole glibc into the image (Debian: libc6), or take another backend";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf;
    use std::fs;

    #[test]
    fn parts_that_an_image_lacks_are_named() {
        let image = tempfile::tempdir().unwrap();
        let own = elf::of(&std::env::current_exe().unwrap()).unwrap();
        let mut needs = Needs::default();
        needs.add(&own);
        let put = |name: &str, from: &Path| {
            let to = image.path().join(name.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        };
        let dirs = ["/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib/aarch64-linux-gnu", "/usr/lib"];
        let host =
            |name: &str| dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists()).unwrap();
        let loader = own.interpreter.clone().unwrap();
        let told = || unmet(image.path(), &inside::libc(image.path()).unwrap(), &needs);
        put("usr/lib/libc.so.6", &host("libc.so.6"));
        let (why, help) = told().unwrap();
        assert!(why.starts_with(&format!("needs {loader}")) && help == WHOLE, "{why}");
        put(&loader, Path::new(&loader));
        needs.libraries.insert("libm.so.6".to_owned());
        let told = || unmet(image.path(), &inside::libc(image.path()).unwrap(), &needs);
        assert_eq!(told().unwrap().0, "needs libm.so.6 of glibc, which the image does not have");
        put("usr/lib/libm.so.6", &host("libm.so.6"));
        assert_eq!(told(), None);
        needs.versions.entry("libm.so.6".to_owned()).or_default().insert("GLIBC_2.2.5x".to_owned());
        let told = unmet(image.path(), &inside::libc(image.path()).unwrap(), &needs).unwrap();
        assert_eq!(told, ("needs GLIBC_2.2.5x, which the image's libm.so.6 lacks".to_owned(), NEWER));
    }
}
