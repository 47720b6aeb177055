//! `tokenize`, `detokenize`, `render-chat`: the text side alone, without a model.

use std::path::PathBuf;

use crate::checkpoint::read_json;
use crate::error::Result;
use crate::hub::Need;
use crate::text::{ChatInput, TextSide, Tokenizer};

use super::args;
use super::hub;
use super::{output, prompts};

pub fn tokenize(args: &args::Tokenize) -> Result<()> {
    let tokenizer = Tokenizer::open(&dir(&args.model)?)?;
    output::json(&tokenizer.encode(&prompts::utf8_input()?, !args.no_special)?)
}

pub fn detokenize(args: &args::Detokenize) -> Result<()> {
    let tokenizer = Tokenizer::open(&dir(&args.model)?)?;
    output::print_exact(&tokenizer.decode(&args.ids.0, args.skip_special)?)
}

pub fn render_chat(args: &args::RenderChat) -> Result<()> {
    let messages = read_json(&args.messages)?;
    let tools = args.tools.as_deref().map(read_json).transpose()?;
    let input = ChatInput {
        tools: tools.as_ref(),
        add_generation_prompt: !args.no_generation_prompt,
        ..ChatInput::new(&messages)
    };
    let text = TextSide::open(&dir(&args.model)?)?;
    output::print_exact(&text.chat_template()?.render(&input)?)
}

/// The directory of a model that is given as one, as its only file, or by name.
fn dir(model: &args::Model) -> Result<PathBuf> {
    let path = hub::local(model, Need::Text)?;
    Ok(match path.parent() {
        Some(parent) if path.is_file() && parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) if path.is_file() => parent.to_path_buf(),
        _ => path,
    })
}
