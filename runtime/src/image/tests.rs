//! Opening directories that are images, and everything else that is not.

use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

pub(crate) fn image_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "etc", "usr/bin", ".singularity.d/env", ".singularity.d/libs", "tmp"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    let program = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("bin/sh", "#!");
    program(".singularity.d/runscript", "#!/bin/sh\n");
    fs::write(dir.path().join(".singularity.d/env/90-environment.sh"), "export A=1\n").unwrap();
    fs::write(dir.path().join(".singularity.d/labels.json"), r#"{"maintainer": "nobody"}"#).unwrap();
    fs::write(dir.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    dir
}

fn refused(arg: &str) -> String {
    let error = Image::open(arg).unwrap_err();
    format!("{error}\n{}", error.help().unwrap_or_default())
}

#[test]
fn an_image_tells_what_it_has() {
    let dir = image_dir();
    let link = dir.path().join("tmp/link");
    symlink(dir.path(), &link).unwrap();
    let image = Image::open(link.to_str().unwrap()).unwrap();
    assert_eq!(image.root, dir.path().canonicalize().unwrap());
    assert_eq!(image.given, link.to_str().unwrap());
    assert!(image.has_sh && image.has_env_scripts && image.has_runscript);
    assert!(!image.has_startscript && !image.has_libs && !image.has_bash);
    assert_eq!(image.labels["maintainer"], "nobody");
    assert_eq!(image.lookup("/bin/sh").unwrap().mode, 0o755);
    assert_eq!(image.lookup("bin").unwrap().kind, FileKind::Directory);
    assert_eq!(image.lookup("nothing"), None);
    assert_eq!(image.list("/.singularity.d").unwrap(), ["env", "labels.json", "libs", "runscript"]);
}

#[test]
fn what_is_not_an_image_directory_is_told_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, offset: usize, magic: &[u8]| {
        let mut bytes = vec![0; offset];
        bytes.extend_from_slice(magic);
        fs::write(dir.path().join(name), bytes).unwrap();
        refused(dir.path().join(name).to_str().unwrap()).replace(dir.path().to_str().unwrap(), "DIR")
    };
    insta::assert_snapshot!(file("c", 1080, b"\x53\xef"), @r#"
    image "DIR/c" is an ext file system, and images are SIF files, squashfs file systems and directories
    give an image, or unpack what it holds into a directory and give that
    "#);
    insta::assert_snapshot!(file("d", 257, b"ustar"), @r#"
    image "DIR/d" is an archive, and images are SIF files, squashfs file systems and directories
    give an image, or unpack what it holds into a directory and give that
    "#);
    insta::assert_snapshot!(file("e", 0, b""), @r#"
    image "DIR/e" is a file of another kind, and images are SIF files, squashfs file systems and directories
    give an image, or unpack what it holds into a directory and give that
    "#);
    let own = refused(dir.path().to_str().unwrap()).replace(dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(own, @r#"
    directory "DIR" is not an image: it has none of bin, usr, etc and .singularity.d
    give an image: a SIF file, or the directory into which one was unpacked
    "#);
    nix::unistd::mkfifo(&dir.path().join("f"), Mode::S_IRUSR).unwrap();
    let fifo = Image::open(dir.path().join("f").to_str().unwrap()).unwrap_err().to_string();
    assert!(fifo.contains("is not a regular file"), "{fifo}");
    insta::assert_snapshot!(refused(""), @"
    no image was given: the argument is empty
    give an image: a SIF file, or the directory into which one was unpacked
    ");
    insta::assert_snapshot!(refused("no/such/image"), @r#"
    image "no/such/image" does not exist
    check the spelling; a relative path starts at the working directory
    "#);
    insta::assert_snapshot!(refused("docker://alpine"), @r#"
    image "docker://alpine" is an address (docker), and a file or a directory is needed here
    make a file of it first with `stasis build IMAGE.sif docker://alpine`, and give that
    "#);
    insta::assert_snapshot!(refused("oci:layout:tag"), @r#"
    image "oci:layout:tag" is an address (oci), and a file or a directory is needed here
    make a file of it first with `stasis build IMAGE.sif oci:layout:tag`, and give that
    "#);
    insta::assert_snapshot!(refused("instance://web"), @r#"
    "instance://web" names a running instance, and an image is needed here
    give an image, or use exec, run or shell to enter the instance
    "#);
    assert!(refused(&"x".repeat(300)).contains("too long"));
}

#[test]
fn a_path_with_a_colon_is_a_path() {
    assert!(matches!(Image::open("./a:b"), Err(ImageError::Missing { .. })));
    assert!(matches!(Image::open("a:b"), Err(ImageError::Missing { .. })));
}

#[test]
fn hostile_content_does_not_lead_out_or_block() {
    let dir = image_dir();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("passwd"), "host").unwrap();
    fs::remove_file(dir.path().join("etc/passwd")).unwrap();
    fs::remove_dir(dir.path().join("etc")).unwrap();
    symlink(outside.path(), dir.path().join("etc")).unwrap();
    symlink("../../../../../../../../etc/hostname", dir.path().join("up")).unwrap();
    symlink("self", dir.path().join("self")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
    fs::write(dir.path().join("large"), vec![0; 100]).unwrap();
    fs::write(dir.path().join(".singularity.d/labels.json"), "[".repeat(200_000)).unwrap();
    let image = Image::open(dir.path().to_str().unwrap()).unwrap();
    assert!(image.labels.is_empty());
    for path in ["etc/passwd", "up", "self"] {
        assert_eq!(image.lookup(path), None, "{path}");
        assert!(image.read_small(path, 100).is_err(), "{path}");
    }
    assert_eq!(image.lookup("pipe").unwrap().kind, FileKind::Special);
    assert_eq!(image.read_small("pipe", 100).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(image.read_small("large", 99).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(image.read_small("large", 100).unwrap().len(), 100);
}
