//! Records of running containers: who runs what, and whether it still does. A container is alive while its
//! monitor holds the lock in its directory, so nothing here reads another process's `/proc` or trusts a pid.
//!
//! Only this module touches `<data root>/instances`. It signals nobody and talks to no monitor.

mod claim;
mod dir;
mod error;
mod host;
mod pattern;
mod record;
#[cfg(test)]
mod tests;

pub use claim::Claim;
pub use error::InstanceError;
pub use host::Host;
pub use record::{Port, Record, State};

use crate::name::InstanceName;
use dir::Dir;
use std::path::{Path, PathBuf};

/// What this module's functions return.
pub type Result<T> = std::result::Result<T, InstanceError>;

const INSTANCES: &str = "instances";
const RECORD: &str = "instance.json";
const LOCK: &str = "lock";
const LOGS: &str = "logs";
/// The files in the directory of logs.
const OUT: &str = "out.log";
const ERR: &str = "err.log";

/// All records of one user.
#[derive(Debug, Clone)]
pub struct Instances {
    root: PathBuf,
    host: Host,
}

/// Whether a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Liveness {
    /// Its monitor lives.
    Alive,
    /// It ended in order.
    Ended,
    /// It is gone, and nobody said how it ended.
    Lost {
        /// In words: `its monitor died`.
        why: String,
    },
    /// It was started on another host, where the same home is in use; nothing is known from here.
    Elsewhere {
        /// Which.
        host: String,
    },
}

/// One entry as found.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its name.
    pub name: InstanceName,
    /// The host under which it is kept.
    pub host: String,
    /// Its directory, for messages and logs.
    pub path: PathBuf,
    /// What its monitor wrote, or what is wrong with that.
    pub record: std::result::Result<Record, String>,
    /// Whether it runs.
    pub liveness: Liveness,
}

impl Seen {
    /// The record.
    ///
    /// # Errors
    /// [`InstanceError::Damaged`].
    pub fn record(&self) -> Result<&Record> {
        self.record.as_ref().map_err(|problem| InstanceError::Damaged {
            path: self.path.join(RECORD),
            problem: problem.clone(),
            name: self.name.clone(),
        })
    }

    /// The file with the container's standard output.
    #[must_use]
    pub fn out_log(&self) -> PathBuf {
        self.path.join(LOGS).join(OUT)
    }

    /// The file with the container's standard error.
    #[must_use]
    pub fn err_log(&self) -> PathBuf {
        self.path.join(LOGS).join(ERR)
    }

    /// Whether it runs here.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.liveness == Liveness::Alive
    }

    /// Whether only its logs are left, because somebody asked for its end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(&self.record, Ok(Record { state: State::Stopped { .. }, .. }))
    }

    /// One line for people: `running`, `exit 3`, `lost: its monitor died`, `on host a`.
    #[must_use]
    pub fn summary(&self) -> String {
        match (&self.liveness, &self.record) {
            (Liveness::Elsewhere { host }, _) => format!("on host {host}"),
            (Liveness::Lost { why }, _) => format!("lost: {why}"),
            (_, Ok(record)) => record.state.to_string(),
            (_, Err(problem)) => format!("damaged: {problem}"),
        }
    }
}

impl Instances {
    /// The records below `data_root`, seen from `host`. Makes nothing until something is claimed.
    #[must_use]
    pub fn open(data_root: &Path, host: Host) -> Self {
        Self { root: data_root.join(INSTANCES), host }
    }

    /// Where the record of `name` lies on this host.
    #[must_use]
    pub fn path(&self, name: &InstanceName) -> PathBuf {
        self.root.join(&self.host.name).join(name.as_str())
    }

    /// Takes `name` for a container that is about to start: locks it, replaces what an ended or lost one left
    /// and records it as starting. The logs are empty.
    ///
    /// # Errors
    /// [`InstanceError::Running`] when it runs already.
    pub fn claim(&self, name: &InstanceName) -> Result<Claim> {
        let parent = Dir::open_or_make(&self.root.join(&self.host.name))?;
        Claim::take(parent, name, &self.host)
    }

    /// Goes on with a claim whose lock was inherited as `lock`: in the monitor, after its exec.
    ///
    /// # Errors
    /// When `lock` is not the lock of `name`.
    pub fn adopt(&self, name: &InstanceName, lock: std::os::fd::OwnedFd) -> Result<Claim> {
        let parent = Dir::open_or_make(&self.root.join(&self.host.name))?;
        Claim::adopt(parent, name, &self.host, lock)
    }

    /// The entry of `name`: this host's, else another's of the same home. One that was stopped counts as gone.
    ///
    /// # Errors
    /// [`InstanceError::NotFound`] with the names of what runs.
    pub fn find(&self, name: &InstanceName) -> Result<Seen> {
        let found = self.find_last(name)?;
        if found.is_stopped() { Err(self.not_found(name.as_str())) } else { Ok(found) }
    }

