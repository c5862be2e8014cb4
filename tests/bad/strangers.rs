//! A second user on the same host: nothing of the first one's can be seen, reached or ended.

use std::process::Command;

use super::*;
use crate::env::{STRANGER, as_user};
use crate::http::{free_port, get, post};
use crate::need::need;
use crate::running::{Run, Running};

fn as_stranger(program: &str, words: &[&str]) -> Outcome<Run> {
    let mut command = Command::new(program);
    command.args(words).current_dir("/");
    as_user(&mut command, STRANGER);
    Running::start(command, false)?.wait()
}

#[test]
fn coordinator_monitor_and_store_are_closed() {
    need!(root, image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let (server, port) = (image(&env, "server"), free_port().unwrap());
    let number = port.to_string();
    let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &server, "one", &number];
    env.ok(&start).unwrap();
    assert_eq!(post(port, "1").unwrap(), "1");
    env.ok(&["checkpoint", "instance", "one"]).unwrap();

    // Every TCP port that a process of the instance listens on, and the address that stands for the coordinator.
    assert_eq!(
        listening(&env).unwrap(),
        [number],
        "a process of the instance listens where anybody can connect"
    );
    for port in ["83", "7779"] {
        for host in ["127.0.0.1", "127.83.83.83"] {
            for what in ["-s", "-l", "-k"] {
                let run = as_stranger("dmtcp_command", &["--coord-host", host, "-p", port, what]).unwrap();
                assert_ne!(run.code, 0, "{host}:{port} {what}: {run:?}");
            }
        }
    }
    assert_eq!(get(port, "/").unwrap(), "1");

    // Sockets and files, even where the way to them stands open.
    for path in ["", "data", "run"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(env.path(path), mode).unwrap();
    }
    for path in everything(&env).unwrap() {
        let shown = path.to_string_lossy().into_owned();
        let found = std::fs::symlink_metadata(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077;
        let closed = mode == 0 || found.is_symlink() || inside_closed(&env, &path);
        assert!(closed, "others may use {shown} (mode 0{mode:o})");
        let test = as_stranger("sh", &["-c", "test -r \"$0\" || test -w \"$0\"", &shown]).unwrap();
        assert_ne!(test.code, 0, "a stranger reaches {shown}");
    }
    env.finish().unwrap();
}

/// Below a directory that only its owner may enter.
fn inside_closed(env: &Env, path: &std::path::Path) -> bool {
    let parents = path.ancestors().skip(1).take_while(|dir| dir.starts_with(env.dir()));
    parents
        .filter_map(|dir| dir.metadata().ok())
        .any(|found| std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077 == 0)
}

/// Everything in the store and in the runtime directory.
fn everything(env: &Env) -> Outcome<Vec<std::path::PathBuf>> {
    let mut all = crate::tree::below(&env.path("data"))?;
    all.extend(crate::tree::below(&env.path("run"))?);
    Ok(all)
}

/// TCP ports on which processes of this test listen.
fn listening(env: &Env) -> Outcome<Vec<String>> {
    let mut sockets = Vec::new();
    for (pid, _) in env.survivors() {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let link = std::fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
            sockets.extend(
                link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned),
            );
        }
    }
    let mut ports = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(address), Some(&"0A"), Some(inode)) = (words.get(1), words.get(3), words.get(9)) else {
                continue;
            };
            let port = address.rsplit(':').next().and_then(|hex| u16::from_str_radix(hex, 16).ok());
            if sockets.iter().any(|socket| socket == inode) {
                ports.extend(port.map(|port| port.to_string()));
            }
        }
    }
    Ok(ports)
}

#[test]
fn an_instance_of_another_user_is_not_known() {
    need!(root, image, userns);
    let first = Env::new(Who::User).unwrap();
    let small = image(&first, "small");
    first.ok(&["instance", "start", &small, "one", IDLE]).unwrap();
    let second = tempfile::tempdir().unwrap();
    crate::env::own(second.path(), STRANGER).unwrap();
    let config = second.path().join("plugins.toml");
    std::fs::copy(first.path("plugins.toml"), &config).unwrap();
    crate::env::own(&config, STRANGER).unwrap();
    let stranger = |words: &[&str]| {
        let mut command = Command::new(&first.site.stasis);
        command.arg("--config").arg(&config).args(words).env_clear().current_dir("/");
        command.env("HOME", second.path()).env("XDG_RUNTIME_DIR", second.path()).env("PATH", "/usr/bin:/bin");
        as_user(&mut command, STRANGER);
        Running::start(command, false).unwrap().wait().unwrap()
    };
    assert_eq!(stranger(&["instance", "list"]).out.lines().count(), 1);
    for words in [&["instance", "stop", "one"][..], &["exec", "instance://one", "true"]] {
        let run = stranger(words);
        assert_ne!(run.code, 0, "{run:?}");
        assert!(run.err.contains("no instance found"), "{run:?}");
    }
    assert!(first.ok(&["instance", "list"]).unwrap().out.contains("one"));
    first.finish().unwrap();
}
