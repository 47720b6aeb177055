//! Tokenizers from plain data: what the metadata of a GGUF file says about its tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, Result};

use super::sentencepiece::{Kind, Model, Piece, SentencePiece, Spec};
use super::tokenizer::{Inner, guarded};
use super::words::{Prefix, Words};
use super::{files, library, tiktoken};

/// The keys `tokenizer.ggml.*` of a GGUF file, each named here as it is there.
///
/// Arrays that a file lacks are left empty, and keys that it lacks are `None`.
#[derive(Clone, Debug, Default)]
pub struct TokenizerParts {
    /// The kind: `llama` (SentencePiece BPE), `t5` (SentencePiece unigram) or `gpt2` (byte-level BPE).
    pub model: String,
    /// How `gpt2` cuts text: `llama-bpe`, `qwen2`, `gpt-2`, `default`.
    pub pre: Option<String>,
    /// Every token; its place is its id.
    pub tokens: Vec<String>,
    /// A score for each token (`llama`, `t5`).
    pub scores: Vec<f32>,
    /// A kind for each token, in SentencePiece's numbers: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    /// 6 byte.
    pub token_type: Vec<u32>,
    /// Pairs of tokens, divided by a space, in the order in which they are merged (`gpt2`).
    pub merges: Vec<String>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
    pub unknown_token_id: Option<u32>,
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub remove_extra_whitespaces: Option<bool>,
    /// The bytes of `precompiled_charsmap` (`t5`).
    pub precompiled_charsmap: Vec<u8>,
}

