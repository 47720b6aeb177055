//! Text to token ids and back, with whatever tokenizer a checkpoint brings.

use std::collections::HashSet;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::AddedVocabulary;

use crate::{Error, Result};

use super::builtin::Format;
use super::stream::TextStream;
use super::words::{Said, Words};
use super::{files, library, parts};

/// A tokenizer: cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    /// The file it was read from, for messages.
    pub path: PathBuf,
    pub words: Words,
    /// Tokens that are found before words are looked for, of tokenizers that are not the library's.
    pub added: AddedVocabulary,
    /// Whether plain text may write special tokens. ChatGLM's may not.
    pub special_in_text: bool,
    /// The ids put before and after a text that is encoded with special tokens.
    pub before: Vec<u32>,
    pub after: Vec<u32>,
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// The chat format that the model's own code has, where the checkpoint has none.
    pub chat: Option<Format>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens the tokenizer in `dir`, with what `tokenizer_config.json` and `special_tokens_map.json` change about it.
    /// `dir` needs no model. If there are several, the first of these is taken: `tokenizer.json`, `tokenizer.model`
    /// (SentencePiece, or GLM-4's tiktoken vocabulary), `qwen.tiktoken`.
    ///
    /// # Errors
    /// If there is none of them, or one of the files is damaged or uses something unknown.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        Self::find(dir)?.ok_or_else(|| missing(dir))
    }

    /// The tokenizer in `dir`, if there is one.
    pub(super) fn find(dir: &Path) -> Result<Option<Tokenizer>> {
        let inner = match library::open(dir)? {
            Some(inner) => Some(inner),
            None => files::open(dir)?,
        };
        Ok(inner.map(|inner| Tokenizer { inner: Arc::new(inner) }))
    }

    /// The tokenizer of a SentencePiece model (the bytes of a `tokenizer.model`) without a configuration: as Llama's, with
    /// its beginning of sequence in front. `path` is for messages.
    ///
    /// # Errors
    /// If the model is damaged, or of a kind that is not known.
    pub fn from_sentencepiece(path: &Path, file: &[u8]) -> Result<Tokenizer> {
        files::sentencepiece(path, file).map(|inner| Tokenizer { inner: Arc::new(inner) })
    }

    /// Qwen 1's tokenizer (the bytes of a `qwen.tiktoken`) without a configuration. `path` is for messages.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn from_tiktoken(path: &Path, file: &[u8]) -> Result<Tokenizer> {
        files::tiktoken(path, file).map(|inner| Tokenizer { inner: Arc::new(inner) })
    }

    /// The tokenizer that [`TokenizerParts`](super::TokenizerParts) describe; `path` is the file that they are from.
    ///
    /// # Errors
    /// If the parts contradict each other, or are of a kind that is not known.
    pub fn from_parts(path: &Path, parts: parts::TokenizerParts) -> Result<Tokenizer> {
        parts::build(path, parts).map(|inner| Tokenizer { inner: Arc::new(inner) })
    }

    /// The ids of a text. Special tokens written out in the text are recognised, as Hugging Face does (and as ChatGLM 2
    /// and 3 do not); so this is for text that may hold them (a rendered chat template, a raw prompt). With `add_special`
    /// the tokenizer's own frame is added, usually a beginning-of-sequence token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let inner = &self.inner;
        let ids = match inner.special_in_text {
            true => self.encode_written(text)?,
            false => self.encode_with(text, &AddedVocabulary::new())?,
        };
        let (before, after) = if add_special { (&*inner.before, &*inner.after) } else { (&[][..], &[][..]) };
        Ok([before, &ids, after].concat())
    }

    /// The ids of what a template wrote: special tokens are recognised, and nothing is added.
    pub(super) fn encode_written(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, self.added())
    }

    fn encode_with(&self, text: &str, added: &AddedVocabulary) -> Result<Vec<u32>> {
        let ids = guarded(|| match &self.inner.words {
            Words::Library { hf, .. } => Ok(hf.encode_fast(text, false)?.get_ids().to_vec()),
            words => words.encode(added, text, &|c| c, &HashSet::new()),
        });
        ids.map_err(|e| self.error(format!("cannot encode the text: {e}")))
    }

    /// The text of a sequence of ids, without its special tokens if `skip_special`.
    ///
    /// Spaces before punctuation are kept: transformers removes them only for tokenizers that are not BPE
    /// (`clean_up_tokenization_spaces`), which no supported family has.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            text += &stream.push(id)?;
        }
        text += &stream.finish()?;
        Ok(text)
    }

    /// Decodes token by token; see [`TextStream`].
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }

    /// How many tokens there are, added ones included. The model's embedding may have more rows, for padding.
    pub fn vocab_size(&self) -> usize {
        let words = self.inner.words.len();
        let added = self.inner.added.get_added_tokens_decoder().keys().filter(|id| **id as usize >= words);
        words + added.count()
    }

    /// The id of a token, by its exact content.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.added().get_vocab().get(token).copied().or_else(|| self.inner.words.id(token))
    }

    /// The beginning-of-sequence token, if the configuration names one.
    pub fn bos_token(&self) -> Option<&str> {
        self.inner.bos.as_deref()
    }

    /// The end-of-sequence token, if the configuration names one.
    pub fn eos_token(&self) -> Option<&str> {
        self.inner.eos.as_deref()
    }

    /// The chat format of the model's own code.
    pub(super) fn chat(&self) -> Option<(&Path, &Format)> {
        self.inner.chat.as_ref().map(|chat| (&*self.inner.path, chat))
    }

    pub(super) fn words(&self) -> &Words {
        &self.inner.words
    }

    pub(super) fn added(&self) -> &AddedVocabulary {
        match &self.inner.words {
            Words::Library { hf, .. } => hf.get_added_vocabulary(),
            Words::SentencePiece { .. } | Words::Tiktoken(_) => &self.inner.added,
        }
    }

    /// What the token with this id adds to a text.
    pub(super) fn said(&self, id: u32) -> Result<Said<'_>> {
        let added = self.inner.added.get_added_tokens_decoder().get(&id).map(|token| Said::Text(&token.content));
        added.or_else(|| self.inner.words.said(id)).ok_or_else(|| {
            Error::Request(format!("token id {id} is outside the vocabulary of {} tokens", self.vocab_size()))
        })
    }

    pub(super) fn is_special(&self, id: u32, said: &Said) -> bool {
        if let Said::Token(token) = said {
            return self.added().is_special_token(token);
        }
        let added = self.inner.added.get_added_tokens_decoder().get(&id);
        added.map_or_else(|| self.inner.words.is_control(id), |token| token.special)
    }

    pub(super) fn error(&self, problem: String) -> Error {
        Error::Text { path: self.inner.path.clone(), problem }
    }
}

/// Runs a piece of the tokenizers library, which panics on some of the nonsense that a damaged file can hold.
pub(super) fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("the tokenizers library failed: {}", text.unwrap_or("no reason given")).into())
    })
}

fn missing(dir: &Path) -> Error {
    let others = ["spiece.model", "vocab.json", "tekken.json"];
    let found: Vec<&str> = others.into_iter().filter(|name| dir.join(name).exists()).collect();
    let problem = if !dir.is_dir() {
        "no tokenizer: the directory does not exist".into()
    } else if found.is_empty() {
        "no tokenizer: there is no tokenizer.json, tokenizer.model or qwen.tiktoken".into()
    } else {
        format!(
            "no tokenizer: there is no tokenizer.json, tokenizer.model or qwen.tiktoken; {} is there, which is not \
             supported",
            found.join(" and ")
        )
    };
    Error::Text { path: dir.to_path_buf(), problem }
}
