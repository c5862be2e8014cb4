use super::*;
use crate::launch::protocol::Ending;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering};

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn on(&self, host: &str, boot_id: &str) -> Instances {
        Instances::open(&self.dir.path().join("data"), Host::new(host, boot_id))
    }

    fn here(&self) -> Instances {
        self.on("here", "boot-1")
    }

    fn plain(&self, error: &InstanceError) -> String {
        error.to_string().replace(self.dir.path().to_str().unwrap(), "/home")
    }
}

fn name(text: &str) -> InstanceName {
    InstanceName::new(text).unwrap()
}

fn liveness(instances: &Instances, text: &str) -> Liveness {
    instances.find(&name(text)).unwrap().liveness
}

fn lost(why: &str) -> Liveness {
    Liveness::Lost { why: why.to_owned() }
}

#[test]
fn a_life() {
    let home = Home::new();
    let here = home.here();
    assert!(here.list().unwrap().is_empty());
    assert!(!home.dir.path().join("data").exists());

    let mut claim = here.claim(&name("web")).unwrap();
    assert_eq!(claim.record().monitor_pid, std::process::id() as i32);
    assert_ne!(claim.record().monitor_start_time, 0);
    assert_eq!(here.find(&name("web")).unwrap().summary(), "starting");
    claim
        .update(|record| {
            record.state = State::Running;
            record.image = "/images/web.sif".into();
            record.ports.push(Port { protocol: "tcp".into(), address: "0.0.0.0".into(), port: 80 });
        })
        .unwrap();
    let seen = here.find(&name("web")).unwrap();
    assert!(seen.is_alive());
    assert_eq!(seen.record().unwrap(), claim.record());
    assert_eq!(seen.summary(), "running");

    claim.finish(Ending::Exit(3)).unwrap();
    // Its monitor has not gone yet.
    assert_eq!(liveness(&here, "web"), Liveness::Ended);
    drop(claim);
    let seen = here.find(&name("web")).unwrap();
    assert_eq!(seen.liveness, Liveness::Ended);
    let record = seen.record().unwrap();
    assert_eq!(record.state, State::Ended { how: Ending::Exit(3) });
    assert!(record.ended.is_some());

    here.remove(&name("web")).unwrap();
    assert!(here.list().unwrap().is_empty());
    assert!(!here.path(&name("web")).exists());
}

