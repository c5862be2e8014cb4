//! The documents of an image: index, manifest, configuration. Only what is used of them, everything else is
//! passed over. They come from strangers, so whoever reads them bounds their size first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// What a registry is asked for, best first.
pub const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// The most bytes of an index or a manifest.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The most bytes of a configuration.
pub const MAX_CONFIG: u64 = 16 << 20;
/// The most layers; overlay file systems and registries stop far below.
pub const MAX_LAYERS: usize = 1024;
/// The name of a tag in a layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A document or a layer, by its digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind it is.
    #[serde(default)]
    pub media_type: String,
    /// Its identity.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// For which machine, in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Names, in a layout.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `linux`, ...
    #[serde(default)]
    pub os: String,
    /// `v8`, ...
    #[serde(default)]
    pub variant: Option<String>,
}

/// Several images under one name, or the top of a layout.
#[derive(Debug, Deserialize)]
pub struct Index {
    /// Each of them.
    pub manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// From the lowest to the highest.
    pub layers: Vec<Descriptor>,
}

/// The configuration of an image.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Config {
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `linux`, ...
    #[serde(default)]
    pub os: String,
    /// What is to be run, and how.
    #[serde(default)]
    pub config: Option<ContainerConfig>,
    /// The layers without compression.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// The layers without compression.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    /// From the lowest to the highest.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// What is to be run, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// The command's beginning.
    pub entrypoint: Option<Vec<String>>,
    /// Its end, where the user gives none.
    pub cmd: Option<Vec<String>>,
    /// Whatever the author says.
    pub labels: Option<BTreeMap<String, String>>,
    /// Not followed: containers begin where the user is.
    pub working_dir: Option<String>,
}

/// One image of an archive as `docker save` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    /// The configuration's path in the archive.
    pub config: String,
    /// Names with tags.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// The layers' paths in the archive.
    pub layers: Vec<String>,
}
