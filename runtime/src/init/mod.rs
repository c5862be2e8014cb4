//! Pid 1 of a container: stands between the monitor and everything that runs inside. It reaps, starts
//! the engine's helpers and the application, runs commands on request, and ends with everything when
//! the monitor is gone. It never loads a plugin and has one thread.

pub mod ahead;
pub mod app;
pub mod children;
pub mod clocks;
pub mod early;
pub mod helpers;
pub mod jobs;
pub mod serve;
pub mod survey;
pub mod tmpfs;

use crate::error::Error;
use crate::init::ahead::{Ahead, Begun};
use crate::init::early::Early;
use crate::launch::protocol::{FromInit, Ground};
use crate::launch::start::INIT_CHANNEL;
use crate::launch::{hear, root};
use crate::sys::channel::Channel;
use crate::sys::{fd, process, signal};
use nix::sys::signal::Signal;
use std::os::fd::{AsFd, OwnedFd};

/// The role word with which our binary becomes an init.
pub const ROLE: &str = "__init";

/// Runs the container. Returns an exit code.
pub fn main() -> i32 {
    let Ok(channel) = fd::inherited(INIT_CHANNEL) else {
        // Started by hand: there is nobody to tell.
        return 255;
    };
    let image = fd::inherited(INIT_CHANNEL + 1).ok();
    fd::close_from(INIT_CHANNEL + 2);
    let channel = Channel::from(channel);
    match run(&channel, image) {
        Ok(()) => 0,
        Err(error) => {
            // A monitor that is gone needs no answer.
            let _ = channel.send(&FromInit::Failed(error));
            255
        }
    }
}

fn run(channel: &Channel, image: Option<OwnedFd>) -> crate::error::Result<()> {
    // It ends by killing everybody that it sees, which has to be its own pid namespace.
    if std::process::id() != 1 {
        return Err(Error::new("init is not pid 1 of a pid namespace"));
    }
    for ignored in [Signal::SIGPIPE, Signal::SIGTTOU, Signal::SIGTTIN] {
        signal::ignore(ignored);
    }
    let lay = |ground: &Ground, look: &mut dyn FnMut()| {
        // Whatever else was open at this number is nobody's business here.
        let image = image.filter(|_| ground.root.is_mounted());
        root::lay(ground, image.as_ref().map(AsFd::as_fd), look)
    };
    let mut ahead = Ahead::default();
    let told = hear::told(channel, lay, |said| ahead.hear(said));
    let told = told.map_err(|e| Error::new("init cannot read its order").because(&e))?;
    let Some((laid, (order, begun))) = told else { return Ok(()) };
    let (laid, Begun { clocks, early }) = (laid?, begun?);
    let mut loaded = None;
    let made = laid.complete(&order, || loaded = early.and_then(Early::loaded))?;
    // From here on nothing that the application could do reaches into this process.
    process::set_dumpable(false).map_err(|e| Error::new("init cannot protect itself").because(e.desc()))?;
    match serve::Init::new(channel, order, made, (clocks, loaded))? {
        Some(mut init) => init.run(),
        None => Ok(()),
    }
}
