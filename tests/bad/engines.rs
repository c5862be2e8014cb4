//! DMTCP that is not installed, is installed by halves, or has another version.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;

use super::*;
use crate::need::need;

fn told(env: &Env) -> String {
    let small = image(env, "small");
    let words = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "one", IDLE];
    env.fails(&words).unwrap_or_else(|why| format!("{why}"))
}

/// A place that knows no DMTCP but the one below `$DIR/prefix`, made of links to the real one.
fn with_prefix(files: &[&str]) -> Outcome<Env> {
    let env = Env::new(Who::User)?;
    env.make_dir("prefix/bin")?;
    env.make_dir("prefix/lib/dmtcp")?;
    for file in files {
        let (program, dir) = if file.ends_with(".so") { (false, "lib/dmtcp") } else { (true, "bin") };
        let launch = real("dmtcp_launch")?;
        let prefix = launch.parent().and_then(|bin| bin.parent()).ok_or("dmtcp_launch has no prefix")?;
        let from = prefix.join(dir).join(file);
        if !program || from.exists() {
            symlink(from, env.path("prefix").join(dir).join(file))?;
        }
    }
    let prefix = env.path("prefix");
    let text = format!("[backends.dmtcp]\n[backends.dmtcp.options]\nprefixes = [\"{}\"]\n", prefix.display());
    env.configure(&text)?;
    Ok(env)
}

fn real(program: &str) -> Outcome<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    Ok(found.ok_or_else(|| format!("{program} not found"))?.canonicalize()?)
}

