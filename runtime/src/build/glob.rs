//! Paths with `*`, `?` and `[...]`, sought below a root.

use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;

use crate::image::tree::{Tree, list};
use std::io;
use std::os::fd::AsFd as _;

/// More than this many nobody means.
const MOST: usize = 100_000;

/// What there is of `pattern`, sorted; it starts at `base`, which is taken as it is. A path without any of these
/// characters stands for itself, if it is there.
///
/// # Errors
/// What is there cannot be reached, or there are more than anybody means.
pub(super) fn expand(tree: &Tree, base: &Path, pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![base.to_owned()];
    for part in pattern.components() {
        let part = match part {
            Component::Normal(part) => part.to_string_lossy(),
            Component::ParentDir => "..".into(),
            Component::RootDir => {
                found = vec![PathBuf::from("/")];
                continue;
            }
            Component::CurDir | Component::Prefix(_) => continue,
        };
        if !part.contains(['*', '?', '[']) {
            found.iter_mut().for_each(|path| path.push(&*part));
            continue;
        }
        let mut next = Vec::new();
        for dir in &found {
            let fd = match tree.open_at(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                Err(e) if is_nothing(&e) => continue,
                other => other?,
            };
            for name in list(fd.as_fd())? {
                let text = name.to_string_lossy();
                let hidden = text.starts_with('.') && !part.starts_with('.');
                if !hidden && matches(part.as_bytes(), text.as_bytes()) {
                    next.push(dir.join(&name));
                }
                if next.len() > MOST {
                    return Err(io::Error::other(format!("the pattern stands for more than {MOST} names")));
                }
            }
        }
        found = next;
    }
    let mut there = Vec::with_capacity(found.len());
    for path in found {
        match tree.open_at(&path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(_) => there.push(path),
            Err(e) if is_nothing(&e) => {}
            Err(e) => return Err(e),
        }
    }
    there.sort();
    Ok(there)
}

fn is_nothing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a name is one of a pattern. Runs through both once, with one place to go back to.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        match one(&pattern[p..], name[n]) {
            Step::Star => {
                back = Some((p + 1, n));
                p += 1;
                continue;
            }
            Step::Yes(length) => {
                p += length;
                n += 1;
                continue;
            }
            Step::No => {}
        }
        let Some((star, at)) = back else { return false };
        back = Some((star, at + 1));
        (p, n) = (star, at + 1);
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

enum Step {
    Star,
    /// The byte fits; so many of the pattern are used up.
    Yes(usize),
    No,
}

fn one(pattern: &[u8], byte: u8) -> Step {
    match pattern {
        [b'*', ..] => Step::Star,
        [b'?', ..] => Step::Yes(1),
        [b'[', rest @ ..] => {
            let (not, set) = match rest {
                [b'!' | b'^', rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            // A bracket in the first place is one of the set.
            let Some(end) = set.iter().skip(1).position(|b| *b == b']').map(|at| at + 1) else {
                return if byte == b'[' { Step::Yes(1) } else { Step::No };
            };
            if in_set(&set[..end], byte) == not {
                return Step::No;
            }
            Step::Yes(pattern.len() - set.len() + end + 1)
        }
        [b'\\', escaped, ..] if *escaped == byte => Step::Yes(2),
        [plain, ..] if *plain == byte => Step::Yes(1),
        _ => Step::No,
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    let mut rest = set;
    while let [first, more @ ..] = rest {
        if let [b'-', last, after @ ..] = more {
            if (*first..=*last).contains(&byte) {
                return true;
            }
            rest = after;
        } else if *first == byte {
            return true;
        } else {
            rest = more;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let yes = |pattern: &str, name: &str| {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}")
        };
        let no = |pattern: &str, name: &str| {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}")
        };
        for (pattern, name) in [
            ("*", ""),
            ("*.py", "a.py"),
            ("a*b*c", "aXbYbZc"),
            ("?", "x"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]]", "]"),
            ("[", "["),
            ("a\\*", "a*"),
        ] {
            yes(pattern, name);
        }
        for (pattern, name) in [
            ("*.py", "a.pyc"),
            ("?", ""),
            ("?", "ab"),
            ("[a-c]", "d"),
            ("[!a-c]", "a"),
            ("a*b", "a"),
            ("", "a"),
        ] {
            no(pattern, name);
        }
        // Takes no time to speak of.
        no(&"*a".repeat(50), &"a".repeat(40));
        no(&format!("{}b", "a*".repeat(50)), &"a".repeat(1000));
    }

    #[test]
    fn paths_are_found_inside_only() {
        let top = tempfile::tempdir().unwrap();
        for file in ["a/1.py", "a/2.py", "a/.hidden.py", "b/3.py"] {
            let path = top.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink("/etc", top.path().join("c")).unwrap();
        let tree = Tree::open(top.path()).unwrap();
        let found = |pattern: &str| -> Vec<String> {
            expand(&tree, Path::new("/"), Path::new(pattern))
                .unwrap()
                .iter()
                .map(|p| p.display().to_string())
                .collect()
        };
        assert_eq!(found("/a/*.py"), ["/a/1.py", "/a/2.py"]);
        assert_eq!(found("/*/[23].py"), ["/a/2.py", "/b/3.py"]);
        assert_eq!(found("/a"), ["/a"]);
        assert_eq!(found("/c/*"), Vec::<String>::new());
        assert_eq!(found("/none"), Vec::<String>::new());
        assert_eq!(found("/a/../b/*.py"), ["/a/../b/3.py"]);
        assert_eq!(found("/../../a/1.py"), ["/../../a/1.py"], "which leads nowhere outside");
        std::fs::create_dir(top.path().join("run[1]")).unwrap();
        std::fs::write(top.path().join("run[1]/file"), "").unwrap();
        let below = |pattern: &str| expand(&tree, Path::new("/run[1]"), Path::new(pattern)).unwrap();
        assert_eq!(below("f*"), [Path::new("/run[1]/file")]);
        assert_eq!(below("../b/3.py"), [Path::new("/run[1]/../b/3.py")]);
    }
}
