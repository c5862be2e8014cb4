//! Where things are: the only reader of environment, home directory and user id when a location is decided. Paths
//! are computed from a [`Context`], which a test can fill by hand. What lies inside these directories belongs to
//! the store and the instances.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::unistd::{Uid, User};

use super::error::in_words;
use crate::registry::trust::user_name;

/// Who we are and what the environment says: everything that locations depend on.
#[derive(Debug, Clone)]
pub struct Context {
    /// The effective user id; it decides what root means.
    pub euid: u32,
    /// The real user id.
    pub uid: u32,
    /// The home directory. Of root it is always the one in the user database: `sudo` may have kept another's. That is asked
    /// when a location depends on it, and not before.
    pub home: OnceLock<Option<PathBuf>>,
    /// `STASIS_*`, `XDG_*` and `HOME` only.
    pub env: BTreeMap<String, String>,
    /// The running executable.
    pub exe: PathBuf,
    /// Where the administrator's configuration is. Fixed in [`Context::from_process`]; a field for tests.
    pub system_dir: PathBuf,
}

/// Why a location cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// The path of the running program is not known.
    #[error("cannot find the path of the running program: {why}", why = in_words(source))]
    Executable {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A variable of ours is not text.
    #[error("the environment variable {name} is not valid UTF-8")]
    NotText {
        /// Its name.
        name: String,
    },
    /// A variable of ours must hold an absolute path.
    #[error("{name} is set to {value:?}, which is not an absolute path")]
    Relative {
        /// The variable.
        name: &'static str,
        /// What it is set to.
        value: String,
    },
    /// Neither a variable nor the password database says where the home is.
    #[error("no home directory is known for uid {uid}, so there is no place for the {what}")]
    NoHome {
        /// Whose.
        uid: u32,
        /// What should have been put there.
        what: &'static str,
    },
    /// A directory cannot be created.
    #[error("cannot create the runtime directory {path}: {why}", path = path.display(), why = in_words(source))]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something that is not a directory is in the way.
    #[error("{path} is to be the runtime directory, but it is not a directory", path = path.display())]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("the runtime directory {path} belongs to {owner}, not to {us}", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner, in words.
        owner: String,
        /// This user, in words.
        us: String,
    },
    /// Others may enter it.
    #[error("the runtime directory {path} has mode {mode:04o}, it must be 0700", path = path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl PathsError {
    /// What the user can do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Executable { .. } => Some("see that /proc is mounted".to_owned()),
            Self::NotText { name } => Some(format!("unset {name} or give it a readable value")),
            Self::Relative { name, .. } => Some(format!("give {name} a path that starts with /")),
            Self::NoHome { .. } => Some("set HOME or STASIS_DATA_DIR".to_owned()),
            Self::Open { path, .. } => Some(format!("chmod 0700 {}", path.display())),
            Self::Create { .. } | Self::NotDirectory { .. } | Self::Foreign { .. } => {
                Some("set STASIS_RUNTIME_DIR to a directory of your own on a local file system".to_owned())
            }
        }
    }
}

