//! Whole containers: what each action and each flag makes of an image.

use std::collections::BTreeMap;

use super::super::Mount;
use super::super::identity::tests::alice;
use super::mounts::target;
use super::*;
use crate::image::tests::image_dir;

mod refusals;
mod whole;

fn args(line: &str) -> ActionArgs {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ActionArgs,
    }
    let words = std::iter::once("x").chain(line.split_whitespace());
    <Cli as clap::Parser>::try_parse_from(words).unwrap().args
}

fn exec(words: &[&str]) -> Action {
    Action::Exec { argv: words.iter().map(|w| (*w).to_owned()).collect() }
}

fn with(action: &Action, line: &str, facts: &HostFacts, engine: bool) -> Result<ContainerSpec, SpecError> {
    let dir = image_dir();
    let image = Image::open(dir.path().to_str().unwrap()).unwrap();
    let mut spec = resolve(action, &args(line), &image, facts, "job", engine)?;
    // The directory has another name each time.
    let text = serde_json::to_string(&spec).unwrap();
    let root = image.root.to_str().unwrap();
    let base = image.root.file_name().unwrap().to_str().unwrap();
    let text = text.replace(dir.path().to_str().unwrap(), "/img").replace(root, "/img").replace(base, "img");
    spec = serde_json::from_str(&text).unwrap();
    Ok(spec)
}

fn made(line: &str) -> ContainerSpec {
    with(&exec(&["ls"]), line, &alice(), false).unwrap()
}

/// One for the tests of the other modules.
pub(crate) fn spec() -> ContainerSpec {
    made("")
}

/// One under an engine.
pub(crate) fn engine_spec(line: &str) -> ContainerSpec {
    with(&exec(&["ls"]), line, &alice(), true).unwrap()
}

fn at<'a>(spec: &'a ContainerSpec, path: &str) -> Vec<&'a Mount> {
    spec.mounts.iter().filter(|m| target(m) == Path::new(path)).collect()
}

fn bind_of(spec: &ContainerSpec, path: &str) -> String {
    match at(spec, path).as_slice() {
        [Mount::Bind { source, writable, user, .. }] => {
            format!(
                "{} {}{}",
                source.display(),
                if *writable { "rw" } else { "ro" },
                if *user { " user" } else { "" }
            )
        }
        other => format!("{other:?}"),
    }
}

