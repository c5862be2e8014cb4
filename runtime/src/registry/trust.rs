//! Whose file is it: opens a path while checking that nobody but root or this user could have put another file in
//! its place. What is checked is what is opened: every step is one descriptor relative to the one before.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{Uid, User};

use crate::config::error::in_words;

/// As many links as the kernel follows.
const MAX_LINKS: u32 = 40;

/// Why a path may not be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not there.
    #[error("{path} does not exist", path = path.display())]
    Missing {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("cannot open {path}: {why}", path = path.display(), why = in_words(source))]
    Open {
        /// The path up to where it failed.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody else owns it.
    #[error("{path} belongs to {owner}, it must belong to {trusted}", path = path.display())]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner, in words.
        owner: String,
        /// Who may own it.
        trusted: String,
        /// The uid to give it to.
        remedy: u32,
    },
    /// Others may write to it.
    #[error("{path} has mode {mode:04o}: {who} may write to it", path = path.display())]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// In words.
        who: &'static str,
    },
    /// It is a directory, a device or the like.
    #[error("{path} is not a regular file", path = path.display())]
    NotFile {
        /// The path.
        path: PathBuf,
    },
}

impl TrustError {
    /// The command that mends it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Owner { path, remedy, .. } => {
                let to = User::from_uid(Uid::from_raw(*remedy)).ok().flatten();
                let to = to.map_or(remedy.to_string(), |user| user.name);
                Some(format!("chown {to} {}", path.display()))
            }
            Self::Writable { path, .. } => Some(format!("chmod go-w {}", path.display())),
            Self::Missing { .. } | Self::Open { .. } | Self::NotFile { .. } => None,
        }
    }
}

/// A user's name with the number, or the number alone.
pub fn user_name(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("{} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
}

/// Opens the regular file `path` (absolute) for reading. It, every directory on the way and every symbolic link
/// followed must belong to root or to `euid`; files and directories must not be writable by others, except sticky
/// directories such as /tmp.
pub fn open_file(path: &Path, euid: u32) -> Result<File, TrustError> {
    // Where nothing is, nothing is used, and it does not matter who might have put something there.
    if std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Err(TrustError::Missing { path: path.to_owned() });
    }
    let mut walk = Walk { euid, at: PathBuf::from("/"), dirs: vec![open_root()?], asked: path };
    let mut rest: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    walk.check_top()?;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            walk.leave();
            continue;
        }
        let (found, stat) = walk.look(&name)?;
        let here = walk.at.join(&name);
        match kind(&stat) {
            Kind::Link => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(TrustError::Open { path: here, source: Errno::ELOOP.into() });
                }
                walk.check_owner(&here, &stat)?;
                let target = readlinkat(&found, "").map_err(|e| walk.failed(&here, e))?;
                if Path::new(&target).is_absolute() {
                    walk.start_over();
                }
                for part in parts(Path::new(&target)).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(part);
                }
            }
            Kind::Directory => {
                walk.dirs.push(found);
                walk.at = here;
                walk.check_top()?;
            }
            Kind::File if rest.is_empty() => return walk.open_last(&name, &here),
            Kind::File => return Err(walk.failed(&here, Errno::ENOTDIR)),
            Kind::Other => return Err(TrustError::NotFile { path: here }),
        }
    }
    Err(TrustError::NotFile { path: walk.at })
}

/// Where the walk has got to: a descriptor for each directory from `/` on.
struct Walk<'a> {
    euid: u32,
    at: PathBuf,
    dirs: Vec<OwnedFd>,
    asked: &'a Path,
}

enum Kind {
    Link,
    Directory,
    File,
    Other,
}

fn kind(stat: &FileStat) -> Kind {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFLNK => Kind::Link,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFREG => Kind::File,
        _ => Kind::Other,
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    })
}

fn open_root() -> Result<OwnedFd, TrustError> {
    nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| TrustError::Open { path: PathBuf::from("/"), source: e.into() })
}

