//! What text between special tokens is encoded with: a `tokenizer.json` run by the tokenizers library, a SentencePiece
//! model, or a tiktoken vocabulary.

use std::borrow::Cow;
use std::collections::HashSet;

use tokenizers::{
    AddedVocabulary, Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizer, Token,
};

use super::sentencepiece::{Kind, SPACE, SentencePiece, piece_byte};
use super::stream::Stage;
use super::tiktoken::Tiktoken;

/// The vocabulary of ordinary words.
pub(super) enum Words {
    /// The library's tokenizer, and how it decodes.
    Library {
        hf: Box<tokenizers::Tokenizer>,
        stages: Vec<Stage>,
    },
    SentencePiece {
        model: SentencePiece,
        prefix: Prefix,
    },
    Tiktoken(Tiktoken),
}

/// Where a SentencePiece tokenizer puts a space in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// Before every text between special tokens, if the model says so: SentencePiece's own way.
    Each,
    /// The same, by transformers' Llama with `legacy`, which when decoding takes off one space itself and then lets
    /// SentencePiece take off another.
    Legacy,
    /// Before the whole text, and not if it begins with a special token: transformers without `legacy`.
    Once,
    /// Nowhere (`add_prefix_space` is off).
    Never,
}

/// What a token adds to the text.
pub(super) enum Said<'a> {
    /// A token of the library, for its decoder.
    Token(String),
    /// Bytes that may be a part of a character.
    Bytes(&'a [u8]),
    /// A piece with marks for spaces.
    Marked(&'a str),
    /// Exactly this.
    Text(&'a str),
}

/// Characters of a text to be replaced after special tokens were found.
pub(super) type Unmask<'a> = &'a dyn Fn(char) -> char;

impl Words {
    /// The ids of a text: added tokens where they are written out, the rest by the words, which give no id in `banned`.
    pub fn encode(
        &self,
        added: &AddedVocabulary,
        text: &str,
        unmask: Unmask,
        banned: &HashSet<u32>,
    ) -> tokenizers::Result<Vec<u32>> {
        match self {
            Words::Library { hf, .. } => encode_library(hf, added, text, unmask, banned),
            Words::SentencePiece { model, prefix } => {
                let text = match prefix {
                    Prefix::Each | Prefix::Legacy => Cow::Borrowed(text),
                    Prefix::Once | Prefix::Never => text.replace(SPACE, " ").into(),
                };
                let mut ids = Vec::new();
                let mut first = *prefix == Prefix::Once;
                for part in parts(added, &text) {
                    match part {
                        Part::Added(id) => {
                            // Transformers takes the space off again before special tokens only.
                            let added = &added.get_added_tokens_decoder()[&id];
                            if first && !added.special {
                                ids.extend(model.encode(SPACE, false, banned));
                            }
                            ids.push(id);
                        }
                        Part::Text(text) => {
                            let text: String = text.chars().map(unmask).collect();
                            let text = if first { format!("{SPACE}{text}") } else { text };
                            let each = matches!(prefix, Prefix::Each | Prefix::Legacy);
                            let dummy = each && model.dummy_prefix();
                            ids.extend(model.encode(&text, dummy, banned));
                        }
                    }
                    first = false;
                }
                Ok(ids)
            }
            Words::Tiktoken(words) => {
                let normalized = words.normalize(text);
                let mut ids = Vec::new();
                for part in parts(added, normalized.as_deref().unwrap_or(text)) {
                    match part {
                        Part::Added(id) => ids.push(id),
                        Part::Text(text) => {
                            ids.extend(words.encode(&text.chars().map(unmask).collect::<String>(), banned)?);
                        }
                    }
                }
                Ok(ids)
            }
        }
    }

    /// A character as it is when words are looked for: some tokenizers write a full-width `＜` as `<`.
    pub fn normalized(&self, c: char) -> String {
        let text = c.to_string();
        let Words::Library { hf, .. } = self else { return text };
        let Some(normalizer) = hf.get_normalizer() else { return text };
        let mut normalized = NormalizedString::from(text.as_str());
        match super::tokenizer::guarded(|| normalizer.normalize(&mut normalized)) {
            Ok(()) => normalized.get().to_owned(),
            Err(_) => text,
        }
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        match self {
            Words::Library { hf, .. } => hf.token_to_id(token),
            Words::SentencePiece { model, .. } => model.id(token),
            Words::Tiktoken(words) => words.id(token.as_bytes()),
        }
    }

    /// How many ids there are, without added tokens that are not words.
    pub fn len(&self) -> usize {
        match self {
            Words::Library { hf, .. } => hf.get_vocab_size(true),
            Words::SentencePiece { model, .. } => model.pieces().len(),
            Words::Tiktoken(words) => words.len(),
        }
    }

    /// Whether an id is of a piece that no text has (`<s>`), whatever the configuration calls it.
    pub fn is_control(&self, id: u32) -> bool {
        let Words::SentencePiece { model, .. } = self else { return false };
        model.pieces().get(id as usize).is_some_and(|piece| piece.kind == Kind::Control)
    }

    /// What the token of an id says.
    pub fn said(&self, id: u32) -> Option<Said<'_>> {
        match self {
            Words::Library { hf, .. } => hf.id_to_token(id).map(Said::Token),
            Words::Tiktoken(words) => words.bytes(id).map(Said::Bytes),
            Words::SentencePiece { model, .. } => {
                let piece = model.pieces().get(id as usize)?;
                Some(match piece.kind {
                    Kind::Unknown => Said::Text(model.unknown_surface()),
                    Kind::Control => Said::Text(&piece.text),
                    Kind::Byte => Said::Bytes(byte(&piece.text)),
                    Kind::Normal | Kind::UserDefined | Kind::Unused => Said::Marked(&piece.text),
                })
            }
        }
    }
}

/// The byte of a byte piece, as a slice that lives long enough.
fn byte(piece: &str) -> &'static [u8] {
    static BYTES: [[u8; 1]; 256] = {
        let mut bytes = [[0]; 256];
        let mut i = 0;
        while i < 256 {
            bytes[i] = [i as u8];
            i += 1;
        }
        bytes
    };
    piece_byte(piece).map_or(&[], |byte| &BYTES[usize::from(byte)])
}

