//! Plans that fit, and all those that do not.

use stasis_plugin_api::plan::{
    Bind, Directory, EarlyCommand, FileToWrite, HelperDescriptor, Namespaces, SeccompRule, SecludedCommand,
};

use super::super::resolve::describe;
use super::super::resolve::tests::{engine_spec, spec};
use super::*;

fn bind(target: &str) -> Bind {
    Bind { source: "/opt/engine".into(), target: target.into(), writable: false }
}

fn needs(change: impl FnOnce(&mut Needs)) -> Needs {
    let mut needs = Needs::default();
    change(&mut needs);
    needs
}

fn launched(spec: ContainerSpec, needs: Needs) -> Result<ContainerSpec, ApplyError> {
    let plan = LaunchPlan { needs, wrap: vec!["/.stasis/bin/wrap".to_owned()], notes: Vec::new() };
    launch(spec, &plan, "b", Path::new("/var/s/staging"), &["/var/s".into()])
}

fn wrong(change: impl FnOnce(&mut Needs)) -> String {
    launched(engine_spec(""), needs(change)).unwrap_err().to_string()
}

fn helper() -> Helper {
    Helper { name: "h".to_owned(), argv: vec!["/.stasis/bin/h".to_owned()], ..Helper::default() }
}

fn secluded() -> SecludedCommand {
    SecludedCommand { root: "/.stasis/bin".into(), argv: vec!["/h".to_owned()], back: 4 }
}

fn rebuild(
    change: impl FnOnce(&mut Helper),
    root: RestoredRoot,
    reserve: i32,
) -> Result<ContainerSpec, ApplyError> {
    let mut helper = helper();
    change(&mut helper);
    let plan = RestartPlan::Rebuild {
        needs: Needs::default(),
        helper: helper.into(),
        root,
        reserve_pids_up_to: reserve,
        verify_behind: Vec::new(),
    };
    restart(engine_spec(""), &plan, "b", Path::new("/s/staging"), Path::new("/s/7"), &[])
}