impl Walk<'_> {
    fn top(&self) -> Result<&OwnedFd, TrustError> {
        self.dirs.last().ok_or_else(|| self.failed(&self.at, Errno::EBADF))
    }

    fn leave(&mut self) {
        if self.dirs.len() > 1 {
            self.dirs.pop();
            self.at.pop();
        }
    }

    fn start_over(&mut self) {
        self.dirs.truncate(1);
        self.at = PathBuf::from("/");
    }

    fn look(&self, name: &OsStr) -> Result<(OwnedFd, FileStat), TrustError> {
        let here = self.at.join(name);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(self.top()?, name, flags, Mode::empty()).map_err(|e| self.failed(&here, e))?;
        let stat = fstat(&found).map_err(|e| self.failed(&here, e))?;
        Ok((found, stat))
    }

    /// Opens the file again for reading, and judges the descriptor that is handed out.
    fn open_last(&self, name: &OsStr, here: &Path) -> Result<File, TrustError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(self.top()?, name, flags, Mode::empty()).map_err(|e| self.failed(here, e))?;
        let stat = fstat(&file).map_err(|e| self.failed(here, e))?;
        if !matches!(kind(&stat), Kind::File) {
            return Err(TrustError::NotFile { path: here.to_owned() });
        }
        self.check_owner(here, &stat)?;
        self.check_mode(here, &stat)?;
        Ok(File::from(file))
    }

    fn check_top(&self) -> Result<(), TrustError> {
        let stat = fstat(self.top()?.as_fd()).map_err(|e| self.failed(&self.at, e))?;
        self.check_owner(&self.at, &stat)?;
        // In a sticky directory nobody can replace an entry of another's, and each entry is checked in turn.
        if stat.st_mode & libc::S_ISVTX != 0 { Ok(()) } else { self.check_mode(&self.at, &stat) }
    }

    fn check_owner(&self, path: &Path, stat: &FileStat) -> Result<(), TrustError> {
        if stat.st_uid == 0 || stat.st_uid == self.euid {
            return Ok(());
        }
        let us = user_name(Uid::from_raw(self.euid));
        Err(TrustError::Owner {
            path: path.to_owned(),
            owner: user_name(Uid::from_raw(stat.st_uid)),
            trusted: if self.euid == 0 { "root".to_owned() } else { format!("root or {us}") },
            remedy: self.euid,
        })
    }

    fn check_mode(&self, path: &Path, stat: &FileStat) -> Result<(), TrustError> {
        let who = match stat.st_mode & 0o022 {
            0 => return Ok(()),
            0o020 => "its group",
            _ => "every user",
        };
        Err(TrustError::Writable { path: path.to_owned(), mode: stat.st_mode & 0o7777, who })
    }

    fn failed(&self, path: &Path, error: Errno) -> TrustError {
        match error {
            Errno::ENOENT => TrustError::Missing { path: self.asked.to_owned() },
            error => TrustError::Open { path: path.to_owned(), source: error.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn me() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn shown(dir: &Path, error: &TrustError) -> String {
        error.to_string().replace(dir.to_str().unwrap(), "DIR")
    }

    #[test]
    fn a_file_of_ours_opens_directly_and_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("file"), "content").unwrap();
        symlink("sub/../sub", dir.path().join("relative")).unwrap();
        symlink(&sub, dir.path().join("absolute")).unwrap();
        symlink("file", sub.join("last")).unwrap();
        for path in ["sub/file", "relative/file", "absolute/last", "absolute/../sub/./file"] {
            let mut text = String::new();
            open_file(&dir.path().join(path), me()).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "content", "{path}");
        }
    }

    #[test]
    fn writable_by_others_is_refused_in_the_file_and_on_the_way_but_sticky_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        let file = sub.join("file");
        fs::create_dir(&sub).unwrap();
        fs::write(&file, "x").unwrap();

        fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
        let error = open_file(&file, me()).unwrap_err();
        insta::assert_snapshot!(shown(dir.path(), &error), @"DIR/sub/file has mode 0664: its group may write to it");
        assert_eq!(error.help(), Some(format!("chmod go-w {}", file.display())));
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();

        fs::set_permissions(&sub, Permissions::from_mode(0o777)).unwrap();
        insta::assert_snapshot!(shown(dir.path(), &open_file(&file, me()).unwrap_err()), @"DIR/sub has mode 0777: every user may write to it");
        assert!(matches!(open_file(&sub.join("none"), me()), Err(TrustError::Missing { .. })));
        symlink("sub/file", dir.path().join("link")).unwrap();
        assert!(open_file(&dir.path().join("link"), me()).is_err(), "a link does not lead around the check");
        fs::set_permissions(&sub, Permissions::from_mode(0o1777)).unwrap();
        assert!(open_file(&file, me()).is_ok());
    }

    #[test]
    fn anothers_file_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        // Judged for another user, our own file is a stranger's; as root the file is given away first.
        let judge = if me() == 0 {
            std::os::unix::fs::chown(&file, Some(4242), None).unwrap();
            0
        } else {
            4243
        };
        let error = open_file(&file, judge).unwrap_err();
        let text = shown(dir.path(), &error);
        assert!(text.contains(" belongs to "), "{text}");
        assert!(error.help().unwrap().starts_with("chown "), "{error}");
        assert!(matches!(error, TrustError::Owner { .. }));
        // A link of a stranger's is not followed either.
        if me() == 0 {
            let link = dir.path().join("link");
            fs::write(dir.path().join("good"), "x").unwrap();
            symlink("good", &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(4242), None).unwrap();
            assert!(matches!(open_file(&link, 0), Err(TrustError::Owner { .. })));
        }
    }

    #[test]
    fn what_is_no_file_or_never_ends_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| open_file(&dir.path().join(name), me()).unwrap_err();
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRUSR).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        insta::assert_snapshot!(shown(dir.path(), &at("fifo")), @"DIR/fifo is not a regular file");
        insta::assert_snapshot!(shown(dir.path(), &at("loop")), @"cannot open DIR/loop: there are too many symbolic links on the way");
        insta::assert_snapshot!(shown(dir.path(), &at("file/x")), @"cannot open DIR/file: a part of the path is not a directory");
        insta::assert_snapshot!(shown(dir.path(), &at("none/x")), @"DIR/none/x does not exist");
        insta::assert_snapshot!(open_file(Path::new("/"), me()).unwrap_err(), @"/ is not a regular file");
    }
}