#[test]
fn not_installed() {
    need!(image, userns);
    let mut env = Env::new(Who::User).unwrap();
    env.set("PATH", "/no/such/place");
    let nowhere = env.make_dir("nowhere").unwrap();
    let text =
        format!("[backends.dmtcp]\n[backends.dmtcp.options]\nprefixes = [\"{}\"]\n", nowhere.display());
    env.configure(&text).unwrap();
    insta::assert_snapshot!(told(&env), @r#"
    exit 255
    FATAL:   DMTCP cannot be used here
             because: DMTCP not installed or incomplete: dmtcp_launch, dmtcp_restart, dmtcp_coordinator, dmtcp_command, mtcp_restart (sought in $DIR/nowhere/bin); libdmtcp.so (sought in $DIR/nowhere/lib/dmtcp, $DIR/nowhere/lib64/dmtcp, $DIR/nowhere/lib/x86_64-linux-gnu/dmtcp)
             hint:    install DMTCP 4.2 or later, or name its prefix in plugins.toml: [backends.dmtcp.options] prefixes = ["/opt/dmtcp"]
    "#);
    insta::assert_snapshot!(env.told(&env.stasis(&["backend", "check", "dmtcp"]).unwrap()), @r#"
    exit 2
    dmtcp 0.1.0 (DMTCP , accepts >=3.0, <6): cannot be used here: DMTCP not installed or incomplete: dmtcp_launch, dmtcp_restart, dmtcp_coordinator, dmtcp_command, mtcp_restart (sought in $DIR/nowhere/bin); libdmtcp.so (sought in $DIR/nowhere/lib/dmtcp, $DIR/nowhere/lib64/dmtcp, $DIR/nowhere/lib/x86_64-linux-gnu/dmtcp)
      hint: install DMTCP 4.2 or later, or name its prefix in plugins.toml: [backends.dmtcp.options] prefixes = ["/opt/dmtcp"]
      dmtcp_launch                 required  missing (sought in $DIR/nowhere/bin)
      dmtcp_restart                required  missing (sought in $DIR/nowhere/bin)
      dmtcp_coordinator            required  missing (sought in $DIR/nowhere/bin)
      dmtcp_command                required  missing (sought in $DIR/nowhere/bin)
      mtcp_restart                 required  missing (sought in $DIR/nowhere/bin)
      libdmtcp.so                  required  missing (sought in $DIR/nowhere/lib/dmtcp, $DIR/nowhere/lib64/dmtcp, $DIR/nowhere/lib/x86_64-linux-gnu/dmtcp)
    "#);
    // What needs no engine does not speak of one.
    let list = env.ok(&["checkpoint", "list"]).unwrap();
    assert_eq!(list.err, "");
    env.ok(&["checkpoint", "create", "x"]).unwrap();
    env.ok(&["checkpoint", "delete", "x"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn half_installed() {
    need!(image, userns, dmtcp);
    let mut env = with_prefix(&["dmtcp_launch", "dmtcp_restart", "dmtcp_command", "libdmtcp.so"]).unwrap();
    env.set("PATH", "/no/such/place");
    insta::assert_snapshot!(told(&env), @r#"
    exit 255
    FATAL:   DMTCP cannot be used here
             because: DMTCP not installed or incomplete: dmtcp_coordinator, mtcp_restart (sought in $DIR/prefix/bin)
             hint:    install DMTCP 4.2 or later, or name its prefix in plugins.toml: [backends.dmtcp.options] prefixes = ["/opt/dmtcp"]
    "#);
    env.finish().unwrap();
}

#[test]
fn another_version() {
    need!(image, userns, dmtcp);
    let all = ["dmtcp_restart", "dmtcp_command", "dmtcp_coordinator", "mtcp_restart", "libdmtcp.so"];
    let mut env = with_prefix(&all).unwrap();
    env.set("PATH", "/usr/bin:/bin");
    for version in ["2.6.0", "9.0", "nonsense"] {
        let text = format!("#!/bin/sh\necho 'dmtcp_launch (DMTCP) {version}'\n");
        let launch = env.write("prefix/bin/dmtcp_launch", &text).unwrap();
        std::fs::set_permissions(&launch, std::fs::Permissions::from_mode(0o755)).unwrap();
        let told = told(&env);
        assert!(told.starts_with("exit 255\n") && told.contains(version), "{version}: {told}");
        if version == "2.6.0" {
            insta::assert_snapshot!(told, @r#"
            exit 255
            FATAL:   DMTCP cannot be used here
                     because: DMTCP 2.6.0 at $DIR/prefix is not supported (>=3.0, <6)
                     hint:    install DMTCP 4.2 or later, or name its prefix in plugins.toml: [backends.dmtcp.options] prefixes = ["/opt/dmtcp"]
            "#);
        }
    }
    env.finish().unwrap();
}

/// Variables of the engine in the environment change nothing: this one makes the application crash at a capture.
#[test]
fn its_variables_are_not_passed_on() {
    need!(image, userns, dmtcp);
    let mut env = Env::new(Who::User).unwrap();
    env.set("DMTCP_FORKED_CHECKPOINT", "1");
    env.set("DMTCP_COORD_PORT", "1");
    env.set("LD_PRELOAD", "");
    let small = image(&env, "small");
    let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "one", IDLE];
    env.ok(&start).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.finish().unwrap();
}

/// Apptainer's own file, with absolute paths, which Apptainer itself no longer understands.
#[test]
fn apptainers_own_file_is_understood() {
    need!(image, userns, dmtcp);
    let mut env = Env::new(Who::User).unwrap();
    let bin = real("dmtcp_launch").unwrap();
    let bin = bin.parent().unwrap();
    let lib = find(bin.parent().unwrap(), "libdmtcp.so").pop().unwrap();
    let mut text = String::from("bins:\n");
    for program in ["launch", "restart", "coordinator", "command", "discover_rm"] {
        text.push_str(&format!("  - {}/dmtcp_{program}\n", bin.display()));
    }
    text.push_str(&format!("  - {}/mtcp_restart\nlibs:\n  - {}\n", bin.display(), lib.display()));
    let conf = env.write("dmtcp-conf.yaml", &text).unwrap();
    let options = format!("[backends.dmtcp]\n[backends.dmtcp.options]\nconfig = \"{}\"\n", conf.display());
    env.configure(&options).unwrap();
    env.set("PATH", "/usr/bin:/bin");
    let small = image(&env, "small");
    let start = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "one", IDLE];
    env.ok(&start).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    env.finish().unwrap();
}
