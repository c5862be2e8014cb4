//! The seeds of the fuzz targets, as they are and changed at random places, always the same ones: each has an answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::running::Outcome;

/// Set where this program runs itself again, under limits.
const INSIDE: &str = "STASIS_TESTS_SEEDS";
/// Of address space, in bytes.
const MEMORY: u64 = 1 << 30;
/// Of processor time, in seconds: what runs for ever is ended.
const TIME: u64 = 300;

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % end.max(1)
    }
}

/// Puts numbers at the edges, single bytes, and pieces of the seed itself into it, or cuts it off.
fn change(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let edges: [&[u8]; 8] =
        [&[0; 8], &[0xff; 8], &[0x7f], &[0x80], b"..", b"/", &[0xff, 0xff, 0xff, 0x7f], b"\n%"];
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(5) {
        let at = numbers.below(bytes.len());
        let piece = match numbers.below(3) {
            0 => edges[numbers.below(edges.len())].to_vec(),
            1 => vec![u8::try_from(numbers.below(256)).unwrap_or(0)],
            _ => {
                let from = numbers.below(seed.len());
                seed[from..seed.len().min(from + 1 + numbers.below(40))].to_vec()
            }
        };
        let end = match numbers.below(4) {
            0 => at,
            _ => bytes.len().min(at + piece.len()),
        };
        bytes.splice(at..end, piece);
    }
    if numbers.below(8) == 0 {
        bytes.truncate(numbers.below(bytes.len()));
    }
    bytes
}

fn seeds(name: &str) -> Outcome<Vec<(PathBuf, Vec<u8>)>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name);
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        all.push((path.clone(), fs::read(path)?));
    }
    all.sort();
    Ok(all)
}

/// Answers with how many of the changed ones were understood, and how many there were.
fn feed(name: &str, rounds: u64, check: impl Fn(&[u8]) -> Result<bool, String>) -> Outcome<(usize, usize)> {
    let (mut understood, mut all) = (0, 0);
    for (path, seed) in seeds(name)? {
        let failed = |what: String, round: u64| format!("{}, change {round}: {what}", path.display());
        let sound = path.extension().is_none_or(|extension| extension != "bad");
        if check(&seed).map_err(|what| failed(what, 0))? != sound {
            return Err(failed(format!("it should be sound: {sound}"), 0).into());
        }
        for round in 1..=rounds {
            let changed = change(&seed, &mut Numbers(round));
            understood += usize::from(check(&changed).map_err(|what| failed(what, round))?);
            all += 1;
        }
    }
    Ok((understood, all))
}

fn feed_all() -> Outcome<()> {
    let layer = |bytes: &[u8]| {
        let place = tempfile::tempdir().map_err(|e| e.to_string())?;
        stasis::fuzzing::layer(bytes, place.path())
    };
    let fed = [
        feed("sif", 4000, stasis::fuzzing::sif)?,
        feed("definition", 1000, stasis::fuzzing::definition)?,
        feed("layer", 150, layer)?,
    ];
    for (understood, all) in fed {
        assert!(understood > 0 && understood < all, "the changes do not reach both sides: {fed:?}");
    }
    Ok(())
}

/// By a process of its own: where it needs too much of anything it is ended, and only it.
#[test]
fn seeds_and_changes_of_them_have_an_answer() {
    if std::env::var_os(INSIDE).is_some() {
        feed_all().unwrap();
        return;
    }
    let out = Command::new("prlimit")
        .args([format!("--as={MEMORY}"), format!("--cpu={TIME}"), "--".to_owned()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "seeds::seeds_and_changes_of_them_have_an_answer", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{}: {said}", out.status);
}
