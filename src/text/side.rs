//! The text side of a model directory: tokenizer and chat template, where there are any, and the errors of those who
//! need one that is not there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Metadata};
use crate::{Error, Result};

use super::{ChatInput, ChatTemplate, Tokenizer, gguf};

/// What turns words into token ids for one model, and back. A model without it still takes token ids.
#[derive(Debug)]
pub struct TextSide {
    dir: PathBuf,
    tokenizer: Option<Tokenizer>,
    /// What of a GGUF file's tokenizer is not implemented.
    unsupported: Option<String>,
    /// Where all of it is, for a GGUF file.
    metadata: Option<Arc<Metadata>>,
}

impl TextSide {
    /// Opens what a checkpoint brings: in its directory, or for a GGUF file, in the file. A GGUF file whose tokenizer is of a
    /// kind that is not implemented can still be run, with token ids.
    ///
    /// # Errors
    /// If a tokenizer is there and damaged.
    pub fn of(checkpoint: &Checkpoint) -> Result<TextSide> {
        let Some(metadata) = checkpoint.metadata() else { return TextSide::open(checkpoint.dir()) };
        let (tokenizer, unsupported) = match gguf::tokenizer(metadata) {
            Err(Error::Unsupported { what, .. }) => (None, Some(what)),
            tokenizer => (tokenizer?, None),
        };
        let (dir, metadata) = (metadata.path().to_path_buf(), Some(Arc::clone(metadata)));
        Ok(TextSide { dir, tokenizer, unsupported, metadata })
    }

    /// Opens what `dir` holds; it need hold neither, nor a model. The chat template is opened when it is needed, so that
    /// one which cannot be used does not stand in the way of plain prompts.
    ///
    /// # Errors
    /// If a tokenizer is there and cannot be used.
    pub fn open(dir: &Path) -> Result<TextSide> {
        Ok(TextSide { dir: dir.to_path_buf(), tokenizer: Tokenizer::find(dir)?, unsupported: None, metadata: None })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If there is none, or one that is not implemented.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        if let Some(what) = &self.unsupported {
            let what = format!("{what}, so it takes token ids only,");
            return Err(Error::Unsupported { path: self.dir.clone(), what });
        }
        self.tokenizer.as_ref().ok_or_else(|| {
            self.missing(
                "there is no tokenizer (tokenizer.json, tokenizer.model or qwen.tiktoken) beside the model, so it takes \
                 token ids only",
            )
        })
    }

    /// The chat template; for ChatGLM 2 and 3, Qwen 1, Baichuan and InternLM 1, which bring none, what their own code does.
    ///
    /// # Errors
    /// If the directory has none (it is no chat model), or one that cannot be used.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let template = match &self.metadata {
            Some(metadata) => gguf::chat_template(metadata, self.tokenizer.as_ref())?,
            None => ChatTemplate::open(&self.dir)?,
        };
        if let Some(template) = template {
            return Ok(template);
        }
        match self.tokenizer.as_ref().and_then(Tokenizer::chat) {
            Some((path, format)) => ChatTemplate::built_in(path, format),
            None => {
                Err(self
                    .missing("there is no chat template beside the model: it is no chat model; give it a plain prompt"))
            }
        }
    }

    /// Tokens that end an answer and that no configuration names: those at which the code of ChatGLM 3, of Qwen 1
    /// and of InternLM 1 stops.
    pub fn ends(&self) -> Vec<u32> {
        let Some(tokenizer) = &self.tokenizer else { return Vec::new() };
        let ends = tokenizer.chat().map_or(&[][..], |(_, format)| format.ends);
        ends.iter().filter_map(|token| tokenizer.token_id(token)).collect()
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
