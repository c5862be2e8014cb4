use super::look::places;
use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

fn put(file: &Path, content: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A directory below which things are put and found; messages are compared without its name.
struct Tried {
    dir: tempfile::TempDir,
}

impl Tried {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A private prefix whose "loader" says that version whatever it is told to run.
    fn private(&self, prefix: &str, version: &str) {
        let loader = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
        let script = format!("#!/bin/sh\necho run >> {}\necho {version}\n", self.at("runs").display());
        put(&self.at(prefix).join(loader), &script);
        put(&self.at(prefix).join("usr/sbin/criu"), "");
        put(&self.at(prefix).join("bin/criu"), "#!/bin/sh\nexit 1\n");
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.at("runs")).unwrap_or_default().lines().count()
    }

    fn search(&self, prefix: &str, path: &str, search_path: &str) -> Found {
        let option = |value: &str| Some(self.at(value)).filter(|_| !value.is_empty());
        let search_path = std::env::join_paths(search_path.split_whitespace().map(|dir| self.at(dir)));
        let search_path = search_path.unwrap().into_string().unwrap();
        let places = places(option(prefix), option(path), &search_path, &["/nowhere/sbin/criu"]);
        let mut cache = Cache::open(&self.at("cache"), nix::unistd::geteuid().as_raw());
        let found = among(&places, 1000, &mut cache);
        cache.save();
        found
    }

    fn problem(&self, found: &Found) -> String {
        let (reason, _) = found.chosen.as_ref().unwrap_err();
        let files = found.files.iter().map(|file| {
            let found = file.found.as_deref().map_or("-", |found| found);
            format!("\n{} {found} {}", file.name, file.note.as_deref().unwrap_or_default())
        });
        format!("{reason}{}", files.collect::<String>()).replace(self.dir.path().to_str().unwrap(), "DIR")
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_private_prefix_is_found_by_either_name_and_asked_once() {
    let tried = Tried::new();
    tried.private("p", "Version: 4.1.1");
    symlink(tried.at("p/bin/criu"), tried.at("criu")).unwrap();
    let found = tried.search("p", "", "");
    let criu = found.chosen.unwrap();
    assert_eq!(criu.version, Version::new(4, 1, 1));
    assert_eq!(criu.program(), tried.at("p/usr/sbin/criu"));
    let names: Vec<_> = found.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["criu", "ld-linux-x86-64.so.2"]);
    assert!(found.files.iter().all(|file| file.required && file.found.is_some()));
    // By its script, on PATH and as a link; nothing is started any more.
    assert_eq!(tried.search("", "p/bin/criu", "").chosen.unwrap(), criu);
    assert_eq!(tried.search("", "", "p/none p/bin").chosen.unwrap(), criu);
    assert_eq!(tried.search("", "criu", "").chosen.unwrap(), criu);
    assert_eq!(tried.runs(), 1);
    // Another program in the same place is asked anew.
    tried.private("p", "Version: 4.2");
    assert_eq!(tried.search("p", "", "").chosen.unwrap().version, Version::new(4, 2, 0));
    assert_eq!(tried.runs(), 2);

    let told = |words: Vec<String>| words.join(" ").replace(tried.dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(told(criu.command_inside()), @"/.stasis/criu/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /.stasis/criu/usr/lib/x86_64-linux-gnu /.stasis/criu/usr/sbin/criu");
    insta::assert_snapshot!(told(criu.command_on_host()), @"DIR/p/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path DIR/p/usr/lib/x86_64-linux-gnu DIR/p/usr/sbin/criu");
    let usr = Bind { source: tried.at("p/usr"), target: "/.stasis/criu/usr".into(), writable: false };
    assert_eq!(criu.binds(), [usr]);
}

#[test]
fn an_installed_program_comes_with_all_that_its_loader_finds() {
    let criu = Criu {
        version: Version::new(4, 0, 0),
        kind: Kind::Host {
            program: "/usr/sbin/criu".into(),
            loader: Some("/lib64/ld-linux-x86-64.so.2".into()),
            libraries: vec![("libnet.so.1".to_owned(), "/lib/x86_64-linux-gnu/libnet.so.1.8.0".into())],
        },
    };
    let binds = criu.binds().into_iter();
    let binds: Vec<_> = binds.map(|b| format!("{} {}", b.source.display(), b.target.display())).collect();
    insta::assert_snapshot!(binds.join("\n"), @"
/usr/sbin/criu /.stasis/criu/bin/criu
/lib64/ld-linux-x86-64.so.2 /.stasis/criu/ld.so
/lib/x86_64-linux-gnu/libnet.so.1.8.0 /.stasis/criu/lib/libnet.so.1
");
    insta::assert_snapshot!(criu.command_inside().join(" "), @"/.stasis/criu/ld.so --library-path /.stasis/criu/lib /.stasis/criu/bin/criu");
    assert_eq!(criu.command_on_host(), ["/usr/sbin/criu"]);
    let kind = Kind::Host { program: "/usr/sbin/criu".into(), loader: None, libraries: Vec::new() };
    assert_eq!(Criu { kind, ..criu }.command_inside(), ["/.stasis/criu/bin/criu"]);
}

#[test]
fn what_does_not_count_is_told_with_the_reason() {
    let tried = Tried::new();
    insta::assert_snapshot!(tried.problem(&tried.search("", "", "a b")), @"
CRIU is not installed
criu - sought: DIR/a/criu, DIR/b/criu, /nowhere/sbin/criu
");
    insta::assert_snapshot!(tried.problem(&tried.search("none", "", "")), @"
DIR/none/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2: not there
criu - DIR/none/usr/sbin/criu: not there
ld-linux-x86-64.so.2 - DIR/none/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2: not there
");
    insta::assert_snapshot!(tried.problem(&tried.search("", "none", "")), @"
DIR/none: not there
criu - DIR/none: not there
");
    put(&tried.at("a/criu"), "#!/bin/sh\necho 'Version: 4.1.1'\n");
    insta::assert_snapshot!(tried.problem(&tried.search("", "", "a b")), @"
DIR/a/criu: not an ELF program; name the program itself, or the directory of a private CRIU as `prefix`
criu DIR/a/criu
");
    fs::create_dir_all(tried.at("b/criu")).unwrap();
    insta::assert_snapshot!(tried.problem(&tried.search("", "", "a b")), @"
DIR/a/criu: not an ELF program; name the program itself, or the directory of a private CRIU as `prefix`; DIR/b/criu: not a regular file
criu DIR/a/criu
");
    // Dynamically linked and healthy, but no CRIU.
    fs::copy("/usr/bin/env", tried.at("env")).unwrap();
    let (reason, _) = tried.search("", "env", "").chosen.unwrap_err();
    assert!(reason.contains("printed no version"), "{reason}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn old_and_silent_ones_are_passed_over() {
    let tried = Tried::new();
    tried.private("old", "Version: 3.17.1");
    tried.private("silent", "nonsense");
    tried.private("good", "Version: 4.1.1");
    insta::assert_snapshot!(tried.problem(&tried.search("old", "", "")), @"
CRIU 3.17.1 at DIR/old works for root only: 3.18 is the first version for ordinary users
criu DIR/old/usr/sbin/criu 
ld-linux-x86-64.so.2 DIR/old/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
");
    insta::assert_snapshot!(tried.problem(&tried.search("silent", "", "")), @"
DIR/silent/usr/sbin/criu printed no version: nonsense
criu DIR/silent/usr/sbin/criu 
ld-linux-x86-64.so.2 DIR/silent/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
");
    let found = tried.search("", "", "old/bin silent/bin good/bin");
    assert_eq!(found.chosen.unwrap().program(), tried.at("good/usr/sbin/criu"));
    // What somebody named is not replaced by something else.
    assert!(tried.search("old", "", "good/bin").chosen.is_err());
    let relative = among(&places(Some("opt".into()), None, "", &[]), 1000, &mut Cache::default());
    assert_eq!(relative.chosen.unwrap_err().0, "opt is no absolute path");
    let places = places(None, None, "relative:/x:/x", &["/usr/sbin/criu"]);
    let places: Vec<_> = places.iter().map(look::Place::path).collect();
    assert_eq!(places, [Path::new("/x/criu"), Path::new("/usr/sbin/criu")]);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn root_runs_only_what_root_alone_can_change() {
    let tried = Tried::new();
    tried.private("p", "Version: 4.1.1");
    std::fs::set_permissions(tried.at("p/usr"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let places = places(Some(tried.at("p")), None, "", &[]);
    let problem = among(&places, 0, &mut Cache::default()).chosen.unwrap_err().0;
    assert!(problem.contains("root does not run it"), "{problem}");
    assert_eq!(tried.runs(), 0);
}

/// The program of a private CRIU without its libraries is an installed program that lacks some.
#[test]
fn libraries_that_are_missing_are_named() {
    let Some(prefix) = crate::selftest::tests::prefix() else { return };
    let tried = Tried::new();
    let program = Path::new(&prefix).join("usr/sbin/criu");
    let places = places(None, Some(program), "", &[]);
    let found = among(&places, 1000, &mut Cache::open(&tried.at("cache"), 1000));
    // Unless the host happens to have them all.
    if let Err((reason, _)) = found.chosen {
        let missing = found.files.iter().filter(|file| file.found.is_none());
        let missing: Vec<_> = missing.map(|file| file.name.as_str()).collect();
        assert!(
            !missing.is_empty() && reason.ends_with(&format!(" lacks {}", missing.join(", "))),
            "{reason}"
        );
    }
}
