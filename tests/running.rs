//! A command under test: started, fed, signalled, waited for with a deadline, and ended in any case.

use std::error::Error;
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// No command of ours takes this long; one that does hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What a command did.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Its exit code, 128 + n where a signal ended it.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A command that has been started.
#[derive(Debug)]
pub(crate) struct Running {
    shown: String,
    child: Child,
    out: Reader,
    err: Reader,
}

impl Running {
    /// Starts a command with its output in our hands. Standard input is empty unless `fed`.
    pub(crate) fn start(mut command: Command, fed: bool) -> Outcome<Self> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let shown = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        command.stdin(if fed { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|why| format!("cannot start {shown}: {why}"))?;
        let (out, err) = (Reader::of(child.stdout.take()), Reader::of(child.stderr.take()));
        Ok(Self { shown, child, out, err })
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        kill(self.pid(), signal)
    }

    /// Writes to the standard input; drop what is returned to close it.
    pub(crate) fn feed(&mut self, text: &str) -> Outcome<ChildStdin> {
        let mut stdin = self.child.stdin.take().ok_or("the command was started without an input")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin)
    }

    /// What was written to the standard output so far.
    pub(crate) fn so_far(&self) -> String {
        self.out.so_far()
    }

    /// What was written to the standard error so far.
    pub(crate) fn complained(&self) -> String {
        self.err.so_far()
    }

    /// Whether it has closed its standard output, as it does at its end.
    pub(crate) fn ended(&self) -> bool {
        self.out.ended()
    }

    /// Waits until the standard output holds `text`.
    pub(crate) fn wait_for(&self, text: &str) -> Outcome<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.out.so_far().contains(text) {
            if Instant::now() > deadline || (self.out.ended() && !self.out.so_far().contains(text)) {
                let (out, err) = (self.out.so_far(), self.err.so_far());
                return Err(format!("{} never said {text:?}: {out:?}, {err:?}", self.shown).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What it did. Its output must end with it: a process left behind that holds a pipe makes `$(stasis ...)` hang.
    pub(crate) fn wait(mut self) -> Outcome<Run> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    let (out, err) = (self.out.so_far(), self.err.so_far());
                    return Err(format!("{} hangs: {out:?}, {err:?}", self.shown).into());
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        let shown = &self.shown;
        let (out, err) = (self.out.to_the_end(shown)?, self.err.to_the_end(shown)?);
        Ok(Run { code, out, err })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Reads a pipe in a thread of its own.
#[derive(Debug)]
struct Reader {
    text: Arc<Mutex<Vec<u8>>>,
    end: Receiver<()>,
}

impl Reader {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let (ends, end) = channel();
        let shared = Arc::clone(&text);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut pipe = pipe;
            while let Some(Ok(count @ 1..)) = pipe.as_mut().map(|pipe| pipe.read(&mut buffer)) {
                let read = buffer.get(..count).unwrap_or_default();
                shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(read);
            }
            drop(ends);
        });
        Self { text, end }
    }

    fn so_far(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }

    fn ended(&self) -> bool {
        matches!(self.end.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected))
    }

    fn to_the_end(&self, shown: &str) -> Outcome<String> {
        match self.end.recv_timeout(Duration::from_secs(5)) {
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("{shown} has ended, but something still holds its output: {:?}", self.so_far())
                    .into())
            }
            _ => Ok(self.so_far()),
        }
    }
}
