//! Libraries that are no plugin, were built for another interface, or misbehave in each call.

use super::*;
use crate::need::need;

/// Makes `library` the library of the backend `odd`.
fn odd(env: &Env, library: &std::path::Path) -> Outcome<()> {
    env.configure(&format!("[backends.odd]\nlibrary = \"{}\"\n", library.display()))
}

fn told(env: &Env) -> String {
    let small = image(env, "small");
    let words = ["instance", "start", "--backend", "odd", "--checkpoint", "kept", &small, "one", IDLE];
    env.fails(&words).unwrap_or_else(|why| format!("{why}"))
}

#[test]
fn libraries_that_are_no_plugin() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    odd(&env, &env.path("gone.so")).unwrap();
    insta::assert_snapshot!(told(&env), @"
    exit 255
    FATAL:   the library $DIR/gone.so of the backend odd is not found; looked in: $DIR/gone.so
             hint:    install the library there, or correct `library` or `search` ($DIR/plugins.toml:3)
    ");
    odd(&env, &env.write("text.so", "this is a text\n").unwrap()).unwrap();
    insta::assert_snapshot!(told(&env), @"
    exit 255
    FATAL:   cannot load the backend odd: $DIR/text.so is not an ELF shared library
             hint:    install a build for this machine
    ");
    odd(&env, &env.write("empty.so", "").unwrap()).unwrap();
    insta::assert_snapshot!(told(&env), @"
    exit 255
    FATAL:   cannot load the backend odd: $DIR/empty.so is not an ELF shared library
             hint:    install a build for this machine
    ");
    let libc = find(&env.site.image("small").join("usr/lib"), "libc.so.6");
    let other = env.path("other.so");
    std::fs::copy(&libc[0], &other).unwrap();
    crate::env::own(&other, env.uid()).unwrap();
    odd(&env, &other).unwrap();
    insta::assert_snapshot!(told(&env), @r#"
    exit 255
    FATAL:   the library of backend "odd" cannot be used: $DIR/other.so is not a stasis backend: it does not export the entry symbol
             hint:    correct `library` in plugins.toml
    "#);
    let whole = std::fs::read(env.site.backends.join("libstasis_dmtcp.so")).unwrap();
    let cut = env.path("cut.so");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    crate::env::own(&cut, env.uid()).unwrap();
    odd(&env, &cut).unwrap();
    let cut = told(&env);
    assert!(cut.starts_with("exit 255\n") && cut.contains("cut.so"), "{cut}");
    odd(&env, &env.site.backends.join("libstasis_dmtcp.so")).unwrap();
    insta::assert_snapshot!(told(&env), @r#"
    exit 255
    FATAL:   $BACKENDS/libstasis_dmtcp.so is configured as backend "odd" but calls itself "dmtcp"
             hint:    in plugins.toml, write [backends.dmtcp], or another library for "odd"
    "#);
    env.finish().unwrap();
}

#[test]
fn a_library_that_others_can_change() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let library = env.path("open.so");
    std::fs::copy(env.site.backends.join("libstasis_dmtcp.so"), &library).unwrap();
    crate::env::own(&library, env.uid()).unwrap();
    std::fs::set_permissions(&library, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    odd(&env, &library).unwrap();
    insta::assert_snapshot!(told(&env), @"
    exit 255
    FATAL:   the library of the backend odd may not be used: $DIR/open.so has mode 0777: every user may write to it
             hint:    chmod go-w $DIR/open.so
    ");
    env.finish().unwrap();
}

#[test]
fn root_loads_no_plugin_of_a_user() {
    need!(root, image);
    let env = Env::new(Who::Myself).unwrap();
    let library = env.path("users.so");
    std::fs::copy(env.site.backends.join("libstasis_dmtcp.so"), &library).unwrap();
    std::os::unix::fs::chown(&library, Some(crate::env::USER), None).unwrap();
    odd(&env, &library).unwrap();
    insta::assert_snapshot!(told(&env), @"
    exit 255
    FATAL:   the library of the backend odd may not be used: $DIR/users.so belongs to uid N, it must belong to root
             hint:    chown root $DIR/users.so
    ");
    env.finish().unwrap();
}

/// What each step of a life says when the faulty backend does `fault` in it. The steps wait for their deadlines side
/// by side.
fn each_call(fault: &str) -> Result<String, String> {
    let methods =
        ["load", "describe", "examine", "plan_launch", "ready", "capture", "plan_restart", "alive", "stop"];
    // Only these two faults can be had where no option arrives.
    let from = if ["hang", "crash"].contains(&fault) { 0 } else { 2 };
    std::thread::scope(|scope| {
        let calls: Vec<_> = methods[from..]
            .iter()
            .map(|method| {
                scope.spawn(move || call(fault, method).map_err(|why| format!("{fault} in {method}: {why}")))
            })
            .collect();
        let mut all = String::new();
        for (call, method) in calls.into_iter().zip(&methods[from..]) {
            let told = call.join().map_err(|_| format!("the test of {fault} in {method} panicked"))??;
            all.push_str(&format!("== {method}\n{told}"));
        }
        Ok(all)
    })
}

fn call(fault: &str, method: &str) -> Outcome<String> {
    let mut env = Env::new(Who::User)?;
    let small = image(&env, "small");
    let option = format!("misbehave={fault}:{method}");
    let honest = ["load", "describe", "plan_restart", "alive", "stop"].contains(&method);
    if ["load", "describe"].contains(&method) {
        env.set("STASIS_FAULTY", &format!("{fault}:{method}"));
    }
    let mut start = vec!["instance", "start", "--backend", "faulty", "--checkpoint", "kept"];
    if !honest {
        start.extend(["--backend-option", option.as_str()]);
    }
    start.extend([small.as_str(), "one", IDLE]);
    let restart = ["instance", "start", "--restart", "kept", "--backend-option", &option, &small, "one"];
    let told = match method {
        "capture" => at_capture(&env, &start)?,
        "plan_restart" | "alive" => {
            env.ok(&start)?;
            env.ok(&["checkpoint", "instance", "--stop", "one"])?;
            env.fails(&restart)?
        }
        "stop" => {
            env.ok(&start)?;
            env.ok(&["checkpoint", "instance", "--stop", "one"])?;
            env.ok(&restart)?;
            env.told(&env.stasis(&["instance", "stop", "one"])?)
        }
        _ => env.fails(&start)?,
    };
    let list = env.ok(&["instance", "list"])?.out;
    let runs = method == "capture";
    assert_eq!(list.lines().count(), if runs { 2 } else { 1 }, "{fault} in {method}: {list}");
    env.finish()?;
    Ok(told)
}

/// The application runs on and no generation appears.
fn at_capture(env: &Env, start: &[&str]) -> Outcome<String> {
    env.ok(start)?;
    let told = env.fails(&["checkpoint", "instance", "one"])?;
    assert_eq!(std::fs::read_dir(store(env, "kept").join("generations")).map_or(0, Iterator::count), 0);
    env.ok(&["exec", "instance://one", "true"])?;
    Ok(told)
}

#[test]
fn a_plugin_that_answers_with_errors() {
    need!(image, userns);
    insta::assert_snapshot!(each_call("error").unwrap(), @"
    == examine
    exit 255
    FATAL:   asked to fail in examine
             because: the test wants it
             hint:    ask for something else
    == plan_launch
    exit 255
    FATAL:   asked to fail in plan_launch
             because: the test wants it
             hint:    ask for something else
    == ready
    exit 255
    FATAL:   asked to fail in ready
             because: the test wants it
             hint:    ask for something else
    == capture
    exit 255
    FATAL:   asked to fail in capture
             because: the test wants it
             because: the application runs on, and nothing was saved
             hint:    ask for something else
    == plan_restart
    exit 255
    FATAL:   asked to fail in plan_restart
             because: the test wants it
             hint:    ask for something else
    == alive
    exit 255
    FATAL:   asked to fail in alive
             because: the test wants it
             hint:    ask for something else
    == stop
    exit 0
    INFO:    Stopping one instance of $IMAGES/small (PID=N)
    ");
}

#[test]
fn a_plugin_that_panics() {
    need!(image, userns);
    insta::assert_snapshot!(each_call("panic").unwrap(), @"
    == examine
    exit 255
    FATAL:   the backend panicked in examine
             because: asked to panic in examine (tests/faulty-backend/src/faults.rs:N)
    == plan_launch
    exit 255
    FATAL:   the backend panicked in plan_launch
             because: asked to panic in plan_launch (tests/faulty-backend/src/faults.rs:N)
    == ready
    exit 255
    FATAL:   the backend panicked in ready
             because: asked to panic in ready (tests/faulty-backend/src/faults.rs:N)
    == capture
    exit 255
    FATAL:   the backend panicked in capture
             because: asked to panic in capture (tests/faulty-backend/src/faults.rs:N)
             because: the application runs on, and nothing was saved
    == plan_restart
    exit 255
    FATAL:   the backend panicked in plan_restart
             because: asked to panic in plan_restart (tests/faulty-backend/src/faults.rs:N)
    == alive
    exit 255
    FATAL:   the backend panicked in alive
             because: asked to panic in alive (tests/faulty-backend/src/faults.rs:N)
    == stop
    exit 0
    INFO:    Stopping one instance of $IMAGES/small (PID=N)
    ");
}

#[test]
fn a_plugin_that_crashes() {
    need!(image, userns);
    insta::assert_snapshot!(each_call("crash").unwrap(), @r#"
    == load
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in load
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == describe
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in load
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == examine
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in examine
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == plan_launch
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in plan_launch
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == ready
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in ready
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == capture
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in capture
             because: the application runs on, and nothing was saved
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == plan_restart
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in plan_restart
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == alive
    exit 255
    FATAL:   backend "faulty" was killed by signal 6 (SIGABRT) in alive
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == stop
    exit 0
    INFO:    Stopping one instance of $IMAGES/small (PID=N)
    "#);
}

#[test]
fn a_plugin_that_ends_its_process() {
    need!(image, userns);
    insta::assert_snapshot!(each_call("exit").unwrap(), @r#"
    == examine
    exit 255
    FATAL:   backend "faulty" exited with code 0 in examine
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == plan_launch
    exit 255
    FATAL:   backend "faulty" exited with code 0 in plan_launch
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == ready
    exit 255
    FATAL:   backend "faulty" exited with code 0 in ready
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == capture
    exit 255
    FATAL:   backend "faulty" exited with code 0 in capture
             because: the application runs on, and nothing was saved
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == plan_restart
    exit 255
    FATAL:   backend "faulty" exited with code 0 in plan_restart
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == alive
    exit 255
    FATAL:   backend "faulty" exited with code 0 in alive
             hint:    this is a fault of the plugin; stasis backend info faulty names the library
    == stop
    exit 0
    INFO:    Stopping one instance of $IMAGES/small (PID=N)
    "#);
}

#[test]
fn a_plugin_that_hangs() {
    need!(image, userns);
    insta::assert_snapshot!(each_call("hang").unwrap(), @r#"
    == load
    exit 255
    FATAL:   backend "faulty" did not finish load within 10 s and was ended
             hint:    stasis backend check faulty tells whether its engine works here
    == describe
    exit 255
    FATAL:   backend "faulty" did not finish load within 10 s and was ended
             hint:    stasis backend check faulty tells whether its engine works here
    == examine
    exit 255
    FATAL:   backend "faulty" did not finish examine within 20 s and was ended
             hint:    stasis backend check faulty tells whether its engine works here
    == plan_launch
    exit 255
    FATAL:   backend "faulty" did not finish plan_launch within 20 s and was ended
             hint:    stasis backend check faulty tells whether its engine works here
    == ready
    exit 255
    FATAL:   backend "faulty" did not finish ready within 15 s and was ended
             hint:    stasis backend check faulty tells whether its engine works here
    == capture
    exit 255
    FATAL:   backend "faulty" did not finish capture within 60 s and was ended
             because: the application runs on, and nothing was saved
             hint:    stasis backend check faulty tells whether its engine works here
    == plan_restart
    exit 255
    FATAL:   backend "faulty" did not finish plan_restart within 20 s and was ended
             hint:    stasis backend check faulty tells whether its engine works here
    == alive
    exit 255
    FATAL:   backend "faulty" did not finish alive within 70 s and was ended
             hint:    stasis backend check faulty tells whether its engine works here
    == stop
    exit 0
    INFO:    Stopping one instance of $IMAGES/small (PID=N)
    "#);
}

#[test]
fn an_engine_that_may_have_left_the_application_standing() {
    need!(image, userns);
    insta::assert_snapshot!(call("still", "capture").unwrap(), @r#"
    exit 255
    FATAL:   asked to fail in capture
             because: nothing was saved, and the application may stand still
             hint:    see whether it goes on; if not, `stasis instance stop --force one` ends it
    "#);
}

#[test]
fn a_plugin_that_lies() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let flags = ["--backend", "faulty", "--backend-option", "misbehave=lie:capture", "--checkpoint", "kept"];
    env.ok(&[&["instance", "start"], &flags[..], &[&small, "one", IDLE]].concat()).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   generation 1 of checkpoint "kept" was not saved: $DIR/data/checkpoints/kept/staging/state cannot be saved: there is no such file
    "#);
    env.finish().unwrap();
}

#[test]
fn a_plugin_whose_files_are_of_no_use() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let flags =
        ["--backend", "faulty", "--backend-option", "misbehave=corrupt:capture", "--checkpoint", "kept"];
    env.ok(&[&["instance", "start"], &flags[..], &[&small, "one", IDLE]].concat()).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let told = env.fails(&["instance", "start", "--restart", "kept", &small, "one"]).unwrap();
    insta::assert_snapshot!(told, @"
    exit 255
    FATAL:   $DIR/data/checkpoints/kept/generations/000001/state is of no use
             because: expected value at line 1 column 1
    ");
    env.finish().unwrap();
}

/// The frame itself, without any real engine: saved, stopped, brought back, by the honest side of the faulty backend.
#[test]
fn a_plugin_of_somebody_else_is_served_like_any_other() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let start = ["instance", "start", "--backend", "faulty", "--checkpoint", "kept", &small, "one", IDLE];
    env.ok(&start).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    env.ok(&["checkpoint", "verify", "kept"]).unwrap();
    env.ok(&["instance", "start", "--restart", "kept@1", &small, "one"]).unwrap();
    assert!(env.ok(&["backend", "list"]).unwrap().out.contains("faulty"));
    env.finish().unwrap();
}

/// The application goes on without it, but somebody has to hear of it.
#[test]
fn a_helper_that_fails_and_is_not_essential() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let start = ["instance", "start", "--backend", "faulty", "--checkpoint", "kept", "--backend-option"];
    env.ok(&[&start[..], &["helper=true", &small, "one", IDLE]].concat()).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let log = loop {
        let told = env.ok(&["checkpoint", "instance", "one"]).unwrap().err;
        let said = "the engine's helper ended (exit 3); what it said is in ";
        if let Some((_, rest)) = told.split_once(said) {
            break rest.lines().next().unwrap().to_owned();
        }
        assert!(std::time::Instant::now() < deadline, "nobody tells of it: {told}");
    };
    assert_eq!(std::fs::read_to_string(log).unwrap(), "oh dear\n");
    let again = env.ok(&["checkpoint", "instance", "one"]).unwrap().err;
    assert!(!again.contains("helper"), "it is told once: {again}");
    env.finish().unwrap();
}
