//! The registry: from a name to a library that may be loaded. Selecting is pure, locating opens and checks, loading
//! happens in a worker only. What a backend is and does is the plugin contract's, not known here.

mod elf;
pub mod load;
pub mod locate;
pub mod select;
pub mod trust;

pub use elf::ElfError;
pub use load::{LoadError, LoadedBackend, load};
pub use locate::{LocateError, Located, locate};
pub use select::{Choice, SelectError, select};
pub use trust::TrustError;
