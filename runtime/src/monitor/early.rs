//! A container's first process needs a while until it can do something. It is started before it is its turn, and gets
//! ready beside what is looked at meanwhile, as the worker does, which the planning starts.

use crate::error::Result;
use crate::launch::protocol::{Ahead, Ground};
use crate::launch::start::{self, Container, Streams};
use crate::spec::ContainerSpec;
use std::os::fd::{AsFd, BorrowedFd};

/// A container's first process that was started before it was known what its engine wants. Dropping it ends that, where it
/// was not taken.
#[derive(Debug)]
pub struct First(Option<Container>);

impl First {
    /// Starts it as the spec is so far, with this process's streams or without any.
    #[must_use]
    pub fn start(spec: &ContainerSpec, mount: Option<BorrowedFd<'_>>, streams: Streams) -> Self {
        // Why there is none is told when it is its turn.
        Self(start::start(spec, mount, streams).ok())
    }

    /// What this process has open for it.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().flat_map(|container| [container.channel.as_fd(), container.pidfd.as_fd()]).collect()
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

    /// Lets something get ready for what is planned meanwhile.
    pub(super) fn ahead(&mut self, ahead: Ahead) {
        if self.0.as_mut().is_some_and(|container| container.ahead(ahead).is_err()) {
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
        let mut container = there.map_or_else(|| start::start(spec, mount, Streams::Kept), Ok)?;
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
