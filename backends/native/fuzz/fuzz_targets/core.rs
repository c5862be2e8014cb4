//! The description of an image, `core.json`: `cargo +nightly fuzz run core corpus seeds/core` in backends/native/fuzz.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(again) = stasis_native::judge(text) {
        assert!(stasis_native::judge(&again).is_ok(), "what was sound is not any more");
    }
});
