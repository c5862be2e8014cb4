//! Image files that are signed, encrypted, or made for other machines: each use of them says so in the same words.

use std::fs;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::need::need;

/// Where the descriptor of so many an object is, from 0 on.
const fn descriptor(index: u64) -> u64 {
    4096 + index * 585
}

/// Changes bytes of the file in place.
fn put(env: &Env, name: &str, all: &[(u64, &[u8])]) -> Outcome<()> {
    let file = fs::OpenOptions::new().write(true).open(env.path(name))?;
    Ok(all.iter().try_for_each(|(at, bytes)| file.write_all_at(bytes, *at))?)
}

/// Appends an object as another tool does; what is in it is not looked into.
fn append(env: &Env, name: &str, kind: i32, extra: &[u8]) -> Outcome<()> {
    let path = env.path(name);
    let length = fs::metadata(&path)?.len();
    let content = b"-----BEGIN PGP SIGNED MESSAGE-----\n";
    let mut object = vec![0; 585];
    let mut set = |at: usize, bytes: &[u8]| object[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, &kind.to_le_bytes());
    set(4, &[1, 4, 0, 0, 0]);
    set(9, &0xf000_0000_u32.to_le_bytes());
    set(13, &0xf000_0001_u32.to_le_bytes());
    set(17, &i64::try_from(length)?.to_le_bytes());
    set(25, &i64::try_from(content.len())?.to_le_bytes());
    set(201, extra);
    put(env, name, &[(80, &44_i64.to_le_bytes()), (descriptor(3), &object), (length, content)])
}

/// A copy of a sound file to be changed.
fn copy(env: &Env, name: &str) -> Outcome<String> {
    let path = env.path(name);
    fs::copy(env.sif("small", &format!("sound-{name}"))?, &path)?;
    crate::env::own(&path, env.uid())?;
    Ok(path.to_string_lossy().into_owned())
}

/// What each command that uses an image says of one, by its first word.
fn uses(env: &Env, image: &str) -> Outcome<Vec<(&'static str, Run)>> {
    env.write("home/from.def", &format!("Bootstrap: localimage\nFrom: {image}\n%labels\n  a b\n"))?;
    let all: [(&str, &[&str]); 8] = [
        ("exec", &["exec", image, "true"]),
        ("run", &["run", image, "true"]),
        ("shell", &["shell", image]),
        ("start", &["instance", "start", image, "one"]),
        ("instance run", &["instance", "run", image, "two", "sleep", "9"]),
        ("sandbox", &["build", "--force", "--sandbox", "out", image]),
        ("file", &["build", "--force", "out.sif", image]),
        ("definition", &["build", "--force", "out.sif", "from.def"]),
    ];
    all.into_iter().map(|(what, words)| Ok((what, env.stasis(words)?))).collect()
}