    /// The entry of `name` as [`Self::find`] has it, else what was stopped last under that name: its logs.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_last(&self, name: &InstanceName) -> Result<Seen> {
        match self.see(&self.host.name, name)? {
            Some(seen) if !seen.is_stopped() => return Ok(seen),
            _ => {}
        }
        let all = self.all()?.into_iter().filter(|seen| seen.name == *name);
        // The same machine under another name is nearer than another one.
        let nearest = all.min_by_key(|seen| {
            let elsewhere = matches!(seen.liveness, Liveness::Elsewhere { .. });
            (seen.is_stopped(), elsewhere)
        });
        nearest.ok_or_else(|| self.not_found(name.as_str()))
    }

    /// The entries of all hosts, by name, without what was stopped.
    ///
    /// # Errors
    /// When a directory cannot be read. A damaged entry is no error.
    pub fn list(&self) -> Result<Vec<Seen>> {
        let mut all = self.all()?;
        all.retain(|seen| !seen.is_stopped());
        Ok(all)
    }

    fn all(&self) -> Result<Vec<Seen>> {
        let mut all = Vec::new();
        let Some(root) = Dir::open(&self.root)? else { return Ok(all) };
        for host in root.names()? {
            let dir = match root.child_if_any(&host) {
                // Something else that somebody put there. Where we write ourselves it has to be told.
                Err(InstanceError::Untrusted { .. }) if host != self.host.name => continue,
                opened => opened?,
            };
            let Some(dir) = dir else { continue };
            for name in dir.names()? {
                let Ok(name) = InstanceName::new(&name) else { continue };
                all.extend(self.look(&dir, &host, name)?);
            }
        }
        all.sort_by(|a, b| (&a.name, &a.host).cmp(&(&b.name, &b.host)));
        Ok(all)
    }

    /// The entries whose names match `*`, `?` and `[a-z]` in `pattern`.
    ///
    /// # Errors
    /// As [`Self::list`]. Nothing that matches is no error.
    pub fn matching(&self, pattern: &str) -> Result<Vec<Seen>> {
        let mut all = self.list()?;
        all.retain(|seen| pattern::matches(pattern, seen.name.as_str()));
        Ok(all)
    }

    /// The error for a name or pattern that nothing bears.
    #[must_use]
    pub fn not_found(&self, asked: &str) -> InstanceError {
        // Without a list the message is shorter, and still true.
        let mut running = self.list().unwrap_or_default();
        running.retain(Seen::is_alive);
        let running = running.into_iter().map(|seen| seen.name).collect();
        InstanceError::NotFound { asked: asked.to_owned(), running }
    }

    /// Removes the record and the logs of one that does not run.
    ///
    /// # Errors
    /// [`InstanceError::Running`], [`InstanceError::Elsewhere`]; when there is something else in its directory.
    pub fn remove(&self, name: &InstanceName) -> Result<()> {
        let seen = self.find(name)?;
        if let Liveness::Elsewhere { host } = seen.liveness {
            return Err(InstanceError::Elsewhere { name: name.clone(), host });
        }
        let Some(parent) = Dir::open(&self.root.join(&seen.host))? else { return Ok(()) };
        claim::remove(&parent, name)
    }

    fn see(&self, host: &str, name: &InstanceName) -> Result<Option<Seen>> {
        match Dir::open(&self.root.join(host))? {
            Some(dir) => self.look(&dir, host, name.clone()),
            None => Ok(None),
        }
    }

    /// `None`: there is nothing, or it is on its way in or out.
    fn look(&self, parent: &Dir, host: &str, name: InstanceName) -> Result<Option<Seen>> {
        let path = parent.path().join(name.as_str());
        let here = host == self.host.name;
        let dir = match parent.child_if_any(name.as_str()) {
            Ok(Some(dir)) => dir,
            Ok(None) => return Ok(None),
            Err(error) => {
                let record = Err(error.to_string());
                let liveness = self.judge(here, host, &record, false);
                return Ok(Some(Seen { name, host: host.to_owned(), path, record, liveness }));
            }
        };
        let mut record = read(&dir, &name);
        // The same machine may have got another name.
        let here = here || matches!(&record, Some(Ok(record)) if self.host.runs_as(&record.boot_id));
        // Another host's locks need not be seen here, so they are not looked at.
        let lock = if here { claim::is_locked(&dir) } else { Ok(false) };
        let locked = *lock.as_ref().unwrap_or(&false);
        if let Err(error) = lock {
            record = Some(Err(error.to_string()));
        } else if here && !locked {
            // Again: it may have ended in order between the two looks.
            record = read(&dir, &name);
        }
        let record = match record {
            Some(record) => record,
            None if locked => Ok(Record::new(&name, &self.host)),
            None => return Ok(None),
        };
        let liveness = self.judge(here, host, &record, locked);
        Ok(Some(Seen { name, host: host.to_owned(), path, record, liveness }))
    }

    fn judge(
        &self,
        here: bool,
        host: &str,
        record: &std::result::Result<Record, String>,
        locked: bool,
    ) -> Liveness {
        let lost = |why: &str| Liveness::Lost { why: why.to_owned() };
        match record {
            _ if !here => Liveness::Elsewhere { host: host.to_owned() },
            // The monitor of one that ended holds the lock for a moment longer.
            Ok(record) if record.state.is_over() => Liveness::Ended,
            _ if locked => Liveness::Alive,
            Ok(record) if record.boot_id != self.host.boot_id => lost("the machine was rebooted"),
            Ok(_) => lost("its monitor died"),
            Err(_) => lost("its record is damaged"),
        }
    }
}

/// The record in an instance's directory; `None` if there is none.
fn read(dir: &Dir, name: &InstanceName) -> Option<std::result::Result<Record, String>> {
    match dir.read(RECORD) {
        Ok(Some(bytes)) => Some(Record::parse(&bytes, name)),
        Ok(None) => None,
        Err(error) => Some(Err(error.to_string())),
    }
}
