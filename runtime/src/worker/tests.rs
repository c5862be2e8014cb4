//! A worker around the backend that misbehaves on request. The worker is this very test program: its
//! arguments make it run [`__worker`] and nothing else.

use super::process::Clock;
use super::*;
use serde_json::json;
use stasis_plugin_api::plan::LaunchPlan;
use stasis_plugin_api::report::Probe;
use stasis_plugin_api::request::{InstanceView, LaunchRequest, ProbeRequest};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Read;
use std::time::Instant;

const SOON: Duration = Duration::from_millis(300);
const ENOUGH: Duration = Duration::from_secs(30);

/// The worker's own main. In an ordinary run of the tests there is nothing to do.
#[test]
fn __worker() {
    if std::env::args().nth(1).as_deref() == Some(wire::ROLE) {
        assert_eq!(child::started(), 0);
    }
}

/// Cargo builds the plugin beside this program.
fn library() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libstasis_faulty.so")
}

fn plugin_at(path: PathBuf, fault: &str) -> Plugin {
    Plugin {
        name: BackendName::new("faulty").unwrap(),
        library: File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into(),
        path: "/opt/libfaulty.so".into(),
        version_req: None,
        options: BTreeMap::from([("fault".to_owned(), json!(fault))]),
        option_flags: vec![],
        cache: PathBuf::new(),
    }
}

fn plugin(fault: &str) -> Plugin {
    plugin_at(library(), fault)
}

#[derive(Default)]
struct Recorder {
    requests: RefCell<Vec<(String, Value)>>,
    logs: RefCell<Vec<(u8, String, String)>>,
    kept: RefCell<BTreeMap<String, OwnedFd>>,
    cancelled: Cell<bool>,
}

impl Services for Recorder {
    fn request(&self, name: &str, payload: Value) -> Result<Value, BackendError> {
        self.requests.borrow_mut().push((name.to_owned(), payload));
        match name {
            "run-inside" => Ok(json!({"code": 0, "stdout": "hello from inside"})),
            "progress" => Ok(Value::Null),
            _ => Err(BackendError::new(kind::NOT_IMPLEMENTED, name)),
        }
    }
    fn cancelled(&self) -> bool {
        self.cancelled.get()
    }
    fn keep_fd(&self, name: &str, fd: OwnedFd) -> Result<(), BackendError> {
        self.kept.borrow_mut().insert(name.to_owned(), fd);
        Ok(())
    }
    fn kept_fd(&self, name: &str) -> Option<OwnedFd> {
        self.kept.borrow().get(name).map(|fd| fd.try_clone().unwrap())
    }
    fn log(&self, level: u8, target: &str, message: &str) {
        self.logs.borrow_mut().push((level, target.to_owned(), message.to_owned()));
    }
}

struct Run {
    answer: Result<Probe, WorkerError>,
    state: EngineState,
    scratch: tempfile::TempDir,
    pid: u32,
}

impl Run {
    fn error(&self) -> String {
        let error = self.answer.as_ref().unwrap_err();
        format!("{error}\n{}", error.help().unwrap_or_default())
    }

    fn last_words(&self) -> &str {
        self.answer.as_ref().unwrap_err().last_words().unwrap_or_default()
    }

    /// Nothing of a call stays.
    fn is_clean(&self) {
        assert_eq!(std::fs::read_dir(self.scratch.path()).unwrap().count(), 0, "scratch");
        assert!(!Path::new(&format!("/proc/{}", self.pid)).exists(), "the worker is reaped");
    }
}

fn run(plugin: &Plugin, state: EngineState, services: &dyn Services, deadline: Duration) -> Run {
    let scratch = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(plugin, scratch.path()).unwrap();
    let (pid, mut state) = (worker.process.id(), state);
    let answer = worker.call("probe", &ProbeRequest::default(), &mut state, services, deadline);
    drop(worker);
    let run = Run { answer, state, scratch, pid };
    run.is_clean();
    run
}

fn probe(fault: &str) -> Run {
    run(&plugin(fault), EngineState::new(), &NoServices, ENOUGH)
}

