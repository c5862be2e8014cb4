//! The script is run by the shells of this machine, with its directory of scripts moved to a temporary one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use stasis_plugin_api::plan::Needs;

use super::super::resolve::tests::spec;
use super::*;

fn engine(wrap: &[&str], env: &[(&str, &str)], remove: &[&str]) -> EngineSpec {
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    EngineSpec {
        backend: "b".to_owned(),
        needs: Needs {
            env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            env_remove: strings(remove),
            ..Needs::default()
        },
        wrap: strings(wrap),
        restart: None,
        staging: PathBuf::from("/s"),
        generation: None,
        cover: Vec::new(),
        clocks: None,
    }
}

fn sourcing(argv: &[&str]) -> ContainerSpec {
    let mut spec = spec();
    spec.process.argv = argv.iter().map(|s| (*s).to_owned()).collect();
    spec.process.source_env = true;
    spec.process.env_after.clear();
    spec
}

/// Shells of this machine that are there: what one of them forgives, another one does not.
fn shells() -> Vec<Vec<String>> {
    let all = [&["sh"][..], &["dash"], &["bash", "--posix"], &["busybox", "sh"]];
    let path = std::env::var_os("PATH").unwrap();
    let find = |name: &str| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists());
    let whole = |words: &&[&str]| {
        let program = find(words[0])?.to_str()?.to_owned();
        Some(std::iter::once(program).chain(words[1..].iter().map(|w| (*w).to_owned())).collect())
    };
    all.iter().filter_map(whole).collect()
}