impl Context {
    /// The context of this process.
    pub fn from_process() -> Result<Self, PathsError> {
        let mut env = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str() else { continue };
            if !(name == "HOME" || name.starts_with("STASIS_") || name.starts_with("XDG_")) {
                continue;
            }
            let value = value.into_string().map_err(|_| PathsError::NotText { name: name.to_owned() })?;
            if !value.is_empty() {
                env.insert(name.to_owned(), value);
            }
        }
        let euid = nix::unistd::geteuid();
        let home = env.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute() && !euid.is_root());
        let exe = std::env::current_exe().map_err(|source| PathsError::Executable { source })?;
        Ok(Self {
            euid: euid.as_raw(),
            uid: nix::unistd::getuid().as_raw(),
            home: home.map_or_else(OnceLock::new, |home| Some(home).into()),
            env,
            exe,
            system_dir: PathBuf::from("/etc/stasis"),
        })
    }

    /// Root trusts only what root owns, and takes no configuration from the environment.
    pub fn is_root(&self) -> bool {
        self.euid == 0
    }

    /// The home directory, where one is known.
    pub fn home(&self) -> Option<&Path> {
        let of_database = || User::from_uid(Uid::from_raw(self.euid)).ok().flatten().map(|user| user.dir);
        self.home.get_or_init(of_database).as_deref()
    }

    /// A variable; an empty one counts as not set.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where checkpoints and the image cache are. Not created here.
    pub fn data_root(&self) -> Result<PathBuf, PathsError> {
        if let Some(path) = self.absolute("STASIS_DATA_DIR")? {
            return Ok(path);
        }
        match self.xdg("XDG_DATA_HOME") {
            Some(base) => Ok(base.join("stasis")),
            None => Ok(self.home_for("checkpoints")?.join(".local/share/stasis")),
        }
    }

    /// The user's own configuration directory. Not created here.
    pub fn config_home(&self) -> Result<PathBuf, PathsError> {
        match self.xdg("XDG_CONFIG_HOME") {
            Some(base) => Ok(base.join("stasis")),
            None => Ok(self.home_for("configuration")?.join(".config/stasis")),
        }
    }

    /// The administrator's configuration directory.
    pub fn system_dir(&self) -> &Path {
        &self.system_dir
    }

    /// The directory for sockets and instance records: created 0700 if it is missing, and ours alone.
    pub fn runtime_dir(&self) -> Result<PathBuf, PathsError> {
        if let Some(path) = self.absolute("STASIS_RUNTIME_DIR")? {
            if let Some(parent) = path.parent() {
                create_private(parent, true)?;
            }
            return private_dir(&path, self.euid).map(|()| path);
        }
        if let Some(base) = self.private_xdg_runtime_dir() {
            let path = base.join("stasis");
            return private_dir(&path, self.euid).map(|()| path);
        }
        fallback_runtime_dir(&[Path::new("/dev/shm"), Path::new("/tmp")], self.euid)
    }

    /// `XDG_RUNTIME_DIR` where it is what the XDG rules ask for; `su` and `sudo` hand on another user's.
    fn private_xdg_runtime_dir(&self) -> Option<PathBuf> {
        let base = self.var("XDG_RUNTIME_DIR").map(PathBuf::from)?;
        (base.is_absolute() && check_private(&base, self.euid).is_ok()).then_some(base)
    }

    fn absolute(&self, name: &'static str) -> Result<Option<PathBuf>, PathsError> {
        match self.var(name) {
            Some(value) if Path::new(value).is_absolute() => Ok(Some(PathBuf::from(value))),
            Some(value) => Err(PathsError::Relative { name, value: value.to_owned() }),
            None => Ok(None),
        }
    }

    /// A base directory variable. The XDG rules say that a relative one is ignored; root ignores one that lies in
    /// another user's directory, because `sudo -E` hands it on.
    fn xdg(&self, name: &str) -> Option<PathBuf> {
        let path = self.var(name).map(PathBuf::from).filter(|path| path.is_absolute())?;
        let nearest = path.ancestors().find_map(|dir| std::fs::metadata(dir).ok());
        let ours = !self.is_root() || nearest.is_some_and(|found| found.uid() == 0);
        ours.then_some(path)
    }

    fn home_for(&self, what: &'static str) -> Result<&Path, PathsError> {
        self.home().ok_or(PathsError::NoHome { uid: self.euid, what })
    }
}

