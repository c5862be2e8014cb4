//! The monitor's life after the start: serves commands, passes signals on, and settles everything at
//! the end.

use crate::error::{Error, Result};
use crate::launch::protocol::{Ending, FromInit, Target, ToInit};
use crate::monitor::begin::Begun;
use crate::monitor::control::{Reply, Request};
use crate::monitor::foreground::Foreground;
use crate::monitor::later::Later;
use crate::monitor::live::{Live, Phase, lock};
use crate::monitor::place;
use crate::monitor::services::Around;
use crate::monitor::{ChannelTeller, capture, triggers};
use crate::sys::channel::Channel;
use crate::sys::signal;
use crate::worker::{Worker, engine};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use stasis_plugin_api::request::{StopRequest, Subject};
use stasis_plugin_api::survey::Survey;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the end waits for commands that are connected.
const FAREWELL: Duration = Duration::from_secs(5);

/// Blocks the signals that the monitor handles, in this thread and all that come from it. Before any
/// other thread exists.
///
/// # Errors
/// What the kernel says.
pub fn signals(foreground: bool) -> Result<SignalFd> {
    let mut wanted = vec![Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    if foreground {
        wanted.extend([Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGALRM]);
    }
    signal::ignore(Signal::SIGPIPE);
    signal::descriptor(&wanted)
        .map_err(|e| Error::new("the monitor cannot watch its signals").because(e.desc()))
}

/// How a container's life ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of the application.
    pub ending: Ending,
    /// When it was not the application itself.
    pub reason: Option<String>,
    /// Overrides the application's code.
    pub exit_code: Option<u8>,
    /// What was brought back was not what had been saved.
    pub damaged: bool,
}

impl Outcome {
    /// For the command that was in the foreground.
    pub fn code(&self) -> i32 {
        self.exit_code.map_or_else(|| self.ending.code(), i32::from)
    }
}

/// Serves until the end.
pub fn serve(mut begun: Begun, signals: &SignalFd, foreground: Option<&mut Foreground>) -> Outcome {
    let live = Arc::clone(&begun.live);
    let digest = triggers::digest(&live);
    let interval = live.engine.as_ref().and_then(|e| e.order.interval).map(|s| triggers::intervals(&live, s));
    let listener = begun.listener.try_clone();
    if let Ok(listener) = listener {
        let live = Arc::clone(&live);
        // Ends with the process: nobody waits for it.
        std::thread::spawn(move || accept(&live, &listener));
    }
    let later = Later::begin(&live, begun.worker.take(), begun.comparison.take());
    wait_for_end(&mut begun, signals, foreground);
    later.end_worker();
    let outcome = settle(begun);
    for thread in [digest, interval].into_iter().flatten() {
        let _ = thread.join();
    }
    // Commands that wait for the end get their answers. One that never asks is not waited for long.
    live.wait(Some(Instant::now() + FAREWELL), |s| s.conversations == 0);
    outcome
}

fn wait_for_end(begun: &mut Begun, signals: &SignalFd, mut foreground: Option<&mut Foreground>) {
    while begun.live.state().phase < Phase::Ending {
        let mut watched = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(begun.wake.as_fd(), PollFlags::POLLIN),
        ];
        if let Err(e) = poll(&mut watched, PollTimeout::NONE)
            && e != nix::errno::Errno::EINTR
        {
            begun.live.end(Some("the monitor could not wait"));
            return;
        }
        let mut bytes = [0; 64];
        // Non-blocking: only takes the wake-up away.
        let _ = begun.wake.read(&mut bytes);
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match &mut foreground {
                Some(foreground) => foreground.signal(&begun.live, number, info.ssi_code),
                // An instance outlives the terminal and the batch job's TERM to everybody: it is ended by `stop`.
                None => tracing::debug!(number, "signal left alone"),
            }
        }
    }
}

/// Ends everything inside and settles record, locks and directories.
fn settle(begun: Begun) -> Outcome {
    let live = begun.live;
    // A capture that has begun is completed, or fails with the application.
    let capturing = live.engine.as_ref().map(|e| lock(&e.capturing));
    drop(capturing);
    // An init that is gone needs no word.
    let _ = live.tell_init(&ToInit::End, &[]);
    let gone = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(begun.container.pid), None);
    tracing::debug!(?gone, "init");
    let _ = begun.ear.join();
    // An end of its own is told when it is known that it was the application that was saved. Whoever asked for the end
    // need not wait for that.
    live.wait(None, |s| !s.verifying || s.requested);
    let state = live.state();
    let ending = state.ending.unwrap_or(Ending::Signal(libc::SIGKILL));
    let damaged = state.damaged;
    let outcome = Outcome { ending, reason: state.reason.clone(), exit_code: state.exit_code, damaged };
    let requested = state.requested && !damaged;
    drop(state);
    if let Some(engine) = &live.engine {
        // Locks are free before anybody hears of the end: the next start may follow at once.
        let _ = engine.staging.remove();
        drop(lock(&engine.lock).take());
    }
    drop(lock(&live.held).take());
    place::clear(&begun.runtime);
    let settled = match (lock(&live.claim).take(), &outcome.reason) {
        (None, _) => Ok(()),
        (Some(claim), _) if begun.foreground => claim.discard(),
        (Some(claim), _) if requested => claim.stop(outcome.ending),
        (Some(mut claim), Some(reason)) => claim.fail(reason),
        (Some(mut claim), None) => claim.finish(outcome.ending),
    };
    if let Err(error) = settled {
        tracing::warn!(%error, "the instance's record could not be settled");
    }
    live.change(|s| s.phase = Phase::Gone);
    outcome
}

