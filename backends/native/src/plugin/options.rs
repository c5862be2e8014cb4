//! What the administrator and the user may set.

use stasis_plugin_api::prelude::*;

const CAPTURE: &str = "capture";
const RESTART: &str = "restart";
const INCREMENTS: &str = "increments";
const MAP_THEN_COPY: &str = "map-then-copy";

/// For `describe`.
pub(super) fn specs() -> Vec<OptionSpec> {
    let choice = |words: &[&str]| OptionKind::Choice(words.iter().map(|w| (*w).to_owned()).collect());
    vec![
        OptionSpec::new(
            CAPTURE,
            choice(&["auto", "fork", "plain"]),
            "how memory is saved while the application runs on: from a copy that the kernel makes page by page (fork), while the application stands still (plain), or from a copy where there is room for one",
        )
        .default_value("auto"),
        OptionSpec::new(
            RESTART,
            choice(&["auto", "map", "map-then-copy", "copy"]),
            "how memory comes back: all of it before the first instruction (copy, which auto is too), or page by page from the saved file when it is touched (map), which is for programs whose allocator does not count on zeros after MADV_DONTNEED; map-then-copy makes ordinary memory of it behind the start",
        )
        .default_value("auto"),
        OptionSpec::new(
            INCREMENTS,
            OptionKind::Boolean,
            "what was not written since the generation before is not saved again, where the kernel tells (Linux 6.7)",
        )
        .default_value("true"),
        OptionSpec {
            flag: Some("tcp".to_owned()),
            ..OptionSpec::new(
                "tcp",
                choice(&["refuse"]),
                "what becomes of open TCP connections: an application that has one is not saved",
            )
        },
    ]
}

/// The flag that tells the engine how to capture.
pub(super) fn capture_flag(host: &Host<'_>) -> Option<String> {
    host.option_str(CAPTURE).filter(|word| *word != "auto").map(|word| format!("--{word}"))
}

/// Whether a generation may share files with the one before.
pub(super) fn increments(host: &Host<'_>) -> bool {
    host.option_bool(INCREMENTS).unwrap_or(true)
}

/// Whether memory comes back page by page.
pub(super) fn maps(host: &Host<'_>) -> bool {
    matches!(host.option_str(RESTART), Some("map" | MAP_THEN_COPY))
}

/// Whether what was mapped is to become ordinary memory.
pub(super) fn copies_behind(host: &Host<'_>) -> bool {
    host.option_str(RESTART) == Some(MAP_THEN_COPY)
}
