//! Names that could lead out of the store, or into the middle of a command line.

use super::*;
use crate::need::need;

#[test]
fn names_of_checkpoints() {
    let env = Env::new(Who::User).unwrap();
    env.ok(&["checkpoint", "create", "kept"]).unwrap();
    let long = "n".repeat(300);
    let told = |name: &str| env.fails(&["checkpoint", "create", name]).unwrap().replace(&long, "$LONG");
    insta::assert_snapshot!(told(""), @r#"
    exit 255
    FATAL:   checkpoint name "" is not allowed: it is empty
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told("../x"), @r#"
    exit 255
    FATAL:   checkpoint name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told("a/b"), @r#"
    exit 255
    FATAL:   checkpoint name "a/b" is not allowed: it contains '/', and only letters, digits, ".", "_" and "-" may be in it
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told(&long), @r#"
    exit 255
    FATAL:   checkpoint name "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"... is not allowed: it has N characters of at most 64
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told("."), @r#"
    exit 255
    FATAL:   checkpoint name "." is not allowed: it starts with '.', and only a letter or a digit may come first
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told("a\nb"), @r#"
    exit 255
    FATAL:   checkpoint name "a\nb" is not allowed: it contains '\n', and only letters, digits, ".", "_" and "-" may be in it
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "create", "--", "-x"]).unwrap(), @r#"
    exit 255
    FATAL:   checkpoint name "-x" is not allowed: it starts with '-', and only a letter or a digit may come first
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "create", "-x"]).unwrap(), @"
    exit 1
    error: unexpected argument '-x' found

      tip: to pass '-x' as a value, use '-- -x'

    Usage: stasis checkpoint create [OPTIONS] <NAME>

    For more information, try '--help'.
    ");
    for word in ["delete", "show", "verify", "prune"] {
        for name in ["", "../x", "../../data", "a/b", long.as_str(), "/", "."] {
            let told = env.fails(&["checkpoint", word, name]).unwrap();
            assert!(told.starts_with("exit "), "{word} {name}: {told}");
        }
    }
    assert!(store(&env, "kept").is_dir(), "another checkpoint was removed");
    env.finish().unwrap();
}

#[test]
fn names_of_checkpoints_at_a_start() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    for flag in ["--checkpoint", "--restart", "--resume", "--dmtcp-launch", "--dmtcp-restart"] {
        for name in ["", "../x", "a/b", "-x"] {
            let flag = format!("{flag}={name}");
            let told = env.fails(&["instance", "start", &flag, &small, "one", IDLE]).unwrap();
            assert!(told.contains("name"), "{flag}: {told}");
        }
    }
    assert!(!env.path("data/x").exists() && !env.path("x").exists());
    let told = env.fails(&["instance", "start", "--dmtcp-launch", "../dmtcp", &small, "one", IDLE]).unwrap();
    insta::assert_snapshot!(told, @r#"
    exit 255
    FATAL:   checkpoint name "../dmtcp" is not allowed: it starts with '.', and only a letter or a digit may come first
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    env.finish().unwrap();
}