fn accept(live: &Arc<Live>, listener: &UnixListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let live = Arc::clone(live);
        live.change(|s| s.conversations += 1);
        std::thread::spawn(move || {
            let channel = Channel::new(stream);
            if permitted(&channel)
                && let Err(error) = converse(&live, &channel)
            {
                // A command that went away misses nothing.
                let _ = channel.send(&Reply::Failed(error));
            }
            live.change(|s| s.conversations -= 1);
        });
    }
}

/// The socket's mode keeps others out already; root is let in.
fn permitted(channel: &Channel) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    channel.peer().is_ok_and(|(uid, _)| uid == us || uid == 0)
}

fn converse(live: &Arc<Live>, channel: &Channel) -> Result<()> {
    let (request, fds) = match channel.recv::<Request>() {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(e) => return Err(Error::new("the monitor does not understand this command").because(&e)),
    };
    let reply = match request {
        Request::Capture { stop, accept_loss } => {
            let captured = capture::capture(live, stop, &accept_loss, &ChannelTeller(channel))?;
            if stop {
                live.wait(None, |s| s.phase == Phase::Gone);
            }
            Reply::Captured(captured)
        }
        Request::Stop { signal, timeout_ms } => {
            stop(live, signal, Duration::from_millis(timeout_ms), channel)?
        }
        Request::Exec { argv, env, cwd, size } => {
            return exec(live, channel, &fds, |id| ToInit::Exec { id, argv, env, cwd, size });
        }
        Request::Signal(_) => return Err(Error::new("there is no command on this connection to signal")),
        Request::Examine => examine(live, channel)?,
    };
    // A command that went away misses nothing.
    let _ = channel.send(&reply);
    Ok(())
}

fn stop(live: &Arc<Live>, signal: i32, timeout: Duration, channel: &Channel) -> Result<Reply> {
    // A signal that arrives while the engine saves would be saved along with the application.
    let capturing = live.engine.as_ref().map(|e| lock(&e.capturing));
    live.change(|s| s.requested = true);
    live.signal(Target::Everybody, signal);
    // Without an application there is nobody to heed it.
    let idle = live.application.load(std::sync::atomic::Ordering::Relaxed) == 0;
    if idle {
        live.change(|s| {
            s.ending.get_or_insert(Ending::Exit(0));
            s.phase = s.phase.max(Phase::Ending);
        });
    }
    let heeded = live.wait(Some(Instant::now() + timeout), |s| s.phase >= Phase::Ending);
    if !heeded {
        if let Err(error) = let_go(live, channel) {
            tracing::debug!(%error, "the engine's own stop failed");
        }
        live.change(|s| {
            s.ending.get_or_insert(Ending::Signal(libc::SIGKILL));
            s.phase = s.phase.max(Phase::Ending);
        });
    }
    drop(capturing);
    live.wait(None, |s| s.phase == Phase::Gone);
    let ending = live.state().ending.unwrap_or(Ending::Signal(libc::SIGKILL));
    Ok(Reply::Stopped { ending, killed: !heeded })
}

fn let_go(live: &Live, channel: &Channel) -> Result<()> {
    let Some(wanted) = &live.engine else { return Ok(()) };
    let teller = ChannelTeller(channel);
    let around = Around { live, teller: &teller, doing: "stopping" };
    let mut worker = Worker::spawn(&wanted.plugin, &live.scratch)?;
    let mut memory = lock(&wanted.memory).clone();
    let request = StopRequest { instance: live.view(Survey::default()) };
    engine::stop(&mut worker, &request, &mut memory, &around)?;
    Ok(())
}

fn examine(live: &Live, channel: &Channel) -> Result<Reply> {
    let Some(wanted) = &live.engine else {
        return Err(Error::new(format!("instance \"{}\" was not started with checkpointing", live.name)));
    };
    let teller = ChannelTeller(channel);
    let around = Around { live, teller: &teller, doing: "looking" };
    let mut worker = Worker::spawn(&wanted.plugin, &live.scratch)?;
    let mut memory = lock(&wanted.memory).clone();
    let view = live.view(live.survey()?);
    let status = engine::status(&mut worker, &view, &mut memory, &around).ok();
    let findings = engine::examine(&mut worker, &Subject::Instance { instance: view }, &mut memory, &around)?;
    Ok(Reply::Examined { status, findings })
}

/// A command beside the application: starts it, then passes signals one way and its end the other.
fn exec(
    live: &Arc<Live>,
    channel: &Channel,
    fds: &[OwnedFd],
    order: impl FnOnce(u64) -> ToInit,
) -> Result<()> {
    let (id, answers) = live.expect();
    let handed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    live.tell_init(&order(id), &handed)?;
    let ears = channel.try_clone().map_err(|e| Error::new("cannot hear the command").because(&e))?;
    let for_signals = Arc::clone(live);
    std::thread::spawn(move || {
        while let Ok(Some((Request::Signal(signal), _))) = ears.recv::<Request>() {
            for_signals.signal(Target::Exec(id), signal);
        }
        // The command at the terminal is gone; what it started goes as well.
        for_signals.signal(Target::Exec(id), libc::SIGHUP);
    });
    let outcome = loop {
        match answers.recv() {
            Ok((FromInit::ExecStarted { .. }, fds)) => {
                let handed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                // Without a listener the thread above ends the command.
                let _ = channel.send_with(&Reply::ExecStarted, &handed);
            }
            Ok((FromInit::ExecEnded { ending, .. }, _)) => break ending,
            Ok(_) => {}
            Err(_) => break Err(Error::new(format!("instance \"{}\" ended", live.name))),
        }
    };
    live.forget(id);
    let _ = channel.send(&Reply::ExecEnded(outcome?));
    channel.shutdown();
    Ok(())
}