#[test]
fn a_signature_that_nobody_checks() {
    need!(image, squashfs, userns);
    let env = Env::new(Who::User).unwrap();
    let image = copy(&env, "signed.sif").unwrap();
    // SHA-256, and the fingerprint of a key.
    append(&env, "signed.sif", 0x4005, &[1, 0, 0, 0, 0xab, 0xcd]).unwrap();
    let line = r#"INFO:    image "$DIR/signed.sif" is signed; stasis does not check signatures"#;
    for (what, run) in uses(&env, &image).unwrap() {
        let told = env.told(&run);
        assert_eq!(run.code, 0, "{what}: {told}");
        assert_eq!(told.matches(line).count(), 1, "{what}: {told}");
    }
    env.ok(&["instance", "stop", "--all"]).unwrap();
    assert_eq!(env.ok(&["-q", "exec", &image, "true"]).unwrap().err, "");
    let run = env.ok(&["inspect", "--list-apps", &image]).unwrap();
    insta::assert_snapshot!(env.told(&run), @r#"
    exit 0
    INFO:    image "$DIR/signed.sif" is signed; stasis does not check signatures
    "#);
    let run = env.ok(&["inspect", "--runscript", "--json", &image]).unwrap();
    insta::assert_snapshot!(uuid_hidden(&env.told(&run)), @r##"
    exit 0
    {
    	"data": {
    		"attributes": {
    			"runscript": "#!/bin/sh\n\nexec \"$@\"\n"
    		},
    		"sif": {
    			"architecture": "amd64",
    			"encrypted": false,
    			"fileSystem": "squashfs",
    			"signed": true,
    			"uuid": "$UUID"
    		}
    	},
    	"type": "container"
    }
    INFO:    image "$DIR/signed.sif" is signed; stasis does not check signatures
    "##);
    env.finish().unwrap();
}

/// What a container would look otherwise with is left out, and that is more than a remark.
#[test]
fn an_overlay_that_is_left_out() {
    need!(image, squashfs, userns);
    let env = Env::new(Who::User).unwrap();
    let image = copy(&env, "layered.sif").unwrap();
    // ext3, an overlay, for this machine.
    append(&env, "layered.sif", 0x4004, b"\x02\0\0\0\x04\0\0\x0002\0").unwrap();
    let line = r#"WARNING: image "$DIR/layered.sif" has an overlay of its own, which is left out"#;
    for (what, run) in uses(&env, &image).unwrap() {
        let told = env.told(&run);
        assert_eq!((run.code, told.matches(line).count()), (0, 1), "{what}: {told}");
    }
    let run = env.ok(&["inspect", "--list-apps", &image]).unwrap();
    assert_eq!(env.told(&run), format!("exit 0\n{line}\n"));
    env.finish().unwrap();
}

/// Each file has another one.
fn uuid_hidden(text: &str) -> String {
    let (before, rest) = text.split_once("\"uuid\": \"").unwrap_or((text, ""));
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_hexdigit() || c == '-');
    format!("{before}\"uuid\": \"$UUID{rest}")
}

/// Every use of `image` is refused with these words, and leaves nothing.
fn refused(env: &Env, image: &str, words: &str) -> Outcome<()> {
    for (what, run) in uses(env, image)? {
        let told = env.told(&run);
        assert!(run.code == 255 && told.contains(words), "{what}: {told}");
    }
    let listed = env.ok(&["instance", "list", "--json"])?.out;
    assert!(!listed.contains("\"one\"") && !listed.contains("\"two\""), "{listed}");
    assert!(!env.path("home/out").exists() && !env.path("home/out.sif").exists());
    Ok(())
}

#[test]
fn an_image_that_only_a_key_opens() {
    need!(image, squashfs);
    let env = Env::new(Who::User).unwrap();
    let image = copy(&env, "changed.sif").unwrap();
    put(&env, "changed.sif", &[(descriptor(2) + 201, &[5])]).unwrap();
    append(&env, "changed.sif", 0x4008, &[2, 0, 0, 0, 0, 2, 0, 0]).unwrap();
    refused(
        &env,
        &image,
        r#"
FATAL:   image "$DIR/changed.sif" cannot be run: its root file system is encrypted (encrypted squashfs)
         hint:    build an image that is not encrypted; stasis cannot open encrypted ones"#,
    )
    .unwrap();
    let run = env.ok(&["inspect", "--runscript", &image]).unwrap();
    insta::assert_snapshot!(env.told(&run), @r#"
    exit 0
    #!/bin/sh

    exec "$@"
    WARNING: image "$DIR/changed.sif" cannot be run: its root file system is encrypted (encrypted squashfs)
             hint:    build an image that is not encrypted; stasis cannot open encrypted ones
    "#);
    let run = env.ok(&["inspect", "--json", "--all", &image]).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(shown["data"]["sif"]["encrypted"], true, "{shown}");
    assert_eq!(shown["data"]["sif"]["fileSystem"], "encrypted squashfs", "{shown}");
    // Older tools describe it nowhere but in the definition file.
    put(&env, "changed.sif", &[(descriptor(1) + 73, b"another")]).unwrap();
    let run = env.ok(&["inspect", "--deffile", "--json", &image]).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    let deffile = shown["data"]["attributes"]["deffile"].as_str().unwrap_or_default();
    assert!(deffile.starts_with("bootstrap: localimage\n"), "{shown}");
    assert!(run.err.contains("is encrypted"), "{}", run.err);
    env.finish().unwrap();
}

#[test]
fn an_image_for_another_machine() {
    need!(image, squashfs, userns);
    let env = Env::new(Who::User).unwrap();
    let image = copy(&env, "changed.sif").unwrap();
    put(&env, "changed.sif", &[(45, b"11"), (descriptor(2) + 209, b"11")]).unwrap();
    let words = r#"
FATAL:   image "$DIR/changed.sif" cannot be run: it was made for s390x, and this machine is amd64
         hint:    take an image for this machine, or run it on one that it was made for"#;
    refused(&env, &image, words).unwrap();
    let shown = |flags: &[&str]| {
        let run = env.ok(&[&["inspect"], flags, &[&image]].concat()).unwrap();
        let told = run.err.matches("it was made for s390x, and this machine is amd64").count();
        assert_eq!(told, 1, "{}", run.err);
        run.out
    };
    let script = shown(&["--runscript"]);
    assert_eq!(script, "#!/bin/sh\n\nexec \"$@\"\n");
    assert!(shown(&["--json"]).contains("\"architecture\": \"s390x\""));
    // Where nothing describes it, its files are looked into all the same.
    put(&env, "changed.sif", &[(descriptor(1) + 73, b"another")]).unwrap();
    assert_eq!(shown(&["--runscript"]), script);
    env.finish().unwrap();
}
