//! The names in a layer, whiteouts among them, and what they do to a directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let place = match tempfile::tempdir() {
        Ok(place) => place,
        Err(why) => panic!("there is no place for a layer: {why}"),
    };
    if let Err(wrong) = stasis::fuzzing::layer(bytes, place.path()) {
        panic!("{wrong}");
    }
});