#[test]
fn a_launch() {
    let needs = needs(|n| {
        n.binds.push(bind("/.stasis/engine"));
        n.files.push(FileToWrite::new("/.stasis/etc/conf", 0o600, b"x"));
        n.directories.push(Directory { path: "/.stasis/run".into(), mode: 0o700, tmpfs: Some(4096) });
        n.namespaces = Namespaces { net: false, time: true };
        n.env.insert("ENGINE_DIR".to_owned(), "/.stasis/capture".to_owned());
        n.env_remove.push("ENGINE_*".to_owned());
        n.helpers.push(helper());
        n.helpers.push(Helper { secluded: Some(secluded()), ..helper() });
        n.first_pid = Some(1000);
        n.seccomp.push(SeccompRule { syscall: 425, argument: None, except: false, errno: 38 });
    });
    let made = launched(engine_spec(""), needs.clone()).unwrap();
    assert!(made.namespaces.time && !made.namespaces.net);
    assert_eq!(made.engine.as_ref().unwrap().needs, needs);
    let text = describe(&made);
    let from = text.find("engine b").unwrap();
    insta::assert_snapshot!(&text[from..text.find("  directory   /home").unwrap()], @r#"
    engine b
      bind        /var/s/staging on /.stasis/capture
      bind        /opt/engine on /.stasis/engine, read-only
      file        /.stasis/etc/conf (0600)
      directory   /.stasis/run (0700, tmpfs of 4096 bytes)
      helper      h: /.stasis/bin/h
      helper      h: /h, with the root /.stasis/bin
      seccomp     system call 425 answers errno 38
      unset       "ENGINE_*"
      set         ENGINE_DIR=/.stasis/capture
      first pid   1000
      cover       /var/s
      before it   /.stasis/bin/wrap
    process, started by the container's init, writing to log files
      first       the image's /.singularity.d/env/*.sh
      command     ls
    "#);
}

#[test]
fn a_restart_of_either_shape() {
    let plan = RestartPlan::Exec { needs: Needs::default(), argv: vec!["/.stasis/bin/restart".to_owned()] };
    let made =
        restart(engine_spec(""), &plan, "b", Path::new("/s/staging"), Path::new("/s/7"), &["/s".into()])
            .unwrap();
    let engine = made.engine.unwrap();
    assert_eq!(engine.restart, Some(RestartStep::Exec { argv: vec!["/.stasis/bin/restart".to_owned()] }));
    assert_eq!(engine.generation.as_deref(), Some(Path::new("/s/7")));
    let made = rebuild(|_| {}, RestoredRoot::Pid(2), 100).unwrap();
    assert!(matches!(
        made.engine.unwrap().restart,
        Some(RestartStep::Rebuild { reserve_pids_up_to: 100, .. })
    ));
    let early = EarlyCommand { argv: vec!["/opt/engine/h".to_owned()], talk: 3 };
    let early = |h: &mut Helper| (h.secluded, h.early) = (Some(secluded()), Some(early));
    let text = describe(&rebuild(early, RestoredRoot::Pid(2), 100).unwrap());
    let from = text.find("engine b").unwrap();
    insta::assert_snapshot!(&text[from..text.find("process, ").unwrap()], @r"
    engine b
      bind        /s/staging on /.stasis/capture
      bind        /s/7 on /.stasis/image, read-only
      rebuild     h: /h, with the root /.stasis/bin
      or early    h: /opt/engine/h, with the host's root
    ");
    assert!(rebuild(|_| {}, RestoredRoot::PidFile("/.stasis/capture/pid".into()), 0).is_ok());
}

#[test]
fn places_outside_or_twice() {
    for outside in
        ["/etc", "/.stasis", "/.stasis/../etc", "/.stasis2/x", ".stasis/x", "/", "", "/.stasis/a\0b"]
    {
        let error = wrong(|n| n.binds.push(bind(outside)));
        assert!(error.contains("not a place below /.stasis"), "{outside}: {error}");
    }
    insta::assert_snapshot!(wrong(|n| n.binds.push(bind("/usr/lib"))), @r#"backend "b" asks for a bind at "/usr/lib", which is not a place below /.stasis"#);
    insta::assert_snapshot!(wrong(|n| n.files.push(FileToWrite::new("/.stasis/capture/x", 0o600, b""))), @r#"backend "b" asks for a file at "/.stasis/capture/x", which the runtime itself fills"#);
    insta::assert_snapshot!(wrong(|n| n.directories.push(Directory { path: "/.stasis/image".into(), mode: 0o700, tmpfs: None })), @r#"backend "b" asks for a directory at "/.stasis/image", which the runtime itself fills"#);
    insta::assert_snapshot!(wrong(|n| {
        n.binds.push(bind("/.stasis/a"));
        n.files.push(FileToWrite::new("/.stasis/a/", 0o600, b""));
    }), @r#"backend "b" asks for "/.stasis/a" twice"#);
    insta::assert_snapshot!(wrong(|n| n.binds.push(Bind { source: "lib".into(), target: "/.stasis/l".into(), writable: true })), @r#"backend "b" wants to show "lib", which is not an absolute path of the host"#);
}

#[test]
fn what_cannot_be() {
    insta::assert_snapshot!(wrong(|n| n.env_remove.push("*".to_owned())), @r#"backend "b" asks for removal of "*", which cannot be: it is neither a name nor a prefix and *"#);
    insta::assert_snapshot!(wrong(|n| drop(n.env.insert("A B".to_owned(), String::new()))), @r#"backend "b" asks for variable "A B", which cannot be: no shell can set it"#);
    insta::assert_snapshot!(wrong(|n| n.first_pid = Some(1)), @r#"backend "b" asks for first pid 1, which cannot be: init has pid 1"#);
    insta::assert_snapshot!(wrong(|n| n.ignore_signals.push(9)), @r#"backend "b" asks for signal 9 ignored, which cannot be: this signal cannot be ignored"#);
    insta::assert_snapshot!(wrong(|n| n.seccomp.push(SeccompRule { syscall: 1, argument: None, except: false, errno: -1 })), @r#"backend "b" asks for a rule for system call 1, which cannot be: there is no such errno"#);
    insta::assert_snapshot!(wrong(|n| n.seccomp.push(SeccompRule { syscall: 1, argument: Some((6, 0)), except: false, errno: 1 })), @r#"backend "b" asks for a rule for system call 1, which cannot be: there are six arguments"#);
    insta::assert_snapshot!(wrong(|n| n.files.push(FileToWrite::new("/.stasis/a", 0o4755, b""))), @r#"backend "b" asks for "/.stasis/a" with mode 4755, which cannot be: only permission bits are set"#);
    insta::assert_snapshot!(wrong(|n| n.files.push(FileToWrite { path: "/.stasis/a".into(), mode: 0o600, content: "!".to_owned() })), @r#"backend "b" asks for file "/.stasis/a", which cannot be: its content is not base64"#);
    insta::assert_snapshot!(wrong(|n| n.helpers.push(Helper { argv: vec!["h".to_owned()], ..helper() })), @r#"backend "b" asks for helper "h", which cannot be: its program is not an absolute path"#);
    let twice = |n: i32| HelperDescriptor { number: n, source: DescriptorSource::Kept("k".to_owned()) };
    insta::assert_snapshot!(wrong(|n| n.helpers.push(Helper { descriptors: vec![twice(3), twice(3)], ..helper() })), @r#"backend "b" asks for helper "h" with descriptor 3, which cannot be: it is taken, or not 3 to 1023"#);
    let socket = HelperDescriptor { number: 3, source: DescriptorSource::UnixListener("/tmp/s".into()) };
    insta::assert_snapshot!(wrong(|n| n.helpers.push(Helper { descriptors: vec![socket], ..helper() })), @r#"backend "b" asks for a socket at "/tmp/s", which is not a place below /.stasis"#);
    let early = |program: &str, talk| {
        let early = Some(EarlyCommand { argv: vec![program.to_owned()], talk });
        wrong(|n| n.helpers.push(Helper { descriptors: vec![twice(3)], early, ..helper() }))
    };
    insta::assert_snapshot!(early("h", 4), @r#"backend "b" asks for helper "h" started early, which cannot be: its program is not an absolute path"#);
    insta::assert_snapshot!(early("/h", 3), @r#"backend "b" asks for helper "h" started early with descriptor 3, which cannot be: it is taken, or not 3 to 1023"#);
    let waiting = |argv: &[&str], talk| {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        waiting(WaitingCommand { argv, talk, ..WaitingCommand::default() }, "b").unwrap_err().to_string()
    };
    insta::assert_snapshot!(waiting(&[], 3), @r#"backend "b" asks for helper "waiting" without a command, which cannot be: there is nothing to execute"#);
    insta::assert_snapshot!(waiting(&["h"], 3), @r#"backend "b" asks for helper "waiting", which cannot be: its program is not an absolute path"#);
    insta::assert_snapshot!(waiting(&["/h"], 2), @r#"backend "b" asks for helper "waiting" started early with descriptor 2, which cannot be: it is taken, or not 3 to 1023"#);
    let secluded = |root: &str, back| {
        let secluded = Some(SecludedCommand { root: root.into(), back, ..secluded() });
        wrong(|n| n.helpers.push(Helper { descriptors: vec![twice(3)], secluded, ..helper() }))
    };
    insta::assert_snapshot!(secluded("/srv", 4), @r#"backend "b" asks for a root at "/srv", which is not a place below /.stasis"#);
    insta::assert_snapshot!(secluded("/.stasis/h", 3), @r#"backend "b" asks for helper "h" secluded with descriptor 3, which cannot be: it is taken, or not 3 to 1023"#);
    let restart = |root, reserve| rebuild(|_| {}, root, reserve).unwrap_err().to_string();
    insta::assert_snapshot!(restart(RestoredRoot::Pid(1), 0), @r#"backend "b" asks for root pid 1, which cannot be: init has pid 1"#);
    insta::assert_snapshot!(restart(RestoredRoot::Pid(2), -1), @r#"backend "b" asks for pids up to -1, which cannot be: the kernel has no such pids"#);
    insta::assert_snapshot!(restart(RestoredRoot::PidFile("/tmp/pid".into()), 0), @r#"backend "b" asks for a pid file at "/tmp/pid", which is not a place below /.stasis"#);
    insta::assert_snapshot!(rebuild(|h| h.argv.clear(), RestoredRoot::Pid(2), 0).unwrap_err(), @r#"backend "b" asks for helper "h" without a command, which cannot be: there is nothing to execute"#);
    let plan = RestartPlan::Exec { needs: Needs::default(), argv: Vec::new() };
    let error = restart_of(&plan).unwrap_err();
    insta::assert_snapshot!(format!("{error}\n{}", error.help().unwrap()), @r#"
    backend "b" asks for a restart without a command, which cannot be: there is nothing to execute
    report this to the author of b, or choose another backend
    "#);
}

fn restart_of(plan: &RestartPlan) -> Result<ContainerSpec, ApplyError> {
    restart(engine_spec(""), plan, "b", Path::new("/s/staging"), Path::new("/s/7"), &[])
}

#[test]
fn ids_are_merged_or_contradict() {
    let merged =
        |line: &str, map: IdMap| launched(engine_spec(line), needs(|n| n.id_map = map)).map(|s| s.ids);
    assert_eq!(merged("", IdMap::Keep).unwrap().map, IdMap::Keep);
    assert_eq!(merged("", IdMap::KeepAndZero).unwrap().map, IdMap::KeepAndZero);
    let root = merged("", IdMap::Root).unwrap();
    assert_eq!((root.map, root.uid, root.gid, root.host_uid), (IdMap::Root, 0, 0, 1000));
    assert_eq!(merged("-f", IdMap::Keep).unwrap().map, IdMap::Root);
    let error = merged("-f", IdMap::KeepAndZero).unwrap_err();
    insta::assert_snapshot!(format!("{error}\n{}", error.help().unwrap()), @r#"
    backend "b" needs the user's own ids inside, and --fakeroot makes the user root
    leave out --fakeroot, or choose another backend
    "#);
    // Root has every id already.
    let mut spec = engine_spec("");
    spec.namespaces.user = false;
    spec.ids.host_uid = 0;
    assert_eq!(launched(spec, needs(|n| n.id_map = IdMap::Root)).unwrap().ids.map, IdMap::Keep);
}

#[test]
fn streams_are_what_both_can() {
    use StdioKind::{File, Inherit, Pty};
    let cases: [(StdioKind, &[StdioKind], Option<StdioKind>); 7] = [
        (File, &[], Some(File)),
        (Pty, &[], Some(Pty)),
        (Pty, &[File, Pty], Some(Pty)),
        (Pty, &[File], Some(File)),
        (Inherit, &[], Some(File)),
        (File, &[Inherit, Pty], Some(Pty)),
        (File, &[Inherit], None),
    ];
    for (have, takes, expected) in cases {
        assert_eq!(stdio(have, takes), expected, "{have:?} {takes:?}");
    }
    insta::assert_snapshot!(wrong(|n| n.stdio = vec![Inherit]), @r#"backend "b" cannot save a container whose standard streams are a terminal or log files"#);
}

#[test]
fn only_a_container_made_for_it() {
    let of = |spec: ContainerSpec| launched(spec, Needs::default()).unwrap_err().to_string();
    insta::assert_snapshot!(of(spec()), @r#"container "job" was not made for a backend: it has no init, or no processes, ipc or host name of its own"#);
    insta::assert_snapshot!(of(launched(engine_spec(""), Needs::default()).unwrap()), @r#"container "job" was not made for a backend: another one is in it already"#);
    let mut idle = engine_spec("");
    idle.process.argv.clear();
    insta::assert_snapshot!(of(idle), @r#"container "job" has no command, so backend "b" has nothing to save"#);
    let cover = |path: &str| {
        launch(engine_spec(""), &LaunchPlan::default(), "b", Path::new("/s"), &[path.into()])
            .unwrap_err()
            .to_string()
    };
    insta::assert_snapshot!(cover("/"), @r#"container "job" was not made for a backend: a directory to show or to cover is not below the root"#);
    assert!(cover("x").contains("not below the root"));
}
