//! Text in, token ids out, and back: tokenizers, incremental detokenisation, stop strings and chat templates.

mod builtin;
mod chat;
mod config;
mod control;
mod files;
mod gguf;
mod joined;
mod library;
mod merge;
mod parts;
mod python;
mod sentencepiece;
mod side;
mod stop;
mod stream;
mod tiktoken;
mod tokenizer;
mod words;

pub use chat::{ChatInput, ChatTemplate};
pub use parts::TokenizerParts;
pub use side::TextSide;
pub use stop::StopStrings;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;

/// The clock of a template, for [`ChatInput::now`].
pub use jiff::civil::DateTime;
