//! Layers: archives of changes, put one on top of the other below a root directory while they arrive. They come
//! from strangers: nothing leaves the root, and size and number are bounded.

mod compression;
pub(super) mod entries;
mod unpack;

pub(crate) use compression::decoded;
pub(crate) use unpack::{Limits, Unpacked, unpack};

#[cfg(test)]
mod tests;
