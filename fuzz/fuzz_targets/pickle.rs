//! The pickle of a `pytorch_model.bin`: any bytes are either refused with one line, or become descriptions of tensors
//! with distinct names.
#![no_main]

use std::path::Path;

use layerstream::checkpoint::parse_pickle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match parse_pickle(Path::new("pytorch_model.bin"), bytes) {
        Err(error) => assert!(error.to_string().len() < 4000),
        Ok(tensors) => {
            let mut names: Vec<_> = tensors.iter().map(|tensor| &tensor.name).collect();
            names.sort();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
            assert!(tensors.iter().all(|tensor| tensor.shape.len() == tensor.strides.len()));
        }
    }
});
