//! The process outside that owns a container: its record, its streams, its captures and its end. For a
//! foreground command it is that command's own process. It never loads a plugin: workers do.

pub mod ask;
pub mod begin;
pub mod capture;
pub mod client;
pub mod control;
pub mod direct;
mod early;
pub mod findings;
pub mod follow;
pub mod foreground;
mod later;
pub mod live;
pub mod order;
pub mod place;
mod prepared;
mod ready;
pub mod restart;
pub mod serve;
pub mod services;
pub mod triggers;
mod verify;

use crate::error::Result;
use crate::image::attach::Held;
use crate::monitor::control::Reply;
use crate::monitor::order::MonitorOrder;
use crate::sys::channel::Channel;
use crate::sys::{fd, signal};
use std::os::fd::{AsFd, OwnedFd};

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

/// The monitor of an instance, in a process that `instance start` forked. Whatever that one had open besides what is
/// handed over is closed, and must not be used any more: this process ends when this returns, with the code returned.
pub fn main(channel: &Channel, order: &MonitorOrder, library: Option<OwnedFd>, image: Vec<OwnedFd>) -> i32 {
    let handed = image.iter().chain(&library).map(AsFd::as_fd);
    fd::close_others(3, handed.chain([channel.as_fd()]));
    leave_streams();
    signal::reset(&[]);
    match run(channel, order, library, Held::from_descriptors(image)) {
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

fn run(
    channel: &Channel,
    order: &MonitorOrder,
    library: Option<OwnedFd>,
    image: Option<Held>,
) -> Result<i32> {
    // Until this process ends nobody removes an image of the cache that runs here.
    let directory = &order.spec.root.directory;
    let _image = crate::image::oci::cache::hold(directory).or_else(|| crate::image::attach::hold(directory));
    let signals = serve::signals(false)?;
    let begun = begin::begin(order, library, image, &ChannelTeller(channel))?;
    let started = begun.started();
    if channel.send(&Reply::Started(started)).is_err() {
        begun.live.end(Some("the command that started it was interrupted"));
    }
    // From here on the instance lives whether or not anybody listens.
    channel.shutdown();
    Ok(serve::serve(begun, &signals, None).code())
}
