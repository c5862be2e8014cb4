//! A generation kept in other files: what it holds stays the same, and so does its number.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};

use super::commit::{seal, take_in};
use super::error::StoreError;
use super::generation::Generation;
use super::layout::{self, generation_name};
use super::lock::{LiveLock, ShortLock};
use super::manifest::Manifest;
use super::record::to_json;
use super::staging::Staging;
use super::{Checkpoint, Result, commit, remove};

impl Checkpoint {
    /// Puts the files listed (relative to `staging`) in the place of all of a generation's. Both directories change
    /// places in one step: killed at any instant, one of the two is there, whole. `progress` gets bytes done and bytes
    /// in all.
    ///
    /// # Errors
    /// The generation is as it was; also where the file system cannot exchange two directories.
    pub fn replace(
        &self,
        live: &LiveLock,
        generation: &Generation,
        staging: &Staging,
        files: &[PathBuf],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Generation> {
        live.covers(&self.name)?;
        let _lock = ShortLock::take(&self.dir)?;
        self.remove_leftovers()?;
        let generations = self.generations_dir()?;
        let name = generation_name(generation.number);
        let partial_name = format!("{name}{}", layout::PARTIAL);
        let mut build = || {
            let partial = generations.make_dir(&partial_name)?;
            let found = commit::choose(staging, Some(files))?;
            let taken = take_in(&staging.dir, &partial, &found)?;
            let (files, _) = seal(&partial, &taken, progress)?;
            let manifest = Manifest { files, ..generation.manifest.clone() };
            partial
                .write_new(layout::MANIFEST, &to_json(&partial.path().join(layout::MANIFEST), &manifest)?)?;
            for entry in found.iter().filter(|entry| entry.kind == layout::Kind::Dir) {
                partial.child(&entry.relative)?.sync()?;
            }
            partial.sync()?;
            let flags = RenameFlags::RENAME_EXCHANGE;
            renameat2(&generations, partial_name.as_str(), &generations, name.as_str(), flags).map_err(
                |error| match error {
                    Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP => StoreError::Unfit {
                        path: generation.path().to_owned(),
                        problem: "this file system cannot exchange two directories in one step".to_owned(),
                    },
                    error => StoreError::io("exchange", generation.path(), error),
                },
            )?;
            generations.sync()
        };
        let built = build();
        // The new files after a failure, the old ones otherwise.
        let removed = remove::remove(&generations, &partial_name);
        built?;
        removed?;
        self.generation(Some(generation.number))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::store::Level;
    use crate::store::testing::{Fixture, message};

    #[test]
    fn other_files_take_the_place_of_a_generations() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "one"), ("b", "two")]);
        run.save(&[("a", "newer")]);
        let generation = run.checkpoint.generation(Some(1)).unwrap();
        run.write(&[("both", "onetwo"), ("left", "x")]);
        let files = ["both".into()];
        let replaced =
            run.checkpoint.replace(&run.live, &generation, &run.staging, &files, &mut |_, _| {}).unwrap();
        assert_eq!(fs::read_to_string(replaced.path().join("both")).unwrap(), "onetwo");
        assert_eq!((replaced.number(), replaced.manifest().files.len()), (1, 1));
        assert_eq!(replaced.manifest().created, generation.manifest().created);
        replaced.verify(Level::Full, &mut |_, _| {}).unwrap();
        assert_eq!(run.checkpoint.generations().unwrap(), [1, 2]);
        let names = fs::read_dir(run.checkpoint.path().join("generations")).unwrap();
        assert_eq!(names.count(), 2, "nothing else is left");
    }

    #[test]
    fn a_failure_leaves_everything_as_it_was() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "one")]);
        let generation = run.checkpoint.generation(None).unwrap();
        let told =
            run.checkpoint.replace(&run.live, &generation, &run.staging, &["gone".into()], &mut |_, _| {});
        insta::assert_snapshot!(message(&f, told), @"/tmp/store/checkpoints/web/staging/gone cannot be saved: there is no such file");
        run.checkpoint.generation(None).unwrap().verify(Level::Full, &mut |_, _| {}).unwrap();
        assert_eq!(fs::read_dir(run.checkpoint.path().join("generations")).unwrap().count(), 1);
    }
}
