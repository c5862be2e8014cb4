//! `--nv` and `--rocm` on a host with and without a driver.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::env::{Env, Who};
use crate::need::need;

#[test]
fn a_driver_of_the_host_is_shown() {
    need!(root, image);
    let env = Env::new(Who::Myself).unwrap();
    // A host of our own making: its list names what every host has.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let layers = env.make_dir("layers").unwrap();
    mount(Some("tmpfs"), &layers, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    for dir in ["upper", "work"] {
        fs::create_dir(layers.join(dir)).unwrap();
    }
    let data = format!("lowerdir=/etc,upperdir={0}/upper,workdir={0}/work", layers.display());
    mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(data.as_str())).unwrap();
    fs::create_dir_all("/etc/stasis").unwrap();
    fs::write("/etc/stasis/nvliblist.conf", "# what stands for a driver\nlibresolv.so\nldd\n").unwrap();
    let small = env.site.image("small").to_string_lossy().into_owned();
    let script =
        "test -s /.singularity.d/libs/libresolv.so.2 && test -s /usr/bin/ldd && echo $LD_LIBRARY_PATH";
    let plain = env.stasis(&["exec", &small, "sh", "-c", script]).unwrap();
    assert_ne!(plain.code, 0, "the image has it without");
    for flags in [&["--nv"][..], &["--nv", "--contain"]] {
        let run = env.ok(&[&["exec"], flags, &[&small, "sh", "-c", script]].concat()).unwrap();
        assert_eq!((run.out.as_str(), run.err.as_str()), ("/.singularity.d/libs\n", ""));
    }
    let mut env = env;
    env.set("APPTAINER_NV", "1");
    env.ok(&["exec", &small, "sh", "-c", script]).unwrap();
    env.finish().unwrap();
}

#[test]
fn a_host_without_a_driver_is_told_and_the_command_runs() {
    need!(image, no_gpu);
    let env = Env::new(Who::User).unwrap();
    let small = env.site.image("small").to_string_lossy().into_owned();
    let run = env.ok(&["exec", "--nv", &small, "true"]).unwrap();
    insta::assert_snapshot!(env.told(&run), @"
    exit 0
    WARNING: Could not find any nv files on this host!
    WARNING: Could not find any nv libraries on this host!
    ");
    env.finish().unwrap();
}
