//! The text side of a GGUF file: its metadata has what other checkpoints keep in files beside the weights.

use std::collections::BTreeMap;

use crate::checkpoint::Metadata;
use crate::error::Result;

use super::{ChatTemplate, Tokenizer, TokenizerParts};

/// The tokenizer, if the file has one.
pub(super) fn tokenizer(metadata: &Metadata) -> Result<Option<Tokenizer>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let text = |name: &str| -> Result<Option<String>> { Ok(metadata.text(&key(name))?.map(str::to_owned)) };
    let texts = |name: &str| -> Result<Vec<String>> { Ok(metadata.texts(&key(name))?.unwrap_or_default().to_vec()) };
    let flag = |name: &str| metadata.flag(&key(name));
    let id = |name: &str| metadata.token_id(&key(name));
    // Whole numbers beyond those that are asked for are as wrong as any other.
    let small = |numbers: &[i64]| numbers.iter().map(|n| u32::try_from(*n).unwrap_or(u32::MAX)).collect::<Vec<u32>>();
    let Some(model) = text("model")?.filter(|model| !matches!(model.as_str(), "none" | "no_vocab")) else {
        return Ok(None);
    };
    let parts = TokenizerParts {
        model,
        pre: text("pre")?,
        tokens: texts("tokens")?,
        scores: metadata.numbers(&key("scores"))?.unwrap_or_default().to_vec(),
        token_type: small(metadata.ints(&key("token_type"))?.unwrap_or_default()),
        merges: texts("merges")?,
        bos_token_id: id("bos_token_id")?,
        eos_token_id: id("eos_token_id")?,
        unknown_token_id: id("unknown_token_id")?,
        add_bos_token: flag("add_bos_token")?,
        add_eos_token: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
        precompiled_charsmap: small(metadata.ints(&key("precompiled_charsmap"))?.unwrap_or_default())
            .into_iter()
            .map(|byte| byte as u8)
            .collect(),
    };
    Tokenizer::from_parts(metadata.path(), parts).map(Some)
}

/// The chat template, if the file has one.
pub(super) fn chat_template(metadata: &Metadata, tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>> {
    let Some(source) = metadata.text("tokenizer.chat_template")? else { return Ok(None) };
    let tokens = [
        ("bos_token", tokenizer.and_then(Tokenizer::bos_token)),
        ("eos_token", tokenizer.and_then(Tokenizer::eos_token)),
    ];
    let special: BTreeMap<String, String> =
        tokens.into_iter().filter_map(|(name, token)| Some((name.into(), token?.into()))).collect();
    ChatTemplate::embedded(metadata.path(), source, special).map(Some)
}
