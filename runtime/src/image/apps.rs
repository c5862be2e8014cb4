//! Applications of the SCIF kind: several in one image, each in a directory below `/scif/apps`.

use super::Image;

const PLACE: &str = "/scif/apps";

/// Where one keeps its scripts and its environment.
#[must_use]
pub fn place(name: &str) -> String {
    format!("{PLACE}/{name}/scif")
}

/// Those that an image has, sorted.
#[must_use]
pub fn names(image: &Image) -> Vec<String> {
    let mut all = image.list(PLACE).unwrap_or_default();
    all.retain(|name| image.lookup(place(name)).is_some());
    all.sort_unstable();
    all
}
