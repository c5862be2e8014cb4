//! Images that somebody has written to: whatever they say, the answer is an error or an image, never a panic. The same
//! seeds are those of the fuzzer in fuzz/.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use stasis_native::judge;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// In place of each number: what overflows, what is negative, what is no integer, what is no page.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "4095",
    "2147483647",
    "2147483648",
    "4294967296",
    "140737488351232",
    "9223372036854775808",
    "18446744073709551615",
    "1e308",
    "0.5",
];
/// In place of each string, word or number.
const OTHERS: [&str; 6] = ["null", "true", "[]", "{}", "\"\"", "\"\\u0000/\""];

fn seeds() -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/core");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| (file.display().to_string(), fs::read(file).unwrap())).collect()
}

/// Counts what was found sound; an image that is, is so again when it is written down.
fn told(text: &[u8], sound: &mut usize) {
    if let Ok(again) = judge(text) {
        *sound += 1;
        assert!(judge(&again).is_ok(), "not sound again: {}", String::from_utf8_lossy(text));
    }
}

/// Where words and numbers lie in a text of JSON, keys and strings with their quotes.
fn tokens(text: &[u8]) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let from = at;
        if text[at] == b'"' {
            at += 1;
            while at < text.len() && text[at] != b'"' {
                at += if text[at] == b'\\' { 2 } else { 1 };
            }
        } else if text[at].is_ascii_alphanumeric() || text[at] == b'-' {
            while at + 1 < text.len() && (text[at + 1].is_ascii_alphanumeric() || text[at + 1] == b'.') {
                at += 1;
            }
        } else {
            at += 1;
            continue;
        }
        at += 1;
        found.push(from..at);
    }
    found
}

/// Every so many, but all of a short row: texts differ in size, and their parts are alike.
fn some(all: usize, most: usize) -> impl Iterator<Item = usize> {
    (0..all).step_by(all.div_ceil(most).max(1))
}

#[test]
fn seeds_are_sound() {
    let seeds = seeds();
    assert!(seeds.len() >= 6);
    for (name, text) in seeds {
        assert!(judge(&text).is_ok(), "{name}: {:?}", judge(&text).err());
    }
}

#[test]
fn whatever_is_cut_off_is_missed() {
    for (name, text) in seeds() {
        let end = text.trim_ascii_end().len();
        for length in some(end, 600) {
            assert!(judge(&text[..length]).is_err(), "{name} of {length} bytes");
        }
    }
}

#[test]
fn other_bytes_are_an_error_or_an_image() {
    let (mut tried, mut sound) = (0, 0);
    for text in seeds().into_values() {
        for at in some(text.len(), 120) {
            for bits in [0x01, 0x02, 0x10, 0x80] {
                let mut changed = text.clone();
                changed[at] ^= bits;
                told(&changed, &mut sound);
                tried += 1;
            }
        }
    }
    assert!(sound > 0 && sound < tried, "{sound} of {tried}");
}

#[test]
fn other_numbers_and_words_are_an_error_or_an_image() {
    let (mut tried, mut sound) = (0, 0);
    for text in seeds().into_values() {
        let tokens = tokens(&text);
        for which in some(tokens.len(), 60) {
            for word in NUMBERS.iter().chain(&OTHERS) {
                let Range { start, end } = tokens[which].clone();
                told(&[&text[..start], word.as_bytes(), &text[end..]].concat(), &mut sound);
                tried += 1;
            }
        }
    }
    assert!(sound > 0 && sound < tried, "{sound} of {tried}");
}

#[test]
fn what_is_missing_or_there_twice_is_an_error_or_an_image() {
    let mut sound = 0;
    for text in seeds().into_values() {
        let tokens = tokens(&text);
        for which in some(tokens.len(), 150) {
            let Range { start, end } = tokens[which].clone();
            told(&[&text[..start], &text[end..]].concat(), &mut sound);
            told(&[&text[..end], b",", &text[start..]].concat(), &mut sound);
            // A part of the next one in place of this one.
            if let Some(next) = tokens.get(which + 1) {
                told(&[&text[..start], &text[next.clone()], &text[end..]].concat(), &mut sound);
            }
        }
    }
    println!("{sound} were sound");
}

#[test]
fn brackets_without_an_end_are_an_error() {
    for bracket in ["[", "{\"a\":", "{\"processes\":[", "{\"format\":1,\"processes\":["] {
        assert!(judge(bracket.repeat(100_000).as_bytes()).is_err());
    }
}
