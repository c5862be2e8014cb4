use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::store::testing::{
    Fixture, Running, backend, draft, holder, image, message, no_thread, with_tmpfs,
};
use crate::store::{Level, Store};

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Nothing of a failed attempt is left, and the next one works.
fn nothing_left(run: &Running, before: &[&str]) {
    assert_eq!(entries(&run.checkpoint.path().join("generations")), before);
    assert!(run.checkpoint.path().join(".latest.new").symlink_metadata().is_err());
}

#[test]
fn files_are_moved_hashed_and_described() {
    let f = Fixture::new();
    let run = f.running("web");
    let inode = fs::metadata(run.staging.path()).unwrap().ino();
    run.write(&[("image", "0123456789"), ("sub/dir/map", "x")]);
    fs::set_permissions(run.staging.path().join("image"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut told = Vec::new();
    let committed = run
        .checkpoint
        .commit(&run.live, &run.staging, None, None, draft("one"), &mut |done, all| told.push((done, all)))
        .unwrap();
    assert_eq!(told.first(), Some(&(0, 11)));
    assert_eq!(told.last(), Some(&(11, 11)));
    assert_eq!(committed.times.bytes, 11);

    let opened = run.checkpoint.generation(None).unwrap();
    assert_eq!(opened.manifest(), committed.generation.manifest());
    assert_eq!(opened.manifest().files[0].blake3, blake3::hash(b"0123456789").to_hex().as_str());
    assert_eq!(opened.manifest().files[1].path, "sub/dir/map");
    assert_eq!(opened.manifest().engine_state["key"], "value");
    opened.verify(Level::Full, &mut |_, _| {}).unwrap();
    let mode = |path: &str| fs::metadata(opened.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        [mode("image"), mode("manifest.json"), mode("sub"), mode("sub/dir")],
        [0o600, 0o600, 0o700, 0o700]
    );
    assert_eq!(fs::read_to_string(run.checkpoint.path().join("latest/image")).unwrap(), "0123456789");
    assert_eq!(entries(&run.staging.path()), ["sub"]);

    assert_eq!(run.save(&[("image", "next")]), 2);
    assert_eq!(fs::metadata(run.staging.path()).unwrap().ino(), inode);
    assert_eq!(fs::read_to_string(run.checkpoint.path().join("latest/image")).unwrap(), "next");
    assert_eq!(fs::read_to_string(opened.file("image").unwrap()).unwrap(), "0123456789");
}

#[test]
fn where_no_thread_can_be_had_the_same_is_done() {
    let f = Fixture::new();
    let run = f.running("web");
    run.write(&[("image", "0123456789"), ("sub/map", "x")]);
    let partial = run.checkpoint.generations_dir().unwrap().make_dir("000001.partial").unwrap();
    let found = choose(&run.staging, None).unwrap();
    let taken = take_in(&run.staging.dir, &partial, &found).unwrap();
    let (entries, times) = seal_by(no_thread, &partial, &taken, &mut |_, _| {}).unwrap();
    assert_eq!(entries, seal(&partial, &taken, &mut |_, _| {}).unwrap().0);
    assert_eq!((entries.len(), times.bytes), (2, 11));
    fs::remove_file(partial.path().join("sub/map")).unwrap();
    let told = message(&f, seal_by(no_thread, &partial, &taken, &mut |_, _| {}));
    insta::assert_snapshot!(told, @"cannot open /tmp/store/checkpoints/web/generations/000001.partial/sub/map: it does not exist");
}

#[test]
fn a_file_that_grows_meanwhile_cannot_be_saved() {
    let f = Fixture::new();
    let run = f.running("web");
    run.write(&[("image", "0123456789")]);
    let mut open = fs::OpenOptions::new().append(true).open(run.staging.path().join("image")).unwrap();
    let mut grow = |_, _| io::Write::write_all(&mut open, b"!").unwrap();
    let told = run.checkpoint.commit(&run.live, &run.staging, None, None, draft("one"), &mut grow);
    let told = message(&f, told);
    assert!(told.starts_with(r#"generation 1 of checkpoint "web" was not saved: "#), "{told}");
    assert!(told.ends_with("000001.partial/image cannot be saved: it has 11 bytes instead of 10"), "{told}");
    nothing_left(&run, &[]);
}

#[test]
fn only_what_is_listed() {
    let f = Fixture::new();
    let run = f.running("web");
    run.write(&[("a", "1"), ("b", "2"), ("d/x", "3"), ("d/y", "4"), ("e/z", "5")]);
    symlink("/", run.staging.path().join("link")).unwrap();
    let committed = run.commit(Some(&["a".into(), "d/x".into(), "e".into()])).unwrap();
    let paths: Vec<&str> = committed.generation.manifest().files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, ["a", "d/x", "e/z"]);
    assert_eq!(entries(&run.staging.path()), ["b", "d", "e", "link"]);
    insta::assert_snapshot!(message(&f, run.commit(Some(&["gone".into()]))), @r#"generation 2 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/staging/gone cannot be saved: there is no such file"#);
    insta::assert_snapshot!(message(&f, run.commit(Some(&["../../checkpoint.json".into()]))), @r#"generation 2 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/staging/../../checkpoint.json cannot be saved: there is no such file"#);
}

#[test]
fn what_cannot_be_saved() {
    let f = Fixture::new();
    let run = f.running("web");
    insta::assert_snapshot!(message(&f, run.commit(None)), @r#"generation 1 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/staging cannot be saved: there is no file in it"#);
    let refused = |name: &str, make: &dyn Fn(&Path)| {
        run.write(&[("good", "x")]);
        let path = run.staging.path().join(name);
        make(&path);
        let told = message(&f, run.commit(None));
        run.staging.clear().unwrap();
        nothing_left(&run, &[]);
        told
    };
    insta::assert_snapshot!(refused("link", &|p| symlink("/etc/passwd", p).unwrap()), @r#"generation 1 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/staging/link cannot be saved: it is a symbolic link, not a file"#);
    insta::assert_snapshot!(
        refused("fifo", &|p| nix::unistd::mkfifo(p, FILE_MODE).unwrap()), @r#"generation 1 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/staging/fifo cannot be saved: it is a device, socket or fifo, not a file"#);
    insta::assert_snapshot!(refused("manifest.json", &|p| fs::write(p, "{}").unwrap()), @r#"generation 1 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/staging/manifest.json cannot be saved: that name belongs to the store"#);
    let deep = refused("deep", &|p| fs::create_dir_all(p.join("d/".repeat(40))).unwrap());
    assert!(deep.ends_with("cannot be saved: it lies more than 32 directories deep"), "{deep}");
    use std::os::unix::ffi::OsStrExt;
    let bytes = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    assert!(refused("x", &|p| fs::write(p.with_file_name(bytes), "").unwrap()).contains("is not UTF-8"));
    assert_eq!(run.save(&[("good", "x")]), 1);
}

#[test]
fn what_is_not_ours_alone_is_copied() {
    let f = Fixture::new();
    let run = f.running("web");
    run.write(&[("a", "same")]);
    let outside = f.temp.path().join("second-name");
    fs::hard_link(run.staging.path().join("a"), &outside).unwrap();
    let generation = run.commit(None).unwrap().generation;
    fs::write(&outside, "evil").unwrap();
    generation.verify(Level::Full, &mut |_, _| {}).unwrap();
    assert!(!run.staging.path().join("a").exists());
}

#[test]
fn a_commit_that_contradicts_the_binding() {
    let f = Fixture::new();
    let run = f.running("web");
    run.checkpoint.bind(&backend("two"), &image("/img", "f1", None)).unwrap();
    run.write(&[("a", "x")]);
    assert!(matches!(run.commit(None), Err(StoreError::BackendMismatch { .. })));
    assert_eq!(entries(&run.staging.path()), ["a"], "nothing was touched");
}

fn running_in(store: &Store) -> Running {
    let checkpoint = store.create(&"web".parse().unwrap(), None).unwrap();
    let live = checkpoint.lock_live(&holder("web")).unwrap();
    let staging = checkpoint.staging(&live).unwrap();
    Running { checkpoint, live, staging }
}

#[test]
fn a_full_disk_costs_the_generation_only() {
    let f = Fixture::new();
    let disk = f.temp.path().join("disk");
    fs::create_dir(&disk).unwrap();
    with_tmpfs(&disk, "2m", || {
        let store = Store::open(&disk.join("store")).unwrap();
        let run = running_in(&store);
        run.save(&[("a", "first")]);
        run.write(&[("a", "second")]);
        // Fill it up: what is missing then is room for the manifest.
        let filler = disk.join("filler");
        fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
        let error = run.commit(None).unwrap_err();
        insta::assert_snapshot!(f.plain(&error), @r#"generation 2 of checkpoint "web" was not saved: cannot write /tmp/disk/store/checkpoints/web/generations/000002.partial/manifest.json: no space is left on the file system"#);
        insta::assert_snapshot!(error.help().unwrap().replace(f.temp.path().to_str().unwrap(), "/tmp"), @"make room on the file system of /tmp/disk/store/checkpoints/web/generations/000002.partial/manifest.json (df), or remove old generations: stasis checkpoint prune");
        nothing_left(&run, &["000001"]);
        run.checkpoint.generation(None).unwrap().verify(Level::Full, &mut |_, _| {}).unwrap();
        fs::remove_file(&filler).unwrap();
        assert_eq!(run.save(&[("a", "third")]), 2);
        // Room is made by deleting, so that must need none.
        fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
        drop(run.live);
        store.delete(run.checkpoint.name()).unwrap();
    });
}

#[test]
fn from_another_file_system() {
    let f = Fixture::new();
    let disk = f.temp.path().join("disk");
    fs::create_dir(&disk).unwrap();
    with_tmpfs(&disk, "4m", || {
        let run = f.running("web");
        let staging = run.checkpoint.staging_at(&run.live, &disk.join("mine")).unwrap();
        let run = Running { staging, ..run };
        run.write(&[("a", "x"), ("sub/b", &"y".repeat(2 << 20))]);
        let generation = run.commit(None).unwrap().generation;
        generation.verify(Level::Full, &mut |_, _| {}).unwrap();
        assert_eq!(entries(&run.staging.path().join("sub")), Vec::<String>::new());
    });
    // The other way round: the copy finds no room.
    let small = f.temp.path().join("small");
    fs::create_dir(&small).unwrap();
    with_tmpfs(&small, "1m", || {
        let run = running_in(&Store::open(&small.join("store")).unwrap());
        let staging = run.checkpoint.staging_at(&run.live, &f.temp.path().join("mine")).unwrap();
        let run = Running { staging, ..run };
        run.write(&[("a", &"y".repeat(2 << 20))]);
        insta::assert_snapshot!(message(&f, run.commit(None)), @r#"generation 1 of checkpoint "web" was not saved: cannot copy to /tmp/small/store/checkpoints/web/generations/000001.partial/a: no space is left on the file system"#);
        nothing_left(&run, &[]);
    });
}
