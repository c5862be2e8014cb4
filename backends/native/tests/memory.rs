//! Where memory is limited a copy might end the application: it is saved while it stands still then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
mod engine;

use engine::{dump, inside, report, soon, start};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A memory cgroup of its own with this limit, by either version; removed when this is dropped.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Result<Self, String> {
        // The number of a namespace is given again.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let name = format!("stasis-native-{}", now.as_nanos());
        for (root, file) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let directory = Path::new(root).join(&name);
            if fs::create_dir(&directory).is_err() {
                continue;
            }
            let group = Self(directory);
            if put(&group.0.join(file), limit).is_ok() {
                return Ok(group);
            }
        }
        Err("no memory cgroup can be made here".to_owned())
    }

    fn enter(&self, pid: u32) {
        put(&self.0.join("cgroup.procs"), pid).unwrap();
    }
}

/// In a directory that is no cgroup there is no such file, and none is made.
fn put(file: &Path, value: impl std::fmt::Display) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.to_string().as_bytes())
}

/// Leaves it, and removes it. Who was killed in it may take a moment to be gone.
impl Drop for Group {
    fn drop(&mut self) {
        let _ = put(&self.0.parent().unwrap().join("cgroup.procs"), std::process::id());
        let until = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn no_copy_is_made_that_may_not_fit() {
    inside("no_copy_is_made_that_may_not_fit", limit_inside);
}

/// It writes to all of its memory again and again: every page of a copy would be one more page.
fn limit_inside() {
    let script = "import mmap, os, time\n\
                  m = mmap.mmap(-1, 100 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
                  data = bytes(range(256)) * (1 << 12)\n\
                  print('begins', flush=True)\n\
                  while not os.path.exists('go'): time.sleep(0.01)\n\
                  while True:\n\
                  \x20   for i in range(100): m[i << 20:(i + 1) << 20] = data\n\
                  \x20   print('round', flush=True)\n";
    let here = std::env::current_dir().unwrap();
    fs::write(here.join("writes.py"), script).unwrap();
    let _ = fs::remove_file(here.join("go"));
    let output = here.join("out");
    let said = |word: &str| fs::read_to_string(&output).unwrap_or_default().matches(word).count();
    // First, so that it goes last.
    let group = Group::new(180 << 20);
    let mut subject = start(Path::new("/usr/bin/python3"), &["writes.py"], &output);
    soon("it begins", || said("begins") > 0);
    if let Ok(group) = &group {
        // With the engine, which sees the limit then.
        group.enter(subject.pid());
        group.enter(std::process::id());
    }
    // Not before: what is charged to another group stays there.
    fs::write(here.join("go"), "").unwrap();
    soon("its memory is there", || said("round") > 1);
    let image = here.join("image");
    // Nobody tells the engine how much room there is: the kernel ends the copy when both are too much, unless it was
    // through before the application had come so far.
    let mut tried = (0..10).map(|_| report(&dump(subject.pid(), &image, &[])));
    let copied = match &group {
        Ok(_) => tried.find(|report| report["mode"] == "plain").expect("every copy was through in time"),
        Err(_) => tried.next().unwrap(),
    };
    let told = report(&dump(subject.pid(), &image, &["--room", "20000000"]));
    let before = said("round");
    soon("it runs on", || {
        assert!(subject.running(), "the application was killed");
        said("round") > before + 1
    });
    let why = told["why_plain"].as_str().unwrap();
    assert!(why.starts_with("the job's memory limit leaves "), "{told}");
    if let Err(why) = &group {
        assert_eq!(copied["mode"], "fork", "{copied}");
        println!("without a limit of the kernel's: {why}");
    }
}
