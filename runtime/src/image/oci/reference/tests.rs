use super::*;

fn shown(text: &str) -> String {
    match Uri::parse(text) {
        Ok(Some(uri)) => uri.to_string(),
        Ok(None) => "a path".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn names_are_completed() {
    let given = [
        "docker://alpine",
        "docker://python:3.12-slim",
        "docker://index.docker.io/library/alpine",
        "docker://ghcr.io/owner/name",
        "docker://localhost/x:1",
        "docker://127.0.0.1:5000/a/b/c:Tag_1",
        "docker://[::1]:5000/a",
        "docker://a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "oci:dir",
        "oci:/a/dir:tag",
        "oci-archive:x.tar:v1",
        "docker-archive:x.tar:alpine:3",
        "docker-archive://x.tar",
        "./docker:x",
        "a:b",
        "instance://x",
        "/image",
    ];
    let all: Vec<String> = given.iter().map(|text| shown(text)).collect();
    insta::assert_snapshot!(all.join("\n"), @"
    docker://docker.io/library/alpine:latest
    docker://docker.io/library/python:3.12-slim
    docker://docker.io/library/alpine:latest
    docker://ghcr.io/owner/name:latest
    docker://localhost/x:1
    docker://127.0.0.1:5000/a/b/c:Tag_1
    docker://[::1]:5000/a:latest
    docker://docker.io/library/a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    oci:dir
    oci:/a/dir:tag
    oci-archive:x.tar:v1
    docker-archive:x.tar:alpine:3
    docker-archive:x.tar
    a path
    a path
    a path
    a path
    ");
}

#[test]
fn what_is_no_name_is_told() {
    let given = [
        "docker:alpine",
        "docker://",
        "docker://Alpine",
        "docker://a..b",
        "docker://../../etc/passwd",
        "docker://a/../b",
        "docker://a:",
        "docker://a:b c",
        "docker://a@sha256:12",
        "docker://a@md5:00",
        "docker://host:port/a",
        "docker://user@host/a",
        "docker://[::g]:1/a",
        "oci:",
        "oci-archive::tag",
        "library://x/y/z",
        "http://x/y.sif",
        "docker-daemon:x:latest",
        "s3://bucket",
    ];
    let all: Vec<String> = given.iter().map(|text| shown(text)).collect();
    insta::assert_snapshot!(all.join("\n"), @r#"
    image "docker:alpine" is not a name of an image: two slashes are missing
    image "docker://" is not a name of an image: there is no name
    image "docker://Alpine" is not a name of an image: "Alpine" has capital letters
    image "docker://a..b" is not a name of an image: "a..b" may hold lower-case letters, digits, and between them dots, hyphens and underscores
    image "docker://../../etc/passwd" is not a name of an image: ".." is not a host
    image "docker://a/../b" is not a name of an image: "a/../b" may hold lower-case letters, digits, and between them dots, hyphens and underscores
    image "docker://a:" is not a name of an image: "" is not a tag
    image "docker://a:b c" is not a name of an image: "b c" is not a tag
    image "docker://a@sha256:12" is not a name of an image: sha256: is followed by 64 digits from 0-9 and a-f
    image "docker://a@md5:00" is not a name of an image: only digests that begin with sha256: are understood
    image "docker://host:port/a" is not a name of an image: "host:port" is not a host
    image "docker://user@host/a" is not a name of an image: only digests that begin with sha256: are understood
    image "docker://[::g]:1/a" is not a name of an image: "[::g]:1" is not a host
    image "oci:" is not a name of an image: there is no path
    image "oci-archive::tag" is not a name of an image: there is no path
    image "library://x/y/z" cannot be had: library is not supported
    image "http://x/y.sif" cannot be had: http is not supported
    image "docker-daemon:x:latest" cannot be had: docker-daemon is not supported
    image "s3://bucket" cannot be had: s3 is not supported
    "#);
}

#[test]
fn loopback_is_told_by_the_host() {
    let is = |host: &str| Reference::parse(&format!("{host}/x")).unwrap().is_loopback();
    for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000"] {
        assert!(is(host), "{host}");
    }
    for host in ["localhost.evil.org", "10.0.0.1", "127.0.0.1.evil.org:80", "docker.io", "[::2]:5000"] {
        assert!(!is(host), "{host}");
    }
}
