//! Binds as they are typed, rightly and wrongly.

use super::super::identity::tests::alice;
use super::*;

fn bind(typed: &str) -> Result<Vec<UserBind>, BindError> {
    user_binds(&[typed.to_owned()], &[], &alice())
}

fn words(typed: &str) -> String {
    bind(typed).unwrap().iter().map(UserBind::to_word).collect::<Vec<_>>().join(" ")
}

fn wrong(typed: &str) -> String {
    let error = bind(typed).unwrap_err();
    format!("{error}\n{}", error.help().unwrap_or_default())
}

fn mount(typed: &str) -> Result<String, String> {
    user_binds(&[], &[typed.to_owned()], &alice())
        .map(|binds| binds[0].to_word())
        .map_err(|error| error.to_string())
}

#[test]
fn binds_as_typed() {
    assert_eq!(words("/data"), "/data:/data");
    assert_eq!(words("/data/"), "/data:/data");
    assert_eq!(words("/data:/x:ro"), "/data:/x:ro");
    assert_eq!(words("/data:/x/../y//z/.:rw"), "/data:/y/z");
    assert_eq!(words("/data,/srv/x:/y,"), "/data:/data /srv/x:/y");
    assert_eq!(words("."), "/home/alice/project:/home/alice/project");
    assert_eq!(words(r"/a\,b:/x,/c\:d:/y"), "/a,b:/x /c:d:/y");
    assert_eq!(words("/data:/x,/srv/x:/x:ro"), "/srv/x:/x:ro");
}

#[test]
fn wrong_binds() {
    insta::assert_snapshot!(wrong("/nope:/x"), @r#"
    --bind "/nope:/x": "/nope" does not exist on this host
    check the spelling, or make it first
    "#);
    insta::assert_snapshot!(wrong("/closed/x:/x"), @r#"
    --bind "/closed/x:/x": "/closed/x" cannot be reached: permission denied
    every directory above it needs search permission for you
    "#);
    insta::assert_snapshot!(wrong("/data:x"), @r#"
    --bind "/data:x": the place inside, "x", does not begin with a slash
    write /x
    "#);
    insta::assert_snapshot!(wrong("/data:/"), @r#"
    --bind "/data:/": nothing can be put over the container's whole root
    name a directory below /
    "#);
    insta::assert_snapshot!(wrong("/data:/x/.."), @r#"
    --bind "/data:/x/..": nothing can be put over the container's whole root
    name a directory below /
    "#);
    insta::assert_snapshot!(wrong("/data:/.stasis/capture"), @r#"
    --bind "/data:/.stasis/capture": "/.stasis/capture" is reserved for the container itself
    choose a place that is not below /.stasis
    "#);
    insta::assert_snapshot!(wrong("/data:/x/../.stasis"), @r#"
    --bind "/data:/x/../.stasis": "/.stasis" is reserved for the container itself
    choose a place that is not below /.stasis
    "#);
    insta::assert_snapshot!(wrong("/data:/x:rx"), @r#"
    --bind "/data:/x:rx" cannot be understood: "rx" is neither ro nor rw
    write --bind SRC[:DST[:ro|rw]]; a comma or a colon in a path needs a backslash before it
    "#);
    insta::assert_snapshot!(wrong("/data:/x:ro:y"), @r#"
    --bind "/data:/x:ro:y" cannot be understood: there are too many colons in it
    write --bind SRC[:DST[:ro|rw]]; a comma or a colon in a path needs a backslash before it
    "#);
    insta::assert_snapshot!(wrong(":/x"), @r#"
    --bind ":/x" cannot be understood: the source is empty
    write --bind SRC[:DST[:ro|rw]]; a comma or a colon in a path needs a backslash before it
    "#);
    assert!(bind("/data:/.stasis2").is_ok());
}

#[test]
fn mounts() {
    assert_eq!(mount("type=bind,src=/data,dst=/x").unwrap(), "/data:/x");
    assert_eq!(mount("type=bind,source=/data,destination=/x,ro").unwrap(), "/data:/x:ro");
    assert_eq!(mount(r#"type=bind,"src=/a,b",dst=/x"#).unwrap(), "/a,b:/x");
    insta::assert_snapshot!(mount("src=/data,dst=/x").unwrap_err(), @r#"--mount "src=/data,dst=/x" cannot be understood: the type is missing"#);
    insta::assert_snapshot!(mount("type=tmpfs,dst=/x").unwrap_err(), @r#"--mount "type=tmpfs,dst=/x" cannot be understood: the type is "tmpfs", and only bind is possible"#);
    insta::assert_snapshot!(mount("type=bind,dst=/x").unwrap_err(), @r#"--mount "type=bind,dst=/x" cannot be understood: the source is missing"#);
    insta::assert_snapshot!(mount("type=bind,src=/data").unwrap_err(), @r#"--mount "type=bind,src=/data" cannot be understood: the destination is missing"#);
    insta::assert_snapshot!(mount("type=bind,src=/data,dst=/x,image-src=/y").unwrap_err(), @r#"--mount "type=bind,src=/data,dst=/x,image-src=/y" cannot be understood: "image-src" is not known"#);
    insta::assert_snapshot!(mount("type=bind,\"src=/data,dst=/x").unwrap_err(), @r#"--mount "type=bind,\"src=/data,dst=/x" cannot be understood: a quotation mark is not closed"#);
    insta::assert_snapshot!(mount("type=bind,src=/nope,dst=/x").unwrap_err(), @r#"--mount "type=bind,src=/nope,dst=/x": "/nope" does not exist on this host"#);
    insta::assert_snapshot!(mount("type=bind,src=/data,dst=../x").unwrap_err(), @r#"--mount "type=bind,src=/data,dst=../x": the place inside, "../x", does not begin with a slash"#);
}

#[test]
fn comma_separated_values() {
    assert_eq!(csv("a,\"b\"\"c,d\",").unwrap(), ["a", "b\"c,d", ""]);
    assert!(csv("\"a\"b").is_err() && csv("\"a").is_err());
}
