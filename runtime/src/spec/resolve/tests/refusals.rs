//! Everything that is refused before a container is made of it.

use super::*;

fn wrong(line: &str) -> String {
    let error = with(&exec(&["ls"]), line, &alice(), false).unwrap_err();
    format!("{error}\n{}", error.help().unwrap_or_default())
}

#[test]
fn what_contradicts_itself_is_refused() {
    insta::assert_snapshot!(wrong("-w --writable-tmpfs"), @"
    --writable and --writable-tmpfs exclude each other
    choose one of them
    ");
    insta::assert_snapshot!(wrong("-w -o /data"), @"
    --writable and --overlay exclude each other
    choose one of them
    ");
    insta::assert_snapshot!(wrong("--writable-tmpfs -o /data"), @"
    --writable-tmpfs and --overlay exclude each other
    choose one of them
    ");
    insta::assert_snapshot!(wrong("-o /data -o /srv/x"), @r#"
    --overlay "/data" cannot be used: there can be only one
    give one directory that you can write to
    "#);
    insta::assert_snapshot!(wrong("-o /data:ro"), @r#"
    --overlay "/data:ro" cannot be used: an overlay that is only read is not supported
    give one directory that you can write to
    "#);
    insta::assert_snapshot!(wrong("-o /data/file"), @r#"
    --overlay "/data/file" cannot be used: it is a file, and only a directory can be written to
    give one directory that you can write to
    "#);
    insta::assert_snapshot!(wrong("-o /nope"), @r#"
    --overlay "/nope": "/nope" does not exist on this host
    check the spelling, or make it first
    "#);
}

#[test]
fn what_the_host_or_the_rules_do_not_allow_is_refused() {
    insta::assert_snapshot!(wrong("-W /data/file -c"), @r#"--workdir "/data/file": "/data/file" is not a directory"#);
    insta::assert_snapshot!(wrong("-S /"), @r#"
    --scratch "/": nothing can be put over the container's whole root
    name a directory below /
    "#);
    insta::assert_snapshot!(wrong("-S /.stasis"), @r#"
    --scratch "/.stasis": "/.stasis" is reserved for the container itself
    choose a place that is not below /.stasis
    "#);
    insta::assert_snapshot!(wrong("-H /nope"), @r#"
    --home "/nope": "/nope" does not exist on this host
    check the spelling, or make it first
    "#);
    insta::assert_snapshot!(wrong("-H /data:x"), @r#"
    --home "/data:x": the place inside, "x", does not begin with a slash
    write /x
    "#);
    insta::assert_snapshot!(wrong("-H a:b:c"), @r#"
    --home "a:b:c" cannot be understood: it has more than one colon, or an empty side
    write --home SRC or --home SRC:DST
    "#);
    insta::assert_snapshot!(wrong("--cwd x"), @r#"
    --cwd "x" does not begin with a slash
    give a directory inside the container, from its root on
    "#);
    insta::assert_snapshot!(wrong("--hostname a_b"), @r#"
    --hostname "a_b" is not a host name
    1 to 63 letters, digits, dots and hyphens, beginning with a letter or a digit
    "#);
    insta::assert_snapshot!(wrong("--env-file bad"), @"
    --env-file bad, line 3: there is no equals sign
    write one NAME=VALUE per line; a # begins a comment, quotation marks keep blanks
    ");
    insta::assert_snapshot!(wrong("--env-file nope"), @"
    --env-file nope cannot be read: it does not exist
    check the spelling and the permissions
    ");
    insta::assert_snapshot!(wrong("-B /data:/.stasis/x"), @r#"
    --bind "/data:/.stasis/x": "/.stasis/x" is reserved for the container itself
    choose a place that is not below /.stasis
    "#);
    let none = with(&exec(&[]), "", &alice(), false).unwrap_err().to_string();
    assert!(none.starts_with("no command was given to run in image "), "{none}");
}

#[test]
fn images_that_have_nothing_to_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    let image = Image::open(dir.path().to_str().unwrap()).unwrap();
    let of = |action: Action| {
        let error = resolve(&action, &args(""), &image, &alice(), "job", false).unwrap_err();
        format!("{error}\n{}", error.help().unwrap()).replace(dir.path().to_str().unwrap(), "IMG")
    };
    insta::assert_snapshot!(of(Action::Run { args: Vec::new() }), @r#"
    image "IMG" has no /.singularity.d/runscript that can be executed
    run a command of the image with exec, or put an executable file at /.singularity.d/runscript
    "#);
    insta::assert_snapshot!(of(Action::Shell), @r#"
    image "IMG" has no shell: neither /bin/bash nor /bin/sh can be executed
    run a program of the image with exec
    "#);
    let spec = resolve(&exec(&["x"]), &args(""), &image, &alice(), "job", false).unwrap();
    assert!(!spec.process.source_env);
}
