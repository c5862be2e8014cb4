//! The kernel's flags of a mapping.

use serde::de::{DeserializeSeed, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// `VmFlags` of smaps, as the kernel writes them: words of two letters. In an image they are a list. One text for all of
/// them: there are several of every mapping, and an application waits while they are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VmFlags(String);

impl VmFlags {
    /// Of words with blanks between them.
    pub(crate) fn of(words: &str) -> Self {
        Self(words.trim().to_owned())
    }

    /// With one more.
    pub(crate) fn and(mut self, word: &str) -> Self {
        self.add(word);
        self
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.words().any(|word| word == flag)
    }

    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.0.split_ascii_whitespace()
    }

    fn add(&mut self, word: &str) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(word);
    }
}

impl Serialize for VmFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.words())
    }
}

impl<'de> Deserialize<'de> for VmFlags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List)
    }
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = VmFlags;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of words")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<VmFlags, A::Error> {
        // Mostly five to eight words.
        let mut flags = VmFlags(String::with_capacity(24));
        while words.next_element_seed(Word(&mut flags))?.is_some() {}
        Ok(flags)
    }
}

/// Where the next word of a list goes.
struct Word<'a>(&'a mut VmFlags);

impl<'de> DeserializeSeed<'de> for Word<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Word<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<(), E> {
        if word.is_empty() || word.contains(|c: char| c.is_ascii_whitespace()) {
            return Err(E::invalid_value(Unexpected::Str(word), &self));
        }
        self.0.add(word);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_words() {
        let flags: VmFlags = serde_json::from_str(r#"["rd", "wr", "gu"]"#).unwrap();
        assert_eq!(flags, VmFlags::of(" rd wr gu "));
        assert!(flags.has("gu") && flags.has("rd") && !flags.has("d w") && !flags.has("g"));
        assert_eq!(serde_json::to_string(&flags.and("x")).unwrap(), r#"["rd","wr","gu","x"]"#);
        assert_eq!(serde_json::to_string(&VmFlags::default()).unwrap(), "[]");
        for wrong in [r#"["rd wr"]"#, r#"[""]"#, r#""rd""#, "[1]"] {
            serde_json::from_str::<VmFlags>(wrong).unwrap_err();
        }
    }
}
