//! What CRIU cannot save or bring back, and what it says then, in words of ours.

use super::*;
use crate::http::{free_port, get};
use crate::need::need;
use std::net::TcpListener;
use std::time::Instant;

/// `one` holds one kernel object and is to be saved into `kept`; the port at which it answers.
pub(super) fn holding(who: Who, flags: &[&str], words: &[&str]) -> Outcome<(Env, u16)> {
    let (env, port) = (Env::new(who)?, free_port()?);
    let (any, number) = (image(&env, "any"), port.to_string());
    let mut all = vec!["instance", "start", "--backend", "criu", "--checkpoint", "kept"];
    all.extend(flags);
    all.extend([&any, "one", "python3", "/opt/subjects/objects.py", &number]);
    all.extend(words);
    env.ok(&all)?;
    get(port, "/up")?;
    Ok((env, port))
}

/// A capture that is refused; the application works as before and nothing is left.
fn refused(who: Who, flags: &[&str], kind: &str) -> Outcome<String> {
    let (env, port) = holding(who, flags, &[kind])?;
    assert_eq!(get(port, "/")?, "works");
    let told = env.fails(&["checkpoint", "instance", "one"])?;
    assert_eq!(get(port, "/")?, "works", "{kind}");
    assert!(find(&store(&env, "kept"), "manifest.json").is_empty(), "{kind}");
    env.finish()?;
    Ok(told)
}