#[test]
fn the_logs_of_what_was_stopped_stay() {
    let home = Home::new();
    let here = home.here();
    let stop = |text: &str| {
        let claim = here.claim(&name(text)).unwrap();
        claim.open_logs().unwrap().0.write_all(text.as_bytes()).unwrap();
        claim.stop(Ending::Signal(2)).unwrap();
    };
    let logs = |text: &str| fs::read_to_string(here.find_last(&name(text)).ok()?.out_log()).ok();
    stop("web");
    assert!(here.list().unwrap().is_empty());
    let refused = here.find(&name("web")).unwrap_err();
    insta::assert_snapshot!(refused, @r#"no instance found with name "web" (none is running)"#);
    assert_eq!(here.find_last(&name("web")).unwrap().summary(), "stopped");
    assert_eq!(logs("web").unwrap(), "web");

    // What runs is nearer, and so is what runs on another host.
    let far = home.on("there", "boot-7");
    assert_eq!(far.find_last(&name("web")).unwrap().summary(), "on host here");
    assert!(far.list().unwrap().is_empty());
    drop(far.claim(&name("web")).unwrap());
    assert_eq!(here.find_last(&name("web")).unwrap().host, "there");
    far.remove(&name("web")).unwrap();

    // The name is free at once, and its next user's logs take the place.
    let claim = here.claim(&name("web")).unwrap();
    drop(claim.open_logs().unwrap());
    assert_eq!(logs("web").unwrap(), "");
    claim.stop(Ending::Exit(0)).unwrap();

    // The oldest go; what runs, or ended by itself, is none of them.
    let running = here.claim(&name("a-running")).unwrap();
    here.claim(&name("a-ended")).unwrap().finish(Ending::Exit(1)).unwrap();
    for number in 10..31 {
        stop(&format!("x{number}"));
    }
    let kept = (10..31).filter(|number| logs(&format!("x{number}")).is_some());
    assert_eq!(kept.collect::<Vec<_>>(), (11..31).collect::<Vec<_>>());
    assert!(!here.path(&name("web")).exists());
    assert_eq!(here.list().unwrap().len(), 2);
    drop(running);
}

#[test]
fn private() {
    let home = Home::new();
    let here = home.here();
    let claim = here.claim(&name("web")).unwrap();
    drop(claim.open_logs().unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let dir = here.path(&name("web"));
    for path in
        [home.dir.path().join("data"), dir.parent().unwrap().to_owned(), dir.clone(), dir.join("logs")]
    {
        assert_eq!(mode(&path), 0o700, "{}", path.display());
    }
    for file in ["instance.json", "lock", "logs/out.log", "logs/err.log"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let seen = here.find(&name("web")).unwrap();
    assert!(seen.record.unwrap_err().ends_with("others can write to it (mode 0777)"));
}

#[test]
fn one_at_a_time() {
    let home = Home::new();
    let here = home.here();
    let mut claim = here.claim(&name("web")).unwrap();
    claim
        .update(|record| {
            record.state = State::Running;
            record.monitor_pid = 42;
            record.started = "2026-01-02T03:04:05Z".into();
        })
        .unwrap();
    let refused = here.claim(&name("web")).unwrap_err();
    insta::assert_snapshot!(refused, @r#"instance "web" is running already (process 42, since 2026-01-02T03:04:05Z)"#);
    insta::assert_snapshot!(refused.help().unwrap(), @"choose another name, or stop it first: stasis instance stop web");
    assert!(matches!(here.remove(&name("web")), Err(InstanceError::Running { .. })));
    let second = here.claim(&name("db")).unwrap();
    let refused = here.find(&name("x")).unwrap_err();
    insta::assert_snapshot!(refused, @r#"no instance found with name "x" (running: db, web)"#);
    drop((claim, second));
    insta::assert_snapshot!(here.not_found("a\n*"), @r#"no instance found with name "a\n*" (none is running)"#);
}

#[test]
fn only_one_of_many_gets_it() {
    let home = Home::new();
    let here = home.here();
    let holders = AtomicU32::new(0);
    let claims = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut mine = 0;
                while mine < 15 {
                    let claim = match here.claim(&name("web")) {
                        Ok(claim) => claim,
                        Err(InstanceError::Running { .. }) => {
                            std::thread::yield_now();
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    mine += 1;
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                    claims.fetch_add(1, Ordering::SeqCst);
                    assert!(here.find(&name("web")).unwrap().is_alive());
                    holders.fetch_sub(1, Ordering::SeqCst);
                    claim.discard().unwrap();
                }
            });
            scope.spawn(|| {
                for _ in 0..50 {
                    here.list().unwrap();
                }
            });
        }
    });
    assert_eq!(claims.load(Ordering::SeqCst), 60);
    assert!(here.list().unwrap().is_empty());
}

#[test]
fn the_dead_are_told_and_replaced() {
    let home = Home::new();
    let here = home.here();
    let mut claim = here.claim(&name("web")).unwrap();
    claim.update(|record| record.state = State::Running).unwrap();
    let (mut out, _err) = claim.open_logs().unwrap();
    out.write_all(b"first\n").unwrap();
    fs::write(claim.logs().join("engine.log"), "x").unwrap();
    drop(claim);
    assert_eq!(liveness(&here, "web"), lost("its monitor died"));
    assert_eq!(here.find(&name("web")).unwrap().summary(), "lost: its monitor died");
    assert_eq!(liveness(&home.on("here", "boot-2"), "web"), lost("the machine was rebooted"));

    let claim = here.claim(&name("web")).unwrap();
    assert_eq!(fs::read_dir(claim.logs()).unwrap().count(), 0);
    let (out, _err) = claim.open_logs().unwrap();
    assert_eq!(out.metadata().unwrap().len(), 0);
    let seen = here.find(&name("web")).unwrap();
    assert_eq!(seen.out_log(), claim.logs().join("out.log"));
    assert!(seen.err_log().exists());
}

#[test]
fn a_lock_goes_to_the_monitor() {
    let home = Home::new();
    let here = home.here();
    let claim = here.claim(&name("web")).unwrap();
    let inherited = claim.as_fd().try_clone_to_owned().unwrap();
    drop(claim);
    assert!(here.find(&name("web")).unwrap().is_alive());
    let adopted = here.adopt(&name("web"), inherited).unwrap();
    assert_eq!(adopted.record().state, State::Starting);

    let other = here.claim(&name("db")).unwrap();
    let wrong = other.as_fd().try_clone_to_owned().unwrap();
    assert!(matches!(here.adopt(&name("web"), wrong), Err(InstanceError::WrongLock { .. })));
    // The right file, but not the description that holds the lock.
    let second = fs::File::options().write(true).open(here.path(&name("web")).join("lock")).unwrap();
    assert!(matches!(here.adopt(&name("web"), second.into()), Err(InstanceError::WrongLock { .. })));
    drop(adopted);
    assert_eq!(liveness(&here, "web"), lost("its monitor died"));
}

#[test]
fn other_hosts_of_the_same_home() {
    let home = Home::new();
    let far = home.on("there", "boot-7");
    let claim = far.claim(&name("web")).unwrap();
    let here = home.here();
    let elsewhere = Liveness::Elsewhere { host: "there".into() };
    assert_eq!(liveness(&here, "web"), elsewhere);
    let refused = here.remove(&name("web")).unwrap_err();
    insta::assert_snapshot!(refused, @r#"instance "web" is on host there"#);
    insta::assert_snapshot!(refused.help().unwrap(), @"run the command on host there");
    drop(claim);
    assert_eq!(here.find(&name("web")).unwrap().summary(), "on host there");
    assert!(far.path(&name("web")).join("instance.json").exists());

    // The same name here is another instance, and nearer.
    let near = here.claim(&name("web")).unwrap();
    assert_eq!(liveness(&here, "web"), Liveness::Alive);
    let list: Vec<(String, bool)> =
        here.list().unwrap().into_iter().map(|seen| (seen.host.clone(), seen.is_alive())).collect();
    assert_eq!(list, [("here".to_owned(), true), ("there".to_owned(), false)]);
    near.discard().unwrap();
    assert_eq!(liveness(&here, "web"), elsewhere);
    // This machine under the name that it had before.
    assert_eq!(liveness(&home.on("new-name", "boot-7"), "web"), lost("its monitor died"));
    home.on("new-name", "boot-7").remove(&name("web")).unwrap();
    assert!(here.list().unwrap().is_empty());
}

#[test]
fn damage_is_an_entry() {
    let home = Home::new();
    let here = home.here();
    let problem = |text: &str| {
        let _claim = here.claim(&name("bad")).unwrap();
        fs::write(here.path(&name("bad")).join("instance.json"), text).unwrap();
        let seen = here.find(&name("bad")).unwrap();
        assert!(seen.is_alive());
        home.plain(&seen.record().unwrap_err())
    };
    insta::assert_snapshot!(problem(""), @"/home/data/instances/here/bad/instance.json is damaged: it is empty");
    insta::assert_snapshot!(problem("{"), @"/home/data/instances/here/bad/instance.json is damaged: it is not readable: EOF while parsing an object at line 1 column 1");
    insta::assert_snapshot!(problem(r#"{"format": 9}"#), @"/home/data/instances/here/bad/instance.json is damaged: a newer stasis wrote it (format 9, this one reads up to 1)");
    insta::assert_snapshot!(problem(r#"{"format": 1, "name": "../x"}"#), @r#"/home/data/instances/here/bad/instance.json is damaged: it is not readable: instance name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first at line 1 column 29"#);
    let other = serde_json::to_string(&Record::new(&name("other"), &Host::new("here", "boot-1"))).unwrap();
    insta::assert_snapshot!(problem(&other), @r#"/home/data/instances/here/bad/instance.json is damaged: it is the record of instance "other""#);
    assert!(problem(&" ".repeat(2 << 20)).contains("it is larger than 1024 KiB"));

    let good = here.claim(&name("good")).unwrap();
    let states: Vec<String> = here.list().unwrap().iter().map(Seen::summary).collect();
    assert_eq!(states, ["lost: its record is damaged", "starting"]);
    drop(good);
    here.remove(&name("bad")).unwrap();
    assert_eq!(here.list().unwrap().len(), 1);
}

#[test]
fn links_and_strangers() {
    let home = Home::new();
    let here = home.here();
    here.claim(&name("web")).unwrap().finish(Ending::Signal(9)).unwrap();
    let host = here.path(&name("web")).parent().unwrap().to_owned();
    let victim = home.dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("instance.json"), "keep").unwrap();

    symlink(&victim, host.join("link")).unwrap();
    fs::write(host.join("file"), "").unwrap();
    fs::write(host.join(".hidden"), "").unwrap();
    fs::write(host.parent().unwrap().join("stray"), "").unwrap();
    let names: Vec<String> = here.list().unwrap().iter().map(|seen| seen.name.to_string()).collect();
    assert_eq!(names, ["file", "link", "web"]);
    insta::assert_snapshot!(home.plain(&here.claim(&name("link")).unwrap_err()), @"/home/data/instances/here/link is not safe to use: it is not a directory");
    here.remove(&name("link")).unwrap_err();

    // What the application left in the directory that it sees goes, but not what a link points to.
    let logs = here.path(&name("web")).join("logs");
    symlink(&victim, logs.join("out.log")).unwrap();
    fs::create_dir(logs.join("empty")).unwrap();
    let claim = here.claim(&name("web")).unwrap();
    symlink(victim.join("instance.json"), logs.join("err.log")).unwrap();
    let (_out, mut err) = claim.open_logs().unwrap();
    err.write_all(b"x").unwrap();
    drop(claim);
    fs::write(here.path(&name("web")).join("precious"), "").unwrap();
    let refused = here.remove(&name("web")).unwrap_err();
    insta::assert_snapshot!(home.plain(&refused), @r#"/home/data/instances/here/web holds "precious", which stasis did not make"#);
    assert!(here.find(&name("web")).unwrap().record.is_ok());
    fs::remove_file(here.path(&name("web")).join("precious")).unwrap();
    here.remove(&name("web")).unwrap();
    assert_eq!(fs::read_to_string(victim.join("instance.json")).unwrap(), "keep");
}

#[test]
fn patterns_select() {
    let home = Home::new();
    let here = home.here();
    let _claims: Vec<Claim> = ["job1", "job2", "web"].map(|n| here.claim(&name(n)).unwrap()).into();
    let matching = |pattern| here.matching(pattern).unwrap().len();
    assert_eq!((matching("job*"), matching("*"), matching("x*")), (2, 3, 0));
}

#[test]
fn a_record_keeps_what_it_does_not_know() {
    let home = Home::new();
    let here = home.here();
    let mut claim = here.claim(&name("web")).unwrap();
    let path = here.path(&name("web")).join("instance.json");
    claim
        .update(|record| {
            record.other.insert("colour".into(), "blue".into());
            record.monitor_pid = 42;
            record.monitor_start_time = 43;
            record.uid = 1000;
            record.started = "2026-01-02T03:04:05Z".into();
            record.state = State::Ended { how: Ending::Exit(3) };
        })
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    // What other versions will find.
    insta::assert_snapshot!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), @r#"{"action":"","backend":null,"boot_id":"boot-1","checkpoint":null,"colour":"blue","control":null,"ended":null,"foreground":false,"format":1,"host":"here","image":"","init_pid":0,"last_generation":null,"monitor_pid":42,"monitor_start_time":43,"name":"web","ports":[],"restarted_from":null,"started":"2026-01-02T03:04:05Z","state":{"how":{"exit":3},"is":"ended"},"uid":1000}"#);
    let lock = claim.as_fd().try_clone_to_owned().unwrap();
    let mut adopted = here.adopt(&name("web"), lock).unwrap();
    adopted.fail("x").unwrap();
    assert_eq!(here.find(&name("web")).unwrap().record().unwrap().other["colour"], "blue");
    assert_eq!(adopted.record().state.to_string(), "failed: x");

    let small = r#"{"format":1,"name":"web","host":"h","boot_id":"b","uid":0,"state":{"is":"ended","how":{"signal":9}}}"#;
    let record = Record::parse(small.as_bytes(), &name("web")).unwrap();
    assert_eq!(record.state, State::Ended { how: Ending::Signal(9) });
}

#[test]
fn a_write_that_fails_changes_nothing() {
    let home = Home::new();
    let here = home.here();
    let mut claim = here.claim(&name("web")).unwrap();
    // A directory where the temporary file has to go.
    fs::create_dir(here.path(&name("web")).join(".instance.json.new")).unwrap();
    let error = claim.update(|record| record.state = State::Running).unwrap_err();
    assert!(matches!(error, InstanceError::Io { .. }), "{error}");
    assert_eq!(claim.record().state, State::Starting);
    assert_eq!(here.find(&name("web")).unwrap().record().unwrap().state, State::Starting);
}

#[test]
fn a_record_that_is_being_read_is_not_written_to() {
    let home = Home::new();
    let here = home.here();
    let mut claim = here.claim(&name("web")).unwrap();
    let directory = here.path(&name("web"));
    let record = directory.join("instance.json");
    let read = || fs::read_to_string(&record).unwrap();
    let mut open = fs::File::open(&record).unwrap();
    let first = read();
    for reason in ["x".repeat(3000), "y".to_owned(), "z".repeat(500)] {
        claim.update(|record| record.state = State::Failed { reason: reason.clone() }).unwrap();
        assert!(read().contains(&reason));
        serde_json::from_str::<serde_json::Value>(&read()).unwrap();
        assert!(!directory.join(".instance.json.new").exists());
    }
    let mut seen = String::new();
    std::io::Read::read_to_string(&mut open, &mut seen).unwrap();
    assert_eq!(seen, first);
}
