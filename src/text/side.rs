//! The text side of a model directory: tokenizer and chat template, where there are any, and the errors of those who
//! need one that is not there.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

use super::{ChatInput, ChatTemplate, Tokenizer};

/// What turns words into token ids for one model, and back. A model without it still takes token ids.
#[derive(Debug)]
pub struct TextSide {
    dir: PathBuf,
    tokenizer: Option<Tokenizer>,
}

impl TextSide {
    /// Opens what `dir` holds; it need hold neither, nor a model. The chat template is opened when it is needed, so that
    /// one which cannot be used does not stand in the way of plain prompts.
    ///
    /// # Errors
    /// If a tokenizer is there and cannot be used.
    pub fn open(dir: &Path) -> Result<TextSide> {
        let tokenizer = dir.join("tokenizer.json").exists().then(|| Tokenizer::open(dir)).transpose()?;
        Ok(TextSide { dir: dir.to_path_buf(), tokenizer })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If the directory has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            self.missing("there is no tokenizer (tokenizer.json) beside the model, so it takes token ids only")
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// If the directory has none (it is no chat model), or one that cannot be used.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::open(&self.dir)?.ok_or_else(|| {
            self.missing("there is no chat template beside the model: it is no chat model; give it a plain prompt")
        })
    }

    /// The token ids of a prompt, with the special tokens that the tokenizer puts around it. Special tokens written out
    /// in the text are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode(text, true)
    }

    /// The token ids of a conversation, in which no message can write control tokens.
    pub fn encode_chat(&self, input: &ChatInput) -> Result<Vec<u32>> {
        self.chat_template()?.encode(self.tokenizer()?, input)
    }

    fn missing(&self, problem: &str) -> Error {
        Error::Text { path: self.dir.clone(), problem: problem.into() }
    }
}