#[test]
fn one_operation_after_the_other() {
    let scratch = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(&plugin("none"), scratch.path()).unwrap();
    assert_eq!(worker.describe().unwrap().name, "faulty");
    let mut state = EngineState::new();
    let plan = engine::plan_launch(&mut worker, &LaunchRequest::default(), &mut state, &NoServices).unwrap();
    assert_eq!(plan, LaunchPlan::default());
    assert_eq!(state["planned"], "yes", "what plan_launch remembered");
    let ready = engine::ready(&mut worker, &InstanceView::default(), &mut state, &NoServices).unwrap();
    assert_eq!((ready.processes, state["planned"].as_str()), (1, "yes"), "a later call does not forget it");
    // An error ends the call, not the worker.
    let request = stasis_plugin_api::request::RestartRequest::default();
    let error = engine::plan_restart(&mut worker, &request, &mut state, &NoServices).unwrap_err();
    assert!(matches!(error, WorkerError::Backend { .. }), "{error}");
    let probe = engine::probe(&mut worker, &ProbeRequest::default(), &NoServices).unwrap();
    assert_eq!(probe.reason.unwrap(), "true true false", "scratch stands, time is left, PATH is known");
}

#[test]
fn an_error_comes_whole() {
    let run = probe("error");
    insta::assert_snapshot!(run.error(), @r"
    the engine is not there: nobody installed it
    install it
    ");
    assert_eq!(run.last_words(), "E: no");
    assert_eq!(run.answer.unwrap_err().kind(), "unusable");
}

#[test]
fn a_panic_is_an_error_of_the_call() {
    let run = probe("panic");
    let error = run.answer.unwrap_err();
    assert_eq!(error.kind(), kind::PANICKED);
    let text = error.to_string();
    assert!(text.starts_with("the backend panicked in probe: faulty on purpose ("), "{text}");
}

#[test]
fn a_death_is_told_with_its_cause_and_last_words() {
    let crashed = probe("crash");
    insta::assert_snapshot!(crashed.error(), @r#"
    backend "faulty" was killed by signal 11 (SIGSEGV) in probe
    this is a fault of the plugin; stasis backend info faulty names the library
    "#);
    assert!(crashed.last_words().ends_with("about to crash"), "{}", crashed.last_words());
    insta::assert_snapshot!(probe("exit").answer.unwrap_err(), @r#"backend "faulty" exited with code 7 in probe"#);
    insta::assert_snapshot!(probe("abort").answer.unwrap_err(), @r#"backend "faulty" was killed by signal 6 (SIGABRT) in probe"#);
}

#[test]
fn a_dead_worker_says_the_same_again() {
    let scratch = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(&plugin("exit"), scratch.path()).unwrap();
    for _ in 0..2 {
        let error = engine::probe(&mut worker, &ProbeRequest::default(), &NoServices).unwrap_err();
        assert_eq!(error.to_string(), "backend \"faulty\" exited with code 7 in probe");
    }
}

#[test]
fn it_ends_with_whoever_started_it() {
    let scratch = tempfile::tempdir().unwrap();
    let start = || {
        let mut worker = Worker::spawn(&plugin("hang"), scratch.path()).unwrap();
        worker.describe().unwrap();
        worker
    };
    // The kernel's rule is about threads.
    let mut orphan = std::thread::scope(|scope| scope.spawn(start).join()).unwrap();
    let error = engine::probe(&mut orphan, &ProbeRequest::default(), &NoServices).unwrap_err();
    insta::assert_snapshot!(error, @r#"backend "faulty" was killed by signal 9 (SIGKILL) in probe"#);
}

#[test]
fn a_hang_is_ended() {
    let hung = run(&plugin("hang"), EngineState::new(), &NoServices, SOON);
    insta::assert_snapshot!(hung.error(), @r#"
    backend "faulty" did not finish probe within 300 ms and was ended
    stasis backend check faulty tells whether its engine works here
    "#);
    assert!(hung.last_words().ends_with("about to hang"), "{}", hung.last_words());
}

#[test]
fn neither_events_nor_output_hold_up_the_deadline() {
    let flooded = run(&plugin("flood"), EngineState::new(), &Recorder::default(), SOON);
    assert_eq!(flooded.answer.unwrap_err().kind(), kind::TIMED_OUT);
}

#[test]
fn a_plugin_that_watches_its_time_tells_where_it_stood() {
    let obeyed = run(&plugin("obey"), EngineState::new(), &NoServices, SOON);
    let error = obeyed.answer.unwrap_err();
    match error {
        // Its own clock was first.
        WorkerError::Backend { error, .. } => assert_eq!(error.kind, kind::TIMED_OUT),
        WorkerError::TimedOut { last_words, .. } => {
            assert!(last_words.unwrap().starts_with("waiting for nothing"))
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_caller_that_gives_up_is_heard() {
    let services = Recorder { cancelled: Cell::new(true), ..Recorder::default() };
    let run = run(&plugin("obey"), EngineState::new(), &services, ENOUGH);
    insta::assert_snapshot!(run.answer.unwrap_err(), @"waiting for nothing: cancelled");
}

#[test]
fn what_a_plugin_prints_goes_nowhere() {
    // Its descriptors 1 and 2 are one pipe, of which only the end is kept.
    let scratch = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(&plugin("print"), scratch.path()).unwrap();
    assert!(engine::probe(&mut worker, &ProbeRequest::default(), &NoServices).unwrap().usable);
    let printed = worker.process.end_and_read().unwrap();
    assert!(printed.ends_with("PRINTED\nPRINTED TOO"), "{printed}");
}

#[test]
fn events_arrive_with_level_and_target() {
    let services = Recorder::default();
    run(&plugin("log"), EngineState::new(), &services, ENOUGH).answer.unwrap();
    let target = || "stasis_faulty::odd".to_owned();
    let want = [(2, target(), "something odd pid=5".to_owned()), (4, target(), "detail".to_owned())];
    assert_eq!(*services.logs.borrow(), want);
}

#[test]
fn requests_are_served_within_the_time_of_the_call() {
    let services = Recorder::default();
    let run = run(&plugin("request"), EngineState::new(), &services, ENOUGH);
    assert_eq!(run.answer.unwrap().reason.unwrap(), r#"hello from inside Err("not-implemented")"#);
    let requests = services.requests.borrow();
    let names: Vec<_> = requests.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["run-inside", "progress", "extension:x-none"]);
    assert!(requests[0].1["timeout_ms"].as_u64().unwrap() <= 30_000, "an hour was asked for");
    assert_eq!(requests[1].1, json!({"done": 1, "total": 2, "doing": "half"}));
}

#[test]
fn without_a_container_requests_fail() {
    insta::assert_snapshot!(probe("request").answer.unwrap_err(), @r#""run-inside" is not available here: no container stands during this call"#);
    insta::assert_snapshot!(probe("keep").answer.unwrap_err(), @r#"keeping descriptor "one": Operation not supported (os error 95)"#);
}

#[test]
fn many_threads_share_the_channel() {
    let services = Recorder::default();
    run(&plugin("thread"), EngineState::new(), &services, ENOUGH).answer.unwrap();
    assert_eq!(services.logs.borrow().len(), 400);
    assert_eq!(services.requests.borrow().len(), 50);
}

#[test]
fn descriptors_survive_the_worker() {
    let services = Recorder::default();
    let first = run(&plugin("keep"), EngineState::new(), &services, ENOUGH);
    first.answer.unwrap();
    assert_eq!(first.state, BTreeMap::from([("kept".to_owned(), "one".to_owned())]));
    let mut content = String::new();
    let kept = services.kept_fd("one").unwrap();
    File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&kept)))
        .unwrap()
        .read_to_string(&mut content)
        .unwrap();
    let second = run(&plugin("kept"), first.state, &services, ENOUGH);
    assert_eq!(second.answer.unwrap().reason.unwrap(), content);
    let missing = run(&plugin("kept"), EngineState::new(), &services, ENOUGH);
    insta::assert_snapshot!(missing.answer.unwrap_err(), @"nothing kept");
}

#[test]
fn the_state_stays_when_a_call_fails() {
    let before = EngineState::from([("a".to_owned(), "b".to_owned())]);
    assert_eq!(run(&plugin("error"), before.clone(), &NoServices, ENOUGH).state, before);
}

#[test]
fn the_plugin_has_to_be_the_configured_one() {
    let scratch = tempfile::tempdir().unwrap();
    let describe = |plugin: &Plugin| Worker::spawn(plugin, scratch.path()).unwrap().describe();
    let other = Plugin { name: BackendName::new("toy").unwrap(), ..plugin("none") };
    insta::assert_snapshot!(describe(&other).unwrap_err(), @r#"/opt/libfaulty.so is configured as backend "toy" but calls itself "faulty""#);
    let newer = Plugin { version_req: Some(semver::VersionReq::parse(">=7").unwrap()), ..plugin("none") };
    insta::assert_snapshot!(describe(&newer).unwrap_err(), @r#"backend "faulty" (/opt/libfaulty.so) has version 0.1.0, but plugins.toml demands >=7"#);
    let wanted =
        Plugin { version_req: Some(semver::VersionReq::parse(">=0.1, <1").unwrap()), ..plugin("none") };
    assert_eq!(describe(&wanted).unwrap().version, "0.1.0");
}

#[test]
fn options_are_checked_before_the_plugin_is_called() {
    let scratch = tempfile::tempdir().unwrap();
    let wrong = Plugin { option_flags: vec!["fautl=x".into()], ..plugin("none") };
    let mut worker = Worker::spawn(&wrong, scratch.path()).unwrap();
    worker.describe().unwrap();
    let error = engine::probe(&mut worker, &ProbeRequest::default(), &NoServices).unwrap_err();
    insta::assert_snapshot!(error, @r#"--backend-option: backend "faulty" has no option "fautl""#);
    worker.set_options(BTreeMap::from([("fault".to_owned(), json!("none"))]));
    assert!(engine::probe(&mut worker, &ProbeRequest::default(), &NoServices).unwrap().usable);
    let flag = Plugin { option_flags: vec!["fault=error".into()], ..plugin("none") };
    let mut worker = Worker::spawn(&flag, scratch.path()).unwrap();
    assert_eq!(worker.options().unwrap()["fault"], json!("error"));
}

/// A library from one line of C.
fn compiled(dir: &Path, constructor: &str) -> PathBuf {
    let (source, library) = (dir.join("x.c"), dir.join("libx.so"));
    let body = format!(
        "#include <unistd.h>\n#include <stdlib.h>\n__attribute__((constructor)) static void f(void) {{ {constructor} }}\n"
    );
    std::fs::write(&source, body).unwrap();
    let cc = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(cc.success());
    library
}

#[test]
fn what_happens_at_load_is_told_too() {
    let dir = tempfile::tempdir().unwrap();
    let describe = |path: PathBuf| {
        let mut worker = Worker::spawn(&plugin_at(path, "none"), dir.path()).unwrap();
        worker.load = Clock::new("load", Duration::from_secs(2));
        worker.describe().unwrap_err()
    };
    insta::assert_snapshot!(describe(compiled(dir.path(), "for (;;) pause();")), @r#"backend "faulty" did not finish load within 2 s and was ended"#);
    insta::assert_snapshot!(describe(compiled(dir.path(), "_exit(3);")), @r#"backend "faulty" exited with code 3 in load"#);
    insta::assert_snapshot!(describe(compiled(dir.path(), "abort();")), @r#"backend "faulty" was killed by signal 6 (SIGABRT) in load"#);
    for alien in [compiled(dir.path(), ""), PathBuf::from("/etc/passwd")] {
        let error = describe(alien);
        assert!(matches!(&error, WorkerError::NotLoaded { .. }), "{error}");
        assert!(error.to_string().contains("/opt/libfaulty.so"), "{error}");
    }
}

#[test]
fn what_a_plugin_started_does_not_hold_us_up() {
    let dir = tempfile::tempdir().unwrap();
    // The copy without exec keeps the channel and the output open.
    let path = compiled(dir.path(), "if (fork() == 0) { for (;;) pause(); } _exit(4);");
    let begin = Instant::now();
    let mut worker = Worker::spawn(&plugin_at(path, "none"), dir.path()).unwrap();
    let group = worker.process.id();
    insta::assert_snapshot!(worker.describe().unwrap_err(), @r#"backend "faulty" exited with code 4 in load"#);
    let gone = || nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group.cast_signed()), None).is_err();
    while !gone() {
        assert!(begin.elapsed() < ENOUGH, "the copy lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
