//! Restarts that would not bring back what was saved.

use super::*;
use crate::env::{STRANGER, as_user};
use crate::http::{free_port, get, post};
use crate::need::need;
use crate::running::Running;

#[test]
fn other_arguments() {
    need!(image, userns, dmtcp);
    let env = saved(Who::User).unwrap();
    let small = image(&env, "small");
    let told = env.fails(&["instance", "start", "--restart", "kept", &small, "one", "sleep", "7"]).unwrap();
    insta::assert_snapshot!(told, @"
    exit 255
    FATAL:   the arguments differ from those that the saved application was started with
             because: it was started with: /.singularity.d/startscript /opt/subjects/bin/idle
             hint:    give the same arguments, or none
    ");
    env.ok(&["instance", "start", "--restart", "kept", &small, "one", IDLE]).unwrap();
    env.finish().unwrap();
}

#[test]
fn the_port_is_taken() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let (server, port) = (image(&env, "server"), free_port().unwrap());
    let number = port.to_string();
    let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &server, "one", &number];
    env.ok(&start).unwrap();
    assert_eq!(post(port, "p").unwrap(), "p");
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let told = env.fails(&["instance", "start", "--restart", "kept", &server, "one"]).unwrap();
    insta::assert_snapshot!(told.replace(&number, "$PORT"), @"
    exit 255
    FATAL:   port N is taken
             because: the application listened on 127.0.0.1:N, which is in use, by whom is not shown to you
             hint:    end the program that listens there, or restart with --net
    ");
    assert_eq!(env.ok(&["instance", "list"]).unwrap().out.lines().count(), 1);
    drop(taken);
    env.ok(&["instance", "start", "--restart", "kept", &server, "one"]).unwrap();
    assert_eq!(get(port, "/").unwrap(), "p");
    env.finish().unwrap();
}

/// A connection to a server that does not come back with the container.
#[test]
fn a_peer_outside_the_container() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let (any, port) = (image(&env, "any"), free_port().unwrap());
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (number, other) = (port.to_string(), peer.local_addr().unwrap().port().to_string());
    let program = ["python3", "/opt/subjects/objects.py", &number, "peer", &other];
    let flags = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &any, "one"];
    env.ok(&[&flags[..], &program[..]].concat()).unwrap();
    assert_eq!(get(port, "/").unwrap(), "works");
    let told = env.fails(&["checkpoint", "instance", "one"]).unwrap();
    insta::assert_snapshot!(told.replace(&other, "$PEER").replace(&number, "$PORT"), @r#"
    exit 255
    FATAL:   DMTCP cannot save instance "one"
             because: the connection of pid N to 127.0.0.1:N: its other end is outside of the container: a restart would fail as a whole
             because: the application runs on, and nothing was saved
             hint:    save while no such connection is open
    "#);
    assert_eq!(get(port, "/").unwrap(), "works");
    env.finish().unwrap();
}

#[test]
fn another_user_brings_nothing_back() {
    need!(root, image, userns, dmtcp);
    let env = saved(Who::User).unwrap();
    let small = image(&env, "small");
    for path in ["", "data", "data/checkpoints"] {
        // Even where the doors stand open.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(env.path(path), mode).unwrap();
    }
    for (uid, what) in [(STRANGER, "a stranger"), (0, "root")] {
        let mut command = std::process::Command::new(&env.site.stasis);
        let ours = env.command(&["instance", "start", "--restart", "kept", &small, "one"]);
        command.args(ours.get_args()).env_clear().current_dir("/");
        command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let config = std::path::Path::new("/tmp").join(format!("stasis-c-{}-{uid}.toml", std::process::id()));
        std::fs::copy(env.path("plugins.toml"), &config).unwrap();
        crate::env::own(&config, uid).unwrap();
        let args: Vec<_> = ours.get_args().map(ToOwned::to_owned).collect();
        let mut command = std::process::Command::new(&env.site.stasis);
        command.arg("--config").arg(&config).args(&args[2..]).env_clear().current_dir("/");
        command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let run = tempfile::tempdir().unwrap();
        crate::env::own(run.path(), uid).unwrap();
        command.env("STASIS_RUNTIME_DIR", run.path());
        as_user(&mut command, uid);
        let run = Running::start(command, false).unwrap().wait().unwrap();
        std::fs::remove_file(&config).unwrap();
        assert_ne!(run.code, 0, "{what}: {run:?}");
        insta::allow_duplicates! { insta::assert_snapshot!(env.told(&run), @"
        exit 255
        FATAL:   $DIR/data is not safe to use: it belongs to uid N, and you are uid N
                 hint:    the store takes only directories of your own that nobody else can write to; look at `ls -ld $DIR/data`, or choose another store
        "); }
    }
    env.finish().unwrap();
}

/// Who has a port is named where that is shown; one that nobody is seen to have may be about to be free.
#[test]
fn whoever_has_the_port_is_named_or_waited_for() {
    need!(root, image, userns);
    let port = free_port().unwrap();
    let script = format!(
        "import socket, time\n\
         t = socket.create_server(('127.0.0.1', {port}))\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', {port}))\n\
         time.sleep(1000)"
    );
    for who in [Who::Myself, Who::User] {
        let env = Env::new(who).unwrap();
        let any = image(&env, "any");
        let start = ["instance", "start", "--backend", "native", "--checkpoint", "kept", &any, "one"];
        env.ok(&[&start[..], &["python3", "-c", &script]].concat()).unwrap();
        env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
        let restart = ["instance", "start", "--restart", "kept", "-", "one"];
        let tcp = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        if env.uid() == 0 {
            let own = format!("(pid {}) listens now", std::process::id());
            let told = env.stasis(&restart).unwrap().err;
            assert!(told.contains(&format!("port {port} is taken")) && told.contains(&own), "{told}");
            drop(tcp);
            let udp = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap();
            let told = env.stasis(&restart).unwrap().err;
            assert!(told.contains(&format!("UDP port {port} is taken")) && told.contains(&own), "{told}");
            drop(udp);
            // Another address of this machine is nobody's business.
            let _other = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
            env.ok(&restart).unwrap();
        } else {
            let free = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(700));
                drop(tcp);
            });
            env.ok(&restart).unwrap();
            free.join().unwrap();
        }
        env.finish().unwrap();
    }
}