fn run(shell: &[String], spec: &ContainerSpec, scripts: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in scripts {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let argv = command(spec);
    assert_eq!((argv[0].as_str(), argv[1].as_str()), ("/bin/sh", "-c"));
    let script = argv[2].replace("/.singularity.d/env", dir.path().to_str().unwrap());
    Command::new(&shell[0])
        .args(&shell[1..])
        .arg("-c")
        .arg(script)
        .args(&argv[3..])
        .env_clear()
        .envs(environment(spec))
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const SHOW: &str = r#"for v in A B C D PATH; do eval "echo $v=\${$v-unset}"; done; printf '[%s]' "$@""#;

#[test]
fn scripts_are_sourced_in_order_and_the_user_has_the_last_word() {
    let mut spec = sourcing(&["sh", "-c", SHOW, "x", "two words", "", "$HOME", "--", "-n"]);
    spec.process.env.insert("A".to_owned(), "host".to_owned());
    spec.process.env.insert("D".to_owned(), "host".to_owned());
    spec.process.env_after.insert("B".to_owned(), "it's \"$(mine)\"".to_owned());
    let scripts = [
        ("10-a.sh", "export A=a PATH=/usr/bin:/bin:/img; export B=b; C=notexported; set -- lost; set -eu"),
        ("20-b.sh", "export A=${A}b; shift; unset nothing; IFS=x; return 3"),
        ("30-c.txt", "export A=never"),
    ];
    for shell in shells() {
        let text = stdout(&run(&shell, &spec, &scripts));
        assert_eq!(
            text,
            "A=ab\nB=it's \"$(mine)\"\nC=unset\nD=host\nPATH=/usr/bin:/bin:/img\n[two words][][$HOME][--][-n]",
            "{shell:?}"
        );
    }
}

#[test]
fn what_the_user_sets_is_not_among_the_arguments() {
    let mut spec = sourcing(&["sh", "-c", "env", "x"]);
    spec.process.env_after.insert("TOKEN".to_owned(), "secret value".to_owned());
    assert!(!command(&spec).iter().any(|arg| arg.contains("secret")));
    for shell in shells() {
        let text = stdout(&run(&shell, &spec, &[]));
        assert!(text.lines().any(|line| line == "TOKEN=secret value"), "{text}");
        assert!(!text.contains("STASIS_SET_"), "{text}");
    }
}

#[test]
fn the_engines_variables_come_and_go_last() {
    let mut spec = sourcing(&["sh", "-c", "env", "x"]);
    spec.process.env.insert("ENG_HOST".to_owned(), "1\nexport ENG_X=2".to_owned());
    spec.process.env_after.insert("ENG_USER".to_owned(), "1".to_owned());
    spec.engine = Some(engine(&["env", "WRAPPED=1"], &[("ENG_OWN", "o p"), ("E", "1")], &["ENG_*", "GONE"]));
    let scripts = [("a.sh", "export ENG_IMAGE=1 GONE=1 STAYS='*'")];
    for shell in shells() {
        let text = stdout(&run(&shell, &spec, &scripts));
        let mut lines: Vec<_> = text
            .lines()
            .filter(|l| ["ENG", "E=", "GONE", "STAYS", "WRAPPED", "_stasis"].iter().any(|p| l.starts_with(p)))
            .collect();
        lines.sort_unstable();
        assert_eq!(lines, ["E=1", "ENG_OWN=o p", "STAYS=*", "WRAPPED=1"], "{shell:?}");
    }
}

#[test]
fn path_is_extended_around_what_the_image_says() {
    let mut spec = sourcing(&["/bin/sh", "-c", "echo $PATH; env", "x"]);
    spec.process.env.insert(PREPEND.to_owned(), "/first".to_owned());
    spec.process.env.insert(APPEND.to_owned(), "/last".to_owned());
    for shell in shells() {
        let text = stdout(&run(&shell, &spec, &[("a.sh", "PATH=/bin:/usr/bin")]));
        assert_eq!(text.lines().next(), Some("/first:/bin:/usr/bin:/last"), "{shell:?}");
        assert!(!text.contains("STASIS_PREPEND") && !text.contains("STASIS_APPEND"), "{text}");
    }
}

#[test]
fn a_program_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (file, here) = (file.to_str().unwrap(), dir.path().to_str().unwrap());
    let cases = [
        ("nosuch".to_owned(), "FATAL:   \"nosuch\": executable file not found in $PATH\n".to_owned()),
        // A shell would take it for its own command.
        ("shift".to_owned(), "FATAL:   \"shift\": executable file not found in $PATH\n".to_owned()),
        ("/no/such".to_owned(), "FATAL:   \"/no/such\": no such file\n".to_owned()),
        (file.to_owned(), format!("FATAL:   \"{file}\": permission denied\n")),
        (here.to_owned(), format!("FATAL:   \"{here}\" is a directory\n")),
    ];
    for shell in shells() {
        for (program, expected) in &cases {
            let mut spec = sourcing(&[program]);
            // Wrapped, it is still the application that is looked for.
            spec.engine = Some(engine(&["env"], &[], &[]));
            let output = run(&shell, &spec, &[]);
            assert_eq!(output.status.code(), Some(255), "{shell:?} {program}");
            assert_eq!(String::from_utf8_lossy(&output.stderr), *expected, "{shell:?}");
        }
    }
}

#[test]
fn a_broken_script_is_told_by_name() {
    for shell in shells() {
        for text in ["exit 0", "if then", "export A=${B:?gone}"] {
            let output = run(&shell, &sourcing(&["true"]), &[("a.sh", "A=1"), ("b.sh", text)]);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(255), "{shell:?} {text}: {told}");
            assert!(told.contains("/b.sh ended the shell"), "{shell:?} {text}: {told}");
        }
    }
}

#[test]
fn without_scripts_the_command_is_plain() {
    let mut spec = sourcing(&["ls", "-l"]);
    spec.process.source_env = false;
    spec.process.env =
        BTreeMap::from([("ENG_A".to_owned(), "1".to_owned()), ("B".to_owned(), "1".to_owned())]);
    assert_eq!(command(&spec), ["ls", "-l"]);
    spec.engine = Some(engine(&["/.stasis/bin/wrap", "--"], &[("C", "1")], &["ENG_*"]));
    assert_eq!(command(&spec), ["/.stasis/bin/wrap", "--", "ls", "-l"]);
    assert_eq!(environment(&spec).into_keys().collect::<Vec<_>>(), ["B", "C"]);
    spec.process.argv.clear();
    assert!(command(&spec).is_empty());
}

#[test]
fn a_restart_step_is_used_as_it_is() {
    let mut spec = sourcing(&["ls"]);
    let mut engine = engine(&["wrap"], &[("C", "1")], &["A"]);
    engine.restart = Some(RestartStep::Exec { argv: vec!["/.stasis/restart".to_owned()] });
    spec.process.env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    spec.engine = Some(engine);
    assert_eq!(command(&spec), ["/.stasis/restart"]);
    assert_eq!(environment(&spec).into_keys().collect::<Vec<_>>(), ["C"]);
}
