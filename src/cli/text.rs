//! `tokenize`, `detokenize`, `render-chat`: the text side alone, without a model.

use std::path::Path;

use crate::checkpoint::{Checkpoint, read_json};
use crate::error::Result;
use crate::hub::Need;
use crate::text::{ChatInput, TextSide};

use super::args;
use super::hub;
use super::{output, prompts};

pub fn tokenize(args: &args::Tokenize) -> Result<()> {
    let text = open(&args.model)?;
    let tokenizer = text.tokenizer()?;
    output::json(&tokenizer.encode(&prompts::utf8_input()?, !args.no_special)?)
}

pub fn detokenize(args: &args::Detokenize) -> Result<()> {
    let text = open(&args.model)?;
    let tokenizer = text.tokenizer()?;
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
    let text = open(&args.model)?;
    output::print_exact(&text.chat_template()?.render(&input)?)
}

/// The text side of a model, which need not be complete; or of a GGUF file.
fn open(model: &args::Model) -> Result<TextSide> {
    let path = hub::local(model, Need::Text)?;
    match Checkpoint::open(&path) {
        Ok(checkpoint) if checkpoint.metadata().is_some() => TextSide::of(&checkpoint),
        Err(error) if !path.exists() || path.extension().is_some_and(|extension| extension == "gguf") => Err(error),
        _ => TextSide::open(dir(&path)),
    }
}

/// The directory of a model that is given as one, or as its only file.
fn dir(model: &Path) -> &Path {
    match model.parent() {
        Some(parent) if model.is_file() && parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) if model.is_file() => parent,
        _ => model,
    }
}
