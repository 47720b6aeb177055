//! `model.safetensors.index.json`: any bytes are either refused with one line, or name shards that stay in the
//! directory.
#![no_main]

use std::path::{Component, Path};

use layerstream::checkpoint::parse_index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match parse_index(Path::new("model.safetensors.index.json"), bytes) {
        Err(error) => assert!(error.to_string().len() < 4000),
        Ok(index) => {
            assert!(index.weights.is_sorted_by(|a, b| a.0 < b.0));
            for (_, shard) in &index.weights {
                let name = Path::new(&index.shards[*shard as usize]);
                assert!(matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]));
            }
        }
    }
});
