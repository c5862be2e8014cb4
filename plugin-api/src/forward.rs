//! Carries the plugin's `tracing` events to the host. A plugin has a copy of tracing's globals of its
//! own, so without this its events would vanish.

use crate::abi::HostHandle;
use abi_stable::std_types::RStr;
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

static HOST: OnceLock<HostHandle> = OnceLock::new();

/// The first call of a process decides; a worker serves one call.
pub(crate) fn install(host: HostHandle) {
    if HOST.set(host).is_ok() {
        // A plugin that brings a subscriber of its own keeps it.
        let _ = tracing::subscriber::set_global_default(Forwarder { next: AtomicU64::new(1) });
    }
}

struct Forwarder {
    next: AtomicU64,
}

impl Subscriber for Forwarder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.next.fetch_add(1, Ordering::Relaxed).max(1))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let Some(host) = HOST.get() else { return };
        let mut line = Line(String::new());
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => 1,
            Level::WARN => 2,
            Level::INFO => 3,
            Level::DEBUG => 4,
            Level::TRACE => 5,
        };
        host.table.log()(
            host.pointer,
            level,
            RStr::from(event.metadata().target()),
            RStr::from(line.0.as_str()),
        );
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing into a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
    }
}