#[test]
fn objects_that_a_user_cannot_have_saved() {
    need!(image, userns, criu);
    let told = |kind| refused(Who::User, &[], kind).unwrap();
    insta::assert_snapshot!(told("io_uring"), @r#"
    exit 255
    FATAL:   CRIU cannot save instance "one"
             because: descriptor N of python3 (pid N): anon_inode:[io_uring]: CRIU cannot save io_uring
             because: the application runs on, and nothing was saved
             hint:    switch io_uring off in the application
    "#);
    insta::assert_snapshot!(told("inotify"), @r#"
    exit 255
    FATAL:   CRIU cannot save instance "one"
             because: descriptor N of python3 (pid N): anon_inode:inotify: CRIU cannot save inotify without privilege: it may not look up a watched file by its handle
             because: the application runs on, and nothing was saved
             hint:    let the application poll instead, or save as root
    "#);
    insta::assert_snapshot!(told("sysv"), @r#"
    exit 255
    FATAL:   CRIU cannot save instance "one"
             because: memory of python3 (pid N): /SYSV00000000 (deleted): CRIU cannot save System V shared memory inside a container
             because: the application runs on, and nothing was saved
             hint:    use files in /dev/shm or shared anonymous memory instead
    "#);
    insta::assert_snapshot!(told("mqueue"), @"
    exit 255
    FATAL:   the application could not be saved
             because: python3 (pid N) holds descriptor N (/subject), which lies outside of the container (or is a POSIX message queue)
             because: the application runs on, and nothing was saved
             hint:    close it in the application, or start the instance anew without handing it down
    ");
    insta::assert_snapshot!(told("shm"), @r#"
    exit 255
    FATAL:   CRIU cannot save instance "one"
             because: memory of python3 (pid N): /dev/shm/subject (deleted): the file was deleted, and without privilege CRIU cannot reach it any more
             because: the application runs on, and nothing was saved
             hint:    let the file stay while it is mapped, or save as root
    "#);
    insta::assert_snapshot!(told("userns"), @"
    exit 255
    FATAL:   the application could not be saved
             because: python3 (pid N) is in a user namespace of its own inside the container, which CRIU cannot save
             because: the application runs on, and nothing was saved
             hint:    switch the sandbox off in the application (browsers, build tools), or take another backend
    ");
    insta::assert_snapshot!(told("filtered"), @"
    exit 255
    FATAL:   the application could not be saved
             because: the application has a seccomp filter, which CRIU cannot suspend without privilege
             because: the application runs on, and nothing was saved
             hint:    switch the sandbox off in the application, or take another backend
    ");
    insta::assert_snapshot!(told("traced"), @"
    exit 255
    FATAL:   the application could not be saved
             because: python3 (pid N) is being traced (gdb, strace)
             because: the application runs on, and nothing was saved
             hint:    end the tracer, and save again
    ");
}

#[test]
fn objects_that_root_cannot_have_saved() {
    need!(root, image, criu);
    let told = |kind| refused(Who::Myself, &[], kind).unwrap();
    insta::assert_snapshot!(told("sysv"), @r#"
    exit 255
    FATAL:   CRIU cannot save instance "one"
             because: memory of python3 (pid N): /SYSV00000000 (deleted): CRIU cannot save System V shared memory inside a container
             because: the application runs on, and nothing was saved
             hint:    use files in /dev/shm or shared anonymous memory instead
    "#);
    insta::assert_snapshot!(told("userns"), @"
    exit 255
    FATAL:   the application could not be saved
             because: python3 (pid N) is in a user namespace of its own inside the container, which CRIU cannot save
             because: the application runs on, and nothing was saved
             hint:    switch the sandbox off in the application (browsers, build tools), or take another backend
    ");
}

#[test]
fn what_would_be_lost_is_refused_unless_accepted() {
    need!(image, userns, criu);
    let (env, port) = holding(Who::User, &[], &["memfd"]).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   CRIU cannot save instance "one"
             because: memory of python3 (pid N): /memfd:subject (deleted): after a restart this memory and the descriptor of it are no longer the same
             because: the application runs on, and nothing was saved
             hint:    close the descriptor once it is mapped, or save as root; to go on and lose it: --accept-loss=memfd
    "#);
    env.ok(&["checkpoint", "instance", "--accept-loss=memfd", "one"]).unwrap();
    assert_eq!(get(port, "/").unwrap(), "works");
    env.finish().unwrap();
}

#[test]
fn a_deleted_file_beyond_the_limit() {
    need!(image, userns, criu);
    insta::assert_snapshot!(refused(Who::User, &["--contain", "--backend-option", "ghost-limit=1M"], "ghost").unwrap(), @"
    exit 255
    FATAL:   the application could not be saved
             because: /tmp/ghost of N bytes was deleted and is still open; it is larger than what is saved of such files
             because: the application runs on, and nothing was saved
             hint:    save with `--backend-option ghost-limit=4M`
    ");
    let (env, port) = holding(Who::User, &["--contain"], &["ghost"]).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    assert_eq!(get(port, "/").unwrap(), "works");
    env.finish().unwrap();
}

#[test]
fn a_mapped_file_that_changed_since() {
    need!(image, userns, criu);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let work = env.make_dir("work").unwrap();
    let program = work.join("idle");
    std::fs::copy(env.site.image("small").join("opt/subjects/bin/idle"), &program).unwrap();
    let bind = format!("{}:/srv", work.display());
    let start = [
        "instance",
        "start",
        "-B",
        &bind,
        "--backend",
        "criu",
        "--checkpoint",
        "kept",
        &small,
        "one",
        "/srv/idle",
    ];
    env.ok(&start).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let restart = ["instance", "start", "--restart", "kept", &small, "one"];
    let mut bytes = std::fs::read(&program).unwrap();
    bytes.extend(b"more");
    std::fs::write(&program, &bytes).unwrap();
    insta::assert_snapshot!(env.fails(&restart).unwrap(), @"
    exit 255
    FATAL:   the saved state could not be brought back
             because: /srv/idle has changed since the state was saved: it has N bytes instead of N
             hint:    put the file back as it was when the state was saved: the same image, the same binds
    ");
    std::fs::remove_file(&program).unwrap();
    insta::assert_snapshot!(env.fails(&restart).unwrap(), @"
    exit 255
    FATAL:   the saved state could not be brought back
             because: /srv/idle, which was open when the state was saved, is not there any more
             hint:    put the file back to its place (an empty one may do for a log), or bind the directory that holds it
    ");
    bytes.truncate(bytes.len() - 4);
    std::fs::write(&program, &bytes).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    env.ok(&restart).unwrap();
    env.finish().unwrap();
}

#[test]
fn damaged_images_never_reach_the_engine() {
    need!(image, userns, criu);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    env.ok(&["instance", "start", "--backend", "criu", "--checkpoint", "kept", &small, "one", IDLE]).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let pages = find(&store(&env, "kept"), "pages-1.img").pop().unwrap();
    let whole = std::fs::read(&pages).unwrap();
    std::fs::write(&pages, &whole[..whole.len() / 2]).unwrap();
    insta::assert_snapshot!(env.fails(&["instance", "start", "--restart", "kept", &small, "one"]).unwrap(), @"
    exit 255
    FATAL:   $DIR/data/checkpoints/kept/generations/000001/images/pages-1.img is damaged: cut short: it has N of N bytes
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    ");
    std::fs::write(&pages, &whole).unwrap();
    env.ok(&["instance", "start", "--restart", "kept", &small, "one"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn a_second_copy_and_a_taken_port() {
    need!(image, userns, criu);
    let (env, port) = holding(Who::User, &[], &["eventfd"]).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    insta::assert_snapshot!(env.fails(&["instance", "start", "--restart", "kept", "-", "two"]).unwrap(), @r#"
    exit 255
    FATAL:   checkpoint "kept" is in use by instance "one" (process N, since TIME)
             hint:    stop it first: stasis instance stop one
    "#);
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
    env.finish().unwrap();
}

/// Without subordinate ids CRIU would make the user root, which nobody asked for.
#[test]
fn auto_takes_criu_only_where_the_user_stays_the_user() {
    need!(root, image, userns, uidmap, criu);
    for (who, taken) in [(Who::Granted, true), (Who::User, false)] {
        let env = Env::new(who).unwrap();
        env.configure(&format!("order = [\"criu\"]\n{}", env.criu())).unwrap();
        let small = image(&env, "small");
        let start = ["instance", "start", "--checkpoint", "kept", &small, "one", IDLE];
        if taken {
            env.ok(&start).unwrap();
            env.ok(&["checkpoint", "instance", "one"]).unwrap();
            assert!(env.ok(&["checkpoint", "list"]).unwrap().out.contains("criu"));
            let id = env.ok(&["exec", "instance://one", "cat", "/proc/self/uid_map"]).unwrap();
            assert!(id.out.contains(&env.uid().to_string()), "{}", id.out);
            // The saved files are the user's own.
            let inventory = find(&store(&env, "kept"), "inventory.img").pop().unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&inventory.metadata().unwrap()), env.uid());
        } else {
            insta::assert_snapshot!(env.fails(&start).unwrap(), @"
            exit 255
            FATAL:   no backend can be used here
                     because: criu: it would change the user's id inside; name it with --backend to take it all the same
                     hint:    `stasis backend check` shows everything that was looked for
            ");
            let named = env
                .ok(&["instance", "start", "--backend", "criu", "--checkpoint", "kept", &small, "one", IDLE])
                .unwrap();
            insta::assert_snapshot!(env.told(&named), @"
            exit 0
            WARNING: inside you are root: CRIU needs uid N there, and you have no subordinate ids beside which you could stay yourself
            INFO:    instance started successfully
            ");
        }
        env.finish().unwrap();
    }
}

/// This needs a root without CAP_SYS_RESOURCE, as many virtual machines and containers have it.
#[test]
fn a_process_of_another_user() {
    need!(root, image, criu);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    let may = u64::from_str_radix(bounding, 16).unwrap() & (1 << 24) != 0;
    let (env, port) = holding(Who::Myself, &[], &["elsewhere"]).unwrap();
    if may {
        env.ok(&["checkpoint", "instance", "one"]).unwrap();
    } else {
        insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @"
        exit 255
        FATAL:   the application could not be saved
                 because: python3 (pid N) belongs to another user, and root lacks CAP_SYS_RESOURCE on this host
                 because: the application runs on, and nothing was saved
                 hint:    start the instance as that user, or give CAP_SYS_RESOURCE to the machine or container that stasis runs in
        ");
    }
    assert_eq!(get(port, "/").unwrap(), "works");
    env.finish().unwrap();
}

/// What `memory.py 64` holds.
const PAGES: u64 = (64 << 20) / 4096;

/// How many pages CRIU itself brought back at this start; those that came later do not count.
fn pages_restored(env: &Env) -> Outcome<u64> {
    let look = "print(open('/.stasis/criu-work/stats-restore', 'rb').read().hex())";
    let hex = env.ok(&["exec", "instance://one", "python3", "-c", look])?.out;
    let digits: Vec<char> = hex.trim().chars().collect();
    let bytes = digits.chunks(2).map(|two| u8::from_str_radix(&two.iter().collect::<String>(), 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    // Magic numbers and lengths come first; then a tag and a number by turns, as protobuf has them.
    let numbers = bytes.get(14..).ok_or("cut short")?.split_inclusive(|byte| byte & 0x80 == 0);
    let numbers: Vec<u64> = numbers
        .map(|part| part.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)))
        .collect();
    let pages = numbers.chunks(2).find(|pair| pair[0] == 5 << 3).and_then(|pair| pair.get(1));
    pages.copied().ok_or_else(|| format!("no pages in {hex}").into())
}

#[test]
fn lazy_and_pre_dump_where_the_kernel_has_them() {
    need!(root, image, criu);
    let env = Env::new(Who::Myself).unwrap();
    let any = image(&env, "any");
    let port = memory_server(&env, "criu", 64).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    for _ in 0..2 {
        env.ok(&["instance", "start", "--backend-option", "lazy=true", "--restart", "kept", &any, "one"])
            .unwrap();
        let restored = pages_restored(&env).unwrap();
        assert!(restored < PAGES / 2, "not lazy: {restored} pages were there at once");
        assert_eq!(get(port, "/check").unwrap(), "good");
        env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    }
    env.ok(&["instance", "start", "--backend-option", "pre-dump=true", "--restart", "kept", &any, "one"])
        .unwrap();
    let restored = pages_restored(&env).unwrap();
    assert!(restored >= PAGES, "not lazy, and only {restored} pages were there at once");
    let dirty = std::fs::read_to_string("/proc/self/smaps")
        .unwrap()
        .lines()
        .any(|l| l.starts_with("VmFlags") && l.contains(" sd"));
    if dirty {
        env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
        let newest = env.newest("kept").unwrap();
        let skipped = newest["report"]["facts"]["statistics"]["pages-skipped"].as_u64().unwrap();
        assert!(skipped > PAGES / 2, "only {skipped} pages were taken before the pause");
        let before = find(&store(&env, "kept"), "pages-1.img");
        let before =
            before.iter().find(|path| path.parent().is_some_and(|dir| dir.ends_with("images/parent")));
        assert!(before.unwrap().metadata().unwrap().len() > PAGES / 2 * 4096);
        env.ok(&["instance", "start", "--restart", "kept", &any, "one"]).unwrap();
    } else {
        insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @"
        exit 255
        FATAL:   the memory cannot be saved before the pause
                 because: this kernel does not tell which pages were written since (soft-dirty)
                 because: the application runs on, and nothing was saved
                 hint:    leave the option pre-dump out
        ");
    }
    assert_eq!(get(port, "/check").unwrap(), "good");
    env.finish().unwrap();
}

#[test]
fn a_user_may_not_restart_lazily_where_userfaultfd_is_closed() {
    need!(image, userns, criu);
    let open =
        std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "1");
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    env.ok(&["instance", "start", "--backend", "criu", "--checkpoint", "kept", &small, "one", IDLE]).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let lazy = ["instance", "start", "--backend-option", "lazy=true", "--restart", "kept", &small, "one"];
    if open || env.uid() == 0 {
        env.ok(&lazy).unwrap();
    } else {
        insta::assert_snapshot!(env.fails(&lazy).unwrap(), @"
        exit 255
        FATAL:   a lazy restart is not possible here
                 because: ordinary users may not use userfaultfd (sysctl vm.unprivileged_userfaultfd=1)
                 hint:    leave the option lazy out
        ");
    }
    env.finish().unwrap();
}

/// The processes stand still while the memory file systems are saved. Whoever is killed then leaves nobody stopped.
#[test]
fn a_backend_killed_while_the_processes_stand_still() {
    need!(image, userns, criu);
    let env = Env::new(Who::User).unwrap();
    let (any, port) = (image(&env, "any"), free_port().unwrap());
    let script = "echo kept > /dev/shm/file; exec python3 /opt/subjects/memory.py \"$1\" 256";
    let flags = ["instance", "start", "--backend", "criu", "--checkpoint", "kept", &any, "one"];
    env.ok(&[&flags[..], &["sh", "-c", script, "sh", &port.to_string()]].concat()).unwrap();
    assert_eq!(get(port, "/check").unwrap(), "good");
    // Of a CRIU of ours and of the host's own alike.
    for sign in ["bin/criu dump ", "__worker"] {
        let hit = (0..20).any(|_| {
            let hit = killed_while_it_saves(&env, sign).unwrap();
            assert_eq!(get(port, "/check").unwrap(), "good", "{sign}");
            let state = env.ok(&["exec", "instance://one", "cat", "/proc/100/stat"]).unwrap().out;
            assert!(!state.contains(") T "), "{sign}: {state}");
            hit
        });
        assert!(hit, "{sign}: every capture was complete before it could be killed");
    }
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    assert_eq!(get(port, "/check").unwrap(), "good");
    assert_eq!(env.ok(&["exec", "instance://one", "cat", "/dev/shm/file"]).unwrap().out, "kept\n");
    env.finish().unwrap();
}

/// Kills the process of this sign once pages are being written; false where the capture was complete before that.
fn killed_while_it_saves(env: &Env, sign: &str) -> Outcome<bool> {
    let capture = env.spawn(&["checkpoint", "instance", "one"])?;
    let staging = store(env, "kept").join("staging");
    let deadline = Instant::now() + PATIENCE;
    while !capture.ended() && Instant::now() < deadline {
        let saves = env.survivors().into_iter().find(|(_, words)| words.contains(sign));
        if let Some((pid, _)) = saves.filter(|_| !find(&staging, "pages-1.img").is_empty()) {
            // It may end this very moment.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            break;
        }
    }
    let run = capture.wait()?;
    if run.code == 0 {
        return Ok(false);
    }
    assert!(run.err.contains("kill") && run.err.contains("the application runs on"), "{sign}: {}", run.err);
    Ok(true)
}

#[test]
fn files_in_memory_that_nobody_saves() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let start = ["instance", "start", "--writable-tmpfs", "--checkpoint", "kept", &small, "one", IDLE];
    insta::assert_snapshot!(env.fails(&start).unwrap(), @"
    exit 1
    ERROR:   --writable-tmpfs keeps files in memory that no engine saves
             hint:    use --overlay DIR, whose files stay; to go on and lose them: --accept-loss=writable-tmpfs
    ");
    env.finish().unwrap();
}
