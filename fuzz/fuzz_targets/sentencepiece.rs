//! A SentencePiece model: any bytes are either refused with one line, or become a tokenizer that encodes and decodes.
#![no_main]

use std::path::Path;

use layerstream::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Tokenizer::from_sentencepiece(Path::new("tokenizer.model"), bytes) {
        Err(error) => assert!(error.to_string().len() < 4000),
        Ok(tokenizer) => {
            // Texts that the model knows are in the model.
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
            for text in [&text, " Hello  w\u{F6}rld \u{2581}\u{65E5}\u{672C}<s>\n"] {
                let ids = tokenizer.encode(text, true).expect("any text has ids");
                tokenizer.decode(&ids, false).expect("ids have a text");
            }
        }
    }
});
