//! Lets libFuzzer look for bytes that are too much for the manifest of a packed model (`src/lib.rs` says what must hold).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layerstream_fuzz::manifest(bytes));
