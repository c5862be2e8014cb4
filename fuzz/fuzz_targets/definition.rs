//! A definition file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(wrong) = stasis::fuzzing::definition(bytes) {
        panic!("{wrong}");
    }
});
