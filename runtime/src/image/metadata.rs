//! What an image says about itself, as `inspect` shows it and as a SIF carries it beside its file system.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Image, apps};

/// Larger scripts and definition files are not an image author's work.
const MOST: u64 = 4 << 20;
/// Files of `/.singularity.d/env` that every image has.
const STANDARD: [&str; 5] = ["01-base.sh", "94-appsbase.sh", "95-apps.sh", "99-base.sh", "99-runtimevars.sh"];

/// Each part empty where the image has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Scripts of the environment by their path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Of `run`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runscript: String,
    /// Of `test`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub test: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub helpfile: String,
    /// What it was built from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deffile: String,
    /// Of `instance start`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub startscript: String,
    /// The same of its applications; they have none themselves, and no definition file.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub apps: BTreeMap<String, Self>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Data {
    attributes: Attributes,
}

/// The document in which they travel.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    data: Data,
    #[serde(rename = "type")]
    kind: String,
}

impl Attributes {
    /// From an opened image's own files.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let app = |name: String| {
            let place = apps::place(&name);
            let labels = image.read_small(format!("{place}/labels.json"), MOST).unwrap_or_default();
            let labels = serde_json::from_slice(&labels).unwrap_or_default();
            (name, Self { labels, ..Self::at(image, &place) })
        };
        Self {
            labels: image.labels.clone(),
            apps: apps::names(image).into_iter().map(app).collect(),
            ..Self::at(image, "/.singularity.d")
        }
    }

    /// What the scripts in a directory of the image's say.
    fn at(image: &Image, place: &str) -> Self {
        let text = |name: &str| {
            let bytes = image.read_small(format!("{place}/{name}"), MOST).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let scripts = image.list(format!("{place}/env")).unwrap_or_default();
        let own = scripts.iter().filter(|n| n.ends_with(".sh") && !STANDARD.contains(&n.as_str()));
        let environment = own.map(|name| (format!("{place}/env/{name}"), text(&format!("env/{name}"))));
        Self {
            environment: environment.collect(),
            labels: BTreeMap::new(),
            apps: BTreeMap::new(),
            runscript: text("runscript"),
            test: text("test"),
            helpfile: text("runscript.help"),
            deffile: text("Singularity"),
            startscript: text("startscript"),
        }
    }

    /// From the document that a SIF carries.
    ///
    /// # Errors
    /// It is another document.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(serde_json::from_slice::<Document>(bytes)?.data.attributes)
    }

    /// The document for a SIF, and for `inspect --json`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let document = Document { data: Data { attributes: self.clone() }, kind: "container".to_owned() };
        serde_json::to_value(&document).unwrap_or_default()
    }
}
