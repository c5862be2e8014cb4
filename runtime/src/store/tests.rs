use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::testing::{Fixture, holder, message};
use super::*;

fn name(text: &str) -> CheckpointName {
    text.parse().unwrap()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn create_open_delete() {
    let f = Fixture::new();
    assert!(!f.store.exists(&name("web")).unwrap());
    insta::assert_snapshot!(message(&f, f.store.checkpoint(&name("web"))), @r#"checkpoint "web" does not exist"#);
    f.checkpoint("web");
    f.checkpoint("db");
    insta::assert_snapshot!(message(&f, f.store.create(&name("web"), None)), @r#"Checkpoint "web" already exists."#);
    let missing = f.store.checkpoint(&name("cache")).unwrap_err();
    insta::assert_snapshot!(f.plain(&missing), @r#"checkpoint "cache" does not exist (there are: db, web)"#);
    insta::assert_snapshot!(missing.help().unwrap(), @"create it: stasis checkpoint create cache");
    let path = f.store.checkpoint(&name("web")).unwrap().path();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);

    f.store.delete(&name("web")).unwrap();
    assert!(!path.exists());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    insta::assert_snapshot!(message(&f, f.store.delete(&name("web"))), @r#"checkpoint "web" does not exist (there are: db)"#);
    f.checkpoint("web");
}

#[test]
fn no_deletion_while_in_use() {
    let f = Fixture::new();
    let run = f.running("web");
    run.save(&[("a", "x")]);
    insta::assert_snapshot!(message(&f, f.store.delete(&name("web"))), @r#"checkpoint "web" is in use by instance "web" (process 42, since 2026-01-02T03:04:05Z)"#);
    assert_eq!(run.checkpoint.generations().unwrap(), [1]);
    drop(run.live);
    f.store.delete(&name("web")).unwrap();
    // Whoever opened it before finds out when it matters.
    insta::assert_snapshot!(message(&f, run.checkpoint.lock_live(&holder("late"))), @r#"checkpoint "web" does not exist"#);
}

#[test]
fn roots_that_are_refused() {
    let f = Fixture::new();
    let root = f.temp.path().join("root");
    let open = || message(&f, Store::open(&root));
    fs::create_dir(&root).unwrap();
    mode(&root, 0o777);
    insta::assert_snapshot!(open(), @"/tmp/root is not safe to use: others can write to it (mode 0777)");
    mode(&root, 0o755);
    Store::open(&root).unwrap();
    mode(&root.join("checkpoints"), 0o770);
    insta::assert_snapshot!(open(), @"/tmp/root/checkpoints is not safe to use: others can write to it (mode 0770)");
    fs::remove_dir(root.join("checkpoints")).unwrap();
    symlink(f.store.path(), root.join("checkpoints")).unwrap();
    insta::assert_snapshot!(open(), @"/tmp/root/checkpoints is not safe to use: it is a symbolic link, and links are not followed");
    fs::remove_file(root.join("checkpoints")).unwrap();
    fs::remove_dir(&root).unwrap();
    symlink(f.store.path(), &root).unwrap();
    insta::assert_snapshot!(open(), @"/tmp/root is not safe to use: it is a symbolic link, and links are not followed");
    fs::remove_file(&root).unwrap();
    symlink("/nowhere/at/all", &root).unwrap();
    insta::assert_snapshot!(open(), @"/tmp/root is not safe to use: it is a symbolic link, and links are not followed");
    fs::remove_file(&root).unwrap();
    fs::write(&root, "").unwrap();
    insta::assert_snapshot!(open(), @"/tmp/root is not safe to use: it is not a directory");
    if nix::unistd::geteuid().is_root() {
        fs::remove_file(&root).unwrap();
        fs::create_dir(&root).unwrap();
        std::os::unix::fs::chown(&root, Some(4711), None).unwrap();
        insta::assert_snapshot!(open(), @"/tmp/root is not safe to use: it belongs to uid 4711, and you are uid 0");
    }
}

#[test]
fn the_root_is_made_with_its_parents() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("a/b/c");
    let store = Store::open(&root).unwrap();
    assert_eq!(store.path(), root);
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_listing_tells_damage_beside_the_good() {
    let f = Fixture::new();
    let run = f.running("good");
    run.save(&[("a", "12345")]);
    let checkpoints = f.store.path().join("checkpoints");
    fs::write(f.checkpoint("garbage").path().join("checkpoint.json"), "{").unwrap();
    symlink(run.checkpoint.path(), checkpoints.join("link")).unwrap();
    fs::write(checkpoints.join("file"), "").unwrap();
    fs::create_dir(checkpoints.join("odd name")).unwrap();
    fs::create_dir(checkpoints.join("shared")).unwrap();
    mode(&checkpoints.join("shared"), 0o777);

    let listed = f.store.list().unwrap();
    let lines: Vec<String> = listed
        .iter()
        .map(|entry| match &entry.summary {
            Ok(s) => format!(
                "{}: {:?} {} bytes, used by {}",
                entry.name,
                s.generations,
                s.latest.as_ref().unwrap().bytes,
                s.holder.as_ref().unwrap()
            ),
            Err(error) => format!("{}: {}", entry.name, f.plain(error)),
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
file: /tmp/store/checkpoints/file is not safe to use: it is not a directory
garbage: /tmp/store/checkpoints/garbage/checkpoint.json is damaged: EOF while parsing an object at line 1 column 1
good: [1] 5 bytes, used by instance "good" (process 42, since 2026-01-02T03:04:05Z)
link: /tmp/store/checkpoints/link is not safe to use: it is a symbolic link, and links are not followed
odd name: /tmp/store/checkpoints/odd name is damaged: checkpoint name "odd name" is not allowed: it contains ' ', and only letters, digits, ".", "_" and "-" may be in it
shared: /tmp/store/checkpoints/shared is not safe to use: others can write to it (mode 0777)
"#);

    insta::assert_snapshot!(message(&f, f.store.delete(&name("link"))), @"/tmp/store/checkpoints/link is not safe to use: it is a symbolic link, and links are not followed");
    f.store.delete(&name("garbage")).unwrap();
    assert!(run.checkpoint.generation(None).is_ok());
}

#[test]
fn leftovers_of_crashes_vanish() {
    let f = Fixture::new();
    let checkpoints = f.store.path().join("checkpoints");
    let leave = || {
        fs::create_dir_all(checkpoints.join(".deleted-web-1/generations/000001")).unwrap();
        fs::write(checkpoints.join(".deleted-web-1/generations/000001/a"), "x").unwrap();
        fs::create_dir(checkpoints.join(".new-web")).unwrap();
    };
    leave();
    assert!(f.store.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(&checkpoints).unwrap().count(), 0);
    leave();
    let busy = ShortLock::take(&f.store.root).unwrap();
    Store::open(f.store.path()).unwrap();
    assert!(checkpoints.join(".new-web").exists(), "a creation in progress is left alone");
    assert!(!checkpoints.join(".deleted-web-1").exists());
    drop(busy);
    f.checkpoint("web");
    assert_eq!(fs::read_dir(&checkpoints).unwrap().count(), 1);
}
