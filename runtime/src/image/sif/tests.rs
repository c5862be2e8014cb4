//! The format byte by byte, and files that lie about themselves.

use super::write::{Parts, write};
use super::*;
use crate::image::metadata::Attributes;

/// A sound file with three objects, put together by hand from the description of the format.
pub(crate) fn sound() -> Vec<u8> {
    let mut file = vec![0; 36864 + 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\x0002\0");
    put(48, &[0xab; 16]);
    for (at, value) in
        [(64, 1_700_000_000_i64), (72, 1_700_000_000), (80, 45), (88, 48), (96, 4096), (104, 28080)]
    {
        put(at, &value.to_le_bytes());
    }
    put(112, &32176_i64.to_le_bytes());
    put(120, &8784_i64.to_le_bytes());
    let objects: [(i32, i64, i64, &str); 3] =
        [(0x4001, 32176, 10, ""), (0x4006, 32186, 20, "inspect-metadata.json"), (0x4004, 36864, 4096, "")];
    for (index, (kind, offset, size, name)) in objects.into_iter().enumerate() {
        let at = 4096 + index * 585;
        put(at, &kind.to_le_bytes());
        put(at + 4, &[1]);
        put(at + 5, &u32::try_from(index + 1).unwrap().to_le_bytes());
        put(at + 9, &0xf000_0001_u32.to_le_bytes());
        put(at + 17, &offset.to_le_bytes());
        put(at + 25, &size.to_le_bytes());
        put(at + 73, name.as_bytes());
    }
    put(4096 + 2 * 585 + 201, b"\x01\0\0\0\x02\0\0\x0002\0");
    file
}

fn told(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut file = sound();
    change(&mut file);
    parse(file.as_slice()).unwrap_err().to_string()
}

fn set<const N: usize>(at: usize, bytes: [u8; N]) -> impl FnOnce(&mut Vec<u8>) {
    move |file| file[at..at + N].copy_from_slice(&bytes)
}

#[test]
fn a_sound_file_is_understood() {
    let sif = parse(sound().as_slice()).unwrap();
    assert_eq!(sif.uuid, "abababab-abab-abab-abab-abababababab");
    assert_eq!((arch_name(&sif.arch), sif.created), ("amd64", 1_700_000_000));
    let (object, partition) = sif.primary().unwrap();
    assert_eq!((object.id, object.offset, object.size), (3, 36864, 4096));
    assert_eq!((partition.file_system_name(), partition.arch.as_str()), ("squashfs", "02"));
    assert_eq!(sif.first(DataType::Json).unwrap().name, "inspect-metadata.json");
    assert_eq!(sif.first(DataType::Signature), None);
}

#[test]
fn lies_are_told_with_their_place() {
    let first = 4096;
    let second = first + 585;
    let third = second + 585;
    insta::assert_snapshot!(told(|f| f.truncate(100)), @"at byte 0: the header would end at byte 128, and the file has 100");
    insta::assert_snapshot!(told(|f| f.truncate(5000)), @"at byte 4096: the descriptors would end at byte 32176, and the file has 5000");
    insta::assert_snapshot!(told(|f| f.truncate(40_000)), @"at byte 5291: object 3 has 4096 bytes from byte 36864 on, and the file ends at byte 40000");
    insta::assert_snapshot!(told(set(32, *b"sif")), @"at byte 32: there is no SIF magic");
    insta::assert_snapshot!(told(set(42, *b"02")), @r#"at byte 42: the format's version is "02", and only 01 is known"#);
    insta::assert_snapshot!(told(set(88, i64::MAX.to_le_bytes())), @"at byte 88: it announces 9223372036854775807 descriptors, more than 4096");
    insta::assert_snapshot!(told(set(88, (-1_i64).to_le_bytes())), @"at byte 88: the number of descriptors is -1");
    insta::assert_snapshot!(told(set(80, 49_i64.to_le_bytes())), @"at byte 80: more descriptors are free than there are");
    insta::assert_snapshot!(told(set(96, 100_i64.to_le_bytes())), @"at byte 96: the descriptors begin at byte 100, inside the header");
    insta::assert_snapshot!(told(set(104, 27_000_i64.to_le_bytes())), @"at byte 104: 48 descriptors do not fit into 27000 bytes");
    insta::assert_snapshot!(told(set(112, 4100_i64.to_le_bytes())), @"at byte 112: the data begin at byte 4100, before the descriptors' end");
    insta::assert_snapshot!(told(set(96, i64::MAX.to_le_bytes())), @"at byte 112: the data begin at byte 32176, before the descriptors' end");
    insta::assert_snapshot!(told(set(first + 4, [7])), @"at byte 4100: a descriptor is neither used nor free but 7");
    insta::assert_snapshot!(told(set(first + 5, [0])), @"at byte 4101: an object has the number 0");
    insta::assert_snapshot!(told(set(second + 5, [1])), @"at byte 4686: two objects have the number 1");
    insta::assert_snapshot!(told(set(first + 17, 64_i64.to_le_bytes())), @"at byte 4113: object 1 begins at byte 64, before the data");
    insta::assert_snapshot!(told(set(first + 17, (-5_i64).to_le_bytes())), @"at byte 4113: an object's place is -5");
    insta::assert_snapshot!(told(set(third + 25, i64::MAX.to_le_bytes())), @"at byte 5291: object 3 has 9223372036854775807 bytes from byte 36864 on, and the file ends at byte 40960");
    insta::assert_snapshot!(told(set(first + 25, 11_i64.to_le_bytes())), @"at byte 4698: objects 1 and 2 overlap");
    insta::assert_snapshot!(told(|f| {
        let copy = f[third..third + 585].to_vec();
        f[third + 585..third + 1170].copy_from_slice(&copy);
        f[third + 590] = 4;
        f[third + 610..third + 618].copy_from_slice(&0_i64.to_le_bytes());
    }), @"at byte 5851: objects 3 and 4 both are the root file system");
}

/// Numbers from a seed, always the same: what fails here fails everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % below
    }
}

