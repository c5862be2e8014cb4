//! What a process has told the kernel about itself, beside what every process has.

use serde::{Deserialize, Serialize};

/// All of it; nothing for what was left as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Which memory goes into a core file, as the kernel tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) core_filter: Option<u32>,
    /// PR_SET_MDWE: no memory becomes executable.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) no_new_code: u32,
    /// PR_SET_MEMORY_MERGE: equal pages may become one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) merges: bool,
    /// Huge pages are disabled, but for memory that asks for them (PR_THP_DISABLE_EXCEPT_ADVISED).
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) huge_when_advised: bool,
    /// Bits of the extended state that the process has asked for (ARCH_REQ_XCOMP_PERM).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) extended_state: u64,
    /// How memory is placed on the nodes of the machine, and on which (set_mempolicy): as the first thread has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) placement: Option<Placement>,
}

/// A policy of `set_mempolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placement {
    pub(crate) mode: u32,
    /// The nodes, 64 a word.
    pub(crate) nodes: Vec<u64>,
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_false(word: &bool) -> bool {
    !word
}
