//! What findings lead to: refusal, or a remark.

use crate::error::{Error, Result};
use stasis_plugin_api::report::{Finding, Severity};

/// Whether a kind of loss is accepted.
#[must_use]
pub fn accepts(accepted: &[String], kind: &str) -> bool {
    accepted.iter().any(|word| word == kind || word == "all")
}

/// Refuses what is fatal, and what would be lost unless its kind is accepted. Returns the remarks.
///
/// # Errors
/// All obstacles at once.
pub fn judge(doing: &str, engine: &str, findings: Vec<Finding>, accepted: &[String]) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut obstacles: Vec<Finding> = Vec::new();
    for finding in findings {
        match finding.severity {
            Severity::Note => notes.push(format!("{}: {}", finding.object, finding.why)),
            Severity::Loss if accepts(accepted, &finding.kind) => {
                notes.push(format!("{} will be lost, as accepted: {}", finding.object, finding.why));
            }
            Severity::Loss | Severity::Fatal => obstacles.push(finding),
        }
    }
    if obstacles.is_empty() {
        return Ok(notes);
    }
    let mut error = Error::new(format!("{engine} cannot {doing}"));
    let mut helps: Vec<String> = Vec::new();
    let mut kinds: Vec<String> = Vec::new();
    for finding in obstacles {
        error = error.because(format!("{}: {}", finding.object, finding.why));
        if !finding.help.is_empty() && !helps.contains(&finding.help) {
            helps.push(finding.help);
        }
        if finding.severity == Severity::Loss && !kinds.contains(&finding.kind) {
            kinds.push(finding.kind);
        }
    }
    if !kinds.is_empty() {
        helps.push(format!("to go on and lose it: --accept-loss={}", kinds.join(",")));
    }
    Err(if helps.is_empty() { error } else { error.help(helps.join("; ")) })
}
