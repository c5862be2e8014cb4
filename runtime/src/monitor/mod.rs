//! The process outside that owns a container: its record, its streams, its captures and its end. For a
//! foreground command it is that command's own process. It never loads a plugin: workers do.

pub mod ask;
pub mod begin;
pub mod capture;
pub mod client;
pub mod control;
pub mod direct;
pub mod early;
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
use crate::image::attach;
use crate::image::oci::cache;
use crate::monitor::control::Reply;
use crate::monitor::order::{MonitorOrder, Ready};
use crate::sys::channel::Channel;
use crate::sys::fd;
use std::os::fd::AsFd;

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

/// The monitor of an instance, in a process that `instance start` forked, up to its end; returns the exit code. Whatever is
/// open besides what is ready is closed, and must not be used any more: this process ends when this returns.
///
/// # Errors
/// Why the container does not stand; the command is to be told.
pub fn main(channel: &Channel, order: &MonitorOrder, mut ready: Ready) -> Result<i32> {
    fd::close_others(3, ready.descriptors().into_iter().chain([channel.as_fd()]));
    fd::leave_streams();
    // Until this process ends nobody removes an image of the cache that runs here.
    let directory = &order.spec.root.directory;
    ready.kept = ready.kept.or_else(|| cache::hold(directory)).or_else(|| attach::hold(directory));
    let signals = serve::signals(false)?;
    let begun = begin::begin(order, ready, &ChannelTeller(channel))?;
    let started = begun.started();
    if channel.send(&Reply::Started(started)).is_err() {
        begun.live.end(Some("the command that started it was interrupted"));
    }
    // From here on the instance lives whether or not anybody listens.
    channel.shutdown();
    Ok(serve::serve(begun, &signals, None).code())
}
