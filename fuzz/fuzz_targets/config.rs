//! Lets libFuzzer look for bytes that are too much for a configuration (`src/lib.rs` says what must hold).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layerstream_fuzz::config(bytes));
