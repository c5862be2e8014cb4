//! The same image is the same, every other one is not.

use super::super::tests::image_dir;
use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

fn digest(dir: &Path) -> ContentDigest {
    let image = Image::open(dir.to_str().unwrap()).unwrap();
    content_digest(&image, &AtomicBool::new(false)).unwrap()
}

/// Copies with other inodes and times, in another order.
fn copy(from: &Path, to: &Path) {
    let mut names: Vec<_> = fs::read_dir(from).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names.iter().rev() {
        let (from, to) = (from.join(name), to.join(name));
        if from.is_symlink() {
            symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

#[test]
fn a_copy_is_the_same_image_and_the_fingerprint_does_not_know() {
    let (dir, other) = (image_dir(), tempfile::tempdir().unwrap());
    symlink("bin/sh", dir.path().join("link")).unwrap();
    copy(dir.path(), other.path());
    let (a, b) = (digest(dir.path()), digest(other.path()));
    assert_eq!(a, b);
    assert!(a.digest.starts_with("blake3:") && a.entries > 8 && a.bytes > 0, "{a:?}");
    let open = |dir: &Path| Image::open(dir.to_str().unwrap()).unwrap();
    let first = fingerprint(&open(dir.path())).unwrap();
    assert_eq!(first, fingerprint(&open(dir.path())).unwrap());
    assert_ne!(first, fingerprint(&open(other.path())).unwrap());
}

#[test]
fn every_change_counts_but_those_in_running_places() {
    let dir = image_dir();
    let at = |name: &str| dir.path().join(name);
    let mut seen = vec![digest(dir.path()).digest];
    let changes: Vec<Box<dyn Fn()>> = vec![
        Box::new(|| fs::write(at("etc/passwd"), "x").unwrap()),
        Box::new(|| fs::write(at("etc/new"), "").unwrap()),
        Box::new(|| fs::rename(at("etc/new"), at("etc/newer")).unwrap()),
        Box::new(|| fs::set_permissions(at("bin/sh"), fs::Permissions::from_mode(0o4755)).unwrap()),
        Box::new(|| symlink("a", at("link")).unwrap()),
        Box::new(|| {
            fs::remove_file(at("link")).unwrap();
            symlink("b", at("link")).unwrap();
        }),
        Box::new(|| fs::create_dir(at("usr/bin/tmp")).unwrap()),
        Box::new(|| fs::write(at("usr/bin/tmp/x"), "").unwrap()),
    ];
    for (index, change) in changes.iter().enumerate() {
        change();
        let now = digest(dir.path()).digest;
        assert!(!seen.contains(&now), "change {index} was not seen");
        seen.push(now);
    }
    fs::write(at("tmp/x"), "anything").unwrap();
    assert_eq!(digest(dir.path()).digest, *seen.last().unwrap());
}

#[test]
fn the_fingerprint_sees_what_a_package_manager_does() {
    let dir = image_dir();
    let print = || fingerprint(&Image::open(dir.path().to_str().unwrap()).unwrap()).unwrap();
    let before = print();
    fs::write(dir.path().join("usr/bin/tool"), "").unwrap();
    let between = print();
    assert_ne!(before, between);
    fs::write(dir.path().join(".singularity.d/env/90-environment.sh"), "export A=2222\n").unwrap();
    assert_ne!(between, print());
}

#[test]
fn pipes_and_links_neither_block_nor_lead_out() {
    let dir = image_dir();
    nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
    symlink("/", dir.path().join("host")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let content = digest(dir.path());
    assert_eq!(content.unreadable_count, 0);
    assert!(content.entries < 30, "{content:?}");
}

#[test]
fn a_cancelled_digest_is_none() {
    let dir = image_dir();
    let image = Image::open(dir.path().to_str().unwrap()).unwrap();
    let error = content_digest(&image, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, IdentityError::Cancelled { .. }), "{error}");
}

#[test]
fn what_cannot_be_read_is_noted_and_still_counts() {
    let dir = image_dir();
    let closed = dir.path().join("closed");
    fs::write(&closed, "secret").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let first = digest(dir.path());
    if !nix::unistd::Uid::effective().is_root() {
        assert_eq!(first.unreadable, [PathBuf::from("closed")]);
    }
    fs::remove_file(&closed).unwrap();
    assert_ne!(first.digest, digest(dir.path()).digest);
}