fn text_of(spec: &ContainerSpec, path: &str) -> String {
    match at(spec, path).as_slice() {
        [Mount::File { content, .. }] => content.clone(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_spec_survives_being_stored() {
    let spec = engine_spec("-B /data -w");
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<ContainerSpec>(&text).unwrap(), spec);
}

#[test]
fn namespaces_by_flag() {
    let of = |line: &str| describe::describe(&made(line)).lines().nth(3).unwrap()[14..].to_owned();
    assert_eq!(of(""), "user mount");
    assert_eq!(of("-p"), "user mount pid");
    assert_eq!(of("-i --uts -n"), "user mount ipc uts net");
    assert_eq!(of("--hostname h"), "user mount uts");
    assert_eq!(of("-C"), "user mount pid ipc");
    assert_eq!(of("-c"), "user mount");
    assert!(made("-p").init && !made("").init);
    let root = HostFacts { euid: 0, ..alice() };
    assert!(!with(&exec(&["ls"]), "", &root, true).unwrap().namespaces.user);
    assert!(with(&exec(&["ls"]), "-u", &root, true).unwrap().namespaces.user);
}

#[test]
fn stdio_by_action() {
    let tty = HostFacts { stdin_tty: true, stdout_tty: true, ..alice() };
    let of = |action: &Action, facts: &HostFacts, engine| with(action, "", facts, engine).unwrap().stdio;
    assert_eq!(of(&exec(&["ls"]), &tty, false), StdioKind::Inherit);
    assert_eq!(of(&exec(&["ls"]), &tty, true), StdioKind::Pty);
    assert_eq!(of(&exec(&["ls"]), &alice(), true), StdioKind::File);
    assert_eq!(of(&Action::Shell, &alice(), true), StdioKind::File);
    assert_eq!(of(&Action::InstanceRun { args: Vec::new() }, &tty, false), StdioKind::File);
}

#[test]
fn users_binds_take_the_place_of_default_ones() {
    let spec = made("-B /data:/tmp,/srv/x:/dev -B /srv/y:/etc/hosts:ro --env A=1");
    assert_eq!(bind_of(&spec, "/tmp"), "/data rw user");
    assert_eq!(bind_of(&spec, "/dev"), "/srv/x rw user");
    assert_eq!(bind_of(&spec, "/etc/hosts"), "/srv/y ro user");
    assert_eq!(spec.process.env["APPTAINER_BIND"], "/data:/tmp,/srv/x:/dev,/srv/y:/etc/hosts:ro");
    // What lies on /dev still lies on it.
    let spec = engine_spec("-B /srv/x:/dev");
    let place = |path: &str| spec.mounts.iter().position(|m| target(m) == Path::new(path)).unwrap();
    assert!(place("/dev") < place("/dev/pts") && place("/dev") < place("/dev/shm"));
    assert_eq!(bind_of(&engine_spec("-B /srv/x:/proc"), "/proc"), "/srv/x rw user");
}

#[test]
fn home_in_all_its_forms() {
    assert_eq!(bind_of(&made(""), "/home/alice"), "/home/alice rw");
    assert_eq!(bind_of(&made("-H /data"), "/data"), "/data rw user");
    let spec = made("-H /data:/home/bob");
    assert_eq!(bind_of(&spec, "/home/bob"), "/data rw user");
    assert_eq!(spec.process.env["HOME"], "/home/bob");
    assert!(text_of(&spec, "/etc/passwd").contains(":/home/bob:"));
    // The working directory is still shown where there is no home.
    let spec = made("--no-home");
    assert!(at(&spec, "/home/alice").is_empty());
    assert_eq!(bind_of(&spec, "/home/alice/project"), "/home/alice/project rw");
    let spec = made("-f");
    assert_eq!(bind_of(&spec, "/root"), "/home/alice rw");
    assert_eq!(spec.process.cwd[0], Path::new("/root/project"));
    assert_eq!((spec.ids.map, spec.ids.uid, spec.ids.host_uid), (IdMap::Root, 0, 1000));
    assert!(matches!(at(&made("-c"), "/home/alice").as_slice(), [Mount::Tmpfs { mode: 0o700, .. }]));
    assert_eq!(bind_of(&made("-c -H /data:/h"), "/h"), "/data rw user");
    let nobody = HostFacts { home: "/".into(), cwd: "/".into(), ..alice() };
    assert!(at(&with(&exec(&["ls"]), "", &nobody, false).unwrap(), "/").is_empty());
}

#[test]
fn the_working_directory() {
    let cwd = |cwd: &str, line: &str| {
        with(&exec(&["ls"]), line, &HostFacts { cwd: cwd.into(), ..alice() }, false).unwrap()
    };
    assert_eq!(bind_of(&cwd("/project/a", ""), "/project/a"), "/project/a rw");
    for shown in ["/", "/etc", "/usr", "/tmp/x", "/home/alice/a", "/proc/1", "/dev/shm", "/.stasis/x"] {
        let spec = cwd(shown, "");
        let own = spec
            .mounts
            .iter()
            .filter(|m| matches!(m, Mount::Bind { source, .. } if source == Path::new(shown)));
        assert_eq!(own.count(), 0, "{shown}");
    }
    assert_eq!(bind_of(&cwd("/project/a", "-B /data:/project"), "/project/a"), "[]");
    assert_eq!(cwd("/project/a", "").process.cwd, ["/project/a", "/home/alice", "/"].map(PathBuf::from));
    assert_eq!(cwd("/project/a", "-c").process.cwd, ["/home/alice", "/"].map(PathBuf::from));
    assert_eq!(cwd("/project/a", "--pwd /x/../y").process.cwd, [PathBuf::from("/y")]);
}

#[test]
fn a_work_directory_holds_what_would_be_in_memory() {
    let line = "-c -W /data -S /scratch,/deep/one";
    let spec = made(line);
    assert_eq!(bind_of(&spec, "/tmp"), "/data/tmp rw");
    assert_eq!(bind_of(&spec, "/var/tmp"), "/data/var_tmp rw");
    assert_eq!(bind_of(&spec, "/home/alice"), "/data/home rw");
    assert_eq!(bind_of(&spec, "/deep/one"), "/data/scratch/deep/one rw");
    let dirs = directories_to_make(&spec, &args(line), &alice());
    assert_eq!(dirs.len(), 5);
    let spec = made("--overlay /srv/x");
    assert_eq!(spec.root.write, RootWrite::Overlay("/srv/x".into()));
    let dirs = directories_to_make(&spec, &args("--overlay /srv/x"), &alice());
    assert_eq!(dirs, ["/srv/x/upper", "/srv/x/work"].map(PathBuf::from));
    assert!(directories_to_make(&made("-W /nope"), &args("-W /nope"), &alice()).is_empty());
    assert!(matches!(at(&made("-S scratch"), "/scratch").as_slice(), [Mount::Tmpfs { .. }]));
}

#[test]
fn the_host_name_is_fixed_and_resolves() {
    let spec = engine_spec("");
    assert_eq!(spec.hostname.as_deref(), Some("node7"));
    assert_eq!(text_of(&spec, "/etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 node7\n");
    let spec = made("--hostname box");
    assert!(text_of(&spec, "/etc/hosts").ends_with("127.0.1.1 box\n"));
    assert_eq!(text_of(&spec, "/etc/hostname"), "box\n");
    assert_eq!(made("").hostname, None);
}

#[test]
fn the_environment() {
    let mut facts = alice();
    let set = [
        ("A", "host"),
        ("B", "host"),
        ("APPTAINERENV_B", "prefix"),
        ("APPTAINERENV_C", "prefix"),
        ("SINGULARITYENV_PREPEND_PATH", "/first"),
        ("LD_LIBRARY_PATH", "/host"),
        ("STASIS_CONFIG", "/x"),
    ];
    facts.env.extend(set.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let spec = with(&exec(&["ls"]), "--env-file env --env B=flag", &facts, false).unwrap();
    let env = &spec.process.env;
    assert_eq!((env["A"].as_str(), env["B"].as_str(), env["C"].as_str()), ("file", "flag", "prefix"));
    assert_eq!(env["PATH"], env::DEFAULT_PATH);
    assert_eq!((env["USER_PATH"].as_str(), env["STASIS_PREPEND_PATH"].as_str()), ("/host/bin", "/first"));
    for gone in ["LD_LIBRARY_PATH", "STASIS_CONFIG", "APPTAINERENV_B", "PREPEND_PATH", "APPTAINER_INSTANCE"] {
        assert!(!env.contains_key(gone), "{gone}");
    }
    let after: Vec<_> = spec.process.env_after.keys().map(String::as_str).collect();
    assert_eq!(after, ["A", "B", "C", "HOME", "PS1"]);
    let clean = with(&exec(&["ls"]), "-e", &facts, false).unwrap().process.env;
    let rest: BTreeMap<_, _> = clean
        .into_iter()
        .filter(|(k, _)| !["APPTAINER_", "SINGULARITY_", "STASIS_"].iter().any(|p| k.starts_with(p)))
        .collect();
    let names: Vec<_> = rest.keys().map(String::as_str).collect();
    assert_eq!(names, ["B", "C", "HOME", "LANG", "PATH", "PS1", "TERM", "USER_PATH"]);
    assert_eq!(rest["LANG"], "C");
    let instance = with(&Action::InstanceRun { args: Vec::new() }, "", &alice(), false).unwrap().process.env;
    assert_eq!(
        (instance["APPTAINER_INSTANCE"].as_str(), instance["APPTAINER_COMMAND"].as_str()),
        ("job", "run")
    );
}

#[test]
fn libraries_are_named_only_where_there_are_some() {
    let dir = image_dir();
    std::fs::write(dir.path().join(".singularity.d/libs/x.so"), "").unwrap();
    let image = Image::open(dir.path().to_str().unwrap()).unwrap();
    let spec = resolve(&exec(&["ls"]), &args(""), &image, &alice(), "job", false).unwrap();
    assert_eq!(spec.process.env["LD_LIBRARY_PATH"], "/.singularity.d/libs");
}

#[test]
fn binds_are_taken_from_elsewhere_at_a_restart() {
    let mut spec = made("-B /data:/in,/srv/x:/x");
    let remap = |spec: &mut ContainerSpec, old: &str, new: &str| {
        binds::remap(spec, &[(old.into(), new.into())], &alice())
            .map_err(|e| format!("{e}\n{}", e.help().unwrap()))
    };
    remap(&mut spec, "/srv", "/srv/y/..").unwrap_err();
    remap(&mut spec, "/data", "/srv/y").unwrap();
    assert_eq!(bind_of(&spec, "/in"), "/srv/y rw user");
    insta::assert_snapshot!(remap(&mut spec, "/tmp", "/data").unwrap_err(), @r#"
    --bind-remap: the container has no bind of "/tmp"
    it has /srv/y, /srv/x
    "#);
    insta::assert_snapshot!(remap(&mut spec, "/srv/x", "/nope").unwrap_err(), @r#"
    --bind-remap "/srv/x=/nope": "/nope" does not exist on this host
    check the spelling, or make it first
    "#);
}
