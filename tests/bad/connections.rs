//! Open TCP connections under CRIU: refused with the peer's address, closed, or kept.

use super::criu::holding;
use super::*;
use crate::http::get;
use crate::need::need;
use std::net::TcpListener;

/// Connected to a server of the test's.
fn connected(flags: &[&str]) -> Outcome<(Env, u16, TcpListener)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let peer = listener.local_addr()?.port().to_string();
    let (env, port) = holding(Who::User, flags, &["peer", &peer])?;
    Ok((env, port, listener))
}

#[test]
fn an_open_connection_is_refused_with_its_peer_or_closed() {
    need!(image, userns, criu);
    let (env, _, _listener) = connected(&[]).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   CRIU cannot save instance "one"
             because: TCP connection of python3 (pid N) from 127.0.0.1:N to 127.0.0.1:N: an open connection has its other half elsewhere
             because: the application runs on, and nothing was saved
             hint:    wait until it is closed, or start with `--tcp close` (the application finds it closed after a restart) or `--tcp keep`
    "#);
    env.finish().unwrap();
    let (env, port, _listener) = connected(&["--tcp", "close"]).unwrap();
    let saved = env.ok(&["checkpoint", "instance", "one"]).unwrap();
    assert!(saved.err.contains("1 TCP connection(s) closed"), "{}", saved.err);
    assert_eq!(get(port, "/").unwrap(), "works");
    env.ok(&["instance", "stop", "one"]).unwrap();
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    assert!(get(port, "/").unwrap().starts_with("dead"), "the connection cannot be there any more");
    env.finish().unwrap();
}

#[test]
fn connections_of_the_hosts_network_cannot_be_kept_by_a_user() {
    need!(image, userns, criu);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let words = [
        "instance",
        "start",
        "--backend",
        "criu",
        "--tcp",
        "keep",
        "--checkpoint",
        "kept",
        &small,
        "one",
        IDLE,
    ];
    insta::assert_snapshot!(env.fails(&words).unwrap(), @"
    exit 255
    FATAL:   TCP connections cannot be kept
             because: the container uses the host's network, which an ordinary user cannot take connections from
             hint:    give the container a network of its own with --net, or use --tcp close
    ");
    insta::assert_snapshot!(env.fails(&["exec", "--tcp", "keep", &small, "true"]).unwrap(), @"
    exit 1
    ERROR:   --tcp needs --checkpoint NAME, --restart NAME or --resume NAME
    ");
    let words = [
        "instance",
        "start",
        "--backend",
        "criu",
        "--tcp",
        "hold",
        "--checkpoint",
        "kept",
        &small,
        "one",
        IDLE,
    ];
    insta::assert_snapshot!(env.fails(&words).unwrap(), @"
    exit 1
    error: invalid value 'hold' for '--tcp <refuse|close|keep>'
      [possible values: refuse, close, keep]

    For more information, try '--help'.
    ");
    env.finish().unwrap();
}

#[test]
fn connections_of_an_own_network_are_kept() {
    need!(root, image, userns, criu);
    for who in [Who::Myself, Who::User] {
        let env = Env::new(who).unwrap();
        let any = image(&env, "any");
        let program = ["python3", "/opt/subjects/objects.py", "8080", "local"];
        let flags = [
            "instance",
            "start",
            "--net",
            "--tcp",
            "keep",
            "--backend",
            "criu",
            "--checkpoint",
            "kept",
            &any,
            "one",
        ];
        env.ok(&[&flags[..], &program[..]].concat()).unwrap();
        let ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/').read().decode())";
        let works = |env: &Env| env.ok(&["exec", "instance://one", "python3", "-c", ask]).unwrap().out;
        for _ in 0..2 {
            env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
            env.ok(&["instance", "start", "--net", "--restart", "kept", &any, "one"]).unwrap();
            assert_eq!(works(&env), "works\n");
        }
        env.finish().unwrap();
    }
}
