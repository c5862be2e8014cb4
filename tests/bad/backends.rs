//! Backends that are not there, may not be used, or contradict what was said before.

use super::*;
use crate::need::need;

fn told(env: &Env, flags: &[&str]) -> String {
    let small = image(env, "small");
    let words = [&["instance", "start"], flags, &["--checkpoint", "kept", &small, "one", IDLE]].concat();
    env.fails(&words).unwrap_or_else(|why| format!("{why}"))
}

#[test]
fn unknown_disabled_and_missing() {
    need!(image, userns);
    let mut env = Env::new(Who::User).unwrap();
    env.configure("[backends.dmtcp]\nenabled = false\n[backends.faulty]\n[backends.gone]\n").unwrap();
    insta::assert_snapshot!(told(&env, &["--backend", "nope"]), @r#"
    exit 255
    FATAL:   there is no backend "nope" (--backend names it); there is: faulty, gone
             hint:    `stasis backend list` shows every backend
    "#);
    insta::assert_snapshot!(told(&env, &["--backend", "../x"]), @r#"
    exit 1
    error: invalid value '../x' for '--backend <BACKEND>': backend name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first

    For more information, try '--help'.
    "#);
    insta::assert_snapshot!(told(&env, &["--backend", "dmtcp"]), @"
    exit 255
    FATAL:   the backend dmtcp (--backend names it) is disabled by $DIR/plugins.toml:3; there is: faulty, gone
             hint:    ask the administrator of this host
    ");
    let gone = told(&env, &["--backend", "gone"]);
    // What follows are places, which depend on how the tests are run.
    insta::assert_snapshot!(gone.split_once("; looked in").unwrap().0, @"
    exit 255
    FATAL:   the library libstasis_gone.so of the backend gone is not found
    ");
    env.configure("default = \"nope\"\n[backends.dmtcp]\n[backends.faulty]\n").unwrap();
    insta::assert_snapshot!(told(&env, &[]), @r#"
    exit 255
    FATAL:   there is no backend "nope" (default in $DIR/plugins.toml:3 names it); there is: dmtcp, faulty
             hint:    `stasis backend list` shows every backend
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "create", "--backend", "nope", "x"]).unwrap(), @r#"
    exit 255
    FATAL:   there is no backend "nope" (--backend names it); there is: dmtcp, faulty
             hint:    `stasis backend list` shows every backend
    "#);
    insta::assert_snapshot!(env.fails(&["backend", "info", "nope"]).unwrap(), @r#"
    exit 255
    FATAL:   there is no backend "nope" (--backend names it); there is: dmtcp, faulty
             hint:    `stasis backend list` shows every backend
    "#);
    env.configure("order = [\"dmtcp\"]\n[backends.dmtcp]\nenabled = false\n").unwrap();
    insta::assert_snapshot!(told(&env, &[]), @"
    exit 255
    FATAL:   `auto` (the default) has no backend to try: none in `order` is enabled
             hint:    name a backend with --backend
    ");
    env.set("STASIS_BACKEND", "nope");
    insta::assert_snapshot!(told(&env, &[]), @r#"
    exit 255
    FATAL:   there is no backend "nope" (STASIS_BACKEND names it); there is: none
             hint:    `stasis backend list` shows every backend
    "#);
    env.finish().unwrap();
}

#[test]
fn what_is_wrong_with_the_configuration_is_told_once() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    env.configure("order = [\"nope\", \"native\"]\n[backends.native]\n").unwrap();
    let small = image(&env, "small");
    let words =
        ["-v", "instance", "start", "--backend", "native", "--checkpoint", "kept", &small, "one", IDLE];
    let run = env.ok(&words).unwrap();
    insta::assert_snapshot!(env.told(&run), @"
    exit 0
    VERBOSE: $DIR/plugins.toml:3: `order` names nope, which no file defines; it is passed over
    INFO:    instance started successfully
    ");
    env.ok(&["instance", "stop", "one"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn a_checkpoint_is_bound_to_its_backend() {
    need!(image, userns, dmtcp);
    let env = saved(Who::User).unwrap();
    insta::assert_snapshot!(told(&env, &["--backend", "faulty"]), @"
    exit 255
    FATAL:   the checkpoint belongs to the backend dmtcp, --backend says faulty
             hint:    leave --backend out, or say --backend dmtcp
    ");
    let small = image(&env, "small");
    let again = env.fails(&["instance", "start", "--backend", "faulty", "--restart", "kept", &small, "one"]);
    insta::assert_snapshot!(again.unwrap(), @"
    exit 255
    FATAL:   the checkpoint belongs to the backend dmtcp, --backend says faulty
             hint:    leave --backend out, or say --backend dmtcp
    ");
    env.finish().unwrap();
}

#[test]
fn a_version_of_the_plugin_that_is_not_accepted() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    env.configure("[backends.dmtcp]\nversion = \">=7, <8\"\n").unwrap();
    insta::assert_snapshot!(told(&env, &["--backend", "dmtcp"]), @r#"
    exit 255
    FATAL:   backend "dmtcp" ($BACKENDS/libstasis_dmtcp.so) has version 0.1.0, but plugins.toml demands >=7, <8
             hint:    install a version that fits, or change version of [backends.dmtcp] in plugins.toml
    "#);
    let digest = "0".repeat(64);
    env.configure(&format!("[backends.dmtcp]\nsha256 = \"{digest}\"\n")).unwrap();
    let told = told(&env, &["--backend", "dmtcp"]);
    // The digest that was found differs from build to build.
    let found = told.split([' ', ',', ';', '\n']).find(|word| word.len() == 64 && *word != digest);
    let told = told.replace(found.unwrap_or("no digest"), "$FOUND").replace(&digest, "$WANTED");
    insta::assert_snapshot!(told, @"
    exit 255
    FATAL:   the library $BACKENDS/libstasis_dmtcp.so of the backend dmtcp has the SHA-256 digest $FOUND, $DIR/plugins.toml:3 wants $WANTED
             hint:    install the pinned build, or change `sha256` after a look
    ");
    env.finish().unwrap();
}

#[test]
fn options_that_the_backend_does_not_have() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    insta::assert_snapshot!(told(&env, &["--backend", "dmtcp", "--backend-option", "nope=1"]), @r#"
    exit 255
    FATAL:   --backend-option: backend "dmtcp" has no option "nope"
             hint:    it has "config", "prefixes"; see stasis backend info dmtcp
    "#);
    insta::assert_snapshot!(told(&env, &["--backend", "dmtcp", "--backend-option", "nope"]), @"
    exit 1
    error: invalid value 'nope' for '--backend-option <NAME=VALUE>': write it as NAME=VALUE

    For more information, try '--help'.
    ");
    env.configure("[backends.dmtcp]\n[backends.dmtcp.options]\nnope = 1\n").unwrap();
    insta::assert_snapshot!(told(&env, &["--backend", "dmtcp"]), @r#"
    exit 255
    FATAL:   plugins.toml: backend "dmtcp" has no option "nope"
             hint:    it has "config", "prefixes"; see stasis backend info dmtcp
    "#);
    env.configure("[backends.dmtcp]\n[backends.dmtcp.options]\nprefixes = 7\n").unwrap();
    insta::assert_snapshot!(told(&env, &["--backend", "dmtcp"]), @r#"
    exit 255
    FATAL:   plugins.toml: option "prefixes" of backend "dmtcp" takes a list of texts
             hint:    prefixes: directories in which DMTCP is installed; the newest that fits the image is taken
    "#);
    env.finish().unwrap();
}