#[test]
fn names_of_instances() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let (small, long) = (image(&env, "small"), "n".repeat(300));
    let told = |name: &str| {
        let told = env.fails(&["instance", "start", &small, name, IDLE]).unwrap();
        told.replace(&long, "$LONG")
    };
    insta::assert_snapshot!(told(""), @r#"
    exit 255
    FATAL:   instance name "" is not allowed: it is empty
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told("../x"), @r#"
    exit 255
    FATAL:   instance name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told("a/b"), @r#"
    exit 255
    FATAL:   instance name "a/b" is not allowed: it contains '/', and only letters, digits, ".", "_" and "-" may be in it
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told(&long), @r#"
    exit 255
    FATAL:   instance name "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"... is not allowed: it has N characters of at most 64
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(told("_x"), @r#"
    exit 255
    FATAL:   instance name "_x" is not allowed: it starts with '_', and only a letter or a digit may come first
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(env.fails(&["instance", "start", &small, "-x", IDLE]).unwrap(), @"
    exit 1
    error: unexpected argument '-x' found

      tip: to pass '-x' as a value, use '-- -x'

    Usage: stasis instance start [OPTIONS] <IMAGE> <NAME> [ARGS]...

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(env.fails(&["exec", "instance://../x", "true"]).unwrap(), @r#"
    exit 255
    FATAL:   instance name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "instance://"]).unwrap(), @r#"
    exit 255
    FATAL:   instance name "" is not allowed: it is empty
             hint:    a name has 1 to 64 characters out of A-Z a-z 0-9 . _ - and begins with a letter or a digit
    "#);
    env.finish().unwrap();
}

#[test]
fn what_exists_and_what_does_not() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    env.ok(&["checkpoint", "create", "kept"]).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "create", "kept"]).unwrap(), @r#"
    exit 255
    FATAL:   Checkpoint "kept" already exists.
             hint:    choose another name, or delete it: stasis checkpoint delete kept
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "delete", "nope"]).unwrap(), @r#"
    exit 255
    FATAL:   checkpoint "nope" does not exist (there are: kept)
             hint:    create it: stasis checkpoint create nope
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "show", "nope"]).unwrap(), @r#"
    exit 255
    FATAL:   checkpoint "nope" does not exist (there are: kept)
             hint:    create it: stasis checkpoint create nope
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "nope"]).unwrap(), @r#"
    exit 255
    FATAL:   no instance found with name "nope" (none is running)
             hint:    see what there is: stasis instance list
    "#);
    insta::assert_snapshot!(env.fails(&["instance", "stop", "nope"]).unwrap(), @r#"
    exit 1
    ERROR:   no instance found with name "nope" (none is running)
             hint:    see what there is: stasis instance list
    "#);
    insta::assert_snapshot!(env.fails(&["instance", "logs", "nope"]).unwrap(), @r#"
    exit 255
    FATAL:   no instance found with name "nope" (none is running)
             hint:    see what there is: stasis instance list
    "#);
    insta::assert_snapshot!(env.fails(&["exec", "instance://nope", "true"]).unwrap(), @r#"
    exit 255
    FATAL:   no instance found with name "nope" (none is running)
             hint:    see what there is: stasis instance list
    "#);
    let told = env.fails(&["instance", "start", "--restart", "nope", &small, "one"]).unwrap();
    insta::assert_snapshot!(told, @r#"
    exit 255
    FATAL:   checkpoint "nope" does not exist (there are: kept)
             hint:    create it: stasis checkpoint create nope
    "#);
    let told = env.fails(&["instance", "start", "--restart", "kept", &small, "one"]).unwrap();
    insta::assert_snapshot!(told, @r#"
    exit 255
    FATAL:   checkpoint "kept" has no saved state yet
             hint:    start it with --checkpoint kept, then save it: stasis checkpoint instance
    "#);
    let told = env.fails(&["instance", "start", "--restart", "kept@7", &small, "one"]).unwrap();
    insta::assert_snapshot!(told, @r#"
    exit 255
    FATAL:   checkpoint "kept" has no saved state yet
             hint:    start it with --checkpoint kept, then save it: stasis checkpoint instance
    "#);
    env.ok(&["instance", "start", &small, "one", IDLE]).unwrap();
    let told = env.fails(&["instance", "start", &small, "one", IDLE]).unwrap();
    insta::assert_snapshot!(told, @r#"
    exit 255
    FATAL:   instance "one" is running already (process N, since TIME)
             hint:    choose another name, or stop it first: stasis instance stop one
    "#);
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   instance "one" was not started with checkpointing
             hint:    start it with `--checkpoint NAME`
    "#);
    env.ok(&["instance", "stop", "one"]).unwrap();
    insta::assert_snapshot!(env.fails(&["checkpoint", "instance", "one"]).unwrap(), @r#"
    exit 255
    FATAL:   no instance found with name "one" (none is running)
             hint:    see what there is: stasis instance list
    "#);
    insta::assert_snapshot!(env.fails(&["instance", "stop", "one"]).unwrap(), @r#"
    exit 1
    ERROR:   no instance found with name "one" (none is running)
             hint:    see what there is: stasis instance list
    "#);
    env.finish().unwrap();
}

#[test]
fn command_lines_that_cannot_be() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let small = image(&env, "small");
    let told = |words: &[&str]| env.fails(words).unwrap();
    insta::assert_snapshot!(told(&["exec", "--nvccli", &small, "true"]), @"
    exit 1
    ERROR:   --nvccli is a flag of Apptainer's that stasis does not have. Use --nv, which needs no other program.
    ");
    insta::assert_snapshot!(told(&["run-help", &small]), @"
    exit 1
    ERROR:   run-help is a command of Apptainer's that stasis does not have. The help of an image is shown by `stasis inspect --helpfile IMAGE`.
    ");
    insta::assert_snapshot!(told(&["exec", &small]), @"
    exit 1
    ERROR:   exec needs a command
             hint:    stasis exec IMAGE COMMAND [ARGUMENT...]
    ");
    insta::assert_snapshot!(told(&["checkpoint", "bogus"]), @"
    exit 1
    error: unrecognized subcommand 'bogus'

    Usage: stasis checkpoint [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    let both = ["instance", "start", "--dmtcp-launch", "a", "--dmtcp-restart", "b", &small, "one"];
    insta::assert_snapshot!(told(&both), @"
    exit 1
    ERROR:   --dmtcp-launch and --dmtcp-restart contradict each other
             hint:    start with the one, or bring back with the other
    ");
    let both = ["instance", "start", "--checkpoint", "a", "--restart", "b", &small, "one"];
    insta::assert_snapshot!(told(&both), @"
    exit 1
    error: the argument '--checkpoint <NAME>' cannot be used with '--restart <NAME[@GEN]>'

    Usage: stasis instance start --checkpoint <NAME> <IMAGE> <NAME> [ARGS]...

    For more information, try '--help'.
    ");
    env.finish().unwrap();
}
