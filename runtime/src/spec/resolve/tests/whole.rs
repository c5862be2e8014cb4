//! One whole container per action, in the words of `--dry-run`.

use super::*;

#[test]
fn exec_without_an_engine() {
    let spec = with(&exec(&["ls", "-l", "a b"]), "", &alice(), false).unwrap();
    insta::assert_snapshot!(describe(&spec), @r#"
    container job (exec /img)
      root        /img
      changes     not allowed
      namespaces  user mount
      user        1000:1000 is 1000:1000 inside (kept)
    mounts
      bind        /proc, if possible
      bind        /sys, if possible
      bind        /dev, if possible
      bind        /tmp, if possible
      bind        /var/tmp, if possible
      bind        /home/alice, if possible
      bind        /etc/localtime, read-only, if possible
      bind        /etc/hosts, read-only, if possible
      file        /etc/passwd (76 bytes, if possible)
      file        /etc/group (46 bytes, if possible)
      file        /etc/resolv.conf (21 bytes, if possible)
    process, executed directly, with the caller's streams
      first       the image's /.singularity.d/env/*.sh
      command     ls -l "a b"
      directory   /home/alice/project, else /home/alice, else /
      umask       0022
      env         APPTAINER_BIND=""
      env         APPTAINER_COMMAND=exec
      env         APPTAINER_CONTAINER=/img
      env         APPTAINER_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         APPTAINER_NAME=img
      env         HOME=/home/alice
      env         LANG=en_GB.UTF-8
      env         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
      env         PS1="stasis> "
      env         SINGULARITY_BIND=""
      env         SINGULARITY_COMMAND=exec
      env         SINGULARITY_CONTAINER=/img
      env         SINGULARITY_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         SINGULARITY_NAME=img
      env         STASIS_CONTAINER=/img
      env         STASIS_NAME=img
      env         TERM=xterm
      env         USER_PATH=/host/bin
    "#);
}

#[test]
fn run_with_an_engine() {
    let action = Action::Run { args: vec!["8888".to_owned()] };
    let spec = with(&action, "-B /data:/in:ro --env A=1", &alice(), true).unwrap();
    insta::assert_snapshot!(describe(&spec), @r#"
    container job (run /img)
      root        /img
      changes     not allowed
      namespaces  user mount pid ipc uts
      user        1000:1000 is 1000:1000 inside (kept)
      host name   node7
    mounts
      proc        /proc of its own
      bind        /sys, if possible
      bind        /dev, if possible
      devpts      /dev/pts of its own
      tmpfs       /dev/shm (1777)
      bind        /tmp, if possible
      bind        /var/tmp, if possible
      bind        /home/alice, if possible
      bind        /etc/localtime, read-only, if possible
      file        /etc/hosts (36 bytes, if possible)
      file        /etc/hostname (6 bytes, if possible)
      file        /etc/passwd (76 bytes, if possible)
      file        /etc/group (46 bytes, if possible)
      file        /etc/resolv.conf (21 bytes, if possible)
      bind        /data on /in, read-only
    process, started by the container's init, writing to log files
      first       the image's /.singularity.d/env/*.sh
      command     /.singularity.d/runscript 8888
      directory   /home/alice/project, else /home/alice, else /
      umask       0022
      env         A=1
      env         APPTAINER_BIND=/data:/in:ro
      env         APPTAINER_COMMAND=run
      env         APPTAINER_CONTAINER=/img
      env         APPTAINER_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         APPTAINER_NAME=img
      env         HOME=/home/alice
      env         LANG=en_GB.UTF-8
      env         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
      env         PS1="stasis> "
      env         SINGULARITY_BIND=/data:/in:ro
      env         SINGULARITY_COMMAND=run
      env         SINGULARITY_CONTAINER=/img
      env         SINGULARITY_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         SINGULARITY_NAME=img
      env         STASIS_CONTAINER=/img
      env         STASIS_NAME=img
      env         TERM=xterm
      env         USER_PATH=/host/bin
    "#);
}

#[test]
fn a_contained_shell() {
    let facts = HostFacts { stdin_tty: true, stdout_tty: true, ..alice() };
    let spec = with(&Action::Shell, "-C -S /scratch", &facts, false).unwrap();
    insta::assert_snapshot!(describe(&spec), @r#"
    container job (shell /img)
      root        /img
      changes     not allowed
      namespaces  user mount pid ipc
      user        1000:1000 is 1000:1000 inside (kept)
    mounts
      proc        /proc of its own
      bind        /sys, if possible
      dev         /dev of its own
      devpts      /dev/pts of its own
      tmpfs       /dev/shm (1777)
      tmpfs       /tmp (1777)
      tmpfs       /var/tmp (1777)
      tmpfs       /home/alice (0700)
      bind        /etc/localtime, read-only, if possible
      bind        /etc/hosts, read-only, if possible
      file        /etc/passwd (76 bytes, if possible)
      file        /etc/group (46 bytes, if possible)
      file        /etc/resolv.conf (21 bytes, if possible)
      tmpfs       /scratch (0700)
    process, started by the container's init, with the caller's streams
      first       the image's /.singularity.d/env/*.sh
      command     /bin/sh
      directory   /home/alice, else /
      umask       0022
      env         APPTAINER_BIND=""
      env         APPTAINER_COMMAND=shell
      env         APPTAINER_CONTAINER=/img
      env         APPTAINER_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         APPTAINER_NAME=img
      env         HOME=/home/alice
      env         LANG=C
      env         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
      env         PS1="stasis> "
      env         SINGULARITY_BIND=""
      env         SINGULARITY_COMMAND=shell
      env         SINGULARITY_CONTAINER=/img
      env         SINGULARITY_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         SINGULARITY_NAME=img
      env         STASIS_CONTAINER=/img
      env         STASIS_NAME=img
      env         TERM=xterm
      env         USER_PATH=/host/bin
    "#);
}

#[test]
fn an_instance_of_an_image_without_a_start_script() {
    let start = Action::Start { args: Vec::new() };
    let spec = with(&start, "", &alice(), false).unwrap();
    insta::assert_snapshot!(describe(&spec), @r#"
    container job (start /img)
      root        /img
      changes     not allowed
      namespaces  user mount pid
      user        1000:1000 is 1000:1000 inside (kept)
    mounts
      proc        /proc of its own
      bind        /sys, if possible
      bind        /dev, if possible
      bind        /tmp, if possible
      bind        /var/tmp, if possible
      bind        /home/alice, if possible
      bind        /etc/localtime, read-only, if possible
      bind        /etc/hosts, read-only, if possible
      file        /etc/passwd (76 bytes, if possible)
      file        /etc/group (46 bytes, if possible)
      file        /etc/resolv.conf (21 bytes, if possible)
    process, started by the container's init, writing to log files
      command     none: the container waits for commands
      directory   /home/alice/project, else /home/alice, else /
      umask       0022
      env         APPTAINER_BIND=""
      env         APPTAINER_COMMAND=start
      env         APPTAINER_CONTAINER=/img
      env         APPTAINER_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         APPTAINER_INSTANCE=job
      env         APPTAINER_NAME=img
      env         HOME=/home/alice
      env         LANG=en_GB.UTF-8
      env         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
      env         PS1="stasis> "
      env         SINGULARITY_BIND=""
      env         SINGULARITY_COMMAND=start
      env         SINGULARITY_CONTAINER=/img
      env         SINGULARITY_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         SINGULARITY_INSTANCE=job
      env         SINGULARITY_NAME=img
      env         STASIS_CONTAINER=/img
      env         STASIS_INSTANCE=job
      env         STASIS_NAME=img
      env         TERM=xterm
      env         USER_PATH=/host/bin
    "#);
    let error = with(&start, "", &alice(), true).unwrap_err().to_string();
    assert!(error.contains("has no /.singularity.d/startscript"), "{error}");
}

#[test]
fn an_instance_of_the_runscript_as_root() {
    let facts = HostFacts { euid: 0, egid: 0, user_name: "root".to_owned(), home: "/root".into(), ..alice() };
    let action = Action::InstanceRun { args: vec!["x".to_owned()] };
    let spec = with(&action, "--fakeroot", &facts, true).unwrap();
    insta::assert_snapshot!(describe(&spec), @r#"
    container job (instance-run /img)
      root        /img
      changes     not allowed
      namespaces  mount pid ipc uts
      user        0:0 is 0:0 inside (no mapping)
      host name   node7
    mounts
      proc        /proc of its own
      bind        /sys, if possible
      bind        /dev, if possible
      devpts      /dev/pts of its own
      tmpfs       /dev/shm (1777)
      bind        /tmp, if possible
      bind        /var/tmp, if possible
      bind        /root, if possible
      bind        /home/alice/project, if possible
      bind        /etc/localtime, read-only, if possible
      file        /etc/hosts (36 bytes, if possible)
      file        /etc/hostname (6 bytes, if possible)
      file        /etc/passwd (30 bytes, if possible)
      file        /etc/group (44 bytes, if possible)
      file        /etc/resolv.conf (21 bytes, if possible)
    process, started by the container's init, writing to log files
      first       the image's /.singularity.d/env/*.sh
      command     /.singularity.d/runscript x
      directory   /home/alice/project, else /root, else /
      umask       0022
      env         APPTAINER_BIND=""
      env         APPTAINER_COMMAND=run
      env         APPTAINER_CONTAINER=/img
      env         APPTAINER_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         APPTAINER_INSTANCE=job
      env         APPTAINER_NAME=img
      env         HOME=/root
      env         LANG=en_GB.UTF-8
      env         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
      env         PS1="stasis> "
      env         SINGULARITY_BIND=""
      env         SINGULARITY_COMMAND=run
      env         SINGULARITY_CONTAINER=/img
      env         SINGULARITY_ENVIRONMENT=/.singularity.d/env/91-environment.sh
      env         SINGULARITY_INSTANCE=job
      env         SINGULARITY_NAME=img
      env         STASIS_CONTAINER=/img
      env         STASIS_INSTANCE=job
      env         STASIS_NAME=img
      env         TERM=xterm
      env         USER_PATH=/host/bin
    "#);
    assert_eq!(spec.ids.map, IdMap::Keep);
}
