use super::*;

fn parse(text: &str) -> std::result::Result<Definition, DefinitionError> {
    Definition::parse(Path::new("image.def"), text, &BTreeMap::new())
}

fn told(text: &str) -> String {
    let error = parse(text).unwrap_err();
    format!("{error}\n{}", error.help().unwrap_or_default()).trim_end().to_owned()
}

const WHOLE: &str = r#"# A comment
Bootstrap: docker   # another one
From: debian:{{ RELEASE }}
Stage: tools

%arguments
    RELEASE=bookworm
    FLAGS="-O2 -g"

%files
    a.c /src/
    "with blank.txt"   'to here'
%post -c /bin/bash
    gcc {{FLAGS}} -o /tool a.c
    echo "{{ not a word }}" ${x} {{#each}} }}

BootStrap: scratch
%files from tools
    /tool
%environment
    export A=1
%labels
    Author Me Myself
    Version=1.2
    Quoted "some words"
    Quotes "one" and "two"
    Empty
%help
    Help.

    More.
%runscript
    exec /tool "$@"
%startscript
    exec /tool serve
%test
    /tool --version
%setup
    echo setup
%pre
    echo pre
%post
    one
%post
    two
%apprun foo
    exec foo
%appenv foo
    F=1
%applabels foo
    L 1
%appfiles bar
    x bin/x
"#;

#[test]
fn a_whole_one() {
    let definition = parse(WHOLE).unwrap();
    let [tools, last] = definition.stages.as_slice() else { panic!("{definition:#?}") };
    assert_eq!(tools.header["from"], "debian:bookworm");
    assert_eq!(tools.name.as_deref(), Some("tools"));
    let copies: Vec<_> = tools.files[0].copies.iter().map(|c| (c.from.as_str(), c.to.as_deref())).collect();
    assert_eq!(copies, [("a.c", Some("/src/")), ("with blank.txt", Some("to here"))]);
    let post = tools.post.as_ref().unwrap();
    assert_eq!(post.shell.as_deref(), Some("/bin/bash"));
    insta::assert_snapshot!(post.text, @r#"
    gcc -O2 -g -o /tool a.c
    echo "{{ not a word }}" ${x} {{#each}} }}
    "#);
    assert_eq!(last.header["bootstrap"], "scratch");
    assert_eq!(last.files[0].from.as_deref(), Some("tools"));
    assert_eq!(last.labels["Author"], "Me Myself");
    assert_eq!(last.labels["Version"], "1.2");
    assert_eq!(last.labels["Quoted"], "some words");
    assert_eq!(last.labels["Quotes"], r#""one" and "two""#);
    assert_eq!(last.labels["Empty"], "");
    assert_eq!(last.help.as_deref(), Some("    Help.\n\n    More.\n"));
    assert_eq!(last.post.as_ref().unwrap().text, "    one\n    two\n");
    assert_eq!(last.apps["foo"].run.as_ref().unwrap().text, "    exec foo\n");
    assert_eq!(last.apps["foo"].labels["L"], "1");
    assert_eq!(last.apps["bar"].files[0].copies[0].to.as_deref(), Some("bin/x"));
    assert!(last.pre.is_some() && last.setup.is_some() && last.test.is_some());
    assert!(definition.text.contains("From: debian:bookworm\n"));
}

#[test]
fn arguments_given_win_and_have_to_be_used() {
    let text = "Bootstrap: docker\nFrom: x:{{ TAG }}\n%arguments\nTAG=1\n";
    let with = |name: &str, value: &str| {
        let given = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        Definition::parse(Path::new("image.def"), text, &given)
    };
    assert_eq!(with("TAG", "2").unwrap().stages[0].header["from"], "x:2");
    let error = with("TGA", "2").unwrap_err();
    insta::assert_snapshot!(error, @"image.def, line 1: nothing in it is called {{ TGA }}, for which a value was given");
    assert!(with("TAG", "2\n%post").unwrap_err().to_string().contains("more than one line"));
}

const WRONG: &[&str] = &[
    "",
    "# only a comment\n\n%post\n",
    "Bootstrap: docker\nFrom: a\n%pots\n  echo\n",
    "Bootstrap: docker\nFrm: a\n",
    "Bootstrap: yum\nOSVersion: 9\n",
    "Bootstrap: docker\nFrom: a\nFingerprints: 12\n",
    "Bootstrap: docker\nFrom: a\nOtherURL1: x\n",
    "Bootstrap: docker\nFrom:\n",
    "Bootstrap: docker\nFrom: a\nFrom: b\n",
    "Bootstrap: docker\njust words\n",
    "Bootstrap: docker\nFrom: {{ WHAT }}\n",
    "Bootstrap: docker\nFrom: a\n%arguments\nno value\n",
    "Bootstrap: scratch\n%files\n a b c\n",
    "Bootstrap: scratch\n%files\n \"a b\n",
    "Bootstrap: scratch\n%files\n '' b\n",
    "Bootstrap: scratch\n%files from nowhere\n a\n",
    "Bootstrap: scratch\n%files of x\n a\n",
    "Bootstrap: scratch\nStage: a\n%help\nBootstrap: scratch\nStage: a\n",
    "Bootstrap: scratch\n%post -x\n",
    "Bootstrap: scratch\n%environment here\n",
    "Bootstrap: scratch\n%labels\n =x\n",
    "Bootstrap: scratch\n%apprun\n",
    "Bootstrap: scratch\n%apprun ../x\n",
    "Bootstrap: scratch\n%appx foo\n",
];

#[test]
fn what_is_wrong_is_told_with_the_line() {
    let all: Vec<String> = WRONG.iter().map(|text| told(text)).collect();
    insta::assert_snapshot!(all.join("\n"), @r#"
    image.def, line 1: there is no Bootstrap: keyword
    a definition file begins with `Bootstrap: AGENT`; agents are docker, oci, oci-archive, docker-archive, localimage, debootstrap, scratch
    image.def, line 3: there is no Bootstrap: keyword
    a definition file begins with `Bootstrap: AGENT`; agents are docker, oci, oci-archive, docker-archive, localimage, debootstrap, scratch
    image.def, line 3: there is no section %pots
    sections are %arguments %environment %files %help %labels %post %pre %runscript %setup %startscript %test %appenv %appfiles %apphelp %appinstall %applabels %apprun %appstart %apptest
    image.def, line 2: "frm" is not a keyword
    keywords are bootstrap, from, stage, registry, namespace, osversion, mirrorurl, include
    image.def, line 1: there is no bootstrap agent "yum"
    agents are docker, oci, oci-archive, docker-archive, localimage, debootstrap, scratch
    image.def, line 3: the keyword fingerprints is not supported
    keywords are bootstrap, from, stage, registry, namespace, osversion, mirrorurl, include
    image.def, line 3: the keyword otherurl1 is not supported
    keywords are bootstrap, from, stage, registry, namespace, osversion, mirrorurl, include
    image.def, line 2: from has no value
    image.def, line 3: from is said twice
    image.def, line 2: "just words" is neither a keyword with a value nor a section
    write `Keyword: value`, or %section in the first column
    image.def, line 2: {{ WHAT }} has no value
    give it one with --build-arg WHAT=VALUE, or a default in %arguments
    image.def, line 4: "no value" in %arguments is no value for a name
    write NAME=VALUE; a name has letters, digits and underscores
    image.def, line 3: there are more than two paths
    write SOURCE or SOURCE DESTINATION, with quotation marks around blanks
    image.def, line 3: a quotation mark is not closed
    write SOURCE or SOURCE DESTINATION
    image.def, line 3: a path is empty
    write SOURCE or SOURCE DESTINATION
    image.def, line 2: %files wants something from stage "nowhere", which there is not
    stages before this one are: none
    image.def, line 2: "of x" behind %files means nothing
    only another stage may: from STAGE
    image.def, line 4: there is a stage "a" already
    give each stage a name of its own
    image.def, line 2: "-x" behind %post means nothing
    only a shell may: -c /bin/bash
    image.def, line 2: "here" behind %environment means nothing
    image.def, line 3: a label has no name
    write NAME VALUE or NAME=VALUE
    image.def, line 2: %apprun names no application
    write the name behind it
    image.def, line 2: "../x" is not a name of an application
    letters, digits, dots, hyphens and underscores
    image.def, line 2: there is no section %appx
    sections are %arguments %environment %files %help %labels %post %pre %runscript %setup %startscript %test %appenv %appfiles %apphelp %appinstall %applabels %apprun %appstart %apptest
    "#);
}

#[test]
fn files_that_are_none_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str| {
        let error = Definition::load(&dir.path().join(name), &BTreeMap::new()).unwrap_err().to_string();
        error.replace(&dir.path().display().to_string(), "DIR")
    };
    std::fs::write(dir.path().join("binary"), b"\xff\xfe\0").unwrap();
    std::fs::write(dir.path().join("large"), vec![b'\n'; (4 << 20) + 1]).unwrap();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    let all: Vec<String> = ["none", "binary", "large", "dir"].iter().map(|name| load(name)).collect();
    insta::assert_snapshot!(all.join("\n"), @"
    cannot read the definition file DIR/none: it does not exist
    cannot read the definition file DIR/binary: it is not text in UTF-8
    cannot read the definition file DIR/large: it is longer than 4 MiB
    cannot read the definition file DIR/dir: it is a directory
    ");
}

#[test]
fn a_mark_before_the_text_is_none_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("marked");
    std::fs::write(&file, "\u{feff}Bootstrap: scratch\n").unwrap();
    let definition = Definition::load(&file, &BTreeMap::new()).unwrap();
    assert_eq!(definition.text, "Bootstrap: scratch\n");
}

/// Whatever is changed in a definition file: an answer.
#[test]
fn damaged_text_has_an_answer() {
    let mut state: u64 = 7;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let pieces =
        ["%", "{{", "}}", "\"", "'", "\\", "\n", ":", "%files from", "Bootstrap:", "=", "\u{e4}", "-c", "#"];
    for _ in 0..2000 {
        let mut text = WHOLE.to_owned();
        for _ in 0..=random(4) {
            let at = random(text.len());
            if text.is_char_boundary(at) {
                text.insert_str(at, pieces[random(pieces.len())]);
            }
        }
        let _ = parse(&text);
    }
}
