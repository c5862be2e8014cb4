//! The header of a SIF file and the objects in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(wrong) = stasis::fuzzing::sif(bytes) {
        panic!("{wrong}");
    }
});
