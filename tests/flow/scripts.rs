//! What scripts of a definition file are shown, and what becomes of what they write.

use std::fs;

use crate::env::{Env, Who};
use crate::need::{self, need};
use crate::registry::small;
use crate::running::Outcome;

fn place(who: Who, definition: &str) -> Outcome<Env> {
    let env = Env::new(who)?;
    small(&env)?.layout(&env, "home/layout")?;
    env.write("home/image.def", &format!("Bootstrap: oci\nFrom: layout\n{definition}"))?;
    Ok(env)
}

/// As in Apptainer a test reads the image only; what it may write with a flag is forgotten.
#[test]
fn a_test_changes_nothing_in_the_image() {
    need!(image, userns);
    for who in [Who::Myself, Who::User, Who::Granted] {
        if who == Who::Granted && !need::met("uidmap", need::uidmap()).unwrap() {
            continue;
        }
        let env = place(who, "%post\n  : > /made\n%test\n  : > /by-test\n  echo went through\n").unwrap();
        let told = env.fails(&["build", "--sandbox", "image", "image.def"]).unwrap();
        assert!(told.contains("ead-only file system") && told.contains("%test failed"), "{who:?}: {told}");
        let run = env.ok(&["build", "--sandbox", "--writable-tmpfs", "image", "image.def"]).unwrap();
        assert_eq!(run.out, "went through\n", "{who:?}: {}", run.err);
        assert!(env.path("home/image/made").exists() && !env.path("home/image/by-test").exists(), "{who:?}");
        assert!(!env.path("home/image/.singularity.d/.script").exists(), "{who:?}");
        env.finish().unwrap();
    }
}

#[test]
fn what_is_shown_to_a_build() {
    need!(image, userns);
    let script = "%post\n  read -r word < /shown/file\n  echo \"post: $word\" > /shown/by-post\n  \
                  (: > /closed/file) && exit 9 || true\n\
                  %test\n  read -r word < /closed/file\n  echo \"test: $word\"\n";
    let env = place(Who::User, script).unwrap();
    let data = env.make_dir("home/data").unwrap();
    env.write("home/data/file", "word\n").unwrap();
    let (bind, mount) =
        (format!("{}:/shown", data.display()), format!("type=bind,src={},dst=/closed,ro", data.display()));
    let run = env.ok(&["build", "--sandbox", "-B", &bind, "--mount", &mount, "image", "image.def"]).unwrap();
    assert_eq!(run.out, "test: word\n", "{}", run.err);
    assert_eq!(fs::read_to_string(data.join("by-post")).unwrap(), "post: word\n");
    for place in ["shown", "closed"] {
        let inside = fs::read_dir(env.path("home/image").join(place)).unwrap().count();
        assert_eq!(inside, 0, "{place}: what was shown became a part of the image");
    }
    env.finish().unwrap();
}

/// Where users have their definition file, and build.
#[test]
fn the_directory_in_which_it_is_built_can_be_copied() {
    need!(image, userns, squashfs);
    let text = "Stage: one\n%files\n  . /app\nBootstrap: oci\nFrom: layout\n%files from one\n  /app /first\n\
                %files\n  . /second\n";
    let env = place(Who::User, text).unwrap();
    env.ok(&["build", "image.sif", "image.def"]).unwrap();
    env.ok(&["build", "--sandbox", "image", "image.sif"]).unwrap();
    for copy in ["first", "second"] {
        let mut names: Vec<_> = fs::read_dir(env.path("home/image").join(copy))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["image.def", "layout"], "{copy}");
    }
    env.finish().unwrap();
}

#[test]
fn scripts_know_the_way_out_and_no_secrets() {
    need!(image, userns);
    let script = "%post\n  echo \"by $https_proxy, ${SECRET-nothing}, $HOME\"\n";
    let mut env = place(Who::User, script).unwrap();
    env.set("https_proxy", "http://proxy.example:3128");
    env.set("SECRET", "word");
    let run = env.ok(&["build", "--sandbox", "image", "image.def"]).unwrap();
    assert_eq!(run.out, "by http://proxy.example:3128, nothing, /root\n", "{}", run.err);
    env.finish().unwrap();
}

#[test]
fn a_script_that_names_its_interpreter_keeps_it() {
    need!(image, userns);
    let env = place(Who::User, "%runscript\n#!/bin/sh -f\n  echo /*\n").unwrap();
    env.ok(&["build", "--sandbox", "image", "image.def"]).unwrap();
    assert_eq!(env.ok(&["run", "image"]).unwrap().out, "/*\n");
    env.finish().unwrap();
}

/// An image is anybody's work, and is looked at in a terminal.
#[test]
fn what_an_image_says_changes_no_terminal() {
    need!(image, userns, squashfs);
    let text = "%labels\n  Title a\u{1b}[2Jb\n%help\n  c\u{1b}]0;d\n%apprun one\n  true\n";
    let env = place(Who::User, text).unwrap();
    env.ok(&["build", "--sandbox", "image", "image.def"]).unwrap();
    env.ok(&["build", "image.sif", "image"]).unwrap();
    for image in ["image", "image.sif"] {
        let out = env.ok(&["inspect", "-l", "-H", "-d", image]).unwrap().out;
        assert!(out.contains("Title: a") && out.contains("[2Jb") && !out.contains('\u{1b}'), "{out:?}");
    }
    env.finish().unwrap();
}
