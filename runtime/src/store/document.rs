//! A JSON document inside of another one, which is read when it is asked for: most readers of a manifest do not want the
//! container's spec, which is the largest part of it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

/// Well-formed JSON, of which nothing else is known.
#[derive(Debug, Clone)]
pub struct Document(Box<RawValue>);

impl Document {
    /// What this value is in JSON.
    ///
    /// # Errors
    /// It cannot be said in JSON.
    pub fn of(value: &impl Serialize) -> serde_json::Result<Self> {
        to_raw_value(value).map(Self)
    }

    /// What it says.
    ///
    /// # Errors
    /// It says something else, or is nested deeper than 128 times.
    pub fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.0.get())
    }
}

/// By what they say, not by how it is written.
impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        match (self.read::<Value>(), other.read::<Value>()) {
            (Ok(one), Ok(other)) => one == other,
            _ => self.0.get() == other.0.get(),
        }
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self)
    }
}

/// As everything around it is written, not as it was.
impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read::<Value>().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_what_it_says_however_it_is_written() {
        let spread: Document = serde_json::from_str("{ \"a\" : [ 1,\n 2 ] }").unwrap();
        let tight = Document::of(&json!({"a": [1, 2]})).unwrap();
        assert_eq!(spread, tight);
        assert_ne!(spread, Document::of(&json!({"a": [1]})).unwrap());
        assert_eq!(spread.read::<Value>().unwrap(), json!({"a": [1, 2]}));
        spread.read::<u8>().unwrap_err();
        let around = serde_json::to_string_pretty(&json!({"inside": tight})).unwrap();
        assert_eq!(
            serde_json::to_string_pretty(&std::collections::BTreeMap::from([("inside", &spread)])).unwrap(),
            around
        );
    }

    #[test]
    fn what_is_no_json_or_goes_too_deep_is_refused() {
        serde_json::from_str::<Document>("{\"a\": ").unwrap_err();
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        // It is passed over without being understood; who wants to know more is told.
        let deep: Document = serde_json::from_str(&deep).unwrap();
        deep.read::<Value>().unwrap_err();
        serde_json::to_string(&deep).unwrap_err();
    }
}
