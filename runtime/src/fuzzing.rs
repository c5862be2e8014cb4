//! What the bytes of strangers reach first, for fuzz targets and for the test that feeds the seeds to the same functions.
//! No interface for anybody else.
//!
//! Each function answers whether the bytes were understood. An error means that they did what they may not do.

use std::collections::BTreeMap;
use std::path::Path;

use crate::build::definition::Definition;
use crate::image::oci::{Limits, Unpacked, decoded, unpack};
use crate::image::sif;
use crate::image::squashfs;
use crate::image::tree::Tree;

/// A block of an archive.
const BLOCK: usize = 512;
const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };

/// The header of a SIF file, its objects, and the file system in it.
///
/// # Errors
/// Something that was understood lies outside of the file.
pub fn sif(bytes: &[u8]) -> Result<bool, String> {
    let Ok(found) = sif::parse(bytes) else { return Ok(false) };
    let length = bytes.len() as u64;
    for object in &found.objects {
        if object.offset.checked_add(object.size).is_none_or(|end| end > length) {
            return Err(format!("object {} ends behind the file, which has {length} bytes", object.id));
        }
    }
    if let Some((object, _)) = found.primary()
        && let Ok(system) = squashfs::parse(bytes, object.offset, object.size)
        && system.bytes > object.size
    {
        return Err(format!("the file system has {} bytes, and there are {}", system.bytes, object.size));
    }
    Ok(true)
}

/// A definition file.
///
/// # Errors
/// None; panics and endless loops are what it is fed for.
pub fn definition(bytes: &[u8]) -> Result<bool, String> {
    let text = String::from_utf8_lossy(bytes);
    Ok(Definition::parse(Path::new("file.def"), &text, &BTreeMap::new()).is_ok())
}

/// The names in a layer and what they do to a directory: `place` is empty and writable. Sums of headers are put right
/// first, so that more than the sum is tried.
///
/// # Errors
/// Something outside of the layer's own root is not as it was; what the file system says.
pub fn layer(bytes: &[u8], place: &Path) -> Result<bool, String> {
    let told = |e: std::io::Error| e.to_string();
    let (root, outside) = (place.join("root"), place.join("outside"));
    std::fs::create_dir(&root).map_err(told)?;
    std::fs::create_dir(&outside).map_err(told)?;
    std::fs::write(outside.join("file"), "mine").map_err(told)?;
    // What an earlier layer may have left.
    std::os::unix::fs::symlink("../outside", root.join("out")).map_err(told)?;
    let tree = Tree::open(&root).map_err(|e| e.to_string())?;
    let bytes = with_sums(bytes);
    let mut sum = Unpacked::default();
    let understood =
        decoded(bytes.as_slice()).is_ok_and(|layer| unpack(&tree, layer, LIMITS, &mut sum).is_ok());
    let count = |path: &Path| std::fs::read_dir(path).map(Iterator::count).map_err(told);
    if count(place)? != 2 || count(&outside)? != 1 {
        return Err(format!("something was made or removed outside of {}", root.display()));
    }
    let kept = std::fs::read_to_string(outside.join("file")).map_err(told)?;
    let links = std::os::unix::fs::MetadataExt::nlink(&outside.join("file").metadata().map_err(told)?);
    if kept != "mine" || links != 1 {
        return Err("a file outside was changed, or is seen inside".to_owned());
    }
    Ok(understood)
}

fn with_sums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block.get(257..262) != Some(b"ustar") {
            continue;
        }
        if let Some(place) = block.get_mut(148..156) {
            place.fill(b' ');
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        if let Some(place) = block.get_mut(148..156) {
            place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}
