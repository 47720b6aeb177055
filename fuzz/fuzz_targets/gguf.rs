//! The header of a GGUF file: any bytes are either refused with one line, or become metadata and tensors whose ranges lie in
//! the file, do not overlap, and have the length of their shape.
#![no_main]

use std::path::Path;

use layerstream::checkpoint::parse_gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The true length, and one at which no range is refused for lying past the end.
    for file_len in [bytes.len() as u64, 1 << 40] {
        match parse_gguf(Path::new("model.gguf"), bytes, file_len) {
            Err(error) => assert!(error.to_string().len() < 4000),
            Ok(header) => {
                let mut end = 0;
                for tensor in &header.tensors {
                    let (block, size) = tensor.dtype.block();
                    let elements: u64 = tensor.shape.iter().map(|&dim| dim as u64).product();
                    assert_eq!(elements / block as u64 * size as u64, tensor.span.len);
                    assert!(tensor.span.offset + tensor.span.len <= file_len);
                    if tensor.span.len > 0 {
                        assert!(tensor.span.offset >= end);
                        end = tensor.span.offset + tensor.span.len;
                    }
                }
            }
        }
    }
});