/// Changes a seed at places that matter; whatever comes of it is understood or refused, and what is understood
/// lies inside the file.
fn mutate(seed: &[u8], rounds: u64, check: impl Fn(&[u8])) {
    let interesting: [&[u8]; 8] =
        [&[0; 8], &[0xff; 8], &[0x7f], &[0x80], &[1], &[0xff, 0xff, 0xff, 0x7f], &[0, 0x10], &[2]];
    for round in 0..rounds {
        let mut numbers = Numbers(round + 1);
        let mut file = seed.to_vec();
        for _ in 0..=numbers.next(6) {
            let room = if numbers.next(2) == 0 { 128 } else { 4096 + 4 * 585 };
            let at = numbers.next(room.min(file.len()));
            let bytes = interesting[numbers.next(interesting.len())];
            let end = (at + bytes.len()).min(file.len());
            file[at..end].copy_from_slice(&bytes[..end - at]);
        }
        if numbers.next(4) == 0 {
            file.truncate(numbers.next(file.len()));
        }
        check(&file);
    }
}

#[test]
fn no_change_of_a_header_makes_it_panic_or_lead_outside() {
    let understood = std::cell::Cell::new(0);
    mutate(&sound(), 20_000, |file| {
        if let Ok(sif) = parse(file) {
            understood.set(understood.get() + 1);
            for object in &sif.objects {
                assert!(object.offset + object.size <= file.len() as u64, "{object:?}");
            }
        }
    });
    let understood = understood.get();
    assert!((100..19_900).contains(&understood), "the changes do not reach both sides: {understood}");
}

