//! `plugins.toml` and `dmtcp-conf.yaml` that cannot be understood or may not be believed.

use super::*;
use crate::need::need;

#[test]
fn mistakes_in_plugins_toml() {
    let env = Env::new(Who::User).unwrap();
    let told = |text: &str| {
        env.write("plugins.toml", text).unwrap();
        env.fails(&["backend", "list"]).unwrap()
    };
    insta::assert_snapshot!(told("schema = 1\ndefault = \"auto\nlocked = false\n"), @r#"
    exit 255
    FATAL:   $DIR/plugins.toml:2:16: invalid basic string
                |
              2 | default = "auto
                |                ^
                allowed: "
    "#);
    insta::assert_snapshot!(told("schema = 1\nbackend = \"x\"\n"), @r#"
    exit 255
    FATAL:   $DIR/plugins.toml:2:1: unknown key `backend`
                |
              2 | backend = "x"
                | ^^^^^^^
                allowed: schema, default, order, search, locked, allow-user-plugins, keep, backends
    "#);
    insta::assert_snapshot!(told("schema = 1\nlocked = \"yes\"\n"), @r#"
    exit 255
    FATAL:   $DIR/plugins.toml:2:10: invalid type: string "yes"
                |
              2 | locked = "yes"
                |          ^^^^^
                allowed: a boolean
    "#);
    insta::assert_snapshot!(told("schema = 9\n"), @"
    exit 255
    FATAL:   $DIR/plugins.toml:1:10: schema 9 is not known to this version of stasis
                |
              1 | schema = 9
                |          ^
                allowed: schema = 1
    ");
    insta::assert_snapshot!(told("default = \"auto\"\n"), @"
    exit 255
    FATAL:   $DIR/plugins.toml: there is no `schema`
                allowed: schema = 1
    ");
    insta::assert_snapshot!(told("schema = 1\n[backends.\"../x\"]\n"), @r#"
    exit 255
    FATAL:   $DIR/plugins.toml:2:11: "../x" is not a backend's name
                |
              2 | [backends."../x"]
                |           ^^^^^^
                allowed: 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit
    "#);
    insta::assert_snapshot!(told("schema = 1\n[backends.dmtcp]\nversion = \"newest\"\n"), @r#"
    exit 255
    FATAL:   $DIR/plugins.toml:3:11: "newest" is not a version requirement: unexpected character 'n' while parsing major version number
                |
              3 | version = "newest"
                |           ^^^^^^^^
                allowed: comparisons as in ">=0.1, <1"
    "#);
    insta::assert_snapshot!(told("schema = 1\n[backends.dmtcp]\nsha256 = \"abc\"\n"), @r#"
    exit 255
    FATAL:   $DIR/plugins.toml:3:10: not a SHA-256 digest: it has N characters
                |
              3 | sha256 = "abc"
                |          ^^^^^
                allowed: the 64 hexadecimal digits that `sha256sum` prints
    "#);
    insta::assert_snapshot!(told("schema = 1\n[backends.dmtcp]\nenabled = 1\n"), @"
    exit 255
    FATAL:   $DIR/plugins.toml:3:11: invalid type: integer `1`
                |
              3 | enabled = 1
                |           ^
                allowed: a boolean
    ");
    env.finish().unwrap();
}

#[test]
fn a_configuration_that_is_not_there_or_not_safe() {
    let env = Env::new(Who::User).unwrap();
    let stasis = |words: &[&str]| {
        let mut command = env.program(&env.site.stasis.to_string_lossy());
        command.args(words);
        crate::running::Running::start(command, false).and_then(|running| running.wait()).unwrap()
    };
    let gone = env.path("gone.toml").to_string_lossy().into_owned();
    insta::assert_snapshot!(env.told(&stasis(&["--config", &gone, "backend", "list"])), @"
    exit 255
    FATAL:   --config names $DIR/gone.toml, which does not exist
             hint:    correct the path given with --config
    ");
    let open = env.write("open.toml", "schema = 1\n").unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let open = open.to_string_lossy().into_owned();
    insta::assert_snapshot!(env.told(&stasis(&["--config", &open, "backend", "list"])), @"
    exit 255
    FATAL:   the configuration may not be used: $DIR/open.toml has mode 0666: every user may write to it
             hint:    chmod go-w $DIR/open.toml
    ");
    env.finish().unwrap();
}

#[test]
fn root_takes_no_configuration_of_a_user() {
    need!(root);
    let mut env = Env::new(Who::Myself).unwrap();
    let file = env.write("user.toml", "schema = 1\n").unwrap();
    std::os::unix::fs::chown(&file, Some(crate::env::USER), None).unwrap();
    let config = file.to_string_lossy().into_owned();
    let mut command = env.program(&env.site.stasis.to_string_lossy());
    command.args(["--config", &config, "backend", "list"]);
    let run = crate::running::Running::start(command, false).unwrap().wait().unwrap();
    insta::assert_snapshot!(env.told(&run), @"
    exit 255
    FATAL:   the configuration may not be used: $DIR/user.toml belongs to uid N, it must belong to root
             hint:    chown root $DIR/user.toml
    ");
    env.set("STASIS_CONFIG", &config);
    let mut command = env.program(&env.site.stasis.to_string_lossy());
    command.args(["backend", "list"]);
    let run = crate::running::Running::start(command, false).unwrap().wait().unwrap();
    insta::assert_snapshot!(env.told(&run), @r#"
    exit 255
    FATAL:   STASIS_CONFIG is set to "$DIR/user.toml": as root, no configuration is taken from the environment
             hint:    unset STASIS_CONFIG, or give a file owned by root with --config
    "#);
    env.finish().unwrap();
}

#[test]
fn mistakes_in_dmtcp_conf_yaml() {
    need!(image, userns, dmtcp);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let conf = env.path("dmtcp-conf.yaml");
    let options = format!("[backends.dmtcp]\n[backends.dmtcp.options]\nconfig = \"{}\"\n", conf.display());
    env.configure(&options).unwrap();
    let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "one", IDLE];
    let told = |text: &str| {
        env.write("dmtcp-conf.yaml", text).unwrap();
        env.fails(&start).unwrap()
    };
    insta::assert_snapshot!(env.fails(&start).unwrap(), @"
    exit 255
    FATAL:   DMTCP cannot be used here
             because: cannot read $DIR/dmtcp-conf.yaml: there is no such file
             hint:    make $DIR/dmtcp-conf.yaml readable, or take the option `config` out of plugins.toml
    ");
    insta::assert_snapshot!(told("bins: [dmtcp_launch\nlibs: []\n"), @"
    exit 255
    FATAL:   DMTCP cannot be used here
             because: $DIR/dmtcp-conf.yaml:2:5: did not find expected ',' or ']'; allowed are two lists of names or absolute paths, `bins` and `libs`
             hint:    correct $DIR/dmtcp-conf.yaml, for example: bins: [dmtcp_launch], libs: [libdmtcp.so]; DMTCP is found without the file too
    ");
    insta::assert_snapshot!(told("bins: []\nlibraries: []\n"), @"
    exit 255
    FATAL:   DMTCP cannot be used here
             because: $DIR/dmtcp-conf.yaml:2:1: unknown field `libraries`, expected `bins` or `libs`; allowed are two lists of names or absolute paths, `bins` and `libs`
             hint:    correct $DIR/dmtcp-conf.yaml, for example: bins: [dmtcp_launch], libs: [libdmtcp.so]; DMTCP is found without the file too
    ");
    insta::assert_snapshot!(told("bins: 7\nlibs: []\n"), @"
    exit 255
    FATAL:   DMTCP cannot be used here
             because: $DIR/dmtcp-conf.yaml:1:7: bins: invalid type: integer `7`, expected a sequence; allowed are two lists of names or absolute paths, `bins` and `libs`
             hint:    correct $DIR/dmtcp-conf.yaml, for example: bins: [dmtcp_launch], libs: [libdmtcp.so]; DMTCP is found without the file too
    ");
    insta::assert_snapshot!(told("bins:\n  - 1: 2\nlibs: []\n"), @"
    exit 255
    FATAL:   DMTCP cannot be used here
             because: $DIR/dmtcp-conf.yaml:2:5: bins[0]: invalid type: map, expected a string; allowed are two lists of names or absolute paths, `bins` and `libs`
             hint:    correct $DIR/dmtcp-conf.yaml, for example: bins: [dmtcp_launch], libs: [libdmtcp.so]; DMTCP is found without the file too
    ");
    env.finish().unwrap();
}
