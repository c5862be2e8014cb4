//! `--nv` and `--rocm` on a host with and without a driver.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::env::{Env, Who};
use crate::need::need;
use crate::running::Outcome;

/// Gives the thread of a test, and what it starts, a view of the host in which `/etc` can be written to: nothing of it
/// reaches the host.
fn own_view(env: &Env) -> Outcome<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let layers = env.path("layers");
    fs::create_dir(&layers)?;
    mount(Some("tmpfs"), &layers, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    for dir in ["upper", "work"] {
        fs::create_dir(layers.join(dir))?;
    }
    let data = format!("lowerdir=/etc,upperdir={0}/upper,workdir={0}/work", layers.display());
    Ok(mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(data.as_str()))?)
}

/// A host of our own making: libraries that the loader knows, programs, and devices of which all are `/dev/zero`.
fn host(env: &mut Env) -> Outcome<()> {
    own_view(env)?;
    let script = r#"
        mkdir -m 755 "$1/driver" "$1/driver/lib" "$1/driver/bin" "$1/dev"
        for library in libcuda.so.1 libnvidia-ml.so.1 libamdhip64.so.6 libofalist.so.2 libcudart.so.1; do
            echo | gcc -shared -nostdlib -x c - -Wl,-soname="$library" -o "$1/driver/lib/$library"
        done
        for program in nvidia-smi rocminfo; do
            printf '#!/bin/sh\necho %s of the host\n' "$program" > "$1/driver/bin/$program"
            chmod 755 "$1/driver/bin/$program"
        done
        chmod 711 "$1"
        # Nothing of this may reach the host: neither its cache of libraries nor its devices.
        test -d /var/cache/ldconfig && mount -t tmpfs stasis /var/cache/ldconfig
        echo "$1/driver/lib" > /etc/ld.so.conf.d/driver-of-a-test.conf
        /sbin/ldconfig -X
        mount -t tmpfs -o mode=755 stasis "$1/dev"
        cd "$1/dev"
        for device in nvidia0 nvidiactl nvidia-uvm kfd; do mknod -m 666 "$device" c 1 5; done
        mkdir nvidia-caps dri pts shm
        mknod -m 666 nvidia-caps/nvidia-cap1 c 1 5
        mknod -m 666 dri/card0 c 1 5
        mknod -m 666 dri/renderD128 c 1 5
        for device in null zero full random urandom tty fuse; do
            test -e "/dev/$device" || continue
            : > "$device"
            mount --bind "/dev/$device" "$device"
        done
        mount --bind /dev/pts pts
        mount --bind /dev/shm shm
        ln -s pts/ptmx ptmx
        ln -s /proc/self/fd fd
        mount --move "$1/dev" /dev
    "#;
    let out = Command::new("sh").args(["-ec", script, "sh"]).arg(env.dir()).output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into());
    }
    let path = format!("{}/driver/bin:{}", env.dir().display(), std::env::var("PATH")?);
    env.set("PATH", &path);
    Ok(())
}

