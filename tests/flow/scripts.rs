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
