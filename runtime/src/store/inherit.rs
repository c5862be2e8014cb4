//! Files that a new generation shares with an earlier one: the same file under a second name, so that either
//! generation may go without the other.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::linkat;

use super::Result;
use super::error::StoreError;
use super::generation::Generation;
use super::hash::{Heard, hash_files};
use super::layout::DirHandle;
use super::manifest::FileEntry;

/// What a new generation takes over, as it is and by the same names.
#[derive(Debug, Clone, Copy)]
pub struct Inherited<'a> {
    /// From this generation of the same checkpoint.
    pub generation: u64,
    /// Relative to it.
    pub files: &'a [String],
}

/// Links the files into the new generation's directory, or copies them where the file system has no links. Their
/// entries are those of the earlier generation: what was hashed once is not hashed again.
pub(crate) fn take_over(base: &Generation, partial: &DirHandle, files: &[String]) -> Result<Vec<FileEntry>> {
    files.iter().map(|name| take(base, partial, name)).collect()
}

fn take(base: &Generation, partial: &DirHandle, name: &str) -> Result<FileEntry> {
    let unfit =
        |problem: &str| Err(StoreError::Unfit { path: base.path().join(name), problem: problem.to_owned() });
    let Some(entry) = base.manifest.files.iter().find(|entry| entry.path == name) else {
        return unfit("that generation has no such file");
    };
    let relative = Path::new(name);
    if relative.components().count() != 1 {
        return unfit("only files at the top of a generation can belong to two");
    }
    let (mut file, stat) = base.dir.open_regular(relative)?;
    if u64::try_from(stat.st_size).ok() != Some(entry.size) {
        return unfit("it is not what was saved");
    }
    match linkat(&base.dir, relative, partial, relative, nix::fcntl::AtFlags::empty()) {
        Ok(()) => {}
        // No links there, or none more of this one.
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK | Errno::EXDEV) => {
            copy(&mut file, partial, relative, entry)?;
        }
        Err(error) => return Err(StoreError::io("link", &partial.path().join(name), error)),
    }
    Ok(FileEntry { from: entry.from.or(Some(base.number)), ..entry.clone() })
}

fn copy(from: &mut std::fs::File, partial: &DirHandle, name: &Path, entry: &FileEntry) -> Result<()> {
    let path = partial.path().join(name);
    let failed = |e: io::Error| StoreError::io("copy to", &path, e);
    let mut to = partial.open_file(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
    io::copy(from, &mut to).map_err(failed)?;
    to.sync_all().map_err(failed)?;
    hash_files(partial, &[(name, entry.size)], &mut |heard| match heard {
        Heard::Read(_) => Ok(()),
        Heard::File(_, hashed) => {
            entry.compare(&hashed).map_err(|problem| StoreError::damaged(&path, problem))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::store::Level;
    use crate::store::testing::{Fixture, Running, draft, message};

    /// A generation that takes these files of another one over.
    fn build_on(run: &Running, base: u64, files: &[&str]) -> Result<Generation> {
        run.write(&[("new", "n")]);
        let files: Vec<String> = files.iter().map(ToString::to_string).collect();
        let inherited = Some(Inherited { generation: base, files: &files });
        let draft = draft("one");
        let done = run.checkpoint.commit(&run.live, &run.staging, None, inherited, draft, &mut |_, _| {})?;
        Ok(done.generation)
    }

    #[test]
    fn each_generation_is_whole_without_the_others() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("big", "0123456789"), ("other", "x")]);
        build_on(&run, 1, &["big"]).unwrap();
        let third = build_on(&run, 2, &["big"]).unwrap();
        let own = |number| run.checkpoint.generation(Some(number)).unwrap().own_size();
        assert_eq!((third.size(), own(1), own(2), own(3)), (11, 1, 1, 1));
        let from: Vec<_> =
            third.manifest().files.iter().map(|file| (file.path.as_str(), file.from)).collect();
        assert_eq!(from, [("new", None), ("big", Some(1))]);
        assert_eq!(fs::metadata(third.path().join("big")).unwrap().nlink(), 3);
        run.checkpoint.prune(1, &[], &run.live).unwrap();
        assert_eq!(run.checkpoint.generations().unwrap(), [3]);
        let third = run.checkpoint.generation(None).unwrap();
        // Nobody shares it any more, and still it was not written by itself.
        assert_eq!((third.own_size(), third.manifest().builds_on_others()), (11, true));
        third.verify(Level::Full, &mut |_, _| {}).unwrap();
        assert_eq!(fs::read_to_string(third.path().join("big")).unwrap(), "0123456789");
    }

    #[test]
    fn what_cannot_be_taken_over() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("big", "0123456789"), ("sub/below", "x"), ("new", "n")]);
        let told = |files: &[&str]| message(&f, build_on(&run, 1, files));
        insta::assert_snapshot!(told(&["gone"]), @r#"generation 2 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/generations/000001/gone cannot be saved: that generation has no such file"#);
        insta::assert_snapshot!(told(&["sub/below"]), @r#"generation 2 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/generations/000001/sub/below cannot be saved: only files at the top of a generation can belong to two"#);
        insta::assert_snapshot!(told(&["new"]), @r#"generation 2 of checkpoint "web" was not saved: cannot link /tmp/store/checkpoints/web/generations/000002.partial/new: File exists"#);
        insta::assert_snapshot!(message(&f, build_on(&run, 7, &["big"])), @r#"checkpoint "web" has no generation 7 (there are: 1)"#);
        fs::write(run.checkpoint.generation(None).unwrap().path().join("big"), "0").unwrap();
        insta::assert_snapshot!(told(&["big"]), @r#"generation 2 of checkpoint "web" was not saved: /tmp/store/checkpoints/web/generations/000001/big cannot be saved: it is not what was saved"#);
        assert_eq!(run.checkpoint.generations().unwrap(), [1]);
    }

    #[test]
    fn a_copy_is_compared_with_what_was_saved() {
        let f = Fixture::new();
        let run = f.running("web");
        run.save(&[("big", "0123456789")]);
        let base = run.checkpoint.generation(None).unwrap();
        let entry = &base.manifest.files[0];
        let mut file = fs::File::open(base.path().join("big")).unwrap();
        copy(&mut file, &run.staging.dir, Path::new("copied"), entry).unwrap();
        fs::write(base.path().join("big"), "0123456788").unwrap();
        let mut file = fs::File::open(base.path().join("big")).unwrap();
        let told = message(&f, copy(&mut file, &run.staging.dir, Path::new("again"), entry));
        insta::assert_snapshot!(told, @"/tmp/store/checkpoints/web/staging/again is damaged: its content is not what was saved");
    }
}
