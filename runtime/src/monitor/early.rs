//! Processes that need a while until they can do something: the worker and the container's first process. They are
//! started before it is their turn, and get ready beside what is looked at meanwhile.

use crate::error::{Error, Result};
use crate::image::attach::Held;
use crate::launch::protocol::Ground;
use crate::launch::start::{self, Container};
use crate::monitor::order::{EngineOrder, MonitorOrder, PluginOrder};
use crate::spec::ContainerSpec;
use crate::worker::{Plugin, Worker};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Starts the worker of the order's engine, where there is one. `scratch` is a directory of ours for it; it has to be there
/// when the first call is made.
///
/// # Errors
/// The engine has no library, or no process can be made.
pub(super) fn worker(
    order: &MonitorOrder,
    library: Option<OwnedFd>,
    image: Option<&Held>,
    scratch: &Path,
) -> Result<Option<(Plugin, Worker)>> {
    let Some(wanted) = &order.engine else { return Ok(None) };
    let plugin = plugin(order, wanted, library)?;
    let worker = Worker::spawn_with(&plugin, image.and_then(Held::mount), scratch)?;
    Ok(Some((plugin, worker)))
}

/// A container's first process that was started before it was known what its engine wants. Dropping it ends that, where it
/// was not taken.
pub(super) struct First(Option<Container>);

impl First {
    /// Starts it as the spec is so far.
    pub(super) fn start(spec: &ContainerSpec, mount: Option<BorrowedFd<'_>>) -> Self {
        // Why there is none is told when it is its turn.
        Self(start::start(spec, mount).ok())
    }

    /// Lets it begin with the root. That may change something on the host, where changes are kept: the caller has the name,
    /// and the checkpoint. A mounted image can be attached only once, which has to wait until this process is the one.
    pub(super) fn lay(&mut self, ground: Ground) {
        if ground.root.is_mounted() {
            return;
        }
        if self.0.as_mut().is_some_and(|container| container.lay(ground).is_err()) {
            // It is gone, and another one is made when it is its turn.
            self.0 = None;
        }
    }

    /// The process, made anew where the one that there is does not fit.
    ///
    /// # Errors
    /// What the host refuses.
    pub(super) fn take(
        mut self,
        spec: &ContainerSpec,
        ground: Ground,
        mount: Option<BorrowedFd<'_>>,
    ) -> Result<Container> {
        let there = self.0.take_if(|container| container.fits(spec, &ground));
        // There is to be one at a time.
        drop(self);
        let mut container = there.map_or_else(|| start::start(spec, mount), Ok)?;
        container.lay(ground)?;
        Ok(container)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if let Some(container) = self.0.take() {
            container.kill();
        }
    }
}

fn plugin(order: &MonitorOrder, wanted: &EngineOrder, library: Option<OwnedFd>) -> Result<Plugin> {
    let PluginOrder { name, path, version, options, flags } = &wanted.plugin;
    let library =
        library.ok_or_else(|| Error::new(format!("the library of backend \"{name}\" is missing")))?;
    let version_req = version.as_deref().map(semver::VersionReq::parse).transpose();
    Ok(Plugin {
        name: name.clone(),
        path: path.clone(),
        library,
        cache: Plugin::cache(&order.data_root, name),
        version_req: version_req.map_err(|e| Error::new("a version requirement is broken").because(&e))?,
        options: options.clone(),
        option_flags: flags.clone(),
    })
}
