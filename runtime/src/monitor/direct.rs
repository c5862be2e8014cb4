//! A foreground command without an engine and without an init: this process itself becomes the application. There
//! is nobody in between, so signals, the terminal and the exit status are the application's own.

use crate::error::Error;
use crate::launch::protocol::Order;
use crate::launch::start;
use crate::monitor::order::MonitorOrder;
use crate::monitor::place::mount_point;

/// Becomes the application. The caller has one thread. Returns only the reason why it could not.
pub fn run(order: MonitorOrder) -> Error {
    match mount_point(&order.runtime_dir) {
        Ok(mount_point) => start::become_application(&Order {
            spec: order.spec,
            mount_point,
            logs: None,
            fed: false,
            size: None,
        }),
        Err(error) => error,
    }
}
