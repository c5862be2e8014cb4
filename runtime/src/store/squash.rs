//! A generation kept in other files: what it holds stays the same, and so does its number.

use std::path::PathBuf;

use super::commit::{choose, seal, take_in};
use super::error::StoreError;
use super::generation::Generation;
use super::layout::{self, DirHandle, Kind, generation_name};
use super::lock::{LiveLock, ShortLock};
use super::manifest::BackendEntry;
use super::record::to_json;
use super::staging::Staging;
use super::{Checkpoint, Result, remove};

/// Who wrote the files that take the place of others.
#[derive(Debug, Clone)]
pub struct Writer {
    pub stasis_version: String,
    pub backend: BackendEntry,
}

impl Checkpoint {
    /// Puts the files listed (relative to `staging`) in the place of all of a generation's. Both directories change
    /// places in one step: killed at any instant, one of the two is there, whole. `progress` gets bytes done and bytes
    /// in all.
    ///
    /// # Errors
    /// The generation is as it was, also where the file system cannot exchange two directories; save for
    /// [`StoreError::Exchanged`].
    pub fn replace(
        &self,
        live: &LiveLock,
        generation: &Generation,
        staging: &Staging,
        files: &[PathBuf],
        writer: Writer,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Generation> {
        live.covers(&self.name)?;
        let _lock = ShortLock::take(&self.dir)?;
        self.remove_leftovers()?;
        let generations = self.generations_dir()?;
        let name = generation_name(generation.number);
        let partial_name = format!("{name}{}", layout::PARTIAL);
        let build = || {
            let partial = generations.make_dir(&partial_name)?;
            let found = choose(staging, Some(files))?;
            let taken = take_in(&staging.dir, &partial, &found)?;
            let (files, _) = seal(&partial, &taken, progress)?;
            let manifest = generation.manifest.clone().kept_in(files, writer);
            let bytes = to_json(&partial.path().join(layout::MANIFEST), &manifest)?;
            partial.write_new(layout::MANIFEST, &bytes)?;
            for entry in found.iter().filter(|entry| entry.kind == Kind::Dir) {
                partial.child(&entry.relative)?.sync()?;
            }
            partial.sync()?;
            generations.exchange(&partial_name, &name)
        };
        if let Err(error) = build() {
            // The error being returned says more than one from here would.
            let _ = remove::remove(&generations, &partial_name);
            return Err(error);
        }
        let path = generation.path().to_owned();
        drop_old(&generations, &partial_name, generations.sync()).map_err(|source| {
            StoreError::Exchanged { path, kept: partial_name.clone(), source: Box::new(source) }
        })?;
        self.generation(Some(generation.number))
    }
}

/// Removes what was exchanged for the new files, once it is certain that those stay in its place.
fn drop_old(generations: &DirHandle, name: &str, synced: Result<()>) -> Result<()> {
    synced?;
    // A leftover like any other: it is removed by the next commit.
    let _ = remove::remove(generations, name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::errno::Errno;
    use stasis_plugin_api::plan::SeccompRule;

    use super::*;
    use crate::store::Level;
    use crate::store::testing::{Fixture, draft, message, with_tmpfs};
    use crate::sys::{process, seccomp};

    fn writer() -> Writer {
        let backend = BackendEntry { version: "1.3.0".into(), ..draft("one").backend };
        Writer { stasis_version: "0.2.0".into(), backend }
    }

    #[test]
    fn other_files_take_the_place_of_a_generations() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "one"), ("b", "two")]);
        run.save(&[("a", "newer")]);
        let generation = run.checkpoint.generation(Some(1)).unwrap();
        run.write(&[("both", "onetwo"), ("left", "x")]);
        let files = ["both".into()];
        let replaced = run
            .checkpoint
            .replace(&run.live, &generation, &run.staging, &files, writer(), &mut |_, _| {})
            .unwrap();
        assert_eq!(fs::read_to_string(replaced.path().join("both")).unwrap(), "onetwo");
        assert_eq!((replaced.number(), replaced.manifest().files.len()), (1, 1));
        let manifest = replaced.manifest();
        assert_eq!(
            (&manifest.created, &manifest.report),
            (&generation.manifest.created, &generation.manifest.report)
        );
        assert_eq!((manifest.stasis_version.as_str(), manifest.backend.version.as_str()), ("0.2.0", "1.3.0"));
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
        let told = run.checkpoint.replace(
            &run.live,
            &generation,
            &run.staging,
            &["gone".into()],
            writer(),
            &mut |_, _| {},
        );
        insta::assert_snapshot!(message(&f, told), @"/tmp/store/checkpoints/web/staging/gone cannot be saved: there is no such file");
        run.checkpoint.generation(None).unwrap().verify(Level::Full, &mut |_, _| {}).unwrap();
        assert_eq!(fs::read_dir(run.checkpoint.path().join("generations")).unwrap().count(), 1);
    }

    #[test]
    fn where_directories_cannot_be_exchanged() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "one")]);
        run.write(&[("b", "one")]);
        let generation = run.checkpoint.generation(None).unwrap();
        let refused = std::thread::scope(|scope| {
            let replace = || {
                // Only this thread's.
                process::no_new_privileges().unwrap();
                let rule =
                    SeccompRule { syscall: libc::SYS_renameat2, argument: None, except: false, errno: 22 };
                seccomp::install(&[rule]).unwrap();
                run.checkpoint.replace(
                    &run.live,
                    &generation,
                    &run.staging,
                    &["b".into()],
                    writer(),
                    &mut |_, _| {},
                )
            };
            scope.spawn(replace).join().unwrap()
        });
        let refused = refused.unwrap_err();
        insta::assert_snapshot!(f.plain(&refused), @"the file system of /tmp/store/checkpoints/web/generations cannot exchange two directories in one step");
        insta::assert_snapshot!(refused.help().unwrap(), @"nothing was changed; a store on a local file system such as ext4, XFS or Btrfs can do it: copy it (cp -a) and set STASIS_DATA_DIR");
        run.checkpoint.generation(None).unwrap().verify(Level::Full, &mut |_, _| {}).unwrap();
        assert_eq!(fs::read_dir(run.checkpoint.path().join("generations")).unwrap().count(), 1);
    }

    #[test]
    fn what_was_there_goes_only_when_the_new_one_is_sure_to_stay() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("a", "one")]);
        let generations = run.checkpoint.generations_dir().unwrap();
        let old = generations.make_dir("000001.partial").unwrap().path().to_owned();
        let failed = Err(StoreError::io("write out", generations.path(), Errno::EIO));
        let source = Box::new(drop_old(&generations, "000001.partial", failed).unwrap_err());
        assert!(old.exists());
        let path = generations.path().join("000001");
        let told = StoreError::Exchanged { path, kept: "000001.partial".to_owned(), source };
        insta::assert_snapshot!(f.plain(&told), @"/tmp/store/checkpoints/web/generations/000001 holds its new files, but that may not last: cannot write out /tmp/store/checkpoints/web/generations: the disk reports an input/output error; what it held before is kept as 000001.partial");
        insta::assert_snapshot!(told.help().unwrap().replace(f.temp.path().to_str().unwrap(), "/tmp"), @"look at the disk (dmesg) and compare what is there (stasis checkpoint verify) before anything is saved to it again, which removes /tmp/store/checkpoints/web/generations/000001.partial");
        drop_old(&generations, "000001.partial", Ok(())).unwrap();
        assert!(!old.exists());
    }

    #[test]
    fn an_old_one_that_cannot_be_removed_now_is_a_leftover() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("sub/a", "one")]);
        let generation = run.checkpoint.generation(None).unwrap();
        let sub = generation.path().join("sub");
        run.write(&[("b", "one")]);
        with_tmpfs(&sub, "1m", || {
            let files = ["b".into()];
            let replaced = run.checkpoint.replace(
                &run.live,
                &generation,
                &run.staging,
                &files,
                writer(),
                &mut |_, _| {},
            );
            replaced.unwrap().verify(Level::Full, &mut |_, _| {}).unwrap();
            assert!(sub.parent().unwrap().with_extension("partial").join("sub").exists());
            assert_eq!(run.checkpoint.generations().unwrap(), [1]);
        });
        run.checkpoint.clean_partials().unwrap();
        assert_eq!(fs::read_dir(run.checkpoint.path().join("generations")).unwrap().count(), 1);
    }
}
