use super::*;
use std::fs;

/// A system directory, a home, and a context that looks there.
struct Place {
    dir: tempfile::TempDir,
    context: Context,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let euid = nix::unistd::geteuid().as_raw();
        let context = Context {
            // Not root, even when the tests are: what root does differently has tests of its own.
            euid: if euid == 0 { 4242 } else { euid },
            uid: euid,
            home: Some(dir.path().join("home")).into(),
            env: BTreeMap::new(),
            exe: PathBuf::from("/usr/bin/stasis"),
            system_dir: dir.path().join("etc"),
        };
        Self { dir, context }
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self) -> Result<Settings, String> {
        Settings::load(&self.context, None).map_err(|error| self.show(&error))
    }

    fn show(&self, error: &ConfigError) -> String {
        error.to_string().replace(self.dir.path().to_str().unwrap(), "DIR")
    }
}

fn names(settings: &Settings) -> Vec<String> {
    settings.backends.keys().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_file_parses_and_names_only_what_it_defines() {
    let file = plugins_toml::parse(BUILT_IN, Path::new("/etc/stasis/plugins.toml")).unwrap();
    assert_eq!(file.default.as_ref().unwrap().value, DefaultBackend::Auto);
    assert!(!file.locked.as_ref().unwrap().value);
    assert!(!file.allow_user_plugins.as_ref().unwrap().value);
    let mut order: Vec<_> = file.order.as_ref().unwrap().iter().map(|n| n.value.clone()).collect();
    order.sort();
    assert_eq!(order, file.backends.keys().cloned().collect::<Vec<_>>());
    assert!(file.search.as_ref().unwrap().iter().all(|dir| dir.value.is_absolute()));
    assert!(file.backends.values().all(|entry| entry.enabled && entry.version.is_some()));
    // Every example in the comments is a key that the parser takes.
    let examples: String =
        BUILT_IN.lines().map(|l| format!("{}\n", l.strip_prefix("#: ").unwrap_or(l))).collect();
    let shown = plugins_toml::parse(&examples, Path::new("/etc/stasis/plugins.toml")).unwrap();
    assert!(shown.keep.is_some() && shown.backends.values().all(|b| !b.options.is_empty()));
    assert!(shown.backends.values().any(|b| b.sha256.is_some()));
}

#[test]
fn without_any_file_the_built_in_text_holds() {
    let settings = Place::new().load().unwrap();
    assert!(settings.files.is_empty() && settings.notes.is_empty());
    assert_eq!(settings.default.source, Source::BuiltIn);
    assert!(!settings.backends.is_empty());
}

#[test]
fn layers_add_up_and_each_value_knows_its_file() {
    let place = Place::new();
    let main = place.write(
        "etc/plugins.toml",
        "schema = 1\ndefault = \"one\"\nallow-user-plugins = true\nsearch = [\"lib\"]\nkeep = 5\n[backends.one]\n",
    );
    place.write("etc/plugins.d/20-two.toml", "schema = 1\n[backends.two]\n");
    place.write("etc/plugins.d/10-three.toml", "schema = 1\n[backends.three]\nenabled = false\n");
    place.write("etc/plugins.d/notes.txt", "not a configuration");
    let user = place.write(
        "home/.config/stasis/plugins.toml",
        "schema = 1\ndefault = \"mine\"\nsearch = [\"/home/lib\"]\n[backends.mine]\n",
    );
    let settings = place.load().unwrap();
    assert_eq!(names(&settings), ["mine", "one", "three", "two"]);
    assert_eq!(settings.enabled().count(), 3);
    assert_eq!(settings.default.place(), format!("{}:2", user.display()));
    assert_eq!(settings.keep.as_ref().unwrap().source, Source::File(main));
    let search: Vec<_> = settings.search.iter().map(|s| s.value.clone()).collect();
    assert_eq!(search, [place.dir.path().join("etc/lib"), PathBuf::from("/home/lib")]);
    let read: Vec<_> = settings.files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(read, ["plugins.toml", "10-three.toml", "20-two.toml", "plugins.toml"]);
}

#[test]
fn a_users_file_is_ignored_with_a_note_unless_allowed() {
    let place = Place::new();
    place.write("etc/plugins.toml", "schema = 1\norder = [\"one\", \"gone\"]\n[backends.one]\n");
    place.write("home/.config/stasis/plugins.toml", "schema = 1\n[backends.mine]\n");
    let settings = place.load().unwrap();
    assert_eq!(names(&settings), ["one"]);
    let notes = settings.notes.join("\n").replace(place.dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(notes, @r#"
    DIR/home/.config/stasis/plugins.toml is ignored: allow-user-plugins is false (not set)
    DIR/etc/plugins.toml:2: `order` names gone, which no file defines; it is passed over
    "#);
}

#[test]
fn without_an_administrator_the_users_file_may_redefine_what_is_built_in() {
    let place = Place::new();
    let disabled = |name: String| format!("[backends.{name}]\nenabled = false\n");
    let built_in: String = names(&place.load().unwrap()).into_iter().map(disabled).collect();
    place.write("home/.config/stasis/plugins.toml", &format!("schema = 1\n{built_in}[backends.mine]\n"));
    let settings = place.load().unwrap();
    assert_eq!(settings.enabled().map(ToString::to_string).collect::<Vec<_>>(), ["mine"]);
}

#[test]
fn no_file_redefines_anothers_backend_or_sets_what_is_not_its_own() {
    let place = Place::new();
    place.write("etc/plugins.toml", "schema = 1\nallow-user-plugins = true\n[backends.one]\n");
    let drop_in = place.write("etc/plugins.d/x.toml", "schema = 1\n\n[backends.one]\n");
    insta::assert_snapshot!(place.load().unwrap_err(), @r#"
    DIR/etc/plugins.d/x.toml:3:11: the backend `one` is already defined in DIR/etc/plugins.toml
       |
     3 | [backends.one]
       |           ^^^
       allowed: another name, or a change of that file
    "#);
    fs::write(&drop_in, "schema = 1\ndefault = \"two\"\n[backends.two]\n").unwrap();
    insta::assert_snapshot!(place.load().unwrap_err(), @r#"
    DIR/etc/plugins.d/x.toml:2:11: `default` belongs into the main plugins.toml
       |
     2 | default = "two"
       |           ^^^^^
       allowed: [backends.NAME]
    "#);
    fs::remove_file(&drop_in).unwrap();
    place.write("home/.config/stasis/plugins.toml", "schema = 1\nlocked = false\n");
    insta::assert_snapshot!(place.load().unwrap_err(), @r#"
    DIR/home/.config/stasis/plugins.toml:2:10: `locked` is the administrator's to set
       |
     2 | locked = false
       |          ^^^^^
       allowed: default, order, search, keep and [backends.NAME]
    "#);
}

#[test]
fn a_named_file_replaces_the_layers_unless_locked() {
    let mut place = Place::new();
    let system = place.write("etc/plugins.toml", "schema = 1\n[backends.one]\n");
    place.write("etc/plugins.d/x.toml", "schema = 1\n[backends.two]\n");
    let own = place.write("own.toml", "schema = 1\n[backends.mine]\n");
    assert_eq!(names(&Settings::load(&place.context, Some(&own)).unwrap()), ["mine"]);
    place.context.env.insert("STASIS_CONFIG".to_owned(), own.to_str().unwrap().to_owned());
    assert_eq!(names(&place.load().unwrap()), ["mine"]);

    let missing = Settings::load(&place.context, Some(&place.dir.path().join("none.toml"))).unwrap_err();
    insta::assert_snapshot!(place.show(&missing), @"--config names DIR/none.toml, which does not exist");
    fs::write(&system, "schema = 1\nlocked = true\n[backends.one]\n").unwrap();
    insta::assert_snapshot!(place.load().unwrap_err(), @"STASIS_CONFIG is refused: DIR/etc/plugins.toml says locked = true");
    place.context.env.clear();
    assert_eq!(names(&place.load().unwrap()), ["one", "two"]);
}

#[test]
fn root_takes_neither_the_environment_nor_a_users_file() {
    let mut place = Place::new();
    place.context.euid = 0;
    place.write("home/.config/stasis/plugins.toml", "schema = 1\n[backends.mine]\n");
    assert!(!names(&place.load().unwrap()).contains(&"mine".to_owned()));
    place.context.env.insert("STASIS_CONFIG".to_owned(), "/home/u/p.toml".to_owned());
    insta::assert_snapshot!(place.load().unwrap_err(), @r#"STASIS_CONFIG is set to "/home/u/p.toml": as root, no configuration is taken from the environment"#);
    place.context.env.clear();
    // A file that is not root's is refused.
    let own = place.write("own.toml", "schema = 1\n");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&own, Some(4242), None).unwrap();
    }
    let error = Settings::load(&place.context, Some(&own)).unwrap_err();
    assert!(matches!(error, ConfigError::Untrusted(_)), "{error}");
    assert!(error.help().unwrap().starts_with("chown root "), "{error}");
}

#[test]
fn a_file_that_others_can_write_or_that_is_huge_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let path = place.write("etc/plugins.toml", "schema = 1\n");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    assert!(place.load().unwrap_err().starts_with("the configuration may not be used: DIR/etc/plugins.toml"));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    insta::assert_snapshot!(place.load().unwrap_err(), @"DIR/etc/plugins.toml is larger than 1048576 bytes, it is no plugins.toml");
}
