//! Shows what an application writes into its log files as it comes.

use crate::monitor::live::{Live, Phase};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a quiet log is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// Copies a log to one of our own streams until the container is gone and everything was copied.
pub fn follow(live: &Arc<Live>, log: &Path, mut to: impl Write + Send + 'static) -> Option<JoinHandle<()>> {
    let mut file = File::open(log).ok()?;
    let live = Arc::clone(live);
    Some(std::thread::spawn(move || {
        let mut part = vec![0; 64 << 10];
        loop {
            // Asked before reading: what was written before the end is read after it.
            let gone = live.state().phase == Phase::Gone;
            let mut any = false;
            while let Ok(n @ 1..) = file.read(&mut part) {
                any = true;
                if to.write_all(&part[..n]).and_then(|()| to.flush()).is_err() {
                    // The reader went away, as of a pipe into `head`.
                    return;
                }
            }
            if gone {
                return;
            }
            if !any {
                std::thread::sleep(PAUSE);
            }
        }
    }))
}
