//! What the native engine cannot save or bring back, and what it says then.

use super::*;
use crate::http::{free_port, get};
use crate::need::need;
use std::net::TcpListener;

/// `one` holds one kernel object and is to be saved into `kept`; the port at which it answers.
fn holding(who: Who, flags: &[&str], words: &[&str]) -> Outcome<(Env, u16)> {
    let (env, port) = (Env::new(who)?, free_port()?);
    let (any, number) = (image(&env, "any"), port.to_string());
    let mut all = vec!["instance", "start", "--backend", "native", "--checkpoint", "kept"];
    all.extend(flags);
    all.extend([&any, "one", "python3", "/opt/subjects/objects.py", &number]);
    all.extend(words);
    env.ok(&all)?;
    Ok((env, port))
}

/// A capture that is refused; the application works as before and nothing is left.
fn refused(who: Who, words: &[&str]) -> Outcome<String> {
    let (env, port) = holding(who, &[], words)?;
    assert_eq!(get(port, "/")?, "works");
    let told = env.fails(&["checkpoint", "instance", "one"])?;
    assert_eq!(get(port, "/")?, "works", "{words:?}");
    assert!(find(&store(&env, "kept"), "manifest.json").is_empty(), "{words:?}");
    env.finish()?;
    Ok(told)
}

#[test]
fn objects_that_the_native_engine_does_not_save() {
    need!(image, userns);
    let told = |kind| refused(Who::User, &[kind]).unwrap();
    insta::assert_snapshot!(told("io_uring"), @r#"
    exit 255
    FATAL:   the native engine cannot save instance "one"
             because: descriptor N of python3 (pid N): anon_inode:[io_uring]: the native engine does not save this kind of object
             because: the application runs on, and nothing was saved
             hint:    switch io_uring off in the application
    "#);
    insta::assert_snapshot!(told("sysv"), @r#"
    exit 255
    FATAL:   the native engine cannot save instance "one"
             because: memory of python3 (pid N): /SYSV00000000 (deleted): the native engine does not save System V shared memory
             because: the application runs on, and nothing was saved
             hint:    use files in /dev/shm or shared anonymous memory instead
    "#);
    insta::assert_snapshot!(told("mqueue"), @"
    exit 255
    FATAL:   descriptor N of process N: /subject cannot be saved
             because: it is a message queue, whose messages would be lost
             because: the application runs on, and nothing was saved
             hint:    let the application close it before saving
    ");
    insta::assert_snapshot!(told("userns"), @"
    exit 255
    FATAL:   python3 (pid N) cannot be saved
             because: it has a user namespace of its own
             because: the application runs on, and nothing was saved
             hint:    let the application make none
    ");
    insta::assert_snapshot!(told("filtered"), @"
    exit 255
    FATAL:   python3 (pid N) cannot be saved
             because: it runs under a seccomp filter, which cannot be read and would be lost
             because: the application runs on, and nothing was saved
             hint:    start it without
    ");
    insta::assert_snapshot!(told("traced"), @"
    exit 255
    FATAL:   python3 (pid N) cannot be saved
             because: a debugger or tracer is attached to it
             because: the application runs on, and nothing was saved
             hint:    detach that first
    ");
    insta::assert_snapshot!(told("local"), @r#"
    exit 255
    FATAL:   the native engine cannot save instance "one"
             because: TCP connection of python3 (pid N) from 127.0.0.1:N to 127.0.0.1:N: the state of an open connection is not saved
             because: TCP connection of python3 (pid N) from 127.0.0.1:N to 127.0.0.1:N: the state of an open connection is not saved
             because: the application runs on, and nothing was saved
             hint:    wait until it is closed, or take another backend: criu can close or keep it
    "#);
}

#[test]
fn a_connection_to_the_outside_with_the_native_engine() {
    need!(image, userns);
    let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    insta::assert_snapshot!(refused(Who::User, &["peer", &port]).unwrap(), @r#"
    exit 255
    FATAL:   the native engine cannot save instance "one"
             because: TCP connection of python3 (pid N) from 127.0.0.1:N to 127.0.0.1:N: the state of an open connection is not saved
             because: the application runs on, and nothing was saved
             hint:    wait until it is closed, or take another backend: criu can close or keep it
    "#);
}

#[test]
fn a_mapped_file_that_changed_since_with_the_native_engine() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let work = env.make_dir("work").unwrap();
    let program = work.join("idle");
    std::fs::copy(env.site.image("small").join("opt/subjects/bin/idle"), &program).unwrap();
    let bind = format!("{}:/srv", work.display());
    let start =
        ["instance", "start", "-B", &bind, "--backend", "native", "--checkpoint", "kept", &small, "one"];
    env.ok(&[&start[..], &["/srv/idle"]].concat()).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let restart = ["instance", "start", "--restart", "kept", &small, "one"];
    let (bytes, times) = (std::fs::read(&program).unwrap(), std::fs::metadata(&program).unwrap());
    std::fs::write(&program, [&bytes[..], b"more"].concat()).unwrap();
    insta::assert_snapshot!(env.fails(&restart).unwrap(), @"
    exit 255
    FATAL:   the file /srv/idle cannot be mapped again
             because: it has N bytes instead of N
             hint:    restart in the very image that was saved, with the same binds
    ");
    std::fs::remove_file(&program).unwrap();
    insta::assert_snapshot!(env.fails(&restart).unwrap(), @"
    exit 255
    FATAL:   the file /srv/idle cannot be mapped again
             because: No such file or directory
             hint:    restart in the very image that was saved, with the same binds
    ");
    std::fs::write(&program, &bytes).unwrap();
    insta::assert_snapshot!(env.fails(&restart).unwrap(), @"
    exit 255
    FATAL:   the file /srv/idle cannot be mapped again
             because: it was written to since
             hint:    restart in the very image that was saved, with the same binds
    ");
    let times = std::fs::FileTimes::new().set_modified(times.modified().unwrap());
    std::fs::File::options().write(true).open(&program).unwrap().set_times(times).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    env.ok(&restart).unwrap();
    env.finish().unwrap();
}

#[test]
fn damaged_images_never_reach_the_native_engine() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    env.ok(&["instance", "start", "--backend", "native", "--checkpoint", "kept", &small, "one", IDLE])
        .unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let restart = ["instance", "start", "--restart", "kept", &small, "one"];
    for name in ["core.json", "pages-100.img"] {
        let file = find(&store(&env, "kept"), name).pop().unwrap();
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let told = env.fails(&restart).unwrap();
        assert!(told.contains(&format!("{name} is damaged: cut short")), "{told}");
        std::fs::write(&file, &whole).unwrap();
    }
    env.ok(&restart).unwrap();
    env.finish().unwrap();
}

#[test]
fn a_second_copy_and_a_taken_port_with_the_native_engine() {
    need!(image, userns);
    let (env, port) = holding(Who::User, &[], &["eventfd"]).unwrap();
    assert_eq!(get(port, "/").unwrap(), "works");
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    env.ok(&["instance", "stop", "one"]).unwrap();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    insta::assert_snapshot!(env.fails(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap(), @"
    exit 255
    FATAL:   port N is taken
             because: the application listened on 127.0.0.1:N, which is in use, by whom is not shown to you
             hint:    end the program that listens there, or restart with --net
    ");
    drop(taken);
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    assert_eq!(get(port, "/").unwrap(), "works");
    env.finish().unwrap();
}
