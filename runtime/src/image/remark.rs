//! What the header of a SIF file says that whoever uses the image should know, in the same words wherever that is.

use super::sif::{DataType, OVERLAY, Sif};
use super::watch::Watch;

/// One of these things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark {
    /// Somebody vouches for it, and that is not looked into.
    Signed,
    /// It brings a layer along, and a container would look otherwise with it.
    Overlay,
}

/// All that is to be said of a file.
#[must_use]
pub fn of(sif: &Sif) -> Vec<Remark> {
    let overlay = sif.objects.iter().any(|d| d.partition.as_ref().is_some_and(|p| p.kind == OVERLAY));
    let signed = sif.first(DataType::Signature).is_some();
    [(signed, Remark::Signed), (overlay, Remark::Overlay)]
        .into_iter()
        .filter_map(|(holds, remark)| holds.then_some(remark))
        .collect()
}

impl Remark {
    /// Says it of the image that a user named so.
    pub fn tell(self, image: &str, watch: &dyn Watch) {
        match self {
            Self::Signed => {
                watch.info(&format!("image {image:?} is signed; stasis does not check signatures"))
            }
            Self::Overlay => {
                watch.warning(&format!("image {image:?} has an overlay of its own, which is left out"));
            }
        }
    }
}
