//! How much memory the saved program holds.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// So many processes with so much each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    processes: u64,
    mebibytes: u64,
    huge: bool,
}

impl Size {
    /// One process.
    pub(crate) const fn of(mebibytes: u64) -> Self {
        Self { processes: 1, mebibytes, huge: false }
    }

    /// Of all together.
    pub(crate) fn mebibytes(self) -> u64 {
        self.processes * self.mebibytes
    }
}

/// As the program takes it: N, or KxN, with an h behind it for huge pages.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.processes != 1 {
            write!(f, "{}x", self.processes)?;
        }
        write!(f, "{}{}", self.mebibytes, if self.huge { "h" } else { "" })
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.strip_suffix('h').unwrap_or(text);
        let (processes, mebibytes) = plain.split_once('x').unwrap_or(("1", plain));
        let number = |text: &str| text.parse().ok();
        // No process holds nothing of anything: 0x64 is meant as another number.
        match (number(processes), number(mebibytes)) {
            (Some(processes @ 1..), Some(mebibytes)) => {
                Ok(Self { processes, mebibytes, huge: plain != text })
            }
            _ => Err(format!("{text:?} is no size: N, KxN, Nh or KxNh")),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_told() {
        for text in ["0", "1024", "8x128", "8192h", "2x64h"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("8x128h".parse::<Size>().unwrap().mebibytes(), 1024);
        for text in ["", "x", "1x", "x1", "0x64", "0x64h", "huge", "-1", "1x2x3"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
