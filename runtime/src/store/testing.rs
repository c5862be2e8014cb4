//! What the tests of the store share.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::{
    BackendEntry, BackendStamp, Checkpoint, Committed, Document, Holder, HostEntry, ImageIdentity, LiveLock,
    ManifestDraft, Result, Staging, Store, StoreError,
};

/// A store in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) store: Store,
}

/// A checkpoint as the process that runs it has it.
pub(crate) struct Running {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) live: LiveLock,
    pub(crate) staging: Staging,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        Self { temp, store }
    }

    pub(crate) fn checkpoint(&self, name: &str) -> Checkpoint {
        self.store.create(&name.parse().unwrap(), None).unwrap()
    }

    pub(crate) fn running(&self, name: &str) -> Running {
        let checkpoint = self.checkpoint(name);
        let live = checkpoint.lock_live(&holder(name)).unwrap();
        let staging = checkpoint.staging(&live).unwrap();
        Running { checkpoint, live, staging }
    }

    /// The message without what differs from run to run.
    pub(crate) fn plain(&self, error: &StoreError) -> String {
        error.to_string().replace(self.temp.path().to_str().unwrap(), "/tmp")
    }
}

impl Running {
    pub(crate) fn write(&self, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = self.staging.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    pub(crate) fn commit(&self, files: Option<&[PathBuf]>) -> Result<Committed> {
        self.checkpoint.commit(&self.live, &self.staging, files, None, draft("one"), &mut |_, _| {})
    }

    /// Writes and commits; returns the number.
    pub(crate) fn save(&self, files: &[(&str, &str)]) -> u64 {
        self.write(files);
        self.commit(None).unwrap().generation.number()
    }
}

/// A thread that cannot be had: nothing has room for its stack.
pub(crate) fn no_thread() -> std::thread::Builder {
    std::thread::Builder::new().stack_size(1 << 52)
}

/// Runs `work` where `dir` is a tmpfs of `size` that nobody else sees.
pub(crate) fn with_tmpfs(dir: &Path, size: &str, work: impl FnOnce() + Send) {
    if !geteuid().is_root() {
        println!("skipped: only root can mount a small file system");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Its own CLONE_FS too, without which a thread gets no mount namespace.
            if let Err(error) = unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS) {
                println!("skipped: no mount namespace here: {error}");
                return;
            }
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let options = format!("size={size},mode=0700");
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
            work();
        });
        thread.join().unwrap();
    });
}

pub(crate) fn message<T>(fixture: &Fixture, result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => fixture.plain(&error),
    }
}

pub(crate) fn holder(instance: &str) -> Holder {
    Holder { pid: 42, since: "2026-01-02T03:04:05Z".into(), ..Holder::here(instance) }
}

pub(crate) fn backend(name: &str) -> BackendStamp {
    BackendStamp { name: name.parse().unwrap(), version: Some("1.2.3".into()) }
}

pub(crate) fn image(path: &str, fingerprint: &str, digest: Option<&str>) -> ImageIdentity {
    ImageIdentity {
        kind: "directory".into(),
        path: path.into(),
        fingerprint: fingerprint.into(),
        digest: digest.map(str::to_owned),
        uuid: None,
    }
}

pub(crate) fn draft(backend: &str) -> ManifestDraft {
    ManifestDraft {
        stasis_version: "0.1.0".into(),
        backend: BackendEntry {
            name: backend.parse().unwrap(),
            version: "1.2.3".into(),
            engine: "engine".into(),
            engine_version: "4.0.0".into(),
        },
        image: image("/img", "f1", None),
        host: HostEntry {
            hostname: "here".into(),
            kernel: "6.1.0".into(),
            arch: "x86_64".into(),
            cpu_features: vec!["avx2".into()],
            uid: 1000,
            gid: 1000,
        },
        id_map: "keep".into(),
        spec: Document::of(&serde_json::json!({"mounts": []})).unwrap(),
        command: vec!["/bin/app".into()],
        engine_state: [("key".to_owned(), "value".to_owned())].into(),
        listening: Vec::new(),
        processes: Vec::new(),
        clocks: None,
        report: serde_json::Map::new(),
    }
}
