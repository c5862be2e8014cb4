//! A file system that becomes full while an image is fetched, built or packed: said so, nothing half made, the old image
//! as it was. The small file systems lie below `data`, where nobody but the test sees them.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::need::need;
use crate::registry::{Odd, here, image as image_of, layer_of, small as small_image};

/// Everything below a directory but what a cache is made of while it is empty.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            _ => found.push(path.display().to_string()),
        }
    }
    found.sort();
    found
}

/// A place with a small disk for images at `data/disk`, and an old image on it.
fn disk(mebibytes: u32) -> Outcome<Env> {
    let env = Env::new(Who::User)?;
    let disk = env.make_dir("data/disk")?;
    super::disk::small(&disk, env.uid(), mebibytes)?;
    env.sif("small", "data/disk/old.sif")?;
    Ok(env)
}

/// Content that no compression makes smaller.
fn noise(mebibytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..mebibytes << 17).flat_map(|_| next()).collect()
}

#[test]
fn while_a_layer_is_kept() {
    need!(root, image, userns, squashfs);
    let env = Env::new(Who::User).unwrap();
    let dir = env.make_dir("noisy").unwrap();
    fs::create_dir(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/noise"), noise(12)).unwrap();
    let made =
        image_of(&[layer_of(&env.site.image("small")).unwrap(), layer_of(&dir).unwrap()], here(), &json!({}));
    let registry = Odd::with(&made, |_, _| None).unwrap();
    let old = env.sif("small", "home/image.sif").unwrap();
    let before = fs::read(&old).unwrap();
    super::disk::small(&env.path("data"), env.uid(), 8).unwrap();
    let told = env.fails(&["pull", "--force", "image.sif", &registry.name("x:v1")]).unwrap();
    insta::assert_snapshot!(settled(&told), @"
    exit 255
    FATAL:   cannot unpack layer 2 of N, from docker://127.0.0.1:N/x:v1
             because: cannot keep the layer in the cache at $DIR/data/cache/_oci/blobs/$DIGEST.partial
             because: no space left on device
             hint:    make room on the file system of $DIR/data/cache/_oci/blobs (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR for what grows into an image file, another path for the image
    ");
    assert!(fs::read(&old).unwrap() == before, "the old image was touched");
    let home: Vec<String> = files(&env.path("home"));
    assert_eq!(home, [old.display().to_string()], "something half made was left");
    // What has arrived is kept for the next try, which goes on there.
    super::disk::size(&env.path("data"), 64 << 20).unwrap();
    env.ok(&["pull", "--force", "image.sif", &registry.name("x:v1")]).unwrap();
    let ranges = registry.asked().into_iter().filter_map(|(_, headers)| headers.get("range").cloned());
    assert_eq!(ranges.count(), 1, "the second try began from nothing");
    env.finish().unwrap();
}

#[test]
fn while_a_script_of_a_definition_file_writes() {
    need!(root, image, userns, squashfs);
    let env = disk(24).unwrap();
    let at = |name: &str| env.path("data/disk").join(name);
    let before = fs::read(at("old.sif")).unwrap();
    let script = "i=0; while [ $i -lt 4000 ]; do cat /opt/subjects/bin/idle-static > /full.$i || exit 7; i=$((i+1)); done";
    let text = format!("Bootstrap: localimage\nFrom: {}\n%post\n    {script}\n", image(&env, "small"));
    env.write("home/image.def", &text).unwrap();
    for flags in [&["--force"][..], &["--sandbox"]] {
        let out = at(if flags == ["--sandbox"] { "new" } else { "old.sif" }).to_string_lossy().into_owned();
        let told = env.fails(&[&["build"], flags, &[&out, "image.def"]].concat()).unwrap();
        insta::allow_duplicates! { insta::assert_snapshot!(settled(&told), @"
        exit 7
        INFO:    Starting build...
        WARNING: no subordinate ids are granted to you, so there is one user inside: giving files to other users and becoming another user do nothing there, and are answered as if they had worked. What needs several users fails; the administrator grants ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`
        INFO:    Running post scriptlet
        cat: /opt/subjects/bin/idle-static: No space left on device
        ERROR:   %post failed with exit code 7
                 because: the image was not made
                 because: the file system is full
                 hint:    make room on the file system of $DIR/data/disk (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR for what grows into an image file, another path for the image
        "); }
        assert!(fs::read(at("old.sif")).unwrap() == before, "the old image was touched");
        assert_eq!(files(&env.path("data/disk")), [at("old.sif").display().to_string()]);
        assert_eq!(fs::read_dir(env.path("data/disk")).unwrap().count(), 1, "a directory was left");
    }
    unmounted(&env);
    env.finish().unwrap();
}

#[test]
fn while_files_are_copied_or_unpacked() {
    need!(root, image, userns, squashfs);
    let env = disk(24).unwrap();
    let at = |name: &str| env.path("data/disk").join(name).to_string_lossy().into_owned();
    env.write("home/noise", "").unwrap();
    fs::write(env.path("home/noise"), noise(40)).unwrap();
    let text = format!("Bootstrap: localimage\nFrom: {}\n%files\n    noise /noise\n", image(&env, "small"));
    env.write("home/image.def", &text).unwrap();
    let told = |words: &[&str]| settled(&env.fails(words).unwrap());
    insta::assert_snapshot!(told(&["build", &at("new.sif"), "image.def"]), @"
    exit 255
    INFO:    Starting build...
    INFO:    Copying $DIR/home/noise to /noise
    FATAL:   image.def, line 4: cannot copy $DIR/home/noise
             because: no space left on device
             hint:    make room on the file system of $DIR/data/disk (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR for what grows into an image file, another path for the image
    ");
    let layout = small_image(&env).unwrap().layout(&env, "layout").unwrap();
    super::disk::size(&env.path("data/disk"), 5 << 20).unwrap();
    insta::assert_snapshot!(told(&["build", "--sandbox", &at("new"), &format!("oci:{}", layout.display())]), @r#"
    exit 255
    FATAL:   cannot unpack layer 1 of N, from oci:$DIR/layout
             because: cannot unpack "./$FILE"
             because: no space left on device
             hint:    make room on the file system of $DIR/data/disk (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR for what grows into an image file, another path for the image
    "#);
    insta::assert_snapshot!(told(&["build", "--sandbox", &at("new"), &image(&env, "small")]), @"
    exit 255
    FATAL:   cannot copy $IMAGES/small/$FILE
             because: no space left on device
             hint:    make room on the file system of $DIR/data/disk (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR for what grows into an image file, another path for the image
    ");
    insta::assert_snapshot!(told(&["build", "--sandbox", &at("new"), &at("old.sif")]), @r#"
    exit 255
    INFO:    Extracting local image...
    FATAL:   cannot unpack image "$DIR/data/disk/old.sif"
             because: unsquashfs failed (exit status: 1)
             because: the file system is full
             hint:    make room on the file system of $DIR/data/disk (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR for what grows into an image file, another path for the image
    "#);
    assert_eq!(files(&env.path("data/disk")), [at("old.sif")]);
    assert_eq!(fs::read_dir(env.path("data/disk")).unwrap().count(), 1, "a directory was left");
    unmounted(&env);
    env.finish().unwrap();
}

/// What is packed is larger than the place for it, and the place where it grew is not.
#[test]
fn while_the_file_is_written() {
    need!(root, image, userns, squashfs);
    let mut env = disk(12).unwrap();
    let at = |env: &Env, name: &str| env.path("data/disk").join(name);
    let before = fs::read(at(&env, "old.sif")).unwrap();
    let elsewhere = env.make_dir("elsewhere").unwrap();
    env.set("STASIS_TMPDIR", &elsewhere.to_string_lossy());
    env.write("home/noise", "").unwrap();
    fs::write(env.path("home/noise"), noise(40)).unwrap();
    let text = format!("Bootstrap: localimage\nFrom: {}\n%files\n    noise /noise\n", image(&env, "small"));
    env.write("home/image.def", &text).unwrap();
    let old = at(&env, "old.sif").to_string_lossy().into_owned();
    let told = env.fails(&["build", "--force", &old, "image.def"]).unwrap();
    insta::assert_snapshot!(number_hidden(&settled(&told)), @r#"
    exit 255
    INFO:    Starting build...
    INFO:    Copying $DIR/home/noise to /noise
    INFO:    Adding labels
    INFO:    Creating SIF file...
    FATAL:   cannot make a file system of "$DIR/elsewhere/.old.sif.partial-N"
             because: mksquashfs failed (exit status: 1)
             because: the file system is full
             hint:    make room on the file system of $DIR/data/disk (df), or take another place: STASIS_DATA_DIR for the cache, STASIS_TMPDIR for what grows into an image file, another path for the image
    "#);
    assert!(fs::read(&old).unwrap() == before, "the old image was touched");
    assert_eq!(files(&env.path("data/disk")), [old]);
    assert_eq!(files(&elsewhere), [""; 0]);
    unmounted(&env);
    env.finish().unwrap();
}

/// Gone before the directory of the test is.
fn unmounted(env: &Env) {
    let _ = nix::mount::umount2(&env.path("data/disk"), nix::mount::MntFlags::MNT_DETACH);
}

/// Which file was the first that did not fit, and what tools say of it, differs.
fn settled(told: &str) -> String {
    let lines = told.lines().filter(|line| !line.starts_with('+') && !line.trim_start().starts_with("| "));
    let text = lines.collect::<Vec<_>>().join("\n");
    let text = after(&text, "cannot unpack \"./", '"', "$FILE");
    let text = after(&text, "cannot copy $IMAGES/small/", '\n', "$FILE");
    after(&text, "/blobs/", '.', "$DIGEST")
}

fn number_hidden(told: &str) -> String {
    after(told, ".partial-", '"', "N")
}

/// Puts `with` in place of what stands between two texts.
fn after(text: &str, from: &str, to: char, with: &str) -> String {
    let Some((before, rest)) = text.split_once(from) else { return text.to_owned() };
    let Some(end) = rest.find(to) else { return text.to_owned() };
    format!("{before}{from}{with}{}", &rest[end..])
}
