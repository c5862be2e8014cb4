//! Makes containers out of specs: namespaces, root file system, mounts, and the words that monitor and
//! init exchange. Decides nothing that the spec has decided.

pub(crate) mod hear;
pub mod inject;
pub(crate) mod making;
pub mod protocol;
mod room;
pub mod root;
pub mod skeleton;
pub mod start;
pub mod userns;
