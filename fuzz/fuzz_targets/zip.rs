//! The directory of a zip archive: any bytes are either refused with one line, or become entries that lie in the file and
//! do not overlap.
#![no_main]

use std::path::Path;

use layerstream::checkpoint::parse_zip;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match parse_zip(Path::new("pytorch_model.bin"), bytes) {
        Err(error) => assert!(error.to_string().len() < 4000),
        Ok(entries) => {
            let mut end = 0;
            for entry in entries {
                assert!(entry.offset >= end);
                end = entry.offset + entry.len;
                assert!(end <= bytes.len() as u64);
            }
        }
    }
});
