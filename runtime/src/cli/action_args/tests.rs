//! Flags as they are typed, variables that stand for them, flags that do not exist.

use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "exec")]
struct Cli {
    #[command(flatten)]
    args: ActionArgs,
    image: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("exec").chain(line.split_whitespace()))
}

fn wrong(line: &str) -> String {
    let text = parse(line).unwrap_err().to_string();
    text.lines().next().unwrap().to_owned()
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn the_short_forms_are_apptainers() {
    let line = "-B /a,/b:/c -B /d -H /h -c -C -e -W /w -S /s -o /o -w -f -n -p -i -u image ls -l -B";
    let cli = parse(line).unwrap();
    let args = cli.args;
    assert_eq!(args.bind, ["/a,/b:/c", "/d"]);
    assert_eq!((args.home.as_deref(), args.workdir.as_deref()), (Some("/h"), Some("/w")));
    assert_eq!((args.scratch.len(), args.overlay.len()), (1, 1));
    assert!(args.contain && args.containall && args.cleanenv && args.writable && args.fakeroot);
    assert!(args.net && args.pid && args.ipc && args.userns && !args.uts);
    assert_eq!((cli.image.as_str(), cli.rest), ("image", ["ls", "-l", "-B"].map(str::to_owned).to_vec()));
    assert!(!args.wants_engine() && !args.dry_run);
}

#[test]
fn the_long_forms() {
    let line = "--cwd /x --env A=1 --env-file f --mount type=bind,src=/a,dst=/b --no-home --writable-tmpfs \
                --hostname h --uts --backend b --checkpoint c --checkpoint-interval 1h30m \
                --checkpoint-on USR1,SIGTERM,12 --keep 3 --backend-option k=v=w --backend-option l= \
                --accept-loss a,b --accept-loss c --dry-run --bind-remap /o=/n --requeue-code 76 image";
    let args = parse(line).unwrap().args;
    assert_eq!(args.cwd.as_deref(), Some("/x"));
    assert_eq!(parse("--pwd /y i").unwrap().args.cwd.as_deref(), Some("/y"));
    assert_eq!(args.checkpoint_interval, Some(Duration::from_secs(5400)));
    assert_eq!(args.checkpoint_on, [libc::SIGUSR1, libc::SIGTERM, 12]);
    assert_eq!(args.backend_option[0], ("k".to_owned(), "v=w".to_owned()));
    assert_eq!(args.backend_option[1], ("l".to_owned(), String::new()));
    assert_eq!(args.accept_loss, ["a", "b", "c"]);
    assert_eq!(args.bind_remap, [(PathBuf::from("/o"), PathBuf::from("/n"))]);
    assert_eq!((args.requeue_code, args.keep), (Some(76), Some(3)));
    assert!(args.wants_engine() && args.dry_run);
    let restart = parse("--restart c@7 i").unwrap().args.restart.unwrap();
    assert_eq!(restart.generation, Some(7));
}

#[test]
fn wrong_values_are_told() {
    insta::assert_snapshot!(wrong("--checkpoint a --restart a i"), @"error: the argument '--checkpoint <NAME>' cannot be used with '--restart <NAME[@GEN]>'");
    insta::assert_snapshot!(wrong("--resume a --restart a i"), @"error: the argument '--resume <NAME>' cannot be used with '--restart <NAME[@GEN]>'");
    insta::assert_snapshot!(wrong("--checkpoint ../x i"), @r#"error: invalid value '../x' for '--checkpoint <NAME>': checkpoint name "../x" is not allowed: it starts with '.', and only a letter or a digit may come first"#);
    insta::assert_snapshot!(wrong("--restart a@0 i"), @r#"error: invalid value 'a@0' for '--restart <NAME[@GEN]>': generation "0" of checkpoint "a" is not a number from 1 on"#);
    insta::assert_snapshot!(wrong("--checkpoint-interval soon i"), @"error: invalid value 'soon' for '--checkpoint-interval <30m>': write a time as 90s, 30m or 1h30m");
    insta::assert_snapshot!(wrong("--checkpoint-on KILL i"), @"error: invalid value 'KILL' for '--checkpoint-on <USR1,TERM>': nobody can wait for this signal");
    insta::assert_snapshot!(wrong("--checkpoint-on NOPE i"), @"error: invalid value 'NOPE' for '--checkpoint-on <USR1,TERM>': it is not a signal; write it as USR1, SIGUSR1 or 10");
    insta::assert_snapshot!(wrong("--keep 0 i"), @"error: invalid value '0' for '--keep <N>': 0 is not in 1..=4294967295");
    insta::assert_snapshot!(wrong("--backend-option x i"), @"error: invalid value 'x' for '--backend-option <NAME=VALUE>': write it as NAME=VALUE");
    insta::assert_snapshot!(wrong("--bind-remap a=/b i"), @"error: invalid value 'a=/b' for '--bind-remap <OLD=NEW>': both paths have to begin with a slash");
    insta::assert_snapshot!(wrong("--requeue-code 255 i"), @"error: invalid value '255' for '--requeue-code <N>': it has to be 1 to 254");
}

#[test]
fn durations() {
    for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d1s", 172_801), ("45", 45)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    for bad in
        ["", "m", "0", "0s", "1h1h", "5m2h", "1.5h", "-1s", "1w", "99999999999999999999s", "99999d", "1hé"]
    {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn signals() {
    for text in ["USR1", "SIGUSR1", "usr1", "10"] {
        assert_eq!(parse_signal(text), Ok(libc::SIGUSR1), "{text}");
    }
    for bad in ["", "KILL", "9", "19", "CHLD", "0", "-1", "65", "32", "SIG", "SIGSIGUSR1"] {
        assert!(parse_signal(bad).is_err(), "{bad}");
    }
}

#[test]
fn variables_fill_what_no_flag_says() {
    let mut args = parse("-B /flag --writable-tmpfs --cwd /flag i").unwrap().args;
    let notes = args
        .fill_from(&env(&[
            ("APPTAINER_BIND", "/a,/b"),
            ("SINGULARITY_BIND", "/old"),
            ("STASIS_CONTAIN", "true"),
            ("SINGULARITY_CLEANENV", "1"),
            ("APPTAINER_WRITABLE", "1"),
            ("APPTAINER_NO_HOME", "0"),
            ("APPTAINER_MOUNT", "type=bind,src=/1,dst=/2\ntype=bind,src=/3,dst=/4\n"),
            ("APPTAINER_CWD", "/env"),
            ("APPTAINER_HOME", ""),
            ("STASIS_HOME", "/st"),
        ]))
        .unwrap();
    assert_eq!(args.bind, ["/a,/b", "/flag"]);
    assert_eq!(args.mount.len(), 2);
    assert!(args.contain && args.cleanenv && args.writable_tmpfs && !args.writable && !args.no_home);
    assert_eq!((args.cwd.as_deref(), args.home.as_deref()), (Some("/flag"), Some("/st")));
    assert_eq!(notes, ["APPTAINER_BIND and SINGULARITY_BIND differ: APPTAINER_BIND counts"]);
    let error = ActionArgs::default().fill_from(&env(&[("APPTAINER_PID", "maybe")])).unwrap_err();
    insta::assert_snapshot!(format!("{error}\n{}", error.help().unwrap()), @r#"
    variable APPTAINER_PID is "maybe", and it means yes or no
    set APPTAINER_PID to 1 or 0, or unset it
    "#);
}

#[test]
fn flags_that_do_not_exist_are_refused_by_name() {
    insta::assert_snapshot!(refused("--nvccli").unwrap(), @"--nvccli is a flag of Apptainer's that stasis does not have. Use --nv, which needs no other program.");
    insta::assert_snapshot!(refused("--memory=1G").unwrap(), @"--memory is a flag of Apptainer's that stasis does not have. Limits are those of the batch system or of the surrounding cgroup.");
    assert_eq!(refused("--bind"), None);
    assert_eq!(refused("nv"), None);
    let sorted: Vec<_> = REFUSED.iter().map(|(flag, _)| flag).collect();
    assert!(sorted.is_sorted_by(|a, b| a < b), "not sorted, or twice the same");
    for (flag, sentence) in REFUSED {
        assert!(sentence.ends_with('.'), "{flag}");
        let typed = format!("{flag} x");
        let kind = parse(&typed).map(|_| ()).unwrap_err().kind();
        assert_eq!(kind, clap::error::ErrorKind::UnknownArgument, "{flag} is a flag of ours");
    }
}

#[test]
fn commands_that_do_not_exist_are_refused_by_name() {
    insta::assert_snapshot!(refused_command("run-help").unwrap(), @"run-help is a command of Apptainer's that stasis does not have. The help of an image is shown by `stasis inspect --helpfile IMAGE`.");
    assert_eq!(refused_command("exec"), None);
}
