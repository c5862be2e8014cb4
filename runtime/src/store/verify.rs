//! Whether a generation is still what was committed.
//!
//! Hashes prove accident, not authorship: whoever can change a file can change the manifest beside it.

use std::collections::BTreeMap;
use std::path::Path;

use nix::sys::stat::FileStat;
use nix::unistd::geteuid;

use super::Result;
use super::error::StoreError;
use super::generation::Generation;
use super::hash::{Heard, hash_files};
use super::layout::{self, Kind, walk};
use super::manifest::FileEntry;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every file is there, and nothing else, with its size and owner.
    Metadata,
    /// And its content is what it was.
    Full,
}

impl Generation {
    /// Fails with the first thing that is not as it was committed. `progress` gets bytes done and bytes in all,
    /// and is called at [`Level::Full`] only.
    pub fn verify(&self, level: Level, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.verify_metadata()?;
        match level {
            Level::Metadata => Ok(()),
            Level::Full => self.verify_content(&|_| true, progress),
        }
    }

    /// The content of those files that `wanted` names, after the metadata. As [`Self::verify`] otherwise.
    pub fn verify_content(
        &self,
        wanted: &dyn Fn(&Path) -> bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let mut files: Vec<&FileEntry> = self.manifest.files.iter().collect();
        files.retain(|file| wanted(Path::new(&file.path)));
        self.verify_files(&files, progress)
    }

    fn verify_metadata(&self) -> Result<()> {
        let listed = self.manifest.files.iter().map(|file| (Path::new(&file.path), file.size));
        let mut missing: BTreeMap<&Path, u64> = listed.collect();
        for found in walk(&self.dir)? {
            let path = self.dir.path().join(&found.relative);
            if !matches!(found.kind, Kind::File | Kind::Dir) {
                return Err(StoreError::damaged(&path, format!("it is {}, not a file", found.kind)));
            }
            check_owner(&path, &found.stat)?;
            if found.kind == Kind::Dir || found.relative == Path::new(layout::MANIFEST) {
                continue;
            }
            let Some(size) = missing.remove(found.relative.as_path()) else {
                return Err(StoreError::damaged(&path, "it does not belong to the generation"));
            };
            let actual = u64::try_from(found.stat.st_size).unwrap_or(0);
            if actual < size {
                return Err(StoreError::damaged(
                    &path,
                    format!("cut short: it has {actual} of {size} bytes"),
                ));
            }
            if actual > size {
                let problem = format!("it has {actual} bytes instead of {size}");
                return Err(StoreError::damaged(&path, problem));
            }
        }
        match missing.keys().next() {
            Some(relative) => Err(StoreError::damaged(&self.dir.path().join(relative), "it is missing")),
            None => Ok(()),
        }
    }

    fn verify_files(&self, files: &[&FileEntry], progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let total = files.iter().map(|file| file.size).sum();
        let mut done = 0;
        progress(0, total);
        let sizes: Vec<(&Path, u64)> =
            files.iter().map(|file| (Path::new(file.path.as_str()), file.size)).collect();
        hash_files(&self.dir, &sizes, &mut |heard| match heard {
            Heard::Read(read) => {
                done += read;
                progress(done, total);
                Ok(())
            }
            Heard::File(index, hashed) => files.get(index).map_or(Ok(()), |file| {
                let path = self.dir.path().join(&file.path);
                file.compare(&hashed).map_err(|problem| StoreError::damaged(&path, problem))
            }),
        })
    }
}

