//! The process outside that owns a container: its record, its streams, its captures and its end. For a
//! foreground command it is that command's own process. It never loads a plugin: workers do.

pub mod ask;
pub mod begin;
pub mod capture;
pub mod client;
pub mod control;
pub mod direct;
pub mod findings;
pub mod follow;
pub mod foreground;
pub mod live;
pub mod order;
pub mod place;
mod ready;
pub mod restart;
pub mod serve;
pub mod services;
pub mod triggers;
mod verify;

use crate::error::{Error, Result};
use crate::image::attach::Held;
use crate::monitor::control::Reply;
use crate::monitor::order::MonitorOrder;
use crate::sys::channel::Channel;
use crate::sys::fd;
use std::os::fd::AsFd;

/// The role word with which our binary becomes the monitor of an instance.
pub const ROLE: &str = "__monitor";
/// Where that monitor finds its channel to the command, and the plugin's library.
pub const CHANNEL: i32 = 3;
/// See [`CHANNEL`].
pub const LIBRARY: i32 = 4;

/// Told what happens on the way.
pub trait Teller: Sync {
    /// Something for the user to know.
    fn note(&self, text: &str);
    /// Something that was done as asked.
    fn done(&self, text: &str) {
        self.note(text);
    }
    /// How far a long step is.
    fn progress(&self, done: u64, total: u64, doing: &str);
}

/// Over a channel to a command.
pub struct ChannelTeller<'a>(pub &'a Channel);

impl Teller for ChannelTeller<'_> {
    fn note(&self, text: &str) {
        // A command that went away misses nothing.
        let _ = self.0.send(&Reply::Note(text.to_owned()));
    }

    fn progress(&self, done: u64, total: u64, doing: &str) {
        let _ = self.0.send(&Reply::Progress { done, total, doing: doing.to_owned() });
    }
}

/// The monitor of an instance, started by `instance start`. Returns an exit code.
pub fn main() -> i32 {
    let Ok(channel) = fd::inherited(CHANNEL) else { return 255 };
    let channel = Channel::from(channel);
    let library = fd::inherited(LIBRARY).ok();
    fd::close_from(LIBRARY + 1);
    leave_streams();
    match run(&channel, library) {
        Ok(code) => code,
        Err(error) => {
            // The command may have been interrupted; then there is nobody to tell.
            let _ = channel.send(&Reply::Failed(error));
            255
        }
    }
}

/// The command's streams belong to whoever waits for their end.
fn leave_streams() {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        for number in 0..3 {
            // A stream that cannot be replaced only keeps somebody waiting.
            let _ = fd::place(null.as_fd(), number);
        }
    }
}

fn run(channel: &Channel, library: Option<std::os::fd::OwnedFd>) -> Result<i32> {
    let (order, fds): (MonitorOrder, _) = match channel.recv() {
        Ok(Some(received)) => received,
        Ok(None) => return Err(Error::new("the command that started the monitor is gone")),
        Err(e) => return Err(Error::new("the monitor cannot read its order").because(&e)),
    };
    // Until this process ends nobody removes an image of the cache that runs here.
    let directory = &order.spec.root.directory;
    let _image = crate::image::oci::cache::hold(directory).or_else(|| crate::image::attach::hold(directory));
    let signals = serve::signals(false)?;
    let begun = begin::begin(&order, library, Held::from_descriptors(fds), &ChannelTeller(channel))?;
    let started = begun.started();
    if channel.send(&Reply::Started(started)).is_err() {
        begun.live.end(Some("the command that started it was interrupted"));
    }
    // From here on the instance lives whether or not anybody listens.
    channel.shutdown();
    Ok(serve::serve(begun, &signals, None).code())
}
