//! Which plugins fit which runtime.

/// The version of this contract, that of the crate.
pub const API_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether a plugin built against `plugin` can be loaded by a runtime built against `runtime`.
///
/// Within one major version every combination loads: later versions only add at the end, and each
/// side gives defaults for what the other lacks. While the contract is a `-dev` version both have to
/// be the same text.
///
/// # Errors
/// One sentence that names both versions and what to do.
pub fn compatible(runtime: &str, plugin: &str) -> Result<(), String> {
    let major = |v: &str| v.split('.').next().and_then(|m| m.parse::<u64>().ok());
    let unfinished = |v: &str| v.contains('-');
    let (Some(ours), Some(theirs)) = (major(runtime), major(plugin)) else {
        return Err(format!("built against the contract version \"{plugin}\", which is no version"));
    };
    if ours != theirs {
        let who = if theirs < ours { "rebuild the plugin" } else { "update stasis" };
        return Err(format!(
            "built against version {plugin} of the plugin contract, this stasis has {runtime}: {who}"
        ));
    }
    if (unfinished(runtime) || unfinished(plugin)) && runtime != plugin {
        return Err(format!(
            "built against the unfinished version {plugin} of the plugin contract, this stasis has {runtime}: build both from the same sources"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_cases() {
        for (runtime, plugin, fits) in [
            ("1.0.0", "1.0.0", true),
            ("1.1.0", "1.0.0", true),
            ("1.0.0", "1.4.2", true),
            ("1.0.0", "2.0.0", false),
            ("2.0.0", "1.9.0", false),
            ("1.0.0-dev", "1.0.0-dev", true),
            ("1.0.0-dev", "1.0.0", false),
            ("1.0.0", "1.0.0-dev", false),
            ("1.0.0", "", false),
            ("1.0.0", "one", false),
        ] {
            assert_eq!(compatible(runtime, plugin).is_ok(), fits, "{runtime} {plugin}");
        }
    }
}