#[test]
fn no_change_of_a_superblock_makes_it_panic() {
    let mut block = vec![0; 96];
    block[..4].copy_from_slice(b"hsqs");
    block[28] = 4;
    block[40] = 96;
    assert!(crate::image::squashfs::parse(block.as_slice(), 0, 96).is_ok());
    mutate(&block, 2000, |file| {
        if let Ok(found) = crate::image::squashfs::parse(file, 0, file.len() as u64) {
            assert!(found.bytes <= file.len() as u64);
        }
    });
}

fn number(file: &[u8], at: usize, length: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..length].copy_from_slice(&file[at..at + length]);
    u64::from_le_bytes(bytes)
}

/// Against the description of the format, not against our own parser.
#[test]
fn what_is_written_has_every_byte_in_its_place() {
    if crate::image::tools::find("mksquashfs").is_none() {
        return;
    }
    let dir = crate::image::tests::image_dir();
    let out = tempfile::tempdir().unwrap();
    let attributes = Attributes { deffile: "bootstrap: scratch\n".to_owned(), ..Attributes::default() };
    let make = |name: &str, time| {
        let path = out.path().join(name);
        let compression = super::write::Compression::default();
        let parts = Parts { root: dir.path(), attributes: &attributes, arch: "arm64", compression, time };
        write(&path, &parts, false, &|_, _| {}).unwrap();
        std::fs::read(path).unwrap()
    };
    let file = make("a.sif", Some(1_000_000_000));
    assert_eq!(&file[..48], b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\x0004\0");
    assert_eq!((file[54] >> 4, file[56] >> 6), (4, 2), "a random number of version 4");
    let header: Vec<u64> = (64..128).step_by(8).map(|at| number(&file, at, 8)).collect();
    let data = file.len() as u64 - 32176;
    assert_eq!(header, [1_000_000_000, 1_000_000_000, 45, 48, 4096, 28080, 32176, data]);
    assert!(file[128..4096].iter().all(|b| *b == 0), "between header and descriptors there is nothing");
    let json = serde_json::to_vec(&attributes.to_json()).unwrap();
    let (first, second) = (32176, 32176 + attributes.deffile.len() as u64);
    let third = (second + json.len() as u64).next_multiple_of(4096);
    let system = file.len() as u64 - third;
    let gap = third - second - json.len() as u64;
    let expected = [
        (0x4001, 1, first, attributes.deffile.len() as u64, attributes.deffile.len() as u64),
        (0x4006, 2, second, json.len() as u64, json.len() as u64),
        (0x4004, 3, third, system, system + gap),
    ];
    for (index, (kind, id, offset, size, stored)) in expected.into_iter().enumerate() {
        let at = 4096 + index * 585;
        let found = [
            (0, 4),
            (4, 1),
            (5, 4),
            (9, 4),
            (13, 4),
            (17, 8),
            (25, 8),
            (33, 8),
            (41, 8),
            (49, 8),
            (57, 8),
            (65, 8),
        ]
        .map(|(field, length)| number(&file, at + field, length));
        let (group, time) = (0xf000_0001, 1_000_000_000);
        assert_eq!(found, [kind, 1, id, group, 0, offset, size, stored, time, time, 0, 0]);
    }
    assert!(file[4096 + 585 + 73..].starts_with(b"inspect-metadata.json\0"));
    assert_eq!(&file[4096 + 2 * 585 + 201..][..12], b"\x01\0\0\0\x02\0\0\x0004\0\0");
    assert!(file[4096 + 3 * 585..32176].iter().all(|b| *b == 0), "the other descriptors are free");
    assert!(file[32176..].starts_with(b"bootstrap: scratch\n{"));
    assert!(file[usize::try_from(third).unwrap()..].starts_with(b"hsqs"));
    assert_eq!(file.len() % 4096, 0);
    assert_eq!(parse(file.as_slice()).unwrap().objects.len(), 3);
    assert!(file == make("b.sif", Some(1_000_000_000)), "the same content at the same time is another file");
    assert_ne!(file[48..64], make("c.sif", None)[48..64]);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 3, "something was left behind");
}
