//! A tiktoken vocabulary: any bytes are either refused with one line, or become a tokenizer whose ids give the text back.
#![no_main]

use std::path::Path;

use layerstream::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Tokenizer::from_tiktoken(Path::new("qwen.tiktoken"), bytes) {
        Err(error) => assert!(error.to_string().len() < 4000),
        Ok(tokenizer) => {
            let text = " Hello, world's 123\n\n <|im_end|>\u{65E5}\u{672C}";
            let ids = tokenizer.encode(text, true).expect("any text has ids");
            assert_eq!(tokenizer.decode(&ids, false).expect("ids have a text"), text);
        }
    }
});
