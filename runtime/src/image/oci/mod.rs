//! Images as registries have them: fetched by name from a registry, a layout or an archive, every byte held against
//! its digest, unpacked into a root directory that is kept by the image's digest. Only `http` knows the HTTP library.
//! Nothing here prints; whoever calls is told through [`Watch`](super::watch::Watch).

mod archive;
pub mod auth;
pub mod cache;
pub mod digest;
mod download;
mod fetch;
mod http;
mod layer;
pub mod reference;
mod registry;
mod source;
pub mod types;

pub use cache::{Cache, Kept, Rooted};
pub use fetch::{Options, cached, ensure, fill_from};
pub(crate) use layer::{Limits, Unpacked, decoded, unpack};
