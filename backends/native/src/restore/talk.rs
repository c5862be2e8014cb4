//! What an engine that was started before the container's root is there says to whoever started it.

use super::{check, fitting};
use crate::model::Image;
use stasis_plugin_api::prelude::*;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

/// The other end is in init.
#[derive(Debug)]
pub(super) struct Talk(File);

fn failed(why: &dyn Display) -> BackendError {
    BackendError::failed("the container's root did not come").because(why)
}

impl Talk {
    /// Over this descriptor.
    pub(super) fn over(fd: i32) -> Result<Self> {
        let there = crate::sys::fd::inherited(fd).map_err(|e| failed(&e.desc()))?;
        Ok(Self(File::from(there)))
    }

    /// Waits until it is known what is to come back.
    pub(super) fn words(&mut self) -> Result<Vec<String>> {
        let mut line = Vec::new();
        // The other side says no more before it hears something.
        while line.last() != Some(&b'\n') {
            let mut part = [0; 4096];
            let read = self.0.read(&mut part).map_err(|e| failed(&e))?;
            if read == 0 {
                return Err(failed(&"nothing is to come back"));
            }
            line.extend_from_slice(part.get(..read).unwrap_or_default());
        }
        serde_json::from_slice(&line).map_err(|e| failed(&e))
    }

    /// Waits for the root, and understands the image meanwhile, if it can be read already.
    pub(super) fn ahead(mut self, dir: Option<&Path>) -> Result<Option<Image>> {
        let text = dir.and_then(|dir| check::text(dir).ok());
        self.0.write_all(b"l").map_err(|e| failed(&e))?;
        let image = text.map(|text| check::parse(&text).and_then(fitting)).transpose();
        self.0.read_exact(&mut [0]).map_err(|e| failed(&e))?;
        std::env::set_current_dir("/").map_err(|e| failed(&e))?;
        image
    }
}