/// What a container sees of all that.
const SEES: &str = "for file in /.singularity.d/libs/* /usr/bin/nvidia-smi /usr/bin/rocminfo; do test -f \"$file\" && echo \"$file\"; done
    echo \"$LD_LIBRARY_PATH\"
    for file in /dev/nvidia* /dev/nvidia-caps/* /dev/kfd /dev/dri/*; do
        test -c \"$file\" && (: < \"$file\") && echo \"$file\"
    done; true";

fn sees(env: &Env, flags: &[&str]) -> Outcome<String> {
    let small = env.site.image("small").to_string_lossy().into_owned();
    let run = env.ok(&[&["exec"], flags, &[&small, "sh", "-c", SEES]].concat())?;
    let shown = format!("{}{}", run.err, run.out.replace("/.singularity.d/libs/", "LIBS/"));
    // Of what is in the list, hosts without a driver have this.
    Ok(shown.split_inclusive('\n').filter(|line| !line.starts_with("LIBS/libdrm")).collect())
}

fn shown(who: Who) -> Outcome<()> {
    let mut env = Env::new(who)?;
    host(&mut env)?;
    let all = [
        &["--nv", "--contain"][..],
        &["--rocm", "--contain"],
        &["--nv", "--rocm", "--containall"],
        &["--contain"],
    ]
    .map(|flags| sees(&env, flags).map(|seen| format!("{}:\n{seen}", flags.join(" "))));
    let all: String = all.into_iter().collect::<Outcome<_>>()?;
    insta::allow_duplicates! { insta::assert_snapshot!(all, @"
    --nv --contain:
    LIBS/libcuda.so.1
    LIBS/libnvidia-ml.so.1
    /usr/bin/nvidia-smi
    /.singularity.d/libs
    /dev/nvidia-uvm
    /dev/nvidia0
    /dev/nvidiactl
    /dev/nvidia-caps/nvidia-cap1
    --rocm --contain:
    LIBS/libamdhip64.so.6
    /usr/bin/rocminfo
    /.singularity.d/libs
    /dev/kfd
    /dev/dri/card0
    /dev/dri/renderD128
    --nv --rocm --containall:
    LIBS/libamdhip64.so.6
    LIBS/libcuda.so.1
    LIBS/libnvidia-ml.so.1
    /usr/bin/nvidia-smi
    /usr/bin/rocminfo
    /.singularity.d/libs
    /dev/nvidia-uvm
    /dev/nvidia0
    /dev/nvidiactl
    /dev/nvidia-caps/nvidia-cap1
    /dev/kfd
    /dev/dri/card0
    /dev/dri/renderD128
    --contain:
    "); }
    // Where nothing is contained all of the host's devices are there.
    assert!(sees(&env, &["--nv"])?.ends_with("/dev/kfd\n/dev/dri/card0\n/dev/dri/renderD128\n"));
    // The lists of an administrator, ours before Apptainer's.
    fs::create_dir_all("/etc/apptainer")?;
    fs::write("/etc/apptainer/nvliblist.conf", "libofalist.so # only this\n")?;
    fs::write("/etc/apptainer/rocmliblist.conf", "rocminfo\nlibamdhip64.so\n")?;
    let libraries = |flag: &str| -> Outcome<Vec<String>> {
        let seen = sees(&env, &[flag])?;
        Ok(seen.lines().filter(|line| !line.starts_with("/dev")).map(str::to_owned).collect())
    };
    assert_eq!(
        libraries("--nv")?,
        [
            "WARNING: Could not find any nv files on this host!",
            "LIBS/libofalist.so.2",
            "/.singularity.d/libs"
        ]
    );
    assert_eq!(libraries("--rocm")?, ["LIBS/libamdhip64.so.6", "/usr/bin/rocminfo", "/.singularity.d/libs"]);
    fs::create_dir_all("/etc/stasis")?;
    fs::write("/etc/stasis/rocmliblist.conf", "rocminfo\nlibofalist.so\n")?;
    assert_eq!(libraries("--rocm")?, ["LIBS/libofalist.so.2", "/usr/bin/rocminfo", "/.singularity.d/libs"]);
    // An instance as well, and the words that it runs are the host's.
    let small = env.site.image("small").to_string_lossy().into_owned();
    env.ok(&["instance", "start", "--contain", "--rocm", &small, "one", "sleep", "60"])?;
    assert_eq!(env.ok(&["exec", "instance://one", "rocminfo"])?.out, "rocminfo of the host\n");
    env.ok(&["exec", "instance://one", "sh", "-c", "test -c /dev/kfd && : < /dev/kfd"])?;
    env.ok(&["instance", "stop", "one"])?;
    env.finish()
}

#[test]
fn drivers_and_devices_are_shown_to_root() {
    need!(root, image, no_gpu);
    shown(Who::Myself).unwrap();
}

#[test]
fn drivers_and_devices_are_shown_to_an_ordinary_user() {
    need!(root, image, userns, no_gpu);
    shown(Who::User).unwrap();
}

#[test]
fn a_variable_asks_for_a_driver() {
    need!(root, image);
    let mut env = Env::new(Who::Myself).unwrap();
    own_view(&env).unwrap();
    fs::create_dir_all("/etc/stasis").unwrap();
    // What every host has stands for a driver.
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
    if Path::new("/opt/rocm").exists() {
        return;
    }
    let run = env.ok(&["exec", "--rocm", "--contain", &small, "true"]).unwrap();
    assert!(run.err.contains("WARNING: Could not find any rocm files on this host!\n"), "{}", run.err);
    env.finish().unwrap();
}