/// A part of a text.
enum Part {
    Added(u32),
    Text(String),
}

/// Cuts a text at the added tokens that are written out in it.
fn parts(added: &AddedVocabulary, text: &str) -> Vec<Part> {
    let cut = added.extract_and_normalize(None::<&NormalizerWrapper>, text);
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter();
    let part = |(text, _, tokens): (&str, _, &Option<Vec<Token>>)| match tokens.as_ref().and_then(|t| t.first()) {
        Some(token) => Part::Added(token.id),
        None => Part::Text(text.to_owned()),
    };
    splits.map(part).filter(|part| !matches!(part, Part::Text(text) if text.is_empty())).collect()
}

/// The library's steps, with a stop between finding the added tokens and looking at the rest.
fn encode_library(
    hf: &tokenizers::Tokenizer,
    added: &AddedVocabulary,
    text: &str,
    unmask: Unmask,
    banned: &HashSet<u32>,
) -> tokenizers::Result<Vec<u32>> {
    let model = hf.get_model();
    // A vocabulary may hold a control token as an ordinary word; single characters cannot spell it.
    let words = |piece: &NormalizedString| -> tokenizers::Result<Vec<Token>> {
        let tokens = model.tokenize(piece.get())?;
        if tokens.iter().all(|token| !banned.contains(&token.id)) {
            return Ok(tokens);
        }
        let mut single = Vec::new();
        for c in piece.get().chars() {
            single.extend(model.tokenize(c.encode_utf8(&mut [0; 4]))?);
        }
        match single.iter().find(|token| banned.contains(&token.id)) {
            Some(token) => Err(format!("the control token {:?} is a character of plain text", token.value).into()),
            None => Ok(single),
        }
    };
    let mut pieces = added.extract_and_normalize(hf.get_normalizer(), text);
    pieces.normalize(|piece| {
        let masked: HashSet<char> = piece.get().chars().filter(|c| unmask(*c) != *c).collect();
        masked.into_iter().try_for_each(|mask| piece.replace(mask, &unmask(mask).to_string()))
    })?;
    if let Some(pre_tokenizer) = hf.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut pieces)?;
    }
    pieces.tokenize(words)?;
    Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
}