fn check_owner(path: &Path, stat: &FileStat) -> Result<()> {
    let euid = geteuid().as_raw();
    let problem = if stat.st_uid != euid {
        format!("it belongs to uid {}, and you are uid {euid}", stat.st_uid)
    } else if stat.st_mode & 0o022 != 0 {
        format!("others can write to it (mode {:04o})", stat.st_mode & 0o7777)
    } else {
        return Ok(());
    };
    Err(StoreError::Untrusted { path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::store::testing::{Fixture, Running, message};

    fn verify(run: &Running, level: Level) -> Result<()> {
        run.checkpoint.generation(None)?.verify(level, &mut |_, _| {})
    }

    fn saved(f: &Fixture) -> (Running, std::path::PathBuf) {
        let run = f.running("web");
        run.save(&[("a", "0123456789"), ("sub/b", ""), ("sub/c", &"x".repeat(3 << 20))]);
        let path = run.checkpoint.generation(None).unwrap().path().to_owned();
        (run, path)
    }

    #[test]
    fn good_ones_pass_and_tell_how_far_they_are() {
        let f = Fixture::new();
        let (run, _) = saved(&f);
        verify(&run, Level::Metadata).unwrap();
        let mut last = (0, 0);
        let generation = run.checkpoint.generation(None).unwrap();
        generation.verify(Level::Full, &mut |done, total| last = (done, total)).unwrap();
        assert_eq!(last, (generation.size(), generation.size()));
    }

    #[test]
    fn a_flipped_bit_is_found_by_the_full_look_only() {
        let f = Fixture::new();
        let (run, path) = saved(&f);
        fs::write(path.join("a"), "0123456788").unwrap();
        verify(&run, Level::Metadata).unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Full)), @"/tmp/store/checkpoints/web/generations/000001/a is damaged: its content is not what was saved");
    }

    #[test]
    fn of_a_large_file_the_place_is_told() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "x"), ("large", &"x".repeat(9 << 20))]);
        let large = run.checkpoint.generation(None).unwrap().path().join("large");
        let file = fs::OpenOptions::new().write(true).open(large).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"y", 5 << 20).unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Full)), @"/tmp/store/checkpoints/web/generations/000001/large is damaged: its content is not what was saved, first between bytes 4194304 and 8388608");
        file.set_len(8 << 20).unwrap();
        let content = run.checkpoint.generation(None).unwrap().verify_content(&|_| true, &mut |_, _| {});
        insta::assert_snapshot!(message(&f, content), @"/tmp/store/checkpoints/web/generations/000001/large is damaged: it has 8388608 bytes instead of 9437184");
    }

    #[test]
    fn sizes_and_missing_files() {
        let f = Fixture::new();
        let (run, path) = saved(&f);
        fs::write(path.join("a"), "0123").unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Metadata)), @"/tmp/store/checkpoints/web/generations/000001/a is damaged: cut short: it has 4 of 10 bytes");
        fs::write(path.join("a"), "0123456789ab").unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Metadata)), @"/tmp/store/checkpoints/web/generations/000001/a is damaged: it has 12 bytes instead of 10");
        fs::remove_file(path.join("a")).unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Metadata)), @"/tmp/store/checkpoints/web/generations/000001/a is damaged: it is missing");
        symlink("/etc/passwd", path.join("a")).unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Metadata)), @"/tmp/store/checkpoints/web/generations/000001/a is damaged: it is a symbolic link, not a file");
    }

    #[test]
    fn what_was_not_saved() {
        let f = Fixture::new();
        let (run, path) = saved(&f);
        fs::write(path.join("sub/extra"), "x").unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Metadata)), @"/tmp/store/checkpoints/web/generations/000001/sub/extra is damaged: it does not belong to the generation");
        fs::remove_file(path.join("sub/extra")).unwrap();
        fs::set_permissions(path.join("a"), fs::Permissions::from_mode(0o666)).unwrap();
        insta::assert_snapshot!(message(&f, verify(&run, Level::Metadata)), @"/tmp/store/checkpoints/web/generations/000001/a is not safe to use: others can write to it (mode 0666)");
    }

    #[test]
    fn another_owner() {
        if !geteuid().is_root() {
            println!("skipped: only root can give files away");
            return;
        }
        let f = Fixture::new();
        let (run, path) = saved(&f);
        std::os::unix::fs::chown(path.join("a"), Some(4711), None).unwrap();
        let told = message(&f, verify(&run, Level::Metadata));
        assert!(told.contains("it belongs to uid 4711"), "{told}");
    }
}
