//! Lets libFuzzer look for bytes that are too much for a tiktoken vocabulary (`src/lib.rs` says what must hold).
#![no_main]

libfuzzer_sys::fuzz_target!(init: layerstream_fuzz::panics_may_be_caught(), |bytes: &[u8]| layerstream_fuzz::tiktoken(bytes));
