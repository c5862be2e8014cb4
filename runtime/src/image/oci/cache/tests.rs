use super::*;

fn cache() -> (tempfile::TempDir, Cache, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    (dir, cache, Digest::of(b"image"))
}

fn put(cache: &Cache, digest: &Digest) -> Kept {
    let fresh = cache.fresh(digest).unwrap();
    std::fs::write(Cache::root_of(&fresh).join("file"), "x").unwrap();
    let kept = Kept::now("docker://a".to_owned(), digest.clone(), None, 1, 1);
    cache.commit(&fresh, &kept).unwrap();
    kept
}

fn find(cache: &Cache, digest: &Digest) -> Option<Rooted> {
    cache.find(digest, cache.lock_file(digest).unwrap(), "name".to_owned()).unwrap().ok()
}

#[test]
fn only_a_whole_image_is_found() {
    let (_dir, cache, digest) = cache();
    assert!(find(&cache, &digest).is_none());
    let fresh = cache.fresh(&digest).unwrap();
    std::fs::write(Cache::root_of(&fresh).join("half"), "x").unwrap();
    assert!(find(&cache, &digest).is_none());
    put(&cache, &digest);
    let rooted = find(&cache, &digest).unwrap();
    assert!(rooted.root.join("file").is_file() && !rooted.root.join("half").exists());
    assert_eq!(cache.last_of("docker://a").unwrap().digest, digest);
    assert!(cache.last_of("docker://b").is_none());
}

/// How many things went.
fn went(cache: &Cache, dry: bool) -> usize {
    cached::went(|| cache.clean(Duration::ZERO, dry).unwrap().0.len())
}

#[test]
fn who_uses_an_image_keeps_it() {
    let (_dir, cache, digest) = cache();
    put(&cache, &digest);
    let rooted = find(&cache, &digest).unwrap();
    let held = hold(&rooted.root).unwrap();
    drop(rooted.lock);
    let (gone, stayed) = cache.clean(Duration::ZERO, false).unwrap();
    assert!(gone.is_empty() && stayed.len() == 1 && rooted.root.is_dir());
    drop(held);
    assert!(cache.clean(Duration::from_secs(60), false).unwrap().0.is_empty());
    assert_eq!(went(&cache, true), 1);
    assert!(rooted.root.is_dir());
    assert_eq!(went(&cache, false), 1);
    assert!(!rooted.root.exists() && cache.list().is_empty());
    assert!(hold(&rooted.root).is_none() && hold(Path::new("/")).is_none());
}

#[test]
fn after_a_power_failure_an_image_is_made_anew() {
    let (_dir, cache, digest) = cache();
    let kept = put(&cache, &digest);
    let (name, run) = kept.unwritten.clone().unwrap();
    let note = |unwritten: Option<(&str, &str)>, made: &str| {
        let unwritten = unwritten.map(|(name, run)| (name.to_owned(), run.to_owned()));
        let kept = Kept { unwritten, made: made.to_owned(), ..kept.clone() };
        std::fs::write(cache.image(&digest).join(NOTE), serde_json::to_vec(&kept).unwrap()).unwrap();
    };
    note(Some((&name, "another run")), &kept.made);
    assert!(find(&cache, &digest).is_none());
    assert_eq!(cache.list().len(), 1, "it can be cleaned away all the same");
    note(Some(("another-host", "another run")), &kept.made);
    assert!(find(&cache, &digest).is_some());
    note(Some((&name, &run)), "2026-01-01T00:00:00Z");
    assert!(find(&cache, &digest).is_some());
    assert_eq!(read_note(&cache.image(&digest)).unwrap().unwritten, None);
}

#[test]
fn what_was_left_half_is_swept_away() {
    let (_dir, cache, digest) = cache();
    // Its maker was killed between the note and the name.
    let fresh = cache.fresh(&digest).unwrap();
    let kept = Kept::now("docker://a".to_owned(), digest.clone(), None, 1, 1);
    std::fs::write(fresh.join(NOTE), serde_json::to_vec(&kept).unwrap()).unwrap();
    let other = cache.image(&Digest::of(b"other"));
    std::fs::create_dir_all(other.join(ROOT).join("deep")).unwrap();
    cache.clean(Duration::ZERO, false).unwrap();
    for name in ["work", "roots"] {
        assert_eq!(std::fs::read_dir(cache.path.join(name)).unwrap().count(), 0, "{name}");
    }
}

/// Whoever makes the image anew waits until what was left of it is gone, and loses nothing of the new one.
#[test]
fn nobody_begins_in_what_is_being_swept_away() {
    let (_dir, cache, digest) = cache();
    let root = Cache::root_of(&cache.fresh(&digest).unwrap());
    let files: Vec<PathBuf> = (0..4000).map(|n| root.join(format!("{n:04}"))).collect();
    files.iter().for_each(|file| std::fs::write(file, "").unwrap());
    std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| cache.clean(Duration::ZERO, false).unwrap());
        while !sweeping.is_finished() && files.iter().all(|file| file.exists()) {
            std::thread::yield_now();
        }
        let lock = cache.lock_file(&digest).unwrap();
        lock.lock().unwrap();
        assert!(!root.exists(), "it is still being removed");
        drop(lock);
        sweeping.join().unwrap();
    });
}
