use super::*;

fn fails(text: &str) -> String {
    parse(text, Path::new("/etc/stasis/plugins.toml")).unwrap_err().to_string()
}

#[test]
fn a_full_file_is_read_with_types_and_places() {
    let digest = "AB".repeat(32);
    let text = format!(
        "schema = 1\ndefault = \"one\"\norder = [\"one\", \"two\"]\nsearch = [\"/usr/lib/x\", \"lib\"]\n\
         locked = true\nallow-user-plugins = true\nkeep = 3\n\
         [backends.one]\nlibrary = \"sub/a.so\"\nversion = \">=0.1, <1\"\nsha256 = \"{digest}\"\nenabled = false\n\
         [backends.one.options]\nn = 1\nlist = [\"a\", true]\nwhen = 2024-01-02\n[backends.two-b]\n"
    );
    let file = parse(&text, Path::new("/etc/stasis/plugins.toml")).unwrap();
    let search: Vec<_> = file.search.unwrap().into_iter().map(|s| s.value).collect();
    assert_eq!(search, [PathBuf::from("/usr/lib/x"), PathBuf::from("/etc/stasis/lib")]);
    assert_eq!(file.keep.unwrap().value, 3);
    assert_eq!(file.default.unwrap().place(), "/etc/stasis/plugins.toml:2");
    let one = &file.backends[&"one".parse().unwrap()];
    assert_eq!(one.library, Library::At(PathBuf::from("/etc/stasis/sub/a.so")));
    assert_eq!(one.sha256.as_deref(), Some("ab".repeat(32).as_str()));
    assert!(!one.enabled && one.version.as_ref().unwrap().matches(&semver::Version::new(0, 4, 0)));
    assert_eq!(
        serde_json::to_string(&one.options).unwrap(),
        r#"{"list":["a",true],"n":1,"when":"2024-01-02"}"#
    );
    let two = &file.backends[&"two-b".parse().unwrap()];
    assert_eq!(two.library, Library::Named("libstasis_two_b.so".to_owned()));
    assert!(two.enabled && two.at.line == 17, "{two:?}");
}

#[test]
fn mistakes_in_keys_and_names_point_at_their_place() {
    insta::assert_snapshot!(fails("schema = 1\n\ndefualt = \"auto\"\n"), @r#"
    /etc/stasis/plugins.toml:3:1: unknown key `defualt`
       |
     3 | defualt = "auto"
       | ^^^^^^^
       allowed: schema, default, order, search, locked, allow-user-plugins, keep, backends
    "#);
    insta::assert_snapshot!(fails("schema = 2\nfuture = 1\n"), @r#"
    /etc/stasis/plugins.toml:1:10: schema 2 is not known to this version of stasis
       |
     1 | schema = 2
       |          ^
       allowed: schema = 1
    "#);
    insta::assert_snapshot!(fails("default = \"auto\"\n"), @r#"
    /etc/stasis/plugins.toml: there is no `schema`
       allowed: schema = 1
    "#);
    insta::assert_snapshot!(fails("schema = 1\nlocked = \"yes\"\n"), @r#"
    /etc/stasis/plugins.toml:2:10: invalid type: string "yes"
       |
     2 | locked = "yes"
       |          ^^^^^
       allowed: a boolean
    "#);
    insta::assert_snapshot!(fails("schema = 1\norder = [\"ok\", \"../x\"]\n"), @r#"
    /etc/stasis/plugins.toml:2:16: "../x" is not a backend's name
       |
     2 | order = ["ok", "../x"]
       |                ^^^^^^
       allowed: 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit
    "#);
    insta::assert_snapshot!(fails("schema = 1\n[backends.\"a b\"]\n"), @r#"
    /etc/stasis/plugins.toml:2:11: "a b" is not a backend's name
       |
     2 | [backends."a b"]
       |           ^^^^^
       allowed: 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit
    "#);
    insta::assert_snapshot!(fails("schema = 1\n[backends.auto]\n"), @r#"
    /etc/stasis/plugins.toml:2:11: `auto` stands for a choice and cannot be a backend's name
       |
     2 | [backends.auto]
       |           ^^^^
       allowed: any other name
    "#);
}

#[test]
fn mistakes_in_values_point_at_their_place() {
    insta::assert_snapshot!(fails("schema = 1\n[backends.x]\nversion = \"new\"\n"), @r#"
    /etc/stasis/plugins.toml:3:11: "new" is not a version requirement: unexpected character 'n' while parsing major version number
       |
     3 | version = "new"
       |           ^^^^^
       allowed: comparisons as in ">=0.1, <1"
    "#);
    insta::assert_snapshot!(fails("schema = 1\n[backends.x]\nsha256 = \"abc\"\n"), @r#"
    /etc/stasis/plugins.toml:3:10: not a SHA-256 digest: it has 3 characters
       |
     3 | sha256 = "abc"
       |          ^^^^^
       allowed: the 64 hexadecimal digits that `sha256sum` prints
    "#);
    insta::assert_snapshot!(fails("schema = 1\n[backends.x]\nlib = \"abc\"\n"), @r#"
    /etc/stasis/plugins.toml:3:1: unknown key `lib`
       |
     3 | lib = "abc"
       | ^^^
       allowed: library, version, sha256, enabled, options
    "#);
    insta::assert_snapshot!(fails("schema = 1\nkeep = 0\n"), @r#"
    /etc/stasis/plugins.toml:2:8: a checkpoint cannot keep 0 generations
       |
     2 | keep = 0
       |        ^
       allowed: 1 or more
    "#);
    insta::assert_snapshot!(fails("schema = 1\n[backends.x]\n[backends.x]\n"), @r#"
    /etc/stasis/plugins.toml:3:11: duplicate key
       |
     3 | [backends.x]
       |           ^
    "#);
    insta::assert_snapshot!(fails("schema = 1\n[backends.x.options]\nv = [nan]\n"), @r#"
    /etc/stasis/plugins.toml:3:5: the option `v` is NaN, which no plugin can be given
       |
     3 | v = [nan]
       |     ^^^^^
       allowed: a finite number
    "#);
    insta::assert_snapshot!(fails("schema = \n"), @r#"
    /etc/stasis/plugins.toml:1:10: string values must be quoted
       |
     1 | schema = 
       |          ^
       allowed: literal string
    "#);
}

#[test]
fn hostile_text_is_an_error_and_not_a_panic() {
    for text in
        ["\u{feff}schema=1\n[", "schema=1\n\"\u{1b}\"=", "[[backends]]", "schema = 99999999999999999999"]
    {
        fails(text);
    }
    fails(&format!("schema = 1\nx = {}1{}", "[".repeat(50_000), "]".repeat(50_000)));
}
