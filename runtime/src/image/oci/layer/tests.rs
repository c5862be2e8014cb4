use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::{Limits, Unpacked, decoded, unpack};
use crate::error::Result;
use crate::image::tree::Tree;

const LIMITS: Limits = Limits { bytes: 64 << 20, entries: 10_000 };

/// An archive in the making.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Any entry, with names that the builder itself would refuse.
    fn entry(mut self, kind: EntryType, path: &str, link: &str, data: &[u8], mode: u32) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1_000_000);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, path, "", data.as_bytes(), 0o644)
    }

    fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", b"", 0o755)
    }

    fn link(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, path, to, b"", 0o777)
    }

    fn hard(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Link, path, to, b"", 0o644)
    }

    /// Extended headers for the next entry.
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| n.to_string().len() + rest == *n).unwrap();
            data.extend(format!("{length} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", &data, 0o644)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

struct Root {
    top: tempfile::TempDir,
    sum: Unpacked,
}

impl Root {
    /// `outside` lies beside the root, with a file in it.
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("root")).unwrap();
        fs::create_dir(top.path().join("outside")).unwrap();
        fs::write(top.path().join("outside/file"), "mine").unwrap();
        Self { top, sum: Unpacked::default() }
    }

    fn put(&mut self, layer: Layer) -> Result<()> {
        self.put_bytes(&layer.bytes())
    }

    fn put_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let tree = Tree::open(&self.top.path().join("root")).unwrap();
        unpack(&tree, decoded(bytes).unwrap(), LIMITS, &mut self.sum)
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.top.path().join("root").join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn refused(&mut self, layer: Layer) -> String {
        let error = self.put(layer).unwrap_err().to_string();
        self.outside_is_as_it_was();
        error
    }

    fn outside_is_as_it_was(&self) {
        assert_eq!(fs::read_dir(self.top.path()).unwrap().count(), 2);
        assert_eq!(fs::read_dir(self.top.path().join("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(self.top.path().join("outside/file")).unwrap(), "mine");
        assert_eq!(fs::metadata(self.top.path().join("outside/file")).unwrap().nlink(), 1);
    }
}

#[test]
fn what_an_image_is_made_of() {
    let mut root = Root::new();
    let layer = Layer::new()
        .dir("./")
        .dir("usr/")
        .entry(EntryType::Regular, "usr/tool", "", b"#!/bin/sh\n", 0o755)
        .link("bin", "usr")
        .hard("usr/same", "usr/tool")
        .file("deep/without/directories", "x")
        .entry(EntryType::Fifo, "pipe", "", b"", 0o600)
        .entry(EntryType::Char, "dev/null", "", b"", 0o666)
        .entry(EntryType::Block, "dev/sda", "", b"", 0o666)
        .entry(EntryType::Directory, "closed", "", b"", 0o000)
        .file("closed/file", "inside");
    root.put(layer).unwrap();
    assert_eq!(root.read("bin/tool"), "#!/bin/sh\n");
    assert_eq!(fs::metadata(root.at("usr/tool")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(root.at("usr/tool")).unwrap().mtime(), 1_000_000);
    assert_eq!(
        fs::metadata(root.at("usr/same")).unwrap().ino(),
        fs::metadata(root.at("usr/tool")).unwrap().ino()
    );
    assert_eq!(root.read("deep/without/directories"), "x");
    assert!(fs::metadata(root.at("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(root.read("closed/file"), "inside");
    assert_eq!((root.sum.devices, fs::read_dir(root.at("dev")).unwrap().count()), (2, 0));
    assert_eq!(root.sum.entries, 11);
}

#[test]
fn a_link_in_the_way_is_followed_inside() {
    let mut root = Root::new();
    root.put(Layer::new().dir("run").dir("var").link("var/run", "/run")).unwrap();
    root.put(Layer::new().file("var/run/x", "1").hard("var/run/y", "/var/run/x").link("up", "../../.."))
        .unwrap();
    assert_eq!((root.read("run/x"), root.read("run/y")), ("1".to_owned(), "1".to_owned()));
    assert!(root.at("var/run").is_symlink());
    root.put(Layer::new().file("up/file", "2")).unwrap();
    assert_eq!(root.read("file"), "2");
    root.outside_is_as_it_was();
}

#[test]
fn nothing_leaves_the_root() {
    let outside = |root: &Root| root.top.path().join("outside").to_string_lossy().into_owned();
    for path in ["../outside/new", "a/../../outside/new", "/../outside/new", "./../outside/file"] {
        let told = Root::new().refused(Layer::new().file(path, "theirs"));
        assert!(told.contains("its path leads up"), "{told}");
    }
    // Absolute: inside.
    let mut root = Root::new();
    let path = format!("{}/new", outside(&root));
    root.put(Layer::new().file(&path, "theirs")).unwrap();
    assert_eq!(root.read(path.trim_start_matches('/')), "theirs");
    root.outside_is_as_it_was();
    // Through links: none of them leads anywhere but inside.
    let mut root = Root::new();
    let to = outside(&root);
    root.put(Layer::new().link("a", "../outside").link("b", &to).link("c", "/proc/self/cwd")).unwrap();
    for path in ["a/file", "b/file", "c/file", "a/file/x"] {
        assert!(root.refused(Layer::new().file(path, "theirs")).contains("cannot unpack"), "{path}");
    }
    for target in ["../outside/file", "a/file", "b/file", &format!("{to}/file")] {
        assert!(root.refused(Layer::new().hard("hard", target)).contains("cannot unpack"), "{target}");
    }
    // A link already there is replaced, not written through.
    root.put(Layer::new().file("b", "now a file").dir("a")).unwrap();
    assert!(root.at("a").is_dir() && !root.at("a").is_symlink());
    // Whiteouts neither.
    let mut root = Root::new();
    root.put(Layer::new().link("a", "../outside")).unwrap();
    for path in ["../outside/.wh.file", "a/.wh.file", "a/.wh..wh..opq", ".wh..", ".wh...", ".wh."] {
        let _ = root.put(Layer::new().file(path, ""));
        root.outside_is_as_it_was();
    }
    assert!(root.at("a").is_symlink());
}

#[test]
fn whiteouts_take_from_below_only() {
    let mut root = Root::new();
    let below = Layer::new()
        .file("etc/gone", "x")
        .file("etc/stays", "x")
        .file("opt/a/1", "x")
        .file("opt/a/2", "x")
        .file("data/old/deep/file", "x")
        .file("again", "old");
    root.put(below).unwrap();
    let above = Layer::new()
        .file("etc/.wh.gone", "")
        .file("etc/.wh.never-there", "")
        .file("opt/a/new", "y")
        .file("opt/a/.wh..wh..opq", "")
        .file("opt/a/later", "y")
        .file("data/.wh.old", "")
        .file("data/old/new", "y")
        .file("again", "new")
        .file(".wh.again", "");
    root.put(above).unwrap();
    let names = |path: &str| {
        let mut all: Vec<String> = fs::read_dir(root.at(path))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all.join(" ")
    };
    assert_eq!(names("etc"), "stays");
    assert_eq!(names("opt/a"), "later new");
    assert_eq!(names("data/old"), "new");
    assert_eq!(root.read("again"), "new");
    root.put(Layer::new().file("opt/.wh..wh..opq", "").file(".wh.data", "")).unwrap();
    assert_eq!(fs::read_dir(root.at("opt")).unwrap().count(), 0);
    assert!(!root.at("data").exists());
}

#[test]
fn things_change_their_kind_between_layers() {
    let mut root = Root::new();
    root.put(Layer::new().file("a/b", "x").file("c", "x").link("d", "c")).unwrap();
    root.put(Layer::new().file("a", "now a file").file("c/d", "now a directory").link("e", "a")).unwrap_err();
    root.put(Layer::new().dir("c").file("c/d", "y").dir("d")).unwrap();
    assert_eq!((root.read("a"), root.read("c/d")), ("now a file".to_owned(), "y".to_owned()));
    assert!(root.at("d").is_dir() && !root.at("d").is_symlink());
}

#[test]
fn long_names_of_both_kinds() {
    let long = format!("{}/{}", "d".repeat(150), "n".repeat(200));
    let mut root = Root::new();
    let layer = Layer::new()
        .entry(EntryType::GNULongName, "././@LongLink", "", format!("{long}\0").as_bytes(), 0o644)
        .file("short", "gnu")
        .pax(&[("path", b"p\xc3\xa4x/name"), ("mtime", b"7.5"), ("comment", b"of no interest")])
        .file("ignored", "pax")
        .entry(EntryType::GNULongLink, "././@LongLink", "", long.as_bytes(), 0o644)
        .link("to", "short")
        .pax(&[("linkpath", long.as_bytes())])
        .hard("too", "x");
    root.put(layer).unwrap();
    assert_eq!(root.read(&long), "gnu");
    assert_eq!(root.read("päx/name"), "pax");
    assert_eq!(fs::metadata(root.at("päx/name")).unwrap().mtime(), 7);
    for time in ["99999999999999", "-99999999999999", "9223372036854775807"] {
        root.put(Layer::new().pax(&[("path", b"x"), ("mtime", time.as_bytes())]).file("x", "")).unwrap();
    }
    assert_eq!((root.read("to"), root.read("too")), ("gnu".to_owned(), "gnu".to_owned()));
    assert!(!root.at("short").exists() && !root.at("ignored").exists());
}

#[test]
fn sparse_files_are_whole_and_stay_sparse() {
    let piece = "x".repeat(1000);
    let map = b"2\n0\n1000\n1000000\n1000\n";
    let mut data = map.to_vec();
    data.resize(512, 0);
    data.extend(piece.bytes().chain(piece.bytes()));
    let mut root = Root::new();
    let layer = Layer::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"in-data"),
            ("GNU.sparse.realsize", b"2000000"),
        ])
        .entry(EntryType::Regular, "GNUSparseFile.0/x", "", &data, 0o644)
        .pax(&[("GNU.sparse.map", b"500,3"), ("GNU.sparse.size", b"900")])
        .file("in-header", "abc")
        .entry(EntryType::Regular, "zeroes", "", &vec![0; 4 << 20], 0o644);
    root.put(layer).unwrap();
    let bytes = fs::read(root.at("in-data")).unwrap();
    assert_eq!(bytes.len(), 2_000_000);
    assert_eq!(&bytes[1_000_000..1_001_000], piece.as_bytes());
    assert!(bytes[1000..1_000_000].iter().all(|b| *b == 0));
    assert_eq!(&fs::read(root.at("in-header")).unwrap()[500..503], b"abc");
    assert!(fs::metadata(root.at("zeroes")).unwrap().blocks() < 64);
    assert_eq!(fs::metadata(root.at("zeroes")).unwrap().len(), 4 << 20);
    for map in ["0,4", "0,2,1,1", "899,3", "1", "x,y", "18446744073709551615,3"] {
        let layer = Layer::new()
            .pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", b"900")])
            .file("wrong", "abc");
        let told = root.refused(layer);
        assert!(told.contains("map of a sparse file is damaged"), "{map}: {told}");
    }
}

/// The old GNU form, as tar(1) itself writes it.
#[test]
fn sparse_files_of_the_real_tar() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(dir.path().join("s")).unwrap();
    for at in 0..20u64 {
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(at << 20)).unwrap();
        write!(file, "piece {at}").unwrap();
    }
    let expected = fs::read(dir.path().join("s")).unwrap();
    for format in ["gnu", "posix"] {
        let out = std::process::Command::new("tar")
            .args(["-S", "--format", format, "-cf", "-", "s"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(out.status.success() && out.stdout.len() < 200_000);
        let mut root = Root::new();
        root.put_bytes(&out.stdout).unwrap();
        assert_eq!(fs::read(root.at("s")).unwrap(), expected, "{format}");
    }
}

#[test]
fn attributes_of_users_come_along_and_no_others() {
    let mut root = Root::new();
    let layer = Layer::new()
        .pax(&[
            ("SCHILY.xattr.user.note", b"kept\0too"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.capability", b"\x01"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("f", "x");
    root.put(layer).unwrap();
    let names = |path: &Path| {
        let mut buffer = [0u8; 4096];
        let n = rustix::fs::listxattr(path, &mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let found = names(&root.at("f"));
    assert!(!found.contains("overlay") && !found.contains("capability"), "{found:?}");
    assert_eq!(root.sum.attributes, if found.contains("user.note") { 3 } else { 4 });
}

/// What a layer says of a directory is all there is to it.
#[test]
fn a_directory_loses_the_attributes_of_a_lower_layer() {
    let mut root = Root::new();
    let names = |root: &Root| {
        let mut buffer = [0u8; 4096];
        let n = rustix::fs::listxattr(root.at("d"), &mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    root.put(Layer::new().pax(&[("SCHILY.xattr.user.below", b"1")]).dir("d")).unwrap();
    let has = root.sum.attributes == 0;
    assert_eq!(names(&root).contains("user.below"), has);
    root.put(Layer::new().pax(&[("SCHILY.xattr.user.above", b"2")]).dir("d")).unwrap();
    assert!(!names(&root).contains("user.below"), "{}", names(&root));
    assert_eq!(names(&root).contains("user.above"), has);
}

#[test]
fn nobody_gets_programs_that_give_rights() {
    let mut root = Root::new();
    let layer = Layer::new().entry(EntryType::Regular, "su", "", b"x", 0o6755);
    root.put(layer.entry(EntryType::Directory, "of-a-group", "", b"", 0o2775)).unwrap();
    let mode = |name: &str| fs::metadata(root.at(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("su"), mode("of-a-group")), (0o755, 0o2775));
}

#[test]
fn bombs_are_stopped() {
    let mut root = Root::new();
    let mut header = Header::new_gnu();
    header.set_path("bomb").unwrap();
    header.set_size(1 << 40);
    header.set_mode(0o644);
    header.set_cksum();
    let told = root.put_bytes(header.as_bytes()).unwrap_err().to_string();
    insta::assert_snapshot!(told, @"it would unpack to more than 0 GiB: this is many times its stored size, as in an archive made to fill a disk");
    let sparse = Layer::new()
        .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1099511627776")])
        .file("bomb", "x");
    assert!(root.refused(sparse).contains("it would unpack to more"));
    let many = (0..LIMITS.entries + 1).fold(Layer::new(), |layer, n| layer.file(&format!("f{}", n % 7), ""));
    insta::assert_snapshot!(Root::new().refused(many), @"it holds more than 10000 files");
    let long = Layer::new().entry(EntryType::XHeader, "pax", "", &vec![b'x'; (1 << 20) + 1], 0o644);
    insta::assert_snapshot!(root.refused(long), @"cannot read it: a header is longer than 1024 KiB");
    let deep = Layer::new().pax(&[("path", "d/".repeat(300).as_bytes())]).file("x", "");
    insta::assert_snapshot!(root.refused(deep).split_once(": ").unwrap().1, @"its path is too deep");
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let zeroes = Layer::new().entry(EntryType::Regular, "zeroes", "", &vec![0; 65 << 20], 0o644).bytes();
    packed.write_all(&zeroes).unwrap();
    assert!(root.put_bytes(&packed.finish().unwrap()).unwrap_err().to_string().contains("it would unpack"));
}

#[test]
fn broken_archives_are_told() {
    let mut root = Root::new();
    let whole = Layer::new().file("f", &"x".repeat(3000)).bytes();
    let told = |root: &mut Root, bytes: &[u8]| root.put_bytes(bytes).unwrap_err().to_string();
    insta::assert_snapshot!(told(&mut root, &whole[..1000]), @r#"cannot unpack "f": it ends in the middle"#);
    insta::assert_snapshot!(told(&mut root, &whole[..200]), @"cannot read it: it ends in the middle");
    insta::assert_snapshot!(told(&mut root, &vec![b'x'; 2000]), @"cannot read it: it is no tar archive, or a header in it is damaged");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&whole).unwrap();
    let packed = packed.finish().unwrap();
    insta::assert_snapshot!(told(&mut root, &packed[..packed.len() / 2]), @"cannot read it: it ends in the middle");
    let bz = decoded(&b"BZh91AY&SY"[..]).map(drop).unwrap_err().to_string();
    insta::assert_snapshot!(bz, @"it is compressed with bzip2, and only gzip and zstd are understood");
    for pax in ["5 a=b\n", "99 a=b\n", "x a=b\n", "6 a=b\n7 c", "6 abc\n"] {
        let layer = Layer::new().entry(EntryType::XHeader, "pax", "", pax.as_bytes(), 0o644).file("x", "");
        assert!(root.refused(layer).contains("an extended header is damaged"), "{pax:?}");
    }
    assert!(
        root.refused(Layer::new().hard("x", "none"))
            .contains("the file that it is a link to is missing: none")
    );
}

#[test]
fn every_compression_gives_the_same() {
    let plain = Layer::new().file("f", "content").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::stream::encode_all(&plain[..], 3).unwrap();
    for bytes in [plain.clone(), gzip.finish().unwrap(), zstd] {
        let mut root = Root::new();
        root.put_bytes(&bytes).unwrap();
        assert_eq!(root.read("f"), "content");
    }
}

/// Whatever is changed in an archive: an answer, and nothing outside.
#[test]
fn damaged_bytes_never_do_harm() {
    let good = Layer::new()
        .dir("d")
        .link("d/l", "../..")
        .pax(&[("path", b"d/long"), ("GNU.sparse.map", b"0,3"), ("GNU.sparse.size", b"10")])
        .file("x", "abc")
        .hard("h", "d/long")
        .file("d/.wh.long", "")
        .bytes();
    let mut state: u64 = 42;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut passed = 0;
    for _ in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            bytes[at] = u8::try_from(random(256)).unwrap();
        }
        // Half of them with sums that fit, so that more than the sum is tried.
        if random(2) == 0 {
            for block in bytes.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let mut root = Root::new();
        symlink("../outside", root.at("out")).unwrap();
        passed += u32::from(root.put_bytes(&bytes).is_ok());
        root.outside_is_as_it_was();
    }
    assert!(passed > 0 && passed < 400);
}