/// The first of `roots` in which a directory of ours can be made. A foreign one in our place is an error, not a
/// reason to go on: every command must find the same directory.
fn fallback_runtime_dir(roots: &[&Path], euid: u32) -> Result<PathBuf, PathsError> {
    let mut failure = None;
    for root in roots {
        let path = root.join(format!("stasis-{euid}"));
        match private_dir(&path, euid) {
            Ok(()) => return Ok(path),
            Err(error @ PathsError::Create { .. }) => failure = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(failure.unwrap_or(PathsError::NoHome { uid: euid, what: "runtime directory" }))
}

fn private_dir(path: &Path, euid: u32) -> Result<(), PathsError> {
    create_private(path, false)?;
    check_private(path, euid)
}

fn create_private(path: &Path, parents: bool) -> Result<(), PathsError> {
    match DirBuilder::new().mode(0o700).recursive(parents).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(PathsError::Create { path: path.to_owned(), source }),
    }
}

/// Whether `path` is a real directory (no link), owned by `euid` and closed to all others.
fn check_private(path: &Path, euid: u32) -> Result<(), PathsError> {
    let found: Metadata = std::fs::symlink_metadata(path)
        .map_err(|source| PathsError::Create { path: path.to_owned(), source })?;
    let mode = found.permissions().mode() & 0o7777;
    if !found.is_dir() {
        Err(PathsError::NotDirectory { path: path.to_owned() })
    } else if found.uid() != euid {
        let (owner, us) = (user_name(Uid::from_raw(found.uid())), user_name(Uid::from_raw(euid)));
        Err(PathsError::Foreign { path: path.to_owned(), owner, us })
    } else if mode & 0o777 != 0o700 {
        Err(PathsError::Open { path: path.to_owned(), mode: mode & 0o777 })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn context(vars: &[(&str, &str)]) -> Context {
        Context {
            euid: nix::unistd::geteuid().as_raw(),
            uid: nix::unistd::getuid().as_raw(),
            home: Some(PathBuf::from("/home/u")).into(),
            env: vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            exe: PathBuf::from("/usr/bin/stasis"),
            system_dir: PathBuf::from("/etc/stasis"),
        }
    }

    #[test]
    fn data_root_prefers_ours_then_xdg_then_home() {
        let root = |vars: &[(&str, &str)]| context(vars).data_root().map_err(|e| e.to_string());
        let mut user = context(&[("XDG_DATA_HOME", "/x")]);
        user.euid = 1000;
        assert_eq!(root(&[("STASIS_DATA_DIR", "/d"), ("XDG_DATA_HOME", "/x")]), Ok(PathBuf::from("/d")));
        assert_eq!(user.data_root().unwrap(), PathBuf::from("/x/stasis"));
        assert_eq!(root(&[("XDG_DATA_HOME", "rel")]), Ok(PathBuf::from("/home/u/.local/share/stasis")));
        assert_eq!(
            root(&[("STASIS_DATA_DIR", "rel")]),
            Err("STASIS_DATA_DIR is set to \"rel\", which is not an absolute path".to_owned())
        );
    }

    #[test]
    fn without_a_home_the_error_says_what_has_no_place() {
        let mut context = context(&[]);
        (context.home, context.euid) = (None.into(), 77);
        let error = context.data_root().unwrap_err();
        insta::assert_snapshot!(error, @"no home directory is known for uid 77, so there is no place for the checkpoints");
    }

    #[test]
    fn root_ignores_a_base_directory_inside_another_users() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("not/yet");
        let mut context = context(&[("XDG_DATA_HOME", inside.to_str().unwrap())]);
        context.euid = 0;
        if nix::unistd::geteuid().is_root() {
            // Given away, so that this test says something as root too.
            std::os::unix::fs::chown(dir.path(), Some(4242), None).unwrap();
        }
        assert_eq!(context.data_root().unwrap(), PathBuf::from("/home/u/.local/share/stasis"));
        context.euid = 4242;
        assert_eq!(context.data_root().unwrap(), inside.join("stasis"));
    }

    #[test]
    fn runtime_dir_is_created_private_and_xdg_only_when_private() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let wanted = dir.path().join("a/b");
        let made = context(&[("STASIS_RUNTIME_DIR", wanted.to_str().unwrap())]).runtime_dir().unwrap();
        assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
        let with_xdg = context(&[("XDG_RUNTIME_DIR", dir.path().to_str().unwrap())]);
        assert_eq!(with_xdg.runtime_dir().unwrap(), dir.path().join("stasis"));
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(with_xdg.private_xdg_runtime_dir(), None);
    }

    #[test]
    fn a_foreign_open_or_linked_runtime_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let me = nix::unistd::geteuid().as_raw();
        let show = |e: PathsError| e.to_string().replace(dir.path().to_str().unwrap(), "DIR");

        let made = fallback_runtime_dir(&[&dir.path().join("missing"), dir.path()], me).unwrap();
        assert_eq!(made, dir.path().join(format!("stasis-{me}")));

        let foreign = dir.path().join("stasis-54321");
        std::fs::create_dir(&foreign).unwrap();
        let error = fallback_runtime_dir(&[dir.path(), Path::new("/tmp")], 54321).unwrap_err();
        let text = show(error);
        assert!(text.starts_with("the runtime directory DIR/stasis-54321 belongs to "), "{text}");
        assert!(text.ends_with("not to uid 54321"), "{text}");

        std::fs::set_permissions(&made, PermissionsExt::from_mode(0o750)).unwrap();
        let error = private_dir(&made, me).unwrap_err();
        assert_eq!(error.help(), Some(format!("chmod 0700 {}", made.display())));

        let link = dir.path().join("link");
        symlink(dir.path(), &link).unwrap();
        insta::assert_snapshot!(show(private_dir(&link, me).unwrap_err()), @"DIR/link is to be the runtime directory, but it is not a directory");
    }
}
