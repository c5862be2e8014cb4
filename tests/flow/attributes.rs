//! Extended attributes: a user's own go with a file through every form of an image, those of the system through none.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::env::{Env, Who};
use crate::need::need;
use crate::registry::{gzip, here, image, layer_of, plain_digest};
use crate::running::Outcome;

/// A note that belongs to the image, and what does not.
const NOTE: (&str, &[u8]) = ("user.note", b"of the image\0\xff");

fn set(path: &Path, name: &str, value: &[u8]) -> Outcome<()> {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty())
        .map_err(|e| format!("{name} of {}: {e}", path.display()).into())
}

/// The names of all that a file has, and the note.
fn of(path: &Path) -> Outcome<(Vec<String>, Vec<u8>)> {
    let (mut names, mut value) = ([0_u8; 4096], [0_u8; 64]);
    let length = rustix::fs::listxattr(path, &mut names).map_err(|e| format!("{}: {e}", path.display()))?;
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let length = rustix::fs::getxattr(path, NOTE.0, &mut value).unwrap_or(0);
    Ok((names, value[..length].to_vec()))
}

/// Two layers as tar writes them: the small image, and files with attributes of all kinds.
fn layout(env: &Env) -> Outcome<()> {
    let dir = env.path("noted");
    fs::create_dir_all(dir.join("noted/inside"))?;
    fs::copy("/bin/true", dir.join("noted/program"))?;
    for file in ["noted", "noted/inside", "noted/program"] {
        set(&dir.join(file), NOTE.0, NOTE.1)?;
    }
    // The right to open raw sockets, as setcap(8) writes it; and what an overlay would take for its own.
    let right = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&dir.join("noted/program"), "security.capability", &right)?;
    set(&dir.join("noted/program"), "trusted.note", b"x")?;
    set(&dir.join("noted/inside"), "user.overlay.opaque", b"y")?;
    let out = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--owner=0", "--group=0", "-cf", "-", "-C"])
        .arg(&dir)
        .arg("noted")
        .output()?;
    let attributes =
        ["SCHILY.xattr.user.note", "SCHILY.xattr.security.capability", "SCHILY.xattr.trusted.note"];
    for name in attributes {
        assert!(String::from_utf8_lossy(&out.stdout).contains(name), "tar has left {name} out");
    }
    let layers = [layer_of(&env.site.image("small"))?, (gzip(&out.stdout)?, plain_digest(&out.stdout))];
    image(&layers, here(), &json!({})).layout(env, "home/layout")?;
    Ok(())
}

/// What is left in a directory image: the note, on all three, and nothing else.
fn check(env: &Env, image: &str) -> Outcome<()> {
    for file in ["noted", "noted/inside", "noted/program"] {
        let (names, note) = of(&env.path("home").join(image).join(file))?;
        assert_eq!(
            (names.as_slice(), note.as_slice()),
            (&[NOTE.0.to_owned()][..], NOTE.1),
            "{image}: {file}"
        );
    }
    Ok(())
}

fn through_every_form(who: Who) -> Outcome<()> {
    let env = Env::new(who)?;
    layout(&env)?;
    let build = |flags: &[&str], out: &str, from: &str| env.ok(&[&["build"], flags, &[out, from]].concat());
    env.write("home/local.def", "Bootstrap: localimage\nFrom: first\n%post\n    true\n")?;
    let stages = "Bootstrap: oci\nFrom: layout\nStage: one\nBootstrap: oci\nFrom: layout\n\
                  %files from one\n    /noted /noted2\n";
    env.write("home/stages.def", stages)?;
    for (flags, out, from) in [
        (&["--sandbox"][..], "first", "oci:layout"),
        (&["--sandbox"], "copy", "first"),
        (&[], "of-layers.sif", "oci:layout"),
        (&[], "of-directory.sif", "copy"),
        (&["--sandbox"], "of-layers", "of-layers.sif"),
        (&["--sandbox"], "of-file", "of-directory.sif"),
        (&["--sandbox"], "defined", "local.def"),
        (&["--sandbox"], "stages", "stages.def"),
    ] {
        build(flags, out, from)?;
        if flags == ["--sandbox"] {
            check(&env, out)?;
        }
    }
    let (names, note) = of(&env.path("home/stages/noted2/program"))?;
    assert_eq!((names, note.as_slice()), (vec![NOTE.0.to_owned()], NOTE.1));
    // Run straight from where it is, it lies in the cache.
    env.ok(&["exec", "oci:layout", "true"])?;
    env.finish()
}

#[test]
fn attributes_of_an_image_in_every_form_as_an_ordinary_user() {
    need!(root, image, userns, squashfs, attributes);
    through_every_form(Who::User).unwrap();
}

#[test]
fn attributes_of_an_image_in_every_form_as_root() {
    need!(root, image, squashfs, attributes);
    through_every_form(Who::Myself).unwrap();
}

/// Set by `%post`, seen by programs in the container, whichever way the file is brought into view.
#[test]
fn attributes_are_seen_inside() {
    need!(root, image, userns, squashfs, fuse, loop_devices, attributes);
    for (who, ways) in [(Who::Myself, &["kernel", "fuse", "unpack"][..]), (Who::User, &["fuse", "unpack"])] {
        let mut env = Env::new(who).unwrap();
        if who == Who::User {
            env.open_fuse().unwrap();
        }
        let set = "python3 -c 'import os; open(\"/noted\", \"w\"); os.setxattr(\"/noted\", \"user.note\", b\"seen\")'";
        let text =
            format!("Bootstrap: localimage\nFrom: {}\n%post\n    {set}\n", env.site.image("any").display());
        env.write("home/image.def", &text).unwrap();
        env.ok(&["build", "image.sif", "image.def"]).unwrap();
        for way in ways {
            env.set("STASIS_IMAGE_MOUNT", way);
            for flags in [&[][..], &["--writable-tmpfs"]] {
                let show = "import os; print(os.getxattr('/noted', 'user.note').decode())";
                let words = [&["exec"], flags, &["image.sif", "python3", "-c", show]].concat();
                assert_eq!(env.ok(&words).unwrap().out, "seen\n", "{who:?} {way} {flags:?}");
            }
        }
        env.finish().unwrap();
    }
}
