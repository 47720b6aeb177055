//! Text in, token ids out, and back: tokenizers, incremental detokenisation, stop strings and chat templates.

mod chat;
mod config;
mod control;
mod python;
mod side;
mod stop;
mod stream;
mod tokenizer;

pub use chat::{ChatInput, ChatTemplate};
pub use side::TextSide;
pub use stop::StopStrings;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;

/// The clock of a template, for [`ChatInput::now`].
pub use jiff::civil::DateTime;