/// Builds the tokenizer. Text is encoded as by the Hugging Face tokenizer that such files are converted from, so
/// Qwen's is brought into composed form (NFC), which llama.cpp leaves out.
pub(super) fn build(path: &Path, parts: TokenizerParts) -> Result<Inner> {
    let problem = |problem: String| Error::Text { path: path.to_path_buf(), problem };
    let unsupported = |what: String| Error::Unsupported { path: path.to_path_buf(), what };
    let count = parts.tokens.len();
    for (name, len) in [("scores", parts.scores.len()), ("token_type", parts.token_type.len())] {
        if len != 0 && len != count {
            return Err(problem(format!("tokenizer.ggml.{name} has {len} entries for {count} tokens")));
        }
    }
    let mut pieces = Vec::with_capacity(count);
    for (id, text) in parts.tokens.into_iter().enumerate() {
        let number = parts.token_type.get(id).copied().unwrap_or(Kind::Normal as u32);
        let kind = Kind::new(number.into())
            .ok_or_else(|| problem(format!("tokenizer.ggml.token_type: token {id} has the type {number}")))?;
        pieces.push(Piece { text, score: parts.scores.get(id).copied().unwrap_or(0.0), kind });
    }
    let named = |name: &str, id: Option<u32>| match id.map(|id| pieces.get(id as usize)) {
        None => Ok(None),
        Some(Some(piece)) => Ok(Some(piece.text.clone())),
        Some(None) => Err(problem(format!("tokenizer.ggml.{name} is not the id of one of {count} tokens"))),
    };
    let bos = named("bos_token_id", parts.bos_token_id)?;
    let eos = named("eos_token_id", parts.eos_token_id)?;
    let unknown = named("unknown_token_id", parts.unknown_token_id)?;
    let added = (0u32..).zip(&pieces).filter_map(|(id, piece)| match piece.kind {
        Kind::Control => Some((id, AddedToken::from(piece.text.as_str(), true))),
        Kind::Unknown if unknown.is_some() => Some((id, AddedToken::from(piece.text.as_str(), true))),
        Kind::UserDefined => Some((id, AddedToken::from(piece.text.as_str(), false))),
        _ => None,
    });
    let added: BTreeMap<u32, AddedToken> = added.filter(|(_, token)| !token.content.is_empty()).collect();
    let by_default = match parts.model.as_str() {
        "llama" => (true, false),
        "t5" => (false, true),
        // llama.cpp knows by the name of the cut.
        _ => (parts.pre.as_deref() == Some("llama-bpe"), false),
    };
    let frame = (parts.add_bos_token.unwrap_or(by_default.0), parts.add_eos_token.unwrap_or(by_default.1));
    match parts.model.as_str() {
        "llama" | "t5" => {
            let unigram = parts.model == "t5";
            let spec = Spec {
                byte_fallback: pieces.iter().any(|piece| piece.kind == Kind::Byte),
                model: if unigram { Model::Unigram } else { Model::Bpe },
                dummy_prefix: parts.add_space_prefix.unwrap_or(true),
                remove_extra_spaces: parts.remove_extra_whitespaces.unwrap_or(unigram),
                charsmap: parts.precompiled_charsmap,
                pieces,
                ..Spec::default()
            };
            let model = SentencePiece::new(spec).map_err(|e| problem(format!("its tokenizer: {e}")))?;
            let inner = Inner {
                path: path.to_path_buf(),
                words: Words::SentencePiece { model, prefix: Prefix::Each },
                added: files::vocabulary(path, added)?,
                special_in_text: true,
                before: Vec::new(),
                after: Vec::new(),
                bos,
                eos,
                chat: None,
            };
            Ok(files::framed(inner, frame.0, frame.1))
        }
        "gpt2" => {
            let pre = parts.pre.as_deref().unwrap_or("default");
            let (pattern, whole_words) = match pre {
                "llama-bpe" | "llama3" | "llama-v3" => (Some(tiktoken::GLM4), true),
                "qwen2" | "deepseek-r1-qwen" => (Some(tiktoken::QWEN), false),
                "gpt-2" | "default" => (None, false),
                other => {
                    let known = "llama-bpe, qwen2, deepseek-r1-qwen, gpt-2, default";
                    return Err(unsupported(format!("the pre-tokenizer {other:?} (known: {known})")));
                }
            };
            let ids: BTreeMap<&str, u32> = pieces.iter().map(|piece| piece.text.as_str()).zip(0..).collect();
            let id = |token: &Option<String>| token.as_deref().and_then(|token| ids.get(token).copied());
            let before = id(&bos).filter(|_| frame.0).into_iter().collect();
            let after = id(&eos).filter(|_| frame.1).into_iter().collect();
            let vocabulary: Vocab = ids.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect();
            let mut merges = Vec::with_capacity(parts.merges.len());
            for pair in &parts.merges {
                let pair = pair.split_once(' ').filter(|(_, right)| !right.contains(' '));
                let (left, right) =
                    pair.ok_or_else(|| problem("tokenizer.ggml.merges: an entry is not two tokens".into()))?;
                merges.push((left.to_owned(), right.to_owned()));
            }
            let hf = guarded(|| {
                let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(whole_words).build()?;
                let mut hf = tokenizers::Tokenizer::new(model);
                let split = |pattern: &str| {
                    let pattern = SplitPattern::Regex(pattern.into());
                    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map(PreTokenizerWrapper::Split)
                };
                let bytes = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, pattern.is_none()));
                hf.with_pre_tokenizer(Some(match pattern {
                    Some(pattern) => PreTokenizerWrapper::Sequence(Sequence::new(vec![split(pattern)?, bytes])),
                    None => bytes,
                }));
                if pattern == Some(tiktoken::QWEN) {
                    hf.with_normalizer(Some(NFC))?;
                }
                hf.with_decoder(Some(ByteLevelDecoder::default()));
                hf.add_tokens(added.into_values().map(|token| token.normalized(false)))?;
                Ok(hf)
            });
            let hf = hf.map_err(|e| problem(format!("its tokenizer: {e}")))?;
            library::inner(path, hf, before, after, bos, eos)
        }
        other => Err(unsupported(format!("the tokenizer {other:?} (known: llama, t5, gpt2)"))),
    }
}
